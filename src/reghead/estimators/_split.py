"""The rows to fit on, and those held back to stop early by."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from sklearn.utils.validation import _check_sample_weight

from reghead._checks import check_number
from reghead.categories import Vocabulary
from reghead.estimators._table import FloatArray, Preprocessor, resolve
from reghead.estimators._training import Rows


class Part(NamedTuple):
    """One part of the data, before it is standardised."""

    numbers: FloatArray  # (B, numeric columns)
    labels: Mapping[str, Any]  # categorical column -> labels (B,)
    target: FloatArray  # (B, D), in its own units
    weight: FloatArray | None  # (B,)

    def take(self, rows: npt.NDArray[np.bool_]) -> "Part":
        """The rows where ``rows`` is True."""
        labels = {column: np.asarray(values, dtype=object)[rows] for column, values in self.labels.items()}
        weight = None if self.weight is None else self.weight[rows]
        return Part(self.numbers[rows], labels, self.target[rows], weight)

    def to_rows(self, preprocessor: Preprocessor, device: torch.device, *, expect_unseen: bool = False) -> Rows:
        """As tensors; the target is float64 and in its own units."""
        x, ids = preprocessor.transform(self.numbers, self.labels, expect_unseen=expect_unseen)
        weight = None if self.weight is None else torch.from_numpy(self.weight).to(device)
        ids = {column: i.to(device) for column, i in ids.items()}
        return Rows(x.to(device), ids, torch.from_numpy(self.target).to(device), weight)


def as_frequencies(sample_weight: Any, rows: int) -> FloatArray | None:
    """Weights of shape (B,): as they are where all are integers, otherwise scaled to a mean of 1 over what counts."""
    if sample_weight is None:
        return None
    weight: FloatArray = _check_sample_weight(sample_weight, np.zeros((rows, 1)), dtype=np.float64)
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


def validation_labels(column: str | int | None, preprocessor: Preprocessor, part: Part) -> Any:
    """The labels of the column to hold back by, or None."""
    if column is None:
        return None
    (name,) = resolve("validation_by", [column], preprocessor.names)
    if name in part.labels:
        return part.labels[name]
    return part.numbers[:, preprocessor.numeric.index(preprocessor.names.index(name))]
