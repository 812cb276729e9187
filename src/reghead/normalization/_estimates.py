r"""From moments to a location and a scale for every cell, with the rules for cells that have little or no data.

One rule of degrees of freedom holds throughout, with :math:`n` the sum of the frequency weights: a variance is a sum
of squares divided by its degrees of freedom, :math:`n - 1` in a cell, :math:`\sum_k (n_k - 1)` pooled within cells
and :math:`N - 1` for the population.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from reghead.categories import GroupStatistics
from reghead.normalization._additive import main_effects
from reghead.normalization._cells import CellLayout

# A standard deviation of a few roundings of the mean is that of a constant.
_ROUNDINGS = 8 * torch.finfo(torch.float64).eps


@dataclass(frozen=True)
class Estimates:
    """What normalizing needs. K rows, the first for the population; D targets; L levels and the intercept.

    Args:
        location: Shape ``(K, D)``.
        scale: Positive. Shape ``(K, D)``.
        effects: Intercept and main effects, NaN for a level without data. Shape ``(L, D)``.
        effect_scale: The scale around the main effects. Shape ``(D,)``.
    """

    location: Tensor
    scale: Tensor
    effects: Tensor
    effect_scale: Tensor


def estimate(statistics: GroupStatistics, layout: CellLayout, shrinkage: str, fallback: str) -> Estimates:
    """Location and scale of the cells in ``statistics``, whose first row is key 0: the rows in no cell."""
    total = statistics.total()
    count = total.count[0]
    few = (count > 0) & (count <= 1) & (total.m2[0] > 0)
    if few.any():
        raise ValueError(
            f"the weights of all rows sum to {float(count[few][0]):g}, and a variance needs more than 1; "
            "they are frequencies, so multiply weights that sum to 1 by the number of rows"
        )
    global_mean = torch.where(count > 0, total.mean[0], torch.nan)
    global_m2 = _significant(total)[0]
    global_df = count - 1
    global_var = torch.where((global_df > 0) & (global_m2 > 0), global_m2 / global_df, 1.0)
    global_var = torch.where(count > 0, global_var, torch.nan)

    cells = GroupStatistics(*(part[1:] for part in statistics.parts))
    n, df = cells.count, (cells.count - 1).clamp(min=0.0)
    m2 = torch.where(df > 0, _significant(cells), 0.0)
    pooled_df = df.sum(dim=0)
    within_var = torch.where(pooled_df > 0, m2.sum(dim=0) / pooled_df, global_var)
    pooled_var = torch.where(within_var > 0, within_var, global_var)

    effects = n.new_full((layout.levels if fallback == "additive" else 0, n.shape[1]), torch.nan)
    unsampled_mean, unsampled_var = global_mean.expand_as(n), global_var
    leverage = n / count.clamp(min=1.0)
    if fallback == "additive":
        effects, unsampled_mean, leverage = _additive(cells, layout, global_mean)
        unsampled_var = pooled_var

    mean, variance = cells.mean, torch.where(m2 > 0, m2 / df, pooled_var)
    if shrinkage == "empirical_bayes":
        weight = _mean_credibility(mean - unsampled_mean, n, within_var, leverage)
        mean = unsampled_mean + weight * (mean - unsampled_mean)
        variance = _shrink_variance(m2, df, within_var, pooled_var)
    mean = torch.where(n > 0, mean, unsampled_mean)
    variance = torch.where(n > 0, variance, unsampled_var)
    return Estimates(
        location=torch.cat([global_mean.unsqueeze(0), mean]),
        scale=torch.cat([global_var.unsqueeze(0), variance]).sqrt(),
        effects=effects,
        effect_scale=pooled_var.sqrt(),
    )


def _significant(statistics: GroupStatistics) -> Tensor:
    """The sums of squares, 0 where they are no more than the rounding of a constant."""
    rounding = statistics.count * (_ROUNDINGS * statistics.mean).square()
    return torch.where(statistics.m2 > rounding, statistics.m2, 0.0)


def _additive(cells: GroupStatistics, layout: CellLayout, global_mean: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    r"""Effects with intercept, their fit at the cells, and the cells' leverages on that fit.

    The leverage :math:`n_k (\sum_c 1/n_{\ell_c(k)} - (C - 1)/N)` is exact where counts are proportional, sums to the
    rank of a connected design, and needs no inverse.
    """
    levels = layout.effect_rows(layout.ids(cells.keys))
    count = cells.count.sum(dim=0)
    average = cells.total()
    intercept = torch.where(count > 0, average.mean[0], global_mean)
    deviation = (cells.mean - average.mean) + (cells.mean_tail - average.mean_tail)
    effects = main_effects(deviation, cells.count, levels, layout.levels)
    fit, inverse_count = intercept.expand_as(cells.mean).clone(), torch.zeros_like(cells.mean)
    level_count = torch.zeros_like(effects)
    for level in levels:
        level_count.index_put_((level,), cells.count, accumulate=True)
    for level in levels:
        fit += effects[level]
        inverse_count += 1 / level_count[level]
    leverage = cells.count * (inverse_count - (len(levels) - 1) / count)
    leverage = torch.where(cells.count > 0, leverage, 0.0).clamp(0.0, 1.0)
    effects = torch.where(level_count > 0, effects, torch.nan)
    effects[0] = intercept
    return effects, fit, leverage


def _mean_credibility(deviation: Tensor, n: Tensor, within_var: Tensor, leverage: Tensor) -> Tensor:
    r"""Weight of a cell's own mean, :math:`\tau^2 / (\tau^2 + \sigma^2 / n_k)`, in empirical Bayes.

    :math:`\tau^2` is estimated by the method of moments (DerSimonian and Laird 1986, with leverages so that the prior
    mean may be a regression): it solves :math:`\sum_k n_k e_k^2 = \sum_k (1 - h_k)(\sigma^2 + n_k \tau^2)` for the
    deviations :math:`e_k` from the prior mean, and is 0, complete pooling, where that is negative.
    """
    spread = torch.where(n > 0, n * deviation.square(), 0.0).sum(dim=0)
    free = torch.where(n > 0, 1 - leverage, 0.0)
    expected, slope = (free * within_var).sum(dim=0), (free * n).sum(dim=0)
    between_var = torch.where(slope > 0, (spread - expected) / slope, 0.0).clamp(min=0.0)
    noise = torch.where(n > 0, within_var / n, torch.inf)
    # Neither within nor between variance: the means agree, and every weight gives the same.
    return torch.where(between_var + noise > 0, between_var / (between_var + noise), 1.0)


def _shrink_variance(m2: Tensor, df: Tensor, within_var: Tensor, pooled_var: Tensor) -> Tensor:
    r"""Cell variances shrunk toward the pooled one, :math:`(a s_0^2 + d_k s_k^2) / (a + d_k)`.

    Linear (Buehlmann) credibility, which equals the posterior mean under an inverse chi-square prior (Smyth 2004):
    :math:`a = 2 + 2/v`, with :math:`v` the squared coefficient of variation of the true variances, by moments from
    :math:`E \sum_k d_k (s_k^2/s_0^2 - 1)^2 = 2 K (1 + v) + v \sum_k d_k` for normal data. At :math:`v = 0` all cells
    have the pooled variance.
    """
    ratio = torch.where((df > 0) & (within_var > 0), m2 / df / within_var, 1.0)
    groups = (df > 0).sum(dim=0).to(df.dtype)
    dispersion = (df * (ratio - 1).square()).sum(dim=0)
    # One group's worth of dispersion is spent on estimating the pooled variance.
    variation = ((dispersion - 2 * (groups - 1)) / (df.sum(dim=0) + 2 * groups)).clamp(min=0.0)
    prior_df = torch.where(variation > 0, 2 + 2 / variation, torch.inf)
    own = torch.where(prior_df.isinf(), 0.0, df / (prior_df + df))
    return pooled_var * (1 + own * (ratio - 1))
