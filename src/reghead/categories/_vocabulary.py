"""One column's labels and their ids."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from reghead.categories._labels import Codes, Label, as_label, factorize, gather


@dataclass(frozen=True)
class Vocabulary:
    """The labels of one categorical column and their ids. Immutable.

    Id 0 is "unknown or missing"; the labels have ids 1 to N. Labels are equal as in Python: ``1``, ``1.0`` and
    ``True`` are one label, ``"1"`` is another. ``None``, NaN and the missing values of pandas are id 0.

    Args:
        labels: The labels in the order of their ids. :meth:`from_labels` sorts them out of a column of data.

    Raises:
        TypeError: If a label is not a str, int, float or bool.
        ValueError: If a label is missing, infinite or repeated.

    Example:
        >>> from reghead.categories import Vocabulary
        >>> vocabulary = Vocabulary.from_labels(["north", "south", "north", None])
        >>> vocabulary.labels, len(vocabulary)
        (('north', 'south'), 3)
        >>> vocabulary.encode(["south", "east", None])
        tensor([2, 0, 0])
    """

    labels: tuple[Label, ...] = ()

    def __post_init__(self) -> None:
        labels = tuple(as_label("labels", label) for label in self.labels)
        if any(label is None for label in labels):
            raise ValueError("labels must not hold a missing value (None or NaN): it is id 0 without being listed")
        if any(isinstance(label, float) and math.isinf(label) for label in labels):
            raise ValueError("labels must be finite, got an infinite one; convert the column with astype(str)")
        if len(set(labels)) != len(labels):
            seen: set[object] = set()
            repeated = next(label for label in labels if label in seen or seen.add(label))  # type: ignore[func-returns-value]
            raise ValueError(f"labels must not repeat, got {repeated!r} twice (1, 1.0 and True are one label)")
        object.__setattr__(self, "labels", labels)

    @classmethod
    def from_labels(cls, values: Any) -> Self:
        """The vocabulary of a column of data: ids in sorted order, numbers before strings, whatever the row order."""
        _, labels = factorize("labels", values)
        return cls.from_distinct(labels)

    @classmethod
    def from_distinct(cls, labels: Iterable[Label | None]) -> Self:
        """As :meth:`from_labels`, for labels that are plain Python scalars already; ``None`` is dropped."""
        present = sorted((label for label in labels if label is not None), key=_order)
        return cls(tuple(dict.fromkeys(present)))

    @cached_property
    def _ids(self) -> dict[Label | None, int]:
        return {label: i for i, label in enumerate(self.labels, start=1)}

    def __len__(self) -> int:
        """The number of ids, N + 1: id 0 counts."""
        return len(self.labels) + 1

    @property
    def cardinality(self) -> int:
        """The number of ids, N + 1: id 0 counts."""
        return len(self)

    def ids_of(self, labels: Sequence[Label | None]) -> Codes:
        """The ids of plain Python labels, as a NumPy array; 0 for ``None`` and for a label that is not here."""
        return np.fromiter((self._ids.get(label, 0) for label in labels), np.int64, count=len(labels))

    def encode(self, values: Any) -> Tensor:
        """The ids of a column of data, shape ``(N,)``; an unseen label and a missing value are 0."""
        codes, labels = factorize("labels", values)
        return torch.from_numpy(gather(self.ids_of([*labels, None]), codes))

    def decode(self, ids: Tensor) -> list[Label | None]:
        """The labels of ``ids``, shape ``(N,)``; ``None`` for id 0.

        Raises:
            ValueError: If an id is outside ``[0, N]``.
        """
        if ids.ndim != 1:
            raise ValueError(f"ids must have shape (N,), got {tuple(ids.shape)}")
        table: list[Label | None] = [None, *self.labels]
        numbers = ids.tolist()
        if numbers and not (min(numbers) >= 0 and max(numbers) < len(table)):
            wrong = next(i for i in numbers if not 0 <= i < len(table))
            raise ValueError(f"ids must lie in [0, {len(table)}), got {wrong}")
        return [table[i] for i in numbers]

    def to_list(self) -> list[Label]:
        """The labels in the order of their ids, ready for JSON."""
        return list(self.labels)

    @classmethod
    def from_list(cls, labels: object) -> Self:
        """The inverse of :meth:`to_list`: the order of the list is the order of the ids."""
        if not isinstance(labels, list):
            raise TypeError(f"labels must be a list of str, int, float or bool, got {type(labels).__name__}")
        return cls(tuple(labels))


def _order(label: Label) -> tuple[bool, Any]:
    return isinstance(label, str), label
