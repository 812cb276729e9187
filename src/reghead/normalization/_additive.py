"""Main effects of the columns, by weighted least squares over the observed cells."""

from collections.abc import Sequence

import torch
from torch import Tensor


def main_effects(deviation: Tensor, weight: Tensor, levels: Sequence[Tensor], size: int) -> Tensor:
    r"""Effects :math:`b` that minimise :math:`\sum_k w_k (d_k - \sum_c b_{\ell_c(k)})^2`.

    Conjugate gradients from zero on the normal equations, preconditioned by the weight :math:`W_\ell` of each level.
    Of all solutions this is the one with the smallest :math:`\sum_\ell W_\ell b_\ell^2`, so a design that leaves
    contrasts undetermined (disconnected, or empty levels) has an answer too. The effects of each column have weighted
    mean 0: to leave a column's effect out is to take its average.

    Args:
        deviation: The cells' means minus the intercept, with :math:`\sum_k w_k d_k = 0`. Shape ``(K, D)``.
        weight: The cells' counts. Shape ``(K, D)``.
        levels: For each column, the row of the effects that applies to each cell, shape ``(K,)``.
        size: The number of rows of the effects, L.

    Returns:
        The effects, shape ``(L, D)``; 0 for a level without weight.
    """
    indices = [level.unsqueeze(1).expand_as(deviation) for level in levels]

    def gather(effects: Tensor) -> Tensor:
        fitted = torch.zeros_like(deviation)
        for level in levels:
            fitted += effects.index_select(0, level)
        return fitted

    def scatter(rows: Tensor) -> Tensor:
        sums = rows.new_zeros(size, rows.shape[1])
        for index in indices:
            sums.scatter_add_(0, index, rows)
        return sums

    level_weight = scatter(weight)
    preconditioner = torch.where(level_weight > 0, 1 / level_weight, 0.0)
    best = effects = torch.zeros_like(level_weight)
    residual = scatter(weight * deviation)
    direction = scaled = preconditioner * residual
    smallest = norm = (residual * scaled).sum(dim=0)
    tolerance = 1e-24 * norm
    # Exact arithmetic ends within L steps; all but long chains of levels need some tens.
    for _ in range(min(20 * size, 5_000)):
        active = norm > tolerance
        if not active.any():
            break
        image = scatter(weight * gather(direction))
        curvature = (direction * image).sum(dim=0)
        step = torch.where(curvature > 0, norm / curvature, 0.0)  # 0 for a column that is solved: its norm is 0
        effects = effects + step * direction
        residual = residual - step * image
        scaled = preconditioner * residual
        following = (residual * scaled).sum(dim=0)
        direction = scaled + torch.where(active, following / norm, 0.0) * direction
        norm = torch.where(active & (curvature > 0), following, 0.0)
        # Rounding may stop the descent above the tolerance and turn it around: keep the lowest point.
        improved = active & (curvature > 0) & (norm < smallest)
        best, smallest = torch.where(improved, effects, best), torch.where(improved, norm, smallest)
    return best
