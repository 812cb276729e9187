"""The rows to fit on, and those held back to stop early by."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from reghead._checks import check_number
from reghead.categories import Vocabulary
from reghead.estimators._part import FloatArray, Part
from reghead.estimators._table import resolve


def as_frequencies(weight: FloatArray) -> FloatArray:
    """Weights of shape (B,): as they are where all are integers, otherwise scaled to a mean of 1 over what counts."""
    if (weight < 0).any():
        raise ValueError(f"sample_weight must be non-negative, got {weight.min()}")
    counted = weight[weight > 0]
    if not len(counted):
        raise ValueError("sample_weight is zero in every row; at least one row must count")
    return weight if (counted == counted.round()).all() else weight / counted.mean()


def held_back(rows: int, share: float, column: Any, rng: np.random.RandomState) -> npt.NDArray[np.bool_]:
    """Which of ``rows`` rows are held back: a share of them, or all rows of a share of a column's categories.

    Args:
        rows: Number of rows.
        share: Of rows, or of categories; at least one is held back and one is kept.
        column: The column's labels, or None.
        rng: Chooses.
    """
    check_number("validation_fraction", share, above=0.0, below=1.0)
    groups = np.arange(rows) if column is None else Vocabulary.from_labels(column).encode(column).numpy()
    distinct = np.unique(groups)
    if len(distinct) < 2:
        what = "rows" if column is None else "categories in the column of validation_by"
        raise ValueError(f"early stopping needs at least 2 {what}, to hold one back; set early_stopping=False")
    count = min(max(round(share * len(distinct)), 1), len(distinct) - 1)
    return np.isin(groups, rng.choice(distinct, size=count, replace=False))


def validation_labels(column: str | int | None, names: Sequence[str], part: Part) -> Any:
    """The labels of the column to hold back by, or None."""
    if column is None:
        return None
    (name,) = resolve("validation_by", [column], names)
    if name in part.labels:
        return part.labels[name]
    return part.numbers[:, [other for other in names if other not in part.labels].index(name)]
