"""Targets that a flag cannot be met for, labels of different files, rows of a join, and names of predictions."""

import hashlib
import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from _command import flags, lakes, saved, train
from reghead.cli import main

Capture = pytest.CaptureFixture[str]
PLAIN = "--no-normalize-targets"


def error(capsys: Capture, folder: Path, arguments: list[str]) -> str:
    before = set(folder.rglob("*"))
    capsys.readouterr()
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert set(folder.rglob("*")) == before
    return err


@pytest.mark.parametrize(
    ("given", "value", "parts"),
    [
        (
            ["--bounded-targets"],
            1.5,
            ["--bounded-targets takes targets between 0 and 1", "leave --bounded-targets out"],
        ),
        (["--bounded-targets"], -0.5, ["--bounded-targets takes targets between 0 and 1", "is -0.5"]),
        (["--bounded-targets", "--normalize-targets"], 1.0, ["strictly between 0 and 1", "takes 0 and 1 too"]),
        (
            ["--bounded-targets", "--normalize-targets"],
            1.5,
            ["strictly between 0 and 1", "leave --bounded-targets out"],
        ),
        ([PLAIN, "--output-activation", "exp"], -0.5, ["--output-activation exp takes targets at or above 0"]),
        ([PLAIN, "--output-activation", "softplus"], -0.5, ["softplus takes targets at or above 0"]),
        ([PLAIN, "--output-activation", "relu"], -0.5, ["relu takes targets at or above 0"]),
        (["--output-activation", "relu"], -0.5, ["relu takes targets at or above 0", "leave --output-activation out"]),
        (["--output-activation", "exp"], 0.0, ["exp takes targets above 0", "--output-activation relu takes 0 too"]),
        (
            ["--output-activation", "softplus"],
            -0.5,
            ["softplus takes targets above 0", "leave --output-activation out"],
        ),
        (["--target-transform", "log"], 0.0, ["log takes targets above 0", "--target-transform log1p takes 0 too"]),
        (["--target-transform", "log1p"], -1.0, ["log1p takes targets above -1", "leave --target-transform out"]),
        (["--target-transform", "logit"], 1.0, ["strictly between 0 and 1", "--bounded-targets in its place"]),
        (["--target-transform", "softplus"], 0.0, ["above 0", "--target-transform clamp takes 0 too"]),
        (["--target-transform", "clamp"], -0.5, ["clamp takes targets at or above 0", "leave --target-transform out"]),
    ],
)
@pytest.mark.parametrize("where", ["training", "validation"])
def test_targets_that_predictions_cannot_reach_are_refused_before_training(
    tmp_path: Path, capsys: Capture, given: list[str], value: float, parts: list[str], where: str
) -> None:
    """Neither trained without a word, nor told by the name of a Python argument."""
    fine = lakes().assign(pH=0.5)
    fine["pH"] += 0.01 * np.arange(60) / 60
    wrong = fine.copy()
    wrong.loc[[4, 7], "pH"] = value
    good, bad = saved(tmp_path, fine, "good.csv"), saved(tmp_path, wrong, "bad.csv")
    tables = (bad, good) if where == "training" else (good, bad)
    message = error(capsys, tmp_path, [*flags(tables[0], tmp_path / "o", "--validation-table", tables[1]), *given])
    for part in [*parts, f"'pH' is {value:g} in row 5 of {bad} (2 such rows)"]:
        assert part in message
    assert "transform=" not in message


@pytest.mark.parametrize(
    "given", [["--bounded-targets"], [PLAIN, "--output-activation", "exp"], ["--output-activation", "relu"]]
)
def test_targets_at_the_limit_are_taken_where_no_logarithm_is(tmp_path: Path, given: list[str]) -> None:
    table = saved(tmp_path, lakes().assign(pH=np.arange(60) % 2))
    assert main([*flags(table, tmp_path / "o"), *given]) == 0


def test_two_flags_that_scale_the_output_are_named(tmp_path: Path, capsys: Capture) -> None:
    both = ("--conditional-output-scaling", "lake", "--learnable-output-scale")
    assert train(saved(tmp_path, lakes()), tmp_path / "o", *both) == 0
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("reghead: warning: --conditional-output-scaling and --learnable-output-scale both scale")
    assert main(["predict", str(tmp_path / "o"), str(tmp_path / "lakes.csv")]) == 0
    assert capsys.readouterr().err == ""


NUMBERS = {"Erie": 1, "Huron": 2, "Como": 30}
AS: dict[str, Callable[[pd.Series], pd.Series]] = {
    "integer": lambda column: column.astype(np.int16),
    "floating": lambda column: column.astype(np.float32),
    "text": lambda column: column.astype(str),
    "text of floats": lambda column: column.astype(float).astype(str),
    "categorical": lambda column: column.astype("category"),
}


@pytest.mark.parametrize("kind", AS)
@pytest.mark.parametrize("suffix", [".parquet", ".csv"])
def test_a_category_is_the_same_in_every_file(tmp_path: Path, capsys: Capture, kind: str, suffix: str) -> None:
    """Trained on text, where 1 is "1", and read as an integer or as 1.0 it would be an unseen category."""
    frame = lakes()
    frame["lake"] = frame["lake"].map(NUMBERS)
    table = saved(tmp_path, frame)
    scaled = ("--conditional-output-scaling", "lake", "--lr", "0.1", "--max-epochs", 20)
    assert train(table, tmp_path / "m", *scaled) == 0
    other = saved(tmp_path, frame.assign(lake=AS[kind](frame["lake"])), "other" + suffix)
    preds = []
    for file in (table, other):
        capsys.readouterr()
        assert (
            main(["predict", str(tmp_path / "m"), str(file), "--output", str(tmp_path / "p.csv"), "--overwrite"]) == 0
        )
        assert capsys.readouterr().err == ""
        preds.append(pd.read_csv(tmp_path / "p.csv"))
    pd.testing.assert_frame_equal(*preds)
    # And trained on that file, the labels are those of the first.
    assert train(other, tmp_path / "n", *scaled) == 0
    for name in ("m", "n"):
        described = json.loads((tmp_path / name / "model.safetensors.json").read_text())
        assert '"30"' in json.dumps(described)
    assert main(["evaluate", str(tmp_path / "n"), str(table), "--quiet"]) == 0
    assert capsys.readouterr().err == ""


def test_rows_that_a_join_leaves_out_are_counted(tmp_path: Path, capsys: Capture) -> None:
    frame = lakes()[["id", "lake", "season", "pH"]]
    file, metadata = tmp_path / "e.npz", saved(tmp_path, frame.iloc[3:], "m.csv")
    np.savez(file, ids=frame["id"].to_numpy()[:55], embeddings=lakes()[["depth", "light"]].to_numpy()[:55])
    said = (
        f"reghead: warning: 3 of 55 embeddings in {file} and 5 of 57 rows of {metadata} have no counterpart in the "
        "other, and are left out\n"
    )
    given = ("--metadata", str(metadata))
    assert train(file, tmp_path / "o", *given) == 0
    assert capsys.readouterr().err == said
    assert main(["predict", str(tmp_path / "o"), str(file), *given, "--output", str(tmp_path / "p.csv")]) == 0
    assert capsys.readouterr().err == said
    scores = ("--output-dir", str(tmp_path / "e"), "--quiet", "--no-figures")
    assert main(["evaluate", str(tmp_path / "o"), str(file), *given, *scores]) == 0
    assert capsys.readouterr().err == said
    unmatched = {"embeddings": 3, "metadata": 5}
    assert json.loads((tmp_path / "o" / "run.json").read_text())["data"]["training"]["unmatched"] == unmatched
    assert json.loads((tmp_path / "e" / "run.json").read_text())["data"]["unmatched"] == unmatched
    # And nothing is said where all rows are in both.
    assert train(file, tmp_path / "all", "--metadata", saved(tmp_path, frame.iloc[:55], "all.csv")) == 0
    assert capsys.readouterr().err == ""


def test_columns_of_predictions_have_names_of_their_own(tmp_path: Path, capsys: Capture) -> None:
    table = saved(tmp_path, lakes().rename(columns={"id": "pH_pred"}))
    message = error(capsys, tmp_path, flags(table, tmp_path / "o", "--id-column", "pH_pred"))
    assert "two columns of the predictions would be called 'pH_pred'; rename --id-column or --target" in message
    levels = ("0.5", "0.9999999", "0.99999999")
    quantiles = ("--loss-type", "quantile", "--quantiles", ",".join(levels))
    assert train(saved(tmp_path, lakes()), tmp_path / "q", *quantiles) == 0
    capsys.readouterr()
    assert main(["predict", str(tmp_path / "q"), str(tmp_path / "lakes.csv")]) == 0
    header = capsys.readouterr().out.splitlines()[0]
    assert header == ",".join(["id", "pH_pred", *(f"pH_q{level}" for level in levels)])


def test_a_table_is_hashed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may be large; and what is recorded is what was trained on."""
    table, digest, seen = saved(tmp_path, lakes()), hashlib.file_digest, []

    def counted(file: io.BufferedReader, name: str) -> "hashlib._Hash":
        seen.append(file.name)
        return digest(file, name)

    monkeypatch.setattr(hashlib, "file_digest", counted)
    assert train(table, tmp_path / "o") == 0
    assert list(map(str, seen)).count(str(table)) == 1
    (file,) = json.loads((tmp_path / "o" / "run.json").read_text())["data"]["training"]["files"]
    assert file["sha256"] == hashlib.sha256(table.read_bytes()).hexdigest()
