"""Conformal quantiles per category, partially pooled with those of all rows."""

from fractions import Fraction

import torch
from torch import Tensor

from reghead.calibration._quantile import SLACK, conformal_quantile
from reghead.calibration._sorting import sort, sort_within


def pooled_quantiles(
    scores: Tensor, rows: Tensor, size: int, level: Fraction, pooling: float | None, min_count: int
) -> Tensor:
    r"""The quantile of every category from a mixture of its own scores and those of all rows.

    .. math::
        F_g = \lambda_g \, \frac{\delta_\infty + \sum_{i \in g} \delta_{s_i}}{n_g + 1}
        + (1 - \lambda_g) \, \frac{\delta_\infty + \sum_i \delta_{s_i}}{N + 1}, \qquad
        \lambda_g = \frac{n_g}{n_g + m}

    Both parts are conformal: at :math:`m = 0` the quantile of :math:`F_g` is the category's own, at :math:`n_g = 0`
    that of all rows. The share is that of the posterior mean under a Dirichlet process prior of strength m around the
    population (Ferguson 1973, theorem 1).

    Args:
        scores: Shape ``(N,)``.
        rows: The category of each score, in ``[0, size)``; 0 is none. Shape ``(N,)``.
        size: Number of categories, and one for none.
        level: The confidence level.
        pooling: Strength m, in rows. None: infinite.
        min_count: A category with fewer rows takes the quantile of all.

    Returns:
        Shape ``(size,)``; entry 0 is the quantile of all rows.
    """
    parent = conformal_quantile(scores, level)
    result = parent.expand(size).clone()
    counts = torch.bincount(rows, minlength=size)
    active = (counts >= max(min_count, 1)).nonzero().squeeze(-1)
    active = active[active > 0]
    if pooling is None or not len(active):
        return result
    total = len(scores)
    ordered = torch.cat([sort(scores), scores.new_full((1,), torch.inf)])
    grouped, start = sort_within(scores, rows, counts), (counts.cumsum(0) - counts)[active]
    own = counts[active].to(torch.float64)
    share = own / (own + pooling)
    own_step, all_step = share / (own + 1), (1 - share) / (total + 1)
    # All categories bisect at once for the first position with enough mass; the position after the last is infinity.
    low, high = torch.zeros_like(active), torch.full_like(active, total)
    for _ in range(total.bit_length()):
        middle = (low + high) // 2
        below = _at_most(ordered[middle], grouped, start, counts[active])
        enough = own_step * below + all_step * (middle + 1) >= float(level) * (1 - SLACK)
        low, high = torch.where(enough, low, middle + 1), torch.where(enough, middle, high)
    result[active] = ordered[high]
    return result


def _at_most(bound: Tensor, grouped: Tensor, start: Tensor, count: Tensor) -> Tensor:
    """For each category, how many of the ``count`` scores that begin at ``start`` are at most its ``bound``."""
    low, high = torch.zeros_like(count), count
    for _ in range(int(count.max()).bit_length()):
        middle = (low + high) // 2
        within = (low < high) & (grouped[(start + middle).clamp(max=len(grouped) - 1)] <= bound)
        low, high = torch.where(within, middle + 1, low), torch.where(within, high, middle)
    return low
