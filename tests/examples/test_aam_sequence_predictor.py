"""The example of the adapter runs, scores in the target's units, and tells an interval for every location."""

import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

FILE = Path(__file__).parents[2] / "examples" / "aam_sequence_predictor.py"


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location("aam_sequence_predictor", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(sys, "path", list(sys.path))
    # The stand-in, also where AAM is installed: that is slower, and has tests of its own.
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    return module


def test_it_trains_and_tells_intervals_by_location(
    example: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with torch.random.fork_rng():
        example.main(["--epochs", "4", "--output-dir", str(tmp_path)])
    printed = capsys.readouterr().out
    assert "The model is a small model in the shape of AAM's." in printed
    scores = re.search(r"MAE ([\d.]+), R squared ([\d.]+)", printed)
    assert scores is not None
    # The locations are tens of units apart, and few units wide.
    assert float(scores[1]) < 5.0
    assert float(scores[2]) > 0.9
    rows = [line.split() for line in printed.splitlines() if line.split()[:1] and line.split()[0] in example.LOCATIONS]
    assert [row[0] for row in rows] == sorted(example.LOCATIONS)
    for name, samples, level, width, share in rows:
        assert int(samples) > 0
        assert abs(float(level) - example.LOCATIONS[name][0]) < 15.0
        assert float(width) > 0
        assert share.endswith("%")
    assert (tmp_path / "checkpoints" / "best_model.pt").is_file()
    assert (tmp_path / "val_predictions.tsv").is_file()
