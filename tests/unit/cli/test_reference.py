"""The training rows in brief: against pandas, through a file, and in the reports of the command."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from _command import QUIET, lakes, saved, train
from reghead.cli import main
from reghead.cli._errors import InputError
from reghead.cli._reference import REFERENCE, Reference, load_reference
from reghead.metrics import NOVELTIES

SIZES = {"lake": 4, "season": 3}
LEVELS = (0.1, 0.9)


def rows(number: int = 50, seed: int = 0) -> tuple[Tensor, dict[str, Tensor]]:
    rng = torch.Generator().manual_seed(seed)
    target = 1e6 + torch.randn(number, 2, generator=rng, dtype=torch.float64)
    return target, {column: torch.randint(0, size, (number,), generator=rng) for column, size in SIZES.items()}


def test_baselines_are_means_medians_and_quantiles_of_the_training_target() -> None:
    target, ids = rows()
    found = Reference.of(target, ids, SIZES, LEVELS).baselines(ids, 50, LEVELS)
    assert list(found) == ["mean", "mean by lake", "mean by season", "median", "quantiles"]
    frame = pd.DataFrame(target.numpy())
    assert_close(found["mean"], target.mean(0).expand(50, 2))
    for column in SIZES:
        groups = frame.groupby(ids[column].numpy()).transform("mean").to_numpy()
        expected = np.where((ids[column] == 0)[:, None], target.mean(0), groups)
        assert_close(found[f"mean by {column}"], torch.from_numpy(expected), rtol=1e-14, atol=0.0)
    inverted = np.quantile(target.numpy(), [0.1, 0.5, 0.9], axis=0, method="inverted_cdf")
    assert_close(found["median"][7], torch.from_numpy(inverted[1]))
    assert_close(found["quantiles"][7], torch.from_numpy(inverted[[0, 2]].T))
    assert "quantiles" not in Reference.of(target, ids, SIZES, ()).baselines(ids, 50, None)


def test_a_share_that_is_met_but_for_rounding_is_met() -> None:
    """Eight tenths added up are less than 0.8 in floating point."""
    target = torch.arange(1.0, 11.0, dtype=torch.float64)[:, None]
    assert Reference.of(target, {}, {}, (0.1, 0.8)).quantiles.tolist() == [[1.0, 5.0, 8.0]]


def test_a_category_that_training_lacked_has_the_mean_of_all() -> None:
    target = torch.tensor([[1.0], [3.0], [8.0]], dtype=torch.float64)
    reference = Reference.of(target, {"lake": torch.tensor([1, 1, 2])}, {"lake": 4}, ())
    found = reference.baselines({"lake": torch.tensor([0, 1, 2, 3])}, 4, None)["mean by lake"]
    assert found.flatten().tolist() == [4.0, 2.0, 8.0, 4.0]


def test_integer_weights_are_repeated_rows_and_a_row_of_weight_0_was_never_seen() -> None:
    target, ids = rows(30)
    weight = torch.arange(30) % 4
    reference = Reference.of(target, ids, SIZES, LEVELS, weight.double() / 2.0)
    target, ids = target.repeat_interleave(weight, 0), {c: i.repeat_interleave(weight) for c, i in ids.items()}
    repeated = Reference.of(target, ids, SIZES, LEVELS)
    for (name, one), (other, two) in zip(reference.state_dict().items(), repeated.state_dict().items(), strict=True):
        assert name == other
        assert_close(one, two, rtol=1e-13, atol=0.0)


def test_novelty_is_of_the_columns_that_are_asked_for() -> None:
    reference = Reference.of(
        torch.zeros(2, 1), {"lake": torch.tensor([1, 2]), "season": torch.tensor([1, 2])}, SIZES, ()
    )
    asked = {"lake": torch.tensor([1, 1, 3]), "season": torch.tensor([1, 2, 1])}
    assert reference.novelty(asked, ("lake", "season")).tolist() == [0, 1, 2]
    assert reference.novelty(asked, ("season",)).tolist() == [0, 0, 0]


def test_a_file_holds_all_of_it_and_a_readable_part_beside(tmp_path: Path) -> None:
    target, ids = rows()
    reference = Reference.of(target, ids, SIZES, LEVELS)
    reference.save(tmp_path / REFERENCE)
    loaded = load_reference(tmp_path, SIZES, LEVELS, 2)
    assert loaded is not None
    assert_close(dict(loaded.state_dict()), dict(reference.state_dict()), rtol=0.0, atol=0.0)
    described = json.loads((tmp_path / f"{REFERENCE}.json").read_text())
    assert (described["cardinalities"], described["levels"]) == (SIZES, [0.1, 0.5, 0.9])
    assert load_reference(tmp_path / "nowhere", SIZES, LEVELS, 2) is None


@pytest.mark.parametrize("sizes", [({"lake": 4}, LEVELS, 2), (SIZES, None, 2), (SIZES, LEVELS, 1)])
def test_that_of_another_model_is_refused(tmp_path: Path, sizes: tuple[Any, ...]) -> None:
    target, ids = rows()
    Reference.of(target, ids, SIZES, LEVELS).save(tmp_path / REFERENCE)
    with pytest.raises(InputError, match=rf"{REFERENCE} belongs to another model; copy the whole folder again"):
        load_reference(tmp_path, *sizes)


def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    target, ids = rows()
    Reference.of(target, ids, SIZES, LEVELS).save(tmp_path / REFERENCE)
    content = (tmp_path / REFERENCE).read_bytes()
    (tmp_path / REFERENCE).write_bytes(content[:-9])
    with pytest.raises(InputError, match=re.escape(f"{REFERENCE} cannot be loaded: ")):
        load_reference(tmp_path, SIZES, LEVELS, 2)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that has never seen Erie in winter, nor any Baikal."""
    folder, table = tmp_path_factory.mktemp("reference"), lakes(200)
    kept = ~((table["lake"] == "Erie") & (table["season"] == "winter"))
    words = ("--loss-type", "quantile", "--quantiles", "0.1,0.5,0.9", "--validation-fraction", 0)
    assert train(saved(folder, table[kept], "train.csv"), folder / "run", *words) == 0
    return folder


def evaluated(run: Path, out: Path, *more: str) -> dict[str, Any]:
    table = lakes(120, seed=1)
    table.loc[:29, "lake"] = "Baikal"
    table.loc[30:34, "season"] = None
    path = saved(out.parent, table, "test.csv")
    assert main(["evaluate", str(run / "run"), str(path), "--output-dir", str(out), *QUIET, *more]) == 0
    metrics: dict[str, Any] = json.loads((out / "metrics.json").read_text())["evaluation"]
    return metrics


def test_an_evaluation_tells_new_rows_from_known_ones(run: Path, tmp_path: Path) -> None:
    metrics = evaluated(run, tmp_path / "scores")
    table = lakes(120, seed=1)
    new = (np.arange(120) < 35).sum()
    combination = ((table["lake"] == "Erie") & (table["season"] == "winter") & (np.arange(120) >= 35)).sum()
    found = metrics["novelty"]
    assert found["columns"] == ["lake", "season"]
    counts = [found["outputs"]["pH"][kind]["count"] for kind in NOVELTIES]
    assert counts == [120 - new - combination, combination, new]
    assert not (tmp_path / "scores" / REFERENCE).exists()  # it is the training's


def test_an_evaluation_compares_with_the_training_rows_not_with_its_own(run: Path, tmp_path: Path) -> None:
    metrics = evaluated(run, tmp_path / "scores")
    known, table = pd.read_csv(run / "train.csv")["pH"], pd.read_csv(tmp_path / "test.csv")["pH"]
    rmse = np.sqrt(np.mean((table - known.mean()) ** 2))
    skill = metrics["skill"]["pH"]
    assert skill["mean"]["rmse"] == pytest.approx(1.0 - metrics["overall"]["pH"]["rmse"] / rmse)
    low, middle, high = np.quantile(known, [0.1, 0.5, 0.9], method="inverted_cdf")
    score = np.mean((high - low) + 10.0 * np.maximum(low - table, 0) + 10.0 * np.maximum(table - high, 0))
    expected = 1.0 - metrics["overall"]["pH"]["interval_score"] / score
    assert skill["quantiles"]["interval_score"] == pytest.approx(expected)
    expected = 1.0 - metrics["overall"]["pH"]["mae"] / np.mean(np.abs(table - middle))
    assert skill["median"]["mae"] == pytest.approx(expected)


@pytest.mark.parametrize(("by", "columns"), [("season", ["season"]), ("season,id", ["lake", "season"])])
def test_novelty_is_of_the_reported_columns_where_the_model_knows_them(
    run: Path, tmp_path: Path, by: str, columns: list[str]
) -> None:
    assert evaluated(run, tmp_path / "scores", "--report-by", by)["novelty"]["columns"] == columns


def test_a_training_reports_its_own_rows_too(run: Path) -> None:
    metrics = json.loads((run / "run" / "metrics.json").read_text())["training"]
    assert list(metrics["novelty"]["outputs"]["pH"]) == ["seen"]
    assert set(metrics["skill"]["pH"]) == {"mean", "mean by lake", "mean by season", "median", "quantiles"}


def test_a_model_without_categories_has_baselines_and_nothing_new(tmp_path: Path) -> None:
    table = saved(tmp_path, lakes().drop(columns=["lake", "season"]))
    words = ["train", str(table), "--target", "pH", "--exclude-columns", "id", "--max-epochs", "1", *QUIET]
    assert main([*words, "--output-dir", str(tmp_path / "run")]) == 0
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())["training"]
    assert set(metrics["skill"]["pH"]) == {"mean", "median"}
    assert "novelty" not in metrics
    assert main(["evaluate", str(tmp_path / "run"), str(table), *QUIET]) == 0


def test_a_model_without_its_reference_is_evaluated_and_says_what_is_lacking(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "run").mkdir()
    for name in ("run.json", "model.safetensors"):
        (tmp_path / "run" / name).write_bytes((run / "run" / name).read_bytes())
    metrics = evaluated(tmp_path, tmp_path / "scores")
    assert set(metrics) == {"rows", "overall", "worst", "worst_coverage"}
    assert f"has no {REFERENCE}, so that nothing is told of what training has seen" in capsys.readouterr().err
