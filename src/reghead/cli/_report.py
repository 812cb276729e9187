"""Metrics of a trained model, in the target's own units: as JSON, as rows of a table, and in the terminal."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from reghead._optional import import_optional
from reghead.cli._reference import MEAN, MEDIAN, QUANTILES, Reference
from reghead.functional import nearest_level
from reghead.metrics import CategoryReport, category_report, skill
from reghead.metrics._report import METRICS

if TYPE_CHECKING:
    import rich.console
    import rich.table

MISSING = "unknown or missing"
MOST_ROWS = 10
WIDEST_NAME = 60
POINT = {"count": "count", "rmse": "RMSE", "mae": "MAE", "bias": "bias", "r2": "R2"}
INTERVAL = {
    "pinball": "pinball",
    "confidence_level": "nominal",
    "coverage": "coverage",
    "width": "width",
    "interval_score": "score",
    "crossing": "crossing",
}
WORST = {"count": "count", "rmse": "RMSE", "mae": "MAE", "bias": "bias", "coverage": "coverage"}
NOVELTY = {
    "count": "count",
    "rmse": "RMSE",
    "bias": "bias",
    "coverage": "coverage",
    "coverage_low": "from",
    "coverage_high": "to",
    "skill": "skill",
}
SKILL = {"rmse": "RMSE", "mae": "MAE", "pinball": "pinball", "interval_score": "score"}
COMPARED = {MEDIAN: ("mae",), QUANTILES: ("pinball", "interval_score")}
"""The scores that a baseline is made for; the others are means, for errors."""


class Scored(NamedTuple):
    """Predictions for one part of the data, with what they are compared with."""

    preds: Tensor  # (N, D), or (N, D, Q) with quantiles; float64, the target's own units
    target: Tensor  # (N, D); NaN is missing
    labels: Mapping[str, Sequence[object]]  # column -> N labels; None is unknown or missing
    weight: Tensor | None = None  # (N,)
    ids: Mapping[str, Tensor] = {}  # categorical column of the model -> ids (N,)
    novelty: Tensor | None = None  # (N,), as reghead.metrics.novelty gives it
    novelty_of: Sequence[str] = ()  # the columns whose combinations it is about
    baselines: Mapping[str, Tensor] = {}  # name -> predictions (N, D), or (N, D, Q) of the quantiles


@dataclasses.dataclass(frozen=True)
class Report:
    """What :func:`make_report` returns.

    Attributes:
        metrics: Part -> ``rows``, ``overall`` (output -> metrics), ``worst`` (grouping -> output -> the category with
            the highest RMSE) and, with intervals, ``worst_coverage``, that with the lowest coverage. With baselines
            ``skill`` (output -> baseline -> score), and where it is known what training has seen ``novelty``, with its
            ``columns``, and ``outputs`` (output -> kind of row -> metrics). Ready for JSON: what is not finite is None.
        rows: One flat row per part, grouping, output and category, all with the same keys; None where an output has
            no such metric, NaN where it is undefined.
        min_count: How many targets a category needs to be called the worst, where any has as many.
        reference: The training rows in brief.
    """

    metrics: dict[str, Any]
    rows: list[dict[str, Any]]
    min_count: int
    reference: Reference | None = None

    def print(self, console: "rich.console.Console", part: str) -> None:
        """Print the metrics of ``part``: those of each output, then the worst categories of each grouping."""
        metrics = self.metrics[part]
        overall = [{"output": output, **row} for output, row in metrics["overall"].items()]
        # Not highlighted, and no markup: a name in square brackets is a name.
        console.print(
            f"{part}: {metrics['rows']:,} rows, in the target's own units", highlight=False, markup=False, style="bold"
        )
        console.print(_table(overall, ["output"], POINT))
        quantiles = [row for row in overall if "pinball" in row]
        if quantiles:
            console.print(_table(quantiles, ["output"], INTERVAL))
        self._print_novelty(console, part)
        self._print_skill(console, part)
        for grouping in dict.fromkeys(row["grouping"] for row in self.rows if row["part"] == part):
            self._print_worst(console, part, grouping, list(metrics["overall"]))

    def _print_novelty(self, console: "rich.console.Console", part: str) -> None:
        metrics = self.metrics[part]
        if "novelty" not in metrics:
            return
        rows = []
        for output, kinds in metrics["novelty"]["outputs"].items():
            whole = {"all": {**metrics["overall"][output], "skill": metrics.get("skill", {}).get(output, {})}}
            for kind, row in ({**whole, **kinds} if len(kinds) > 1 else kinds).items():
                shares = {"skill": row["skill"].get(MEAN, {}).get("rmse")}
                shares |= {name: row[name] for name in ("coverage_low", "coverage_high") if name in row}
                short = {name: None if v is None else f"{v:.2f}" for name, v in shares.items()}
                rows.append({**row, **short, "output": output, "rows": kind})
        title = f"by what training has seen of {', '.join(metrics['novelty']['columns'])}"
        banded = "; from, to: 95 % band of the coverage" if any("coverage" in row for row in rows) else ""
        skilled = (
            "; skill: of the RMSE, against the training mean" if any(row["skill"] is not None for row in rows) else ""
        )
        console.print(f"{title}{banded}{skilled}", highlight=False, markup=False)
        console.print(_table(rows, ["rows"] if len(metrics["overall"]) == 1 else ["output", "rows"], NOVELTY))

    def _print_skill(self, console: "rich.console.Console", part: str) -> None:
        found = self.metrics[part].get("skill", {})
        rows = [{"output": o, "baseline": b, **row} for o, named in found.items() for b, row in named.items()]
        if rows:
            text = "skill against the training rows' own: 1 is perfect, 0 no better than the baseline"
            console.print(text, highlight=False, markup=False)
            console.print(_table(rows, ["baseline"] if len(found) == 1 else ["output", "baseline"], SKILL))

    def _print_worst(self, console: "rich.console.Console", part: str, grouping: str, outputs: list[str]) -> None:
        here = [row for row in self.rows if row["part"] == part and row["grouping"] == grouping]
        share = max(1, MOST_ROWS // len(outputs))  # outputs have units of their own: their errors have no one order
        rows: list[dict[str, Any]] = []
        for output in outputs:
            candidates = _large_enough([row for row in here if row["output"] == output], self.min_count)
            rows += sorted(candidates, key=lambda row: _badness(row["rmse"]), reverse=True)[:share]
        if not rows:
            return
        total = len({row["category"] for row in here})
        each = " of each output" if len(outputs) > 1 else ""
        few = f", of those with at least {self.min_count} targets" if rows[-1]["count"] >= self.min_count else ""
        if len(rows) == total * len(outputs):
            title = f"by {grouping}, the highest RMSE first"
        else:
            title = f"by {grouping}, the highest RMSE{each} among {total} categories{few}"
        console.print(title, highlight=False, markup=False)
        console.print(_table(rows, ["category"] if len(outputs) == 1 else ["output", "category"], WORST))
        for output, worst in self.metrics[part].get("worst_coverage", {}).get(grouping, {}).items():
            of = f" of {_printable(output)}" if len(outputs) > 1 else ""
            covered, low, high = (format_number(worst[name]) for name in ("coverage", "coverage_low", "coverage_high"))
            text = f"lowest coverage{of}: {covered}, 95 % band {low} to {high}, in {_printable(worst['category'])}"
            console.print(text, highlight=False, markup=False)


def make_report(
    scored: Mapping[str, Scored],
    *,
    outputs: Sequence[str],
    levels: Sequence[Sequence[float]],
    all_levels: Sequence[float] | None,
    by: Sequence[Sequence[str]],
    min_count: int = 5,
) -> Report:
    """Metrics of each part, overall and by category.

    Args:
        scored: Part, such as ``"validation"``, to its predictions.
        outputs: Names of the D outputs.
        levels: For each output the quantile levels that it was trained on; none for a point output.
        all_levels: The Q levels of the predictions' last dimension; None for point predictions.
        by: Groupings, each of one column or more: ``("location",)``, ``("location", "season")``.
        min_count: How many targets a category needs to be called the worst; where none has as many, all may be.
    """
    metrics: dict[str, Any] = {}
    rows: list[dict[str, Any]] = []
    for part, data in scored.items():
        overall: dict[str, Any] = {}
        worst: dict[str, Any] = {}
        worst_coverage: dict[str, Any] = {}
        compared: dict[str, Any] = {}
        novelty: dict[str, Any] = {}
        for d, output in enumerate(outputs):
            whole, *kinds = _by_novelty(data, d, levels[d], all_levels)
            compared[output] = whole.pop("skill")
            overall[output] = _finite(whole)
            novelty[output] = {row.pop("novelty"): _finite(row) for row in kinds}
        for columns in by:
            grouping = ",".join(columns)
            # Under neutral names: a column may be called as a metric is.
            labels = {str(i): data.labels[column] for i, column in enumerate(columns)}
            for d, output in enumerate(outputs):
                names = {"part": part, "grouping": grouping}
                own = [
                    {**names, "category": cell_name([row[i] for i in labels]), "output": output, **_metrics(row)}
                    for row in _report(data, d, levels[d], all_levels, labels).categories
                ]
                rows += own
                large = _large_enough(own, min_count)
                if large:
                    _place(worst, grouping, max(large, key=lambda row: _badness(row["rmse"])))
                if large and "coverage" in large[0]:
                    _place(worst_coverage, grouping, max(large, key=lambda row: _badness(-row["coverage"])))
        metrics[part] = {"rows": len(data.target), "overall": overall, "worst": worst}
        if worst_coverage:
            metrics[part]["worst_coverage"] = worst_coverage
        if data.baselines:
            metrics[part]["skill"] = compared
        if data.novelty is not None:
            metrics[part]["novelty"] = {"columns": list(data.novelty_of), "outputs": novelty}
    present = {name for row in rows for name in row}
    order = [name for name in ("part", "grouping", "category", "output", *METRICS) if name in present]
    return Report(metrics, [{name: row.get(name) for name in order} for row in rows], min_count)


def own_predictions(
    preds: Tensor, output: int, levels: Sequence[float], all_levels: Sequence[float] | None
) -> tuple[Tensor, tuple[float, ...] | None]:
    """The predictions of one output at its own levels, ``(N, Q)``, or ``(N,)`` and None for a point output."""
    if all_levels is None:
        return preds[:, output], None
    if not levels:
        return preds[:, output, nearest_level(all_levels)], None
    slots = [list(all_levels).index(level) for level in levels]
    return preds[:, output, slots], tuple(levels)


def cell_name(labels: Sequence[object]) -> str:
    """The name of a category, or of a combination: ``A / summer``."""
    return " / ".join(MISSING if label is None else str(label) for label in labels)


def _by_novelty(
    data: Scored, output: int, levels: Sequence[float], all_levels: Sequence[float] | None
) -> list[dict[str, Any]]:
    """Metrics and skill of all rows, and then of each kind that training has seen as much of."""
    everyone = {"everyone": torch.zeros(len(data.target), dtype=torch.int64)}

    def rows(preds: Tensor, levels: Sequence[float], all_levels: Sequence[float] | None) -> list[dict[str, Any]]:
        report = _report(data._replace(preds=preds), output, levels, all_levels, everyone)
        return [{**row, "skill": {}} for row in (*report.overall, *report.novelty)]

    found = rows(data.preds, levels, all_levels)
    for name, preds in data.baselines.items():
        if name == QUANTILES and not levels:
            continue
        baseline = rows(preds, levels, all_levels) if name == QUANTILES else rows(preds, (), None)
        scores = [score for score in COMPARED.get(name, ("rmse", "mae")) if score in found[0]]
        for own, other in zip(found, baseline, strict=True):
            values = skill(*(torch.tensor([row[s] for s in scores], dtype=torch.float64) for row in (own, other)))
            own["skill"][name] = _finite(dict(zip(scores, values.tolist(), strict=True)))
    return [{name: row[name] for name in ("novelty", *METRICS, "skill") if name in row} for row in found]


def _report(
    data: Scored,
    output: int,
    levels: Sequence[float],
    all_levels: Sequence[float] | None,
    labels: Mapping[str, Tensor | Sequence[object]],
) -> CategoryReport:
    preds, quantiles = own_predictions(data.preds, output, levels, all_levels)
    target = data.target[:, output]
    options: dict[str, Any] = {"novelty": data.novelty, "weight": data.weight, "nan_policy": "omit"}
    return category_report(preds, target, labels, quantiles=quantiles, **options)


def _metrics(row: Mapping[str, Any]) -> dict[str, Any]:
    return {name: row[name] for name in METRICS if name in row}


def _finite(row: Mapping[str, Any]) -> dict[str, Any]:
    """``row`` ready for JSON, which has neither NaN nor infinity."""
    return {name: None if isinstance(v, float) and not math.isfinite(v) else v for name, v in row.items()}


def _place(worst: dict[str, Any], grouping: str, row: Mapping[str, Any]) -> None:
    rest = {name: value for name, value in row.items() if name not in ("part", "grouping", "output")}
    worst.setdefault(grouping, {})[row["output"]] = _finite(rest)


def _large_enough(rows: Sequence[dict[str, Any]], min_count: int) -> list[dict[str, Any]]:
    """The rows with ``min_count`` targets; where there are none, those with any."""
    return [row for row in rows if row["count"] >= min_count] or [row for row in rows if row["count"]]


def _badness(value: float) -> tuple[bool, float]:
    """A key by which NaN is worse than any number."""
    return (math.isnan(value), value)


def _table(rows: Sequence[Mapping[str, Any]], names: Sequence[str], metrics: Mapping[str, str]) -> "rich.table.Table":
    """``rows`` as a table: ``names`` give way where the terminal is narrow, numbers do not."""
    rich_box, rich_table, rich_text = (import_optional(f"rich.{name}", "cli") for name in ("box", "table", "text"))
    table: rich.table.Table = rich_table.Table(box=rich_box.SIMPLE, pad_edge=False, padding=(0, 1))
    for name in names:
        table.add_column(name, overflow="fold")
    shown = [name for name in metrics if any(row.get(name) is not None for row in rows)]
    for name in shown:
        table.add_column(metrics[name], justify="right", no_wrap=True)
    for row in rows:
        # As Text, which reads no markup: a label may be "[red]".
        texts = [rich_text.Text(_printable(row[name])) for name in names]
        table.add_row(*texts, *(_format(row.get(name)) for name in shown))
    return table


def _printable(name: str) -> str:
    """``name`` on one line, without control characters, and cut in its middle where it is very long."""
    text = "".join(c if c.isprintable() else " " for c in name)
    return text if len(text) <= WIDEST_NAME else f"{text[: WIDEST_NAME - 21]}...{text[-18:]}"


def _format(value: str | float | None) -> str:
    return value if isinstance(value, str) else format_number(value)


def format_number(value: float | None) -> str:
    """Four significant digits, and no fewer than the whole part has; ``-`` where there is no number to give.

    Example:
        >>> [format_number(x) for x in (0.5, 12.3456, 12345.6, 1.5e-7, 12)]
        ['0.5000', '12.35', '12346', '1.500e-07', '12']
    """
    if value is None or isinstance(value, int):
        return "-" if value is None else f"{value:,}"
    size = abs(value)
    if size == 0.0 or not math.isfinite(size):
        return "0" if size == 0.0 else f"{value:g}"
    if not 1e-3 <= size < 1e6:
        return f"{value:.3e}"
    exponent = int(f"{size:.3e}".partition("e")[2])  # of the rounded number: 9.9999 is 10.00
    return f"{value:.{max(0, 3 - exponent)}f}"
