"""Modules for losses of predicted quantiles."""

from collections.abc import Sequence

from reghead._typing import NanPolicy, Reduction
from reghead.functional import crps_loss, huber_pinball_loss, pinball_loss
from reghead.functional._parameters import check_parameter
from reghead.losses._base import Loss


class PinballLoss(Loss):
    """Pinball (quantile) loss, as :func:`reghead.functional.pinball_loss`.

    Args:
        quantiles: Levels, strictly between 0 and 1 and increasing. Predictions have shape ``(*, D, Q)``.
        nan_policy: ``"omit"`` treats a NaN target as missing; ``"propagate"`` returns NaN.
        reduction: ``"mean"``, ``"sum"``, or ``"none"``.

    Raises:
        ValueError: If the levels are not increasing, or one is not between 0 and 1.

    Example:
        >>> preds, target = torch.tensor([[[1.0, 3.0]]]), torch.tensor([[2.0]])
        >>> PinballLoss([0.1, 0.9])(preds, target)
        tensor(0.1000)
    """

    function = staticmethod(pinball_loss)
    arguments = ("quantiles",)

    def __init__(
        self, quantiles: Sequence[float], *, nan_policy: NanPolicy = "propagate", reduction: Reduction = "mean"
    ) -> None:
        super().__init__(nan_policy=nan_policy, reduction=reduction)
        self.quantiles: tuple[float, ...] = check_parameter("quantiles", quantiles)


class HuberPinballLoss(Loss):
    """Pinball loss, smooth near the target, as :func:`reghead.functional.huber_pinball_loss`.

    Args:
        quantiles: Levels, strictly between 0 and 1 and increasing. Predictions have shape ``(*, D, Q)``.
        delta: Where the loss turns linear, in the units of the target.
        nan_policy: ``"omit"`` treats a NaN target as missing; ``"propagate"`` returns NaN.
        reduction: ``"mean"``, ``"sum"``, or ``"none"``.

    Raises:
        ValueError: If the levels are not increasing, one is not between 0 and 1, or ``delta`` is not positive.

    Example:
        >>> preds, target = torch.tensor([[[1.0, 3.0]]]), torch.tensor([[2.0]])
        >>> HuberPinballLoss([0.1, 0.9], delta=1.0)(preds, target)
        tensor(0.0500)
    """

    function = staticmethod(huber_pinball_loss)
    arguments = ("quantiles", "delta")

    def __init__(
        self,
        quantiles: Sequence[float],
        delta: float = 1.0,
        *,
        nan_policy: NanPolicy = "propagate",
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__(nan_policy=nan_policy, reduction=reduction)
        self.quantiles: tuple[float, ...] = check_parameter("quantiles", quantiles)
        self.delta: float = check_parameter("delta", delta)


class CRPSLoss(Loss):
    """Continuous ranked probability score from quantiles, as :func:`reghead.functional.crps_loss`.

    Args:
        quantiles: Levels, strictly between 0 and 1 and increasing. Predictions have shape ``(*, D, Q)``.
        nan_policy: ``"omit"`` treats a NaN target as missing; ``"propagate"`` returns NaN.
        reduction: ``"mean"``, ``"sum"``, or ``"none"``.

    Raises:
        ValueError: If the levels are not increasing, or one is not between 0 and 1.

    Example:
        >>> preds, target = torch.tensor([[[1.0, 3.0]]]), torch.tensor([[2.0]])
        >>> CRPSLoss([0.25, 0.75])(preds, target)
        tensor(0.5000)
    """

    function = staticmethod(crps_loss)
    arguments = ("quantiles",)

    def __init__(
        self, quantiles: Sequence[float], *, nan_policy: NanPolicy = "propagate", reduction: Reduction = "mean"
    ) -> None:
        super().__init__(nan_policy=nan_policy, reduction=reduction)
        self.quantiles: tuple[float, ...] = check_parameter("quantiles", quantiles)
