"""Rows of a table, before they are standardised."""

from collections.abc import Mapping
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

FloatArray: TypeAlias = npt.NDArray[np.floating[Any]]


class Part(NamedTuple):
    """Rows of a table: numbers apart from categories, the target and weights beside them."""

    numbers: FloatArray  # (B, numeric columns); NaN is missing
    labels: Mapping[str, Any]  # categorical column -> labels (B,)
    target: FloatArray  # (B, D), in its own units
    weight: FloatArray | None  # (B,)

    def take(self, rows: npt.NDArray[Any] | slice) -> "Part":
        """The rows that ``rows``, a mask, positions or a slice, picks out."""
        labels = {column: np.asarray(values, dtype=object)[rows] for column, values in self.labels.items()}
        weight = None if self.weight is None else self.weight[rows]
        return Part(self.numbers[rows], labels, self.target[rows], weight)
