"""The per-category report against the metrics of each category's rows alone."""

import json
import math
import re
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import beta
from sklearn.metrics import mean_pinball_loss
from torch import Tensor

from reghead.functional import interval_score_loss
from reghead.metrics import NOVELTIES, bias, category_report, coverage, crossing_rate, mae, mean_width, r2, rmse

LEVELS = (0.05, 0.5, 0.95)


def draw(rows: int = 60, outputs: int = 2) -> tuple[Tensor, Tensor, Tensor]:
    rng = torch.Generator().manual_seed(3)
    target = torch.randn(rows, outputs, generator=rng, dtype=torch.float64)
    spread = torch.randn(rows, outputs, 3, generator=rng, dtype=torch.float64)
    preds = target.unsqueeze(-1) * 0.5 + 0.3 * spread + torch.tensor([-1.0, 0.0, 1.0], dtype=torch.float64) * 0.4
    return preds, target, torch.randint(0, 4, (rows,), generator=rng)


def expected(preds: Tensor, target: Tensor, weight: Tensor | None = None) -> dict[str, float]:
    point, ends = preds[..., 1], preds[..., [0, 2]]
    result = {
        "rmse": rmse(point, target, weight=weight),
        "mae": mae(point, target, weight=weight),
        "bias": bias(point, target, weight=weight),
        "r2": r2(point.unsqueeze(-1), target.unsqueeze(-1), weight=weight),
        "coverage": coverage(ends[..., 0], ends[..., 1], target, weight=weight),
        "width": mean_width(ends[..., 0], ends[..., 1], weight=weight),
        "interval_score": interval_score_loss(ends, target, 0.9, weight=weight),
        "crossing": crossing_rate(preds, "rows", weight=weight),
    }
    excess = target.unsqueeze(-1) - preds
    slope = torch.tensor(LEVELS, dtype=torch.float64) - (excess < 0).double()
    rows = (excess * slope).mean(-1)
    share = torch.ones_like(rows) if weight is None else weight
    result["pinball"] = (rows * share).sum() / share.sum()
    effective = share.sum() ** 2 / share.square().sum()
    events = result["coverage"] * effective
    result["coverage_low"] = beta.ppf(0.025, events, effective - events + 1)
    result["coverage_high"] = beta.ppf(0.975, events + 1, effective - events)
    return {name: value.item() for name, value in result.items()} | {"confidence_level": 0.9, "count": len(target)}


def numbers(row: dict[str, Any]) -> dict[str, float]:
    return {name: value for name, value in row.items() if name not in ("location", "output")}


@pytest.mark.parametrize("weighted", [False, True])
def test_each_row_is_the_metrics_of_its_own_rows(weighted: bool) -> None:
    preds, target, ids = draw()
    weight = torch.linspace(0.5, 2.0, 60, dtype=torch.float64) if weighted else None
    report = category_report(preds, target, {"location": ids}, quantiles=LEVELS, weight=weight)
    assert len(report.categories) == 4 * 2
    for row in report.categories:
        mine, d = ids == row["location"], row["output"]
        given = None if weight is None else weight[mine]
        assert numbers(row) == pytest.approx(expected(preds[mine, d], target[mine, d], given), rel=1e-10)
    for d, row in enumerate(report.overall):
        assert row["output"] == d
        assert numbers(row) == pytest.approx(expected(preds[:, d], target[:, d], weight), rel=1e-10)


def test_point_predictions_have_no_interval() -> None:
    preds, target, ids = draw()
    points = category_report(preds[..., 1], target, {"location": ids})
    one_level = category_report(preds[..., 1:2], target, {"location": ids}, quantiles=[0.5])
    assert list(points.overall[0]) == ["output", "count", "rmse", "mae", "bias", "r2"]
    pinball = one_level.overall[0].pop("pinball")
    assert one_level.overall[0] == points.overall[0]
    assert pinball == pytest.approx(points.overall[0]["mae"] / 2)


@pytest.mark.parametrize("levels", [(0.9,), LEVELS])
def test_the_pinball_loss_is_that_of_scikit_learn_averaged_over_levels(levels: tuple[float, ...]) -> None:
    preds, target, ids = draw()
    weight = torch.linspace(0.0, 2.0, 60, dtype=torch.float64)
    preds = preds[..., -len(levels) :]
    report = category_report(preds, target, {"location": ids}, quantiles=levels, weight=weight)
    assert list(report.overall[0])[5:7] == ["r2", "pinball"]
    for row in report.categories:
        mine, d = (ids == row["location"]).numpy(), row["output"]
        y, q, w = target.numpy()[mine, d], preds.numpy()[mine, d], weight.numpy()[mine]
        own = [mean_pinball_loss(y, q[:, k], alpha=tau, sample_weight=w) for k, tau in enumerate(levels)]
        assert row["pinball"] == pytest.approx(np.mean(own), rel=1e-12)


def test_the_pinball_loss_by_hand() -> None:
    """Below by 2 at level 0.25, above by 1 at level 0.75: (0.25 * 2 + 0.25 * 1) / 2."""
    row = category_report(torch.tensor([[1.0, 4.0]]), torch.tensor([3.0]), {"x": ["a"]}, quantiles=[0.25, 0.75])
    assert row.overall[0]["pinball"] == 0.375


def test_every_combination_that_occurs_is_a_row_in_the_order_of_its_labels() -> None:
    target = torch.tensor([1.0, 2.0, 3.0, 4.0])
    categories = {"location": ["b", "a", "b", None], "season": torch.tensor([2, 1, 1, 1])}
    report = category_report(target + 1, target, categories)
    assert [(row["location"], row["season"], row["count"]) for row in report.categories] == [
        (None, 1, 1),
        ("a", 1, 1),
        ("b", 1, 1),
        ("b", 2, 1),
    ]


def test_missing_labels_are_one_category() -> None:
    report = category_report(torch.zeros(3), torch.ones(3), {"location": np.array(["a", np.nan, None], dtype=object)})
    assert [(row["location"], row["count"]) for row in report.categories] == [(None, 2), ("a", 1)]


def test_pandas_takes_it_as_it_is_and_so_does_json() -> None:
    preds, target, ids = draw()
    labels = pd.Series(["abcd"[i] for i in ids.tolist()])
    report = category_report(preds, target, {"location": labels}, quantiles=LEVELS, outputs=["pH", "salt"])
    table = pd.DataFrame(report.categories)
    assert list(table.columns[:3]) == ["location", "output", "count"]
    assert table.groupby("output")["count"].sum().to_dict() == {"pH": 60, "salt": 60}
    assert json.loads(json.dumps(report.categories)) == report.categories


def test_the_worst_category_has_the_highest_rmse_among_those_large_enough() -> None:
    target = torch.zeros(5)
    preds, labels = torch.tensor([1.0, 1.0, 2.0, 2.0, 9.0]), ["a", "a", "b", "b", "c"]
    assert category_report(preds, target, {"x": labels}).worst[0]["x"] == "c"
    assert category_report(preds, target, {"x": labels}, min_count=2).worst[0]["x"] == "b"
    assert category_report(preds, target, {"x": labels}, min_count=9).worst == []
    preds[0] = torch.nan
    assert category_report(preds, target, {"x": labels}).worst[0]["x"] == "a"


def test_the_lowest_coverage_is_found_among_those_large_enough() -> None:
    """a is far off, inside wide intervals; b is close, outside narrow ones; c is too small to judge."""
    preds = torch.tensor([[-9.0, 5.0, 9.0]] * 2 + [[0.9, 1.0, 1.1]] * 2 + [[0.9, 1.0, 1.1]])
    labels = ["a", "a", "b", "b", "c"]
    report = category_report(
        preds, torch.tensor([0.0, 0.0, 0.0, 1.0, 0.0]), {"x": labels}, quantiles=LEVELS, min_count=2
    )
    assert report.worst[0]["x"] == "a"
    assert (report.worst_coverage[0]["x"], report.worst_coverage[0]["coverage"]) == ("b", 0.5)
    spoiled = torch.where(torch.tensor([True, False, False, False, False])[:, None], torch.nan, preds)
    report = category_report(spoiled, torch.zeros(5), {"x": labels}, quantiles=LEVELS, min_count=2)
    assert report.worst_coverage[0]["x"] == "a"  # NaN is worse than any number
    assert category_report(preds[:, 1], torch.zeros(5), {"x": labels}).worst_coverage == []


def test_the_band_of_a_coverage_is_as_wide_as_its_count_says() -> None:
    """4 of 4 covered: down to where 4 hits in a row have probability 0.025."""
    preds, target = torch.tensor([[0.0, 1.0]]).expand(4, 2), torch.full((4,), 0.5)
    row = category_report(preds, target, {"x": ["a"] * 4}, quantiles=[0.1, 0.9]).overall[0]
    assert (row["coverage"], row["coverage_high"]) == (1.0, 1.0)
    assert row["coverage_low"] == pytest.approx(0.025**0.25)
    nobody = category_report(preds, target * torch.nan, {"x": ["a"] * 4}, quantiles=[0.1, 0.9], nan_policy="omit")
    assert math.isnan(nobody.overall[0]["coverage_low"])


def test_unequal_weights_make_the_band_wider_and_a_constant_one_leaves_it() -> None:
    preds, target = torch.tensor([[0.0, 1.0]]).expand(6, 2), torch.tensor([0.5, 0.5, 0.5, 2.0, 0.5, 0.5])

    def band(weight: Tensor | None) -> tuple[float, float]:
        row = category_report(preds, target, {"x": ["a"] * 6}, quantiles=[0.1, 0.9], weight=weight).overall[0]
        return row["coverage_low"], row["coverage_high"]

    assert band(torch.full((6,), 7.0)) == pytest.approx(band(None))
    low, high = band(torch.tensor([9.0, 1.0, 1.0, 2.0, 1.0, 1.0]))
    assert high - low > band(None)[1] - band(None)[0]


def test_rows_are_told_apart_by_what_training_has_seen() -> None:
    preds, target, ids = draw()
    kinds = torch.arange(60) % 7 % 3
    report = category_report(preds, target, {"location": ids}, quantiles=LEVELS, novelty=kinds, outputs=["a", "b"])
    assert [(row["novelty"], row["output"]) for row in report.novelty] == [
        (kind, output) for kind in ("seen", "unseen combination", "unseen category") for output in "ab"
    ]
    for row in report.novelty:
        mine = kinds == NOVELTIES.index(row["novelty"])
        own = category_report(preds[mine], target[mine], {"x": ["all"] * int(mine.sum())}, quantiles=LEVELS).overall
        assert numbers({**row, "novelty": 0}) == pytest.approx(
            {**numbers(own["ab".index(row["output"])]), "novelty": 0}
        )
    assert sum(row["count"] for row in report.novelty if row["output"] == "a") == 60
    plain = category_report(preds, target, {"location": ids}, quantiles=LEVELS, outputs=["a", "b"])
    assert plain.novelty == []
    assert report._replace(novelty=[]) == plain


def test_a_missing_target_counts_nowhere_and_an_empty_category_is_nan() -> None:
    target = torch.tensor([[1.0, torch.nan], [2.0, torch.nan], [torch.nan, 5.0]])
    report = category_report(torch.zeros(3, 2), target, {"x": ["a", "a", "b"]}, nan_policy="omit")
    assert [row["count"] for row in report.categories] == [2, 0, 0, 1]
    assert [row["rmse"] for row in report.overall] == pytest.approx([math.sqrt(2.5), 5.0])
    assert math.isnan(report.categories[1]["rmse"])
    assert [row["x"] for row in report.worst] == ["a", "b"]
    spoiled = category_report(torch.zeros(3, 2), target, {"x": ["a", "a", "b"]})
    assert [math.isnan(row["rmse"]) for row in spoiled.categories] == [False, True, True, False]


@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_nan_prediction_spoils_its_own_category_alone(place: int) -> None:
    preds, target, ids = draw(outputs=1)
    preds[ids.tolist().index(2), 0, place] = torch.nan
    report = category_report(preds, target, {"location": ids}, quantiles=LEVELS, nan_policy="omit")
    spoiled = "rmse" if place == 1 else "coverage"
    assert [math.isnan(row[spoiled]) for row in report.categories] == [False, False, True, False]
    assert math.isnan(report.overall[0]["crossing"])


def test_infinite_intervals_cover() -> None:
    preds = torch.tensor([[[-torch.inf, 0.0, torch.inf]]])
    row = category_report(preds, torch.zeros(1, 1), {"x": ["a"]}, quantiles=LEVELS).overall[0]
    assert (row["coverage"], row["width"], row["interval_score"]) == (1.0, torch.inf, torch.inf)
    assert row["pinball"] == torch.inf


def test_crossing_is_reported_and_the_width_keeps_its_sign() -> None:
    preds = torch.tensor([[[2.0, 1.0, 0.0]], [[0.0, 1.0, 2.0]]])
    row = category_report(preds, torch.ones(2, 1), {"x": ["a", "a"]}, quantiles=LEVELS).categories[0]
    assert (row["crossing"], row["width"], row["coverage"]) == (0.5, 0.0, 0.5)


def test_levels_that_are_not_central_are_scored_each_by_its_own() -> None:
    """By hand: width 2, one above by 1 at 1 / (1 - 0.75), one below by 1 at 1 / 0.5."""
    preds, target = torch.tensor([[0.0, 2.0], [0.0, 2.0]]), torch.tensor([3.0, -1.0])
    row = category_report(preds, target, {"x": ["a", "a"]}, quantiles=[0.5, 0.75]).overall[0]
    assert row["interval_score"] == pytest.approx(2 + (4 + 2) / 2)
    assert row["confidence_level"] == 0.25


def test_ids_go_with_the_leading_dimensions() -> None:
    preds, target = torch.arange(12.0).reshape(2, 3, 2), torch.zeros(2, 3, 2)
    report = category_report(preds, target, {"x": torch.tensor([5, 7])})
    assert [(row["x"], row["output"], row["count"]) for row in report.categories] == [
        (5, 0, 3),
        (5, 1, 3),
        (7, 0, 3),
        (7, 1, 3),
    ]
    assert report.categories[0]["mae"] == pytest.approx((0 + 2 + 4) / 3)


def test_no_rows_are_no_categories() -> None:
    report = category_report(torch.zeros(0, 1), torch.zeros(0, 1), {"x": torch.zeros(0, dtype=torch.int64)})
    assert report.categories == report.worst == report.worst_coverage == []
    assert report.overall[0]["count"] == 0


def test_a_constant_category_has_no_r2_and_the_others_do() -> None:
    target = torch.tensor([0.1] * 7 + [1.0, 2.0])
    report = category_report(target, target, {"x": ["a"] * 7 + ["b"] * 2})
    assert math.isnan(report.categories[0]["r2"])
    assert report.categories[1]["r2"] == 1.0


def test_gradients_and_half_precision_are_welcome() -> None:
    preds = torch.ones(2, 1, dtype=torch.bfloat16, requires_grad=True)
    assert category_report(preds, torch.zeros(2, 1), {"x": ["a", "b"]}).overall[0]["rmse"] == 1.0


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"preds": torch.zeros(3, 1)}, ValueError, "preds and target must have the same shape, got (3, 1) and (3,)"),
        ({"quantiles": [0.1, 0.9]}, ValueError, "preds must have shape (*target.shape, Q) = (3, 2), got (3,)"),
        ({"categories": ["a", "a", "b"]}, TypeError, "categories must map at least one column to ids or labels, got"),
        ({"categories": {}}, TypeError, "categories must map at least one column to ids or labels, got {}"),
        ({"categories": {"x": ["a"]}}, ValueError, "categories['x'] must hold one label for each row of target, (3,)"),
        (
            {"categories": {"x": torch.zeros(2)}},
            ValueError,
            "categories['x'] must have the leading dimensions of the ro",
        ),
        ({"categories": {"rmse": ["a"] * 3}}, ValueError, "categories has the column 'rmse', which is also a name in"),
        ({"outputs": ["a", "b"]}, ValueError, "outputs must name each of the 1 outputs, got ['a', 'b']"),
        ({"novelty": torch.zeros(2, dtype=torch.int64)}, ValueError, "novelty must have the leading dimensions of the"),
        (
            {"novelty": torch.tensor([0, 1, 3])},
            ValueError,
            "novelty must hold torch.int64 from 0 to 2, as reghead",
        ),
        (
            {"novelty": torch.zeros(3)},
            ValueError,
            "novelty gives them, got torch.float32 from 0.0 to 0.0",
        ),
        ({"min_count": 0}, ValueError, "min_count must be at least 1, got 0"),
        ({"weight": torch.ones(2)}, ValueError, "weight must have the leading dimensions of target"),
    ],
)
def test_refusals(change: dict[str, Any], error: type[Exception], message: str) -> None:
    arguments = {"preds": torch.zeros(3), "target": torch.zeros(3), "categories": {"x": ["a", "a", "b"]}, **change}
    with pytest.raises(error, match=re.escape(message)):
        category_report(**arguments)


def test_calibrated_ends_with_all_levels_are_told_of_their_own() -> None:
    ends, target = torch.zeros(3, 1, 2), torch.zeros(3, 1)
    with pytest.raises(ValueError, match="calibrated intervals have two ends: give their two levels as quantiles"):
        category_report(ends, target, {"site": ["a", "b", "a"]}, quantiles=(0.1, 0.5, 0.9))
