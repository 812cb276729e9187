"""Monotone transforms of a target, with their exact inverses."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

import torch
from torch import Tensor

from reghead._checks import check_choice, check_number, reads_values

TransformKind: TypeAlias = Literal["identity", "log", "log1p", "logit", "softplus", "clamp"]
"""The transforms that a target can be normalized after."""


@dataclass(frozen=True)
class TargetTransform:
    r"""A strictly increasing map :math:`u = g(y)` of the target and its inverse.

    ============  ======================================  =====================================  ===================
    kind          :math:`u = g(y)`                        :math:`y = g^{-1}(u)`                  targets
    ============  ======================================  =====================================  ===================
    ``identity``  :math:`y`                               :math:`u`                              all
    ``log``       :math:`\log y`                          :math:`e^u`                            :math:`y > 0`
    ``log1p``     :math:`\log(1 + y)`                     :math:`e^u - 1`                        :math:`y > -1`
    ``logit``     :math:`\log\frac{y - a}{b - y}`         :math:`a + (b - a)\,\sigma(u)`         :math:`a < y < b`
    ``softplus``  :math:`y + \log(1 - e^{-y})`            :math:`\log(1 + e^u)`                  :math:`y > 0`
    ``clamp``     :math:`y`                               :math:`\max(u, 0)`                     :math:`y \ge 0`
    ============  ======================================  =====================================  ===================

    Quantiles pass through exactly: the inverse of the median of :math:`u` is the median of :math:`y`. The mean does
    not: with :math:`u` normal of mean 0 and variance 1, the inverse of the mean under ``log`` is 1 while the mean
    of :math:`y` is :math:`e^{1/2} = 1.6487`.

    Args:
        kind: Which transform.
        bounds: The bounds :math:`(a, b)` of ``logit``, in the target's units, (0, 1) by default.

    Raises:
        ValueError: If ``bounds`` come with another kind or are not increasing.

    Example:
        >>> import torch
        >>> from reghead.normalization import TargetTransform
        >>> percent = TargetTransform("logit", bounds=(0.0, 100.0))
        >>> percent.forward(torch.tensor([50.0])), percent.inverse(torch.tensor([0.0]))
        (tensor([0.]), tensor([50.]))
    """

    kind: TransformKind = "identity"
    bounds: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        check_choice("transform", self.kind, get_args(TransformKind))
        if self.kind != "logit":
            if self.bounds is not None:
                raise ValueError(f"bounds belong to transform='logit', got bounds={self.bounds!r} with {self.kind!r}")
            return
        bounds = (0.0, 1.0) if self.bounds is None else self.bounds
        if isinstance(bounds, str) or not isinstance(bounds, Sequence) or len(bounds) != 2:
            raise TypeError(f"bounds must be a pair of numbers (low, high), got {bounds!r}")
        low, high = (check_number(f"bounds[{i}]", bound) for i, bound in enumerate(bounds))
        if low >= high:
            raise ValueError(f"bounds must be increasing, got ({low:g}, {high:g})")
        object.__setattr__(self, "bounds", (low, high))

    def check(self, target: Tensor) -> None:
        """Raise unless every value of ``target`` is in the domain or NaN.

        Raises:
            ValueError: With the first value outside and what to use instead.
        """
        if self.kind == "identity":
            return
        target = target.detach()
        if self.bounds is not None:
            low, high = self.bounds
            outside, domain = (target <= low) | (target >= high), f"strictly between {low:g} and {high:g}"
        elif self.kind == "clamp":
            outside, domain = target < 0, "at least 0"
        elif self.kind == "log1p":
            outside, domain = target <= -1, "above -1"
        else:
            outside, domain = target <= 0, "above 0"
        if outside.any():
            wrong = target[outside]
            raise ValueError(
                f"transform={self.kind!r} takes targets {domain}, got {float(wrong[0]):g}; "
                f"{self._alternative(float(wrong.min()))}"
            )

    def _alternative(self, lowest: float) -> str:
        if self.kind == "logit":
            return "widen the bounds"
        if self.kind == "log" and lowest > -1:
            return "use transform='log1p', which takes 0"
        if self.kind == "softplus" and lowest >= 0:
            return "use transform='clamp', which takes 0"
        return "use transform='identity'"

    def forward(self, target: Tensor) -> Tensor:
        """:math:`u = g(y)`, in the dtype of ``target``; NaN stays NaN.

        Raises:
            ValueError: If a target is outside the domain, in eager mode on the CPU.
        """
        if reads_values(target):
            self.check(target)
        if self.bounds is not None:
            low, high = self.bounds
            return torch.log(target - low) - torch.log(high - target)
        if self.kind == "log":
            return target.log()
        if self.kind == "log1p":
            return target.log1p()
        if self.kind == "softplus":
            return target + torch.log(-torch.expm1(-target))
        return target

    def inverse(self, value: Tensor) -> Tensor:
        """:math:`y = g^{-1}(u)`, in the dtype of ``value``."""
        if self.bounds is not None:
            low, high = self.bounds
            # From the nearer bound: relative precision in both tails, and never beyond a bound by a rounding.
            share = (high - low) * torch.sigmoid(-value.abs())
            return torch.where(value < 0, low + share, high - share)
        if self.kind == "log":
            return value.exp()
        if self.kind == "log1p":
            return value.expm1()
        if self.kind == "softplus":
            # F.softplus returns its input from 20 on, which is 2e-9 off in float64.
            return torch.logaddexp(value, value.new_zeros(()))
        if self.kind == "clamp":
            return value.clamp(min=0.0)
        return value
