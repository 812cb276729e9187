"""Numbers of textbooks and papers, from the data they print."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

from reghead.metrics import pit, pit_histogram
from reghead.normalization import CategoryNormalizer, MixedEffects

F64 = torch.float64


def column(values: np.ndarray) -> torch.Tensor:
    return torch.tensor(values, dtype=F64).unsqueeze(-1)


def shrunk(means: np.ndarray, standard_errors: np.ndarray) -> CategoryNormalizer:
    """Studies with known standard errors, as cells of so many rows that their errors are these."""
    size = 1e9
    count = size / standard_errors**2
    values = np.concatenate([means - math.sqrt(size), means + math.sqrt(size)])
    ids = torch.arange(1, len(means) + 1).repeat(2)
    normalizer = CategoryNormalizer({"study": len(means) + 1}, shrinkage="empirical_bayes")
    return normalizer.fit(column(values), {"study": ids}, weight=torch.tensor(np.concatenate([count, count]) / 2))


def between_variance(normalizer: CategoryNormalizer, means: np.ndarray, standard_errors: np.ndarray) -> np.ndarray:
    """What the weights of the studies say of it, study by study."""
    center = normalizer.location[0, 0].item()
    weight = (normalizer.location[1:, 0].numpy() - center) / (means - center)
    return standard_errors**2 * weight / (1 - weight)


# Efron and Morris, "Data Analysis Using Stein's Estimator and Its Generalizations", 1975; "Stein's Paradox in
# Statistics", 1977: hits of 18 players in their first 45 times at bat in 1970, and their averages in the rest of it.
HITS = np.array([18, 17, 16, 15, 14, 14, 13, 12, 11, 11, 10, 10, 10, 10, 10, 9, 8, 7])
REST_OF_IT = """
0.346 0.298 0.276 0.222 0.273 0.270 0.263 0.210 0.269
0.230 0.264 0.256 0.303 0.264 0.226 0.285 0.316 0.200
"""
REST = np.array(REST_OF_IT.split(), dtype=float)


def test_batting_averages_are_shrunk_as_by_james_and_stein() -> None:
    """The factor of 1977 is 0.212, with k - 3 = 15 where the method of moments has k - 1 = 17."""
    at_bat = np.concatenate([[1.0] * hits + [0.0] * (45 - hits) for hits in HITS])
    player = {"player": torch.arange(1, 19).repeat_interleave(45)}
    normalizer = CategoryNormalizer({"player": 19}, shrinkage="empirical_bayes").fit(column(at_bat), player)
    grand, estimate = normalizer.location[0, 0].item(), normalizer.location[1:, 0].numpy()
    assert grand == pytest.approx(0.265, abs=5e-4)
    weight = (estimate[0] - grand) / (HITS[0] / 45 - grand)
    assert 1 - (1 - weight) * 15 / 17 == pytest.approx(0.212, abs=0.004)
    # Published: the averages themselves have 3.5 times the squared error.
    own, better = ((HITS / 45 - REST) ** 2).sum(), ((estimate - REST) ** 2).sum()
    assert own / better == pytest.approx(3.5, abs=0.15)


def test_eight_schools_are_pooled_completely() -> None:
    """Rubin 1981; Gelman et al., "Bayesian Data Analysis", section 5.5: the pooled estimate is 7.7."""
    effect = np.array([28.0, 8, -3, 7, -1, 1, 18, 12])
    error = np.array([15.0, 10, 16, 11, 9, 11, 10, 18])
    normalizer = shrunk(effect, error)
    assert torch.allclose(normalizer.location, normalizer.location[0], rtol=0, atol=1e-6)
    assert normalizer.location[0, 0].item() == pytest.approx(7.69, abs=5e-3)
    # Cochran's Q is less than its degrees of freedom, so nothing is left for the schools.
    assert (((effect - 7.686) / error) ** 2).sum() < 7


# Colditz et al. 1994: cases and others among the vaccinated, and among the controls, in 13 trials of the BCG vaccine.
TRIALS = """
4 119 11 128  6 300 29 274  3 228 11 209  62 13536 248 12619  33 5036 47 5761
180 1361 372 1079  8 2537 10 619  505 87886 499 87892  29 7470 45 7232
17 1699 65 1600  186 50448 141 27197  5 2493 3 2338  27 16886 29 17825
"""
BCG = np.array(TRIALS.split(), dtype=float).reshape(13, 4)


def test_trials_of_a_vaccine_differ_as_dersimonian_and_laird_say() -> None:
    """Published for the logarithm of the relative risk: a variance between trials of 0.3088."""
    a, b, c, d = BCG.T
    effect = np.log((a / (a + b)) / (c / (c + d)))
    error = np.sqrt(1 / a - 1 / (a + b) + 1 / c - 1 / (c + d))
    found = between_variance(shrunk(effect, error), effect, error)
    np.testing.assert_allclose(found, 0.3088, atol=2e-4)
    weight = 1 / (error**2 + found)
    assert (weight * effect).sum() / weight.sum() == pytest.approx(-0.7141, abs=2e-4)


# Davies and Goldsmith, "Statistical Methods in Research and Production", 1972; Bates et al., "Fitting Linear
# Mixed-Effects Models Using lme4", 2015: yields of six batches of an intermediate, five preparations each.
DYESTUFF = np.array(
    [
        [1545, 1440, 1440, 1520, 1580],
        [1540, 1555, 1490, 1560, 1495],
        [1595, 1550, 1605, 1510, 1560],
        [1445, 1440, 1595, 1465, 1545],
        [1595, 1630, 1515, 1635, 1625],
        [1520, 1455, 1450, 1480, 1445],
    ],
    dtype=float,
)


def test_dyestuff_by_moments_and_by_restricted_likelihood() -> None:
    """Published: 1764 between and 2451 within batches; balanced, so both methods agree."""
    batch = {"batch": torch.arange(1, 7).repeat_interleave(5)}
    y = column(DYESTUFF.ravel())
    moments = CategoryNormalizer({"batch": 7}, shrinkage="empirical_bayes").fit(y, batch)
    effect, error = DYESTUFF.mean(1), np.full(6, math.sqrt(2451.25 / 5))
    # In a balanced design the method of moments is the analysis of variance.
    np.testing.assert_allclose(between_variance(moments, effect, error), 1764.05, rtol=1e-5)
    model = MixedEffects({"batch": 7}).fit(y, batch)
    mean, std = model.predict({"batch": torch.arange(7)})
    assert mean[0].item() == pytest.approx(1527.5, abs=1e-6)
    np.testing.assert_allclose(mean[1:, 0].numpy(), moments.location[1:, 0].numpy(), rtol=1e-6)
    # A new batch: within, between, and the variance of the mean of six batches.
    assert std[0].item() ** 2 == pytest.approx(2451.25 + 1764.05 + (1764.05 + 2451.25 / 5) / 6, rel=1e-4)


# Limits of partial pooling


def test_a_category_with_many_rows_keeps_its_mean_and_one_row_is_shrunk_most() -> None:
    rng = np.random.default_rng(0)
    sizes = np.array([1, 10, 100, 1000, 100_000])
    ids = np.repeat(np.arange(1, 6), sizes)
    y = 3.0 * np.array([1.0, -1.0, 1.0, -1.0, 0.5])[ids - 1] + rng.normal(size=len(ids))
    normalizer = CategoryNormalizer({"a": 6}, shrinkage="empirical_bayes").fit(column(y), {"a": torch.tensor(ids)})
    own = np.array([y[ids == k].mean() for k in range(1, 6)])
    center = normalizer.location[0, 0].item()
    weight = (normalizer.location[1:, 0].numpy() - center) / (own - center)
    assert (np.diff(weight) > 0).all()
    assert weight[-1] == pytest.approx(1.0, abs=1e-4)
    assert weight[0] < 0.95


def test_categories_that_differ_by_noise_alone_are_pooled_completely() -> None:
    means = np.array([0.1, -0.1, 0.05, -0.05, 0.0])
    normalizer = shrunk(means, np.ones(5))
    assert torch.allclose(normalizer.location, normalizer.location[0], rtol=0, atol=1e-6)


def test_categories_that_differ_by_far_more_than_noise_are_not_pooled() -> None:
    means = np.array([1e3, -1e3, 5e2, -5e2, 0.0])
    normalizer = shrunk(means, np.full(5, 1e-2))
    np.testing.assert_allclose(normalizer.location[1:, 0].numpy(), means, atol=1e-4)


# Calibrated predictions


@pytest.mark.parametrize("levels", [tuple((np.arange(9) + 1) / 10), tuple((np.arange(99) + 1) / 100), (0.05, 0.5)])
def test_the_transform_of_calibrated_predictions_is_uniform(levels: tuple[float, ...]) -> None:
    """Location and spread differ row by row; what is between the levels is drawn, so no straight line is in it."""
    rng = torch.Generator().manual_seed(len(levels))
    center, spread = (
        torch.randn(20_000, 1, generator=rng, dtype=F64),
        torch.rand(20_000, 1, generator=rng).double() + 0.1,
    )
    y = center + spread * torch.randn(20_000, 1, generator=rng, dtype=F64)
    z = torch.special.ndtri(torch.tensor(levels, dtype=F64))
    preds = center.unsqueeze(-1) + spread.unsqueeze(-1) * z
    values = pit(preds, y, levels, generator=rng).flatten()
    share = (values.unsqueeze(-1) <= torch.tensor(levels, dtype=F64)).double().mean(0)
    error = (torch.tensor(levels, dtype=F64) * (1 - torch.tensor(levels, dtype=F64)) / 20_000).sqrt()
    assert ((share - torch.tensor(levels, dtype=F64)).abs() < 4 * error).all()
    histogram = pit_histogram(preds, y, levels)
    assert stats.chisquare(histogram.counts.numpy(), histogram.expected.numpy()).pvalue > 0.01
    wrong = pit_histogram(center.unsqueeze(-1) + 0.7 * spread.unsqueeze(-1) * z, y, levels)
    assert wrong.counts[0] > wrong.high[0], "too narrow predictions are found out"
