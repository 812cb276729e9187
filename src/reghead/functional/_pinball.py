"""Losses of predicted quantiles."""

from typing import Any

import torch
from torch import Tensor

from reghead._checks import check_choice, check_floating, check_shape
from reghead._reduction import counted_cells, reduce, residual, trailing, widen
from reghead._typing import NanPolicy, Quantiles, Reduction
from reghead.functional._parameters import check_parameter, constant
from reghead.functional._pointwise import huber


def pinball_loss(
    preds: Tensor,
    target: Tensor,
    quantiles: Quantiles,
    *,
    weight: Tensor | None = None,
    mask: Tensor | None = None,
    nan_policy: NanPolicy = "propagate",
    reduction: Reduction = "mean",
) -> Tensor:
    r"""Pinball (quantile) loss.

    .. math:: \ell_\tau(y, \hat q) = \max\{\tau (y - \hat q), (\tau - 1)(y - \hat q)\}

    Koenker and Bassett, "Regression Quantiles", 1978. The mean over the levels is that of scikit-learn's
    ``mean_pinball_loss``. Where :math:`y = \hat q` the gradient is :math:`1/2 - \tau`, the middle of the
    subgradients; the second derivative is 0.

    Args:
        preds: Predicted quantiles, in the units of ``target``. Shape ``(*, D, Q)``.
        target: Observed values. Shape ``(*, D)``.
        quantiles: Levels :math:`\tau`, strictly between 0 and 1: floats, or a tensor of shape ``(Q,)``, whose
            values are not looked at.
        weight: Non-negative weights, shape ``(*,)`` per row or ``(*, D)``; the mean divides by their sum.
        mask: True where a target counts. Shape ``(*,)`` or ``(*, D)``.
        nan_policy: ``"omit"`` treats a NaN target as missing; ``"propagate"`` returns NaN.
        reduction: ``"mean"``, ``"sum"``, or ``"none"`` for shape ``(*, D, Q)``.

    Raises:
        ValueError: If ``preds`` does not have the shape of ``target`` followed by ``Q``, or ``quantiles`` are not
            increasing levels between 0 and 1.

    Example:
        >>> preds, target = torch.tensor([[[1.0, 3.0]]]), torch.tensor([[2.0]])
        >>> pinball_loss(preds, target, [0.1, 0.9])
        tensor(0.1000)
    """
    check_choice("reduction", reduction, ("none", "mean", "sum"))
    shift = check_levels(preds, target, quantiles) - 0.5
    learned = shift.requires_grad or (weight is not None and weight.requires_grad)
    if reduction == "none" or learned or torch.compiler.is_compiling():
        # Plain operations: a compiler fuses them by itself, and they reach the levels and weights as well.
        error, counted = residual(preds, target, weight, mask, nan_policy)
        return reduce(pinball(error, shift), weight, counted, reduction)
    share = counted = counted_cells(target, weight, mask, nan_policy)
    if weight is not None:
        share = trailing(weight.to(shift.dtype), target.ndim)
        if counted is not None and (mask is not None or nan_policy == "omit"):
            share = torch.where(counted, share, 0.0)
    total: Tensor = _PinballSum.apply(preds, target, shift, share)[0]  # type: ignore[no-untyped-call]
    if reduction == "sum":
        return total
    if share is None:
        return total / max(preds.numel(), 1)
    denominator = share.expand(target.shape).sum(dtype=total.dtype) * preds.shape[-1]
    return total / torch.where(denominator == 0, 1.0, denominator)


def huber_pinball_loss(
    preds: Tensor,
    target: Tensor,
    quantiles: Quantiles,
    delta: float = 1.0,
    *,
    weight: Tensor | None = None,
    mask: Tensor | None = None,
    nan_policy: NanPolicy = "propagate",
    reduction: Reduction = "mean",
) -> Tensor:
    r"""Pinball loss with the Huber function near the target: smooth, for gradients that fade at the optimum.

    .. math:: \ell_\tau(y, \hat q) = |\tau - 1\{e < 0\}| \, \frac{H_\delta(e)}{\delta}, \qquad e = y - \hat q

    with :math:`H_\delta` of :func:`huber_loss`. Dabney et al., "Distributional Reinforcement Learning with Quantile
    Regression", 2018, eq. 10. The knots are at :math:`\pm\delta` for every level, and the loss tends to the pinball
    loss as :math:`\delta \to 0`.

    Args:
        preds: Predicted quantiles, in the units of ``target``. Shape ``(*, D, Q)``.
        target: Observed values. Shape ``(*, D)``.
        quantiles: Levels :math:`\tau`, strictly between 0 and 1: floats, or a tensor of shape ``(Q,)``, whose
            values are not looked at.
        delta: Where the loss turns linear, in the units of ``target``.
        weight: Non-negative weights, shape ``(*,)`` per row or ``(*, D)``; the mean divides by their sum.
        mask: True where a target counts. Shape ``(*,)`` or ``(*, D)``.
        nan_policy: ``"omit"`` treats a NaN target as missing; ``"propagate"`` returns NaN.
        reduction: ``"mean"``, ``"sum"``, or ``"none"`` for shape ``(*, D, Q)``.

    Raises:
        ValueError: If ``preds`` does not have the shape of ``target`` followed by ``Q``, ``quantiles`` are not
            increasing levels between 0 and 1, or ``delta`` is not positive.

    Example:
        >>> preds, target = torch.tensor([[[1.0, 3.0]]]), torch.tensor([[2.0]])
        >>> huber_pinball_loss(preds, target, [0.1, 0.9], delta=1.0)
        tensor(0.0500)
    """
    delta = check_parameter("delta", delta)
    tau = check_levels(preds, target, quantiles)
    error, counted = residual(preds, target, weight, mask, nan_policy)
    return reduce(torch.where(error < 0, 1.0 - tau, tau) * huber(error, delta) / delta, weight, counted, reduction)


def pinball(error: Tensor, shift: Tensor) -> Tensor:
    r"""The pinball loss of errors :math:`y - \hat q`, with ``shift`` the levels less a half.

    As slope times error: no two terms cancel, so an infinite error gives an infinite loss and not NaN.
    """
    return error * (0.5 * error.sign() + shift)


def check_levels(preds: Tensor, target: Tensor, quantiles: Quantiles) -> Tensor:
    """The levels as a tensor of shape ``(Q,)``, in the dtype of the errors, once they fit ``preds`` and ``target``."""
    check_floating("preds", preds)
    check_floating("target", target)
    dtype = torch.promote_types(torch.float32, torch.promote_types(preds.dtype, target.dtype))
    if isinstance(quantiles, Tensor):
        if quantiles.ndim != 1:
            raise ValueError(f"quantiles must have shape (Q,), got {tuple(quantiles.shape)}")
        levels = quantiles.to(dtype)
    else:
        levels = constant(check_parameter("quantiles", quantiles), dtype, preds.device)
    check_quantile_shape(preds, target, levels.shape[0])
    return levels


def check_quantile_shape(preds: Tensor, target: Tensor, levels: int) -> None:
    """Raise unless ``preds`` has the shape of ``target`` followed by the number of levels."""
    hint = ""
    if target.ndim and preds.shape == (*target.shape[:-1], target.shape[-1] * levels):
        hint = f"a flat head needs unflatten(-1, ({target.shape[-1]}, {levels}))"
    elif preds.ndim == target.ndim + 2 and preds.shape == (*target.shape, 1, levels):
        hint = "use target.unsqueeze(-1)"
    check_shape("preds", preds, (*target.shape, levels), "(*target.shape, Q)", hint)


class _PinballSum(torch.autograd.Function):
    r"""Sum of the pinball losses, in one pass over the errors forward and one backward.

    With :math:`s = \mathrm{sign}(e) / 2 + \tau - 1/2` the loss is :math:`s e`, whose terms are all non-negative, so
    nothing cancels in the sum; :math:`-s` is the gradient, 1/2 - tau at a tie; and :math:`s` in the dtype of the
    predictions is all that waits for the backward pass. It is finite even where the error is not, so a cell whose
    ``share`` is 0 (or False) needs no more than that 0 in the backward pass.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(preds: Tensor, target: Tensor, shift: Tensor, share: Tensor | None) -> tuple[Tensor, Tensor]:
        error = widen(target).unsqueeze(-1) - widen(preds)
        slope = error.sign().mul_(0.5).add_(shift)
        error.mul_(slope)  # the loss, in place: nothing else of this size is held
        if share is None:
            return error.sum(), slope.to(preds.dtype)
        cells = error.sum(-1)
        del error
        return torch.where(share != 0, cells * share, 0.0).sum(), slope.to(preds.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        _, target, _, share = inputs
        ctx.save_for_backward(output[1], share)
        ctx.save_for_forward(output[1], share)
        ctx.target_dtype = target.dtype
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, grad_slope: Tensor | None) -> tuple[Tensor | None, ...]:
        slope, share = ctx.saved_tensors
        if grad is None:
            # Only the slope is asked about: the second derivative, which is zero and not an error.
            return torch.zeros_like(slope), torch.zeros_like(slope[..., 0], dtype=ctx.target_dtype), None, None
        factor = -grad if share is None else (-grad * share).unsqueeze(-1)
        to_preds = to_target = None
        if ctx.needs_input_grad[0]:
            to_preds = (slope * factor).to(slope.dtype)
        if ctx.needs_input_grad[1]:
            to_target = -(widen(slope) * factor).sum(-1).to(ctx.target_dtype)
        return to_preds, to_target, None, None

    @staticmethod
    def jvp(ctx: Any, preds: Tensor | None, target: Tensor | None, *_: object) -> tuple[Tensor, Tensor]:
        slope, share = ctx.saved_tensors
        change = torch.zeros_like(slope)
        if target is not None:
            change = change + target.unsqueeze(-1)
        if preds is not None:
            change = change - preds
        along = (widen(slope) * change).sum(-1)
        return (along if share is None else torch.where(share != 0, along * share, 0.0)).sum(), torch.zeros_like(slope)
