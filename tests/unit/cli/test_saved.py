"""A finished training in its folder."""

import json
from pathlib import Path

import pytest
import torch

from _command import lakes, saved, train
from reghead.cli._errors import InputError
from reghead.cli._parts import TableParts
from reghead.cli._saved import load_run, usable_device
from reghead.cli._tables import open_table


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved")
    assert train(saved(folder, lakes()), folder / "run", "--normalize-targets-by", "lake", "--dtype", "float64") == 0
    return folder / "run"


def test_what_is_loaded_predicts_as_the_file_says(run: Path) -> None:
    loaded = load_run(run, "cpu")
    assert not loaded.model.training
    assert loaded.schema.targets == ("pH",)
    assert loaded.schema.features == ("depth", "light")
    assert loaded.record == json.loads((run / "run.json").read_text())
    table = open_table(run.parent / "lakes.csv", text_columns=("lake", "season", "id"))
    (part,) = TableParts(table, loaded.schema)
    preds = loaded.model.predict(part)
    mse = json.loads((run / "metrics.json").read_text())["training"]["overall"]["pH"]["rmse"] ** 2
    assert (preds - torch.from_numpy(part.target)).square().mean().item() == pytest.approx(mse, rel=1e-12)


def test_a_folder_may_be_moved(run: Path, tmp_path: Path) -> None:
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    for name in ("run.json", "model.safetensors"):
        (moved / name).write_bytes((run / name).read_bytes())
    assert load_run(moved, "cpu").record == load_run(run, "cpu").record


def test_a_file_that_only_looks_like_a_folder(run: Path) -> None:
    with pytest.raises(InputError, match=r"run\.json is not a folder; give the --output-dir of reghead train"):
        load_run(run / "run.json", "cpu")


@pytest.mark.parametrize("name", ["gpu", "cuda:-1", ""])
def test_a_device_of_no_known_kind(name: str) -> None:
    with pytest.raises(InputError, match=f"--device {name} cannot be used: .*; choose cpu"):
        usable_device(name)
    assert usable_device("cpu") == torch.device("cpu")
