"""Every loss against its paper's formula, written out cell by cell in NumPy float64."""

import math
from collections.abc import Callable
from statistics import NormalDist

import numpy as np
import pytest
import torch
from scipy import integrate, stats

from reghead import functional as R

TAU = (0.05, 0.3, 0.5, 0.95)


def expectile(y: float, p: float) -> float:
    return abs(0.3 - (y < p)) * (y - p) ** 2


def huber(e: float, delta: float) -> float:
    return e * e / 2 if abs(e) <= delta else delta * (abs(e) - delta / 2)


def log_cosh(y: float, p: float) -> float:
    return float(np.logaddexp(y - p, p - y) - math.log(2.0))


def asymmetric(y: float, p: float) -> float:
    return (2.0 if p > y else 0.5) * huber(y - p, 0.7)


POINT: dict[str, tuple[Callable[..., torch.Tensor], Callable[[float, float], float]]] = {
    "mse": (R.mse_loss, lambda y, p: (y - p) ** 2),
    "mae": (R.mae_loss, lambda y, p: abs(y - p)),
    "huber": (lambda p, y, **k: R.huber_loss(p, y, 0.7, **k), lambda y, p: huber(y - p, 0.7)),
    "log_cosh": (R.log_cosh_loss, log_cosh),
    "expectile": (lambda p, y, **k: R.expectile_loss(p, y, 0.3, **k), expectile),
    "asymmetric": (lambda p, y, **k: R.asymmetric_loss(p, y, 2.0, 0.5, "huber", 0.7, **k), asymmetric),
}


@pytest.mark.parametrize("name", POINT)
def test_losses_of_points(name: str) -> None:
    rng = np.random.default_rng(0)
    y, p, w = 2 * rng.normal(size=(20, 3)), 2 * rng.normal(size=(20, 3)), rng.uniform(size=(20, 3))
    ours, formula = POINT[name]
    cells = np.array([[formula(a, b) for a, b in zip(*rows, strict=True)] for rows in zip(y, p, strict=True)])
    tensors = (torch.from_numpy(p), torch.from_numpy(y))
    np.testing.assert_allclose(ours(*tensors, reduction="none"), cells, rtol=1e-12, atol=1e-14)
    weighted = ours(*tensors, weight=torch.from_numpy(w)).item()
    np.testing.assert_allclose(weighted, np.average(cells, weights=w), rtol=1e-12)


def test_huber_pinball() -> None:
    """Dabney et al. (2018), eq. 10: knots at plus and minus delta, whatever the level."""
    rng = np.random.default_rng(1)
    y, q = 2 * rng.normal(size=(20, 2)), 2 * rng.normal(size=(20, 2, 4))
    cells = np.empty_like(q)
    for index in np.ndindex(*q.shape):
        e = y[index[:-1]] - q[index]
        cells[index] = abs(TAU[index[-1]] - (e < 0)) * huber(e, 0.7) / 0.7
    ours = R.huber_pinball_loss(torch.from_numpy(q), torch.from_numpy(y), TAU, 0.7, reduction="none")
    np.testing.assert_allclose(ours, cells, rtol=1e-12, atol=1e-14)


def test_interval_score() -> None:
    """Gneiting and Raftery (2007), eq. 43."""
    rng = np.random.default_rng(2)
    y, bounds, alpha = rng.normal(size=(50, 2)), rng.normal(size=(50, 2, 2)), 0.2
    lower, upper = bounds[..., 0], bounds[..., 1]
    cells = (upper - lower) + 2 / alpha * (lower - y) * (y < lower) + 2 / alpha * (y - upper) * (y > upper)
    ours = R.interval_score_loss(torch.from_numpy(bounds), torch.from_numpy(y), 1 - alpha, reduction="none")
    np.testing.assert_allclose(ours, cells, rtol=1e-12, atol=1e-12)


def test_the_interval_score_is_proper() -> None:
    """In expectation over a normal target, the interval between its own quantiles scores best."""
    y = torch.from_numpy(stats.norm.ppf((np.arange(4000) + 0.5) / 4000))[:, None]
    z = NormalDist().inv_cdf(0.9)

    def score(lower: float, upper: float) -> float:
        return R.interval_score_loss(torch.tensor([[lower, upper]]).double().expand(4000, 1, 2), y, 0.8).item()

    best = score(-z, z)
    for lower, upper in ((-z - 0.1, z + 0.1), (-z + 0.1, z - 0.1), (-z + 0.1, z + 0.1), (-z, z + 0.1)):
        assert score(lower, upper) > best


@pytest.mark.parametrize("y", [-2.0, 0.3, 1.5])
def test_crps_of_an_exponential_distribution(y: float) -> None:
    """Against the definition by the distribution function, integrated numerically."""
    levels = [(k + 0.5) / 999 for k in range(999)]
    quantiles = torch.from_numpy(stats.expon.ppf(levels))
    definition = integrate.quad(lambda x: (stats.expon.cdf(x) - (x >= y)) ** 2, -3, 40, points=[y, 0.0], limit=200)[0]
    ours = R.crps_loss(quantiles[None, None], torch.tensor([[y]]).double(), levels).item()
    np.testing.assert_allclose(ours, definition, rtol=1e-3)


def test_levels_at_k_over_q_plus_one_are_worse_than_midpoints() -> None:
    y, q = stats.norm.ppf((np.arange(2000) + 0.5) / 2000), 9

    def mean_score(levels: list[float]) -> float:
        preds = torch.from_numpy(stats.norm.ppf(levels)).expand(2000, 1, q)
        return R.crps_loss(preds, torch.from_numpy(y)[:, None], levels).item()

    exact = 1 / math.sqrt(math.pi)
    midpoints = abs(mean_score([(k - 0.5) / q for k in range(1, q + 1)]) / exact - 1)
    unequal = abs(mean_score([k / (q + 1) for k in range(1, q + 1)]) / exact - 1)
    assert midpoints < unequal < 0.1


def test_gaussian_likelihood() -> None:
    rng = np.random.default_rng(3)
    y, mean, scale = rng.normal(size=(20, 2)), rng.normal(size=(20, 2)), rng.uniform(0.1, 3, size=(20, 2))
    ours = R.gaussian_nll_loss(*map(torch.from_numpy, (mean, y, scale)), reduction="none")
    np.testing.assert_allclose(ours, -stats.norm.logpdf(y, mean, scale), rtol=1e-12)


def test_per_output_with_uncertainty() -> None:
    """Kendall, Gal and Cipolla (2018): one half of exp(-s) times the loss, plus s."""
    rng = np.random.default_rng(4)
    y, p, s, w = rng.normal(size=(20, 3)), rng.normal(size=(20, 3)), rng.normal(size=3), rng.uniform(size=20)
    y[rng.uniform(size=y.shape) < 0.3] = np.nan
    formulas = [lambda e: e**2, abs, lambda e: huber(e, 1.0)]
    importance = np.array([2.0, 1.0, 0.5])
    terms = []
    for d, formula in enumerate(formulas):
        seen = ~np.isnan(y[:, d])
        cells = [formula(a - b) for a, b in zip(y[seen, d], p[seen, d], strict=True)]
        terms.append(0.5 * (math.exp(-s[d]) * np.average(cells, weights=w[seen]) + s[d]))
    ours = R.per_output_loss(
        torch.from_numpy(p),
        torch.from_numpy(y),
        {0: {"type": "mse", "weight": 2.0}, 1: "mae", 2: {"type": "huber", "weight": 0.5}},
        log_variance=torch.from_numpy(s),
        weight=torch.from_numpy(w),
        nan_policy="omit",
    )
    np.testing.assert_allclose(ours.item(), np.average(terms, weights=importance), rtol=1e-12)
