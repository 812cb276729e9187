"""How often targets fall between neighbouring quantiles, beside what chance allows."""

from typing import TYPE_CHECKING

from reghead._typing import Quantiles
from reghead.metrics import pit_histogram
from reghead.plots._axes import BAND, COLORS, Data, add_legend, known_quantiles, make_axes
from reghead.plots._calibration import scatter_by_chance

if TYPE_CHECKING:
    import matplotlib.axes


def plot_pit(
    preds: Data, target: Data, quantiles: Quantiles, *, ax: "matplotlib.axes.Axes | None" = None
) -> "matplotlib.axes.Axes":
    """Histogram of the probability integral transform: the targets between neighbouring quantiles.

    A bin lies between two levels, and its bar has the height at which its area is its share of the targets: calibrated
    predictions make all bars 1 high. The grey box of a bin holds 95 % of the heights that chance makes of as many
    independent targets (exact binomial); a height outside it is a diamond of another colour. High outer bars mean
    intervals too narrow, low ones too wide, a slope means biased predictions. Rows with a NaN target are left out.
    See :func:`~reghead.metrics.pit_histogram`.

    Args:
        preds: Predicted quantiles, in the units of ``target``, whose shape is followed by Q.
        target: Observed values of one output. Shape ``(B,)`` or ``(B, 1)``.
        quantiles: The Q levels, strictly increasing.
        ax: Where to draw; a new figure by default.

    Raises:
        ValueError: If shapes do not fit, no target is known, or a prediction of a known target is NaN.

    Example:
        >>> from matplotlib.figure import Figure
        >>> preds, target = torch.tensor([[1.0, 3.0]]).expand(4, 2), torch.tensor([0.0, 2.0, 2.5, 2.8])
        >>> ax = plot_pit(preds, target, [0.25, 0.75], ax=Figure().subplots())
        >>> ax.patches[-1].get_data().values.tolist()  # 1 / 4 over 0.25, 3 / 4 over 0.5, and nothing above
        [1.0, 1.5, 0.0]
    """
    q, y, levels = known_quantiles(preds, target, quantiles)
    histogram = pit_histogram(q, y, levels)

    ax = make_axes(ax)
    edges = histogram.edges.tolist()
    heights, low, high = ((v / histogram.expected).tolist() for v in (histogram.counts, histogram.low, histogram.high))
    widths, left = histogram.edges.diff(), edges[:-1]
    tall = [top - bottom for bottom, top in zip(low, high, strict=True)]
    gap = min(0.8, 20.0 * float(widths.min()))
    band = ax.bar(left, tall, widths.tolist(), low, align="edge", color=BAND, edgecolor="white", linewidth=gap)
    line = ax.axhline(1.0, color="black", linewidth=0.8, zorder=2)
    ax.stairs(heights, edges, baseline=None, color=COLORS[0], linewidth=1.2, zorder=2.5)
    middles = (histogram.edges[:-1] + 0.5 * widths).tolist()
    # In points, so that neighbours do not touch where levels are close.
    size = min(5.3, max(2.0, 280.0 * float(widths.min()))) ** 2
    points, texts = scatter_by_chance(ax, middles, heights, heights, list(zip(low, high, strict=True)), size)
    ax.set(xlim=(0.0, 1.0), ylim=(0.0, 1.08 * max(*heights, *high)))
    ax.set(xlabel="level (probability integral transform)", ylabel=f"share of {len(y):,} targets / width of the bin")
    texts = ["calibrated", "95 % by chance", *texts]
    add_legend(ax, [line, band, *points], texts, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=4)
    return ax
