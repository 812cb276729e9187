"""From sums of rows to a fitted mixed model: by a dense matrix, or by iteration where that would be too large."""

import warnings
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from reghead._warnings import RegheadWarning
from reghead.normalization._mixed_iterate import MAX_ITERATIONS
from reghead.normalization._mixed_layout import EffectLayout
from reghead.normalization._mixed_profiles import ProfileEquations
from reghead.normalization._mixed_samples import TOLERANCE, ProfileSolution, Samples, solve_profiles
from reghead.normalization._mixed_solve import Equations, Solution, solve
from reghead.normalization._mixed_sums import MixedSums, independent_basis, scaled_basis
from reghead.normalization._reml import estimate_ratios
from reghead.normalization._reml_sampled import estimate_sampled_ratios


class Variances(NamedTuple):
    """What an update keeps of the fit: see :class:`Fitted`."""

    residual_variance: Tensor
    ratios: Tensor
    basis: Tensor


class Fitted(NamedTuple):
    """The solution, as the buffers have it.

    Args:
        level_ids: The levels that have effects, the first of them 0. Shape ``(L,)``.
        residual_variance: Shape ``(D,)``.
        ratios: Of each component to the residual variance. Shape ``(D, C)``.
        basis: From standardised features to those of the equations. Shape ``(G, P, P)``.
        coefficients: Of the standardised features. Shape ``(D, P)``.
        level_effects: Shape ``(L, D)``.
        cell_effects: Shape ``(K, D)``.
        cell_share: What is not known of a cell's effect given the others. Shape ``(D, K)``.
        inverse_matrix: Shape ``(D, P + L, P + L)``, or ``(D, 0, 0)`` of an iterated solution.
        samples: Whose products stand for that matrix. Shape ``(D, P + L, N)``, or ``(D, 0, 0)``.
        corrections: Of what the samples say of the rows of a profile. Shape ``(D, K)``, or ``(D, 0)``.
    """

    level_ids: Tensor
    residual_variance: Tensor
    ratios: Tensor
    basis: Tensor
    coefficients: Tensor
    level_effects: Tensor
    cell_effects: Tensor
    cell_share: Tensor
    inverse_matrix: Tensor
    samples: Tensor
    corrections: Tensor


def fit_exactly(layout: EffectLayout, sums: MixedSums, shrink: bool, variances: Variances | None) -> Fitted:
    """Solve with a dense matrix.

    Args:
        layout: Which effects there are.
        sums: By eliminated cell.
        shrink: Whether coefficients are shrunk.
        variances: Those of an earlier fit; otherwise they are estimated.
    """
    width, levels = 1 + sums.features.shape[2], layout.level_ids_of_cells(sums.keys)
    positions = tuple(torch.searchsorted(sums.level_ids, level) for level in levels)
    bases = _bases(sums, shrink, variances)
    owners, fixed = _owners(layout, sums.level_ids, bases, shrink)
    systems = []
    for d in range(len(sums.square)):
        g = d % len(bases)
        basis, gram, moment = bases[g], sums.gram[g].clone(), sums.moment[d].clone()
        gram[:width] = basis.T @ gram[:width]
        gram[:, :width] = gram[:, :width] @ basis
        moment[:width] = basis.T @ moment[:width]
        systems.append(
            Equations(
                gram=gram,
                moment=moment,
                square=sums.square[d],
                count=sums.count[g],
                features=sums.design_means[g] @ basis,
                target=sums.target[d],
                levels=positions,
                owners=owners[g],
                components=layout.components,
                cells=layout.components - 2,
                fixed=fixed[g],
            )
        )
    _check_rows(systems, sums)
    ratios = torch.stack([estimate_ratios(s) for s in systems]) if variances is None else variances.ratios
    solutions = [solve(system, ratio) for system, ratio in zip(systems, ratios, strict=True)]
    cells, none = ratios[:, -2:-1], ratios.new_zeros(len(ratios), 0, 0)
    share = cells / (1 + cells * sums.count)
    share[:, 0] = 0.0
    inverse = torch.stack([s.inverse for s in solutions])
    residual = _residual_variance(systems, solutions) if variances is None else variances.residual_variance
    return Fitted(
        sums.level_ids, residual, ratios, bases, *_effects(bases, solutions), share, inverse, none, none.flatten(1)
    )


def fit_by_iteration(layout: EffectLayout, sums: MixedSums, shrink: bool, variances: Variances | None) -> Fitted:
    """Solve by conjugate gradients, with samples for the uncertainty; arguments as above, sums by profile."""
    width, levels = 1 + sums.features.shape[2], layout.level_ids_of_profiles(sums.keys)
    level_ids = torch.unique(torch.cat([sums.keys.new_zeros(1), *levels]))
    places = tuple(width + torch.searchsorted(level_ids, level) for level in levels)
    eliminated = layout.have_cells(sums.keys)
    bases = _bases(sums, shrink, variances)
    owners, fixed = _owners(layout, level_ids, bases, shrink)
    systems = []
    for d in range(len(sums.square)):
        g = d % len(bases)
        systems.append(
            ProfileEquations(
                gram=bases[g].T @ sums.gram[g, :width, :width] @ bases[g],
                moment=bases[g].T @ sums.moment[d, :width],
                square=sums.square[d],
                count=sums.count[g],
                features=sums.design_means[g] @ bases[g],
                target=sums.target[d],
                places=places,
                eliminated=eliminated,
                owners=owners[g],
                components=layout.components,
                cells=layout.components - 2,
                fixed=fixed[g],
            )
        )
    _check_rows(systems, sums)
    ratios = torch.stack(list(map(estimate_sampled_ratios, systems))) if variances is None else variances.ratios
    solutions = [solve_profiles(system, ratio) for system, ratio in zip(systems, ratios, strict=True)]
    share, samples, corrections, reached = [], [], [], []
    for d, solution in enumerate(solutions):
        drawn = Samples.draw(solution.matrix)
        effects = drawn.effects
        effects[:width] = bases[d % len(bases)] @ effects[:width]
        samples.append(effects / effects.shape[1] ** 0.5)
        corrections.append(drawn.corrections())
        share.append(solution.matrix.ratio / (1 + solution.matrix.ratio * sums.count[d % len(bases)]))
        reached += [solution.residual, drawn.residual]
    if max(reached) > TOLERANCE:
        warnings.warn(
            f"the equations of the mixed model are solved to a relative error of {max(reached):.0e} after "
            f"{MAX_ITERATIONS:,} iterations, where {TOLERANCE:.0e} was asked for; categories that hardly any rows "
            "connect are slow to solve, so join rare levels, or leave a column out",
            RegheadWarning,
            stacklevel=5,
        )
    residual = _residual_variance(systems, solutions) if variances is None else variances.residual_variance
    return Fitted(
        level_ids,
        residual,
        ratios,
        bases,
        *_effects(bases, solutions),
        torch.stack(share),
        ratios.new_zeros(len(ratios), 0, 0),
        torch.stack(samples),
        torch.stack(corrections),
    )


def _bases(sums: MixedSums, shrink: bool, variances: Variances | None) -> Tensor:
    """The bases of the features, given those of an earlier fit if any. Shape ``(G, P, P)``."""
    bases, width = [], 1 + sums.features.shape[2]
    for g, (count, means) in enumerate(zip(sums.count, sums.design_means, strict=True)):
        total = sums.gram[g, :width, :width] + means.T @ (count.unsqueeze(1) * means)
        if not shrink:
            bases.append(independent_basis(total))
        else:  # in units of the first fit for ever: they are a part of the prior
            bases.append(scaled_basis(total) if variances is None else variances.basis[g % len(variances.basis)])
    return torch.stack(bases)


def _owners(layout: EffectLayout, level_ids: Tensor, bases: Tensor, shrink: bool) -> tuple[list[Tensor], list[int]]:
    """For each basis, the component of each effect, -1 for none, and the number of effects that are fixed."""
    width, owners, fixed = bases.shape[1], [], []
    levels = torch.cat([level_ids.new_full((1,), -1), layout.owners(level_ids[1:])])
    for has_rank in bases.any(dim=1):
        own = levels.new_full((width,), -1)
        if shrink:
            own[1:] = torch.where(has_rank[1:], layout.components - 1, -1)
        owners.append(torch.cat([own, levels]))
        fixed.append(int((has_rank & (own < 0)).sum()))
    return owners, fixed


def _check_rows(systems: Sequence[Equations | ProfileEquations], sums: MixedSums) -> None:
    for d, system in enumerate(systems):
        if system.free <= 0:
            raise ValueError(
                f"fit needs more rows than fixed effects, intercept included, but the weights of column {d} sum to "
                f"{float(sums.total[d]):g} for {system.fixed}; weights are frequencies, and features that are "
                "shrunk are no fixed effects"
            )


def _residual_variance(
    systems: Sequence[Equations | ProfileEquations],
    solutions: Sequence[Solution | ProfileSolution],
) -> Tensor:
    """The estimates, and 1 for a target that is constant. Shape ``(D,)``."""
    constant = torch.stack([s.square + (s.count * s.target.square()).sum() for s in systems]) == 0
    return torch.where(constant, 1.0, torch.stack([s.variance for s in solutions]))


def _effects(bases: Tensor, solutions: Sequence[Solution | ProfileSolution]) -> tuple[Tensor, Tensor, Tensor]:
    """The coefficients, the effects of the levels, and those of the cells."""
    width = bases.shape[1]
    return (
        torch.stack([bases[d % len(bases)] @ s.effects[:width] for d, s in enumerate(solutions)]),
        torch.stack([s.effects[width:] for s in solutions], dim=1),
        torch.stack([s.cell_effects for s in solutions], dim=1),
    )
