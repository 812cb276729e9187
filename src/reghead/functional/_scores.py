"""Proper scores of intervals and distributions, usable as losses."""

import math

import torch
from torch import Tensor

from reghead._checks import check_floating, check_same_shape, check_shape, reads_values
from reghead._reduction import reduce, residual, widen
from reghead._typing import NanPolicy, Quantiles, Reduction
from reghead.functional._parameters import check_parameter
from reghead.functional._pinball import PINBALL, check_levels


def interval_score_loss(
    preds: Tensor,
    target: Tensor,
    confidence_level: float,
    *,
    weight: Tensor | None = None,
    mask: Tensor | None = None,
    nan_policy: NanPolicy = "propagate",
    reduction: Reduction = "mean",
) -> Tensor:
    r"""Interval (Winkler) score: the width of an interval plus a fine for each miss; smaller is better.

    .. math:: S_\alpha(l, u; y) = (u - l) + \frac{2}{\alpha} \max(l - y, 0) + \frac{2}{\alpha} \max(y - u, 0),
        \qquad \alpha = 1 - \mathtt{confidence\_level}

    Gneiting and Raftery, "Strictly Proper Scoring Rules, Prediction, and Estimation", 2007, eq. 43. It is
    :math:`2 / \alpha` times the sum of the pinball losses of both ends at the levels :math:`\alpha / 2` and
    :math:`1 - \alpha / 2`. Crossed ends are not put in order: their width is negative, and the two fines outweigh it.

    Right to :math:`6 u` at a confidence level of 0.8, u being the roundoff of the wider dtype, float32 at least
    (:doc:`/numerics`).

    Args:
        preds: Lower and upper ends :math:`l` and :math:`u`, in the units of ``target``. Shape ``(*, D, 2)``.
        target: Observed values. Shape ``(*, D)``.
        confidence_level: Share of targets that the interval is to cover, strictly between 0 and 1.
        weight: Non-negative weights, shape ``(*,)`` per row or ``(*, D)``; the mean divides by their sum.
        mask: True where a target counts. Shape ``(*,)`` or ``(*, D)``.
        nan_policy: ``"omit"`` treats a NaN target as missing; ``"propagate"`` returns NaN.
        reduction: ``"mean"``, ``"sum"``, or ``"none"`` for shape ``(*, D)``.

    Raises:
        ValueError: If ``preds`` does not have the shape of ``target`` followed by 2, or ``confidence_level`` is not
            between 0 and 1.

    Example:
        >>> preds, target = torch.tensor([[[1.0, 3.0]]]), torch.tensor([[3.5]])
        >>> interval_score_loss(preds, target, confidence_level=0.5)  # 2 + 2 / 0.5 * 0.5
        tensor(4.)
    """
    alpha = 1.0 - check_parameter("confidence_level", confidence_level)
    check_shape("preds", preds, (*target.shape, 2), "(*target.shape, 2)", "stack the lower and upper ends last")
    error, counted = residual(preds, target, weight, mask, nan_policy)
    lower, upper = error.unbind(-1)
    # Parts that are never negative: nothing cancels, and an infinite error costs infinity and not NaN. torch.maximum
    # shares the gradient of a tie, as the pinball loss does where an end is hit exactly.
    zero = error.new_zeros(())
    inward = torch.maximum(lower, zero) + torch.maximum(-upper, zero)
    outward = torch.maximum(-lower, zero) + torch.maximum(upper, zero)
    loss = inward + outward * (2.0 / alpha - 1.0)
    return reduce(loss, weight, None if counted is None else counted.squeeze(-1), reduction)


def crps_loss(
    preds: Tensor,
    target: Tensor,
    quantiles: Quantiles,
    *,
    weight: Tensor | None = None,
    mask: Tensor | None = None,
    nan_policy: NanPolicy = "propagate",
    reduction: Reduction = "mean",
) -> Tensor:
    r"""Continuous ranked probability score (CRPS) of a distribution that is given by its quantiles.

    .. math:: \mathrm{CRPS}(y, \hat q) = 2 \int_0^1 \ell_\tau(y, \hat q_\tau) \, d\tau
        \approx 2 \sum_q w_q \, \ell_{\tau_q}(y, \hat q_q)

    with the pinball loss :math:`\ell_\tau`; Gneiting and Ranjan, "Comparing Density Forecasts Using Threshold- and
    Quantile-Weighted Scoring Rules", 2011. :math:`w_q` is the width of the level's cell in [0, 1], bounded half way
    to its neighbours and by 0 and 1, so that the weights sum to one for any levels. The levels
    :math:`(k - 1/2) / Q` are the best: at Q = 99 they are right to 1e-3 of the score of a normal distribution.

    Right to :math:`36 u` with levels of 0.1, 0.5 and 0.9, u being the roundoff of the wider dtype, float32 at least
    (:doc:`/numerics`).

    Args:
        preds: Predicted quantiles, in the units of ``target``. Shape ``(*, D, Q)``.
        target: Observed values. Shape ``(*, D)``.
        quantiles: Levels :math:`\tau`, strictly between 0 and 1 and increasing: floats, or a tensor of shape
            ``(Q,)``, whose values are not looked at.
        weight: Non-negative weights, shape ``(*,)`` per row or ``(*, D)``; the mean divides by their sum.
        mask: True where a target counts. Shape ``(*,)`` or ``(*, D)``.
        nan_policy: ``"omit"`` treats a NaN target as missing; ``"propagate"`` returns NaN.
        reduction: ``"mean"``, ``"sum"``, or ``"none"`` for shape ``(*, D)``.

    Raises:
        ValueError: If ``preds`` does not have the shape of ``target`` followed by ``Q``, or ``quantiles`` are not
            increasing levels between 0 and 1.

    Example:
        >>> preds, target = torch.tensor([[[1.0, 3.0]]]), torch.tensor([[2.0]])
        >>> crps_loss(preds, target, [0.25, 0.75])  # 2 * (0.5 * 0.25 + 0.5 * 0.25)
        tensor(0.5000)
    """
    tau = check_levels(preds, target, quantiles)
    edges = torch.cat([tau.new_zeros(1), 0.5 * (tau[1:] + tau[:-1]), tau.new_ones(1)])
    error, counted = residual(preds, target, weight, mask, nan_policy)
    loss = 2.0 * (PINBALL.loss(error, tau) * edges.diff()).sum(-1)
    return reduce(loss, weight, None if counted is None else counted.squeeze(-1), reduction)


def gaussian_nll_loss(
    preds: Tensor,
    target: Tensor,
    scale: Tensor,
    *,
    weight: Tensor | None = None,
    mask: Tensor | None = None,
    nan_policy: NanPolicy = "propagate",
    reduction: Reduction = "mean",
) -> Tensor:
    r"""Negative log-likelihood of a normal distribution, in nats.

    .. math:: \ell(y, \hat y, \sigma) = \log \sigma + \frac{(y - \hat y)^2}{2 \sigma^2} + \frac{1}{2} \log 2 \pi

    ``scale`` is the standard deviation, not the variance as in ``torch.nn.GaussianNLLLoss``, and it is never
    clamped: keep it positive by ``softplus`` or ``exp``. Eager mode on the CPU refuses a scale that is not;
    elsewhere a look would break the graph or wait for the device, and such a scale gives a loss that is not finite.

    Args:
        preds: Predicted means, in the units of ``target``. Shape ``(*, D)``.
        target: Observed values. Shape ``(*, D)``.
        scale: Predicted standard deviations :math:`\sigma`, in the units of ``target``. Shape ``(*, D)``.
        weight: Non-negative weights, shape ``(*,)`` per row or ``(*, D)``; the mean divides by their sum.
        mask: True where a target counts. Shape ``(*,)`` or ``(*, D)``.
        nan_policy: ``"omit"`` treats a NaN target as missing; ``"propagate"`` returns NaN.
        reduction: ``"mean"``, ``"sum"``, or ``"none"`` for shape ``(*, D)``.

    Raises:
        ValueError: If the shapes differ, or a scale that counts is not positive (eager mode on the CPU).

    Example:
        >>> gaussian_nll_loss(torch.tensor([0.0]), torch.tensor([2.0]), torch.tensor([1.0]))  # 2 + log(2 pi) / 2
        tensor(2.9189)
    """
    check_same_shape(preds, target)
    check_floating("scale", scale)
    check_shape("scale", scale, preds.shape, "preds.shape")
    error, counted = residual(preds, target, weight, mask, nan_policy)
    scale = widen(scale)
    if counted is not None:
        scale = torch.where(counted, scale, 1.0)
    if reads_values(scale) and bool((scale <= 0).any()):
        raise ValueError(
            f"scale must be positive standard deviations, got {scale.min().item():g}; "
            "use softplus or exp to keep them so"
        )
    loss = torch.log(scale) + 0.5 * (error / scale).square() + 0.5 * math.log(2.0 * math.pi)
    return reduce(loss, weight, counted, reduction)
