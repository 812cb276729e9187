"""Losses of one prediction for one target."""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from reghead._checks import check_same_shape
from reghead._reduction import reduce, residual
from reghead._typing import NanPolicy, Reduction
from reghead.functional._parameters import check_parameter
from reghead.functional._product import Product, reduce_product


def mse_loss(
    preds: Tensor,
    target: Tensor,
    *,
    weight: Tensor | None = None,
    mask: Tensor | None = None,
    nan_policy: NanPolicy = "propagate",
    reduction: Reduction = "mean",
) -> Tensor:
    r"""Squared error.

    .. math:: \ell(y, \hat y) = (y - \hat y)^2

    Right to :math:`4 u`, u being the roundoff of the wider dtype, float32 at least (:doc:`/numerics`).

    Args:
        preds: Predictions, in the units of ``target``. Shape ``(*, D)``.
        target: Observed values. Shape ``(*, D)``.
        weight: Non-negative weights, shape ``(*,)`` per row or ``(*, D)``; the mean divides by their sum.
        mask: True where a target counts. Shape ``(*,)`` or ``(*, D)``.
        nan_policy: ``"omit"`` treats a NaN target as missing; ``"propagate"`` returns NaN.
        reduction: ``"mean"``, ``"sum"``, or ``"none"`` for shape ``(*, D)``.

    Raises:
        ValueError: If ``preds`` and ``target`` differ in shape.

    Example:
        >>> mse_loss(torch.tensor([[1.0], [5.0]]), torch.tensor([[2.0], [2.0]]))
        tensor(5.)
    """
    check_same_shape(preds, target)
    return reduce_product(MSE, preds, target, weight=weight, mask=mask, nan_policy=nan_policy, reduction=reduction)


def mae_loss(
    preds: Tensor,
    target: Tensor,
    *,
    weight: Tensor | None = None,
    mask: Tensor | None = None,
    nan_policy: NanPolicy = "propagate",
    reduction: Reduction = "mean",
) -> Tensor:
    r"""Absolute error. Its gradient is 0 where prediction and target are equal.

    .. math:: \ell(y, \hat y) = |y - \hat y|

    Right to :math:`u`, u being the roundoff of the wider dtype, float32 at least (:doc:`/numerics`).

    Args:
        preds: Predictions, in the units of ``target``. Shape ``(*, D)``.
        target: Observed values. Shape ``(*, D)``.
        weight: Non-negative weights, shape ``(*,)`` per row or ``(*, D)``; the mean divides by their sum.
        mask: True where a target counts. Shape ``(*,)`` or ``(*, D)``.
        nan_policy: ``"omit"`` treats a NaN target as missing; ``"propagate"`` returns NaN.
        reduction: ``"mean"``, ``"sum"``, or ``"none"`` for shape ``(*, D)``.

    Raises:
        ValueError: If ``preds`` and ``target`` differ in shape.

    Example:
        >>> mae_loss(torch.tensor([[1.0], [5.0]]), torch.tensor([[2.0], [2.0]]))
        tensor(2.)
    """
    check_same_shape(preds, target)
    return reduce_product(MAE, preds, target, weight=weight, mask=mask, nan_policy=nan_policy, reduction=reduction)


def huber_loss(
    preds: Tensor,
    target: Tensor,
    delta: float = 1.0,
    *,
    weight: Tensor | None = None,
    mask: Tensor | None = None,
    nan_policy: NanPolicy = "propagate",
    reduction: Reduction = "mean",
) -> Tensor:
    r"""Huber loss: squared near the target, linear away from it.

    .. math::
        H_\delta(e) = \begin{cases}
            e^2 / 2 & |e| \le \delta \\
            \delta (|e| - \delta / 2) & |e| > \delta
        \end{cases}
        \qquad e = y - \hat y

    Huber, "Robust Estimation of a Location Parameter", 1964. The values are those of ``torch.nn.HuberLoss``.

    Right to :math:`5 u`, u being the roundoff of the wider dtype, float32 at least (:doc:`/numerics`).

    Args:
        preds: Predictions, in the units of ``target``. Shape ``(*, D)``.
        target: Observed values. Shape ``(*, D)``.
        delta: Where the loss turns linear, in the units of ``target``.
        weight: Non-negative weights, shape ``(*,)`` per row or ``(*, D)``; the mean divides by their sum.
        mask: True where a target counts. Shape ``(*,)`` or ``(*, D)``.
        nan_policy: ``"omit"`` treats a NaN target as missing; ``"propagate"`` returns NaN.
        reduction: ``"mean"``, ``"sum"``, or ``"none"`` for shape ``(*, D)``.

    Raises:
        ValueError: If ``preds`` and ``target`` differ in shape, or ``delta`` is not positive.

    Example:
        >>> huber_loss(torch.tensor([[1.0], [5.0]]), torch.tensor([[2.0], [2.0]]))
        tensor(1.5000)
    """
    delta = check_parameter("delta", delta)
    check_same_shape(preds, target)
    return reduce_product(
        huber(delta), preds, target, weight=weight, mask=mask, nan_policy=nan_policy, reduction=reduction
    )


MSE = Product(lambda error, _: (error, error), rate=2.0)
MAE = Product(lambda error, _: (error.sign(), error))


def huber(delta: float) -> Product:
    """The Huber function."""

    def factors(error: Tensor, _: object) -> tuple[Tensor, Tensor]:
        slope = error.clamp(-delta, delta)
        return slope, torch.sub(error, slope, alpha=0.5)

    return Product(factors)


def log_cosh_loss(
    preds: Tensor,
    target: Tensor,
    *,
    weight: Tensor | None = None,
    mask: Tensor | None = None,
    nan_policy: NanPolicy = "propagate",
    reduction: Reduction = "mean",
) -> Tensor:
    r"""Logarithm of the hyperbolic cosine: a Huber loss that is smooth everywhere.

    .. math:: \ell(y, \hat y) = \log \cosh(y - \hat y), \qquad
        \frac{\partial \ell}{\partial \hat y} = -\tanh(y - \hat y)

    Right to :math:`8 u`, u being the roundoff of the wider dtype, float32 at least (:doc:`/numerics`), for every finite
    error: neither overflows nor cancels.

    Args:
        preds: Predictions, in the units of ``target``. Shape ``(*, D)``.
        target: Observed values. Shape ``(*, D)``.
        weight: Non-negative weights, shape ``(*,)`` per row or ``(*, D)``; the mean divides by their sum.
        mask: True where a target counts. Shape ``(*,)`` or ``(*, D)``.
        nan_policy: ``"omit"`` treats a NaN target as missing; ``"propagate"`` returns NaN.
        reduction: ``"mean"``, ``"sum"``, or ``"none"`` for shape ``(*, D)``.

    Raises:
        ValueError: If ``preds`` and ``target`` differ in shape.

    Example:
        >>> log_cosh_loss(torch.tensor([100.0]), torch.tensor([0.0]))  # 100 - log 2
        tensor(99.3069)
    """
    check_same_shape(preds, target)
    error, counted = residual(preds, target, weight, mask, nan_policy)
    # Two forms, since each fails where the other is exact: sinh overflows at large errors, and the large form
    # subtracts log 2 from log 2 at small ones. The clamp keeps the unused form finite, and its gradient with it.
    small = torch.log1p(2.0 * torch.sinh(0.5 * error.clamp(-1.0, 1.0)).square())
    size = error.abs()
    large = size + F.softplus(-2.0 * size) - math.log(2.0)
    return reduce(torch.where(size < 1.0, small, large), weight, counted, reduction)
