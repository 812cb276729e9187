"""Files that earlier versions wrote are read, and predict what they predicted then."""

import importlib.util
import json
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from reghead._persistence import FORMAT

FIXTURES = Path(__file__).parents[1] / "fixtures"
NAME = re.compile(r"(?P<kind>\w+)-(?P<version>format(?P<format>\d+)-reghead[^-]+?)(\.safetensors|\.json|)")
pytestmark = pytest.mark.filterwarnings("ignore::reghead.UnseenCategoryWarning")


def load_script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_checkpoints", FIXTURES / "make_checkpoints.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


MAKE = load_script()
FILES = sorted(path for path in MAKE.FOLDER.iterdir() if not path.name.endswith(".safetensors.json"))
NAMES = {path: match for path in FILES if (match := NAME.fullmatch(path.name))}
CHECKPOINTS = [path for path, match in NAMES.items() if match["kind"] != "predictions"]


def test_every_file_says_its_format_and_its_version() -> None:
    assert sorted(NAMES) == FILES
    assert {int(match["format"]) for match in NAMES.values()} <= set(range(1, FORMAT + 1))


def test_every_kind_has_a_file_of_this_format() -> None:
    assert {match["kind"] for match in NAMES.values() if int(match["format"]) == FORMAT} == {*MAKE.KINDS, "predictions"}


def numbers(value: Any) -> np.ndarray:
    return np.array(value, dtype=float)


@pytest.mark.parametrize("path", CHECKPOINTS, ids=lambda path: path.name)
def test_a_file_loads_and_predicts_what_it_did(path: Path) -> None:
    match = NAMES[path]
    stored = json.loads((MAKE.FOLDER / f"predictions-{match['version']}.json").read_text())[match["kind"]]
    predict = MAKE.KINDS[match["kind"]][2]
    with torch.no_grad():
        got = numbers(MAKE.plain(predict(path)))
    assert got.size
    np.testing.assert_allclose(got, numbers(stored), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["head", "category_normalizer", "split_conformal", "vocabulary", "encoder"])
def test_what_is_written_today_is_what_the_files_hold(kind: str, tmp_path: Path) -> None:
    """A changed format has a new number: no file of the old one changes under its name."""
    ending, write, _ = MAKE.KINDS[kind]
    name = f"{kind}-{MAKE.suffix()}{ending}"
    write(tmp_path / name)
    stored = MAKE.FOLDER / name
    if ending == ".json":
        assert json.loads((tmp_path / name).read_text()) == json.loads(stored.read_text())
    else:
        described = (path.with_name(path.name + ".json").read_text() for path in (stored, tmp_path / name))
        assert len(set(described)) == 1
        safetensors = pytest.importorskip("safetensors.torch")
        old, new = (safetensors.load(path.read_bytes()) for path in (stored, tmp_path / name))
        assert {k: (t.shape, t.dtype) for k, t in old.items()} == {k: (t.shape, t.dtype) for k, t in new.items()}
