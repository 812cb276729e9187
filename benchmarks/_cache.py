"""Predictions that were made before, so that a run for one method leaves the others alone."""

import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks._data import Fold
from benchmarks._method import Method, Prediction


@dataclass(frozen=True)
class Run:
    """One method on one fold with one seed; ``seconds`` of the processor, to fit and to predict."""

    method: str
    fold: Fold
    seed: int
    prediction: Prediction
    seconds: float


class MethodError(RuntimeError):
    """A method raised; the cache remembers that too."""


def run(method: Method, fold: Fold, seed: int, folder: Path, log: Callable[[str], None]) -> Run:
    """The result in ``folder`` or a new one, which is then written there.

    Raises:
        MethodError: If the method raises, now or when it was first run.
    """
    name = f"{method.name}-{seed}-{method.version}-{fold.fingerprint}.npz"
    path = folder / fold.table / f"{fold.kind}{fold.index}" / name
    if path.exists():
        with np.load(path) as found:
            if "error" in found:
                raise MethodError(str(found["error"]))
            return Run(method.name, fold, seed, Prediction(found["point"], found["quantiles"]), float(found["seconds"]))
    began = time.process_time()
    try:
        prediction = method.run(fold, seed)
    except Exception as error:  # a peer may raise anything, and the others are still to be run
        reason = f"{type(error).__name__}: {error}"
        _write(path, error=np.array(reason))
        raise MethodError(reason) from error
    seconds = time.process_time() - began
    log(f"{fold.table} {fold.kind}{fold.index} {method.name} seed {seed}: {seconds:.1f} s")
    _write(path, point=prediction.point, quantiles=prediction.quantiles, seconds=np.array(seconds))
    return Run(method.name, fold, seed, prediction, seconds)


def _write(path: Path, **arrays: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, suffix=".partial")
    with os.fdopen(descriptor, "wb") as file:
        np.savez(file, **arrays)
    os.replace(temporary, path)
