"""The equations of the mixed model against dense covariances: likelihood, what the data tell, and rounding."""

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from reghead.normalization import (
    MixedEffects,
    _mixed_fit,
    _mixed_iterate,
    _mixed_solve,
    _mixed_state,
    _reml,
    _reml_sampled,
)
from reghead.normalization._mixed_profiles import ProfileMatrix
from reghead.normalization._mixed_samples import Samples, solve_profiles
from reghead.normalization._mixed_solve import solve
from reghead.normalization._mixed_sums import MixedSums

F64 = torch.float64
SIZES = {"a": 7, "b": 5}


def rows(seed: int, n: int = 80) -> tuple[Tensor, dict[str, Tensor], Tensor]:
    """Unknown ids in both columns, and two features."""
    rng = torch.Generator().manual_seed(seed)
    ids = {c: torch.randint(0, size, (n,), generator=rng) for c, size in SIZES.items()}
    x = torch.randn(n, 2, generator=rng, dtype=F64)
    effects = torch.randn(7, 1, generator=rng, dtype=F64)[ids["a"]]
    return effects + x[:, :1] + torch.randn(n, 1, generator=rng, dtype=F64), ids, x


def system(
    target: Tensor,
    ids: dict[str, Tensor],
    x: Tensor | None = None,
    *,
    sizes: Any = SIZES,
    iterate: bool,
    **options: Any,
) -> Any:
    """The equations that a fit solves, with a dense matrix or by iteration."""
    found: list[Any] = []

    def keep(equations: Any) -> Tensor:
        found.append(equations)
        return torch.zeros(equations.components, dtype=F64)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_mixed_state, "MAX_LEVELS", 0 if iterate else 2_000)
        for name in ("estimate_ratios", "estimate_sampled_ratios"):
            patch.setattr(_mixed_fit, name, keep)
        MixedEffects(sizes, **options).fit(target, ids, x)
    return found[0]


class Dense:
    """REML by covariances of rows, of a standardised target; the components are a, b, their cells and features."""

    def __init__(self, y: Tensor, ids: dict[str, Tensor], x: Tensor, ratios: Any) -> None:
        y, x = (np.asarray((t - t.mean(0)) / t.std(0, correction=0)) for t in (y, x))
        a, b = (i.numpy() for i in ids.values())
        same = [np.equal.outer(i, i) * np.outer(i > 0, i > 0) for i in (a, b)]
        self.parts = [ratio * part for ratio, part in zip(ratios, (*same, same[0] * same[1], x @ x.T), strict=True)]
        covariance = np.eye(len(y)) + sum(self.parts)
        inverse, ones = np.linalg.inv(covariance), np.ones(len(y))
        self.projection = inverse - np.outer(inverse @ ones, inverse @ ones) / (ones @ inverse @ ones)
        self.left = self.projection @ y[:, 0]
        self.free, self.square = len(y) - 1, y[:, 0] @ self.left
        self.variance = self.square / self.free
        determinants = np.linalg.slogdet(covariance)[1] + math.log(ones @ inverse @ ones)
        self.deviance = determinants + self.free * math.log(self.square)

    def slope(self) -> Any:
        squares = np.array([self.left @ part @ self.left for part in self.parts])
        traces = np.array([(self.projection * part).sum() for part in self.parts])
        return traces - squares / self.variance

    def information(self) -> Any:
        images = [part @ self.left for part in self.parts]
        squares = np.array([self.left @ image for image in images])
        products = np.array([[p @ self.projection @ q for q in images] for p in images])
        return products / self.variance - np.outer(squares, squares) / (self.free * self.variance**2)


RATIOS = [(0.5, 0.2, 0.3, 0.1), (3.0, 0.0, 0.7, 2.0), (0.3, 1.0, 0.0, 0.01)]


@pytest.mark.parametrize("pooled", [False, True])
@pytest.mark.parametrize("ratios", RATIOS)
def test_the_deviance_its_slope_and_its_information_are_those_of_dense_covariances(
    ratios: Any, pooled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the products of cells are not summed by their count first."""
    monkeypatch.setattr(_mixed_solve, "_POOL_LIMIT", 10**9 * pooled)
    e, gamma = system(*rows(0), iterate=False), torch.tensor(ratios, dtype=F64)
    solution, dense = solve(e, gamma), Dense(*rows(0), ratios)
    none, other = solve(e, torch.zeros(4, dtype=F64)), Dense(*rows(0), (0.0,) * 4)
    assert solution.variance.item() == pytest.approx(dense.variance, rel=1e-8)
    assert (solution.deviance - none.deviance).item() == pytest.approx(dense.deviance - other.deviance, abs=1e-7)
    np.testing.assert_allclose(_reml._slope(e, gamma, solution), dense.slope(), atol=1e-6)
    np.testing.assert_allclose(_reml._information(e, gamma, solution), dense.information(), atol=1e-6)


@pytest.mark.parametrize("ratios", RATIOS)
def test_those_of_the_iterated_equations_are_the_same_but_for_sampled_traces(ratios: Any) -> None:
    e, gamma = system(*rows(0), iterate=True), torch.tensor(ratios, dtype=F64)
    solution, dense = solve_profiles(e, gamma), Dense(*rows(0), ratios)
    assert solution.variance.item() == pytest.approx(dense.variance, rel=1e-8)
    np.testing.assert_allclose(_reml_sampled._information(e, gamma, solution), dense.information(), atol=1e-3)


@pytest.mark.parametrize("scale", [0.01, 1.0, 30.0])
def test_the_sampled_slope_is_no_worse_than_the_better_of_its_two_estimates(scale: float) -> None:
    """One of them is right to digits where the data say little of the effects, the other where they say much."""
    errors = []
    for seed in range(12):
        y, ids, x = rows(seed)
        ratios = [scale * r for r in (0.5, 0.3, 0.2, 0.2)]
        e, gamma = system(y, ids, x, iterate=True), torch.tensor(ratios, dtype=F64)
        solution = solve_profiles(e, gamma)
        samples, exact = Samples.draw(solution.matrix), Dense(y, ids, x, ratios).slope()
        first, second = (estimate.mean(dim=1) for estimate in samples.traces())
        ours = _reml_sampled._slope(e, gamma, solution, samples)
        # What the slope has beside the traces is known without samples, and so are the exact traces.
        left = Dense(y, ids, x, ratios)
        squares = [left.left @ part @ left.left / left.variance for part in left.parts]
        errors.append(
            [
                estimate.numpy() - exact
                for estimate in (ours, first - torch.tensor(squares), second - torch.tensor(squares))
            ]
        )
    ours, first, second = np.sqrt(np.square(errors).mean(axis=0))
    assert (ours < 1.25 * np.minimum(first, second)).all()


@pytest.mark.parametrize("groups", [1, 2])
def test_sums_of_parts_merge_to_the_sums_of_all_rows(groups: int) -> None:
    """With cells and levels that only one part has, rows without a cell, and weights of each column or of all."""
    rng = torch.Generator().manual_seed(0)
    cell, x = torch.randint(0, 9, (90,), generator=rng), torch.randn(90, 2, generator=rng, dtype=F64)
    cell[60:] = torch.where(cell[60:] > 0, cell[60:] + 3, 0)
    levels = [torch.where(cell > 0, cell % 4 + 10 * f, torch.arange(90) % 3 + 10 * f) for f in (1, 2)]
    y = 5 + torch.randn(90, 2, generator=rng, dtype=F64)
    weight = torch.randint(0, 4, (90, groups), generator=rng).to(F64)

    def sums(at: slice) -> MixedSums:
        own = x[at]
        return MixedSums.from_rows(cell[at], [level[at] for level in levels], lambda rows: own[rows], y[at], weight[at])

    whole = sums(slice(None))
    merged = sums(slice(0, 60)).merge(sums(slice(60, 61))).merge(sums(slice(61, 90)))
    backwards = sums(slice(61, 90)).merge(sums(slice(0, 60)).merge(sums(slice(60, 61))))
    for other in (merged, backwards):
        for ours, theirs in zip(other.parts, whole.parts, strict=True):
            assert_close(ours, theirs, rtol=1e-11, atol=1e-11)
    assert_close(whole.total, weight.sum(dim=0).expand(2))
    # In every part the square is what is left of the target around the means of its cells.
    outside = cell == 0
    mean = torch.where(outside.unsqueeze(1), 0.0, whole.target.T[torch.searchsorted(whole.keys, cell)])
    assert_close(whole.square, (weight * (y - mean).square()).sum(dim=0))


@pytest.mark.parametrize("iterate", [False, True])
def test_which_components_the_data_can_tell(iterate: bool) -> None:
    y, ids, x = rows(0)

    def told(**options: Any) -> list[bool]:
        return system(**({"target": y, "ids": ids, "x": x, "iterate": iterate} | options)).told

    assert told() == [True, True, True, True]
    assert told(cells=False) == [True, True, False, True]
    assert told(x=None) == [True, True, True, False]
    assert told(x=torch.ones_like(x)) == [True, True, True, False]
    assert told(x=torch.cat([torch.ones_like(x), x], dim=1)) == [True, True, True, True]
    assert told(shrink_features=False) == [True, True, True, False]
    # One level, however many rows; two of them; one known beside the unknown.
    one = torch.ones(80, dtype=torch.int64)
    assert told(ids=ids | {"b": one}, cells=False)[:2] == [True, False]
    assert told(ids=ids | {"b": one + (torch.arange(80) == 0)}, cells=False)[:2] == [True, True]
    assert told(ids=ids | {"b": (torch.arange(80) % 2)}, cells=False)[:2] == [True, False]
    # A row per level, and one row more.
    each = torch.arange(1, 81)
    assert told(ids=ids | {"b": each}, sizes={"a": 7, "b": 81})[:3] == [True, False, False]
    assert told(ids=ids | {"b": each.clamp(max=79)}, sizes={"a": 7, "b": 81}, cells=False)[:2] == [True, True]
    # Cells of one row each, of columns with many.
    grid = {"a": torch.arange(80) % 10 + 1, "b": torch.arange(80) // 10 + 1}
    assert told(ids=grid, sizes={"a": 11, "b": 9}) == [True, True, False, True]
    third = grid | {"c": torch.arange(80) % 3 + 1}
    sizes = {"a": 11, "b": 9, "c": 4}
    assert told(ids=third, sizes=sizes, cells=("a", "b")) == [True, True, True, False, True]
    assert told(ids=third, sizes=sizes, cells=("a", "c")) == [True, True, True, True, True]


def test_the_rounding_of_the_deviance_is_that_of_the_sum_of_squares_in_it() -> None:
    """A relative error of one rounding in the squares of the target, times what the deviance makes of it."""
    ids = {"a": torch.arange(1, 41) % 6 + 1, "b": torch.arange(1, 41) % 4 + 1}
    for noise in (1.0, 1e-3):
        y = ids["a"].to(F64).unsqueeze(1) + noise * rows(1, 40)[0]
        e, ratios = system(y, ids, iterate=False, cells=False), torch.tensor([1 / noise**2, 0.1, 0.0, 0.0], dtype=F64)
        square = e.square.clone().requires_grad_()
        solution = solve(dataclasses.replace(e, square=square), ratios)
        (slope,) = torch.autograd.grad(solution.deviance, square)
        # Without eliminated cells all of the squares are in the one number; their sum is the number of rows.
        assert_close(solution.rounding.detach(), torch.finfo(F64).eps * (1 + 40 * slope), rtol=1e-6, atol=0)


@pytest.mark.parametrize("iterate", [False, True])
def test_of_a_target_without_noise_a_ten_billionth_of_its_variance_is_left_for_every_row(iterate: bool) -> None:
    _, ids, x = rows(2)
    for fixed, options in ((1, {}), (3, {"x": x, "shrink_features": False})):
        e = system(torch.zeros(80, 1, dtype=F64), ids, iterate=iterate, **options)  # type: ignore[arg-type]
        for ratios in (torch.zeros(4, dtype=F64), torch.tensor([2.0, 1.0, 3.0, 0.0], dtype=F64)):
            solution = solve_profiles(e, ratios) if iterate else solve(e, ratios)
            assert solution.variance.item() == pytest.approx(1e-10 * 80 / (80 - fixed), rel=1e-9)


@pytest.mark.parametrize("iterate", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_the_slope_vanishes_at_the_estimates_and_rises_through_them(seed: int, iterate: bool) -> None:
    """And next to a component of 0 it is positive, so that less would be better still."""
    e = system(*rows(seed), iterate=iterate)

    def slope(gamma: Tensor) -> Tensor:
        if not iterate:
            return _reml._slope(e, gamma, solve(e, gamma))
        solution = solve_profiles(e, gamma)
        return _reml_sampled._slope(e, gamma, solution, Samples.draw(solution.matrix))

    estimates = _reml_sampled.estimate_sampled_ratios(e) if iterate else _reml.estimate_ratios(e)
    assert (estimates > 0).any()
    for f, ratio in enumerate(estimates.tolist()):
        at, factor = estimates.clone(), 1.05
        if ratio > 0:
            assert abs(slope(estimates)[f].item()) < (2e-3 if iterate else 1e-5)
            at[f] = factor * ratio
            assert slope(at)[f] > 0
            at[f] = ratio / factor
            assert slope(at)[f] < 0
        else:
            at[f] = 1e-6
            assert slope(at)[f] > 0


def test_components_that_might_as_well_be_zero_are() -> None:
    """Those asked for, one after the other, where the deviance does not rise."""
    e = system(*rows(0), iterate=False)
    ratios = torch.tensor([0.8, 1e-11, 1e-11, 0.6], dtype=F64)
    dropped = _reml._drop(e, ratios, [0, 1, 2, 3])
    assert dropped.tolist() == [0.8, 0, 0, 0.6]
    assert _reml._drop(e, ratios, [0, 2]).tolist() == [0.8, 1e-11, 0, 0.6]
    assert ratios.tolist() == [0.8, 1e-11, 1e-11, 0.6]
    # One with a bearing on the target too, where it is too small to tell.
    for tiny, kept in ((1e-10, 0), (1e-6, 1e-6)):
        assert _reml._drop(e, torch.tensor([tiny, 0.0, 0.0, 0.6], dtype=F64), [0]).tolist() == [kept, 0, 0, 0.6]
    # Far too large a component is better none at all, and then the next is needed.
    assert _reml._drop(e, torch.tensor([0.8, 1e8, 0.0, 0.6], dtype=F64), [1]).tolist() == [0.8, 0, 0, 0.6]


@pytest.mark.parametrize("iterations", [0, 2, 5, 1000])
@pytest.mark.parametrize("cells", [True, False])
@pytest.mark.parametrize("scale", [1.0, 1e2, 1e4])
def test_the_error_of_an_iterated_solution_is_bounded_where_variances_are_large(
    scale: float, cells: bool, iterations: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also in the direction in which the matrix is smallest compared with the preconditioner."""
    e = system(*rows(0), iterate=True, cells=cells)
    monkeypatch.setattr(_mixed_iterate, "MAX_ITERATIONS", iterations)
    matrix = ProfileMatrix(e, scale * torch.tensor([0.8, 0.5, 0.4, 0.6], dtype=F64))
    identity = torch.eye(len(e.owners), dtype=F64)
    dense, diagonal = matrix.product(identity), torch.linalg.inv(matrix.precondition(identity))
    half = torch.linalg.cholesky(diagonal)
    between = torch.linalg.solve(half, torch.linalg.solve(half, dense).T)
    smallest = half @ torch.linalg.eigh(between).eigenvectors[:, :1]
    right = torch.cat([smallest, matrix.right()], dim=1)
    solution, bound = matrix.solve(right, tolerance=1e-8)
    error = solution - torch.linalg.solve(dense, right)
    size = (right * torch.linalg.solve(diagonal, right)).sum(dim=0)
    reached = ((error * (dense @ error)).sum(dim=0) / size).max().sqrt()
    assert reached <= bound * (1 + 1e-6) + 1e-12
    if iterations == 1000:
        assert bound <= 1e-8
