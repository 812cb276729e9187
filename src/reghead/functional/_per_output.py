"""A loss of its own for every output column."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from reghead._checks import check_choice, check_floating, check_same_shape, check_shape
from reghead._reduction import counted_cells, trailing, widen
from reghead._typing import NanPolicy, Reduction
from reghead.functional._columns import Columns, Layout
from reghead.functional._hubers import ONE_SIDED, TWO_SIDED, columns_of
from reghead.functional._loss_types import LOSS_TYPES, LossSpec
from reghead.functional._parameters import constant
from reghead.functional._pinball import check_quantile_shape
from reghead.functional._product import floats, in_one_pass, shares_of, weighted_sum, wide_dtype


def per_output_loss(
    preds: Tensor,
    target: Tensor,
    losses: Mapping[str | int, LossSpec],
    outputs: Sequence[str] | None = None,
    default: LossSpec = "huber",
    *,
    log_variance: Tensor | None = None,
    weight: Tensor | None = None,
    mask: Tensor | None = None,
    nan_policy: NanPolicy = "propagate",
    reduction: Reduction = "mean",
) -> Tensor:
    r"""A loss of its own for every output column; the mean over columns of each column's own mean.

    .. math:: L = \frac{\sum_d a_d \, t_d}{\sum_d a_d}, \qquad
        t_d = m_d = \frac{\sum_i w_{id} \, \ell_d(y_{id}, \hat y_{id})}{\sum_i w_{id}}

    with the column's loss :math:`\ell_d` and its ``"weight"`` :math:`a_d`. Both sums run over what counts: a column
    with no cell that counts is not counted itself. So a column with few observed cells weighs as much as a full
    one, unlike in the mean over all cells.

    With ``log_variance`` :math:`s` a column's term is :math:`t_d = (e^{-s_d} m_d + s_d) / 2`, after Kendall, Gal and
    Cipolla, "Multi-Task Learning Using Uncertainty to Weigh Losses", 2018, eq. 7. It may be negative. With
    :math:`s_d = \log m_d`, where it is least, the unit of a target does not matter to the gradients if its loss scales
    with a power of the unit, as ``"mse"``, ``"mae"``, ``"quantile"``, ``"expectile"`` and ``"asymmetric"`` do. The
    losses that turn from square to linear do not: give ``delta`` of ``"huber"``, ``"huber_quantile"`` and
    ``"asymmetric"`` with ``base="huber"`` in the new unit too; ``"log_cosh"`` has its turn at 1.

    If any column has a quantile loss, ``preds`` holds the union of all levels, in increasing order. A quantile
    column uses its own levels and averages over them, a column with a point loss uses the level nearest 0.5, and
    the other places get a gradient of exactly zero.

    Args:
        preds: Predictions, in the units of ``target``. Shape ``(*, D)``, or ``(*, D, Q)`` with quantiles.
        target: Observed values. Shape ``(*, D)``.
        losses: Output, by name or index, to a loss: a type (``"mse"``, ``"mae"``, ``"huber"``, ``"quantile"``,
            ``"asymmetric"``, ``"expectile"``, ``"log_cosh"``, ``"huber_quantile"``), or a mapping with ``"type"``, any
            parameters of that type, and ``"weight"``.
        outputs: Names of the D outputs, in their order.
        default: Loss of the columns that ``losses`` does not name.
        log_variance: Logarithm :math:`s` of each column's noise variance. Shape ``(D,)``.
        weight: Non-negative weights, shape ``(*,)`` per row or ``(*, D)``; each column's mean divides by their sum.
        mask: True where a target counts. Shape ``(*,)`` or ``(*, D)``.
        nan_policy: ``"omit"`` treats a NaN target as missing; ``"propagate"`` returns NaN.
        reduction: ``"mean"``; ``"none"`` for the weighted terms of the cells, shape ``(*, D)``; ``"sum"`` of these.

    Raises:
        TypeError: If a spec is neither a type nor a mapping with ``"type"``.
        ValueError: If an output, a type or a parameter is unknown, or a shape does not fit.

    Example:
        >>> preds, target = torch.tensor([[1.0, 5.0]]), torch.tensor([[3.0, 2.0]])
        >>> per_output_loss(preds, target, {"pH": "mse", "yield": "mae"}, outputs=["pH", "yield"])  # (4 + 3) / 2
        tensor(3.5000)
    """
    return reduce_columns(
        preds,
        target,
        Columns.parse(losses, outputs, default).layout(target.shape),
        log_variance=log_variance,
        weight=weight,
        mask=mask,
        nan_policy=nan_policy,
        reduction=reduction,
    )


def reduce_columns(
    preds: Tensor,
    target: Tensor,
    layout: Layout,
    *,
    log_variance: Tensor | None,
    weight: Tensor | None,
    mask: Tensor | None,
    nan_policy: NanPolicy,
    reduction: Reduction,
) -> Tensor:
    """:func:`per_output_loss` with ``losses``, ``outputs`` and ``default`` read already into ``layout``."""
    check_choice("reduction", reduction, ("none", "mean", "sum"))
    check_floating("preds", preds)
    check_floating("target", target)
    if layout.quantiles is None:
        check_same_shape(preds, target)
    else:
        check_quantile_shape(preds, target, len(layout.quantiles))
    learned = log_variance is not None or reduction == "none" or not in_one_pass(preds, target, weight, mask)
    if not learned and layout.hubers is not None:
        share_and_counted = shares_of(preds, target, weight, mask, nan_policy)
        reduced = _in_one_pass(preds, target, layout, *share_and_counted, reduction)
        if reduced is not None:
            return reduced
    counted = counted_cells(target, weight, mask, nan_policy)
    if weight is not None:
        weight = trailing(widen(weight), target.ndim)
    # From here on the columns stand by kind of loss, and one gather leads there: the work on tensors does not depend
    # on how many columns there are, as it would in the backward pass of a slice for each.
    order = layout.order
    preds = _gather(preds if layout.quantiles is None else preds.flatten(-2), layout.places)
    target = _gather(target, order)
    counted = None if counted is None else _gather(counted, order)
    cells = _cells(preds, target, layout, counted)
    if log_variance is not None:
        check_shape("log_variance", log_variance, target.shape[-1:], "(D,)")
        log_variance = _gather(widen(log_variance), order)
        cells = 0.5 * (cells * torch.exp(-log_variance) + log_variance)
    share = cells.new_ones(()) if weight is None else weight.to(cells.dtype)
    if share.ndim and share.shape[-1] == target.shape[-1]:
        share = _gather(share, order)
    if counted is not None:
        # Before any product: what does not count sends no gradient, not even into log_variance.
        cells = torch.where(counted, cells, 0.0)
        share = torch.where(counted, share, 0.0)
    importance = constant([layout.weights[d] for d in order], cells.dtype, cells.device)
    if reduction == "none":
        return _gather(cells * share * importance, layout.inverse)
    width = target.shape[-1]
    sums = (cells * share).reshape(-1, width).sum(0)
    if reduction == "sum":
        return (sums * importance).sum()
    shares = share.expand(target.shape).reshape(-1, width).sum(0)
    seen = shares != 0
    means = sums / torch.where(seen, shares, 1.0)
    importance = torch.where(seen, importance, 0.0)
    total = importance.sum()
    return (importance * means).sum() / torch.where(total == 0, 1.0, total)


def _in_one_pass(
    preds: Tensor, target: Tensor, layout: Layout, share: Tensor | None, counted: Tensor | None, reduction: Reduction
) -> Tensor | None:
    """All columns at once: what a cell of a column counts for in the mean goes into the penalties of the column.

    ``None`` where that leaves the range of the dtype: with weights of 1e-30, say.
    """
    dtype = wide_dtype(preds, target)
    columns = torch.as_tensor(columns_of(layout.hubers, dtype)).to(preds.device, dtype)  # type: ignore[arg-type]
    importance = columns.new_tensor(layout.weights)
    penalty = columns[3]
    if reduction == "sum":
        penalty *= importance
    else:
        sums = columns.new_full(importance.shape, preds.numel() / preds.shape[-1])
        if share is not None or counted is not None:
            counts = share if share is not None else floats(counted, dtype)  # type: ignore[arg-type]
            sums *= counts.reshape(-1, counts.shape[-1]).sum(0) * (counts.shape[-1] / counts.numel())
        seen = torch.where(sums != 0, importance, 0.0)
        total = seen.sum()
        penalty *= seen / torch.where(total == 0, 1.0, total)
        penalty /= torch.where(sums == 0, 1.0, sums)
        columns = torch.cat([columns, sums.unsqueeze(0)])  # looked at below
    if columns.device.type == "cpu" and not columns.isfinite().all():
        return None
    product = TWO_SIDED if layout.symmetric else ONE_SIDED
    return weighted_sum(product, preds, target, columns[:5], share, counted, 1.0)


def _cells(preds: Tensor, target: Tensor, layout: Layout, counted: Tensor | None) -> Tensor:
    """The loss of every cell, with one call for each kind of loss. Shape ``(*, D)``, in the order of the layout."""
    sizes = [group.width for group in layout.groups]
    widths = [group.width * max(len(group.quantiles), 1) for group in layout.groups]
    preds_of, target_of = torch.split(preds, widths, -1), torch.split(target, sizes, -1)
    counted_of = [None] * len(sizes) if counted is None else torch.split(counted, sizes, -1)
    parts = []
    for group, p, t, c in zip(layout.groups, preds_of, target_of, counted_of, strict=True):
        if group.quantiles:
            p = p.reshape(*t.shape, len(group.quantiles))
        part = LOSS_TYPES[group.kind].function(p, t, **group.parameters, mask=c, reduction="none")
        parts.append(part.mean(-1) if group.quantiles else part)
    return parts[0] if len(parts) == 1 else torch.cat(parts, -1)


def _gather(tensor: Tensor, places: list[int]) -> Tensor:
    """``tensor[..., places]``, without a copy where that is all of it in order."""
    if places == list(range(tensor.shape[-1])):
        return tensor
    return tensor.index_select(-1, constant(places, torch.int64, tensor.device))
