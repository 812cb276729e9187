"""A fitted HeadRegressor in a file, and back; also the one that the command leaves."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import save_file
from sklearn.base import clone
from sklearn.exceptions import NotFittedError

from end_to_end._cli import Cli
from reghead.estimators import HeadRegressor
from reghead.heads import RegressionHead

QUICK: dict[str, Any] = {"hidden_dims": (6,), "max_epochs": 15, "lr": 0.03, "random_state": 0}
OPTIONS: list[dict[str, Any]] = [
    {},
    {"categories": None, "hidden_dims": (), "loss": "mse"},
    {
        "categories": ["site", "wet"],
        "normalize": "moments",
        "normalize_by": ["site", "wet"],
        "shrinkage": "empirical_bayes",
    },
    {"categories": ["site", "wet"], "normalize": "moments", "normalize_by": ["site", "wet"], "fallback": "additive"},
    {"film": ["site"], "scaler": ["site"], "scaler_compose": "additive", "wide": ["site"], "fusion": "add"},
    {"loss": "quantile", "quantiles": (0.1, 0.9), "non_crossing": False},
    {"loss": "asymmetric", "over_penalty": 2.0, "base": "mae"},
    {"moe": {"num_experts": 3, "routing": ["site"], "gate": "hard"}, "dropout": 0.1, "norm": "layer"},
    {"target_transform": "log1p", "unknown_dropout": 0.1, "residual": True, "activation": "tanh"},
    {"normalize": None, "output_activation": "softplus"},
    {"normalize": "moments", "ensemble": 1, "numeric_embeddings": False, "feature_clip": None},
    {"categories": ["site", "wet"], "normalize_by": ["site", "wet"], "feature_clip": 2.0},
    {"loss": "quantile", "quantiles": (0.8, 0.9)},
    {"bounds": (0.0, 1000.0), "learnable_scale": True, "weight_decay": 0.1, "categorical_lr": 0.1},
    {"per_output": {"y0": "mae"}, "batch_size": 40, "patience": 3, "loss": "huber", "delta": 0.5},
]


def table(n: int = 90) -> tuple[pd.DataFrame, np.ndarray]:
    rng = np.random.default_rng(0)
    depth = np.where(rng.random(n) < 0.1, np.nan, rng.normal(5, 2, n))
    X = pd.DataFrame({"depth": depth, "site": rng.choice(["river", "lake"], n), "wet": rng.random(n) < 0.5})  # noqa: N806
    return X, (X["site"].map({"river": 10.0, "lake": 300.0}) + rng.normal(0, 3, n)).abs().to_numpy()


def fitted(options: dict[str, Any]) -> tuple[HeadRegressor, pd.DataFrame, np.ndarray]:
    X, y = table()  # noqa: N806
    options = {"categories": ["site"], **QUICK, **options}
    X = X.drop(columns=[c for c in ("site", "wet") if c not in (options["categories"] or ())])  # noqa: N806
    return HeadRegressor(**options).fit(X, y), X, y


@pytest.mark.parametrize("options", OPTIONS, ids=lambda options: ",".join(options) or "plain")
def test_what_is_loaded_predicts_the_same_and_has_the_same_arguments(options: dict[str, Any], tmp_path: Path) -> None:
    model, X, y = fitted(options)  # noqa: N806
    model.save(tmp_path / "model.safetensors")
    loaded = HeadRegressor.load(tmp_path / "model.safetensors")
    np.testing.assert_array_equal(loaded.predict(X), model.predict(X))
    assert loaded.config_ == model.config_
    assert loaded.target_names_ == model.target_names_
    # A fit with the arguments that came back is the fit with those that went in.
    again = clone(loaded).set_params(random_state=0).fit(X, y)
    assert again.config_ == model.config_
    np.testing.assert_array_equal(again.predict(X), model.predict(X))


@pytest.mark.parametrize("early_stopping", [False, True])
@pytest.mark.parametrize("loss", ["huber", "quantile"])
def test_a_loaded_model_continues_as_the_one_that_was_saved(loss: str, early_stopping: bool, tmp_path: Path) -> None:
    moments = {"normalize": "moments", "normalize_by": ["site"]}
    model, X, y = fitted({**moments, "loss": loss, "early_stopping": early_stopping})  # noqa: N806
    model.save(tmp_path / "model.safetensors")
    loaded = HeadRegressor.load(tmp_path / "model.safetensors")
    loaded.set_params(warm_start=True, random_state=0, early_stopping=early_stopping)
    before = model.predict(X)
    model.set_params(warm_start=True).fit(X, y)
    np.testing.assert_array_equal(loaded.fit(X, y).predict(X), model.predict(X))
    assert loaded.history_ == model.history_
    assert not np.array_equal(model.predict(X), before)


def test_labels_of_every_kind_come_back(tmp_path: Path) -> None:
    X = pd.DataFrame({"a": ["x", "01", None] * 20, "b": [1, 2, 3] * 20, "c": [True, False, True] * 20})  # noqa: N806
    y = np.arange(60.0) % 3
    model = HeadRegressor(["a", "b", "c"], **QUICK).fit(X, y)
    model.save(tmp_path / "model.safetensors")
    loaded = HeadRegressor.load(tmp_path / "model.safetensors")
    assert loaded.encoder_.to_dict() == model.encoder_.to_dict()
    np.testing.assert_array_equal(loaded.predict(X), model.predict(X))


def test_an_array_stays_an_array(tmp_path: Path) -> None:
    """Columns without names, and a column of categories by its position."""
    X, y = table()  # noqa: N806
    array = X[["depth", "site"]].to_numpy()
    model = HeadRegressor([1], **QUICK).fit(array, y)
    model.save(tmp_path / "model.safetensors")
    loaded = HeadRegressor.load(tmp_path / "model.safetensors")
    np.testing.assert_array_equal(loaded.predict(array), model.predict(array))


@pytest.mark.parametrize("shape", [(90,), (90, 1), (90, 2)])
def test_predictions_keep_the_shape_of_the_target(shape: tuple[int, ...], tmp_path: Path) -> None:
    X, y = table()  # noqa: N806
    target = np.resize(np.repeat(y, shape[-1] if len(shape) > 1 else 1), shape)
    model = HeadRegressor(["site", "wet"], **QUICK).fit(X, target)
    model.save(tmp_path / "model.safetensors")
    assert model.predict(X).shape == HeadRegressor.load(tmp_path / "model.safetensors").predict(X).shape == shape


def test_the_description_beside_the_file_is_readable(tmp_path: Path) -> None:
    model, _, _ = fitted({})
    model.save(tmp_path / "model.safetensors")
    assert {file.name for file in tmp_path.iterdir()} == {"model.safetensors", "model.safetensors.json"}
    description = json.loads((tmp_path / "model.safetensors.json").read_text())
    assert description["columns"] == ["depth", "site"]
    assert description["outputs"] == ["y0"]
    assert description["feature_clip"] == 3.0
    assert description["bins"] == [list(edges) for edges in model._model.features.bins]
    assert len(description["bins"][0]) > 2
    assert description["config"] == json.loads(json.dumps(model.config_.to_dict()))


def test_a_file_of_anything_else_is_refused(tmp_path: Path) -> None:
    model, _, _ = fitted({})
    path = tmp_path / "model.safetensors"
    model.save(path)
    whole = path.read_bytes()
    for content in (whole[:-1], whole[: len(whole) // 2], whole[:5], b"", b"PK not ours"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"model\.safetensors is not a whole safetensors file"):
            HeadRegressor.load(path)
    save_file({"weight": torch.zeros(2)}, path)
    with pytest.raises(ValueError, match="nothing in it describes a TableModel"):
        HeadRegressor.load(path)
    RegressionHead(2, 1).save(path)
    with pytest.raises(ValueError, match="describes a RegressionHead, not a TableModel"):
        HeadRegressor.load(path)
    with pytest.raises(FileNotFoundError, match="nowhere"):
        HeadRegressor.load(tmp_path / "nowhere.safetensors")
    with pytest.raises(NotFittedError):
        HeadRegressor().save(path)


@pytest.fixture(scope="module")
def cli(tmp_path_factory: pytest.TempPathFactory) -> Cli:
    return Cli(tmp_path_factory.mktemp("cli"))


LINES = {
    "plain": "",
    "categories": "--categorical-columns location,season --normalize-targets-by location,season "
    "--normalize-fallback additive --regressor-hidden-dims 6 --film-conditioning location",
    "effects": "--categorical-columns location,season --conditional-output-scaling location "
    "--wide-columns location,season --partial-pooling 2",
    "ensemble": "--regressor-hidden-dims 6 --ensemble 3",
    "experts": "--categorical-columns location --moe-experts 3 --moe-routing location --moe-load-balancing-weight 0.1",
    "quantiles": "--loss-type quantile --quantiles 0.25,0.75 --allow-crossing",
    "bounded": "--target share --bounded-targets --normalize-targets",
    "unnormalized": "--target share --bounded-targets",
    "outputs": """--target copper,plane --loss-config '{"copper": "mae"}'""",
}


@pytest.mark.parametrize("name", LINES)
def test_the_model_of_the_command_is_a_fitted_estimator_and_goes_on(cli: Cli, name: str) -> None:
    trained = cli.train(f"{LINES[name]} --max-epochs 5")
    model, X = trained.model, trained.rows()  # noqa: N806
    written = cli.predict(trained).filter(regex="_pred$").to_numpy()
    np.testing.assert_allclose(model.predict(X).reshape(written.shape), written, rtol=1e-12)
    y = cli.table[list(model.target_names_)]
    before, config = model.predict(X), model.config_
    model.set_params(warm_start=True, early_stopping=False, random_state=0).fit(X, y)  # refused where arguments differ
    assert model.config_ == config
    assert np.abs(model.predict(X).reshape(before.shape) - before).max() > 0
