"""What a linear mixed model needs of the rows: sums by cell and over all rows, which more rows only add to."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

_BLOCK = 1 << 15  # pragma: no mutate


@dataclass(frozen=True)
class MixedSums:
    r"""Means by cell, and weighted sums of products of what is around them.

    The rows of the design are :math:`t = (1, x, \text{levels})`, where each level has a 1 in its rows. Sums of products
    around the means of cells lose no digits to a difference of large sums, and stay positive semi-definite. Rows
    without a cell, key 0, are summed as they are: that cell has the count 0 and no mean.

    K cells, F features, L levels, D target columns; G is 1 where the same rows with the same weights count in all
    target columns, and D otherwise.

    Args:
        keys: Cells, sorted, the first of them 0. Shape ``(K,)``.
        level_ids: Levels, sorted, the first of them 0, the unknown, which has no sums. Shape ``(L,)``.
        count: Weights by cell. Shape ``(G, K)``.
        features: Means of the features by cell. Shape ``(G, K, F)``.
        target: Means of the target by cell. Shape ``(D, K)``.
        gram: Products of the design. Shape ``(G, 1 + F + L, 1 + F + L)``.
        moment: The design times the target. Shape ``(D, 1 + F + L)``.
        square: Squares of the target. Shape ``(D,)``.
    """

    keys: Tensor
    level_ids: Tensor
    count: Tensor
    features: Tensor
    target: Tensor
    gram: Tensor
    moment: Tensor
    square: Tensor

    @property
    def parts(self) -> tuple[Tensor, ...]:
        """The tensors, in the order of the fields."""
        return (
            self.keys,
            self.level_ids,
            self.count,
            self.features,
            self.target,
            self.gram,
            self.moment,
            self.square,
        )

    @property
    def total(self) -> Tensor:
        """The weight of all rows. Shape ``(D,)``."""
        return (self.count.sum(dim=1) + self.gram[:, 0, 0]).expand(len(self.square))

    @property
    def design_means(self) -> Tensor:
        """Means by cell of the design without the levels. Shape ``(G, K, 1 + F)``."""
        return torch.cat([torch.ones_like(self.count).unsqueeze(2), self.features], dim=2)

    @classmethod
    def from_rows(
        cls,
        keys: Tensor,
        levels: Sequence[Tensor],
        features: Callable[[slice], Tensor],
        target: Tensor,
        weight: Tensor,
    ) -> Self:
        """Sum the rows, block by block.

        Args:
            keys: The cell of each row, 0 for none. Shape ``(R,)``.
            levels: The levels of each row, 0 for unknown ones. Shape ``(R,)`` each.
            features: The features of a slice of the rows. Shape ``(r, F)``.
            target: Finite also where the weight is 0. Shape ``(R, D)``.
            weight: Shape ``(R, 1)`` or ``(R, D)``.
        """
        keys, cell = torch.unique(torch.cat([keys.new_zeros(1), keys]), return_inverse=True)
        level_ids = torch.unique(torch.cat([keys.new_zeros(1), *levels]))
        levels, cell = [torch.searchsorted(level_ids, level) for level in levels], cell[1:]
        blocks = [slice(start, start + _BLOCK) for start in range(0, len(target), _BLOCK)]
        width, columns, groups = 1 + features(slice(0, 0)).shape[1], target.shape[1], weight.shape[1]

        count = target.new_zeros(groups, len(keys)).index_add_(1, cell, weight.T)
        means = target.new_zeros(groups, len(keys), width - 1)
        for rows in blocks:
            x = features(rows)
            for g in range(groups):
                means[g].index_add_(0, cell[rows], weight[rows, g, None] * x)
        targets = target.new_zeros(columns, len(keys)).index_add_(1, cell, (weight * target).T)
        count[:, 0] = 0.0
        positive = torch.where(count > 0, count, torch.inf)
        means, targets = means / positive.unsqueeze(2), targets / positive

        size = width + len(level_ids)
        gram, moment = target.new_zeros(groups, size, size), target.new_zeros(columns, size)
        square = target.new_zeros(columns)
        for rows in blocks:
            x, outside, w = features(rows), cell[rows] == 0, weight[rows]
            y = target[rows] - targets.T[cell[rows]]
            square += (w * y.square()).sum(dim=0)
            for g in range(groups):
                design = torch.cat([outside.unsqueeze(1), x - means[g][cell[rows]]], dim=1)
                own = slice(None) if groups == 1 else slice(g, g + 1)
                _add_products(
                    gram[g],
                    moment[own],
                    design,
                    [level[rows] for level in levels] if outside.any() else [],
                    outside,
                    y[:, own],
                    w[:, g],
                )
        gram[:, width] = gram[:, :, width] = moment[:, width] = 0.0
        gram[:, :width, width:] = gram[:, width:, :width].mT
        return cls(keys, level_ids, count, means, targets, gram, moment, square)

    def merge(self, other: "MixedSums") -> "MixedSums":
        """The sums over the rows of both (Chan, Golub and LeVeque 1983)."""
        keys = torch.unique(torch.cat([self.keys, other.keys]))
        level_ids = torch.unique(torch.cat([self.level_ids, other.level_ids]))
        groups = max(len(self.gram), len(other.gram))
        mine, theirs = self._spread(keys, level_ids, groups), other._spread(keys, level_ids, groups)
        count = mine.count + theirs.count
        positive = torch.where(count > 0, count, torch.inf)
        share, both = theirs.count / positive, mine.count * theirs.count / positive
        step, rise = theirs.features - mine.features, theirs.target - mine.target
        gram, moment = mine.gram + theirs.gram, mine.moment + theirs.moment
        inner = slice(1, 1 + step.shape[2])
        gram[:, inner, inner] += (both.unsqueeze(2) * step).mT @ step
        moment[:, inner] += ((both * rise).unsqueeze(1) @ step).squeeze(1)
        return MixedSums(
            keys,
            level_ids,
            count,
            mine.features + share.unsqueeze(2) * step,
            mine.target + share * rise,
            gram,
            moment,
            mine.square + theirs.square + (both * rise.square()).sum(dim=1),
        )

    def _spread(self, keys: Tensor, level_ids: Tensor, groups: int) -> "MixedSums":
        """The same sums with room for more cells and levels, and for groups that are no longer the same."""
        width = 1 + self.features.shape[2]
        at = torch.searchsorted(keys, self.keys)
        rows = torch.cat([torch.arange(width), width + torch.searchsorted(level_ids, self.level_ids)])
        size, new = width + len(level_ids), self.square.new_zeros
        gram = new(groups, size, size)
        gram[:, rows.unsqueeze(1), rows] = self.gram.expand(groups, -1, -1)
        return MixedSums(
            keys,
            level_ids,
            new(groups, len(keys)).index_copy_(1, at, self.count.expand(groups, -1).contiguous()),
            new(groups, len(keys), width - 1).index_copy_(1, at, self.features.expand(groups, -1, -1).contiguous()),
            new(len(self.target), len(keys)).index_copy_(1, at, self.target),
            gram,
            new(len(self.target), size).index_copy_(1, rows, self.moment),
            self.square,
        )


def _add_products(
    gram: Tensor,
    moment: Tensor,
    design: Tensor,
    levels: Sequence[Tensor],
    outside: Tensor,
    target: Tensor,
    weight: Tensor,
) -> None:
    """Add the products of a block of rows; those between the design and the levels below the diagonal only.

    Within a cell the levels do not vary: only rows outside have products with them.
    """
    width, size = design.shape[1], len(gram)
    weighted = weight.unsqueeze(1) * design
    gram[:width, :width] += weighted.T @ design
    moment[:, :width] += target.T @ weighted
    if levels:
        outer, flat = torch.where(outside, weight, 0.0), torch.zeros_like(gram).view(-1)
        weighted, response = outer.unsqueeze(1) * design, outer * target.T
        for level in levels:
            gram[width:, :width].index_add_(0, level, weighted)
            moment[:, width:].index_add_(1, level, response)
            for other in levels:
                flat.index_add_(0, (width + level) * size + width + other, outer)
        gram += flat.view(size, size)


def independent_basis(gram: Tensor) -> Tensor:
    r"""A matrix T whose product with the design has uncorrelated columns of mean square 1, or 0 where it lacks rank.

    The first column is the intercept's. The others are principal components of the features around their mean, those
    with more than :math:`10^{-9}` of the largest variance: features that are constant, repeated or combinations of
    others leave a column of zeros, and the fit has the smallest coefficients.

    Args:
        gram: Sums of products of the design, intercept first. Shape ``(P, P)``.
    """
    size = len(gram)
    basis = torch.zeros_like(gram)
    basis[0, 0] = 1.0
    if size > 1:
        covariance, mean = _covariance(gram)
        variance, vectors = torch.linalg.eigh(covariance)
        # Features come with a variance of 1 or 0, so 1 is the size that rounding is measured against.
        kept = variance > _RANK * variance[-1].clamp(min=1e-3)
        scaled = torch.where(kept, vectors / torch.where(kept, variance, 1.0).sqrt(), 0.0)
        basis[1:, 1:] = scaled
        basis[0, 1:] = -mean @ scaled
    return basis


def scaled_basis(gram: Tensor) -> Tensor:
    """A diagonal matrix whose product with the design has features of variance 1, or 0 where they are constant."""
    variance = _covariance(gram)[0].diagonal()
    varies = variance > _RANK
    scales = torch.where(varies, 1 / torch.where(varies, variance, 1.0).sqrt(), 0.0)
    return torch.diag(torch.cat([torch.ones_like(gram[0, :1]), scales]))


# The share of the largest variance, below which a direction is taken for rounding.
_RANK = 1e-9


def _covariance(gram: Tensor) -> tuple[Tensor, Tensor]:
    mean = gram[0, 1:] / gram[0, 0]
    return gram[1:, 1:] / gram[0, 0] - torch.outer(mean, mean), mean
