"""How well intervals and quantiles are calibrated, and how wide they are."""

from typing import Literal, TypeAlias

import torch
from torch import Tensor

from reghead._checks import check_choice, check_floating, check_last_dim, check_quantiles, check_shape
from reghead._reduction import counted_cells, trailing, widen
from reghead._typing import NanPolicy, Quantiles
from reghead.metrics._point import average

CrossingUnit: TypeAlias = Literal["pairs", "rows"]
"""What the share of crossings is taken of: neighbouring pairs, or rows with any crossing."""


def coverage(
    lower: Tensor,
    upper: Tensor,
    target: Tensor,
    *,
    weight: Tensor | None = None,
    mask: Tensor | None = None,
    nan_policy: NanPolicy = "propagate",
    per_output: bool = False,
) -> Tensor:
    r"""Share of targets inside their interval, its ends included.

    .. math:: \sum_i w_i 1\{l_i \le y_i \le u_i\} / \sum_i w_i

    A crossed interval (``lower > upper``) holds nothing.

    Args:
        lower: Lower ends, in the units of ``target``. Shape ``(*, D)``.
        upper: Upper ends. Shape ``(*, D)``.
        target: Observed values. Shape ``(*, D)``.
        weight: Non-negative weights, shape ``(*,)`` per row or ``(*, D)``.
        mask: True where a target counts. Shape ``(*,)`` or ``(*, D)``.
        nan_policy: ``"omit"`` treats a NaN target as missing; ``"propagate"`` returns NaN.
        per_output: Whether to return one value for each output.

    Returns:
        A scalar, or shape ``(D,)``. NaN where nothing counts, or an end is NaN.

    Raises:
        ValueError: If the shapes differ.

    Example:
        >>> import torch
        >>> lower, upper = torch.zeros(4, 1), torch.ones(4, 1)
        >>> coverage(lower, upper, torch.tensor([[0.0], [0.5], [1.0], [2.0]]))
        tensor(0.7500)
    """
    _check_ends(lower, upper)
    check_floating("target", target)
    check_shape("target", target, lower.shape, "of lower and upper")
    counted = counted_cells(target, weight, mask, nan_policy)
    inside = (lower <= target) & (target <= upper)
    return average(_known(inside, lower, upper, target), weight, counted, per_output)


def mean_width(
    lower: Tensor,
    upper: Tensor,
    *,
    weight: Tensor | None = None,
    mask: Tensor | None = None,
    per_output: bool = False,
) -> Tensor:
    r"""Mean width of intervals, in the units of their ends.

    .. math:: \sum_i w_i (u_i - l_i) / \sum_i w_i

    The sign stays: a crossed interval has a negative width, see :func:`crossing_rate`.

    Args:
        lower: Lower ends. Shape ``(*, D)``.
        upper: Upper ends. Shape ``(*, D)``.
        weight: Non-negative weights, shape ``(*,)`` per row or ``(*, D)``.
        mask: True where an interval counts. Shape ``(*,)`` or ``(*, D)``.
        per_output: Whether to return one value for each output.

    Returns:
        A scalar, or shape ``(D,)``. NaN where nothing counts.

    Raises:
        ValueError: If the shapes differ.

    Example:
        >>> import torch
        >>> mean_width(torch.tensor([[0.0], [1.0]]), torch.tensor([[4.0], [3.0]]))
        tensor(3.)
    """
    _check_ends(lower, upper)
    counted = counted_cells(lower, weight, mask, "propagate")
    return average(widen(upper) - widen(lower), weight, counted, per_output)


def crossing_rate(
    preds: Tensor, unit: CrossingUnit = "pairs", *, weight: Tensor | None = None, mask: Tensor | None = None
) -> Tensor:
    """Share of quantile predictions that are out of order.

    Args:
        preds: Predicted quantiles, by increasing level. Shape ``(*, D, Q)``.
        unit: ``"pairs"`` is the share of neighbouring levels in the wrong order, ``"rows"`` that of predictions of
            Q levels with any such pair. Equal neighbours are in order.
        weight: Non-negative weights, shape ``(*,)`` per row or ``(*, D)``.
        mask: True where a prediction counts. Shape ``(*,)`` or ``(*, D)``.

    Returns:
        A scalar. 0 with one level, NaN where nothing counts or a prediction is NaN.

    Example:
        >>> import torch
        >>> preds = torch.tensor([[[1.0, 2.0, 3.0]], [[1.0, 3.0, 2.0]]])
        >>> crossing_rate(preds), crossing_rate(preds, "rows")
        (tensor(0.2500), tensor(0.5000))
    """
    check_choice("unit", unit, ("pairs", "rows"))
    check_floating("preds", preds)
    if preds.ndim < 1 or preds.shape[-1] < 1:
        raise ValueError(f"preds must have shape (*, D, Q) with at least one level, got {tuple(preds.shape)}")
    cells = preds[..., 0]
    counted = counted_cells(cells, weight, mask, "propagate")
    if preds.shape[-1] == 1:
        crossed = _known(torch.zeros_like(cells, dtype=torch.bool), cells)
    else:
        pairs = _known(preds[..., 1:] < preds[..., :-1], preds[..., 1:], preds[..., :-1])
        crossed = pairs.mean(-1) if unit == "pairs" else pairs.amax(-1)
    return average(crossed, weight, counted, per_output=False)


def quantile_coverage(
    preds: Tensor,
    target: Tensor,
    quantiles: Quantiles,
    *,
    weight: Tensor | None = None,
    mask: Tensor | None = None,
    nan_policy: NanPolicy = "propagate",
    per_output: bool = False,
) -> Tensor:
    r"""Share of targets at or below each predicted quantile; calibrated predictions give the levels themselves.

    .. math:: c_\tau = \sum_i w_i 1\{y_i \le \hat q_{\tau, i}\} / \sum_i w_i

    Args:
        preds: Predicted quantiles, in the units of ``target``. Shape ``(*, D, Q)``.
        target: Observed values. Shape ``(*, D)``.
        quantiles: The Q levels, strictly increasing: what the result is to be compared with.
        weight: Non-negative weights, shape ``(*,)`` per row or ``(*, D)``.
        mask: True where a target counts. Shape ``(*,)`` or ``(*, D)``.
        nan_policy: ``"omit"`` treats a NaN target as missing; ``"propagate"`` returns NaN.
        per_output: Whether to return one row for each output.

    Returns:
        Shape ``(Q,)``, or ``(D, Q)``. NaN where nothing counts, or a prediction is NaN.

    Raises:
        ValueError: If ``preds`` does not have the shape of ``target`` followed by Q.

    Example:
        >>> import torch
        >>> preds, target = torch.tensor([[1.0, 3.0]]).expand(4, 2), torch.tensor([0.0, 2.0, 3.0, 4.0])
        >>> quantile_coverage(preds, target, [0.25, 0.75])
        tensor([0.2500, 0.7500])
    """
    levels = check_quantiles("quantiles", quantiles)
    check_floating("preds", preds)
    check_floating("target", target)
    check_last_dim("preds", preds, len(levels), "Q")
    check_shape("preds", preds, (*target.shape, len(levels)), "(*target.shape, Q)")
    counted = counted_cells(target, weight, mask, nan_policy)
    below = _known(target.unsqueeze(-1) <= preds, preds, target.unsqueeze(-1))
    shares = [
        average(below[..., q], weight, counted, per_output)  # one level at a time: the prefix rule is per target
        for q in range(len(levels))
    ]
    return torch.stack(shares, dim=-1)


def _check_ends(lower: Tensor, upper: Tensor) -> None:
    check_floating("lower", lower)
    check_floating("upper", upper)
    check_shape("upper", upper, lower.shape, "of lower")


def _known(event: Tensor, *of: Tensor) -> Tensor:
    """1 where ``event``, 0 where not, and NaN where a tensor that decides it is NaN."""
    known = widen(of[0])
    result = event.to(known.dtype)
    for tensor in of:
        result = torch.where(trailing(tensor.isnan(), event.ndim), torch.nan, result)
    return result
