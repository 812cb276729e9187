"""Variance components by restricted maximum likelihood where traces of an inverse are known from samples only."""

import warnings
from typing import NamedTuple

import torch
from torch import Tensor

from reghead._warnings import RegheadWarning
from reghead.normalization._mixed_profiles import ProfileEquations
from reghead.normalization._mixed_samples import PROBES, ProfileSolution, Samples, solve_profiles
from reghead.normalization._reml import Search

# While the variances are searched the equations of the traces and of the curvature need fewer digits.
_SEARCH_TOLERANCE = 1e-5
# What is left to gain of the deviance when the search ends: a thousandth of a component's standard error.
_GAIN = 1e-6
_MAX_STEPS = 50  # a search that needs as many is warned of; pragma: no mutate
_MAX_HALVINGS = 6
# Components without which the deviance is at most this much higher may be 0, which is then looked at.
_DOUBTFUL = 1.0
_NEARLY_ZERO = 1e-3


class Point(NamedTuple):
    """The gradient of the criterion at a point, and what it was computed from."""

    gradient: Tensor
    slope: Tensor
    ratios: Tensor
    solution: ProfileSolution
    samples: Samples


def estimate_sampled_ratios(equations: ProfileEquations) -> Tensor:
    r"""The ratios :math:`\gamma_f = \sigma_f^2 / \sigma^2` at which the sampled gradient of the likelihood vanishes.

    The equations are those of exact REML, but :math:`\mathrm{tr} (M^{-1})_{ff}` is estimated from draws, the same in
    each step, which makes the gradient a smooth function without a value to go with it: a step is too long if it ends
    where the slope along it is as large as where it began, upwards. A component that the data cannot tell is 0.

    Args:
        equations: Of one target column.

    Returns:
        Of each component, shape ``(equations.components,)``.
    """
    e = equations
    search = Search(e.told, e.owners, e.gram)
    if not len(search.chosen):
        return search.ratios(e.gram.new_zeros(0))

    def evaluate(x: Tensor, near: Point | None) -> Point:
        ratios = search.ratios(x)
        solution = solve_profiles(e, ratios, None if near is None else near.solution.scaled)
        samples = Samples.draw(
            solution.matrix, tolerance=_SEARCH_TOLERANCE, start=None if near is None else near.samples.scaled
        )
        slope = _slope(e, ratios, solution, samples)[search.chosen]
        return Point(search.rate(x) * slope, slope, ratios, solution, samples)

    def curvature(x: Tensor, at: Point) -> Tensor:
        information = _information(e, at.ratios, at.solution)[search.chosen][:, search.chosen]
        return search.curvature(x, at.slope, information)

    x = search.start
    at = evaluate(x, None)
    for _ in range(_MAX_STEPS):
        step, gain = search.step(curvature(x, at), at.gradient)
        if gain < _GAIN:
            break
        before = (at.gradient @ step).abs()
        for _ in range(_MAX_HALVINGS):
            new = evaluate(search.inside(x + step), at)
            if new.gradient @ step <= 0.9 * before:
                break
            step, before = step / 2, before / 2
        else:
            break
        x, at = search.inside(x + step), new
    if gain > 1 / PROBES:
        warnings.warn(
            f"the search for the variance components ended at about {float(gain.sqrt()):.1g} of their standard errors "
            "from what it looked for; a model without a column or without cells may be easier to tell",
            RegheadWarning,
            stacklevel=6,
        )
    bend = curvature(x, at).diagonal()
    for i in range(len(x)):
        # The criterion is even in x: a x^2 + b x^4 has a minimum at x that is b x^4 = bend x^2 / 8 deep.
        if bend[i] * x[i].square() / 8 < _DOUBTFUL:
            nearly = x.clone()
            nearly[i] = _NEARLY_ZERO
            if evaluate(nearly, at).gradient[i] >= 0:
                x[i] = 0.0
    return search.ratios(x)


def _slope(equations: ProfileEquations, ratios: Tensor, solution: ProfileSolution, samples: Samples) -> Tensor:
    r"""The deviance's derivative by :math:`\log \gamma_f`: :math:`q_f - \mathrm{tr} (M^{-1})_{ff} - v_f^2 / \sigma^2`.

    The first two terms have two estimates with the same mean: their difference is a control variate.
    """
    e, known = equations, equations.owners >= 0
    squares = torch.zeros_like(ratios)
    squares.index_add_(0, e.owners[known], solution.scaled[known, 0].square())
    if solution.matrix.ratio.any():
        squares[e.cells] += solution.cell_effects.square().sum() / ratios[e.cells]
    first, second = samples.traces()
    gap = first - second
    around = gap - gap.mean(dim=1, keepdim=True)
    spread = around.square().sum(dim=1)
    share = (first * around).sum(dim=1) / torch.where(spread > 0, spread, 1.0)
    return first.mean(dim=1) - share * gap.mean(dim=1) - squares / solution.variance


def _information(equations: ProfileEquations, ratios: Tensor, solution: ProfileSolution) -> Tensor:
    """Average information of the deviance on the logarithms of the ratios, as of the equations with a dense matrix."""
    e, matrix, known = equations, solution.matrix, equations.owners >= 0
    parts = solution.scaled.new_zeros(len(e.owners), e.components)
    parts[known.nonzero().squeeze(1), e.owners[known]] = solution.scaled[known, 0]
    squares, image = parts.square().sum(dim=0), matrix.explained(parts)
    effect = solution.cell_effects
    own = matrix.ratio.any()
    if own:
        squares[e.cells] += effect.square().sum() / ratios[e.cells]
        image[:, e.cells] += matrix.response(matrix.omega * effect).squeeze(1)
    products = parts.T @ image
    if own:  # then the cells' effects are not among the parts
        products[e.cells] = products[:, e.cells]
        products[e.cells, e.cells] = (matrix.omega * effect.square()).sum()
    solved, _ = matrix.solve(image, tolerance=_SEARCH_TOLERANCE)
    sigma = solution.variance
    return (products - image.T @ solved) / sigma - torch.outer(squares, squares) / (e.free * sigma.square())
