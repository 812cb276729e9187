"""The search for the variances of the mixed model, and the iteration that solves its equations, on their own."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from reghead.normalization import _mixed_iterate, _reml
from reghead.normalization._mixed_iterate import conjugate_gradients
from reghead.normalization._reml import Point, Search

F64 = torch.float64


def search(components: int = 2, coefficients: int = 1) -> Search:
    """All components but the last have one effect each."""
    owners = torch.tensor([-1, *range(components - 1), *[components - 1] * coefficients])
    return Search([True] * components, owners, torch.zeros((), dtype=F64))


def test_coordinates_of_the_search() -> None:
    some = Search([True, False, True], torch.tensor([-1, 0, 0, 1, *[2] * 9]), torch.zeros((), dtype=F64))
    assert some.chosen.tolist() == [0, 2]
    x = torch.tensor([0.7, -0.2], dtype=F64, requires_grad=True)
    ratios = some.ratios(x)
    assert_close(ratios, torch.stack([x[0].sinh() ** 2, 0 * x[0], x[1].sinh() ** 2]))
    (rate,) = torch.autograd.grad(ratios[[0, 2]].log().sum(), x)
    assert_close(some.rate(x), rate)
    assert some.rate(torch.zeros(2, dtype=F64)).tolist() == [0, 0]
    # Nine coefficients begin with a ninth of the variance; without any there is nothing to divide by.
    assert_close(some.start, torch.tensor([0.5, 0.5 / 3], dtype=F64))
    assert search(2, 0).start.tolist() == [0.5, 0.5]
    assert_close(some.inside(torch.tensor([99.0, -99.0], dtype=F64)), torch.tensor([15.0, -7.6], dtype=F64))
    assert_close(some.inside(torch.tensor([-99.0, 7.0], dtype=F64)), torch.tensor([-15.0, 7.0], dtype=F64))


@pytest.mark.parametrize("x", [0.02, 0.7, -1.3, 4.0])
def test_curvature_of_the_search_is_the_second_derivative_where_the_criterion_rises(x: float) -> None:
    """Of f(gamma), whose second derivative by gamma is what the information stands for."""
    gamma = math.sinh(x) ** 2
    first, second = 3.0, 5.0  # f' and f'' at this gamma

    def criterion(at: Tensor) -> Tensor:
        step = at.sinh().square() - gamma
        return first * step + 0.5 * second * step.square()

    at = torch.tensor(x, dtype=F64, requires_grad=True)
    (once,) = torch.autograd.grad(criterion(at), at, create_graph=True)
    (exact,) = torch.autograd.grad(once, at)
    slope, information = torch.tensor([gamma * first], dtype=F64), torch.tensor([[gamma**2 * second]], dtype=F64)
    place = torch.tensor([x], dtype=F64)
    assert_close(search(1).curvature(place, slope, information), exact.reshape(1, 1))
    # Where it falls the slope is left out: the step stays a descent.
    rate = 2 / math.tanh(x)
    assert_close(search(1).curvature(place, -slope, information), rate**2 * information)


def test_curvature_of_two_coordinates_is_scaled_on_both_sides() -> None:
    x = torch.tensor([0.5, 1.5], dtype=F64)
    information = torch.tensor([[2.0, 0.3], [0.3, 1.0]], dtype=F64)
    rate = 2 / x.tanh()
    expected = torch.diag(rate) @ information @ torch.diag(rate)
    assert_close(search(2).curvature(x, torch.zeros(2, dtype=F64), information), expected)


def test_a_step_is_newtons_and_at_most_one() -> None:
    curvature = torch.tensor([[4.0, 1.0], [1.0, 3.0]], dtype=F64)
    gradient = torch.tensor([1.0, -2.0], dtype=F64)
    newton = -torch.linalg.solve(curvature, gradient)
    step, gain = search(2).step(curvature, gradient)
    assert_close(step, newton)
    assert_close(gain, -(newton @ gradient))
    long, more = search(2).step(curvature, 100 * gradient)
    assert_close(long, newton / newton.abs().max())
    assert_close(more, 1e4 * gain)
    # Without curvature, or with a negative one, it goes downhill.
    down, _ = search(2).step(torch.diag(torch.tensor([0.0, -1.0], dtype=F64)), torch.tensor([-1e-4, 1e-4], dtype=F64))
    assert_close(down, torch.tensor([0.1, -0.1], dtype=F64))


Function = Callable[[Tensor], Tensor]


def minimum(
    value: Function, gradient: Function, start: float, *, curvature: float = 1.0, rounding: float = 0.0
) -> float:
    def evaluate(x: Tensor) -> Point:
        bend = torch.full((1, 1), curvature, dtype=F64)
        return Point(value(x).sum(), gradient(x), lambda: bend, torch.tensor(rounding, dtype=F64))

    return _reml._minimize(search(1, 0), evaluate, torch.tensor([start], dtype=F64)).item()


@pytest.mark.parametrize("offset", [-1.0, 0.0, 1.0])
def test_the_search_does_not_climb_to_where_the_gradient_vanishes(offset: float) -> None:
    """From 0 a full step ends on top of a hill; the valley is at 0.3."""
    found = minimum(
        lambda x: offset + 0.65 * x**2 - x**3 / 3 - 0.3 * x, lambda x: (x - 0.3) * (1 - x), 0.0, curvature=0.1
    )
    assert found == pytest.approx(0.3, abs=1e-5)


@pytest.mark.parametrize("level", [-7.0, 7.0])
def test_where_rounding_hides_the_value_the_gradient_has_to_fall_by_half(level: float) -> None:
    def hidden(x: Tensor) -> Tensor:  # a step up of less than its rounding
        return level + 1e-4 * (x > 0.5)

    assert minimum(hidden, lambda x: x - 1, 0.5, rounding=1e-3) == pytest.approx(1)
    assert minimum(hidden, lambda x: x - 1, 0.5, rounding=1e-5) == 0.5  # it is no rounding
    # A full step changes the gradient's sign and hardly its size; half of it takes it away.
    assert minimum(hidden, lambda x: 1.9 * (x - 1), 0.5, rounding=1e-3) == pytest.approx(1, abs=0.1)
    # The gradient does not fall: there is nothing to go by.
    assert minimum(hidden, lambda x: 0 * x - 0.5, 0.5, rounding=1e-3) == 0.5


def test_the_search_ends_where_less_than_a_rounding_is_to_be_gained() -> None:
    calls = []

    def value(x: Tensor) -> Tensor:
        calls.append(x.item())
        return 0.5 * (x - 1) ** 2

    assert minimum(value, lambda x: x - 1, 0.9, rounding=0.02) == 0.9
    assert calls == [0.9]
    assert minimum(value, lambda x: x - 1, 0.9, rounding=0.005) == pytest.approx(1)


# Conjugate gradients


@pytest.mark.parametrize("start", [None, 0.5])
@pytest.mark.parametrize("tolerance", [1e-2, 1e-5])
def test_conjugate_gradients_end_as_soon_as_the_worst_column_is_solved(
    tolerance: float, start: float | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = torch.Generator().manual_seed(0)
    half = torch.randn(40, 40, generator=rng, dtype=F64)
    matrix, right = half @ half.T + torch.eye(40, dtype=F64), torch.randn(40, 3, generator=rng, dtype=F64)
    right[:, 2] = 0.0
    diagonal, products = matrix.diagonal().unsqueeze(1), []

    def product(x: Tensor) -> Tensor:
        products.append(x)
        return matrix @ x

    begin = None if start is None else start * right.sign()

    def solved() -> tuple[Tensor, float]:
        return conjugate_gradients(product, lambda x: x / diagonal, right, tolerance=tolerance, start=begin)

    def relative(solution: Tensor) -> Tensor:
        left = ((right - matrix @ solution) ** 2 / diagonal).sum(0) / (right**2 / diagonal).sum(0)
        return left[:2].max().sqrt()

    solution, residual = solved()
    assert residual <= tolerance
    assert residual == pytest.approx(relative(solution).item(), rel=1e-3)
    monkeypatch.setattr(_mixed_iterate, "MAX_ITERATIONS", len(products) - (begin is not None) - 1)
    earlier, residual = solved()
    assert residual > tolerance
    assert residual >= relative(earlier).item() * (1 - 1e-3)
