"""The rows that a mixed model is fitted on: checked, flat, in float64."""

import math
from typing import NamedTuple

import torch
from torch import Tensor

from reghead._checks import check_floating, check_prefix, reads_values
from reghead._reduction import trailing
from reghead.normalization._transform import TargetTransform

# A standard deviation of a few roundings of the mean is that of a constant.
_ROUNDINGS = 8 * torch.finfo(torch.float64).eps


class Scaling(NamedTuple):
    """How target and features are standardised: columns of both, ``(D,)`` and ``(F,)``."""

    target_center: Tensor
    target_scale: Tensor
    feature_center: Tensor
    feature_scale: Tensor

    @classmethod
    def of(cls, values: Tensor, weights: Tensor, features: Tensor) -> "Scaling":
        """Means and standard deviations of flat rows; 0 for the deviation of a constant target, 1 of a feature."""
        feature_center, feature_scale = _center_and_scale(features, weights.mean(dim=1, keepdim=True))
        return cls(
            *_center_and_scale(values, weights), feature_center, torch.where(feature_scale > 0, feature_scale, 1.0)
        )


def measure(transform: TargetTransform, target: Tensor, weight: Tensor | None) -> tuple[Tensor, Tensor]:
    """The transformed target and the weights, flat.

    Returns:
        The target, 0 where it does not count, of shape ``(R, D)``. The weights, 0 where the target is missing, of
        shape ``(R, D)``, or ``(R, 1)`` where they are the same in all columns.
    """
    check_floating("target", target)
    if target.ndim < 2:
        raise ValueError(f"target must have shape (*, D), got {tuple(target.shape)}; use target.unsqueeze(-1)")
    columns = target.shape[-1]
    if columns == 0:
        raise ValueError(f"target must have at least one column, got shape {tuple(target.shape)}")
    values = target.detach().to(torch.float64)
    weights = torch.ones_like(values)
    if weight is not None:
        check_prefix("weight", weight, "target", target.shape)
        if not (weight.isfinite().all() and (weight >= 0).all()):
            raise ValueError("weight must be finite and non-negative")
        weights = trailing(weight.detach().to(torch.float64), target.ndim).expand(target.shape)
    # A weight of 0 is no row, whatever the target there is.
    values = torch.where(weights == 0, torch.nan, values)
    if values.isinf().any():
        d = int(values.isinf().reshape(-1, columns).any(dim=0).nonzero()[0])
        raise ValueError(f"target must be finite, or NaN where it is missing, got an infinite value in column {d}")
    if not reads_values(values):
        transform.check(values)  # forward does it otherwise
    values = transform.forward(values).reshape(-1, columns)
    missing = values.isnan()
    weights = torch.where(missing, 0.0, weights.reshape(-1, columns))
    if bool((weights == weights[:, :1]).all()):
        weights = weights[:, :1]
    return torch.where(missing, 0.0, values), weights


def flat_features(features: Tensor, lead: torch.Size, of: str) -> Tensor:
    """Features of shape ``(R, F)``, for the rows of the argument ``of``, whose leading dimensions are ``lead``."""
    check_floating("features", features)
    if features.ndim != len(lead) + 1 or features.shape[:-1] != lead:
        raise ValueError(
            f"features must have shape (*, F) with the leading dimensions {tuple(lead)} of {of}, "
            f"got {tuple(features.shape)}"
        )
    return features.reshape(math.prod(lead), features.shape[-1])


def check_finite(features: Tensor) -> None:
    """Raise unless the features of all rows, shape ``(R, F)``, are finite."""
    wrong = ~features.isfinite().all(dim=0)
    if wrong.any():
        raise ValueError(
            f"features must be finite, got NaN or an infinite value in column {int(wrong.nonzero()[0])}; "
            "fill in what is missing"
        )


def _center_and_scale(values: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
    """Weighted mean and standard deviation of the columns; 0 for the deviation of a constant."""
    total = weights.sum(dim=0)
    center = (weights * values).sum(dim=0) / total
    variance = (weights * (values - center).square()).sum(dim=0) / total
    return center, torch.where(variance.sqrt() > _ROUNDINGS * center.abs(), variance.sqrt(), 0.0)
