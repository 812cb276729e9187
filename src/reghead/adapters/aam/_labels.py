"""The labels of AAM's encoder and those of reghead's, with the same ids."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from reghead.categories import CategoryEncoder
from reghead.categories._labels import as_label


def encoder_from_aam(categorical_encoder: Any) -> CategoryEncoder:
    """A :class:`~reghead.categories.CategoryEncoder` with the labels and ids of AAM's fitted CategoricalEncoder.

    The ids of AAM's batches are then those of the head, the normalizer and the reports. How many rows each label has,
    AAM does not say: the counts are 0.

    Args:
        categorical_encoder: AAM's fitted CategoricalEncoder.

    Raises:
        ValueError: If its ids are not 1 to N in every column.

    Example:
        >>> class Fitted:  # as AAM's CategoricalEncoder after a fit
        ...     column_names = ["location"]
        ...
        ...     def get_mappings(self):
        ...         return {"location": {"north": 1, "south": 2}}
        >>> encoder_from_aam(Fitted()).transform({"location": ["south", None]})
        {'location': tensor([2, 0])}
    """
    mappings: Mapping[str, Mapping[str, int]] = categorical_encoder.get_mappings()
    columns = []
    for column in categorical_encoder.column_names:
        ids = {i: label for label, i in mappings[column].items()}
        if sorted(ids) != list(range(1, len(mappings[column]) + 1)):
            raise ValueError(f"the ids of the column {column!r} must be 1 to their number, got {sorted(ids)}")
        labels = [ids[i] for i in sorted(ids)]
        columns.append({"name": column, "labels": labels, "counts": [0] * (len(labels) + 1)})
    return CategoryEncoder.from_dict({"format": 1, "type": "CategoryEncoder", "columns": columns})


def text_labels(table: Any, columns: Any) -> dict[str, list[str | None]]:
    """The labels of ``columns`` as text, as in AAM, but one for 1 and 1.0: a missing value turns a column to floats."""
    return {column: [None if t is None else _plain(t) for t in _texts(table, column)] for column in columns}


def ids_of(encoder: CategoryEncoder, table: Any) -> dict[str, Tensor]:
    """The ids of the rows of ``table``, whether the encoder's labels are text, as AAM's, or numbers."""
    labels: dict[str, list[Any]] = {}
    for column in encoder.columns:
        known = encoder.vocabularies[column].labels
        own = {**{_plain(str(label)): label for label in known}, **{str(label): label for label in known}}
        labels[column] = [
            None if text is None else own.get(text, own.get(_plain(text), text)) for text in _texts(table, column)
        ]
    return encoder.transform(labels)


def _texts(table: Any, column: str) -> list[str | None]:
    if column not in table:
        raise ValueError(f"the metadata needs the column {column!r}, and has {', '.join(map(str, table))}")
    labels = (as_label(f"column {column!r}", value) for value in table[column])
    return [None if label is None else str(label) for label in labels]


def _plain(text: str) -> str:
    """A whole number without its ``.0``; every other label as it is."""
    whole, _, rest = text.partition(".")
    return whole if rest == "0" and whole.removeprefix("-").isdecimal() else text
