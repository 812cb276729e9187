"""How a training went."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from reghead.plots._axes import COLORS, add_legend, drawable, label_with_units, make_axes

if TYPE_CHECKING:
    import matplotlib.axes

STYLES = ("-", "--", ":", "-.")


def plot_history(
    history: Mapping[str, Sequence[float]],
    *,
    units: str | None = None,
    log: bool = False,
    ax: "matplotlib.axes.Axes | None" = None,
) -> "matplotlib.axes.Axes":
    """Curves of training, one value per epoch, the first at epoch 1.

    Curves share one axis, so draw what has the same units: losses here, coverage in another figure. A value that is
    not finite is a gap, and a cross on the horizontal axis says where.

    Args:
        history: Name of a curve to its values.
        units: Units of the values.
        log: Whether the vertical axis is logarithmic.
        ax: Where to draw; a new figure by default.

    Raises:
        ValueError: If there is no curve, or one is not one-dimensional.

    Example:
        >>> from matplotlib.figure import Figure
        >>> ax = plot_history({"train": [3.0, 2.0], "validation": [4.0, 3.5]}, units="m", ax=Figure().subplots())
        >>> ax.lines[1].get_xydata().tolist(), ax.get_ylabel()
        ([[1.0, 4.0], [2.0, 3.5]], 'value (m)')
    """
    if not history:
        raise ValueError("history must have at least one curve, such as {'train': [0.9, 0.7]}, got none")
    curves = {name: np.array(values, dtype=np.float64) for name, values in history.items()}
    for name, values in curves.items():
        if values.ndim != 1:
            raise ValueError(f"history[{name!r}] must hold one value per epoch, got shape {values.shape}")
    ax = make_axes(ax)
    handles = []
    for i, values in enumerate(curves.values()):
        color, style = COLORS[i % len(COLORS)], STYLES[(i % len(COLORS) + i // len(COLORS)) % len(STYLES)]
        epochs = np.arange(1, len(values) + 1)
        finite = np.isfinite(values)
        # A value alone between gaps, or in the only epoch, has no line to see.
        marker = "" if len(values) > 1 and finite.all() else "o"
        handles += ax.plot(
            epochs, np.where(finite, values, np.nan), style, marker=marker, markersize=4.0, color=color, linewidth=1.6
        )
        if not finite.all():
            at = ax.get_xaxis_transform()
            bad = epochs[~finite]
            ax.scatter(bad, np.zeros(len(bad)), marker="x", s=50, color=color, transform=at, clip_on=False, zorder=3)
    if log:
        ax.set_yscale("log")
    ax.locator_params(axis="x", integer=True)
    ax.set(xlabel="epoch", ylabel=label_with_units("value", units))
    add_legend(ax, handles, [drawable(name) for name in curves], loc="upper right")  # losses fall
    return ax
