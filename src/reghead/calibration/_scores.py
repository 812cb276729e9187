"""Nonconformity scores, and the interval that a quantile of them stands for."""

import warnings
from collections.abc import Sequence
from fractions import Fraction
from typing import Protocol

import torch
from torch import Tensor

from reghead._checks import check_last_dim, check_quantiles
from reghead._typing import Quantiles
from reghead._warnings import RegheadWarning
from reghead.calibration._quantile import exact_level


class Score(Protocol):
    """How predictions become scores, and offsets become ends. Confidence levels run from the widest interval inward."""

    confidence_levels: tuple[Fraction, ...]
    levels: tuple[Fraction, ...]
    """The level of the conformal quantile of each of the S scores."""

    def lead(self, preds: Tensor) -> torch.Size:
        """``(*, D)``: the shape of the targets of ``preds``."""

    def scores(self, preds: Tensor, target: Tensor) -> Tensor:
        """Shape ``(*, D, S)``; the larger, the worse."""

    def ends(self, preds: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor]:
        """Lower and upper ends of L intervals, each ``(*, D, L)``, from offsets of shape ``(*, D, S)``."""

    def warn_crossing(self, preds: Tensor, stacklevel: int) -> None:
        """Warn of predicted quantiles that are out of order."""


class AbsoluteScore:
    """Absolute residuals of point predictions."""

    def __init__(self, confidence_level: float | Sequence[float]) -> None:
        given = confidence_level if isinstance(confidence_level, Sequence) else (confidence_level,)
        levels = sorted({exact_level("confidence_level", level) for level in given}, reverse=True)
        if not levels or len(levels) != len(given):
            raise ValueError(f"confidence_level must be one level or several different ones, got {confidence_level!r}")
        self.confidence_levels = self.levels = tuple(levels)

    def lead(self, preds: Tensor) -> torch.Size:
        return preds.shape

    def scores(self, preds: Tensor, target: Tensor) -> Tensor:
        return (target - preds).abs().unsqueeze(-1).expand(*target.shape, len(self.levels))

    def ends(self, preds: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor]:
        center = preds.unsqueeze(-1)
        return center - offsets, center + offsets

    def warn_crossing(self, preds: Tensor, stacklevel: int) -> None:
        """One number cannot cross."""


class QuantileScore:
    """Signed distance of the target from a predicted interval, negative inside; of both ends, or of each one."""

    def __init__(self, quantiles: Quantiles, asymmetric: bool) -> None:
        self.quantiles = check_quantiles("quantiles", quantiles)
        self.asymmetric = asymmetric
        taus = [exact_level("quantiles", tau) for tau in self.quantiles]
        for tau, partner in zip(taus, reversed(taus), strict=True):
            if tau + partner != 1:
                raise ValueError(
                    f"quantiles must be pairs around 0.5, as 0.05 and 0.95, got {self.quantiles}: {float(tau):g} goes "
                    f"with {float(1 - tau):g}; select the columns of preds that do"
                )
        self.pairs = len(taus) // 2
        if not self.pairs:
            raise ValueError(f"quantiles must hold a pair such as (0.05, 0.95), got {self.quantiles}")
        self.confidence_levels = tuple(1 - 2 * tau for tau in taus[: self.pairs])
        self.levels = self.confidence_levels
        if asymmetric:  # each side misses with alpha / 2
            self.levels = tuple(1 - tau for tau in taus[: self.pairs]) * 2

    def lead(self, preds: Tensor) -> torch.Size:
        check_last_dim("preds", preds, len(self.quantiles), "Q")
        return preds.shape[:-1]

    def split(self, preds: Tensor) -> tuple[Tensor, Tensor]:
        """Lower and upper quantiles, the widest pair first."""
        return preds[..., : self.pairs], preds[..., -self.pairs :].flip(-1)

    def scores(self, preds: Tensor, target: Tensor) -> Tensor:
        lower, upper = self.split(preds)
        below, above = lower - target.unsqueeze(-1), target.unsqueeze(-1) - upper
        return torch.cat([below, above], dim=-1) if self.asymmetric else torch.maximum(below, above)

    def ends(self, preds: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor]:
        lower, upper = self.split(preds)
        lower = lower - offsets[..., : self.pairs]
        upper = upper + offsets[..., -self.pairs :]
        # An interval may shrink until nothing is left; then its middle stands for it, which can only cover more.
        empty, middle = lower > upper, 0.5 * (lower + upper)
        lower, upper = torch.where(empty, middle, lower), torch.where(empty, middle, upper)
        if self.pairs > 1:  # the wider holds the narrower, which can only cover more
            lower = lower.flip(-1).cummin(-1).values.flip(-1)
            upper = upper.flip(-1).cummax(-1).values.flip(-1)
        return lower, upper

    def warn_crossing(self, preds: Tensor, stacklevel: int) -> None:
        lower, upper = self.split(preds)
        if crossed := int((lower > upper).any(-1).sum()):
            warnings.warn(
                f"{crossed} of {self.lead(preds).numel()} predictions have a lower quantile above its upper one; their "
                "intervals are wider than need be; order them with reghead.functional.sort_quantiles, here and when "
                "predicting",
                RegheadWarning,
                stacklevel=stacklevel,
            )
