"""reghead as its users would run it, and with each technique for categories in turn."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

import reghead
from benchmarks._data import Fold, Part
from benchmarks._method import CONFIDENCE, METHODS, Method, Prediction, digest

PREFIX = "reghead"


def environment(fold: Fold) -> list[str]:
    return [name for name in (fold.location, fold.season) if name]


def _nothing(fold: Fold) -> dict[str, Any]:
    return {}


def _untrained(fold: Fold) -> dict[str, Any]:
    """A head that starts at 0 and stays there: what is predicted is the mixed model."""
    return {"max_epochs": 1, "lr": 1e-12}


OPTIONS: dict[str, Callable[[Fold], dict[str, Any]]] = {
    PREFIX: _nothing,
    f"{PREFIX}-mixed": _untrained,
    f"{PREFIX}-moments": lambda fold: {"normalize": "moments"},
    f"{PREFIX}-embeddings": lambda fold: {"numeric_embeddings": False},
    f"{PREFIX}-clip": lambda fold: {"feature_clip": None},
    f"{PREFIX}-ensemble": lambda fold: {"ensemble": 1},
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
    """A model of the mean and one of the quantiles, as for the peers, told which columns make an environment."""
    from reghead.estimators import HeadRegressor

    columns = environment(fold)
    if options.get("normalize", "mixed_effects") == "mixed_effects" and len(columns) > 1:
        options = {"normalize_by": columns, **options}

    def fit(**loss: Any) -> Any:
        model = HeadRegressor(fold.categories, random_state=seed, **{**options, **loss})
        held = (_features(fold, fold.validation), fold.validation.target)
        return model.fit(_features(fold, fold.train), fold.train.target, eval_set=held)

    test = _features(fold, fold.test)
    quantile = fit(loss="quantile", calibrate_by=columns)
    low, high = quantile.predict_interval(test, CONFIDENCE)
    quantiles = np.stack([low, quantile.predict(test), high], -1)
    return Prediction(fit(loss="mse").predict(test), quantiles)


def _features(fold: Fold, part: Part) -> pd.DataFrame:
    """Numbers in float32, so that the network trains in it."""
    return part.features.astype(dict.fromkeys(fold.numbers, np.float32))


METHODS.update({name: _method(name) for name in OPTIONS})
