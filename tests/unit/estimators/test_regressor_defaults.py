"""What HeadRegressor does where it is told nothing."""

import sys
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from reghead.estimators import HeadRegressor
from reghead.normalization import CategoryNormalizer, MixedEffects

QUICK: dict[str, Any] = {"hidden_dims": (4,), "max_epochs": 2, "random_state": 0}


def sites(n: int = 300, noise: float = 1.0, seed: int = 0) -> tuple[pd.DataFrame, np.ndarray]:
    """Two slopes that all sites share, and a level for each site."""
    rng = np.random.default_rng(seed)
    X = pd.DataFrame({"x": rng.normal(5, 2, n), "w": rng.uniform(0, 1e-3, n), "site": rng.choice(list("abcd"), n)})  # noqa: N806
    level = X["site"].map({"a": 0.0, "b": 10.0, "c": -5.0, "d": 1.0})
    return X, (2 * X["x"] - 4e3 * X["w"] + level + noise * rng.normal(size=n)).to_numpy()


def test_a_fitted_head_hides_nothing_before_and_after_a_prediction() -> None:
    """In train mode it would hide categories, each time others."""
    X, y = sites(60)  # noqa: N806
    model = HeadRegressor(["site"], dropout=0.5, **QUICK).fit(X, y)
    for _ in range(2):
        assert not any(module.training for module in model.head_.modules())
        model.predict(X)


def test_a_line_without_noise_is_reproduced() -> None:
    X, y = sites(noise=0.0)  # noqa: N806
    model = HeadRegressor(["site"], random_state=0, max_epochs=30).fit(X, y)
    new, expected = sites(200, noise=0.0, seed=1)
    for column in ("x", "w"):  # within the range of training
        new[column] = new[column].clip(X[column].min(), X[column].max())
    level = new["site"].map({"a": 0.0, "b": 10.0, "c": -5.0, "d": 1.0})
    expected = (2 * new["x"] - 4e3 * new["w"] + level).to_numpy()
    np.testing.assert_allclose(model.predict(new), expected, rtol=0, atol=1e-3 * y.std())


@pytest.mark.parametrize("normalize", ["mixed_effects", "moments", None])
def test_a_number_beyond_those_of_training_counts_as_the_nearest_of_them(normalize: str | None) -> None:
    X, y = sites()  # noqa: N806
    model = HeadRegressor(["site"], normalize=normalize, **QUICK).fit(X, y)
    low, high = model._model.preprocessor.low, model._model.preprocessor.high  # rows held back may lie beyond
    new, _ = sites(100, seed=1)
    new[["x", "w"]] = (new[["x", "w"]] - new[["x", "w"]].mean()) * 10
    nearest = new.assign(x=new["x"].clip(low[0], high[0]), w=new["w"].clip(low[1], high[1]))
    assert not nearest.equals(new)
    np.testing.assert_array_equal(model.predict(new), model.predict(nearest))


def test_without_a_bound_numbers_are_followed_beyond_those_of_training() -> None:
    X, y = sites()  # noqa: N806
    model = HeadRegressor(["site"], feature_clip=None, **QUICK).fit(X, y)
    far = X.head(3).assign(x=[1e3, 2e3, 3e3], site="a", w=5e-4)
    steps = np.diff(model.predict(far))
    np.testing.assert_allclose(steps, 2e3, rtol=0.1)


def test_what_a_head_learns() -> None:
    X, y = sites(60)  # noqa: N806
    kinds = {"mixed_effects": MixedEffects, "moments": CategoryNormalizer, None: type(None)}
    for normalize, kind in kinds.items():
        model = HeadRegressor(["site"], normalize=normalize, **QUICK).fit(X, y)
        assert isinstance(model.normalizer_, kind)
        assert model.config_.loss.type == "mse"
    assert isinstance(HeadRegressor(["site"], **QUICK).fit(X, y).normalizer_, MixedEffects)
    cells = HeadRegressor(["site", "x"], normalize_by=["site", "x"], **QUICK).fit(X.round(0), y).normalizer_
    assert cells.cells == ("site", "x")


@pytest.mark.parametrize(
    ("rows", "size"),
    # A sixteenth: 2.5, 32, 45, 46, 62.5, 500, 724, 725, 10,000.
    [(40, 32), (512, 32), (720, 32), (736, 64), (1000, 64), (8000, 512), (11584, 512), (11600, 1024), (160000, 1024)],
)
def test_a_batch_is_about_a_sixteenth_of_the_rows(rows: int, size: int) -> None:
    assert HeadRegressor()._options(rows).batch_size == size
    assert HeadRegressor(batch_size=7)._options(rows).batch_size == 7


def test_rows_held_back_do_not_count_for_the_size_of_a_batch() -> None:
    X, y = sites(760)  # noqa: N806
    options = {**QUICK, "max_epochs": 1, "normalize": "moments", "numeric_embeddings": False}
    assert HeadRegressor(["site"], early_stopping=False, **options).fit(X, y)._model.options.batch_size == 64
    assert HeadRegressor(["site"], **options).fit(X, y)._model.options.batch_size == 32  # 684 rows


@pytest.mark.parametrize(
    ("options", "members"),
    [
        ({}, 8),
        ({"hidden_dims": ()}, 1),
        ({"moe": {"num_experts": 2, "route_features": True}}, 1),
        ({"ensemble": 3}, 3),
        ({"ensemble": 1}, 1),
    ],
)
def test_members_of_the_ensemble(options: dict[str, Any], members: int) -> None:
    X, y = sites(40)  # noqa: N806
    assert HeadRegressor(["site"], **{**QUICK, **options}).fit(X, y).config_.head.ensemble == members


@pytest.mark.parametrize(
    ("options", "share"),
    [
        ({}, 0.1),
        ({"unknown_dropout": 0.0}, 0.0),
        ({"fusion": None}, 0.0),
        ({"fusion": None, "film": ["site"]}, 0.1),
        ({"fusion": None, "wide": ["site"]}, 0.1),
        ({"fusion": None, "moe": {"num_experts": 2, "routing": ["site"]}}, 0.1),
        ({"fusion": None, "moe": {"num_experts": 2, "route_features": True}}, 0.0),
        ({"categories": None}, 0.0),
    ],
)
def test_categories_are_hidden_where_a_part_uses_them(options: dict[str, Any], share: float) -> None:
    X, y = sites(40)  # noqa: N806
    options = {"categories": ["site"], **QUICK, **options}
    table = X if options["categories"] else X[["x", "w"]]
    assert HeadRegressor(**options).fit(table, y).config_.head.unknown_dropout == share


TABLES: dict[str, Any] = {
    "constant": lambda x: np.full_like(x, 2.5),
    "missing": lambda x: np.full_like(x, np.nan),
    "one missing": lambda x: np.stack([x[:, 0], np.full(len(x), np.nan, x.dtype)], 1),
    "two values": lambda x: (x > 0).astype(x.dtype),
    "three values": lambda x: np.sign(x).astype(x.dtype) * (abs(x) > 0.5),
    "bunched": lambda x: np.where(abs(x) < 1.5, 1e3, x).astype(x.dtype),
}


@pytest.mark.parametrize("name", TABLES)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_every_table_has_finite_predictions_and_warns_of_nothing(name: str, dtype: Any) -> None:
    rng = np.random.default_rng(0)
    x = TABLES[name](rng.normal(size=(60, 2)).astype(dtype))
    model = HeadRegressor(**QUICK).fit(x, rng.normal(size=60))
    assert next(model.head_.parameters()).dtype == (torch.float32 if dtype is np.float32 else torch.float64)
    other = np.concatenate([x, 10 * rng.normal(size=(60, 2)).astype(dtype)])
    assert np.isfinite(model.predict(other)).all()


def test_a_table_without_numbers_and_one_without_rows() -> None:
    X, y = sites(60)  # noqa: N806
    for columns in (["site"], ["x", "site"]):
        model = HeadRegressor(["site"], **QUICK).fit(X[columns], y)
        assert np.isfinite(model.predict(X[columns])).all()
        assert model._model.predict(model._read(X[columns]).take(slice(0, 0))).shape == (0, 1)


def test_embeddings_need_their_package_and_say_which_extra_brings_it(monkeypatch: pytest.MonkeyPatch) -> None:
    X, y = sites(60)  # noqa: N806
    monkeypatch.setitem(sys.modules, "rtdl_num_embeddings", None)
    with pytest.raises(ImportError, match=r"needs rtdl_num_embeddings, .* pip install 'reghead\[sklearn\]'"):
        HeadRegressor(["site"], **QUICK).fit(X, y)
    assert np.isfinite(HeadRegressor(["site"], numeric_embeddings=False, **QUICK).fit(X, y).predict(X)).all()


def test_embeddings_let_a_small_head_bend() -> None:
    """A number that acts by steps: one linear map of the embeddings can follow it, one of the number cannot."""
    rng = np.random.default_rng(0)
    x = rng.uniform(-1, 1, (800, 1))
    y = np.sin(6 * x[:, 0])
    options: dict[str, Any] = {"hidden_dims": (), "max_epochs": 60, "lr": 0.05, "random_state": 0}
    assert HeadRegressor(**options).fit(x, y).score(x, y) > 0.98
    assert HeadRegressor(numeric_embeddings=False, **options).fit(x, y).score(x, y) < 0.5


def test_one_wild_number_leaves_the_others_their_bends() -> None:
    """As a sentinel for a missing number is: the standard deviation is its own, and all others are next to equal."""
    rng = np.random.default_rng(0)
    X = rng.uniform(-3, 3, (1000, 1))  # noqa: N806
    y = np.sin(2 * X[:, 0])
    test = np.linspace(-2.9, 2.9, 100)[:, None]
    X[0, 0] = 1e6
    model = HeadRegressor(max_epochs=60, random_state=0).fit(X, y)
    assert np.abs(model.predict(test) - np.sin(2 * test[:, 0])).mean() < 0.1  # 0.64 of the mean
