"""Nothing that the command reads is replaced by what it writes, whatever --overwrite allows."""

import json
import os
from pathlib import Path
from typing import Any

import pytest

from _command import flags, lakes, saved, train
from reghead.cli import main

Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table, two models, and an evaluation of the first."""
    folder = tmp_path_factory.mktemp("work")
    table = saved(folder, lakes())
    for name in ("m", "other"):
        assert train(table, folder / name) == 0
    assert main([str(a) for a in ("evaluate", folder / "m", table, "--output-dir", folder / "scores", *BRIEF)]) == 0
    return folder


BRIEF = ("--quiet", "--no-figures")


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def refused(capsys: Capture, folder: Path, *arguments: Any) -> str:
    """The error of a command that leaves every file as it was."""
    before = contents(folder)
    capsys.readouterr()
    assert main([str(argument) for argument in arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("reghead: error: ")
    assert err.count("\n") == 1
    assert contents(folder) == before
    return err


@pytest.mark.parametrize("overwrite", [(), ("--overwrite",)])
def test_an_evaluation_replaces_no_model(work: Path, capsys: Capture, overwrite: tuple[str, ...]) -> None:
    table = work / "lakes.csv"
    own = refused(capsys, work, "evaluate", work / "m", table, "--output-dir", work / "m", *overwrite)
    assert f"--output-dir {work / 'm'} would replace {work / 'm'}, which is given as FOLDER; choose another" in own
    other = refused(capsys, work, "evaluate", work / "m", table, "--output-dir", work / "other", *overwrite)
    assert f"{work / 'other'} holds a model, which an evaluation does not replace; choose another --output-dir" in other


def test_a_training_replaces_no_evaluation_and_an_evaluation_another(work: Path, capsys: Capture) -> None:
    message = refused(capsys, work, *flags(work / "lakes.csv", work / "scores", "--overwrite"))
    assert "holds an evaluation, which a model does not replace" in message
    arguments = ("evaluate", work / "m", work / "lakes.csv", "--output-dir", work / "scores", *BRIEF)
    assert "already has results; choose another --output-dir, or give --overwrite" in refused(capsys, work, *arguments)
    assert main([str(a) for a in (*arguments, "--overwrite")]) == 0


def test_an_evaluation_that_was_cut_short_is_simply_done_again(work: Path, capsys: Capture) -> None:
    left = work / "again.partial"
    left.mkdir()
    (left / "unfinished.txt").write_text("This evaluation has not finished. The same command starts it anew.\n")
    arguments = ("evaluate", work / "m", work / "lakes.csv", "--output-dir", work / "again", *BRIEF)
    assert main([str(argument) for argument in arguments]) == 0
    assert (capsys.readouterr(), left.exists()) == (("", ""), False)


def test_predictions_replace_nothing_that_is_read(work: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    table = saved(work, lakes(seed=1), "new.csv")
    link = work / "link.csv"
    link.symlink_to(table)
    monkeypatch.chdir(work)
    for output in (table, "new.csv", link, work / "m" / ".." / "new.csv"):
        message = refused(capsys, work, "predict", work / "m", table, "--output", output, "--overwrite")
        assert f"--output {output} is the file that TABLE reads; choose another --output" in message
    message = refused(capsys, work, "predict", work / "m", link, "--output", table, "--overwrite")
    assert "is the file that TABLE reads" in message
    hard = work / "hard.csv"
    os.link(table, hard)
    assert "TABLE" in refused(capsys, work, "predict", work / "m", table, "--output", hard, "--overwrite")
    inside = ("predict", work / "m", table, "--output", work / "m" / "preds.csv")
    assert "lies in the folder of the model; choose a place outside it" in refused(capsys, work, *inside)
    metadata = ("--metadata", work / "lakes.csv", "--output", work / "lakes.csv", "--overwrite")
    assert "is the file that --metadata reads" in refused(capsys, work, "predict", work / "m", "e.npz", *metadata)


@pytest.mark.parametrize("flag", ["TABLE", "--metadata", "--validation-table", "--config", "--loss-config"])
@pytest.mark.parametrize("place", ["m", "m/figures", "m.partial"])
def test_a_training_replaces_no_folder_with_what_it_reads(
    tmp_path: Path, capsys: Capture, flag: str, place: str
) -> None:
    table = saved(tmp_path, lakes())
    assert train(table, tmp_path / "m") == 0
    (tmp_path / place).mkdir(exist_ok=True)
    name = "f.json" if "config" in flag else "f.csv"
    file = saved(tmp_path / place, lakes(), name)
    if flag == "--config":
        file.write_text('{"seed": 1}')
    elif flag == "--loss-config":
        file.write_text('{"pH": "mse"}')
    arguments = flags(file if flag == "TABLE" else table, tmp_path / "m", "--overwrite")
    message = refused(capsys, tmp_path, *arguments, *(() if flag == "TABLE" else (flag, file)))
    wanted = f"--output-dir {tmp_path / 'm'} would replace {file}, which is given as {flag}; choose another"
    assert wanted in message


def test_losses_named_in_a_file_of_flags_are_kept_too(tmp_path: Path, capsys: Capture) -> None:
    table = saved(tmp_path, lakes())
    assert train(table, tmp_path / "m") == 0
    losses, config = tmp_path / "m" / "losses.json", tmp_path / "flags.json"
    losses.write_text('{"pH": "mse"}')
    config.write_text(json.dumps({"loss-config": str(losses)}))
    message = refused(capsys, tmp_path, *flags(table, tmp_path / "m", "--overwrite", "--config", config))
    assert f"would replace {losses}, which is given as --loss-config" in message
    # Inline, nothing is read.
    assert train(table, tmp_path / "m", "--overwrite", "--loss-config", '{"pH": "mse"}') == 0
