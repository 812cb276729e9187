"""The report of a training against metrics computed row by row in NumPy."""

import io
import json
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console

from reghead.cli._report import MISSING, Report, Scored, cell_name, format_number, make_report

LEVELS = (0.05, 0.1, 0.5, 0.9, 0.95)
OUTPUTS = ("pH", "yield", "level")
OWN: tuple[tuple[float, ...], ...] = ((0.1, 0.5, 0.9), (), (0.95,))
BY = (("location",), ("location", "season"))
KINDS = ("all", "seen", "unseen combination", "unseen category")


def draw(rows: int = 90, seed: int = 0) -> Scored:
    rng = np.random.default_rng(seed)
    target = rng.normal(size=(rows, 3)) * [1.0, 1000.0, 10.0]
    steps = np.array([-1.6, -1.3, 0.0, 1.3, 1.6])
    preds = target[..., None] + (rng.normal(size=(rows, 3, 1)) + steps) * np.array([1.0, 1000.0, 10.0])[:, None]
    location = rng.choice(np.array(["A", "B", None], dtype=object), rows)
    labels = {"location": location.tolist(), "season": rng.integers(1, 3, rows).tolist()}
    return Scored(torch.from_numpy(preds), torch.from_numpy(target), labels)


def report_of(scored: Scored, **options: Any) -> Report:
    arguments = {"outputs": OUTPUTS, "levels": OWN, "all_levels": LEVELS, "by": BY, **options}
    return make_report({"validation": scored}, **arguments)


def printed(report: Report, width: int = 80) -> str:
    file = io.StringIO()
    report.print(Console(file=file, width=width), "validation")
    return file.getvalue()


def one_output(preds: Sequence[float], target: Sequence[float], labels: Sequence[object], **options: Any) -> Report:
    scored = Scored(
        torch.tensor(preds, dtype=torch.float64)[:, None],
        torch.tensor(target, dtype=torch.float64)[:, None],
        {"site": labels},
        options.pop("weight", None),
    )
    arguments = {"outputs": ["y"], "levels": [()], "all_levels": None, "by": [("site",)], **options}
    return make_report({"validation": scored}, **arguments)


def test_an_output_is_judged_at_its_own_levels() -> None:
    scored = draw()
    q, y = scored.preds.numpy(), scored.target.numpy()
    overall = report_of(scored).metrics["validation"]["overall"]
    assert list(overall) == list(OUTPUTS)
    for d, slot in enumerate((2, 2, 4)):
        assert overall[OUTPUTS[d]]["rmse"] == pytest.approx(np.sqrt(np.mean((q[:, d, slot] - y[:, d]) ** 2)))
    inside = (q[:, 0, 1] <= y[:, 0]) & (y[:, 0] <= q[:, 0, 3])
    assert overall["pH"]["coverage"] == pytest.approx(inside.mean())
    assert overall["pH"]["confidence_level"] == 0.8
    assert overall["pH"]["width"] == pytest.approx(2.6)
    error = y[:, 2] - q[:, 2, 4]
    assert overall["level"]["pinball"] == pytest.approx(np.where(error > 0, 0.95 * error, -0.05 * error).mean())
    assert set(overall["yield"]) == {"count", "rmse", "mae", "bias", "r2"}
    assert set(overall["level"]) == {"count", "rmse", "mae", "bias", "r2", "pinball"}


def test_rows_are_the_metrics_of_every_category_and_cell() -> None:
    scored = draw()
    rows = report_of(scored).rows
    location = np.array([MISSING if v is None else v for v in scored.labels["location"]])
    season = np.array([str(v) for v in scored.labels["season"]])
    cells = {"location": location, "location,season": np.char.add(np.char.add(location, " / "), season)}
    assert {(r["grouping"], r["category"], r["output"]) for r in rows} == {
        (grouping, name, output) for grouping, names in cells.items() for name in names for output in OUTPUTS
    }
    assert len(rows) == (3 + 6) * 3
    error = scored.preds.numpy()[..., [2, 2, 4]][:, range(3), range(3)] - scored.target.numpy()
    for row in rows:
        mine = cells[row["grouping"]] == row["category"]
        assert row["count"] == mine.sum()
        assert row["mae"] == pytest.approx(np.abs(error[mine, OUTPUTS.index(row["output"])]).mean())


def test_rows_have_one_set_of_keys_in_one_order_and_none_where_a_metric_does_not_apply() -> None:
    rows = report_of(draw()).rows
    assert {tuple(row) for row in rows} == {tuple(rows[0])}
    assert list(rows[0])[:6] == ["part", "grouping", "category", "output", "count", "rmse"]
    for row in rows:
        assert (row["coverage"] is None) == (row["output"] != "pH")
        assert (row["pinball"] is None) == (row["output"] == "yield")


def test_the_worst_is_among_the_categories_with_enough_rows_where_there_are_any() -> None:
    preds, labels = [1.0] * 5 + [2.0] * 5 + [9.0] * 4, ["a"] * 5 + ["b"] * 5 + ["c"] * 4
    worst = one_output(preds, [0.0] * 14, labels).metrics["validation"]["worst"]["site"]["y"]
    assert (worst["category"], worst["count"], worst["rmse"]) == ("b", 5, 2.0)
    assert set(worst) == {"category", "count", "rmse", "mae", "bias", "r2"}
    few = one_output(preds, [0.0] * 14, labels, min_count=6).metrics["validation"]["worst"]["site"]["y"]
    assert (few["category"], few["rmse"]) == ("c", 9.0)


def test_the_lowest_coverage_has_a_place_of_its_own() -> None:
    """a: off by much, with an interval that knows it; b: off by little, beyond its interval."""
    preds = torch.tensor([[[-9.0, 5.0, 9.0]]] * 6 + [[[0.9, 1.0, 1.1]]] * 6, dtype=torch.float64)
    scored = Scored(preds, torch.zeros(12, 1, dtype=torch.float64), {"location": ["a"] * 6 + ["b"] * 6})
    metrics = report_of(scored, outputs=["y"], levels=[(0.1, 0.5, 0.9)], all_levels=(0.1, 0.5, 0.9), by=[BY[0]])
    found = metrics.metrics["validation"]
    assert found["worst"]["location"]["y"]["category"] == "a"
    assert found["worst_coverage"]["location"]["y"]["category"] == "b"
    assert found["worst_coverage"]["location"]["y"]["coverage"] == 0.0
    assert "worst_coverage" not in one_output([1.0], [2.0], ["a"]).metrics["validation"]


def test_a_nan_prediction_is_the_worst_and_json_takes_it() -> None:
    report = one_output([1.0, math.nan, 5.0], [0.0, 0.0, 0.0], ["a", "b", "c"])
    assert report.metrics["validation"]["worst"]["site"]["y"]["category"] == "b"
    assert report.metrics["validation"]["overall"]["y"]["rmse"] is None
    assert math.isnan(report.rows[1]["rmse"])
    text = json.dumps(report.metrics, allow_nan=False)
    assert json.loads(text) == report.metrics
    assert "nan" in printed(report)


def test_an_infinite_prediction_is_json_too() -> None:
    json.dumps(one_output([math.inf], [0.0], ["a"]).metrics, allow_nan=False)


def test_a_missing_target_counts_nowhere_and_a_weight_is_as_many_rows() -> None:
    once = one_output([1.0, 2.0, 9.0], [0.0, 0.0, math.nan], ["a", "a", "b"], weight=torch.tensor([3.0, 1.0, 1.0]))
    repeated = one_output([1.0, 1.0, 1.0, 2.0], [0.0] * 4, ["a"] * 4)
    for name in ("rmse", "mae", "bias"):
        expected = repeated.metrics["validation"]["overall"]["y"][name]
        assert once.metrics["validation"]["overall"]["y"][name] == pytest.approx(expected)
    assert once.metrics["validation"]["rows"] == 3
    assert [(row["category"], row["count"]) for row in once.rows] == [("a", 2), ("b", 0)]
    assert once.metrics["validation"]["worst"]["site"]["y"]["category"] == "a"


def test_every_part_is_reported_and_one_may_be_empty() -> None:
    empty = Scored(torch.zeros(0, 1), torch.zeros(0, 1), {"site": []})
    full = Scored(torch.ones(2, 1), torch.zeros(2, 1), {"site": ["a", "b"]})
    parts = {"training": full, "validation": empty}
    report = make_report(parts, outputs=["y"], levels=[()], all_levels=None, by=[("site",)])
    assert {part: found["rows"] for part, found in report.metrics.items()} == {"training": 2, "validation": 0}
    assert {row["part"] for row in report.rows} == {"training"}
    assert report.metrics["validation"]["worst"] == {}
    assert "validation: 0 rows" in printed(report)


def compared(novelty: Sequence[int] | None = (0, 0, 0, 1, 1, 2)) -> Report:
    """Six rows of one output, each half as far from its target as the mean baseline is."""
    target = torch.tensor([0.0, 2.0, 4.0, 6.0, 8.0, 10.0], dtype=torch.float64)[:, None]
    preds = target[:, :, None] + torch.tensor([-2.0, 0.5, 2.0], dtype=torch.float64)
    scored = Scored(
        preds,
        target,
        {"location": ["A", "A", "B", "B", "B", "C"]},
        novelty=None if novelty is None else torch.tensor(novelty),
        novelty_of=("location", "season"),
        baselines={
            "mean": target + 1.0,
            "mean by location": target - 0.25,
            "median": target + 2.0,
            "quantiles": target[:, :, None] + torch.tensor([-4.0, 1.0, 4.0], dtype=torch.float64),
        },
    )
    levels = (0.1, 0.5, 0.9)
    return report_of(scored, outputs=["y"], levels=[levels], all_levels=levels, by=[("location",)])


def test_skill_is_against_each_baseline_for_the_scores_that_it_is_made_for() -> None:
    """The errors are 0.5 beside 1, 0.25 and 2; the intervals 4 wide beside 8, with no target outside."""
    skill = compared().metrics["validation"]["skill"]["y"]
    assert list(skill) == ["mean", "mean by location", "median", "quantiles"]
    assert skill["mean"] == pytest.approx({"rmse": 0.5, "mae": 0.5})
    assert skill["mean by location"] == pytest.approx({"rmse": -1.0, "mae": -1.0})
    assert skill["median"] == pytest.approx({"mae": 0.75})
    assert skill["quantiles"] == pytest.approx({"pinball": 0.5, "interval_score": 0.5})


def test_point_predictions_are_compared_with_points() -> None:
    scored = Scored(torch.ones(2, 1), torch.zeros(2, 1), {}, baselines={"mean": torch.full((2, 1), 4.0)})
    report = make_report({"validation": scored}, outputs=["y"], levels=[()], all_levels=None, by=[])
    assert report.metrics["validation"]["skill"] == {"y": {"mean": {"rmse": 0.75, "mae": 0.75}}}
    same = scored._replace(preds=torch.zeros(2, 1), baselines={"mean": torch.zeros(2, 1)})
    report = make_report({"validation": same}, outputs=["y"], levels=[()], all_levels=None, by=[])
    assert report.metrics["validation"]["skill"]["y"]["mean"]["rmse"] is None  # of two perfect ones; JSON has no NaN


def test_every_score_is_told_apart_by_what_training_has_seen() -> None:
    report = compared()
    found = report.metrics["validation"]["novelty"]
    assert found["columns"] == ["location", "season"]
    kinds = found["outputs"]["y"]
    assert {kind: row["count"] for kind, row in kinds.items()} == {
        "seen": 3,
        "unseen combination": 2,
        "unseen category": 1,
    }
    overall = report.metrics["validation"]["overall"]["y"]
    for row in kinds.values():
        assert {*row} == {*overall, "skill"}
        assert row["skill"]["mean"]["rmse"] == pytest.approx(0.5)
        assert row["coverage"] == 1.0
    # Two covered of two leave everything from 0.025 ** (1 / 2) on.
    assert kinds["unseen combination"]["coverage_low"] == pytest.approx(0.025**0.5)
    json.dumps(report.metrics, allow_nan=False)
    assert "novelty" not in compared(novelty=None).metrics["validation"]


def test_the_table_tells_rows_apart_and_says_against_what() -> None:
    lines = printed(compared()).splitlines()
    start = next(i for i, line in enumerate(lines) if line.startswith("by what training"))
    title = "by what training has seen of location, season; from, to: 95 % band of the coverage; skill: of the RMSE, "
    assert " ".join(" ".join(lines[start : start + 2]).split()) == f"{title}against the training mean"
    rows = {kind: next(line.split() for line in lines[start:] if line.strip().startswith(kind)) for kind in KINDS}
    assert rows["seen"][1:] == ["3", "0.5000", "0.5000", "1.000", "0.29", "1.00", "0.50"]
    assert rows["unseen combination"][2] == "2"
    assert rows["all"][1] == "6"
    assert any(line.split() == ["mean", "by", "location", "-1.000", "-1.000", "-", "-"] for line in lines)
    alike = printed(compared(novelty=[0] * 6)).splitlines()
    assert not any(line.strip().startswith("all ") for line in alike)  # it would be the same row twice


@pytest.mark.parametrize("width", [66, 80, 200])
def test_the_tables_of_new_rows_and_of_skill_fit_their_terminal(width: int) -> None:
    text = printed(compared(), width)
    assert max(map(len, text.splitlines())) <= width
    assert "…" not in text


def test_the_lowest_coverage_is_printed_with_its_band() -> None:
    preds = torch.tensor([[[-1.0, 0.0, 1.0]]] * 12, dtype=torch.float64)
    target = torch.tensor([0.5] * 6 + [0.5, 0.5, 0.5, 2.0, 2.0, 2.0], dtype=torch.float64)[:, None]
    levels = (0.1, 0.5, 0.9)
    scored = Scored(preds, target, {"location": ["A"] * 6 + ["B"] * 6})
    report = report_of(scored, outputs=["y"], levels=[levels], all_levels=levels, by=[("location",)])
    worst = report.metrics["validation"]["worst_coverage"]["location"]["y"]
    assert (worst["category"], worst["coverage"]) == ("B", 0.5)
    assert "lowest coverage: 0.5000, 95 % band 0.1181 to 0.8819, in B" in printed(report)


def test_no_grouping_is_a_report_without_categories() -> None:
    report = one_output([1.0, 3.0], [0.0, 0.0], ["a", "b"], by=[])
    assert report.rows == []
    assert report.metrics["validation"]["overall"]["y"]["mae"] == 2.0
    assert "RMSE" in printed(report)


def test_a_column_may_be_called_as_a_metric_is() -> None:
    scored = Scored(torch.ones(2, 1), torch.zeros(2, 1), {"count": ["a", "b"], "output": [1, 2]})
    report = make_report(
        {"validation": scored}, outputs=["rmse"], levels=[()], all_levels=None, by=[("count",), ("output", "count")]
    )
    assert [row["category"] for row in report.rows] == ["a", "b", "1 / a", "2 / b"]
    assert {row["output"] for row in report.rows} == {"rmse"}


def test_missing_labels_are_said_to_be() -> None:
    assert cell_name(["A", None]) == "A / unknown or missing"
    report = one_output([1.0, 2.0], [0.0, 0.0], [None, float("nan")])
    assert [(row["category"], row["count"]) for row in report.rows] == [("unknown or missing", 2)]


@pytest.mark.parametrize("width", [66, 80, 200])
def test_the_table_fits_its_terminal_and_has_no_colour_where_it_is_piped(width: int) -> None:
    scored = draw()
    names = {"A": "a very long name of a place by the northern sea, station 12345", "B": "x" * 300}
    location = [names.get(str(label)) for label in scored.labels["location"]]
    report = report_of(scored._replace(labels={**scored.labels, "location": location}))
    text = printed(report, width)
    assert max(map(len, text.splitlines())) <= width
    assert "\x1b" not in text
    assert "…" not in text
    for row in report.rows:  # names give way, numbers do not
        if row["grouping"] == "location":
            assert all(format_number(row[name]) in text.split() for name in ("rmse", "mae", "bias"))


def test_the_table_holds_each_output_and_the_worst_categories_with_their_counts() -> None:
    preds = [float(i // 5) for i in range(125)]
    labels = [f"site {i // 5:02d}" for i in range(125)]
    lines = printed(one_output(preds, [0.0] * 125, labels)).splitlines()
    assert lines[0] == "validation: 125 rows, in the target's own units"
    rows = [line.split() for line in lines if line.strip().startswith("site ")]
    assert [row[1] for row in rows] == [f"{i:02d}" for i in range(24, 14, -1)]  # ten, and the worst first
    assert rows[0][2:4] == ["5", "24.00"]
    assert any("among 25 categories, of those with at least 5 targets" in line for line in lines)
    overall = next(line.split() for line in lines if line.strip().startswith("y "))
    assert overall[1:3] == ["125", format_number(np.sqrt(np.mean(np.square(preds))))]


def test_with_several_outputs_each_has_its_share_of_the_ten_rows() -> None:
    """Their units differ: an order of all by RMSE would show the one with the smallest unit alone."""
    scored = draw(400)
    many = {"location": [i % 20 for i in range(400)], "season": scored.labels["season"]}
    text = printed(report_of(scored._replace(labels=many), by=[("location",)]))
    below = text[text.index("by location") :].splitlines()
    assert {o: sum(line.split()[:1] == [o] for line in below) for o in OUTPUTS} == {"pH": 3, "yield": 3, "level": 3}


def test_labels_are_printed_as_they_are_and_on_one_line() -> None:
    text = printed(one_output([1.0, 2.0, 3.0], [0.0] * 3, ["[bold]x[/bold]", "two\nlines", "\x1b[31mred"]))
    assert "[bold]x[/bold]" in text
    assert "two lines" in text
    assert "\x1b" not in text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0"),
        (-0.5, "-0.5000"),
        (0.00123456, "0.001235"),
        (9.99996, "10.00"),
        (123.456, "123.5"),
        (12345.6, "12346"),
        (1e6, "1.000e+06"),
        (-1.23456e-7, "-1.235e-07"),
        (math.nan, "nan"),
        (-math.inf, "-inf"),
        (None, "-"),
        (1234, "1,234"),
    ],
)
def test_numbers_have_four_significant_digits(value: float | None, text: str) -> None:
    assert format_number(value) == text
