r"""Solutions of equations that are known by their products, and their uncertainty by perturbation.

With signs :math:`\xi` and :math:`M = B B^\top`, the solutions of :math:`M s = B \xi` have the covariance
:math:`M^{-1}` (Papandreou and Yuille 2010): the right-hand side is that of simulated noise of the rows and of the
effects. Over N of them, a variance has a relative standard error of at most :math:`\sqrt{2/N}`.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from reghead.normalization._mixed_profiles import ProfileEquations, ProfileMatrix
from reghead.normalization._mixed_solve import SMALLEST_VARIANCE

PROBES = 64
TOLERANCE = 1e-8
_SEED = 0


@dataclass(frozen=True)
class ProfileSolution:
    r"""Effects given the variances.

    Args:
        matrix: :math:`M`.
        scaled: Effects over their :math:`\lambda`. Shape ``(P + L, 1)``.
        effects: Shape ``(P + L,)``.
        cell_effects: Those of the profiles that have one. Shape ``(K,)``.
        variance: The estimate of :math:`\sigma^2`.
        residual: The relative error, at most.
    """

    matrix: ProfileMatrix
    scaled: Tensor
    effects: Tensor
    cell_effects: Tensor
    variance: Tensor
    residual: float


def solve_profiles(equations: ProfileEquations, ratios: Tensor, start: Tensor | None = None) -> ProfileSolution:
    """Solve the equations for the effects.

    Args:
        equations: Of one target column.
        ratios: Of each component.
        start: Scaled effects to begin with.
    """
    e, matrix = equations, ProfileMatrix(equations, ratios)
    scaled, residual = matrix.solve(matrix.right(), tolerance=TOLERANCE, start=start)
    effects = matrix.roots.unsqueeze(1) * scaled
    errors = e.target - e.fitted(effects, slice(None)).squeeze(1)
    fixed, effects = effects[: e.width, 0], effects.squeeze(1)
    # The minimised sum itself, and not a difference of large numbers: errors of the solution enter squared.
    within = (e.square - 2 * fixed @ e.moment + fixed @ e.gram @ fixed).clamp(min=0.0)
    shrunk = scaled.squeeze(1)[e.owners >= 0].square().sum()
    squares = within + (matrix.omega * errors.square()).sum() + shrunk + SMALLEST_VARIANCE * (e.free + e.fixed)
    return ProfileSolution(matrix, scaled, effects, matrix.ratio * matrix.omega * errors, squares / e.free, residual)


@dataclass(frozen=True)
class Samples:
    r"""Draws :math:`s` of covariance :math:`M^{-1}`.

    Args:
        matrix: :math:`M`.
        prior: The part of :math:`\xi` that stands for the effects' own variation. Shape ``(P + L, N)``.
        right: :math:`B \xi`. Shape ``(P + L, N)``.
        scaled: :math:`s`. Shape ``(P + L, N)``.
        residual: The relative error of the worst draw, at most.
    """

    matrix: ProfileMatrix
    prior: Tensor
    right: Tensor
    scaled: Tensor
    residual: float

    @classmethod
    def draw(cls, matrix: ProfileMatrix, *, tolerance: float = TOLERANCE, start: Tensor | None = None) -> "Samples":
        """The same signs in every call, so that a fit is a function of its data, and smooth in the variances."""
        e, generator = matrix.equations, torch.Generator().manual_seed(_SEED)
        bend, axes = torch.linalg.eigh(e.gram)
        response = e.gram.new_zeros(len(e.owners), PROBES)
        response[: e.width] = axes @ (bend.clamp(min=0.0).sqrt().unsqueeze(1) * _signs(e.width, generator))
        prior = matrix.penalty.unsqueeze(1) * _signs(len(e.owners), generator)
        for rows, noise in _noise(matrix):
            e.add_response(response, matrix.omega[rows].unsqueeze(1) * noise, rows)
        right = response.mul_(matrix.roots.unsqueeze(1)).add_(prior)
        scaled, residual = matrix.solve(right, tolerance=tolerance, start=start)
        return cls(matrix, prior, right, scaled, residual)

    @property
    def effects(self) -> Tensor:
        """Shape ``(P + L, N)``."""
        return self.matrix.roots.unsqueeze(1) * self.scaled

    def conditional_means(self) -> Tensor:
        """Of the effects of each block of the preconditioner given all others. Shape ``(P + L, N)``.

        The variance of an effect is that of its conditional mean, and the conditional variance, which is known exactly:
        most of the variance needs no draws (Sidén et al. 2018).
        """
        return self.scaled - self.matrix.precondition(self.right)

    def traces(self) -> tuple[Tensor, Tensor]:
        r"""For each component and draw two estimates of :math:`q_f - \mathrm{tr} (M^{-1})_{ff}`. Shape ``(C, N)`` each.

        The first takes the squares of the conditional means from what is known exactly, and errs little where the data
        say much of the effects. The second is the sum of squares of predictions from the simulated data, which is right
        to digits where they say little. What an eliminated cell adds is
        :math:`\gamma (\omega_k - \omega_k^2 t_k^\top M^{-1} t_k)`.
        """
        e, matrix = self.matrix.equations, self.matrix
        told = torch.cat([1 - torch.cholesky_inverse(matrix.triangle).diagonal(), matrix.told[e.width :]])
        told[e.width :] /= matrix.diagonal
        known = e.owners >= 0
        by_rest = self.scaled.new_zeros(e.components, PROBES)
        by_data = by_rest.clone()
        by_rest.index_add_(0, e.owners[known], (told.unsqueeze(1) - self.conditional_means().square())[known])
        by_data.index_add_(0, e.owners[known], (self.scaled - self.prior).square()[known])
        if matrix.ratio.any():
            effects, share = self.effects, torch.where(e.eliminated, matrix.ratio * matrix.omega, 0.0)
            for rows, noise in _noise(matrix):
                error, weight = e.fitted(effects, rows), share[rows] * matrix.omega[rows]
                by_rest[e.cells] += share[rows].sum() - weight @ error.square()
                by_data[e.cells] += weight @ (noise - error).square()
        return by_rest, by_data

    def corrections(self) -> Tensor:
        r"""What to multiply an estimate for rows of a sampled profile with. Shape ``(K,)``.

        The share :math:`p = \omega_k t_k^\top M^{-1} t_k` that a profile's mean has in its own prediction is the mean
        of squares of the prediction's error, and 1 - p that of the residual of the simulated noise. Of the two
        estimates, with errors proportional to p and 1 - p, this is the average of the smallest variance (compare
        Kline, Saggio and Sølvsten 2020): it tells 0.999 from 0.9999, and is never outside of [0, 1].
        """
        e, effects, result = self.matrix.equations, self.effects, torch.ones_like(self.matrix.omega)
        for rows, noise in _noise(self.matrix):
            omega, error = self.matrix.omega[rows], e.fitted(effects, rows)
            share = omega * error.square().mean(dim=1)
            rest = omega * (noise - error).square().mean(dim=1)
            trust = rest.square() / (share.square() + rest.square()).clamp(min=1e-300)
            best = (trust * share + (1 - trust) * (1 - rest)).clamp(0.0, 1.0)
            result[rows] = torch.where(share > 0, best / torch.where(share > 0, share, 1.0), 1.0)
        return result


def _noise(matrix: ProfileMatrix) -> Iterator[tuple[slice, Tensor]]:
    """Noise of the profiles' means, of variance 1 / omega, block by block: drawn again, it takes no memory."""
    generator = torch.Generator().manual_seed(_SEED + 1)
    for rows in matrix.equations.blocks(PROBES):
        omega = matrix.omega[rows].unsqueeze(1)
        scale = torch.where(omega > 0, omega, torch.inf).rsqrt()
        yield rows, scale * _signs(len(omega), generator)


def _signs(rows: int, generator: torch.Generator) -> Tensor:
    """Independent numbers -1 and 1 in float64. Shape ``(rows, N)``."""
    return torch.randint(0, 2, (rows, PROBES), generator=generator, dtype=torch.int8).to(torch.float64).mul_(2).sub_(1)
