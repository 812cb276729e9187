"""Intervals calibrated on rows that a model has not seen: single ones, and whole environments."""

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from reghead._warnings import RegheadWarning, UnseenCategoryWarning
from reghead.calibration import ConformalizedQuantiles
from reghead.categories import Vocabulary
from reghead.config import RegressionConfig
from reghead.estimators._intervals import ENVIRONMENT, CalibratedIntervals
from reghead.estimators._model import TableModel
from reghead.estimators._part import Part
from reghead.estimators._table import resolve

Refit = Callable[[Part, Part], TableModel]
"""From training rows, and rows to stop early by, to a model like the one to calibrate."""
FOLDS = 5


def columns_to_calibrate(
    asked: Any, names: Sequence[str], config: RegressionConfig, held_back: bool
) -> tuple[str, ...]:
    """The columns of ``calibrate_by``, checked before anything is trained; none if it was not asked for.

    Args:
        asked: A column, several, or None.
        names: The columns of the table.
        config: Of head, loss and normalizer.
        held_back: Whether there are rows to calibrate on.
    """
    resolved = resolve("calibrate_by", [asked] if isinstance(asked, str | int) else asked, names)
    if not resolved:
        return ()
    if unknown := [column for column in resolved if column not in config.head.columns]:
        raise ValueError(f"calibrate_by names {unknown}, which are not among categories {list(config.head.columns)}")
    if config.loss.type != "quantile" or config.loss.per_output:
        raise ValueError(f"calibrate_by calibrates predicted quantiles, and loss={config.loss.type!r}; use 'quantile'")
    ConformalizedQuantiles(config.loss.levels or ())  # refuses levels that are no pairs
    if not held_back:
        raise ValueError("calibrate_by needs rows held back to calibrate on; set early_stopping=True")
    return resolved


def calibrate(
    model: TableModel, part: Part, held: Part, columns: Sequence[str], refit: Refit, rng: np.random.RandomState
) -> CalibratedIntervals:
    """Calibrate the intervals of ``model`` for known environments and for new ones.

    For known ones on the rows it stopped early by; for new ones out of fold, each environment predicted by a model
    that has seen none of its rows.

    Args:
        model: Fitted on ``part``.
        part: Its training rows.
        held: The rows it stopped early by.
        columns: Those that make up an environment, from coarse to fine.
        refit: Fits a model like it on other rows.
        rng: Deals environments to folds.
    """
    levels, sizes = model.config.head.quantiles, model.config.head.cardinalities
    assert levels is not None  # the caller checks
    assert sizes is not None
    everything = _concatenate(part, held)
    codes = {column: Vocabulary.from_labels(part.labels[column]) for column in columns}
    ids = {column: codes[column].encode(everything.labels[column]).numpy() for column in columns}
    groups = []
    for depth in range(1, len(columns) + 1):
        _, group = np.unique(np.stack([ids[column] for column in columns[:depth]]), axis=1, return_inverse=True)
        groups.append(group.reshape(-1))
    counts = [len(np.unique(group)) for group in groups]
    intervals = CalibratedIntervals({column: sizes[column] for column in columns}, levels, counts)
    for depth, count in enumerate(counts, start=1):
        if not intervals.is_enough(count):
            warnings.warn(
                f"intervals for a new {' and '.join(columns[:depth])} are calibrated on {count} only, without a "
                f"guarantee: that needs {intervals.needed}",
                RegheadWarning,
                stacklevel=3,
            )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UnseenCategoryWarning)
        intervals.observe({column: i for column, i in _ids(model, part).items() if column in columns})
        intervals.known.conformalize(model.predict(held).double(), torch.from_numpy(held.target))
        for new, group in zip(intervals.new_environments(), groups, strict=True):
            preds, target, kept = _out_of_fold(everything, len(held.target), group, refit, rng)
            environments = {ENVIRONMENT: torch.from_numpy(group[kept]) + 1}
            new.conformalize(preds, target, environments, left_out="environments")
    return intervals


def _out_of_fold(
    rows: Part, held: int, group: npt.NDArray[np.int64], refit: Refit, rng: np.random.RandomState
) -> tuple[Tensor, Tensor, npt.NDArray[np.int64]]:
    """Predictions for rows of environments that the model had not seen, their targets and positions."""
    distinct = rng.permutation(np.unique(group))
    is_held = np.arange(len(rows.target)) >= len(rows.target) - held
    preds, positions = [], []
    for fold in np.array_split(distinct, min(FOLDS, len(distinct))):
        out = np.isin(group, fold)
        if (~out & ~is_held).sum() < 2 or not (~out & is_held).any():
            continue
        model = refit(rows.take(~out & ~is_held), rows.take(~out & is_held))
        preds.append(model.predict(rows.take(out)).double())
        positions.append(np.flatnonzero(out))
    kept = np.concatenate(positions)
    return torch.cat(preds), torch.from_numpy(rows.target[kept]), kept


def _concatenate(first: Part, second: Part) -> Part:
    labels = {
        column: np.concatenate([np.asarray(part.labels[column], dtype=object) for part in (first, second)])
        for column in first.labels
    }
    weights = [np.ones(len(part.target)) if part.weight is None else part.weight for part in (first, second)]
    numbers, target = np.concatenate([first.numbers, second.numbers]), np.concatenate([first.target, second.target])
    weighted = first.weight is not None or second.weight is not None
    return Part(numbers, labels, target, np.concatenate(weights) if weighted else None)


def _ids(model: TableModel, part: Part) -> dict[str, Tensor]:
    return model.preprocessor.transform(part, model.dtype, expect_unseen=True)[1]
