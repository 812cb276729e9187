"""The conformal quantile: which of the calibration scores a new one stays below, with a stated probability."""

import math
from fractions import Fraction

import torch
from torch import Tensor

from reghead._checks import check_floating, check_int, check_number, check_prefix
from reghead._reduction import trailing
from reghead.calibration._sorting import smallest

SLACK = 1e-12
"""Relative slack of sums of weights: above the rounding of the sum, far below the weight of one row."""


def exact_level(name: str, level: object) -> Fraction:
    """The fraction that a float between 0 and 1 stands for: 9/10 for 0.9, and also for 1 - 0.1 or 0.95 - 0.05.

    The nearest fraction with a denominator of at most 1e9: the rounding of a float or two is put right, and no level
    that people write moves.
    """
    number = check_number(name, level, above=0.0, below=1.0)
    if isinstance(level, Fraction):
        return level
    # Through the shortest text: a NumPy float32 of 0.9 means 0.9.
    exact = Fraction(float(str(level)))
    near = exact.limit_denominator(10**9)
    return near if 0 < near < 1 else Fraction(number)


def conformal_rank(count: int, confidence_level: float | Fraction) -> int:
    r"""Rank of the conformal quantile among ``count`` scores, 1 for the smallest.

    .. math:: k = \lceil (n + 1) c \rceil

    for n scores and confidence level :math:`c = 1 - \alpha`. A new score, exchangeable with the n, is at most the
    k-th smallest with a probability of at least c (Vovk, Gammerman and Shafer, "Algorithmic Learning in a Random
    World", 2005). The product is taken in exact fractions, as floats put it one too high or too low. A rank of
    ``count + 1`` means that there are too few scores: fewer than :math:`1 / \alpha - 1`.

    Args:
        count: Number of scores n.
        confidence_level: The level c, between 0 and 1. A float means the fraction it was rounded from.

    Raises:
        ValueError: If ``confidence_level`` is not strictly between 0 and 1.

    Example:
        >>> [conformal_rank(n, 0.9) for n in (8, 9, 19, 20)]
        [9, 9, 18, 19]
    """
    return math.ceil((check_int("count", count, 0) + 1) * exact_level("confidence_level", confidence_level))


@torch.no_grad()
def conformal_quantile(
    scores: Tensor,
    confidence_level: float | Fraction,
    *,
    weight: Tensor | None = None,
    test_weight: float = 1.0,
) -> Tensor:
    r"""Conformal quantile of calibration scores along their first dimension; infinite where they are too few.

    .. math:: \hat q = \inf \Big\{ s : \sum_{i : s_i \le s} w_i \ge c \, \Big(w_{n+1} + \sum_{i=1}^n w_i\Big) \Big\}

    Without weights it is the :math:`k`-th smallest score, see :func:`conformal_rank`. The weights are those of
    Tibshirani, Barber, Candès and Ramdas, "Conformal Prediction Under Covariate Shift", 2019, corollary 1: the ratio
    of the densities of the features at test and at calibration time, :math:`w_{n+1}` at the test row. Their sums are
    floating-point, with a relative slack of 1e-12. Has no gradient.

    Args:
        scores: The larger, the worse the prediction was. Shape ``(N, *)``.
        confidence_level: The level c, between 0 and 1.
        weight: Non-negative weights, shape ``(N,)`` or a longer prefix of the shape of ``scores``.
        test_weight: Positive weight :math:`w_{n+1}` of the row to be predicted.

    Returns:
        Shape ``(*)``, in the dtype of ``scores``.

    Raises:
        ValueError: If a score is NaN, or a weight is negative or not finite.

    Example:
        >>> scores = torch.tensor([4.0, 1.0, 3.0, 2.0])
        >>> conformal_quantile(scores, 0.8), conformal_quantile(scores, 0.9)
        (tensor(4.), tensor(inf))
        >>> conformal_quantile(scores, 0.5, weight=torch.tensor([0.0, 1.0, 1.0, 1.0]))
        tensor(2.)
    """
    level = exact_level("confidence_level", confidence_level)
    check_floating("scores", scores)
    if scores.ndim == 0:
        raise ValueError("scores must have shape (N, *), got a scalar; use scores.unsqueeze(0)")
    if scores.isnan().any():
        raise ValueError(f"scores must not be NaN, got {int(scores.isnan().sum())} of {scores.numel()}; leave them out")
    count, rest = scores.shape[0], scores.shape[1:]
    infinite = scores.new_full((1, *rest), torch.inf)
    if weight is None:
        rank = conformal_rank(count, level)
        return infinite[0] if rank > count else smallest(scores, rank)
    check_prefix("weight", weight, "scores", scores.shape)
    check_number("test_weight", test_weight, above=0.0)
    weight = weight.to(torch.float64)
    if not ((weight >= 0) & weight.isfinite()).all():
        raise ValueError("weight must be non-negative and finite, got a weight that is not")
    values, order = torch.cat([scores, infinite]).sort(dim=0)
    weights = trailing(weight, scores.ndim).expand(scores.shape)
    mass = torch.cat([weights, torch.full_like(infinite, test_weight, dtype=torch.float64)]).gather(0, order).cumsum(0)
    reached = mass >= float(level) * (1 - SLACK) * mass[-1:]
    return values.gather(0, reached.to(torch.uint8).argmax(dim=0, keepdim=True)).squeeze(0)
