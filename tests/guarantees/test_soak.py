"""Training leaves nothing behind: memory, objects and warnings do not grow with the steps."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

PATH = Path(__file__).parents[2] / "benchmarks" / "soak.py"
spec = importlib.util.spec_from_file_location("soak", PATH)
assert spec is not None
assert spec.loader is not None
soak = importlib.util.module_from_spec(spec)
sys.modules["soak"] = soak  # where a dataclass looks for its annotations
spec.loader.exec_module(soak)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="resident memory is read from /proc")
def test_two_thousand_steps_leave_nothing_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(soak, "SAMPLES", 20)  # each collects all of pytest's garbage too
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng(devices=[]):
            report = soak.soak(2000)
    finally:
        torch.set_num_threads(threads)
    assert report.is_flat, f"{report.bytes_per_step:.0f} bytes a step"
    assert report.new_objects <= soak.OBJECTS
    assert report.warned <= soak.WARNINGS
    assert report.loss[1] < report.loss[0]


def report_of(memory: np.ndarray, seconds: np.ndarray) -> object:
    at = np.linspace(0, len(seconds) - 1, len(memory))
    return soak.Report(len(seconds), seconds, at, memory, np.arange(len(memory)), 0, (1.0, 0.5))


def test_a_leak_and_a_slow_down_are_found() -> None:
    steps = 10_000
    leak = report_of(1e8 + 1000.0 * np.linspace(0, steps, 50), np.full(steps, 1e-3))
    assert not leak.is_flat  # type: ignore[attr-defined]
    assert leak.bytes_per_step == pytest.approx(1000, rel=1e-2)  # type: ignore[attr-defined]
    slow = report_of(np.full(50, 1e8), np.linspace(1e-3, 2e-3, steps))
    assert slow.is_flat  # type: ignore[attr-defined]
    assert slow.slower > soak.SLOWER  # type: ignore[attr-defined]


def test_a_table_says_what_is_missed() -> None:
    rows = report_of(1e8 + np.linspace(0, 1e8, 50), np.full(100, 1e-3)).rows()  # type: ignore[attr-defined]
    assert [what for what, *_, holds in rows if not holds] == ["resident memory, slope"]


def test_a_few_steps_end_in_a_report(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(soak, "SAMPLES", 4)
    with torch.random.fork_rng(devices=[]):
        report = soak.soak(20)
    assert report.steps == 20
    assert np.isfinite(report.loss).all()
    assert report.warned == 0
