"""Losses of predicted quantiles."""

import torch
from torch import Tensor

from reghead._checks import check_floating, check_shape, reads_values
from reghead._typing import NanPolicy, Quantiles, Reduction
from reghead.functional._parameters import check_parameter, constant
from reghead.functional._pointwise import huber
from reghead.functional._product import Product, reduce_product, wide_dtype


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

    Right to :math:`(1 + 3 / \min(\tau, 1 - \tau)) u`, u being the roundoff of the wider dtype, float32 at least
    (:doc:`/numerics`).

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
    tau = check_levels(preds, target, quantiles)
    return reduce_product(
        PINBALL, preds, target, tau, weight=weight, mask=mask, nan_policy=nan_policy, reduction=reduction
    )


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

    Right to :math:`24 u` at a level of 0.9, u being the roundoff of the wider dtype, float32 at least
    (:doc:`/numerics`).

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
    return reduce_product(
        _huber_pinball(delta), preds, target, tau, weight=weight, mask=mask, nan_policy=nan_policy, reduction=reduction
    )


def _pinball(error: Tensor, tau: Tensor) -> tuple[Tensor, Tensor]:
    sign, shift = error.sign(), tau - 0.5
    if torch.is_grad_enabled() or not reads_values(tau):
        return torch.add(shift, sign, alpha=0.5), error
    return torch.add(shift, sign, alpha=0.5, out=sign), error  # so that no more than two are held


PINBALL = Product(_pinball, jumps=True)


def _huber_pinball(delta: float) -> Product:
    def factors(error: Tensor, tau: Tensor) -> tuple[Tensor, Tensor]:
        slope, height = huber(delta).factors(error, None)
        # By level tau between the share of a negative error, times 1 - tau, and that of a positive one, times tau.
        return torch.lerp(slope.clamp(max=0.0), slope.clamp(min=0.0), tau), height

    return Product(factors, gain=1.0 / delta, rate=1.0 / delta)


def check_levels(preds: Tensor, target: Tensor, quantiles: Quantiles) -> Tensor:
    """The levels as a tensor of shape ``(Q,)``, in the dtype of the errors, once they fit ``preds`` and ``target``."""
    check_floating("preds", preds)
    check_floating("target", target)
    dtype = wide_dtype(preds, target)
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
    elif preds.shape == (*target.shape, 1, levels):
        hint = "use target.unsqueeze(-1)"
    check_shape("preds", preds, (*target.shape, levels), "(*target.shape, Q)", hint)
