"""How often targets are inside intervals and below quantiles, beside what chance allows."""

import itertools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from reghead._checks import check_number
from reghead._typing import Quantiles
from reghead.metrics import CategoryReport, category_report, quantile_coverage
from reghead.metrics._binomial import binomial_band
from reghead.plots._axes import (
    BAND,
    COLORS,
    Data,
    add_legend,
    height_of,
    known_quantiles,
    make_axes,
    one_output,
    set_rows,
)
from reghead.plots._categories import choose, with_count

if TYPE_CHECKING:
    import matplotlib.axes


def plot_coverage(
    data: CategoryReport | Sequence[Mapping[str, Any]] | tuple[Data, Data, Data, Tensor | Sequence[object]],
    confidence_level: float | None = None,
    *,
    max_categories: int = 30,
    ax: "matplotlib.axes.Axes | None" = None,
) -> "matplotlib.axes.Axes":
    """Share of targets inside their interval by category, beside what chance alone allows.

    The grey bar of a category with n targets holds 95 % of the shares that n independent targets have when each is
    covered with the nominal probability (exact binomial); a share outside it is a diamond of another colour. Of 30
    categories one is expected to be outside by chance.

    Categories are sorted by count. Beyond ``max_categories`` rows the smallest are pooled into "12 others";
    those without targets are not drawn.

    Args:
        data: What :func:`~reghead.metrics.category_report` returns, rows of its ``categories`` with one output, or a
            tuple ``(lower, upper, target, labels)`` of one output, each of shape ``(B,)`` or ``(B, 1)``.
        confidence_level: What the intervals should cover; taken from the report where left out.
        max_categories: How many rows are drawn at most.
        ax: Where to draw; a new figure by default.

    Raises:
        ValueError: If there is nothing to draw, several outputs, a NaN coverage, or no confidence level.

    Example:
        >>> from matplotlib.figure import Figure
        >>> lower, upper, target = torch.zeros(4), torch.ones(4), torch.tensor([0.5, 0.5, 2.0, 0.5])
        >>> ax = plot_coverage((lower, upper, target, ["a", "a", "a", "b"]), 0.5, ax=Figure().subplots())
        >>> [text.get_text() for text in ax.get_yticklabels()]
        ['a (3)', 'b (1)']
    """
    rows, level = _coverage_rows(data, confidence_level)
    counts = [row["count"] for row in rows]
    shown = choose(counts, max_categories)
    names = [with_count(_name(rows[i]), counts[i]) for i in shown.kept]
    shares = [(rows[i]["coverage"], counts[i]) for i in shown.kept]
    if shown.pooled:
        total = sum(counts[i] for i in shown.pooled)
        names.append(with_count(f"{len(shown.pooled)} others", total))
        shares.append((sum(rows[i]["coverage"] * counts[i] for i in shown.pooled) / total, total))

    ax = make_axes(ax, 6.4, height_of(len(shares)))
    bands = [binomial_band(n, level) for _, n in shares]
    height = range(len(shares))
    widths, left = [high - low for low, high in bands], [low for low, _ in bands]
    band = ax.barh(height, widths, left=left, height=0.8, color=BAND, zorder=1)
    line = ax.axvline(level, color="black", linewidth=0.8, zorder=2)
    covered = [share for share, _ in shares]
    points, texts = scatter_by_chance(ax, covered, height, covered, bands, 24.0)
    set_rows(ax, names)
    ends = [end for pair in bands for end in pair] + covered
    ax.set_xlim(min(ends) - 0.03, max(ends) + 0.03)
    ax.set_xlabel("share of targets inside their interval")
    texts = [f"nominal ({level:g})", "95 % by chance", *texts]
    add_legend(ax, [line, band, *points], texts, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2)
    return ax


def plot_calibration(
    preds: Data,
    target: Data,
    quantiles: Quantiles,
    *,
    ax: "matplotlib.axes.Axes | None" = None,
) -> "matplotlib.axes.Axes":
    """Share of targets at or below each predicted quantile, against the level it should be.

    The grey bar at a level holds 95 % of the shares that as many independent targets have when the predictions are
    calibrated (exact binomial); a share outside it is a diamond of another colour. Points below the line at all levels
    mean predictions too low; below at low levels and above at high ones, intervals too wide. Rows with a NaN target
    are left out.

    Args:
        preds: Predicted quantiles, in the units of ``target``, whose shape is followed by Q.
        target: Observed values of one output. Shape ``(B,)`` or ``(B, 1)``.
        quantiles: The Q levels, strictly increasing.
        ax: Where to draw; a new figure by default.

    Raises:
        ValueError: If shapes do not fit, no target is known, or a prediction of a known target is NaN.

    Example:
        >>> from matplotlib.figure import Figure
        >>> preds, target = torch.tensor([[1.0, 3.0]]).expand(4, 2), torch.tensor([0.0, 2.0, 3.0, 4.0])
        >>> ax = plot_calibration(preds, target, [0.25, 0.75], ax=Figure().subplots())
        >>> ax.collections[-1].get_offsets().tolist()
        [[0.25, 0.25], [0.75, 0.75]]
    """
    q, y, levels = known_quantiles(preds, target, quantiles)
    observed, count = quantile_coverage(q, y, levels), len(y)

    ax = make_axes(ax, 5.2, 5.2)
    bands = [binomial_band(count, level) for level in levels]
    low, high = zip(*bands, strict=True)
    # In points, to be wider than the dots at any size of the axes, and yet apart where levels are close.
    apart = min((b - a for a, b in itertools.pairwise(levels)), default=1.0)
    width = min(14.0, max(3.0, 240.0 * apart))
    band = ax.vlines(levels, low, high, color=BAND, linewidth=width, zorder=1)
    line = ax.axline((0.0, 0.0), slope=1.0, color="black", linewidth=0.8, zorder=2)
    size = min(5.3, 0.6 * width) ** 2
    points, texts = scatter_by_chance(ax, levels, observed.tolist(), observed.tolist(), bands, size)
    ax.set(xlim=(0.0, 1.0), ylim=(0.0, 1.0), aspect="equal")
    ax.set(xlabel="level", ylabel=f"share of {count:,} targets at or below the quantile")
    add_legend(ax, [line, band, *points], ["calibrated", "95 % by chance", *texts], loc="upper left")
    return ax


def scatter_by_chance(
    ax: "matplotlib.axes.Axes",
    x: Sequence[float],
    y: Sequence[float],
    shares: Sequence[float],
    bands: Sequence[tuple[float, float]],
    size: float,
) -> tuple[list[Any], list[str]]:
    """Points at ``x`` and ``y``, those whose share is outside its band as diamonds; what a legend says of them."""
    # A share and an end of its band are the same count over n; the margin is for their different roundings.
    inside = [low - 1e-9 <= share <= high + 1e-9 for share, (low, high) in zip(shares, bands, strict=True)]
    handles, texts = [], []
    for is_inside, color, marker, text in ((True, COLORS[0], "o", "within"), (False, COLORS[1], "D", "outside")):
        chosen = [i for i, value in enumerate(inside) if value is is_inside]
        if chosen:
            places = [x[i] for i in chosen], [y[i] for i in chosen]
            handles.append(ax.scatter(*places, s=size, color=color, marker=marker, zorder=3, label=text))
            texts.append(text)
    return handles, texts


def _coverage_rows(data: Any, confidence_level: float | None) -> tuple[list[Mapping[str, Any]], float]:
    """Rows of a report that have targets, of one output, and the level they should cover."""
    if confidence_level is not None:
        check_number("confidence_level", confidence_level, above=0.0, below=1.0)
    if isinstance(data, CategoryReport):
        data = data.categories
    elif isinstance(data, tuple) and len(data) == 4 and not isinstance(data[0], Mapping):
        if confidence_level is None:
            raise ValueError("confidence_level must be given with intervals, such as 0.8 for quantiles 0.1 and 0.9")
        lower, upper, y = (one_output(n, d) for n, d in zip(("lower", "upper", "target"), data[:3], strict=True))
        tail = (1.0 - confidence_level) / 2.0
        ends = torch.stack([lower, upper], dim=-1)
        labels = {"category": data[3]}
        data = category_report(ends, y, labels, quantiles=(tail, 1.0 - tail), nan_policy="omit").categories
    rows = [row for row in data if row["count"]]
    if not rows:
        raise ValueError("data must have at least one category with a target, got none")
    if len({row["output"] for row in rows}) > 1:
        raise ValueError("data must be of one output; choose the rows of report.categories by row['output']")
    if "coverage" not in rows[0]:
        raise ValueError("data must have a coverage; give category_report two quantiles or more")
    for row in rows:
        if row["coverage"] != row["coverage"]:
            raise ValueError(f"the coverage of {_name(row)!r} is NaN: a prediction, or a target not left out, is NaN")
    level = rows[0]["confidence_level"]
    if confidence_level is not None and abs(level - confidence_level) > 1e-9:
        raise ValueError(f"confidence_level is {confidence_level}, while the report is about {level}; leave it out")
    return rows, level


def _name(row: Mapping[str, Any]) -> str:
    """The category, or the combination of categories, of a row: what stands in it before the output."""
    labels = list(row.values())[: list(row).index("output")]
    return ", ".join("missing" if label is None else str(label) for label in labels)
