"""The labels of AAM's encoder and those of reghead's, with the same ids."""

from collections.abc import Mapping
from typing import Any

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

    def text(name: str, value: object) -> str | None:
        label = as_label(f"column {name!r}", value)
        return None if label is None else str(label)

    return {column: [text(column, value) for value in table[column]] for column in columns}
