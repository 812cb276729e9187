"""reghead as its users would run it, and with each technique for categories in turn."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import reghead
from benchmarks._data import Fold
from benchmarks._method import CONFIDENCE, METHODS, Method, Prediction, digest

PREFIX = "reghead"


def _nothing(fold: Fold) -> dict[str, Any]:
    return {}


def environment(fold: Fold) -> list[str]:
    return [name for name in (fold.location, fold.season) if name]


def mixed(fold: Fold) -> dict[str, Any]:
    """A mixed model that an ensemble learns the residual of; location and season say what an environment is."""
    columns = environment(fold)
    options = {"mixed_effects": True, "unknown_dropout": 0.1, "ensemble": 8, "feature_clip": 3.0}
    return options | {"normalize_by": columns if len(columns) > 1 else ()}


OPTIONS: dict[str, Callable[[Fold], dict[str, Any]]] = {
    PREFIX: _nothing,
    f"{PREFIX}+mixed": mixed,
    f"{PREFIX}+film": lambda fold: {"film": environment(fold)},
    f"{PREFIX}+scaler": lambda fold: {"scaler": environment(fold)},
    f"{PREFIX}+moe": lambda fold: {"moe": {"num_experts": 4, "routing": [fold.location]}},
}


def _method(name: str) -> Method:
    package = Path(reghead.__file__).parent
    files = [Path(__file__), *sorted(package.rglob("*.py"))]
    code = [path.read_text() for path in files if path.parent.name not in ("cli", "plots")]
    return Method(name, lambda fold, seed: _run(fold, seed, OPTIONS[name](fold)), "sklearn", True, digest(name, *code))


def _run(fold: Fold, seed: int, options: dict[str, Any]) -> Prediction:
    """A model of the mean and one of the quantiles, as for the peers."""
    from reghead.estimators import HeadRegressor

    def fit(**loss: Any) -> Any:
        model = HeadRegressor(fold.categories, random_state=seed, **{**options, **loss})
        held = (fold.validation.features, fold.validation.target)
        return model.fit(fold.train.features, fold.train.target, eval_set=held)

    quantile = fit(loss="quantile", calibrate_by=environment(fold) if options.get("mixed_effects") else None)
    low, high = quantile.predict_interval(fold.test.features, CONFIDENCE)
    quantiles = np.stack([low, quantile.predict(fold.test.features), high], -1)
    return Prediction(fit(loss="mse").predict(fold.test.features), quantiles)


METHODS.update({name: _method(name) for name in OPTIONS})
