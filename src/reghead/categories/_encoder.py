"""Tables of labels to the ids that every other part takes."""

import json
import warnings
from collections.abc import Iterable, Mapping
from typing import Any, Self

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from reghead._checks import check_columns, did_you_mean
from reghead._typing import Categories
from reghead._warnings import UnseenCategoryWarning
from reghead.categories._labels import Codes, Label, factorize, gather
from reghead.categories._vocabulary import Vocabulary

_FORMAT = 1


class CategoryEncoder:
    """Turns the categorical columns of a table into ids.

    Known means seen in :meth:`fit`: an unseen label becomes id 0 with a warning, a missing value becomes id 0
    silently. ``encoder.cardinalities`` is what the other parts of the library take at construction.

    A table is a pandas or polars DataFrame, or a mapping from column to a list or one-dimensional array; columns
    that are not named here are ignored.

    Args:
        columns: The categorical columns.

    Attributes:
        columns: The same, as a tuple.

    Example:
        >>> from reghead.categories import CategoryEncoder
        >>> encoder = CategoryEncoder(["location", "season"])
        >>> categories = encoder.fit_transform({"location": ["B", "A", "B"], "season": [1, 2, None]})
        >>> categories["location"], categories["season"]
        (tensor([2, 1, 2]), tensor([1, 2, 0]))
        >>> encoder.cardinalities
        {'location': 3, 'season': 3}
        >>> encoder.counts["season"]
        tensor([1, 1, 1])
    """

    def __init__(self, columns: Iterable[str]) -> None:
        self.columns = check_columns("columns", columns)
        if not self.columns:
            raise ValueError("columns must name at least one categorical column, got none")
        self._vocabularies: dict[str, Vocabulary] | None = None
        self._counts: dict[str, Tensor] = {}

    def __repr__(self) -> str:
        fitted = "" if self._vocabularies is None else f", cardinalities={self.cardinalities}"
        return f"CategoryEncoder(columns={list(self.columns)}{fitted})"

    @property
    def vocabularies(self) -> dict[str, Vocabulary]:
        """Column -> its labels."""
        return dict(self._fitted())

    @property
    def cardinalities(self) -> dict[str, int]:
        """Column -> its number of ids, id 0 included."""
        return {column: vocabulary.cardinality for column, vocabulary in self._fitted().items()}

    @property
    def counts(self) -> dict[str, Tensor]:
        """Column -> the number of training rows of each id; at 0 those where the value was missing."""
        self._fitted()
        return {column: count.clone() for column, count in self._counts.items()}

    def fit(self, table: Any) -> Self:
        """Learn the labels of each column of ``table``, forgetting those of an earlier fit."""
        self.fit_transform(table)
        return self

    def fit_transform(self, table: Any) -> dict[str, Tensor]:
        """Learn the labels of ``table`` and return its ids: column -> int64 tensor of shape ``(rows,)``."""
        vocabularies, counts, categories = {}, {}, {}
        for column, (codes, labels) in self._factorize(table).items():
            vocabulary = Vocabulary.from_distinct(labels)
            ids = gather(vocabulary.ids_of([*labels, None]), codes)
            vocabularies[column] = vocabulary
            counts[column] = torch.from_numpy(np.bincount(ids, minlength=len(vocabulary)))
            categories[column] = torch.from_numpy(ids)
        self._vocabularies, self._counts = vocabularies, counts
        return categories

    def partial_fit(self, table: Any) -> Self:
        """Add the labels of ``table``, as if they had been in the first fit.

        Ids are those of all labels so far, sorted: a label that comes later can move others, so transform after the
        last chunk.
        """
        return self.merge(type(self)(self.columns).fit(table))

    def merge(self, other: "CategoryEncoder") -> Self:
        """Add the labels and counts of ``other``, as if this encoder had seen its rows too.

        Raises:
            TypeError: If ``other`` is not an encoder.
            ValueError: If ``other`` has other columns.
        """
        if not isinstance(other, CategoryEncoder):
            raise TypeError(f"merge needs a CategoryEncoder, got {type(other).__name__}")
        if self.columns != other.columns:
            raise ValueError(
                f"merge needs encoders of the same columns, got {list(self.columns)} and {list(other.columns)}"
            )
        both = [encoder for encoder in (self, other) if encoder._vocabularies is not None]
        vocabularies, counts = {}, {}
        for column in self.columns if both else ():
            parts = [(encoder._fitted()[column], encoder._counts[column]) for encoder in both]
            merged = Vocabulary.from_distinct(label for vocabulary, _ in parts for label in vocabulary.labels)
            count = torch.zeros(len(merged), dtype=torch.int64)
            for vocabulary, rows in parts:
                count[torch.from_numpy(merged.ids_of([None, *vocabulary.labels]))] += rows
            vocabularies[column], counts[column] = merged, count
        if both:
            self._vocabularies, self._counts = vocabularies, counts
        return self

    def all_reduce(self, group: "dist.ProcessGroup | None" = None) -> Self:
        """Merge the labels of all processes, in the order of their ranks; the result is identical on all.

        Each process calls :meth:`partial_fit` with its own rows, or nothing where it has none, and then this once: a
        second call would count every row again.

        Raises:
            RuntimeError: If there is no process group, or no rank has seen a row.
        """
        if not (dist.is_available() and dist.is_initialized()):
            raise RuntimeError("all_reduce needs a process group; call torch.distributed.init_process_group first")
        gathered: list[Any] = [None] * dist.get_world_size(group)
        dist.all_gather_object(gathered, None if self._vocabularies is None else self.to_dict(), group=group)
        merged = type(self)(self.columns)
        for value in gathered:
            if value is not None:
                merged.merge(type(self).from_dict(value))
        self._vocabularies, self._counts = merged._fitted(), merged._counts
        return self

    def transform(self, table: Any) -> dict[str, Tensor]:
        """The ids of ``table``: column -> int64 tensor of shape ``(rows,)``.

        Warns:
            UnseenCategoryWarning: Once per call, with the number of rows whose label was not in the training rows.
        """
        vocabularies = self._fitted()
        categories, unseen = {}, []
        for column, (codes, labels) in self._factorize(table).items():
            lookup = vocabularies[column].ids_of([*labels, None])
            new = [i for i, label in enumerate(labels) if label is not None and lookup[i] == 0]
            if new:
                is_new = np.zeros(len(lookup), bool)
                is_new[new] = True
                rows = int(is_new.take(codes).sum())
                unseen.append(_describe_unseen(column, rows, [labels[i] for i in new], vocabularies[column]))
            categories[column] = torch.from_numpy(gather(lookup, codes))
        if unseen:
            warnings.warn(
                f"labels that were not in the training rows are read as unknown (id 0): {'; '.join(unseen)}",
                UnseenCategoryWarning,
                stacklevel=2,
            )
        return categories

    def inverse_transform(self, categories: Categories) -> dict[str, list[Label | None]]:
        """The labels of ``categories``, column by column; ``None`` for id 0."""
        vocabularies = self._fitted()
        self._check_available(categories, "categories")
        return {column: vocabulary.decode(categories[column]) for column, vocabulary in vocabularies.items()}

    def to_dict(self) -> dict[str, Any]:
        """The fitted encoder in plain Python values, ready for JSON."""
        columns = [
            {"name": column, "labels": vocabulary.to_list(), "counts": self._counts[column].tolist()}
            for column, vocabulary in self._fitted().items()
        ]
        return {"format": _FORMAT, "type": "CategoryEncoder", "columns": columns}

    @classmethod
    def from_dict(cls, value: object) -> Self:
        """The inverse of :meth:`to_dict`.

        Raises:
            ValueError: If ``value`` is not what :meth:`to_dict` returns; the message says where.
        """
        if not isinstance(value, Mapping) or value.get("type") != "CategoryEncoder":
            raise ValueError(f"expected an object with type 'CategoryEncoder', got {_shorten(value)}")
        if value.get("format") != _FORMAT:
            raise ValueError(
                f"the encoder has format {value.get('format')!r}, this version of reghead reads format {_FORMAT}"
            )
        columns = value.get("columns")
        if not isinstance(columns, list) or not all(
            isinstance(c, Mapping) and {"name", "labels", "counts"} <= c.keys() for c in columns
        ):
            raise ValueError(f"columns must be a list of objects with name, labels and counts, got {_shorten(columns)}")
        try:
            encoder = cls([column["name"] for column in columns])
            vocabularies = {column["name"]: Vocabulary.from_list(column["labels"]) for column in columns}
        except TypeError as error:
            raise ValueError(str(error)) from error
        for column in columns:
            counts, size = column["counts"], len(vocabularies[column["name"]])
            if (
                not isinstance(counts, list)
                or len(counts) != size
                or not all(isinstance(n, int) and not isinstance(n, bool) and 0 <= n < 2**63 for n in counts)
            ):
                raise ValueError(
                    f"counts of the column {column['name']!r} must be a list of {size} non-negative integers, one per "
                    f"label and one for unknown, got {_shorten(counts)}"
                )
            encoder._counts[column["name"]] = torch.tensor(counts, dtype=torch.int64)
        encoder._vocabularies = vocabularies
        return encoder

    def to_json(self) -> str:
        """The fitted encoder as JSON."""
        return json.dumps(self.to_dict(), allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """The inverse of :meth:`to_json`.

        Raises:
            ValueError: If ``text`` is not JSON, or not that of an encoder.
        """
        try:
            value = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"the encoder's JSON does not parse: {error}") from error
        return cls.from_dict(value)

    def _fitted(self) -> dict[str, Vocabulary]:
        if self._vocabularies is None:
            raise RuntimeError("this CategoryEncoder has no labels yet; call fit(table) on the training rows first")
        return self._vocabularies

    def _check_available(self, table: Any, name: str) -> None:
        available = table.keys() if isinstance(table, Mapping) else getattr(table, "columns", None)
        if available is None:
            raise TypeError(f"{name} must be a DataFrame or map columns to values, got {type(table).__name__}")
        available = list(available)
        for column in self.columns:
            if column not in available:
                raise ValueError(
                    f"{name} needs the column {column!r}, got {', '.join(map(repr, available)) or 'none'}"
                    f"{did_you_mean(column, available)}"
                )

    def _factorize(self, table: Any) -> dict[str, tuple[Codes, list[Label | None]]]:
        self._check_available(table, "table")
        columns = {column: factorize(f"column {column!r}", table[column]) for column in self.columns}
        rows = {column: len(codes) for column, (codes, _) in columns.items()}
        if len(set(rows.values())) > 1:
            raise ValueError(f"all columns of a table must have the same number of rows, got {rows}")
        return columns


def _describe_unseen(column: str, rows: int, labels: list[Label | None], vocabulary: Vocabulary) -> str:
    # A float column's NaN objects are missing, so what is listed here is distinct up to 1 and True.
    distinct = list(dict.fromkeys(labels))
    shown = ", ".join(map(repr, distinct[:3])) + (", ..." if len(distinct) > 3 else "")
    known = {str(label) for label in vocabulary.labels}
    typed = next((label for label in distinct if str(label) in known), None)
    hint = f" ({typed!r} was seen in training as another type)" if typed is not None else ""
    return f"{rows} rows of column {column!r} with {len(distinct)} unseen labels: {shown}{hint}"


def _shorten(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
