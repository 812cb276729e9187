"""Intervals calibrated on rows that a model has not seen: single ones, and whole environments."""

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from reghead._warnings import RegheadWarning, UnseenCategoryWarning
from reghead.calibration import ConformalizedQuantiles, conformal_rank
from reghead.categories import Vocabulary
from reghead.config import RegressionConfig
from reghead.estimators._intervals import ENVIRONMENT, CalibratedIntervals
from reghead.estimators._model import TableModel
from reghead.estimators._part import Part
from reghead.estimators._table import resolve

Refit = Callable[[Part], TableModel]
"""From training rows to a model trained for as many epochs as the one to calibrate."""
FOLDS = 5


def columns_to_calibrate(
    given: Any, names: Sequence[str], config: RegressionConfig, part: Part, *, continued: bool
) -> tuple[str, ...]:
    """The columns of ``calibrate_by``, checked before anything is trained; none if it was not asked for.

    Args:
        given: The estimator.
        names: The columns of the table.
        config: Of head, loss and normalizer.
        part: All rows.
        continued: Whether an earlier fit is continued.
    """
    asked = given.calibrate_by
    resolved = resolve("calibrate_by", [asked] if isinstance(asked, str | int | np.integer) else asked, names)
    if not resolved:
        return ()
    if len(set(resolved)) < len(resolved):
        raise ValueError(f"calibrate_by must name each column once, got {list(resolved)}")
    if unknown := [column for column in resolved if column not in config.head.columns]:
        raise ValueError(f"calibrate_by names {unknown}, which are not among categories {list(config.head.columns)}")
    if config.loss.type != "quantile" or config.loss.per_output:
        raise ValueError(f"calibrate_by calibrates predicted quantiles, and loss={config.loss.type!r}; use 'quantile'")
    ConformalizedQuantiles(config.loss.levels or ())  # refuses levels that are no pairs
    for name, wrong in (
        ("sample_weight", part.weight is not None),
        ("warm_start", continued),
        ("validation_by", given.validation_by is not None),
    ):
        if wrong:
            raise ValueError(
                f"calibrate_by counts rows that the model has not seen and whose categories it knows, and {name} gives "
                "others; leave one of them out"
            )
    for column in resolved:
        vocabulary = Vocabulary.from_labels(part.labels[column])
        if (count := len(vocabulary) - 1) < 2:
            raise ValueError(f"calibrate_by needs at least 2 categories of {column!r}, to leave one out, got {count}")
        rows = np.bincount(vocabulary.encode(part.labels[column]))[1:]
        if (rest := len(part.target) - int(rows.max())) < 2:
            raise ValueError(
                f"calibrate_by trains without each category of {column!r}, and without the largest there is {rest} row "
                "left, of 2 that a model needs; give more rows of other categories, or leave calibrate_by out"
            )
    return resolved


def calibrate(
    model: TableModel, part: Part, held: Part, columns: Sequence[str], refit: Refit, rng: np.random.RandomState
) -> CalibratedIntervals:
    """Calibrate the intervals of ``model`` for known environments and for new ones.

    For known ones on the rows it stopped early by; for new ones out of fold, each environment predicted by a model
    that has seen none of its rows. Those models are trained on all other rows for the number of epochs that was best
    for ``model``: the one thing that they know of what they are to predict.

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
    ids = [Vocabulary.from_labels(everything.labels[c]).encode(everything.labels[c]).numpy() for c in columns]
    found = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UnseenCategoryWarning)
        for depth in range(1, len(columns) + 1):
            stacked = np.stack(ids[:depth])
            _, group = np.unique(stacked, axis=1, return_inverse=True)
            # A row without a label is of no environment that could be left out.
            group = np.where((stacked > 0).all(axis=0), group.reshape(-1) + 1, 0)
            found.append((*_out_of_fold(everything, group, refit, rng), group))
        counts = [len(np.unique(group[kept])) for _, _, kept, group in found]
        intervals = CalibratedIntervals({column: sizes[column] for column in columns}, levels, counts)
        intervals.observe({column: i for column, i in _ids(model, part).items() if column in columns})
        known = intervals.is_known({column: i for column, i in _ids(model, held).items() if column in columns})
        preds, target = (model.to_calibrate(y) for y in (model.predict(held), torch.from_numpy(held.target)))
        intervals.known.conformalize(preds, target, mask=known)
        for new, (preds, target, kept, group) in zip(intervals.new_environments(), found, strict=True):
            environments = {ENVIRONMENT: torch.from_numpy(np.unique(group[kept], return_inverse=True)[1]) + 1}
            preds, target = model.to_calibrate(preds), model.to_calibrate(target)
            new.conformalize(preds, target, environments, left_out="environments")
    widest = levels[-1] - levels[0]
    if conformal_rank(rows := int(known.sum()), round(widest, 12)) > rows:
        warnings.warn(
            f"intervals of {widest:.3g} for a known {' and '.join(columns)} are infinite: of the rows held back {rows} "
            "have one, too few to calibrate on; hold back more by validation_fraction or eval_set",
            RegheadWarning,
            stacklevel=3,
        )
    for depth, count in enumerate(counts, start=1):
        if not intervals.is_enough(count):
            warnings.warn(
                f"intervals for a new {' and '.join(columns[:depth])} are calibrated on {count} only: from "
                f"{intervals.needed} on they are guaranteed; now rows are taken together, right on average at best",
                RegheadWarning,
                stacklevel=3,
            )
    return intervals


def _out_of_fold(
    rows: Part, group: npt.NDArray[np.int64], refit: Refit, rng: np.random.RandomState
) -> tuple[Tensor, Tensor, npt.NDArray[np.int64]]:
    """Predictions for rows of environments that the model had not seen, their targets and positions.

    Args:
        rows: All of them.
        group: The environment of each row; 0 is none.
        refit: Fits a model.
        rng: Deals environments to folds.
    """
    distinct = rng.permutation(np.unique(group[group > 0]))
    preds, positions = [], []
    for fold in np.array_split(distinct, min(FOLDS, len(distinct))):
        out = np.isin(group, fold)
        preds.append(refit(rows.take(~out)).predict(rows.take(out)))
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
