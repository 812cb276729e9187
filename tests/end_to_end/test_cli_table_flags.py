"""What each flag of the table and of the output does to what ``reghead train`` learns from and writes."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from end_to_end._cli import Cli, Trained, shows
from reghead.cli._errors import InputError

COLUMNS = "--categorical-columns location,season"


@shows("train --target")
def test_the_targets_are_the_columns_that_are_predicted(cli: Cli) -> None:
    trained = cli.train("--target share,plane --max-epochs 300")
    assert trained.model.target_names_ == ("share", "plane")
    assert trained.predict().shape == (240, 2)
    errors = trained.predict() - trained.table[["share", "plane"]].to_numpy()
    assert (np.abs(errors).mean(0) < [0.05, 0.05]).all()


@shows("train --feature-columns")
def test_the_features_are_those_that_are_named(cli: Cli) -> None:
    trained = cli.train("--target plane --feature-columns x1 --max-epochs 300")
    assert list(trained.model.feature_names_in_) == ["x1"]
    error = trained.table["plane"] - trained.predict()
    assert np.corrcoef(error, trained.table["x0"])[0, 1] > 0.99  # what x0 says is missed


@shows("train --exclude-columns")
def test_the_features_are_all_other_numbers_but_those_excluded(cli: Cli) -> None:
    out = cli.path("excluded")
    words = ["--target", "plane", "--exclude-columns", "sample,location,season,copper,bent", "--id-column"]
    rest = ["--output-dir", out, "--no-figures", "--quiet", "--max-epochs", "2"]
    table = cli.table.assign(number=range(240))
    file = cli.write("numbered.csv", table)
    assert cli.run("train", file, *words, "number", *rest) == 0
    assert list(Trained(out, table).model.feature_names_in_) == ["x0", "x1", "share", "skewed", "times"]


@shows("train --id-column")
def test_predictions_are_named_by_the_id(cli: Cli) -> None:
    named, unnamed = cli.train("--id-column sample --max-epochs 5"), cli.train("--max-epochs 5")
    preds = cli.predict(named)
    assert preds["sample"].tolist() == cli.table["sample"].tolist()
    assert cli.predict(unnamed)["row"].tolist() == list(range(1, 241))
    np.testing.assert_allclose(preds["copper_pred"], cli.predict(unnamed)["copper_pred"])


@shows("train --weight-column")
@pytest.mark.parametrize("loss", ["huber", "quantile"])
def test_an_integer_weight_is_a_row_repeated(cli: Cli, loss: str) -> None:
    """Weights of 0 to 3, in training, in the statistics of the target and in the metrics."""
    flags = f"{COLUMNS} --normalize-targets-by location --loss-type {loss} --batch-size 1000"
    repeated = cli.table.loc[cli.table.index.repeat(cli.table["times"])]
    by_weight = cli.train(f"{flags} --weight-column times")
    by_rows = cli.train(flags, file=cli.write("repeated.csv", repeated))
    np.testing.assert_allclose(by_weight.predict(), by_rows.predict(), rtol=1e-8)
    assert np.abs(by_weight.predict() - cli.train(flags).predict()).max() > 0.1
    ours, theirs = (run.metrics["training"]["overall"]["copper"] for run in (by_weight, by_rows))
    assert ours["mae"] == pytest.approx(theirs["mae"])
    assert ours["rmse"] == pytest.approx(theirs["rmse"])


@shows("train --metadata", "train --id-column", "predict --metadata", "evaluate --metadata")
def test_embeddings_are_joined_with_what_is_known_about_them(cli: Cli) -> None:
    """In any order; an embedding of which nothing is known is left out."""
    order = np.random.default_rng(1).permutation(240)
    ids = np.append(cli.table["sample"].to_numpy(str)[order], "nobody")
    embeddings = np.append(cli.table[["x0", "x1"]].to_numpy()[order], [[0.0, 0.0]], axis=0)
    file = cli.path("embeddings.npz")
    np.savez(file, ids=ids, embeddings=embeddings)
    metadata = cli.write("metadata.csv", cli.table[["sample", "location", "plane"]])
    flags = "--target plane --id-column sample --categorical-columns location --max-epochs 300"
    names = "--feature-columns embedding_0,embedding_1"
    trained = cli.train(f"{flags} {names} --metadata {metadata}", file=file)
    preds = cli.predict(trained, file, "--metadata", metadata)
    assert preds["sample"].tolist() == ids[:-1].tolist()
    np.testing.assert_allclose(preds["plane_pred"], cli.table["plane"].to_numpy()[order], atol=0.1)
    out = cli.path("evaluation")
    words = ["--metadata", metadata, "--output-dir", out, "--no-figures", "--quiet"]
    assert cli.run("evaluate", trained.folder, file, *words) == 0
    assert Trained(out, cli.table).metrics["evaluation"]["rows"] == 240


@shows("train --impute-missing")
def test_a_missing_number_is_the_mean_beside_an_indicator(cli: Cli, capsys: pytest.CaptureFixture[str]) -> None:
    """The missing rows are 10 higher than their features say, which the indicator alone can tell."""
    missing = np.arange(240) % 5 == 0
    plane = 3 - 5 * cli.table["x1"] + 10 * missing
    table = cli.table.assign(x0=cli.table["x0"].mask(missing), plane=plane)
    file = cli.write("missing.csv", table)
    trained = cli.train("--target plane --impute-missing --max-epochs 400", file=file)
    assert trained.head.weight.shape == (1, 3)
    np.testing.assert_allclose(cli.predict(trained, file)["plane_pred"], plane, atol=0.1)
    assert cli.run("train", file, *cli.complete(["--target", "plane"]), "--output-dir", cli.path("refused")) == 2
    assert "feature 'x0' has no value in 48 of 240 rows" in capsys.readouterr().err


@shows("train --rows-in-memory", "predict --rows-in-memory", "evaluate --rows-in-memory")
def test_a_parquet_file_is_read_in_chunks(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    """The statistics are those of all rows; a step is taken for each chunk."""
    file = cli.write("groups.parquet", cli.table, row_group_size=50, index=False)
    flags = f"{COLUMNS} --normalize-targets-by location,season --max-epochs 20"
    chunked, whole = cli.train(f"{flags} --rows-in-memory 60", file=file), cli.train(flags, file=file)
    for name, buffer in whole.model.normalizer_.named_buffers():
        np.testing.assert_allclose(chunked.model.normalizer_.get_buffer(name), buffer, rtol=1e-12, atol=1e-12)
    assert chunked.model.encoder_.to_dict() == whole.model.encoder_.to_dict()
    assert chunked.history["train_loss"].iloc[-1] < whole.history["train_loss"].iloc[-1]  # five steps to its one

    sizes: list[int] = []
    kind, predict = type(chunked.model._model), type(chunked.model._model).predict

    def counted(model: Any, part: Any) -> Any:
        sizes.append(len(part.target))
        return predict(model, part)

    with monkeypatch.context() as patch:
        patch.setattr(kind, "predict", counted)
        preds = cli.predict(chunked, file, "--rows-in-memory", "60")
        assert sizes == [50, 50, 50, 50, 40]
        np.testing.assert_allclose(preds["copper_pred"], cli.predict(chunked, file)["copper_pred"], rtol=1e-12)
        sizes.clear()
        out = cli.path("evaluation")
        words = [file, "--rows-in-memory", "30", "--output-dir", out, "--no-figures", "--quiet"]
        assert cli.run("evaluate", chunked.folder, *words) == 0
        assert max(sizes) <= 30
        assert sum(sizes) == 240
    evaluated = Trained(out, cli.table).metrics["evaluation"]["overall"]["copper"]
    assert evaluated == pytest.approx(chunked.metrics["training"]["overall"]["copper"])


@shows("train --report-by", "evaluate --report-by")
def test_the_report_is_by_the_combinations_that_are_asked_for(cli: Cli) -> None:
    trained = cli.train(f"{COLUMNS} --report-by location,season --max-epochs 5")
    out = cli.path("evaluation")
    words = ["--report-by", "season", "--output-dir", out, "--no-figures", "--quiet"]
    assert cli.run("evaluate", trained.folder, cli.file, *words) == 0
    error = trained.predict() - cli.table["copper"]
    for folder, columns in ((trained.folder, ["location", "season"]), (out, ["season"])):
        report = pd.read_csv(folder / "per_category.csv").set_index("category")
        assert set(report["grouping"]) == {",".join(columns)}
        expected = error.abs().groupby([cli.table[column] for column in columns]).mean()
        named = {" / ".join([key] if isinstance(key, str) else key): value for key, value in expected.items()}
        assert report["mae"].to_dict() == pytest.approx(named)
    by_default = pd.read_csv(cli.train(f"{COLUMNS} --max-epochs 5").folder / "per_category.csv")
    assert set(by_default["grouping"]) == {"location", "season"}


@shows("train --output-dir", "train --no-figures", "evaluate --output-dir", "evaluate --no-figures")
def test_everything_is_written_to_the_folder_that_is_named(cli: Cli, capsys: pytest.CaptureFixture[str]) -> None:
    trained = cli.train(f"{COLUMNS} --max-epochs 2")
    files = {"model.safetensors", "model.safetensors.json", "config.json", "run.json", "history.csv"}
    files |= {"reference.safetensors", "reference.safetensors.json"}
    scores = {"metrics.json", "per_category.csv"}
    assert {file.name for file in trained.folder.iterdir()} == files | scores
    capsys.readouterr()
    assert cli.run("evaluate", trained.folder, cli.file) == 0
    assert "evaluation: 240 rows" in capsys.readouterr().out  # and nothing is written
    without, drawn, redrawn = cli.path("without"), cli.path("drawn"), cli.path("redrawn")
    assert cli.run("evaluate", trained.folder, cli.file, "--quiet", "--no-figures", "--output-dir", without) == 0
    assert {file.name for file in without.iterdir()} == scores | {"run.json"}
    words = [word for word in cli.complete(["--max-epochs", "2"]) if word != "--no-figures"]
    assert cli.run("train", cli.file, *words, "--output-dir", drawn) == 0
    assert cli.run("evaluate", drawn, cli.file, "--quiet", "--output-dir", redrawn) == 0
    for folder in (drawn, redrawn):
        assert [file for file in (folder / "figures").iterdir() if file.stat().st_size > 1000]


@shows("evaluate --overwrite", "evaluate --quiet", "evaluate --traceback")
def test_an_evaluation_is_replaced_where_that_is_asked_for(cli: Cli, capsys: pytest.CaptureFixture[str]) -> None:
    trained = cli.train("--max-epochs 5")
    half = cli.write("half.csv", cli.table.head(120))
    out = cli.path("evaluation")
    words = ["--output-dir", out, "--no-figures", "--quiet"]

    def rows() -> int:
        return int(Trained(out, cli.table).metrics["evaluation"]["rows"])

    assert cli.run("evaluate", trained.folder, cli.file, *words) == 0
    assert capsys.readouterr() == ("", "")
    assert cli.run("evaluate", trained.folder, half, *words) == 2
    assert "already has results" in capsys.readouterr().err
    assert rows() == 240
    assert cli.run("evaluate", trained.folder, half, *words, "--overwrite") == 0
    assert rows() == 120
    with pytest.raises(InputError, match="already has results"):
        cli.run("evaluate", trained.folder, half, *words, "--traceback")


@shows("predict --output", "predict --overwrite", "predict --quiet", "predict --traceback")
def test_predictions_are_written_to_the_file_that_is_named(cli: Cli, capsys: pytest.CaptureFixture[str]) -> None:
    trained = cli.train("--max-epochs 5")
    assert cli.run("predict", trained.folder, cli.file) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("row,copper_pred\n1,")
    for name in ("preds.csv", "preds.parquet", "preds.tsv.gz"):
        out = cli.path(name)
        assert cli.run("predict", trained.folder, cli.file, "--output", out) == 0
        assert capsys.readouterr().out == f"240 predictions are in {out}\n"
        assert read(out)["copper_pred"].tolist() == trained.predict().tolist()
    half = cli.write("half.csv", cli.table.head(120))
    assert cli.run("predict", trained.folder, half, "--output", out) == 2
    assert capsys.readouterr().err.endswith("is there already; choose another --output, or give --overwrite\n")
    with pytest.raises(InputError, match="is there already"):
        cli.run("predict", trained.folder, half, "--output", out, "--traceback")
    assert len(read(out)) == 240
    assert cli.run("predict", trained.folder, half, "--output", out, "--overwrite", "--quiet") == 0
    assert capsys.readouterr() == ("", "")
    assert len(read(out)) == 120


def read(path: Path) -> pd.DataFrame:
    if path.suffix == ".parquet":
        return pd.read_parquet(path)
    return pd.read_csv(path, sep="\t" if ".tsv" in path.name else ",")


def test_a_label_that_training_did_not_see_is_told_and_read_as_unknown(
    cli: Cli, capsys: pytest.CaptureFixture[str]
) -> None:
    trained = cli.train("--categorical-columns location --max-epochs 5")
    file = cli.write("new.csv", cli.table.head(6).assign(location=["desert", "desert", "moor", "hill", "sea", None]))
    preds = cli.predict(trained, file)["copper_pred"]
    assert "3 of 6 rows have a location that training did not see (desert, moor)" in capsys.readouterr().err
    blank = cli.write("blank.csv", cli.table.head(6).assign(location=None))
    unknown = cli.predict(trained, blank)["copper_pred"]
    assert (preds == unknown).tolist() == [True, True, True, False, False, True]
