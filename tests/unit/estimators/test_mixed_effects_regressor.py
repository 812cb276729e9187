"""A head that learns the residual of a linear mixed model, and intervals calibrated for new environments."""

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from reghead import UnseenCategoryWarning
from reghead._warnings import RegheadWarning
from reghead.categories import CategoryEncoder
from reghead.estimators import HeadRegressor
from reghead.normalization import MixedEffects

QUICK: dict[str, Any] = {"hidden_dims": (8,), "max_epochs": 30, "lr": 0.01, "random_state": 0, "mixed_effects": True}
LEVELS = (0.1, 0.5, 0.9)


def sites(n: int = 300, count: int = 12, seed: int = 0, spread: float = 3.0) -> tuple[pd.DataFrame, np.ndarray]:
    """A slope that all sites share, a level for each site and season, and noise of 1."""
    rng = np.random.default_rng(seed)
    X = pd.DataFrame({"x": rng.normal(size=n), "site": rng.integers(0, count, n), "season": rng.integers(0, 3, n)})  # noqa: N806
    level = spread * np.random.default_rng(seed + 1).normal(size=count)
    return X.astype({"site": str, "season": str}), 2 * X["x"].to_numpy() + level[X["site"]] + rng.normal(size=n)


def test_training_starts_at_the_mixed_model() -> None:
    X, y = sites()  # noqa: N806
    model = HeadRegressor(["site", "season"], **{**QUICK, "lr": 1e-12, "max_epochs": 1, "weight_decay": 0.0}).fit(X, y)
    rows = X.iloc[:50]
    encoder = model.encoder_
    x = torch.tensor(((rows["x"] - model._model.preprocessor.mean[0]) / model._model.preprocessor.scale[0]).to_numpy())
    expected = model.normalizer_.predict(encoder.transform(rows), x[:, None]).mean[:, 0]
    np.testing.assert_allclose(model.predict(rows), expected.numpy(), rtol=1e-9)
    assert isinstance(model.normalizer_, MixedEffects)
    assert not model.normalizer_.cells


def test_the_mixed_model_is_that_of_the_training_rows() -> None:
    X, y = sites()  # noqa: N806
    model = HeadRegressor(["site", "season"], normalize_by=["site", "season"], early_stopping=False, **QUICK).fit(X, y)
    encoder = CategoryEncoder(["site", "season"])
    ids = encoder.fit_transform(X)
    x = torch.tensor(((X["x"] - X["x"].mean()) / X["x"].std(ddof=0)).to_numpy())[:, None]
    expected = MixedEffects(encoder.cardinalities, cells=["site", "season"]).fit(torch.tensor(y)[:, None], ids, x)
    ours, theirs = model.normalizer_.statistics(), expected.statistics()
    torch.testing.assert_close(ours.effects["site"], theirs.effects["site"])
    torch.testing.assert_close(ours.residual_variance, theirs.residual_variance)


def test_a_new_site_gets_the_population_and_a_wider_interval() -> None:
    X, y = sites(600)  # noqa: N806
    model = HeadRegressor(["site", "season"], loss="quantile", **QUICK).fit(X, y)
    known = X[X["site"] == "3"].head(1)
    with pytest.warns(UnseenCategoryWarning, match="never"):
        low, high = model.predict_interval(known.assign(site="never"), 0.8)
    inside, outside = model.predict_interval(known, 0.8)
    # Noise of sd 1 against levels of sd 3.
    assert high - low > 2 * (outside - inside)


def test_integer_weights_are_repetitions_with_a_mixed_model_too() -> None:
    X, y = sites(60)  # noqa: N806
    count = np.arange(60) % 3
    index = np.repeat(np.arange(60), count)
    options = {**QUICK, "early_stopping": False}
    weighted = HeadRegressor(["site"], **options).fit(X.drop(columns="season"), y, sample_weight=count)
    repeated = HeadRegressor(["site"], **options).fit(X.drop(columns="season").iloc[index], y[index])
    rows = X.drop(columns="season").iloc[index]
    np.testing.assert_allclose(weighted.predict(rows), repeated.predict(rows), rtol=1e-9)


def new_sites(model: HeadRegressor, seeds: range) -> float:
    """The share of targets of sites that training has not seen that lie inside the 80 % interval."""
    inside = []
    for seed in seeds:
        X, y = sites(200, 20, seed + 100)  # noqa: N806
        X = X.drop(columns="season")  # noqa: N806
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UnseenCategoryWarning)
            low, high = model.predict_interval(X.assign(site="new " + X["site"]), 0.8)
        inside.append(np.mean((low <= y) & (y <= high)))
    return float(np.mean(inside))


CALIBRATED: dict[str, Any] = {
    **QUICK,
    # Without unknown_dropout the unknown site is untrained, and each of the models is wrong on it in its own way.
    "mixed_effects": False,
    "loss": "quantile",
    "max_epochs": 40,
    "unknown_dropout": 0.1,
}


@pytest.mark.slow
def test_calibration_by_site_covers_new_sites() -> None:
    raw, calibrated = [], []
    for seed in range(4):
        X, y = sites(900, 30, seed)  # noqa: N806
        X = X.drop(columns="season")  # noqa: N806
        raw.append(new_sites(HeadRegressor(["site"], **CALIBRATED).fit(X, y), range(3)))
        calibrated.append(new_sites(HeadRegressor(["site"], calibrate_by="site", **CALIBRATED).fit(X, y), range(3)))
    # Given its 30 sites, the coverage of one calibration has a standard deviation of 0.07.
    assert np.mean(raw) < 0.65
    assert 0.72 < np.mean(calibrated) < 0.9


def test_calibration_changes_intervals_alone_and_is_saved(tmp_path: Path) -> None:
    X, y = sites(600, 12)  # noqa: N806
    X = X.drop(columns="season")  # noqa: N806
    raw = HeadRegressor(["site"], **CALIBRATED).fit(X, y)
    model = HeadRegressor(["site"], calibrate_by="site", **CALIBRATED).fit(X, y)
    np.testing.assert_array_equal(raw.predict_quantiles(X), model.predict_quantiles(X))
    low, high = model.predict_interval(X, 0.8)
    assert 0.7 < np.mean((low <= y) & (y <= high)) < 0.9
    model.save(tmp_path / "m.safetensors")
    again = HeadRegressor.load(tmp_path / "m.safetensors")
    np.testing.assert_array_equal(again.predict_interval(X, 0.8), (low, high))


def test_a_new_season_of_a_known_site_has_an_interval_of_its_own() -> None:
    X, y = sites(400, 12)  # noqa: N806
    X, y = X[~((X["site"] == "1") & (X["season"] == "2"))], y[~((X["site"] == "1") & (X["season"] == "2"))]  # noqa: N806
    options = {**QUICK, "loss": "quantile", "max_epochs": 10}
    model = HeadRegressor(["site", "season"], calibrate_by=["site", "season"], **options).fit(X, y)
    one = X.head(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UnseenCategoryWarning)
        known, cell, site = (
            np.diff(model.predict_interval(one.assign(**row), 0.8), axis=0).item()
            for row in (
                {"site": "1", "season": "0"},
                {"site": "1", "season": "2"},
                {"site": "new", "season": "0"},
            )
        )
    assert known != cell
    assert site > 2 * max(known, cell)  # sites differ by 3, seasons by nothing


def test_few_environments_are_told() -> None:
    X, y = sites(300, 3)  # noqa: N806
    with pytest.warns(RegheadWarning, match="a new site are calibrated on 3 only, without a guarantee: that needs 4"):
        HeadRegressor(["site"], loss="quantile", calibrate_by="site", **{**QUICK, "max_epochs": 3}).fit(
            X.drop(columns="season"), y
        )


def test_clipped_features_are_almost_linear_near_zero_and_bounded() -> None:
    X, y = sites()  # noqa: N806
    rows = X.head(3).assign(x=[X["x"].mean(), 1e6, -1e6])
    model = HeadRegressor(["site", "season"], feature_clip=3.0, early_stopping=False, **QUICK).fit(X, y)
    plain = HeadRegressor(["site", "season"], **QUICK).fit(X, y)
    features, _ = model._model.preprocessor.transform(model._read(rows), torch.float64)
    np.testing.assert_allclose(features[:, 0], [0.0, 3.0, -3.0], atol=1e-6)
    unclipped, _ = plain._model.preprocessor.transform(plain._read(rows), torch.float64)
    assert unclipped[1, 0] > 1e5


@pytest.mark.parametrize("levels", [(0.1, 0.9), (0.1, 0.2, 0.9)])
def test_both_ends_of_an_interval_widen_for_a_new_site_also_without_a_median(levels: tuple[float, ...]) -> None:
    X, y = sites(900, 40)  # noqa: N806
    X = X.drop(columns="season")  # noqa: N806
    model = HeadRegressor(["site"], loss="quantile", quantiles=levels, **QUICK).fit(X, y)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UnseenCategoryWarning)
        shares = []
        for seed in range(6):
            new, target = sites(200, 20, seed + 50)
            quantiles = model.predict_quantiles(new.drop(columns="season").assign(site="new"))
            shares.append((target[:, None] <= quantiles).mean(axis=0))
    np.testing.assert_allclose(np.mean(shares, axis=0), levels, atol=0.1)


def test_known_intervals_are_those_of_known_rows() -> None:
    X, y = sites(500, 12)  # noqa: N806
    X = X.drop(columns="season")  # noqa: N806
    model = HeadRegressor(["site"], calibrate_by="site", **{**CALIBRATED, "max_epochs": 20})
    half = X["site"].astype(int) < 8
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UnseenCategoryWarning)
        model.fit(X[half], y[half], eval_set=(X, y))  # a third of the rows to stop by are of sites not trained on
        known = np.subtract(*model.predict_interval(X[half], 0.8)[::-1]).mean()
        unknown = np.subtract(*model.predict_interval(X[~half], 0.8)[::-1]).mean()
    low, high = model.predict_interval(X[half], 0.8)
    assert np.mean((low <= y[half]) & (y[half] <= high)) < 0.95
    assert unknown > 1.5 * known


def test_missing_labels_are_no_environment() -> None:
    X, y = sites(400, 8)  # noqa: N806
    X = X.drop(columns="season")  # noqa: N806
    X.loc[::4, "site"] = None
    model = HeadRegressor(["site"], calibrate_by="site", **{**CALIBRATED, "max_epochs": 3}).fit(X, y)
    assert model._model.intervals.environments == (8,)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"calibrate_by": "site"}, "calibrate_by calibrates predicted quantiles, and loss='huber'"),
        ({"calibrate_by": "site", "loss": "quantile", "quantiles": (0.1, 0.5, 0.8)}, "pairs"),
        ({"calibrate_by": ["site", "site"], "loss": "quantile"}, "calibrate_by must name each column once"),
        ({"calibrate_by": "site", "loss": "quantile", "validation_by": "site"}, "validation_by gives others"),
        ({"loss": "quantile", "quantiles": (0.8, 0.9)}, "spreads quantiles around the median, which the levels"),
        ({"calibrate_by": "x", "loss": "quantile"}, "calibrate_by names .'x'., which are not among categories"),
        ({"calibrate_by": "site", "loss": "quantile", "early_stopping": False}, "calibrate_by needs rows held back"),
        ({"shrinkage": "empirical_bayes", "normalize_by": ["site"]}, "shrinkage empirical_bayes is for method moments"),
        ({"normalize": False}, "normalize=False leaves the target on its own scale"),
        ({"feature_clip": 0.0}, "feature_clip must be"),
    ],
)
def test_arguments_are_refused(options: dict[str, Any], message: str) -> None:
    X, y = sites()  # noqa: N806
    with pytest.raises(ValueError, match=message):
        HeadRegressor(["site", "season"], **{**QUICK, **options}).fit(X, y)


def test_what_a_mixed_model_and_a_calibration_cannot_go_on_with() -> None:
    X, y = sites()  # noqa: N806
    with pytest.raises(ValueError, match="warm_start cannot go on from a mixed model"):
        HeadRegressor(["site"], warm_start=True, **QUICK).fit(X.drop(columns="season"), y).fit(
            X.drop(columns="season"), y
        )
    calibrated = HeadRegressor(["site", "season"], calibrate_by="site", loss="quantile", **QUICK)
    with pytest.raises(ValueError, match="sample_weight gives others"):
        calibrated.fit(X, y, sample_weight=np.ones(len(y)))
    with pytest.raises(ValueError, match="needs at least 2 categories of 'site', to leave one out, got 1"):
        calibrated.fit(X.assign(site="a"), y)
