"""What every figure shares: colours, new Axes, names that are drawn as written, a legend."""

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from reghead._checks import check_quantiles, check_shape
from reghead._optional import import_optional
from reghead._typing import Quantiles

if TYPE_CHECKING:
    import matplotlib.axes

Data: TypeAlias = Tensor | npt.NDArray[Any] | Sequence[float]

# Okabe and Ito's palette without its yellow, which a white page swallows. Lines and markers differ in shape too.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "D", "^", "s", "v", "P", "X")
GREY = "0.6"
BAND = "0.85"
WIDEST_NAME = 28


def make_axes(ax: "matplotlib.axes.Axes | None", width: float = 6.4, height: float = 4.8) -> "matplotlib.axes.Axes":
    """``ax``, or the Axes of a new figure of this size in inches."""
    if ax is not None:
        return ax
    pyplot = import_optional("matplotlib.pyplot", "plots")
    new: matplotlib.axes.Axes = pyplot.subplots(figsize=(width, height), layout="constrained")[1]
    return new


def height_of(rows: int) -> float:
    """Inches for a figure with one line of text per row."""
    return max(2.8, 1.6 + 0.22 * rows)


def as_tensor(data: Data) -> Tensor:
    """``data`` as a float64 tensor on the CPU."""
    if isinstance(data, Tensor):
        return data.detach().cpu().double()
    return torch.from_numpy(np.array(data, dtype=np.float64))


def one_output(name: str, target: Data) -> Tensor:
    """``target`` of shape ``(B,)`` or ``(B, 1)`` as float64 of shape ``(B,)``."""
    result = as_tensor(target)
    if result.ndim == 2 and result.shape[1] == 1:
        result = result[:, 0]
    if result.ndim != 1:
        raise ValueError(f"{name} must have shape (B,) or (B, 1), got {tuple(result.shape)}; draw one output at a time")
    return result


def known_quantiles(preds: Data, target: Data, quantiles: Quantiles) -> tuple[Tensor, Tensor, tuple[float, ...]]:
    """Predictions of shape ``(n, Q)`` and targets of shape ``(n,)`` where a target is known, and the levels."""
    levels = check_quantiles("quantiles", quantiles)
    q, y = as_tensor(preds), as_tensor(target)
    check_shape("preds", q, (*y.shape, len(levels)), "(*target.shape, Q)")
    y = one_output("target", y)
    known = ~y.isnan()
    if not known.any():
        raise ValueError("target must have at least one known value to compare with, got none")
    q = q.reshape(len(y), len(levels))[known]
    if q.isnan().any():
        raise ValueError("preds must not be NaN where target is known")
    return q, y[known], levels


def label_with_units(text: str, units: str | None) -> str:
    """``text``, and the units in brackets where there are any."""
    return text if units is None else f"{text} ({units})"


def drawable(name: object) -> str:
    """``name`` on one line, cut in its middle where it is long, so that its number survives, dollars as dollars."""
    text = " ".join(str(name).split())
    if len(text) > WIDEST_NAME:
        text = f"{text[: WIDEST_NAME - 11]}…{text[-10:]}"
    return text.replace("$", r"\$")


def set_rows(ax: "matplotlib.axes.Axes", names: Sequence[str]) -> None:
    """Name the rows 0, 1, ... of ``ax`` from the top down."""
    ax.set_yticks(range(len(names)), names, fontsize=8)
    ax.set_ylim(len(names) - 0.4, -0.6)


def add_legend(ax: "matplotlib.axes.Axes", handles: Iterable[Any], names: Sequence[str], **place: Any) -> None:
    """A legend with ``names`` as they are; matplotlib would drop one that starts with an underscore."""
    legend = ax.legend(list(handles), [" "] * len(names), frameon=False, fontsize=8, **place)
    for text, name in zip(legend.get_texts(), names, strict=True):
        text.set_text(name)
    for handle in legend.legend_handles:
        if handle is not None:
            handle.set_alpha(1.0)  # small and faint marks make a legend that nobody can read
        if isinstance(handle, import_optional("matplotlib.collections", "plots").PathCollection):
            handle.set_sizes([28.0])
