"""Predictions against what was observed."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from reghead._checks import check_quantiles, check_shape
from reghead._typing import Quantiles
from reghead.functional import nearest_level
from reghead.plots._axes import (
    COLORS,
    GREY,
    MARKERS,
    Data,
    add_legend,
    as_tensor,
    label_with_units,
    make_axes,
    one_output,
)
from reghead.plots._categories import choose, group, with_count

if TYPE_CHECKING:
    import matplotlib.axes


def plot_predictions(
    preds: Data,
    target: Data,
    categories: Tensor | Sequence[object] | None = None,
    *,
    quantiles: Quantiles | None = None,
    max_categories: int = 7,
    units: str | None = None,
    ax: "matplotlib.axes.Axes | None" = None,
) -> "matplotlib.axes.Axes":
    """Each observed value above its prediction, with the line where they agree.

    The prediction is on the horizontal axis: a calibrated one has its observations centred on the line at every
    height, which is not so with the axes the other way (Piñeiro et al., "How to evaluate models: Observed vs. predicted
    or predicted vs. observed?", 2008). With ``quantiles`` a thin bar spans the outermost two, and the point is the one
    nearest the median: a point outside its bar is a target outside its interval.

    The categories with most rows have a colour and a marker each; the rest share a grey one, "21 others".
    Rows with a NaN target are not drawn.

    Args:
        preds: Predictions, in the units of ``target``. Shape of ``target``, or that followed by Q with ``quantiles``.
        target: Observed values of one output. Shape ``(B,)`` or ``(B, 1)``.
        categories: Label or id of each row; id 0 is "unknown".
        quantiles: The Q levels, strictly increasing; ``None`` for point predictions.
        max_categories: How many categories are told apart, the pool of the others among them: 2 to 7.
        units: Units of both axes.
        ax: Where to draw; a new figure by default.

    Raises:
        ValueError: If shapes do not fit, or a prediction of a known target is NaN.

    Example:
        >>> from matplotlib.figure import Figure
        >>> preds, target = torch.tensor([1.0, 2.0, 6.0]), torch.tensor([1.0, 3.0, 5.0])
        >>> ax = plot_predictions(preds, target, ["lake", "lake", "sea"], units="m", ax=Figure().subplots())
        >>> ax.get_xlabel(), [text.get_text() for text in ax.get_legend().get_texts()]
        ('predicted (m)', ['lake (2)', 'sea (1)'])
    """
    if max_categories > len(COLORS):
        raise ValueError(
            f"max_categories must be at most {len(COLORS)}, as many as can be told apart, got {max_categories}"
        )
    y = one_output("target", target)
    q = as_tensor(preds)
    levels = (0.5,) if quantiles is None else check_quantiles("quantiles", quantiles)
    shape = as_tensor(target).shape
    if quantiles is None:
        check_shape("preds", q, shape, "of target", "give quantiles where the last dimension is levels")
    else:
        check_shape("preds", q, (*shape, len(levels)), "(*target.shape, Q)")
    q = q.reshape(len(y), len(levels))
    known = ~y.isnan()
    if q[known].isnan().any():
        raise ValueError(f"preds must not be NaN where target is known, got {int(q[known].isnan().any(-1).sum())} rows")

    position, names = group([""] * len(y) if categories is None else categories, len(y))
    q, y, position = q[known], y[known], position[known]
    present, position, counts = torch.unique(position, return_inverse=True, return_counts=True)
    shown = choose(counts.tolist(), max_categories)
    series = [(with_count(names[int(present[i])], int(counts[i])), position == i) for i in shown.kept]
    if shown.pooled:
        rest = torch.isin(position, torch.tensor(shown.pooled))
        series.append((with_count(f"{len(shown.pooled)} others", int(rest.sum())), rest))

    ax = make_axes(ax, 6.4, 5.2)
    median = nearest_level(levels)
    # Many points need to be small and let each other through; few should be seen.
    size, alpha = (28.0, 0.9) if len(y) <= 100 else (14.0, 0.6) if len(y) <= 2000 else (6.0, 0.4)
    # Through a point of the data: one at 0 would stretch the axes down to it.
    center = float(q[:, median].median()) if len(q) else 0.0
    ax.axline((center, center), slope=1.0, color="black", linewidth=0.8, zorder=1)
    handles = []
    for i, (name, rows) in enumerate(series):
        pool = bool(shown.pooled) and i == len(series) - 1
        color, marker = (GREY, "o") if pool else (COLORS[i], MARKERS[i])
        point, observed = q[rows, median].numpy(), y[rows].numpy()
        if len(levels) > 1:
            ax.vlines(point, q[rows, 0].numpy(), q[rows, -1].numpy(), color=color, alpha=alpha / 3, linewidth=1.0)
        # The pool lies below: it is the background the named categories stand out from.
        marks = ax.scatter(point, observed, size, color, marker=marker, alpha=alpha, linewidths=0, label=name)
        marks.set_zorder(2 if pool else 3)
        handles.append(marks)
    ax.set(xlabel=label_with_units("predicted", units), ylabel=label_with_units("observed", units))
    largest = float(torch.cat([q.flatten(), y]).abs().max()) if len(y) else 0.0
    if 1e4 <= largest < 1e9:  # what matplotlib writes without separators
        ax.xaxis.set_major_formatter("{x:,.10g}")
        ax.yaxis.set_major_formatter("{x:,.10g}")
    if categories is not None:
        add_legend(ax, handles, [name for name, _ in series], loc="upper left")  # the line leaves it free
    return ax
