"""What a method is: a function of a fold and a seed that predicts the test rows."""

import ast
import hashlib
import importlib.metadata
import importlib.util
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.stats import norm

from benchmarks._data import Fold

LEVELS = (0.1, 0.5, 0.9)
CONFIDENCE = 0.8

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Prediction:
    """Of the test rows, in the target's own units.

    Attributes:
        point: Shape (rows,), meant for the mean.
        quantiles: Shape (rows, 3), of the levels 0.1, 0.5 and 0.9.
    """

    point: FloatArray
    quantiles: FloatArray


@dataclass(frozen=True)
class Method:
    """A way to predict.

    Attributes:
        requires: The package that it needs, as it is imported.
        seeded: Whether another seed gives another prediction.
        version: Changes with its code or its package, so that a cached prediction isn't mistaken for a new one.
    """

    name: str
    run: Callable[[Fold, int], Prediction]
    requires: str
    seeded: bool
    version: str

    def is_installed(self) -> bool:
        return importlib.util.find_spec(self.requires) is not None


METHODS: dict[str, Method] = {}


def method(
    name: str, requires: str, *, seeded: bool = False, uses: tuple[Callable[..., Any], ...] = ()
) -> Callable[[Callable[[Fold, int], Prediction]], Callable[[Fold, int], Prediction]]:
    """Register a function, which calls those of ``uses`` in this folder, as a method."""

    def register(run: Callable[[Fold, int], Prediction]) -> Callable[[Fold, int], Prediction]:
        code = [ast.dump(ast.parse(inspect.getsource(function))) for function in (run, *uses)]  # whatever its layout
        METHODS[name] = Method(name, run, requires, seeded, digest(_version(requires), *code))
        return run

    return register


def digest(*contents: str) -> str:
    return hashlib.sha256("\0".join(contents).encode()).hexdigest()[:12]


def gaussian(mean: FloatArray, deviation: float | FloatArray) -> Prediction:
    """A normal distribution of each row."""
    deviation = np.broadcast_to(deviation, mean.shape)
    return Prediction(mean, mean[:, None] + deviation[:, None] * norm.ppf(LEVELS))


def conformalize(held: FloatArray, target: FloatArray, quantiles: FloatArray) -> FloatArray:
    """Conformalized quantile regression (Romano et al. 2019) with the predictions ``held`` of calibration rows."""
    low, _, high = np.sort(held).T
    scores = np.sort(np.maximum(low - target, target - high))
    rank = -(-(len(scores) + 1) * 4 // 5)  # of 80 %, in whole numbers
    margin = scores[min(rank, len(scores)) - 1]
    covering: FloatArray = np.sort(quantiles) + margin * np.array([-1.0, 0.0, 1.0])
    return covering


def _version(module: str) -> str:
    distributions = {"sklearn": "scikit-learn"}
    try:
        return importlib.metadata.version(distributions.get(module, module))
    except importlib.metadata.PackageNotFoundError:
        return "missing"
