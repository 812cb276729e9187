r"""Henderson's equations of a linear mixed model, with the cells' effects eliminated.

With :math:`b_f = \lambda_f v_f` and :math:`\gamma_f = \lambda_f^2 = \sigma_f^2 / \sigma^2`, best linear unbiased
prediction minimises

.. math:: \| W^{1/2} (u - X \beta - \textstyle\sum_f \lambda_f Z_f v_f) \|^2 + \sum_f \| v_f \|^2 ,

whose matrix :math:`M` stays regular at :math:`\gamma_f = 0` (Bates et al. 2015). Coefficients that are shrunk are one
more of the :math:`b_f`. Eliminating the effects of the cells leaves the others with the products around the cells'
means, and with the means weighted by :math:`n_k / (1 + \gamma n_k)` instead of :math:`n_k`: a sum of positive
semi-definite matrices, without differences of large numbers.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

# Of the target's variance: what is left of a target that is explained without noise. Rounding is below.
SMALLEST_VARIANCE = 1e-10
_EPSILON = torch.finfo(torch.float64).eps
# Numbers that products pooled by distinct count may take, 160 MB.
_POOL_LIMIT = 20_000_000  # pragma: no mutate
# Relative additions to the diagonal of a matrix that rounding keeps from being positive definite.
_JITTERS = tuple(10.0**power for power in range(-15, -1))


@dataclass(frozen=True, kw_only=True)
class ReducedEquations:
    """What is left of the equations when effects of their own of cells, or of profiles, are eliminated.

    Args:
        gram: Products around the means of the cells.
        moment: Those of the design and the target.
        square: Those of the target.
        count: Weights by cell. Shape ``(K,)``.
        features: Means of the first P columns of the design by cell. Shape ``(K, P)``.
        target: Means by cell. Shape ``(K,)``.
        owners: The variance component of each effect, -1 for a fixed one and for what has no part in the model.
            Shape ``(P + L,)``.
        components: The number of variance components, the last of them that of coefficients.
        cells: The component of the cells.
        fixed: The number of independent fixed effects.
    """

    gram: Tensor
    moment: Tensor
    square: Tensor
    count: Tensor
    features: Tensor
    target: Tensor
    owners: Tensor
    components: int
    cells: int
    fixed: int

    @property
    def free(self) -> Tensor:
        """Residual degrees of freedom, rows less fixed effects."""
        return self.gram[0, 0] + self.count.sum() - self.fixed

    def roots(self, ratios: Tensor) -> Tensor:
        r""":math:`\lambda` of each effect: 1 for a fixed one. Shape ``(P + L,)``."""
        return torch.where(self.owners < 0, 1.0, ratios[self.owners].sqrt())


def tells_levels(counts: Tensor) -> bool:
    """Whether levels of so many rows tell their variance: one alone is the intercept, and of one row each are noise."""
    return bool(((counts > 0).sum() > 1) & (counts > 1).any())


@dataclass(frozen=True, kw_only=True)
class Equations(ReducedEquations):
    """Those of one target column, with a dense matrix.

    The effects are the coefficients, P with the intercept first, and then the levels, L with the unknown first.
    ``gram`` has shape ``(P + L, P + L)``, ``moment`` ``(P + L,)``, and ``count`` is 0 for "no cell". The component
    ``cells`` has no other effects if cells are eliminated.

    Args:
        levels: For each factor the level of each cell, 0 for unknown; none if no cell is eliminated. Shape ``(K,)``.
    """

    levels: tuple[Tensor, ...]

    @cached_property
    def _distinct(self) -> tuple[Tensor, Tensor]:
        distinct, which = torch.unique(self.count, return_inverse=True)
        return distinct, which

    @cached_property
    def _pooled(self) -> Tensor | None:
        """Products of the means of cells with one count: few counts make thousands of cells one sum."""
        distinct, which = self._distinct
        if 2 * len(distinct) > len(which) + 2 or len(distinct) * self.gram.numel() > _POOL_LIMIT:  # pragma: no mutate
            return None
        ones = torch.ones_like(self.count)
        return torch.stack([self._products(rows, ones[rows]) for rows in _groups(which)])

    def _products(self, cells: Tensor | slice, weight: Tensor) -> Tensor:
        width, size, x = self.features.shape[1], len(self.gram), self.features[cells]
        result = torch.zeros_like(self.gram)
        flat, weighted = result.view(-1), weight.unsqueeze(1) * x
        result[:width, :width] = weighted.T @ x
        levels = [level[cells] for level in self.levels]
        for level in levels:
            result[width:, :width].index_add_(0, level, weighted)
            for other in levels:
                flat.index_add_(0, (width + level) * size + width + other, weight)
        # Level 0 is the unknown, without an effect.
        result[width] = result[:, width] = 0.0
        result[:width, width:] = result[width:, :width].T
        return result

    def between(self, ratio: Tensor, power: int = 1) -> Tensor:
        r"""Products of the cells' means, weighted by a power of :math:`\omega_k = n_k / (1 + \gamma n_k)`."""
        pooled, distinct = self._pooled, self._distinct[0]
        if pooled is None:
            return self._products(slice(None), weights(self.count, ratio) ** power)
        products: Tensor = torch.tensordot(weights(distinct, ratio) ** power, pooled, dims=1)
        return products

    def response(self, weight: Tensor) -> Tensor:
        """Sums over the cells of the means of the design, with a weight for each. Shape ``(P + L,)``."""
        width = self.features.shape[1]
        result = torch.zeros_like(self.moment)
        result[:width] = weight @ self.features
        for level in self.levels:
            result[width:].index_add_(0, level, torch.where(level > 0, weight, 0.0))
        return result

    def fitted(self, effects: Tensor) -> Tensor:
        """What the effects say of the mean of each cell. Shape ``(K,)``."""
        width = self.features.shape[1]
        result = self.features @ effects[:width]
        for level in self.levels:
            result = result + effects[width:].index_select(0, level)
        return result

    @cached_property
    def told(self) -> list[bool]:
        """Of each variance component, whether the data can tell it.

        The last component is the coefficients'.
        """
        rows = self.gram.diagonal() + self.between(self.count.new_zeros(())).diagonal()
        result = []
        for f in range(self.components):
            of = rows[self.owners == f]
            if f == self.components - 1:
                result.append(bool((of > 0).any()))
            else:
                counts = self.count if f == self.cells and not len(of) else of
                result.append(tells_levels(counts))
        return result


@dataclass(frozen=True)
class Solution:
    r"""Effects, and what their uncertainty follows from.

    Args:
        scaled: Effects over their :math:`\lambda`. Shape ``(P + L,)``.
        effects: Shape ``(P + L,)``.
        cell_effects: Shape ``(K,)``.
        matrix: :math:`S`, without the part of the penalty. Shape ``(P + L, P + L)``.
        triangle: The Cholesky factor of :math:`S`.
        variance: The REML estimate of :math:`\sigma^2`.
        deviance: Minus twice the profiled restricted log likelihood, less a constant.
        rounding: Of the deviance, by the difference of sums of squares that it contains.
    """

    scaled: Tensor
    effects: Tensor
    cell_effects: Tensor
    matrix: Tensor
    triangle: Tensor
    variance: Tensor
    deviance: Tensor
    rounding: Tensor

    @cached_property
    def inverse(self) -> Tensor:
        """:math:`S^{-1}`, shape ``(P + L, P + L)``."""
        return torch.cholesky_inverse(self.triangle)


def weights(count: Tensor, ratio: Tensor) -> Tensor:
    r""":math:`\omega_k = n_k / (1 + \gamma n_k)`, what the mean of a cell with an effect tells of other effects."""
    return count / (1 + ratio * count)


def quadratic_form(inverse: Tensor, fixed: Tensor, levels: Sequence[Tensor], factors: Sequence[Tensor]) -> Tensor:
    r""":math:`r^\top S^{-1} r` for vectors that are dense in the coefficients and have one entry per factor.

    Args:
        inverse: Shape ``(P + L, P + L)``.
        fixed: Shape ``(R, P)``.
        levels: Where the entry of each factor is, shape ``(R,)``.
        factors: What the entry is, shape ``(R,)``.
    """
    width = fixed.shape[1]
    crossed = inverse[width:, :width]
    total = ((fixed @ inverse[:width, :width]) * fixed).sum(dim=1)
    flat, size = inverse[width:, width:].reshape(-1), len(crossed)
    for i, (level, factor) in enumerate(zip(levels, factors, strict=True)):
        total = total + 2 * factor * (crossed.index_select(0, level) * fixed).sum(dim=1)
        total = total + factor.square() * flat.index_select(0, level * size + level)
        for other, other_factor in zip(levels[:i], factors[:i], strict=True):
            total = total + 2 * factor * other_factor * flat.index_select(0, level * size + other)
    return total


def solve(equations: Equations, ratios: Tensor) -> Solution:
    r"""Solve the equations.

    Args:
        equations: Of one target column.
        ratios: :math:`\gamma` of each component.
    """
    e, ratio = equations, ratios[equations.cells]
    omega, roots = weights(e.count, ratio), e.roots(ratios)
    matrix = roots.unsqueeze(1) * (e.gram + e.between(ratio)) * roots
    right = roots * (e.moment + e.response(omega * e.target))
    # A coordinate that is fixed and has only zeros lacks rank: a 1 leaves it out of determinants and solutions.
    alone = (e.owners >= 0) | (matrix.diagonal() <= 0)
    triangle = factorize(matrix + torch.diag(alone.to(matrix.dtype)))
    scaled = torch.cholesky_solve(right.unsqueeze(1), triangle).squeeze(1)
    total = e.square + (omega * e.target.square()).sum()
    squares = (total - right @ scaled).clamp(min=0.0) + SMALLEST_VARIANCE * (e.free + e.fixed)
    effects = roots * scaled
    return Solution(
        scaled=scaled,
        effects=effects,
        cell_effects=ratio * omega * (e.target - e.fitted(effects)),
        matrix=matrix,
        triangle=triangle,
        variance=squares / e.free,
        deviance=2 * triangle.diagonal().log().sum() + (ratio * e.count).log1p().sum() + e.free * squares.log(),
        rounding=_EPSILON * (1 + e.free * total / squares),
    )


def factorize(matrix: Tensor) -> Tensor:
    """The Cholesky factor of a positive semi-definite matrix.

    Directions without information, of eigenvalues that rounding makes 0 or less, are shrunk: the diagonal grows by the
    smallest share, from 1e-15 on, with which there is a factor.
    """
    triangle: Tensor
    triangle, failed = torch.linalg.cholesky_ex(matrix)
    for jitter in _JITTERS:
        if not failed:
            break
        triangle, failed = torch.linalg.cholesky_ex(matrix + jitter * torch.diag(matrix.diagonal()))
    return triangle


def _groups(which: Tensor) -> Sequence[Tensor]:
    """The positions of each integer from 0 on."""
    return torch.split(which.argsort(), torch.bincount(which).tolist())
