"""Variance components by restricted maximum likelihood (Patterson and Thompson 1971)."""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from reghead.normalization._mixed_solve import Equations, Solution, solve, weights

_START = 0.5
_MAX_STEPS = 200
_MAX_HALVINGS = 20
# Variances beyond sinh(15)^2 = 3e12 of the residual one are rounding.
_LARGEST = 15.0
# Directions of x in which the criterion is flatter than this are searched by gradient, in deviance per square.
_FLATTEST = 1e-3


class Point(NamedTuple):
    """The criterion at a point: value, gradient, an estimate of its second derivatives, and its rounding."""

    value: Tensor
    gradient: Tensor
    curvature: Callable[[], Tensor]
    rounding: Tensor


def estimate_ratios(equations: Equations) -> Tensor:
    r"""The ratios :math:`\gamma_f = \sigma_f^2 / \sigma^2` that maximise the restricted likelihood.

    :math:`\sigma^2` and the fixed effects are profiled out. With :math:`\gamma_f = \sinh^2 x_f` the criterion is even
    and smooth in :math:`x_f`, so a variance of 0 is an inner point, and large ratios are searched on a log scale. A
    component that the data cannot tell is 0.

    Args:
        equations: Of one target column.

    Returns:
        Of each component, shape ``(equations.components,)``.
    """
    e = equations
    chosen = torch.tensor([f for f, told in enumerate(e.told) if told], dtype=torch.int64)
    ratios = e.gram.new_zeros(e.components)
    if not len(chosen):
        return ratios

    def ratios_at(x: Tensor) -> Tensor:
        return ratios.index_put((chosen,), x.sinh().square())

    def evaluate(x: Tensor) -> Point:
        gamma = ratios_at(x)
        solution = solve(e, gamma)
        slope = _slope(e, gamma, solution)[chosen]
        rate = torch.where(x == 0, 0.0, 2 / torch.where(x == 0, 1.0, x).tanh())

        def curvature() -> Tensor:
            information = rate.unsqueeze(1) * _information(e, gamma, solution)[chosen][:, chosen] * rate
            # What bends the criterion at 0, where it is a function of the square of x.
            inverse_square = 1 / x.sinh().square().clamp(min=1e-30)
            return information + torch.diag(slope.clamp(min=0.0) * (4 + 2 * inverse_square))

        return Point(solution.deviance, rate * slope, curvature, solution.rounding)

    start = ratios.new_full((len(chosen),), _START)
    # Of many coefficients each has a small part.
    start[chosen == e.components - 1] /= math.sqrt(max(int((e.owners == e.components - 1).sum()), 1))
    return _drop(e, ratios_at(_minimize(evaluate, start)), chosen.tolist())


def _drop(equations: Equations, ratios: Tensor, components: list[int]) -> Tensor:
    """The ratios without those that might as well be 0: next to the boundary the likelihoods agree to rounding."""
    lowest = solve(equations, ratios).deviance
    for f in components:
        without = ratios.clone()
        without[f] = 0.0
        deviance = solve(equations, without).deviance
        if deviance <= lowest + 1e-7:
            ratios, lowest = without, deviance
    return ratios


def _minimize(evaluate: Callable[[Tensor], Point], x: Tensor) -> Tensor:
    """The lowest point of a smooth function of a few numbers, by scoring steps of at most 1 in each.

    Where rounding hides that the value falls, the gradient, which is known to more digits, has to.
    """
    at = evaluate(x)
    for _ in range(_MAX_STEPS):
        bend, axes = torch.linalg.eigh(at.curvature())
        step = -axes @ ((axes.T @ at.gradient) / bend.clamp(min=_FLATTEST))
        # What is left to gain, twice over: 1e-12 is a millionth of a component's standard error.
        if -(step @ at.gradient) < at.rounding.clamp(min=1e-12):
            break
        step = step / step.abs().max().clamp(min=1.0)
        for _ in range(_MAX_HALVINGS):
            point = (x + step).clamp(-_LARGEST, _LARGEST)
            new = evaluate(point)
            falls = new.value <= at.value + 1e-4 * (step @ at.gradient)
            flat = (new.value - at.value).abs() <= at.rounding.clamp(min=1e-12)
            if falls or (flat and new.gradient.norm() < 0.5 * at.gradient.norm()):
                break
            step = step / 2
        else:
            break
        x, at = point, new
    return x


def _slope(equations: Equations, ratios: Tensor, solution: Solution) -> Tensor:
    r"""The deviance's derivative by :math:`\log \gamma_f`: :math:`q_f - \mathrm{tr} (M^{-1})_{ff} - v_f^2 / \sigma^2`.

    It follows from :math:`\partial \log |M| / \partial \log \gamma_f = \mathrm{tr}_f (M^{-1} (M - I))`, and from the
    minimised penalised sum of squares, of which only the explicit dependence on :math:`\gamma_f` counts.
    """
    e, known, ratio = equations, equations.owners >= 0, ratios[equations.cells]
    slope, squares = torch.zeros_like(ratios), torch.zeros_like(ratios)
    slope.index_add_(0, e.owners[known], 1 - solution.inverse.diagonal()[known])
    squares.index_add_(0, e.owners[known], solution.scaled[known].square())
    # The cells: the derivative of their weight is minus its square.
    roots, omega = e.roots(ratios), weights(e.count, ratio)
    if omega.any():
        form = (roots @ (solution.inverse * e.between(ratio, 2)) * roots).sum()
        slope[e.cells] += ratio * (omega.sum() - form)
        squares[e.cells] += solution.cell_effects.square().sum() / ratio.clamp(min=1e-300)
    return slope - squares / solution.variance


def _information(equations: Equations, ratios: Tensor, solution: Solution) -> Tensor:
    r"""Average information of the deviance on :math:`\log \gamma`, with :math:`\sigma^2` profiled out.

    :math:`q_f^\top P q_g / \sigma^2 - v_f^2 v_g^2 / ((n - p) \sigma^4)` with :math:`q_f = Z_f b_f` (Gilmour, Thompson
    and Cullis 1995): the mean of the observed and the expected information, from solutions alone.
    """
    e, known = equations, equations.owners >= 0
    parts = solution.scaled.new_zeros(len(e.owners), e.components)
    parts[known.nonzero().squeeze(1), e.owners[known]] = solution.scaled[known]
    squares = parts.square().sum(dim=0)
    image = solution.matrix @ parts
    ratio = ratios[e.cells]
    omega, effect = weights(e.count, ratio), solution.cell_effects
    if omega.any():
        squares[e.cells] += effect.square().sum() / ratio.clamp(min=1e-300)
        image[:, e.cells] += e.roots(ratios) * e.response(omega * effect)
    products = parts.T @ image
    if omega.any():  # then the cells' effects are not among the parts
        products[e.cells] = products[:, e.cells]
        products[e.cells, e.cells] = (omega * effect.square()).sum()
    shared = image.T @ torch.cholesky_solve(image, solution.triangle)
    sigma = solution.variance
    return (products - shared) / sigma - torch.outer(squares, squares) / (e.free * sigma.square())
