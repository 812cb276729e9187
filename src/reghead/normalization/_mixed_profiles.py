r"""Henderson's equations of crossed factors with many levels, by their products with vectors.

The rows are summed by profile, the combination of the ids of all columns, 0 included. In the notation of the equations
with a dense matrix,

.. math:: M = \Lambda (X_w^\top X_w + T^\top \Omega T) \Lambda + I, \qquad
    \omega_k = \frac{n_k}{1 + \gamma n_k} ,

with the features around the means of their profiles, :math:`X_w`, and the means, :math:`T`, which have one entry for
each factor. :math:`\gamma` is that of the cells for a profile that has an effect of its own, and 0 for others; a fixed
effect has no :math:`I`. A product costs one pass over the profiles. The matrix is never built.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from reghead.normalization._mixed_iterate import Iterated, conjugate_gradients
from reghead.normalization._mixed_solve import ReducedEquations, factorize, tells_levels, weights

# Numbers in what is gathered for a block of profiles: in cache, a product is several times faster.
_BLOCK = 1 << 18  # pragma: no mutate


@dataclass(frozen=True, kw_only=True)
class ProfileEquations(ReducedEquations):
    """Those of one target column, with profiles for cells and without a matrix.

    The effects are the coefficients, P with the intercept first, and then the levels, L with the unknown first.
    ``gram`` has shape ``(P, P)`` and ``moment`` ``(P,)``; the component ``cells`` is that of the profiles' own effects,
    or of the combinations of some columns.

    Args:
        places: For each factor where the effect of each profile is, ``P`` for none. Shape ``(K,)``.
        eliminated: The profiles that have an effect of their own. Shape ``(K,)``.
    """

    places: tuple[Tensor, ...]
    eliminated: Tensor

    @property
    def width(self) -> int:
        """The number of coefficients, P."""
        return len(self.gram)

    def fitted(self, effects: Tensor, rows: slice) -> Tensor:
        """What columns of effects, shape ``(P + L, R)``, say of the means of some profiles."""
        result = self.features[rows] @ effects[: self.width]
        for place in self.places:
            result += effects.index_select(0, place[rows])
        return result

    def add_response(self, total: Tensor, weighted: Tensor, rows: slice) -> None:
        """Add to ``total``, shape ``(P + L, R)``, the means of the design of some profiles times ``weighted``."""
        total[: self.width] += self.features[rows].T @ weighted
        for place in self.places:
            total.index_add_(0, place[rows], weighted)

    def blocks(self, columns: int) -> Iterator[slice]:
        """The profiles, block by block, for a number of columns."""
        size = max(1, _BLOCK // columns)  # pragma: no mutate
        return (slice(start, start + size) for start in range(0, len(self.count), size))

    @cached_property
    def told(self) -> list[bool]:
        """Of each variance component, whether the data can tell it.

        The last component is the coefficients'.
        """
        rows = self.count.new_zeros(len(self.owners))
        for place in self.places:
            rows.index_add_(0, place, self.count)
        result = []
        for f in range(self.components - 1):
            of = rows[self.owners == f]
            of = self.count[self.eliminated] if f == self.cells and not len(of) else of
            result.append(tells_levels(of))
        varies = self.gram.diagonal() + self.count @ self.features.square() > 0
        return [*result, bool((varies & (self.owners[: self.width] == self.components - 1)).any())]


class ProfileMatrix:
    r"""The matrix at given variances: its products, and a preconditioner.

    The preconditioner is the block of the coefficients and, for each factor, the diagonal, which is all of the
    factor's own block: a row has one level of each factor.

    Args:
        equations: Of one target column.
        ratios: :math:`\gamma` of each component.
    """

    def __init__(self, equations: ProfileEquations, ratios: Tensor) -> None:
        e = self.equations = equations
        width = e.width
        #: Of each profile, that of its own effect.
        self.ratio = torch.where(e.eliminated, ratios[e.cells], 0.0)
        self.omega = weights(e.count, self.ratio)
        self.roots = e.roots(ratios)
        self.roots[width] = 0.0  # the unknown level has no effect
        ones = self.omega.new_zeros(len(e.owners))
        for place in e.places:
            ones.index_add_(0, place, self.omega)
        #: The diagonal without the penalty.
        self.told = self.roots.square() * ones
        dense = e.gram + e.features.T @ (self.omega.unsqueeze(1) * e.features)
        dense = self.roots[:width].unsqueeze(1) * dense * self.roots[:width]
        self.told[:width] = dense.diagonal()
        # A coordinate that is fixed and has only zeros lacks rank: a 1 leaves it out of determinants and solutions.
        self.penalty = ((e.owners >= 0) | (self.told <= 0)).to(dense.dtype)
        self.triangle = factorize(dense + torch.diag(self.penalty[:width]))
        self.diagonal = self.told[width:] + self.penalty[width:]

    def explained(self, x: Tensor) -> Tensor:
        """The product without the penalty. Shape ``(P + L, R)``."""
        e, effects, result = self.equations, self.roots.unsqueeze(1) * x, torch.zeros_like(x)
        result[: e.width] = e.gram @ effects[: e.width]
        for rows in e.blocks(x.shape[1]):
            e.add_response(result, e.fitted(effects, rows).mul_(self.omega[rows].unsqueeze(1)), rows)
        return result.mul_(self.roots.unsqueeze(1))

    def product(self, x: Tensor) -> Tensor:
        """Shape ``(P + L, R)``."""
        return self.explained(x).addcmul_(x, self.penalty.unsqueeze(1))

    def precondition(self, x: Tensor) -> Tensor:
        """Shape ``(P + L, R)``."""
        width = self.equations.width
        return torch.cat([torch.cholesky_solve(x[:width], self.triangle), x[width:] / self.diagonal.unsqueeze(1)])

    def solve(self, right: Tensor, *, tolerance: float, start: Tensor | None = None) -> Iterated:
        r"""Solve :math:`M x = h` for columns of shape ``(P + L, R)``, and bound the error of the result.

        What is shrunk has :math:`M \succeq I \succeq D / \max D`, so that a residual that is smaller by the root of the
        largest diagonal gives :math:`\|x - M^{-1} h\|_M \le \tau \|h\|_{D^{-1}}`, also where variances are large.
        """
        contrast = float(self.diagonal.max().sqrt())
        solution, residual = conjugate_gradients(
            self.product, self.precondition, right, tolerance=tolerance / contrast, start=start
        )
        return Iterated(solution, residual * contrast)

    def response(self, weighted: Tensor) -> Tensor:
        """Sums over the profiles of the scaled design with a weight for each. Shape ``(P + L, 1)``."""
        e, result = self.equations, self.roots.new_zeros(len(self.roots), 1)
        e.add_response(result, weighted.unsqueeze(1), slice(None))
        return result.mul_(self.roots.unsqueeze(1))

    def right(self) -> Tensor:
        """The right-hand side of the equations. Shape ``(P + L, 1)``."""
        e = self.equations
        right = self.response(self.omega * e.target)
        right[: e.width, 0] += self.roots[: e.width] * e.moment
        return right
