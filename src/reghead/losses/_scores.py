"""Modules for scores of intervals and of normal distributions."""

from torch import Tensor

from reghead._typing import NanPolicy, Reduction
from reghead.functional import gaussian_nll_loss, interval_score_loss
from reghead.functional._parameters import check_parameter
from reghead.losses._base import Loss


class IntervalScoreLoss(Loss):
    """Interval (Winkler) score, as :func:`reghead.functional.interval_score_loss`.

    Args:
        confidence_level: Share of targets that the interval is to cover, strictly between 0 and 1.
        nan_policy: ``"omit"`` treats a NaN target as missing; ``"propagate"`` returns NaN.
        reduction: ``"mean"``, ``"sum"``, or ``"none"``.

    Raises:
        ValueError: If ``confidence_level`` is not between 0 and 1.

    Example:
        >>> preds, target = torch.tensor([[[1.0, 3.0]]]), torch.tensor([[3.5]])
        >>> IntervalScoreLoss(confidence_level=0.5)(preds, target)  # 2 + 2 / 0.5 * 0.5
        tensor(4.)
    """

    function = staticmethod(interval_score_loss)
    arguments = ("confidence_level",)

    def __init__(
        self, confidence_level: float, *, nan_policy: NanPolicy = "propagate", reduction: Reduction = "mean"
    ) -> None:
        super().__init__(nan_policy=nan_policy, reduction=reduction)
        self.confidence_level: float = check_parameter("confidence_level", confidence_level)


class GaussianNLLLoss(Loss):
    """Negative log-likelihood of a normal distribution, as :func:`reghead.functional.gaussian_nll_loss`.

    Args:
        nan_policy: ``"omit"`` treats a NaN target as missing; ``"propagate"`` returns NaN.
        reduction: ``"mean"``, ``"sum"``, or ``"none"``.

    Example:
        >>> mean, target, scale = torch.tensor([0.0]), torch.tensor([2.0]), torch.tensor([1.0])
        >>> GaussianNLLLoss()(mean, target, scale)  # 2 + log(2 pi) / 2
        tensor(2.9189)
    """

    function = staticmethod(gaussian_nll_loss)

    def forward(  # type: ignore[override]
        self,
        preds: Tensor,
        target: Tensor,
        scale: Tensor,
        *,
        weight: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        """The loss of means ``preds`` with standard deviations ``scale``."""
        return self._call(preds, target, scale, weight=weight, mask=mask)
