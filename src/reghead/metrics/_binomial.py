"""What a count of independent events says of their probability, and a probability of the count."""

import math

import torch
from torch import Tensor

from reghead._checks import check_number, check_shape

TAIL = 0.025
_STEPS = 100  # of Newton's method; it takes about six
_TERMS = 100_000  # of a continued fraction, which takes about the root of the count


def binomial_band(count: int, probability: float) -> tuple[float, float]:
    """Between which shares of ``count`` independent events lies with 95 %: exact, from the binomial distribution."""
    sd = (count * probability * (1.0 - probability)) ** 0.5
    # What is 12 standard deviations away, or further, cannot be told from nothing, and counts may be in the millions.
    first = max(0, int(count * probability - 12.0 * sd) - 12)
    last = min(count, int(count * probability + 12.0 * sd) + 12)
    events = torch.arange(first, last + 1, dtype=torch.float64)
    others = count - events
    ways = math.lgamma(count + 1.0) - torch.lgamma(events + 1.0) - torch.lgamma(others + 1.0)
    below = (ways + events * math.log(probability) + others * math.log1p(-probability)).exp().cumsum(0)
    # The sum ends at 1 but for rounding, and 1 - 0.025 is far from that rounding.
    ends = torch.searchsorted(below, torch.tensor([TAIL, 1.0 - TAIL], dtype=torch.float64))
    low, high = (events[ends] / count).tolist()
    return low, high


def binomial_interval(events: Tensor, count: Tensor, confidence_level: float = 0.95) -> tuple[Tensor, Tensor]:
    r"""Confidence interval of a probability, from how often its event happened: exact (Clopper-Pearson).

    With :math:`k` events among :math:`n`, :math:`\alpha = 1 - \mathtt{confidence\_level}` and the quantile function
    :math:`B^{-1}` of the beta distribution,

    .. math:: \left[B^{-1}(\alpha / 2;\, k,\, n - k + 1),\; B^{-1}(1 - \alpha / 2;\, k + 1,\, n - k)\right]

    from 0 where :math:`k = 0` and up to 1 where :math:`k = n`. Clopper and Pearson, "The Use of Confidence or Fiducial
    Limits Illustrated in the Case of the Binomial", 1934. It holds the true probability with at least the confidence
    level, whatever the probability and however few the events, if these are independent: rows that share their luck,
    such as those of one day, make it too narrow.

    ``events`` and ``count`` need not be whole: with unequal weights give the effective count
    :math:`n = (\sum w)^2 / \sum w^2` and :math:`k = n` times the weighted share (Korn and Graubard, "Confidence
    Intervals for Proportions with Small Expected Number of Positive Counts Estimated from Survey Data", 1998).

    Args:
        events: How often the event happened, from 0 to ``count``.
        count: How often it could have happened. Shape of ``events``.
        confidence_level: How often such intervals hold the true probability.

    Returns:
        Lower and upper ends as float64 on the CPU, in the shape of ``events``: 0 and 1 where ``count`` is 0, NaN where
        an argument is.

    Raises:
        ValueError: If the shapes differ, an event count is not in its range, or ``confidence_level`` is not between 0
            and 1.

    Example:
        >>> import torch
        >>> low, high = binomial_interval(torch.tensor([0.0, 1.0]), torch.tensor([1.0, 1.0]), confidence_level=0.9)
        >>> low, high  # at a probability of 0.95 one trial is without the event with 0.05
        (tensor([0.0000, 0.0500], dtype=torch.float64), tensor([0.9500, 1.0000], dtype=torch.float64))
    """
    tail = 0.5 * (1.0 - check_number("confidence_level", confidence_level, above=0.0, below=1.0))
    check_shape("count", count, events.shape, "of events")
    k, n = (tensor.detach().cpu().double() for tensor in (events, count))
    if ((k < 0.0) | (k > n)).any():
        worst = int(torch.where((k < 0.0) | (k > n), 1, 0).argmax())
        raise ValueError(
            f"events must be from 0 to count, got {k.flatten()[worst]:g} of {n.flatten()[worst]:g}; give how often the "
            "event happened, not its share"
        )
    return _lower(k, n, tail), 1.0 - _lower(n - k, n, tail)


def _lower(k: Tensor, n: Tensor, tail: float) -> Tensor:
    """The probability at which ``k`` events or more have probability ``tail``."""
    solvable = (k > 0.0) & k.isfinite() & n.isfinite()
    a = torch.where(solvable, k, 1.0)
    b = torch.where(solvable, n - k + 1.0, 1.0)
    log_beta = a.lgamma() + b.lgamma() - (a + b).lgamma()
    low, high, x = torch.zeros_like(a), torch.ones_like(a), a / (a + b)
    for _ in range(_STEPS):
        excess = _beta_cdf(x, a, b, log_beta) - tail
        low, high = torch.where(excess < 0.0, x, low), torch.where(excess < 0.0, high, x)
        density = ((a - 1.0) * x.log() + (b - 1.0) * torch.log1p(-x) - log_beta).exp()
        step = x - excess / density
        step = torch.where((step > low) & (step < high), step, 0.5 * (low + high))
        change, x = ((step - x).abs() / step).max() if x.numel() else x.new_zeros(()), step
        if change < 1e-13:
            break
    # What is NaN stays NaN.
    return torch.where(solvable, x, 0.0 * (k + n))


def _beta_cdf(x: Tensor, a: Tensor, b: Tensor, log_beta: Tensor) -> Tensor:
    """Regularised incomplete beta function, by its continued fraction (Abramowitz and Stegun, 1964, 26.5.8)."""
    mirrored = x > (a + 1.0) / (a + b + 2.0)  # where the fraction of the other tail converges faster
    x, a, b = torch.where(mirrored, 1.0 - x, x), torch.where(mirrored, b, a), torch.where(mirrored, a, b)
    front = (a * x.log() + b * torch.log1p(-x) - log_beta).exp() / a
    # Lentz's method, which goes forward until nothing changes.
    numerator, denominator = torch.ones_like(x), 1.0 / _not_zero(1.0 - (a + b) * x / (a + 1.0))
    fraction = denominator
    for m in range(1, _TERMS):
        for d in (
            m * (b - m) * x / ((a + 2 * m - 1.0) * (a + 2 * m)),
            -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1.0)),
        ):
            denominator = 1.0 / _not_zero(1.0 + d * denominator)
            numerator = _not_zero(1.0 + d / numerator)
            factor = numerator * denominator
            fraction = fraction * factor
        if not ((factor - 1.0).abs() > 1e-14).any():
            break
    below = front * fraction
    return torch.where(mirrored, 1.0 - below, below)


def _not_zero(values: Tensor) -> Tensor:
    return torch.where(values.abs() < 1e-300, 1e-300, values)
