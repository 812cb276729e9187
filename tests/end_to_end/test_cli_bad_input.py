"""Bad input to the command: one line that says what to do, exit code 2, and nothing left behind."""

import errno
import hashlib
import json
import resource
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from _command import errors, flags, lakes, saved, start, train
from reghead.cli import _checkpoint, _files, _scoring, main
from reghead.cli._run_directory import RunDirectory
from reghead.estimators._model import TableModel
from reghead.heads import RegressionHead

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def table(tmp_path: Path) -> Path:
    return saved(tmp_path, lakes())


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    assert train(saved(folder, lakes()), folder / "run") == 0
    return folder / "run"


def copied(model: Path, folder: Path) -> Path:
    copy = folder / "run"
    copy.mkdir()
    for file in model.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    return copy


def names(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def refused(capsys: Capture, folder: Path, arguments: list[Any]) -> str:
    """The one line of an error; nothing else was said, and nothing in ``folder`` is new."""
    before = names(folder)
    capsys.readouterr()
    assert main([str(argument) for argument in arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("reghead: error: ")
    assert err.count("\n") == 1, err
    assert "Traceback" not in err
    assert names(folder) == before
    return err


def put(column: str, value: object, row: int = 4) -> Callable[[pd.DataFrame], pd.DataFrame]:
    def change(frame: pd.DataFrame) -> pd.DataFrame:
        values = frame[column].astype(object).tolist()
        values[row] = value
        return frame.assign(**{column: values})

    return change


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        (put("depth", None), ["feature 'depth' has no value in 1 of 60 rows, first in row 5", "--impute-missing"]),
        (put("depth", "inf"), ["feature 'depth' must be finite, got inf in row 5"]),
        (put("depth", "deep"), ["columns without a role", "'depth' (string)", "--exclude-columns"]),
        (put("pH", None), ["target 'pH' must be a finite number, got no value in row 5", "leave those rows out"]),
        (put("pH", "-inf"), ["target 'pH' must be a finite number, got -inf in row 5"]),
        (put("pH", "acid"), ["target 'pH' must hold numbers, got 'acid' in row 5"]),
        (put("pH", 1e300), ["target 'pH' must be at most 1e+150 in size", "got 1e+300 in row 5", "power of ten"]),
        (put("depth", -1e200), ["feature 'depth' must be at most 1e+150 in size", "got -1e+200 in row 5"]),
        (lambda f: f.assign(lake=[f"lake {i}" for i in range(len(f))]), ["'lake'", "identifies rows", "--id-column"]),
        (lambda f: f.assign(lake="Como"), ["'lake' has one category only, 'Como'", "leave it out"]),
        (lambda f: f.assign(lake=None), ["'lake' has no value in any row"]),
        (lambda f: f.head(1), ["has 1 row, and training needs at least two"]),
        (lambda f: f.head(0), ["has no rows"]),
        (put("id", 0), ["--id-column 'id' must be unique, and 1 rows repeat an id, such as '0' in row 5"]),
        (put("id", None), ["--id-column 'id' has no value in row 5"]),
        (lambda f: f.rename(columns={"pH": "pHs"}), ["--target names the column 'pH'", "did you mean 'pHs'?"]),
        (lambda f: f.rename(columns={"lake": "lakes"}), ["'lake'", "did you mean 'lakes'?"]),
    ],
)
def test_a_table_that_cannot_be_learned_from(
    tmp_path: Path, capsys: Capture, change: Callable[[pd.DataFrame], pd.DataFrame], parts: list[str]
) -> None:
    message = refused(capsys, tmp_path, flags(saved(tmp_path, change(lakes())), tmp_path / "out"))
    for part in parts:
        assert part in message


def test_a_table_that_cannot_be_read(tmp_path: Path, capsys: Capture) -> None:
    assert "none.csv does not exist" in refused(capsys, tmp_path, flags(tmp_path / "none.csv", tmp_path / "out"))
    for name, content, part in [
        ("a.csv", b"a,b\n1,2\n3,4,5\n", "3 fields in row 2, expected 2"),
        ("b.csv", b"a,b\n\xff\xfe,2\n", "UTF-8"),
        ("c.csv", b"", "is empty"),
        ("d.parquet", b"PAR1 and no more", "cannot be read as Parquet"),
        ("e.xlsx", b"?", "name it by what it is"),
    ]:
        (tmp_path / name).write_bytes(content)
        assert part in refused(capsys, tmp_path, flags(tmp_path / name, tmp_path / "out"))


@pytest.mark.parametrize(
    ("more", "parts"),
    [
        (["--lrr", "1"], ["unrecognized arguments: --lrr 1", "did you mean '--lr'?", "; reghead train --help"]),
        (["--lr", "fast"], ["--lr", "must be a number, got 'fast'"]),
        (["--lr", "0"], ["--lr", "must be finite and > 0, got 0.0"]),
        (["--max-epochs", "1.5"], ["--max-epochs", "must be an integer, got '1.5'"]),
        (["--seed", "-1"], ["--seed", "from 0 to 4294967295, got '-1'"]),
        (["--dtype", "int8"], ["--dtype", "must be one of 'float32', 'float64', got 'int8'"]),
        (["--quantiles", "0.9"], ["--quantiles is for --loss-type quantile", "leave --quantiles out"]),
        (
            ["--loss-type", "quantile", "--quantiles", "0.9,0.1"],
            ["error: --quantiles must be strictly", "; write 0.1,0.9;"],
        ),
        (["--quantiles", "0,0.5"], ["error: --quantiles[0] must be finite and > 0 and < 1, got 0.0"]),
        (["--loss-config", '{"pH": "msee"}'], ["error: --loss-config['pH']['type'] must be one of"]),
        (["--film-conditioning", "lake"], ["--film-conditioning acts on hidden layers", "--regressor-hidden-dims"]),
        (["--residual-regression-head"], ["--regressor-hidden-dims gives none"]),
        (["--moe-routing", "lake"], ["--moe-routing does nothing without --moe-experts"]),
        (["--normalize-targets", "--normalize-targets-by", "lake"], ["exclude each other"]),
        (["--normalize-targets-by", "lakes"], ["'lakes', which is not among --categorical-columns"]),
        (["--categorical-columns", "lake,,season"], ["--categorical-columns", "separated by commas"]),
        (["--over-penalty", "2"], ["--over-penalty", "--loss-type"]),
        (
            ["--loss-config", '{"ph": "mse"}'],
            ["--loss-config names the output 'ph', which is not among the outputs ('pH')"],
        ),
        (["--loss-config", '{"pH": "msee"}'], ["got 'msee'; did you mean 'mse'?"]),
        (["--loss-config", '{"pH": "mse"'], ["is not valid JSON at line 1, column 13"]),
        (["--loss-config", "none.json"], ["--loss-config", "none.json"]),
        (["--validation-fraction", "0", "--validation-by", "lake"], ["--validation-by does nothing"]),
        (["--validation-fraction", "0", "--patience", "5"], ["--patience does nothing with --validation-fraction 0"]),
        (["--validation-table", "v.csv", "--validation-by", "lake"], ["--validation-table takes the place of"]),
        (["--device", "tpu"], ["--device tpu cannot be used", "choose cpu"]),
        (["--config", "none.json"], ["--config cannot read 'none.json'"]),
        (["--resume"], ["nothing to resume: there is no unfinished training in", "leave --resume out"]),
    ],
)
def test_flags_are_refused_before_the_table_is_looked_at(
    tmp_path: Path, capsys: Capture, more: list[str], parts: list[str]
) -> None:
    message = refused(capsys, tmp_path, flags(tmp_path / "no table.csv", tmp_path / "out", *more))
    for part in parts:
        assert part in message
    assert "no table.csv" not in message


def test_a_command_without_what_it_needs(tmp_path: Path, capsys: Capture) -> None:
    assert "needs TABLE" in refused(capsys, tmp_path, ["train"])
    assert "needs --target" in refused(capsys, tmp_path, ["train", "t.csv"])
    assert "needs --output-dir" in refused(capsys, tmp_path, ["train", "t.csv", "--target", "pH"])
    assert "train|predict|evaluate" in refused(capsys, tmp_path, [])
    assert "tain" in refused(capsys, tmp_path, ["tain", "t.csv"])


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is CUDA here")
@pytest.mark.parametrize("command", ["train", "predict", "evaluate"])
def test_a_device_that_is_not_there(tmp_path: Path, model: Path, table: Path, capsys: Capture, command: str) -> None:
    arguments = flags(table, tmp_path / "out") if command == "train" else [command, model, table]
    assert "--device cuda cannot be used: " in refused(capsys, tmp_path, [*arguments, "--device", "cuda"])


@pytest.mark.parametrize(
    ("name", "text", "part"),
    [
        ("c.json", '{"lr": 0.1,\n "seed" 3}', "c.json is not valid JSON at line 2, column 9"),
        ("c.json", '{"lr": 0.1, "lr": 0.2}', "the key 'lr' appears twice"),
        ("c.json", '{"lr": NaN}', "NaN is not a number in JSON"),
        ("c.json", "[1]", "must hold an object of flags and values, got list"),
        ("c.json", '{"max-epoch": 3}', "'max-epoch', which is no flag of reghead train; did you mean 'max_epochs'?"),
        ("c.json", '{"max-epochs": 1, "max_epochs": 2}', "one flag twice, with dashes and with underscores"),
        ("c.json", '{"max-epochs": "many"}', "--max-epochs must be an integer, got 'many'"),
        ("c.json", '{"overwrite": "yes"}', "--overwrite must be True or False, got 'yes'"),
        ("c.json", '{"categorical-lr": 0.1}', "--categorical-lr does nothing without --categorical-columns"),
        ("c.json", '{"config": "d.json"}', "'config', which works on the command line alone; leave it out"),
        ("c.json", '{"traceback": true}', "'traceback', which works on the command line alone; leave it out"),
        ("c.toml", "lr = 0.1\nseed = \n", "c.toml is not valid TOML: Invalid value (at line 2"),
        ("c.toml", '"max epochs" = 1', "'max epochs', which is no flag"),
        ("c.yaml", "lr: 0.1", "--config must be a .json or a .toml file, got"),
    ],
)
def test_a_file_of_flags_that_is_wrong(tmp_path: Path, capsys: Capture, name: str, text: str, part: str) -> None:
    (tmp_path / name).write_text(text)
    given = ["train", tmp_path / "no table.csv", "--target", "pH", "--output-dir", tmp_path / "out"]
    assert part in refused(capsys, tmp_path, [*given, "--config", tmp_path / name])


def test_a_table_in_a_file_of_flags_is_text(tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "c.json").write_text(json.dumps({"table": 5, "target": "pH", "output-dir": str(tmp_path / "out")}))
    assert "table must be text, got 5" in refused(capsys, tmp_path, ["train", "--config", tmp_path / "c.json"])


def test_columns_of_flags_are_looked_for_in_every_table_before_training(
    tmp_path: Path, table: Path, capsys: Capture
) -> None:
    other = saved(tmp_path, lakes(20, seed=1).drop(columns="season"), "other.csv")
    arguments = [*flags(table, tmp_path / "out"), "--categorical-columns", "lake", "--exclude-columns", "season"]
    message = refused(capsys, tmp_path, [*arguments, "--report-by", "season", "--validation-table", other])
    assert "--report-by names the column 'season', which is not in" in message
    assert "other.csv" in message
    message = refused(capsys, tmp_path, [*arguments, "--report-by", "seasn"])
    assert "did you mean 'season'?" in message
    assert "did you mean 'season'?" in refused(capsys, tmp_path, [*arguments, "--validation-by", "seasn"])


@pytest.mark.parametrize("zero", ["training", "validation"])
def test_rows_that_all_weigh_nothing(tmp_path: Path, capsys: Capture, zero: str) -> None:
    """A score over no weight would be no number, and the best weights those of the start."""
    frame = lakes()
    frame["weight"] = ((frame["lake"] == "Como") == (zero == "validation")).astype(float)
    frame = frame[frame["lake"] != "Erie"]
    arguments = flags(saved(tmp_path, frame), tmp_path / "out", "--validation-by", "lake", "--weight-column", "weight")
    by_seed = [refused(capsys, tmp_path, [*arguments, "--seed", seed]) for seed in range(4) if _holds(frame, seed)]
    assert by_seed
    for message in by_seed:
        assert f"weight 'weight' is zero in every {zero} row" in message


def _holds(frame: pd.DataFrame, seed: int) -> bool:
    """Whether this seed holds Huron back."""
    from reghead.estimators._split import held_back

    aside = held_back(len(frame), 0.1, frame["lake"], np.random.RandomState(seed))
    return set(frame["lake"][aside]) == {"Huron"}


def test_a_weight_that_is_too_large_to_be_squared(tmp_path: Path, capsys: Capture) -> None:
    table = saved(tmp_path, lakes().assign(weight=1e200))
    message = refused(capsys, tmp_path, flags(table, tmp_path / "out", "--weight-column", "weight"))
    assert "weight 'weight' must be at most 1e+150 in size, as its square is computed, got 1e+200 in row 1" in message


def test_a_validation_table_that_weighs_nothing(tmp_path: Path, table: Path, capsys: Capture) -> None:
    weighted = saved(tmp_path, lakes().assign(weight=1.0), "weighted.csv")
    nothing = saved(tmp_path, lakes(20).assign(weight=0.0), "nothing.csv")
    arguments = flags(weighted, tmp_path / "out", "--weight-column", "weight", "--validation-table", nothing)
    assert "weight 'weight' is zero in every validation row" in refused(capsys, tmp_path, arguments)


def test_a_training_that_diverges(tmp_path: Path, table: Path, capsys: Capture) -> None:
    deep = ("--regressor-hidden-dims", "16,16", "--loss-type", "mse", "--max-epochs", 50, "--lr", "1e9")
    message = refused(capsys, tmp_path, flags(table, tmp_path / "out", *deep))
    assert "training diverged: the loss of epoch" in message
    assert "lower lr, which is 1000000000.0" in message


def test_results_are_replaced_only_where_that_is_said(tmp_path: Path, table: Path, capsys: Capture) -> None:
    assert train(table, tmp_path / "out") == 0
    before = (tmp_path / "out" / "run.json").read_bytes()
    message = refused(capsys, tmp_path, flags(table, tmp_path / "out"))
    assert "already has results; choose another --output-dir, or give --overwrite" in message
    assert "the training in" in refused(capsys, tmp_path, flags(table, tmp_path / "out", "--resume"))
    # An --overwrite that fails leaves them, too.
    bad = saved(tmp_path, put("pH", None)(lakes()), "bad.csv")
    refused(capsys, tmp_path, flags(bad, tmp_path / "out", "--overwrite"))
    assert (tmp_path / "out" / "run.json").read_bytes() == before


def test_a_parent_that_is_not_writable(
    tmp_path: Path, table: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.access", lambda path, mode: False)
    message = refused(capsys, tmp_path, flags(table, tmp_path / "out"))
    assert f"cannot be made: {tmp_path} is not writable; choose another --output-dir" in message


# ---------------------------------------------------------------------------------------------------------------------
# Folders of models


def rewrite(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Change run.json, with the SHA-256 of the model as it is."""
    record = json.loads((folder / "run.json").read_text())
    record["model"]["sha256"] = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    change(record)
    (folder / "run.json").write_text(json.dumps(record))


def of_a_later_format(folder: Path, kind: type) -> None:
    """The model file as another version of reghead would describe it."""
    from safetensors.torch import load_file, save_file

    from reghead._persistence import decode_json, encode_json

    state = load_file(folder / "model.safetensors")
    key = "_extra_state" if kind is TableModel else "head._extra_state"
    state[key] = encode_json(decode_json(state[key]) | {"format": 99})
    save_file(state, folder / "model.safetensors")
    rewrite(folder, lambda record: None)


def damaged(name: str, folder: Path) -> None:
    file, record = folder / "model.safetensors", folder / "run.json"
    content = file.read_bytes()
    {
        "truncated": lambda: file.write_bytes(content[:-100]),
        "flipped": lambda: file.write_bytes(content[:-1] + bytes([content[-1] ^ 1])),
        "no model": file.unlink,
        "no record": record.unlink,
        "no JSON": lambda: record.write_text(record.read_text()[:-20]),
        "a list": lambda: record.write_text("[1]"),
        "bytes": lambda: record.write_bytes(b"\xff\xfe\x00"),
        "later": lambda: rewrite(folder, lambda r: r.update(format=2)),
        "later, other record": lambda: rewrite(folder, lambda r: r.update(format=2, library="x")),
        "no schema": lambda: rewrite(folder, lambda r: r.pop("schema")),
        "bad schema": lambda: rewrite(folder, lambda r: r["schema"].update(targets="pH")),
        "no digest": lambda: rewrite(folder, lambda r: r.update(model="x")),
        "an evaluation": lambda: rewrite(folder, lambda r: r.update(kind="evaluation")),
        "unfinished": lambda: record.rename(folder / "unfinished.txt"),
        "described later": lambda: of_a_later_format(folder, TableModel),
        "head described later": lambda: of_a_later_format(folder, RegressionHead),
        "cut, and hashed again": lambda: (file.write_bytes(content[:-100]), rewrite(folder, lambda r: None)),
    }[name]()


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("truncated", ["its SHA-256 is not the one in run.json; copy it again whole"]),
        ("flipped", ["its SHA-256 is not the one in run.json; copy it again whole"]),
        ("no model", ["has lost its model, model.safetensors; train again"]),
        ("no record", ["is not a folder that reghead train wrote: it has no run.json"]),
        ("no JSON", ["run.json is damaged: it is not the JSON that reghead wrote"]),
        ("a list", ["run.json is damaged"]),
        ("bytes", ["run.json is damaged"]),
        ("later", ["in format 2, and reghead", "reads format 1; use that version, or train again"]),
        ("later, other record", ["was written by reghead of another version in format 2"]),
        ("no schema", ["run.json is damaged: a schema must have the keys"]),
        ("bad schema", ["run.json is damaged: targets of a schema must be a list of columns, got 'pH'"]),
        ("no digest", ["run.json is damaged: it lacks the SHA-256 of the model"]),
        ("an evaluation", ["is the record of an evaluation, not a model; give the --output-dir of reghead train"]),
        ("unfinished", ["has not finished; go on with it with --resume"]),
        ("described later", ["has format 99, this version of reghead reads format 1", "train again"]),
        ("head described later", ["has format 99, this version of reghead reads format 1"]),
        ("cut, and hashed again", ["is not a whole safetensors file"]),
    ],
)
@pytest.mark.parametrize("command", ["predict", "evaluate"])
def test_a_model_that_is_not_whole(
    tmp_path: Path, model: Path, table: Path, capsys: Capture, command: str, name: str, parts: list[str]
) -> None:
    folder = copied(model, tmp_path)
    damaged(name, folder)
    output = ("--output", tmp_path / "p.csv") if command == "predict" else ("--output-dir", tmp_path / "e")
    message = refused(capsys, tmp_path, [command, folder, table, *output])
    for part in parts:
        assert part in message


def test_a_folder_that_is_none(tmp_path: Path, table: Path, capsys: Capture) -> None:
    assert "is not a folder; give the --output-dir" in refused(capsys, tmp_path, ["predict", tmp_path / "no", table])
    assert "is not a folder; give the --output-dir" in refused(capsys, tmp_path, ["evaluate", table, table])


def test_a_record_that_may_not_be_read(
    tmp_path: Path, model: Path, table: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def denied(path: Path) -> str:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr("reghead.cli._saved.read_small", denied)
    assert "run.json: Permission denied" in refused(capsys, tmp_path, ["predict", model, table])


@pytest.mark.parametrize("command", ["predict", "evaluate"])
def test_a_table_that_does_not_fit_the_model(tmp_path: Path, model: Path, capsys: Capture, command: str) -> None:
    for column in ("depth", "lake"):
        table = saved(tmp_path, lakes().rename(columns={column: column + "s"}), "other.csv")
        output = ("--output", tmp_path / "p.csv") if command == "predict" else ("--output-dir", tmp_path / "e")
        message = refused(capsys, tmp_path, [command, model, table, *output])
        assert f"the table has no column {column!r}" in message
        assert f"did you mean '{column}s'?" in message


def test_an_output_of_predictions_that_cannot_be(tmp_path: Path, model: Path, table: Path, capsys: Capture) -> None:
    (tmp_path / "p.csv").write_text("mine")
    for output, part in [
        ("p.csv", "is there already; choose another --output, or give --overwrite"),
        ("p.xlsx", "name it by what it is to be"),
        ("none/p.csv", "there is no folder"),
    ]:
        assert part in refused(capsys, tmp_path, ["predict", model, table, "--output", tmp_path / output])
    assert (tmp_path / "p.csv").read_text() == "mine"


@pytest.mark.parametrize("command", ["predict", "evaluate"])
def test_a_trained_model_needs_no_second_process(
    tmp_path: Path, model: Path, table: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch, command: str
) -> None:
    """Two processes would write one file, each all of it."""
    monkeypatch.setenv("WORLD_SIZE", "2")
    message = refused(capsys, tmp_path, [command, model, table])
    assert f"reghead {command} runs in one process; start it without torchrun" in message


@pytest.mark.parametrize("where", ["training", "validation"])
def test_targets_are_looked_at_before_anything_is_opened(
    tmp_path: Path, table: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    """No folder, and no progress bar."""
    monkeypatch.setattr(RunDirectory, "open", lambda self: pytest.fail("the folder was opened"))
    monkeypatch.setattr("reghead.cli._train.progress", lambda *_: pytest.fail("the progress bar was shown"))
    text = saved(tmp_path, put("pH", "acid")(lakes()), "text.csv")
    tables = (text, table) if where == "training" else (table, text)
    arguments = flags(tables[0], tmp_path / "out", "--validation-table", tables[1])
    assert "target 'pH' must hold numbers, got 'acid' in row 5" in refused(capsys, tmp_path, arguments)


# ---------------------------------------------------------------------------------------------------------------------
# Disks


def full(*_: Any, **__: Any) -> Any:
    raise OSError(errno.ENOSPC, "No space left on device")


def full_at(stage: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if stage == "checkpoint":
        monkeypatch.setattr(_checkpoint.os, "replace", full)
        monkeypatch.setattr(_checkpoint.time, "monotonic", iter(range(0, 10**6, 100)).__next__)
    elif stage == "model":
        monkeypatch.setattr(TableModel, "save", full)
    elif stage == "metrics":
        monkeypatch.setattr(_files.os, "replace", full)
    else:
        monkeypatch.setattr(_scoring, "draw_figures", full)


@pytest.mark.parametrize("stage", ["model", "metrics", "figures"])
def test_a_disk_that_is_full_at_the_end_costs_no_training(
    tmp_path: Path, table: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    arguments = [a for a in flags(table, tmp_path / "out", "--seed", 3) if a != "--no-figures"]
    assert main([a.replace(str(tmp_path / "out"), str(tmp_path / "whole")) for a in arguments]) == 0
    with monkeypatch.context() as context:
        if stage == "metrics":
            # The checkpoint takes its place by the same call, and can.
            replace = _files.os.replace
            context.setattr(_files.os, "replace", lambda a, b: (full if "metrics" in str(b) else replace)(a, b))
        else:
            full_at(stage, context)
        assert main(arguments) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("reghead: error: ")
    assert "o space left on" in line
    assert "--resume goes on with it" in line
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.glob("*.lock"))
    assert not [path for path in tmp_path.rglob("*.partial*") if path != tmp_path / "out.partial"]
    (tmp_path / "out.partial" / "figures").mkdir(exist_ok=True)
    (tmp_path / "out.partial" / "figures" / "old.png").write_text("of the attempt before")
    assert main([*arguments, "--resume"]) == 0
    assert names(tmp_path / "out") == names(tmp_path / "whole")
    for name in ("model.safetensors", "history.csv", "metrics.json"):
        assert (tmp_path / "out" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_a_disk_that_is_full_for_a_checkpoint_leaves_nothing(
    tmp_path: Path, table: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    full_at("checkpoint", monkeypatch)
    message = refused(capsys, tmp_path, flags(table, tmp_path / "out"))
    assert "cannot write" in message
    assert "checkpoint.safetensors: No space left on device; nothing was written" in message


def test_predictions_on_a_full_disk(
    tmp_path: Path, model: Path, table: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_files.os, "replace", full)
    for command, flag, name in (("predict", "--output", "p.csv"), ("evaluate", "--output-dir", "e")):
        message = refused(capsys, tmp_path, [command, model, table, flag, tmp_path / name, "--quiet"])
        assert "no space left on the device" in message


@pytest.mark.slow
@pytest.mark.parametrize("size", [100, 3000])
def test_a_limit_on_the_size_of_files(tmp_path: Path, table: Path, size: int) -> None:
    """A limit of the system in the place of a full disk; ``-m`` loads no file that it would have to write."""

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))

    process = start(flags(table, tmp_path / "out"), "-B", preexec_fn=limit)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 2
    assert out == ""
    (line,) = errors(err)
    assert "File too large" in line
    assert str(tmp_path / "out.partial") in line
    assert "Traceback" not in err
    assert names(tmp_path) == {"lakes.csv"}


def test_the_command_as_a_process_ends_with_code_2(tmp_path: Path) -> None:
    process = start(flags(tmp_path / "none.csv", tmp_path / "out"))
    out, err = process.communicate(timeout=120)
    assert process.returncode == 2
    assert (out, err) == ("", f"reghead: error: {tmp_path / 'none.csv'} does not exist\n")
    assert names(tmp_path) == set()


def test_a_traceback_is_shown_where_it_is_asked_for(tmp_path: Path) -> None:
    from reghead.cli._errors import InputError

    with pytest.raises(InputError, match="does not exist"):
        train(tmp_path / "none.csv", tmp_path / "out", "--traceback")
    assert names(tmp_path) == set()
