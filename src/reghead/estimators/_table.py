"""From a table X to what a head takes: standardised numbers, and ids."""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any, Self, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from sklearn.utils.validation import check_array, validate_data
from torch import Tensor

from reghead._checks import did_you_mean
from reghead._warnings import UnseenCategoryWarning
from reghead.categories import CategoryEncoder

FloatArray: TypeAlias = npt.NDArray[np.floating[Any]]
Column: TypeAlias = str | int


def names_of(table: Any) -> list[str]:
    """The names of the columns of ``table``; ``x0``, ``x1``, ... where it has none."""
    names = getattr(table, "columns", None)
    if names is not None and all(isinstance(name, str) for name in names):
        return list(names)
    return [f"x{i}" for i in range(np.shape(table)[1])]


def resolve(option: str, columns: Any, names: Sequence[str]) -> tuple[str, ...]:
    """The names of ``columns``, which are names or positions of columns of X."""
    if columns is None:
        return ()
    if isinstance(columns, str | int):
        raise TypeError(f"{option} must be a sequence of columns of X, got {columns!r}; use [{columns!r}]")
    found = []
    for column in columns:
        if isinstance(column, int | np.integer) and not isinstance(column, bool):
            if not -len(names) <= column < len(names):
                raise ValueError(f"{option} names the column {column}, and X has {len(names)} columns")
            found.append(names[int(column)])
        elif column in names:
            found.append(str(column))
        else:
            raise ValueError(
                f"{option} names the column {column!r}, which is not in X ({', '.join(map(repr, names))})"
                f"{did_you_mean(column, names)}"
            )
    return tuple(found)


class Preprocessor:
    """Numbers standardised by the mean and standard deviation of the training rows, and ids of the categories.

    A missing number becomes the mean, and a column that has missing numbers in training brings an indicator of them.

    Args:
        names: All columns of X, in their order.
        categories: The categorical ones among them.
    """

    def __init__(self, names: Sequence[str], categories: Sequence[str]) -> None:
        self.names, self.categories = tuple(names), tuple(categories)
        self.numeric = [i for i, name in enumerate(names) if name not in set(categories)]
        self.encoder = CategoryEncoder(categories) if categories else None
        self.mean = self.scale = np.zeros(len(self.numeric))
        self.indicated: npt.NDArray[np.bool_] = np.zeros(len(self.numeric), bool)

    @property
    def in_features(self) -> int:
        """Width of the features."""
        return max(len(self.numeric) + int(self.indicated.sum()), 1)

    def split(self, table: Any) -> tuple[FloatArray, dict[str, Any]]:
        """The numbers of ``table``, of shape (B, number of numeric columns), and its categorical columns."""
        if not self.categories:
            return np.asarray(table), {}
        if hasattr(table, "columns"):
            labels: dict[str, Any] = {c: table[table.columns[self.names.index(c)]] for c in self.categories}
            numbers = table[[table.columns[i] for i in self.numeric]] if self.numeric else None
        else:
            array = table if isinstance(table, np.ndarray) else np.array(table, dtype=object)
            labels = {c: array[:, self.names.index(c)] for c in self.categories}
            numbers = array[:, self.numeric] if self.numeric else None
        if numbers is None:
            return np.zeros((len(table), 0)), labels
        checked = check_array(
            numbers, dtype=(np.float64, np.float32), ensure_all_finite="allow-nan", input_name="the numbers of X"
        )
        return checked, labels

    def fit(self, numbers: FloatArray, labels: Mapping[str, Any], weight: FloatArray | None) -> Self:
        """Take mean, spread and labels of the training rows."""
        present = ~np.isnan(numbers)
        weights = present * (np.ones(len(numbers)) if weight is None else weight)[:, None]
        total = np.maximum(weights.sum(0), np.finfo(np.float64).tiny)
        values = np.where(present, numbers, 0.0).astype(np.float64)
        self.mean = (weights * values).sum(0) / total
        self.scale = np.sqrt((weights * (values - self.mean) ** 2).sum(0) / total)
        # A constant column: what is left is the rounding of its mean.
        self.scale[self.scale <= 1e-12 * np.abs(self.mean)] = 1.0
        self.indicated = np.asarray(~present.all(axis=0))
        if self.encoder is not None:
            self.encoder.fit(labels)
        return self

    def transform(
        self, numbers: FloatArray, labels: Mapping[str, Any], *, expect_unseen: bool = False
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Features, in the dtype of ``numbers``, and ids; a label not seen in training is 0."""
        missing = np.isnan(numbers)
        standardized = np.where(missing, 0.0, (numbers - self.mean) / self.scale)
        # A head wants a feature: where all columns are categorical it gets one that is always 0.
        blank = np.zeros((len(numbers), 0 if self.numeric else 1))
        features = np.concatenate([standardized, missing[:, self.indicated], blank], axis=1)
        if self.encoder is None:
            ids: dict[str, Tensor] = {}
        else:
            with warnings.catch_warnings():
                if expect_unseen:
                    warnings.simplefilter("ignore", UnseenCategoryWarning)
                ids = self.encoder.transform(labels)
        return torch.from_numpy(features.astype(numbers.dtype)), ids


def validate_mixed(estimator: Any, X: Any, *, reset: bool) -> Any:  # noqa: N803
    """X itself, or an array of objects: strings and numbers side by side are checked column by column."""
    table = X if hasattr(X, "columns") or isinstance(X, np.ndarray) else np.array(X, dtype=object)
    if np.ndim(table) != 2:
        raise ValueError(f"X must have shape (rows, columns), got {np.ndim(table)} dimensions")
    validate_data(estimator, table, reset=reset, skip_check_array=True)
    return table


def target_names(y: Any, target: FloatArray) -> tuple[str, ...]:
    """Names of the targets: the columns of ``y``, or y0, y1, ..."""
    names = getattr(y, "columns", None)
    if names is not None:
        return tuple(map(str, names))
    return tuple(f"y{d}" for d in range(1 if target.ndim == 1 else target.shape[1]))
