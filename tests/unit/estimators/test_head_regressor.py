"""HeadRegressor: tables in, predictions in the target's own units out, and scikit-learn around it."""

import copy
import pickle
import subprocess
import sys
import warnings
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.base import clone
from sklearn.model_selection import GridSearchCV, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer

from reghead import UnseenCategoryWarning
from reghead.estimators import HeadRegressor

QUICK: dict[str, Any] = {"hidden_dims": (8,), "max_epochs": 40, "lr": 0.03, "random_state": 0}


# All rows in one step, and none of them hidden: a row and its repetition are then one row of twice the weight.
REPEATABLE: dict[str, Any] = {"batch_size": 128, "unknown_dropout": 0.0}


def shifted(n: int = 120, seed: int = 0) -> tuple[pd.DataFrame, np.ndarray]:
    """Three sites that differ by their level and slope."""
    rng = np.random.default_rng(seed)
    X = pd.DataFrame({"depth": rng.normal(5, 2, n), "site": rng.choice(["river", "lake", "sea"], n)})  # noqa: N806
    level = X["site"].map({"river": 10.0, "lake": 50.0, "sea": 400.0})
    return X, (level * (1 + 0.05 * X["depth"]) + rng.normal(0, 1, n)).to_numpy()


@pytest.mark.parametrize(
    "options",
    [
        {"film": ["site"]},
        {"scaler": ["site"], "fusion": None},
        {"wide": ["site"], "fusion": None},
        {"normalize": "moments", "normalize_by": ["site"], "shrinkage": "empirical_bayes", "fusion": None},
        {"moe": {"num_experts": 3, "routing": ["site"]}},
        {"fusion": "add", "unknown_dropout": 0.2},
        {"target_transform": "log"},
        {"bounds": (0.0, 1000.0)},
        {"output_activation": "softplus"},
    ],
    ids=lambda options: next(iter(options)),
)
def test_every_way_of_using_categories_explains_the_shift(options: dict[str, Any]) -> None:
    X, y = shifted()  # noqa: N806
    model = HeadRegressor(["site"], **{**QUICK, "max_epochs": 150, **options}).fit(X, y)
    assert model.score(X, y) > 0.97
    if "bounds" in options:
        assert model.config_.normalizer.transform == "logit"


def test_tables_of_every_kind_are_one_table() -> None:
    X, y = shifted()  # noqa: N806
    expected = HeadRegressor(["site"], **QUICK).fit(X, y).predict(X)
    by_position = HeadRegressor([1], **QUICK)
    for table in (X.to_numpy(), X.to_numpy().tolist()):
        np.testing.assert_allclose(by_position.fit(table, y).predict(table), expected)
    np.testing.assert_allclose(HeadRegressor([-1], **QUICK).fit(X, y).predict(X), expected)
    categorical = X.astype({"site": "category"})
    np.testing.assert_allclose(HeadRegressor(["site"], **QUICK).fit(categorical, y).predict(categorical), expected)


def test_polars_is_as_good_as_pandas() -> None:
    polars = pytest.importorskip("polars")
    X, y = shifted()  # noqa: N806
    table = polars.DataFrame({name: X[name].to_list() for name in X.columns})
    expected = HeadRegressor(["site"], **QUICK).fit(X, y).predict(X)
    np.testing.assert_allclose(HeadRegressor(["site"], **QUICK).fit(table, y).predict(table), expected)


def test_a_new_category_is_the_unknown_one() -> None:
    X, y = shifted()  # noqa: N806
    model = HeadRegressor(["site"], film=["site"], **QUICK).fit(X, y)
    with pytest.warns(UnseenCategoryWarning, match="pond"):
        new = model.predict(X.assign(site="pond"))
    np.testing.assert_allclose(new, model.predict(X.assign(site=None)))
    assert np.isfinite(new).all()


def test_a_missing_number_becomes_the_mean_and_is_indicated() -> None:
    rng = np.random.default_rng(0)
    X, y = rng.normal(size=(100, 2)), rng.normal(size=100)  # noqa: N806
    X[::3, 0] = np.nan
    y[::3] += 10.0  # only the indicator can tell
    model = HeadRegressor(numeric_embeddings=False, **QUICK).fit(X, y)
    assert model.head_.in_features == 3
    assert model.score(X, y) > 0.8
    assert HeadRegressor(**QUICK).fit(X, y).score(X, y) > 0.8
    complete = HeadRegressor(**QUICK).fit(np.nan_to_num(X), y)
    holes, means = np.nan_to_num(X), np.nan_to_num(X)
    holes[0], means[0] = np.nan, np.nan_to_num(X).mean(0)
    np.testing.assert_allclose(complete.predict(holes), complete.predict(means))


def test_a_table_of_categories_alone() -> None:
    X = pd.DataFrame({"site": ["a", "b"] * 20})  # noqa: N806
    y = np.array([1.0, 5.0] * 20)
    model = HeadRegressor(["site"], **{**QUICK, "max_epochs": 200, "weight_decay": 0.0}).fit(X, y)
    np.testing.assert_allclose(model.predict(X), y, atol=0.2)


def test_quantiles_intervals_and_the_median() -> None:
    X, y = shifted(400)  # noqa: N806
    model = HeadRegressor(["site"], loss="quantile", normalize="moments", normalize_by=["site"], **QUICK).fit(X, y)
    quantiles = model.predict_quantiles(X)
    assert quantiles.shape == (400, 3)
    assert (np.diff(quantiles) >= 0).all()
    np.testing.assert_array_equal(model.predict(X), quantiles[:, 1])
    lower, upper = model.predict_interval(X, 0.8)
    np.testing.assert_array_equal(np.stack([lower, upper], 1), quantiles[:, [0, 2]])
    assert 0.7 < np.mean((lower <= y) & (y <= upper)) < 0.9


def test_an_interval_that_was_not_fitted_is_refused() -> None:
    X, y = shifted()  # noqa: N806
    model = HeadRegressor(["site"], loss="quantile", **QUICK).fit(X, y)
    with pytest.raises(ValueError, match=r"confidence_level=0.9 needs the levels 0.05 and 0.95, and those fitted are"):
        model.predict_interval(X, 0.9)
    with pytest.raises(ValueError, match="confidence_level must be between 0 and 1, got 80"):
        model.predict_interval(X, 80)
    with pytest.raises(TypeError, match=r"confidence_level must be a number, got '0.8' of type str"):
        model.predict_interval(X, "0.8")
    point = HeadRegressor(["site"], **QUICK).fit(X, y)
    for call in (point.predict_quantiles, lambda X: point.predict_interval(X, 0.8)):  # noqa: N803
        with pytest.raises(ValueError, match="loss='mse' predicts no quantiles; fit with loss='quantile'"):
            call(X)


def test_targets_with_losses_of_their_own() -> None:
    X, y = shifted()  # noqa: N806
    Y = pd.DataFrame({"level": y, "acid": 1000 * X["depth"]})  # noqa: N806
    options = {**QUICK, "max_epochs": 200}
    model = HeadRegressor(["site"], per_output={"level": "quantile", "acid": "mse"}, **options).fit(X, Y)
    assert model.predict(X).shape == (120, 2)
    assert model.score(X, Y) > 0.97
    quantiles = model.predict_quantiles(X)
    assert quantiles.shape == (120, 2, 3)
    assert np.isfinite(quantiles[:, 0]).all()
    assert np.isnan(quantiles[:, 1]).all()  # a point loss trains no level


def test_integer_weights_are_repetitions_and_zero_is_no_row() -> None:
    X, y = shifted(40)  # noqa: N806
    count = np.arange(40) % 3
    index = np.repeat(np.arange(40), count)
    options = {**QUICK, **REPEATABLE, "normalize": "moments", "normalize_by": ["site"]}
    weighted = HeadRegressor(["site"], **options).fit(X, y, sample_weight=count)
    repeated = HeadRegressor(["site"], **options).fit(X.iloc[index], y[index])
    np.testing.assert_allclose(weighted.predict(X), repeated.predict(X), rtol=1e-6)


@pytest.mark.parametrize(
    "options",
    [
        {"moe": {"num_experts": 3, "routing": ["site"], "load_balancing_weight": 0.5}},
        {"moe": {"num_experts": 3, "routing": ["site"], "gate": "top_k", "load_balancing_weight": 0.5}},
        {"scaler": ["site"], "partial_pooling": 5.0},
        {"wide": ["site"], "partial_pooling": 5.0},
        {"ensemble": 3},
    ],
    ids=["experts", "top_k", "scaler", "wide", "ensemble"],
)
def test_integer_weights_are_repetitions_in_every_term_of_the_objective(options: dict[str, Any]) -> None:
    X, y = shifted(40)  # noqa: N806
    count = np.arange(40) % 3
    index = np.repeat(np.arange(40), count)
    options = {**QUICK, **REPEATABLE, **options}
    weighted = HeadRegressor(["site"], **options).fit(X, y, sample_weight=count)
    repeated = HeadRegressor(["site"], **options).fit(X.iloc[index], y[index])
    np.testing.assert_allclose(weighted.predict(X), repeated.predict(X), rtol=1e-6)
    for name, values in weighted.history_.items():
        np.testing.assert_allclose(values, repeated.history_[name], rtol=1e-6, err_msg=name)


def test_a_target_far_from_zero_keeps_its_small_digits() -> None:
    X, y = shifted(300)  # noqa: N806
    numbers = X.assign(site=X["site"].map({"river": 0, "lake": 1, "sea": 2})).to_numpy(np.float32)
    options = {**QUICK, "max_epochs": 60, "early_stopping": False}
    near, far = (HeadRegressor(**options).fit(numbers, offset + y) for offset in (0.0, 1.7e9))
    assert next(far.head_.parameters()).dtype == torch.float32
    np.testing.assert_allclose(far.predict(numbers) - 1.7e9, near.predict(numbers), atol=1e-2)


def test_the_point_of_a_target_is_a_quantile_that_its_own_loss_trains() -> None:
    X, y = shifted(200)  # noqa: N806
    Y = pd.DataFrame({"a": y, "b": y})  # noqa: N806
    levels = {"a": [0.1, 0.9], "b": [0.25, 0.5, 0.75]}
    losses = {name: {"type": "quantile", "quantiles": own} for name, own in levels.items()}
    model = HeadRegressor(["site"], per_output=losses, non_crossing=False, **QUICK).fit(X, Y)
    quantiles = model.predict_quantiles(X)  # 0.1, 0.25, 0.5, 0.75, 0.9; NaN where a target was not trained
    assert np.isnan(quantiles[:, 0, 1:4]).all()
    np.testing.assert_array_equal(model.predict(X), np.stack([quantiles[:, 0, 0], quantiles[:, 1, 2]], axis=1))
    with pytest.raises(ValueError, match=r"confidence_level=0.8 needs levels that \['b'\] were not trained on"):
        model.predict_interval(X, 0.8)


def test_the_name_of_a_series_is_the_name_of_the_target() -> None:
    X, y = shifted(40)  # noqa: N806
    assert HeadRegressor(["site"], **QUICK).fit(X, pd.Series(y, name="level")).target_names_ == ("level",)
    assert HeadRegressor(["site"], **QUICK).fit(X, y).target_names_ == ("y0",)


def test_quantiles_may_be_an_array() -> None:
    X, y = shifted(40)  # noqa: N806
    model = HeadRegressor(["site"], loss="quantile", quantiles=np.array([0.2, 0.8]), **QUICK).fit(X, y)
    assert model.predict_quantiles(X).shape == (40, 2)


def test_cross_validation_with_whole_categories_held_back() -> None:
    X, y = shifted(150)  # noqa: N806
    model = HeadRegressor(["site"], validation_by="site", **{**QUICK, "max_epochs": 10})
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UnseenCategoryWarning)
        assert np.isfinite(cross_val_predict(model, X, y, cv=2)).all()
    assert "validation_loss" in model.fit(X, y).history_


def test_the_unit_of_fractional_weights_does_not_matter() -> None:
    X, y = shifted(40)  # noqa: N806
    weight = np.linspace(0.1, 0.9, 40)
    first, second = (HeadRegressor(["site"], **QUICK).fit(X, y, w).predict(X) for w in (weight, weight * 1e-3))
    np.testing.assert_allclose(first, second, rtol=1e-6)


def test_the_generators_of_torch_stay_as_they_were_and_the_seed_decides() -> None:
    X, y = shifted(300)  # noqa: N806
    torch.manual_seed(3)
    before = torch.get_rng_state()
    model = HeadRegressor(["site"], dropout=0.2, **QUICK).fit(X, y)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(4)
    np.random.seed(5)  # noqa: NPY002
    np.testing.assert_array_equal(clone(model).fit(X, y).predict(X), model.predict(X))
    other = clone(model).set_params(random_state=1).fit(X, y)
    assert not np.allclose(other.predict(X), model.predict(X))


def test_early_stopping_by_rows_by_whole_categories_and_by_given_rows() -> None:
    X, y = shifted(300)  # noqa: N806
    options = {**QUICK, "max_epochs": 400, "patience": 5}
    model = HeadRegressor(["site"], **options).fit(X, y)
    assert model.n_iter_ == len(model.history_["validation_loss"]) < 400
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # holding a category back warns of nothing
        model = HeadRegressor(["site"], validation_by="site", **options).fit(X, y)
    assert model.encoder_.cardinalities == {"site": 3}  # one of three is held back, and unknown is counted
    given = HeadRegressor(["site"], **options).fit(X[:50], y[:50], eval_set=(X[50:], y[50:]))
    assert "validation_loss" in given.history_
    assert "validation_loss" not in HeadRegressor(["site"], early_stopping=False, **QUICK).fit(X, y).history_


def test_a_warm_start_continues() -> None:
    X, y = shifted()  # noqa: N806
    model = HeadRegressor(["site"], warm_start=True, normalize="moments", **QUICK).fit(X, y)
    first = model.history_["train_loss"]
    assert model.fit(X, y).history_["train_loss"][0] < first[1]
    for change in ({"hidden_dims": (4,)}, {"feature_clip": None}, {"numeric_embeddings": False}):
        with pytest.raises(ValueError, match="warm_start continues a fit with the same features, head"):
            copy.deepcopy(model).set_params(**change).fit(X, y)


def test_pipeline_grid_search_cross_validation_and_pickle() -> None:
    X, y = shifted()  # noqa: N806
    model = make_pipeline(FunctionTransformer(), HeadRegressor(["site"], **{**QUICK, "max_epochs": 20}))
    search = GridSearchCV(model, {"headregressor__film": [(), ("site",)]}, cv=2).fit(X, y)
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()
    assert cross_val_predict(model, X, y, cv=2).shape == y.shape
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(search)).predict(X), search.predict(X))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"categories": ["sites"]}, "categories names the column 'sites', which is not in X .*did you mean 'site'"),
        ({"categories": [2]}, "categories names the column 2, and X has 2 columns"),
        ({"categories": "site"}, r"categories must be a sequence of columns of X, got 'site'; use \['site'\]"),
        ({"film": ["depth"]}, "film names the column 'depth', which is not among categories"),
        ({"quantiles": (0.1, 0.9)}, "quantiles is for loss quantile or huber_quantile"),
        ({"early_stopping": "yes"}, "early_stopping"),
        ({"early_stopping": True, "validation_fraction": 1.0}, "validation_fraction"),
        ({"max_epochs": 0}, "max_epochs"),
        ({"loss": "hubre"}, "loss must be one of .*did you mean 'huber'"),
        ({"hidden_dims": 5}, "hidden_dims must be a sequence of integers"),
        ({"ensemble": "many"}, "ensemble must be an integer or 'auto', got 'many'"),
        ({"batch_size": "many"}, "batch_size must be an integer or 'auto', got 'many'"),
        ({"moe": [3]}, "moe must be a MoEConfig or a mapping"),
        ({"numeric_embeddings": "yes"}, "numeric_embeddings must be one of True, False, got 'yes'"),
        ({"normalize": True}, "normalize must be one of 'moments', 'mixed_effects', None, got True"),
        ({"normalize_by": ["site"]}, r"normalize_by \['site'\] says nothing; name two or more, .* normalize='moments'"),
    ],
)
def test_arguments_are_refused_in_fit(options: dict[str, Any], message: str) -> None:
    X, y = shifted()  # noqa: N806
    with pytest.raises((TypeError, ValueError), match=message):
        HeadRegressor(**{"categories": ["site"], **options}).fit(X, y)


def test_data_are_refused() -> None:
    X, y = shifted()  # noqa: N806
    model = HeadRegressor(["site"], **QUICK)
    with pytest.raises(ValueError, match=r"zero in every row|at least one non-zero"):  # scikit-learn may say it first
        model.fit(X, y, sample_weight=np.zeros(120))
    with pytest.raises(ValueError, match=r"sample_weight must be non-negative, got -1.0"):
        model.fit(X, y, sample_weight=-np.ones(120))
    with pytest.raises(ValueError, match=r"eval_set must be \(X, y\) or"):
        model.fit(X, y, eval_set=X)
    with pytest.raises(ValueError, match="eval_set must have as many targets as y, 1, got 2"):
        model.fit(X, y, eval_set=(X, np.stack([y, y], 1)))
    for wrong in ({"early_stopping": False}, {"validation_by": "site"}):
        with pytest.raises(ValueError, match=r"eval_set is there to stop early by, and .* asks for something else"):
            clone(model).set_params(**wrong).fit(X, y, eval_set=(X, y))
    with pytest.raises(ValueError, match="early stopping needs at least 2 categories"):
        model.set_params(early_stopping=True, validation_by="site").fit(X.assign(site="a"), y)
    with pytest.raises(ValueError, match=r"X must have shape \(rows, columns\), got 1 dimensions"):
        model.fit(X["depth"].to_numpy(), y)


def test_verbose_shows_progress(capsys: pytest.CaptureFixture[str]) -> None:
    X, y = shifted(40)  # noqa: N806
    HeadRegressor(["site"], verbose=True, **{**QUICK, "max_epochs": 3}).fit(X, y)
    assert "3/3" in capsys.readouterr().err


def test_a_missing_scikit_learn_names_its_extra() -> None:
    script = """
import sys
sys.modules["sklearn"] = None
import reghead.estimators
try:
    from reghead.estimators import HeadRegressor
except ImportError as error:
    assert "pip install 'reghead[sklearn]'" in str(error), error
else:
    raise SystemExit("no error")
try:
    reghead.estimators.Nothing
except AttributeError as error:
    assert "no attribute 'Nothing'" in str(error)
assert "HeadRegressor" in dir(reghead.estimators)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("categories", [None, ["site"]])
def test_a_column_of_labels_that_was_not_named_is_told(categories: list[str] | None) -> None:
    X, y = shifted()  # noqa: N806
    told = "the column '(site|kind)' of X does not hold numbers .could not convert .*; name it in categories"
    with pytest.raises(ValueError, match=told):
        HeadRegressor(categories, **QUICK).fit(X.assign(kind="clay"), y)
    model = HeadRegressor(["site"], **QUICK).fit(X.assign(kind=1.0), y)
    with pytest.raises(ValueError, match="the column 'kind' of X does not hold numbers"):
        model.predict(X.assign(kind="clay"))
