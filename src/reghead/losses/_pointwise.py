"""Modules for losses of one prediction for one target."""

from reghead._typing import NanPolicy, Reduction
from reghead.functional import asymmetric_loss, expectile_loss, huber_loss, log_cosh_loss, mae_loss, mse_loss
from reghead.functional._parameters import Base, check_parameter
from reghead.losses._base import Loss


class MSELoss(Loss):
    """Squared error, as :func:`reghead.functional.mse_loss`.

    Args:
        nan_policy: ``"omit"`` treats a NaN target as missing; ``"propagate"`` returns NaN.
        reduction: ``"mean"``, ``"sum"``, or ``"none"``.

    Example:
        >>> MSELoss()(torch.tensor([[1.0], [5.0]]), torch.tensor([[2.0], [2.0]]))
        tensor(5.)
    """

    function = staticmethod(mse_loss)


class MAELoss(Loss):
    """Absolute error, as :func:`reghead.functional.mae_loss`.

    Args:
        nan_policy: ``"omit"`` treats a NaN target as missing; ``"propagate"`` returns NaN.
        reduction: ``"mean"``, ``"sum"``, or ``"none"``.

    Example:
        >>> MAELoss()(torch.tensor([[1.0], [5.0]]), torch.tensor([[2.0], [2.0]]))
        tensor(2.)
    """

    function = staticmethod(mae_loss)


class HuberLoss(Loss):
    """Squared near the target, linear away from it, as :func:`reghead.functional.huber_loss`.

    Args:
        delta: Where the loss turns linear, in the units of the target.
        nan_policy: ``"omit"`` treats a NaN target as missing; ``"propagate"`` returns NaN.
        reduction: ``"mean"``, ``"sum"``, or ``"none"``.

    Raises:
        ValueError: If ``delta`` is not positive.

    Example:
        >>> HuberLoss(delta=1.0)(torch.tensor([[1.0], [5.0]]), torch.tensor([[2.0], [2.0]]))
        tensor(1.5000)
    """

    function = staticmethod(huber_loss)
    arguments = ("delta",)

    def __init__(
        self, delta: float = 1.0, *, nan_policy: NanPolicy = "propagate", reduction: Reduction = "mean"
    ) -> None:
        super().__init__(nan_policy=nan_policy, reduction=reduction)
        self.delta: float = check_parameter("delta", delta)


class LogCoshLoss(Loss):
    """A Huber loss that is smooth everywhere, as :func:`reghead.functional.log_cosh_loss`.

    Args:
        nan_policy: ``"omit"`` treats a NaN target as missing; ``"propagate"`` returns NaN.
        reduction: ``"mean"``, ``"sum"``, or ``"none"``.

    Example:
        >>> LogCoshLoss()(torch.tensor([100.0]), torch.tensor([0.0]))  # 100 - log 2
        tensor(99.3069)
    """

    function = staticmethod(log_cosh_loss)


class AsymmetricLoss(Loss):
    """A symmetric loss times a penalty for each side, as :func:`reghead.functional.asymmetric_loss`.

    Args:
        over_penalty: Positive factor where the prediction is above the target.
        under_penalty: Positive factor where the prediction is below the target.
        base: The symmetric loss: ``"mse"``, ``"mae"`` or ``"huber"``.
        delta: Where the Huber base turns linear, in the units of the target; the other bases have none.
        nan_policy: ``"omit"`` treats a NaN target as missing; ``"propagate"`` returns NaN.
        reduction: ``"mean"``, ``"sum"``, or ``"none"``.

    Raises:
        ValueError: If a penalty or ``delta`` is not positive, or ``base`` is unknown.

    Example:
        >>> AsymmetricLoss(over_penalty=2.0)(torch.tensor([3.0, 1.0]), torch.tensor([2.0, 2.0]))  # (2 + 1) / 2
        tensor(1.5000)
    """

    function = staticmethod(asymmetric_loss)
    arguments = ("over_penalty", "under_penalty", "base", "delta")

    def __init__(
        self,
        over_penalty: float = 1.0,
        under_penalty: float = 1.0,
        base: Base = "mse",
        delta: float = 1.0,
        *,
        nan_policy: NanPolicy = "propagate",
        reduction: Reduction = "mean",
    ) -> None:
        super().__init__(nan_policy=nan_policy, reduction=reduction)
        self.over_penalty: float = check_parameter("over_penalty", over_penalty)
        self.under_penalty: float = check_parameter("under_penalty", under_penalty)
        self.base: Base = check_parameter("base", base)
        self.delta: float = check_parameter("delta", delta)


class ExpectileLoss(Loss):
    """Asymmetric squared error, as :func:`reghead.functional.expectile_loss`.

    Args:
        expectile: Level, strictly between 0 and 1; 0.5 gives half the squared error.
        nan_policy: ``"omit"`` treats a NaN target as missing; ``"propagate"`` returns NaN.
        reduction: ``"mean"``, ``"sum"``, or ``"none"``.

    Raises:
        ValueError: If ``expectile`` is not between 0 and 1.

    Example:
        >>> ExpectileLoss(0.75)(torch.tensor([3.0, 1.0]), torch.tensor([2.0, 2.0]))  # (0.25 + 0.75) / 2
        tensor(0.5000)
    """

    function = staticmethod(expectile_loss)
    arguments = ("expectile",)

    def __init__(self, expectile: float, *, nan_policy: NanPolicy = "propagate", reduction: Reduction = "mean") -> None:
        super().__init__(nan_policy=nan_policy, reduction=reduction)
        self.expectile: float = check_parameter("expectile", expectile)
