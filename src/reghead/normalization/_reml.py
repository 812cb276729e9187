"""Variance components by restricted maximum likelihood (Patterson and Thompson 1971)."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from reghead.normalization._mixed_solve import Equations, Solution, solve, weights

_START = 0.5
_MAX_STEPS = 200  # no search needs as many; pragma: no mutate
_MAX_HALVINGS = 20  # pragma: no mutate
# Variances beyond sinh(15)^2 = 3e12 of the residual one are rounding.
_LARGEST = 15.0
# More than sinh(7.6)^2 = 1e6 of a coefficient's would let rounding choose between features that determine the target.
_LARGEST_OF_FEATURES = 7.6
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
    search = Search(e.told, e.owners, e.gram)
    if not len(search.chosen):
        return search.ratios(e.gram.new_zeros(0))

    def evaluate(x: Tensor) -> Point:
        gamma = search.ratios(x)
        solution = solve(e, gamma)
        slope = _slope(e, gamma, solution)[search.chosen]

        def curvature() -> Tensor:
            information = _information(e, gamma, solution)[search.chosen][:, search.chosen]
            return search.curvature(x, slope, information)

        return Point(solution.deviance, search.rate(x) * slope, curvature, solution.rounding)

    return _drop(e, search.ratios(_minimize(search, evaluate, search.start)), search.chosen.tolist())


class Search:
    r"""The coordinates of a search for variance components, :math:`\gamma_f = \sinh^2 x_f`, and its steps.

    Args:
        told: Of each component, whether the data can tell it; the others stay 0.
        owners: The component of each effect, -1 for none.
        like: A tensor of the dtype of the ratios.
    """

    def __init__(self, told: Sequence[bool], owners: Tensor, like: Tensor) -> None:
        #: The components that are searched.
        self.chosen = torch.tensor([f for f, known in enumerate(told) if known], dtype=torch.int64)
        self._zeros = like.new_zeros(len(told))
        #: Where to begin.
        self.start = like.new_full((len(self.chosen),), _START)
        # Of many coefficients each has a small part.
        last = len(told) - 1
        self.start[self.chosen == last] /= math.sqrt(max(int((owners == last).sum()), 1))

    def ratios(self, x: Tensor) -> Tensor:
        """The ratios of all components."""
        return self._zeros.index_put((self.chosen,), x.sinh().square())

    def rate(self, x: Tensor) -> Tensor:
        """The derivatives of the logarithms of the ratios."""
        return torch.where(x == 0, 0.0, 2 / x.tanh())

    def curvature(self, x: Tensor, slope: Tensor, information: Tensor) -> Tensor:
        """Second derivatives, given the slope and the average information by the logarithms of the ratios."""
        rate = self.rate(x)
        # What bends the criterion at 0, where it is a function of the square of x.
        inverse_square = 1 / x.sinh().square().clamp(min=1e-30)
        scaled = rate.unsqueeze(1) * information * rate
        return scaled + torch.diag(slope.clamp(min=0.0) * (4 + 2 * inverse_square))

    def step(self, curvature: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
        """A scoring step of at most 1 in each coordinate, and what is left to gain, twice over."""
        bend, axes = torch.linalg.eigh(curvature)
        step = -axes @ ((axes.T @ gradient) / bend.clamp(min=_FLATTEST))
        return step / step.abs().max().clamp(min=1.0), -(step @ gradient)

    def inside(self, x: Tensor) -> Tensor:
        """The nearest point that may be searched."""
        largest = torch.where(self.chosen == len(self._zeros) - 1, _LARGEST_OF_FEATURES, _LARGEST)
        return torch.minimum(torch.maximum(x, -largest), largest)


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


def _minimize(search: Search, evaluate: Callable[[Tensor], Point], x: Tensor) -> Tensor:
    """The lowest point of a smooth function of a few numbers.

    Where rounding hides that the value falls, the gradient, which is known to more digits, has to.
    """
    at = evaluate(x)
    for _ in range(_MAX_STEPS):
        step, gain = search.step(at.curvature(), at.gradient)
        # 1e-12 is a millionth of a component's standard error.
        if gain < at.rounding.clamp(min=1e-12):
            break
        for _ in range(_MAX_HALVINGS):
            point = search.inside(x + step)
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
