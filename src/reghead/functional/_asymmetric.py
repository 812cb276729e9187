"""Losses that cost more on one side of the target, of one prediction each."""

from torch import Tensor
from torch.nn import functional as F

from reghead._checks import check_same_shape
from reghead._typing import NanPolicy, Reduction
from reghead.functional._parameters import Base, check_parameter
from reghead.functional._pointwise import MAE, MSE, huber
from reghead.functional._product import Product, reduce_product

FAR_APART = 2.0**20  # pragma: no mutate
"""From this ratio on, penalties are applied one by one: well before float32 would need it."""


def asymmetric_loss(
    preds: Tensor,
    target: Tensor,
    over_penalty: float = 1.0,
    under_penalty: float = 1.0,
    base: Base = "mse",
    delta: float = 1.0,
    *,
    weight: Tensor | None = None,
    mask: Tensor | None = None,
    nan_policy: NanPolicy = "propagate",
    reduction: Reduction = "mean",
) -> Tensor:
    r"""A symmetric loss times a penalty that depends on the side of the error.

    .. math:: \ell(y, \hat y) = b(y - \hat y) \cdot \begin{cases}
            \mathtt{over\_penalty} & \hat y > y \\
            \mathtt{under\_penalty} & \hat y \le y
        \end{cases}

    With two equal penalties of 1 it is the symmetric loss :math:`b`. With ``base="mae"`` it is
    ``over_penalty + under_penalty`` times the pinball loss at the level
    ``under_penalty / (over_penalty + under_penalty)``; with ``base="mse"`` it is an expectile loss likewise.

    Right to :math:`6 u`, u being the roundoff of the wider dtype, float32 at least (:doc:`/numerics`).

    Args:
        preds: Predictions, in the units of ``target``. Shape ``(*, D)``.
        target: Observed values. Shape ``(*, D)``.
        over_penalty: Positive factor where the prediction is above the target.
        under_penalty: Positive factor where the prediction is below the target.
        base: The symmetric loss: ``"mse"``, ``"mae"`` or ``"huber"``.
        delta: Where the Huber base turns linear, in the units of ``target``; the other bases have none.
        weight: Non-negative weights, shape ``(*,)`` per row or ``(*, D)``; the mean divides by their sum.
        mask: True where a target counts. Shape ``(*,)`` or ``(*, D)``.
        nan_policy: ``"omit"`` treats a NaN target as missing; ``"propagate"`` returns NaN.
        reduction: ``"mean"``, ``"sum"``, or ``"none"`` for shape ``(*, D)``.

    Raises:
        ValueError: If ``preds`` and ``target`` differ in shape, a penalty or ``delta`` is not positive, or ``base``
            is unknown.

    Example:
        >>> asymmetric_loss(torch.tensor([3.0, 1.0]), torch.tensor([2.0, 2.0]), over_penalty=2.0, reduction="none")
        tensor([2., 1.])
    """
    over_penalty = check_parameter("over_penalty", over_penalty)
    under_penalty = check_parameter("under_penalty", under_penalty)
    base = check_parameter("base", base)
    delta = check_parameter("delta", delta)
    check_same_shape(preds, target)
    symmetric = MSE if base == "mse" else MAE if base == "mae" else huber(delta)
    return reduce_product(
        by_side(symmetric, over_penalty, under_penalty),
        preds,
        target,
        weight=weight,
        mask=mask,
        nan_policy=nan_policy,
        reduction=reduction,
    )


def expectile_loss(
    preds: Tensor,
    target: Tensor,
    expectile: float,
    *,
    weight: Tensor | None = None,
    mask: Tensor | None = None,
    nan_policy: NanPolicy = "propagate",
    reduction: Reduction = "mean",
) -> Tensor:
    r"""Asymmetric squared error, minimised by the expectile of the target.

    .. math:: \ell_\tau(y, \hat y) = |\tau - 1\{y < \hat y\}| \, (y - \hat y)^2

    Newey and Powell, "Asymmetric Least Squares Estimation and Testing", 1987, eq. 2.1. The 0.5-expectile is the
    mean, and its loss is half the squared error.

    Right to :math:`6 u` at a level of 0.3, u being the roundoff of the wider dtype, float32 at least
    (:doc:`/numerics`).

    Args:
        preds: Predicted expectiles, in the units of ``target``. Shape ``(*, D)``.
        target: Observed values. Shape ``(*, D)``.
        expectile: Level :math:`\tau`, strictly between 0 and 1.
        weight: Non-negative weights, shape ``(*,)`` per row or ``(*, D)``; the mean divides by their sum.
        mask: True where a target counts. Shape ``(*,)`` or ``(*, D)``.
        nan_policy: ``"omit"`` treats a NaN target as missing; ``"propagate"`` returns NaN.
        reduction: ``"mean"``, ``"sum"``, or ``"none"`` for shape ``(*, D)``.

    Raises:
        ValueError: If ``preds`` and ``target`` differ in shape, or ``expectile`` is not between 0 and 1.

    Example:
        >>> expectile_loss(torch.tensor([3.0, 1.0]), torch.tensor([2.0, 2.0]), 0.75, reduction="none")
        tensor([0.2500, 0.7500])
    """
    expectile = check_parameter("expectile", expectile)
    check_same_shape(preds, target)
    return reduce_product(
        by_side(MSE, 1.0 - expectile, expectile),
        preds,
        target,
        weight=weight,
        mask=mask,
        nan_policy=nan_policy,
        reduction=reduction,
    )


def have_one_scale(over: float, under: float) -> bool:
    """Whether penalties may be written as one and a ratio; otherwise that, or what it multiplies, leaves float32."""
    return max(over / under, under / over) < FAR_APART


def by_side(symmetric: Product, over: float, under: float) -> Product:
    """A symmetric loss times ``over`` where the prediction is above the target, and times ``under`` elsewhere."""
    one_scale = have_one_scale(over, under)

    def factors(error: Tensor, _: object) -> tuple[Tensor, Tensor]:
        slope, height = symmetric.factors(error, None)
        # The error is negative where the prediction is above.
        if one_scale:  # in one pass, which torch.where takes many times over
            return F.leaky_relu(slope, over / under), height
        return slope.clamp(min=0.0) * under + slope.clamp(max=0.0) * over, height

    scale = under if one_scale else 1.0
    return Product(factors, gain=scale * symmetric.gain, rate=scale * symmetric.rate)
