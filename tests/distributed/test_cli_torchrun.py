"""``reghead train`` under torchrun: two processes end where one does, and speak with one voice."""

import json
import math
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file

from _command import environment, errors, flags, lakes, saved, train
from reghead._persistence import decode_json

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not dist.is_available() or os.name == "nt", reason="needs gloo and torchrun"),
]
LEARNED = ("head.",)  # by gradients; everything else in the file is statistics


def torchrun(arguments: Sequence[str], *program: str) -> "subprocess.Popen[str]":
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--master-addr=127.0.0.1"]
    return subprocess.Popen(
        [*command, f"--master-port={port}", *(program or ("-m", "reghead")), *arguments],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def ended(process: "subprocess.Popen[str]") -> tuple[int, str, str]:
    try:
        out, err = process.communicate(timeout=120)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        out, err = process.communicate()
        raise AssertionError(f"the processes hang: {err}") from None
    return process.returncode, out, err


def assert_same_statistics(left: Path, right: Path) -> None:
    one, two = load_file(left / "model.safetensors"), load_file(right / "model.safetensors")
    assert one.keys() == two.keys()
    for name, value in one.items():
        if name.endswith("_extra_state"):
            assert decode_json(two[name]) == decode_json(value), name  # labels, their counts, and the configuration
        elif not value.is_floating_point():
            assert torch.equal(two[name], value), name
        elif name == "normalizer.cell_mean_tail":  # what the rounding of the mean has left
            mean = one["normalizer.cell_mean"]
            assert ((two[name] - value).abs() <= 1e-12 * mean.abs() + 1e-12).all()
        elif not name.startswith(LEARNED):
            torch.testing.assert_close(two[name], value, rtol=1e-12, atol=1e-13, equal_nan=True, msg=name)
        else:
            torch.testing.assert_close(two[name], value, rtol=1e-7, atol=1e-9, msg=name)


def assert_same_numbers(left: Any, right: Any, where: str = "") -> None:
    if isinstance(left, dict):
        assert left.keys() == right.keys(), where
        for name, value in left.items():
            assert_same_numbers(value, right[name], f"{where}.{name}")
    elif isinstance(left, float):
        assert math.isclose(left, right, rel_tol=1e-9, abs_tol=1e-12), (where, left, right)
    else:
        assert left == right, where


CASES: dict[str, tuple[str, tuple[Any, ...]]] = {
    "experts, weights, held back": (
        "lakes.csv",
        (
            *("--moe-experts", 3, "--moe-routing", "lake", "--weight-column", "weight", "--batch-size", 16),
            *("--moe-load-balancing-weight", 0.1, "--conditional-output-scaling", "lake", "--partial-pooling", 2),
            *("--normalize-targets-by", "lake", "--validation-fraction", 0.2),
        ),
    ),
    # The last chunk has one row, so that one process has none of it.
    "in chunks, with a chunk of one row": (
        "lakes.parquet",
        (
            *("--rows-in-memory", 20, "--batch-size", 8, "--regressor-hidden-dims", 8, "--exclude-columns", "weight"),
            *("--film-conditioning", "lake,season", "--normalize-targets-by", "lake,season"),
        ),
    ),
    "experts, in chunks, quantiles": (
        "lakes.parquet",
        (
            *("--rows-in-memory", 20, "--batch-size", 32, "--loss-type", "quantile", "--moe-experts", 2),
            *("--weight-column", "weight", "--validation-by", "season", "--conditional-output-scaling", "lake"),
        ),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_two_processes_end_where_one_does(tmp_path: Path, case: str) -> None:
    name, more = CASES[case]
    frame = lakes(81)
    frame["weight"] = np.random.default_rng(1).choice([0.0, 0.5, 1.0, 2.5], len(frame))
    frame.loc[80, "weight"] = 1.0
    table = saved(tmp_path, frame, name)
    more = (*more, "--dtype", "float64", "--max-epochs", 4)
    process = torchrun(flags(table, tmp_path / "two", *more))
    assert train(table, tmp_path / "one", *more) == 0
    code, out, err = ended(process)
    assert code == 0, err
    assert (out, errors(err)) == ("", [])
    one, two = tmp_path / "one", tmp_path / "two"
    assert {path.name for path in one.iterdir()} == {path.name for path in two.iterdir()}
    assert {path.name for path in tmp_path.iterdir()} == {"one", "two", name}
    assert_same_statistics(one, two)
    assert_same_numbers(*(json.loads((folder / "metrics.json").read_text()) for folder in (one, two)))
    records = [json.loads((folder / "run.json").read_text()) for folder in (one, two)]
    assert [record.pop("processes") for record in records] == [1, 2]
    assert records[0]["data"] == records[1]["data"]


def test_an_error_is_told_once_and_all_processes_end(tmp_path: Path) -> None:
    frame = lakes()
    frame.loc[7, "pH"] = math.nan
    starts = {
        "target 'pH' must be a finite number": torchrun(flags(saved(tmp_path, frame), tmp_path / "a")),
        "none.csv does not exist": torchrun(flags(tmp_path / "none.csv", tmp_path / "b")),
        "unrecognized arguments: --wrong": torchrun(flags(tmp_path / "none.csv", tmp_path / "c", "--wrong")),
    }
    for message, (code, out, err) in {message: ended(process) for message, process in starts.items()}.items():
        assert code != 0
        assert out == ""
        assert len(errors(err)) == 1, err
        assert message in errors(err)[0]
    assert {path.name for path in tmp_path.iterdir()} == {"lakes.csv"}


@pytest.mark.parametrize("late", [0, 1])
def test_a_process_that_starts_late_changes_nothing_about_what_is_told(tmp_path: Path, late: int) -> None:
    """torchrun stops all processes as soon as one has left, which must not be one that has said nothing."""
    program = tmp_path / "late.py"
    wait = f"import os, runpy, time; time.sleep(8 * (os.environ['RANK'] == '{late}'))"
    program.write_text(f"{wait}; runpy.run_module('reghead', run_name='__main__')")
    code, out, err = ended(torchrun(flags(tmp_path / "none.csv", tmp_path / "out", "--wrong"), str(program)))
    assert code != 0
    assert out == ""
    (line,) = errors(err)
    assert "unrecognized arguments: --wrong" in line


def test_what_only_the_first_process_may_not_do_ends_all(tmp_path: Path) -> None:
    """The others wait for it to make the folder."""
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    code, out, err = ended(torchrun(flags(saved(tmp_path, lakes()), tmp_path / "out")))
    assert code != 0
    assert out == ""
    (line,) = errors(err)
    assert "already has results" in line
    assert {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")} == {"lakes.csv", "out", "out/mine.txt"}


def test_a_scheduler_that_stops_all_processes_loses_nothing(tmp_path: Path) -> None:
    """One process goes on with what two have begun."""
    table, out = saved(tmp_path, lakes()), tmp_path / "out"
    process = torchrun(flags(table, out, "--max-epochs", 10_000_000, "--dtype", "float64"))
    checkpoint, until = tmp_path / "out.partial" / "checkpoint.safetensors", time.monotonic() + 90
    while not checkpoint.exists() and time.monotonic() < until:
        time.sleep(0.05)
    process.terminate()
    code, _, err = ended(process)
    assert code != 0
    (line,) = errors(err)
    assert "interrupted; what was trained so far is in" in line
    assert {path.name for path in tmp_path.iterdir()} == {"lakes.csv", "out.partial"}
    assert train(table, out, "--max-epochs", 1, "--dtype", "float64", "--resume") == 0
    assert (out / "run.json").is_file()
