"""The normalizer against the same quantities by another road: pandas, dense least squares, textbook formulas."""

import math

import numpy as np
import pandas as pd
import pytest
import torch

from reghead._warnings import UnseenCategoryWarning
from reghead.normalization import CategoryNormalizer


def rows(seed: int, n: int = 300) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    frame = pd.DataFrame({"a": rng.integers(1, 6, n), "b": rng.integers(1, 5, n)})
    frame["y"] = 3.0 * frame["a"] - 2.0 * frame["b"] + rng.normal(size=n) * (1 + frame["a"] % 3)
    return frame


def fit(frame: pd.DataFrame, columns: dict[str, int], **options: str) -> CategoryNormalizer:
    normalizer = CategoryNormalizer(columns, **options)  # type: ignore[arg-type]
    return normalizer.fit(torch.tensor(frame[["y"]].to_numpy()), ids_of(frame))


def ids_of(frame: pd.DataFrame) -> dict[str, torch.Tensor]:
    return {column: torch.tensor(frame[column].to_numpy()) for column in ("a", "b")}


@pytest.mark.parametrize("seed", range(3))
def test_z_scores_equal_those_of_pandas(seed: int) -> None:
    frame = rows(seed)
    normalizer = fit(frame, {"a": 6, "b": 5})
    grouped = frame.groupby(["a", "b"])["y"]
    expected = (frame["y"] - grouped.transform("mean")) / grouped.transform("std")
    z = normalizer(torch.tensor(frame[["y"]].to_numpy()), ids_of(frame))
    np.testing.assert_allclose(z[:, 0].numpy(), expected.to_numpy(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("seed", range(3))
def test_unseen_cells_equal_ordinary_least_squares_on_indicator_variables(seed: int) -> None:
    frame = rows(seed)
    held_out = (frame["a"] + frame["b"]) % 4 == 0
    train = frame[~held_out]
    cells = frame[held_out][["a", "b"]].drop_duplicates()

    def design(part: pd.DataFrame) -> np.ndarray:
        indicators = [part[c].to_numpy()[:, None] == np.unique(frame[c])[None, 1:] for c in ("a", "b")]
        return np.hstack([np.ones((len(part), 1)), *indicators])

    expected = design(cells) @ np.linalg.lstsq(design(train), train["y"].to_numpy(), rcond=None)[0]
    normalizer = fit(train, {"a": 6, "b": 5}, fallback="additive")
    with pytest.warns(UnseenCategoryWarning):
        location = normalizer.inverse(torch.zeros(len(cells), 1, dtype=torch.float64), ids_of(cells))
    np.testing.assert_allclose(location[:, 0].numpy(), expected, rtol=1e-10, atol=1e-10)
    within = train["y"] - train.groupby(["a", "b"])["y"].transform("mean")
    pooled = math.sqrt((within**2).sum() / (len(train) - len(train[["a", "b"]].drop_duplicates())))
    scale = normalizer.inverse_scale(torch.ones(len(cells), 1, dtype=torch.float64), ids_of(cells))
    np.testing.assert_allclose(scale[:, 0].numpy(), pooled, rtol=1e-12)


def test_a_chain_of_levels_is_solved_to_the_end() -> None:
    # Each location shares one season with the next: information has to travel through 200 cells, whose counts differ
    # by up to a million.
    rng = np.random.default_rng(0)
    a, b = (np.arange(199) + 1) // 2 + 1, np.arange(199) // 2 + 1
    effect_a, effect_b = rng.normal(size=101), rng.normal(size=101)
    y = torch.tensor(effect_a[a] + effect_b[b]).unsqueeze(-1)
    normalizer = CategoryNormalizer({"a": 102, "b": 102}, fallback="additive")
    normalizer.fit(
        y, {"a": torch.tensor(a), "b": torch.tensor(b)}, weight=torch.tensor(10 ** rng.uniform(0, 6, 199)).round()
    )
    with pytest.warns(UnseenCategoryWarning):
        location = normalizer.inverse(
            torch.zeros(1, 1, dtype=torch.float64), {"a": torch.tensor([1]), "b": torch.tensor([100])}
        )
    np.testing.assert_allclose(location.item(), effect_a[1] + effect_b[100], rtol=1e-7)


@pytest.mark.parametrize("seed", range(3))
def test_shrunken_means_equal_the_formula_of_dersimonian_and_laird(seed: int) -> None:
    frame = rows(seed, n=40)
    cells = frame.groupby(["a", "b"])["y"].agg(["size", "mean", "var"])
    n, mean = cells["size"].to_numpy(float), cells["mean"].to_numpy()
    within = np.nansum((n - 1) * cells["var"].to_numpy()) / (n - 1).sum()
    w = n / within
    q = (w * (mean - (w * mean).sum() / w.sum()) ** 2).sum()
    tau2 = max(0.0, (q - (len(n) - 1)) / (w.sum() - (w**2).sum() / w.sum()))
    grand = frame["y"].mean()
    expected = grand + tau2 / (tau2 + within / n) * (mean - grand)
    table = fit(frame, {"a": 6, "b": 5}, shrinkage="empirical_bayes").statistics()
    assert tau2 > 0
    np.testing.assert_allclose(table.location[1:, 0].numpy(), expected, rtol=1e-10)


@pytest.mark.parametrize("size", [2, 5])
def test_shrinkage_toward_main_effects_equals_the_moments_of_a_dense_projection(size: int) -> None:
    # Balanced, where the leverages are exact: E[e' W e] = s2 tr(P W^-1) + tau2 tr(P), P = W - W X (X' W X)^+ X' W.
    rng = np.random.default_rng(size)
    cells = np.array([(i, j) for i in range(6) for j in range(4)])
    truth = rng.normal(size=6)[cells[:, 0]] + rng.normal(size=4)[cells[:, 1]] + rng.normal(size=24)
    frame = pd.DataFrame(np.repeat(cells + 1, size, axis=0), columns=["a", "b"])
    frame["y"] = np.repeat(truth, size) + rng.normal(size=24 * size)
    grouped = frame.groupby(["a", "b"])["y"]
    mean, within = grouped.mean().to_numpy(), grouped.var().to_numpy().mean()
    x = np.hstack([np.eye(6)[cells[:, 0]], np.eye(4)[cells[:, 1]]])
    weight = np.full(24, float(size))
    wx = weight[:, None] * x
    projection = np.diag(weight) - wx @ np.linalg.pinv(x.T @ wx) @ wx.T
    spread = mean @ projection @ mean
    tau2 = (spread - within * np.trace(projection / weight)) / np.trace(projection)
    assert tau2 > 0
    prior = mean - projection @ mean / weight
    expected = prior + tau2 / (tau2 + within / size) * (mean - prior)
    table = fit(frame, {"a": 7, "b": 5}, shrinkage="empirical_bayes", fallback="additive").statistics()
    np.testing.assert_allclose(table.location[1:, 0].numpy(), expected, rtol=1e-9)


@pytest.mark.parametrize("seed", range(3))
def test_shrunken_variances_equal_the_posterior_mean_of_an_inverse_chi_square_prior(seed: int) -> None:
    frame = rows(seed, n=80)
    cells = frame.groupby(["a", "b"])["y"].agg(["size", "var"])
    df = cells["size"].to_numpy(float) - 1
    variance = cells["var"].fillna(0.0).to_numpy()
    pooled = (df * variance).sum() / df.sum()
    free = df > 0
    dispersion = (df * (variance / pooled - 1) ** 2)[free].sum()
    variation = max((dispersion - 2 * (free.sum() - 1)) / (df.sum() + 2 * free.sum()), 1e-300)
    # An inverse chi-square with d0 degrees of freedom has mean d0 t / (d0 - 2) and squared variation 2 / (d0 - 4).
    prior_df = 4 + 2 / variation
    prior_scale = pooled * (prior_df - 2) / prior_df
    expected = (prior_df * prior_scale + df * variance) / (prior_df + df - 2)
    table = fit(frame, {"a": 6, "b": 5}, shrinkage="empirical_bayes").statistics()
    np.testing.assert_allclose(table.scale[1:, 0].square().numpy(), expected, rtol=1e-10)


def test_estimated_between_variance_is_right_on_average() -> None:
    # 60 cells, true variances 1 within and 0.5 between: the weight of a cell's own mean gives tau2 away.
    estimates = []
    for seed in range(40):
        rng = np.random.default_rng(seed)
        n = rng.integers(1, 9, 60)
        cell = np.repeat(np.arange(60), n)
        y = rng.normal(size=60)[cell] * math.sqrt(0.5) + rng.normal(size=len(cell))
        normalizer = CategoryNormalizer({"cell": 61}, shrinkage="empirical_bayes")
        table = normalizer.fit(torch.tensor(y).unsqueeze(-1), {"cell": torch.tensor(cell + 1)}).statistics()
        kept = ((table.location[1:] - table.location[0]) / (table.mean[1:] - table.location[0])).flatten().numpy()
        largest = int(n.argmax())
        estimates.append(kept[largest] / (1 - kept[largest]) / n[largest])
    assert np.mean(estimates) == pytest.approx(0.5, abs=3 * np.std(estimates) / math.sqrt(40) + 0.02)
