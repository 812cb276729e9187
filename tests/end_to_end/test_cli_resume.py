"""A training that is interrupted and goes on ends as if nothing had been, to the last bit."""

import csv
import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from _command import errors, flags, lakes, saved, start, train
from reghead.cli import _train, main
from reghead.cli._checkpoint import FileCheckpoint
from reghead.cli._run_directory import RunDirectory

Patch = pytest.MonkeyPatch
pytestmark = pytest.mark.usefixtures("heard")
EXACT = ("model.safetensors", "history.csv", "metrics.json", "per_category.csv", "config.json")
MODELS: dict[str, tuple[Any, ...]] = {
    "linear": (),
    "dropout, several batches": ("--regressor-hidden-dims", "8,8", "--regressor-dropout", "0.3", "--batch-size", 16),
    "experts": ("--moe-experts", 3, "--moe-routing", "lake", "--moe-load-balancing-weight", "0.1", "--batch-size", 25),
    "film, unknown dropout, held back": (
        *("--regressor-hidden-dims", "8", "--film-conditioning", "lake,season", "--unknown-dropout", "0.2"),
        *("--validation-fraction", "0.3", "--patience", 100, "--batch-size", 10),
    ),
    "quantiles, by lake, float64": (
        *("--loss-type", "quantile", "--normalize-targets-by", "lake", "--dtype", "float64"),
        *("--validation-by", "season", "--batch-size", 7),
    ),
}


@pytest.fixture
def table(tmp_path: Path) -> Path:
    return saved(tmp_path, lakes(80))


def same(left: Path, right: Path, names: tuple[str, ...] = EXACT) -> None:
    for name in names:
        assert (left / name).read_bytes() == (right / name).read_bytes(), name


def partial(out: Path) -> Path:
    return out.with_name(out.name + ".partial")


def interrupt_after(epochs: int, patch: Patch, number: signal.Signals = signal.SIGINT) -> None:
    """A signal when that many epochs are kept, as of a user or a scheduler."""
    keep, done = FileCheckpoint.keep, iter(range(1, 10_000))

    def keep_and_stop(self: FileCheckpoint, state: Any) -> None:
        keep(self, state)
        if next(done) == epochs:
            signal.raise_signal(number)

    patch.setattr(FileCheckpoint, "keep", keep_and_stop)


def interrupted(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    (line,) = err.splitlines()
    assert line.startswith("reghead: error: interrupted")
    return line


@pytest.mark.parametrize("model", MODELS)
def test_going_on_ends_where_it_would_have_ended(
    tmp_path: Path, table: Path, capsys: pytest.CaptureFixture[str], model: str
) -> None:
    more = (*MODELS[model], "--max-epochs", 6)
    assert train(table, tmp_path / "whole", *more) == 0
    out = tmp_path / "out"
    # Twice, by either signal, and once after the last epoch, when there is nothing left to train.
    for resume, epochs, number in (((), 2, signal.SIGINT), (("--resume",), 1, signal.SIGTERM), (("--resume",), 3, 2)):
        with pytest.MonkeyPatch.context() as patch:
            interrupt_after(epochs, patch, signal.Signals(number))
            line = interrupted(flags(table, out, *more, *resume), capsys)
        assert f"what was trained so far is in {partial(out)}, and the same command with --resume goes on" in line
        assert not out.exists()
        assert sorted(path.name for path in partial(out).iterdir()) == ["checkpoint.safetensors", "unfinished.txt"]
        assert not out.with_name("out.lock").exists()
    assert train(table, out, *more, "--resume") == 0
    same(tmp_path / "whole", out)
    assert {path.name for path in out.iterdir()} == {path.name for path in (tmp_path / "whole").iterdir()}
    assert not partial(out).exists()


def test_early_stopping_remembers_its_best_epoch(
    tmp_path: Path, table: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The weights restored at the end are those of an epoch before the break."""
    stops = ("--validation-fraction", "0.4", "--lr", "0.5", "--max-epochs", 200, "--patience", 6)
    more = ("--regressor-hidden-dims", "32", *stops)
    assert train(table, tmp_path / "whole", *more) == 0
    with (tmp_path / "whole" / "history.csv").open() as file:
        losses = [float(row["validation_loss"]) for row in csv.DictReader(file)]
    best, out = losses.index(min(losses)) + 1, tmp_path / "out"
    assert len(losses) == best + 6 < 200
    with pytest.MonkeyPatch.context() as patch:
        interrupt_after(best + 2, patch)
        interrupted(flags(table, out, *more), capsys)
    assert train(table, out, *more, "--resume") == 0
    same(tmp_path / "whole", out)


def test_more_epochs_may_be_asked_for(tmp_path: Path, table: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        interrupt_after(2, patch)
        interrupted(flags(table, tmp_path / "out", "--max-epochs", 3), capsys)
    assert train(table, tmp_path / "out", "--max-epochs", 5, "--resume") == 0
    assert train(table, tmp_path / "whole", "--max-epochs", 5) == 0
    same(tmp_path / "whole", tmp_path / "out")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_before_the_first_epoch_nothing_is_left(
    tmp_path: Path, table: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Patch, number: signal.Signals
) -> None:
    monkeypatch.setattr(_train, "fit_model", lambda *_, **__: signal.raise_signal(number))
    line = interrupted(flags(table, tmp_path / "out"), capsys)
    assert line.endswith("interrupted before the first epoch was done; nothing was written")
    assert list(tmp_path.iterdir()) == [table]


@pytest.mark.parametrize("name", ["open_table", "check_training", "_identity"])
def test_nor_is_anything_while_the_table_is_read(
    tmp_path: Path, table: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Patch, name: str
) -> None:
    monkeypatch.setattr(_train, name, lambda *_, **__: signal.raise_signal(signal.SIGINT))
    assert interrupted(flags(table, tmp_path / "out"), capsys).endswith("interrupted; nothing was written")
    assert list(tmp_path.iterdir()) == [table]


def test_an_impatient_second_signal_costs_nothing(
    tmp_path: Path, table: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Patch
) -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    flush = FileCheckpoint.flush

    def flush_under_fire(self: FileCheckpoint) -> bool:
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGTERM)
        return flush(self)

    with monkeypatch.context() as patch:
        interrupt_after(1, patch)
        patch.setattr(FileCheckpoint, "flush", flush_under_fire)
        assert "--resume goes on with it" in interrupted(flags(table, tmp_path / "out"), capsys)
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before
    assert train(table, tmp_path / "out", "--resume") == 0


@pytest.mark.parametrize("resume", [False, True])
def test_old_results_stay_until_the_new_ones_are_whole(
    tmp_path: Path, table: Path, capsys: pytest.CaptureFixture[str], resume: bool
) -> None:
    out = tmp_path / "out"
    assert train(table, out) == 0
    old = {path: path.read_bytes() for path in out.iterdir()}
    more = ("--seed", 5, "--overwrite")
    with pytest.MonkeyPatch.context() as patch:
        interrupt_after(1, patch)
        interrupted(flags(table, out, *more), capsys)
    assert {path: path.read_bytes() for path in out.iterdir()} == old
    if resume:
        assert main(flags(table, out, "--seed", 5, "--resume")) == 2
        assert "give --overwrite beside --resume to replace them" in capsys.readouterr().err
        assert {path: path.read_bytes() for path in out.iterdir()} == old
    assert train(table, out, *more, *(["--resume"] if resume else [])) == 0
    assert train(table, tmp_path / "whole", "--seed", 5) == 0
    same(tmp_path / "whole", out)


def test_another_start_says_what_is_there(tmp_path: Path, table: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        interrupt_after(1, patch)
        interrupted(flags(table, tmp_path / "out"), capsys)
    assert train(table, tmp_path / "out") == 2
    message = capsys.readouterr().err
    assert "an unfinished training is in" in message
    assert "--resume goes on with it, --overwrite starts anew" in message
    assert main(["predict", str(partial(tmp_path / "out")), str(table)]) == 2
    assert "has not finished; go on with it with --resume" in capsys.readouterr().err
    assert train(table, tmp_path / "out", "--overwrite") == 0
    assert train(table, tmp_path / "whole") == 0
    same(tmp_path / "whole", tmp_path / "out")


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--lr", "0.1"), "--lr was not given there and is 0.1 now"),
        (("--seed", "7"), "--seed was 3 there and is 7 now"),
        (("--regressor-hidden-dims", "4"), "--regressor-hidden-dims was not given there and is (4,) now"),
        (("--categorical-columns", "season"), "--categorical-columns was ['lake', 'season'] there and is"),
        (("--loss-type", "mae"), "--loss-type was not given there and is 'mae' now"),
    ],
)
def test_another_training_does_not_go_on_with_it(
    tmp_path: Path, table: Path, capsys: pytest.CaptureFixture[str], more: tuple[str, ...], message: str
) -> None:
    drop = ("--seed", 3, "--exclude-columns", "lake") if "--categorical-columns" in more else ("--seed", 3)
    with pytest.MonkeyPatch.context() as patch:
        interrupt_after(1, patch)
        interrupted(flags(table, tmp_path / "out", "--seed", 3), capsys)
    kept = (partial(tmp_path / "out") / "checkpoint.safetensors").read_bytes()
    assert train(table, tmp_path / "out", *drop, *more, "--resume") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line or "--exclude-columns was not given there" in line
    assert "give the same, or start anew with --overwrite" in line
    assert (partial(tmp_path / "out") / "checkpoint.safetensors").read_bytes() == kept
    assert train(table, tmp_path / "out", "--seed", 3, "--resume") == 0


def test_another_table_does_not_go_on_with_it(tmp_path: Path, table: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        interrupt_after(1, patch)
        interrupted(flags(table, tmp_path / "out"), capsys)
    saved(tmp_path, lakes(80, seed=1))
    assert train(table, tmp_path / "out", "--resume") == 2
    assert "the SHA-256 of the training table was" in capsys.readouterr().err
    # The same table under another name is the same training.
    assert train(saved(tmp_path, lakes(80), "renamed.csv"), tmp_path / "out", "--resume") == 0


@pytest.mark.parametrize("damage", ["cut short", "no file of tensors"])
def test_a_damaged_checkpoint_is_told(
    tmp_path: Path, table: Path, capsys: pytest.CaptureFixture[str], damage: str
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        interrupt_after(1, patch)
        interrupted(flags(table, tmp_path / "out"), capsys)
    file = partial(tmp_path / "out") / "checkpoint.safetensors"
    file.write_bytes(file.read_bytes()[:-50] if damage == "cut short" else b"checkpoint")
    assert train(table, tmp_path / "out", "--resume") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"the checkpoint {file} is damaged (" in line
    assert "--overwrite starts anew" in line


def test_a_reader_that_has_enough_is_no_error(
    tmp_path: Path, table: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Patch
) -> None:
    """``reghead train ... | head``: the results are in their place by then, and stay there."""

    def closed(_: object) -> None:
        raise RuntimeError("told after the results are in their place")

    monkeypatch.setattr(_train, "_print", closed)
    assert main([a for a in flags(table, tmp_path / "out") if a != "--quiet"]) == 2
    assert "told after the results" in capsys.readouterr().err
    assert (tmp_path / "out" / "run.json").is_file()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["lakes.csv", "out"]


def test_results_that_came_meanwhile_do_not_cost_the_new_ones(
    tmp_path: Path, table: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Patch
) -> None:
    commit = RunDirectory.commit

    def late(self: RunDirectory) -> Path:
        self.output_dir.mkdir()
        (self.output_dir / "run.json").write_text("of somebody else")
        return commit(self)

    # Every epoch is in the file by now: the checkpoint has nothing left to write.
    monkeypatch.setattr("reghead.cli._checkpoint.time.monotonic", iter(range(0, 10**6, 100)).__next__)
    monkeypatch.setattr(RunDirectory, "commit", late)
    assert train(table, tmp_path / "out") == 2
    assert "was written by somebody else during the training; the results are in" in capsys.readouterr().err
    assert (tmp_path / "out" / "run.json").read_text() == "of somebody else"
    assert (partial(tmp_path / "out") / "model.safetensors").is_file()
    assert json.loads((partial(tmp_path / "out") / "run.json").read_text())["kind"] == "model"


@pytest.fixture
def running(tmp_path: Path, table: Path) -> Iterator[Any]:
    """A process that trains for longer than any test waits."""
    arguments = flags(table, tmp_path / "out", "--max-epochs", 10_000_000, "--regressor-hidden-dims", "4")
    process = start(arguments)
    yield process
    process.kill()
    process.communicate(timeout=60)


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="signals of another kind")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_process_that_is_stopped_goes_on(tmp_path: Path, table: Path, running: Any, number: signal.Signals) -> None:
    out, waited = tmp_path / "out", time.monotonic() + 60
    checkpoint = partial(out) / "checkpoint.safetensors"
    while not checkpoint.exists() and time.monotonic() < waited:
        time.sleep(0.05)
    running.send_signal(number)
    said, err = running.communicate(timeout=60)
    assert (running.returncode, said) == (2, "")
    assert len(errors(err)) == 1
    assert "Traceback" not in err
    assert f"what was trained so far is in {partial(out)}, and the same command with --resume" in err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["lakes.csv", "out.partial"]
    done = epochs_in(checkpoint)
    more = ("--max-epochs", done + 2, "--regressor-hidden-dims", "4")
    assert train(table, out, *more, "--resume") == 0
    assert len((out / "history.csv").read_text().splitlines()) == done + 3


def epochs_in(checkpoint: Path) -> int:
    from safetensors.torch import load_file

    from reghead._persistence import decode_json

    return len(decode_json(load_file(checkpoint)["progress"])["history"]["train_loss"])
