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
from reghead.estimators._fit import fit_model
from reghead.normalization import MixedEffects

QUICK: dict[str, Any] = {"hidden_dims": (8,), "max_epochs": 30, "lr": 0.01, "random_state": 0}
LEVELS = (0.1, 0.5, 0.9)


def sites(n: int = 300, count: int = 12, seed: int = 0, spread: float = 3.0) -> tuple[pd.DataFrame, np.ndarray]:
    """A slope that all sites share, a level for each site and season, and noise of 1."""
    rng = np.random.default_rng(seed)
    X = pd.DataFrame({"x": rng.normal(size=n), "site": rng.integers(0, count, n), "season": rng.integers(0, 3, n)})  # noqa: N806
    level = spread * np.random.default_rng(seed + 1).normal(size=count)
    return X.astype({"site": str, "season": str}), 2 * X["x"].to_numpy() + level[X["site"]] + rng.normal(size=n)


@pytest.mark.parametrize("clip", [3.0, None])
def test_training_starts_at_the_mixed_model(clip: float | None) -> None:
    X, y = sites()  # noqa: N806
    options = {**QUICK, "lr": 1e-12, "max_epochs": 1, "weight_decay": 0.0, "feature_clip": clip}
    model = HeadRegressor(["site", "season"], **options).fit(X, y)
    rows = X.iloc[:50]
    encoder, numbers = model.encoder_, model._model.preprocessor
    plain = np.clip(rows["x"].to_numpy(), numbers.low[0], numbers.high[0])
    plain = (plain - numbers.mean[0]) / numbers.scale[0]
    x = plain[:, None] if clip is None else np.stack([plain / np.sqrt(1 + (plain / clip) ** 2), plain], 1)
    expected = model.normalizer_.predict(encoder.transform(rows), torch.tensor(x)).mean[:, 0]
    np.testing.assert_allclose(model.predict(rows), expected.numpy(), rtol=1e-9)
    assert isinstance(model.normalizer_, MixedEffects)
    assert not model.normalizer_.cells


def test_the_mixed_model_is_that_of_the_training_rows() -> None:
    X, y = sites()  # noqa: N806
    options = {**QUICK, "max_epochs": 1, "early_stopping": False, "feature_clip": None}
    model = HeadRegressor(["site", "season"], normalize_by=["site", "season"], **options).fit(X, y)
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
    # All rows in one step, and none of them hidden.
    options = {**QUICK, "early_stopping": False, "batch_size": 100, "unknown_dropout": 0.0}
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
    "normalize": "moments",
    "ensemble": 1,
    "numeric_embeddings": False,
    "loss": "quantile",
    "max_epochs": 40,
    "batch_size": 128,
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


def test_refits_train_for_the_best_number_of_epochs_on_all_other_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """A refit that stopped early by itself would know the rows that it is to predict, or waste some."""
    fits: list[tuple[set[float], Any, int, int]] = []

    def spy(parts: Any, held: Any, **more: Any) -> Any:
        rows = set(parts[0].target[:, 0].tolist())
        fits.append((rows, held, more["options"].max_epochs, more["options"].batch_size))
        return fit_model(parts, held, **more)

    monkeypatch.setattr("reghead.estimators._regressor.fit_model", spy)
    X, y = sites(300, 11)  # noqa: N806
    options: dict[str, Any] = {**QUICK, "loss": "quantile", "lr": 0.1, "patience": 5}
    model = HeadRegressor(["site", "season"], calibrate_by=["site", "season"], **options).fit(X, y)
    losses = model.history_["validation_loss"]
    best = losses.index(min(losses)) + 1
    assert best < len(losses)
    (_, stopped_by, epochs, batch_size), *refits = fits
    assert stopped_by is not None
    assert epochs == 30
    assert len(refits) == 10  # five for sites, five for sites in a season
    for rows, held, epochs, size in refits:
        assert (held, epochs, size) == (None, best, batch_size)
        assert rows < set(y.tolist())
    for folds, columns in ((refits[:5], ["site"]), (refits[5:], ["site", "season"])):
        groups = X[columns].agg(" ".join, axis=1).to_numpy()
        left_out = [set(y.tolist()) - rows for rows, *_ in folds]
        assert sum(map(len, left_out)) == len(set().union(*left_out)) == len(y)  # each row once
        for kept, *_ in folds:
            inside = np.isin(y, list(kept))
            assert not set(groups[inside]) & set(groups[~inside])


def test_few_environments_are_told() -> None:
    X, y = sites(300, 3)  # noqa: N806
    with pytest.warns(RegheadWarning, match="a new site are calibrated on 3 only: from 10 on they are guaranteed"):
        HeadRegressor(["site"], loss="quantile", calibrate_by="site", **{**QUICK, "max_epochs": 3}).fit(
            X.drop(columns="season"), y
        )


def test_infinite_intervals_for_known_sites_are_told_in_training() -> None:
    """Four rows, at least, are needed for 80 %; of 30, three are held back."""
    X, y = sites(30, 12)  # noqa: N806
    options = {**QUICK, "max_epochs": 1, "hidden_dims": (), "loss": "quantile", "early_stopping": True}
    told = "intervals of 0.8 for a known site are infinite: of the rows held back [0-3] have one"
    with pytest.warns(RegheadWarning, match=told):
        model = HeadRegressor(["site"], calibrate_by="site", **options).fit(X, y)
    low, high = model.predict_interval(X.assign(site=model.encoder_.vocabularies["site"].labels[0]), 0.8)
    assert np.isinf(low).all()
    assert np.isinf(high).all()


@pytest.mark.parametrize("levels", [(0.1, 0.9), (0.1, 0.2, 0.9), (0.8, 0.9), (0.1, 0.2)])
def test_quantiles_widen_for_a_new_site_also_without_a_median_and_on_one_side(levels: tuple[float, ...]) -> None:
    """Without a level on each side of it, the median is taken to be the mean of the mixed model."""
    shares = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UnseenCategoryWarning)
        for seed in range(3):
            X, y = sites(900, 40, seed)  # noqa: N806
            options: dict[str, Any] = {**QUICK, "lr": 0.03, "max_epochs": 60}  # from 0, where all quantiles start
            model = HeadRegressor(["site"], loss="quantile", quantiles=levels, **options)
            model.fit(X.drop(columns="season"), y)
            for other in range(6):
                new, target = sites(200, 20, other + 50)
                quantiles = model.predict_quantiles(new.drop(columns="season").assign(site="new"))
                shares.append((target[:, None] <= quantiles).mean(axis=0))
    # Spread as those of known sites, the 80 % quantile would cover 61 %.
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
    X, y = sites(400, 12)  # noqa: N806
    X = X.drop(columns="season")  # noqa: N806
    X.loc[::4, "site"] = None
    model = HeadRegressor(["site"], calibrate_by="site", **{**CALIBRATED, "max_epochs": 3}).fit(X, y)
    assert model._model.intervals.environments == (12,)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"calibrate_by": "site"}, "calibrate_by calibrates predicted quantiles, and loss='mse'"),
        ({"calibrate_by": "site", "loss": "quantile", "quantiles": (0.1, 0.5, 0.8)}, "pairs"),
        ({"calibrate_by": ["site", "site"], "loss": "quantile"}, "calibrate_by must name each column once"),
        ({"calibrate_by": "site", "loss": "quantile", "validation_by": "site"}, "validation_by gives others"),
        ({"calibrate_by": "x", "loss": "quantile"}, "calibrate_by names .'x'., which are not among categories"),
        ({"calibrate_by": "site", "loss": "quantile", "early_stopping": False}, "calibrate_by needs rows held back"),
        (
            {"shrinkage": "empirical_bayes", "normalize_by": ["site", "season"]},
            "shrinkage empirical_bayes is for normalize moments",
        ),
        ({"normalize": None, "normalize_by": ["site"]}, "normalize=None leaves the target on its own scale"),
        ({"normalize": None, "target_transform": "log"}, "normalize=None leaves the target on its own scale"),
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
    for rows, options in ((1, {}), (2, {"early_stopping": True})):
        with pytest.raises(ValueError, match=r"at least 2 rows to train on, got n_samples = 1; .* normalize='moments'"):
            HeadRegressor(["site", "season"], **QUICK, **options).fit(X[:rows], y[:rows])
    assert np.isfinite(
        HeadRegressor(["site"], normalize="moments", **QUICK).fit(X[["site"]][:1], y[:1]).predict(X[["site"]][:1])
    ).all()


def test_a_category_of_all_rows_but_one_cannot_be_left_out() -> None:
    X, y = sites(30, 1)  # noqa: N806
    X.loc[0, "site"] = "another"
    with pytest.raises(
        ValueError, match="without each category of 'site', and without the largest there is 1 row left"
    ):
        HeadRegressor(["site"], calibrate_by="site", loss="quantile", early_stopping=True, **QUICK).fit(X, y)


@pytest.mark.parametrize(
    ("options", "low", "high"),
    [
        ({"output_activation": "exp"}, 0.0, np.inf),
        ({"output_activation": "relu"}, 0.0, np.inf),
        ({"output_activation": "softplus", "normalize": "mixed_effects"}, 0.0, np.inf),
        ({"bounds": (0, 1)}, 0.0, 1.0),
        ({"target_transform": "log1p"}, -1.0, np.inf),
    ],
)
def test_calibrated_intervals_stay_where_targets_can_be(options: dict[str, Any], low: float, high: float) -> None:
    X, u = sites(300, 12, spread=2.0)  # noqa: N806
    y = np.exp(u) if high > 1 else 1 / (1 + np.exp(-u))
    model = HeadRegressor(["site"], calibrate_by="site", **{**CALIBRATED, "max_epochs": 2, **options})
    model.fit(X.drop(columns="season"), y)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UnseenCategoryWarning)
        for rows in (X, X.assign(site="new")):
            lower, upper = model.predict_interval(rows.drop(columns="season"), 0.8)
            assert (lower >= low).all()
            assert (upper <= high).all()
            assert (lower < upper).all()


def test_calibration_does_not_depend_on_the_scale_of_the_transform() -> None:
    """Logarithms calibrated as they are, or as those of a target by transform, have one interval."""
    X, u = sites(300, 12)  # noqa: N806
    fits = []
    for y, transform in ((u, "identity"), (np.exp(u), "log")):
        options = {**CALIBRATED, "max_epochs": 1, "lr": 1e-12, "patience": 1}
        model = HeadRegressor(["site"], calibrate_by="site", target_transform=transform, **options)
        ends = np.stack(model.fit(X.drop(columns="season"), y).predict_interval(X.drop(columns="season"), 0.8))
        fits.append(ends if transform == "identity" else np.log(ends))
    np.testing.assert_allclose(*fits, rtol=1e-6, atol=1e-6)
