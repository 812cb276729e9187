"""The rows of a table that training, validation or a report takes."""

from collections.abc import Iterable, Sequence
from typing import Any, overload

import numpy as np
import numpy.typing as npt

from reghead.cli._schema import Schema, to_part
from reghead.cli._tables import Table
from reghead.estimators._part import Part


class TableParts(Sequence[Part]):
    """The chunks of a table as the training loop takes them, read when they are wanted.

    Args:
        table: All rows.
        schema: What each column is for.
        keep: Which rows; all if left out.
        weight_unit: What weights are divided by.
    """

    def __init__(
        self, table: Table, schema: Schema, keep: npt.NDArray[np.bool_] | None = None, weight_unit: float = 1.0
    ) -> None:
        self.table, self.schema, self.keep, self.weight_unit = table, schema, keep, weight_unit
        self._first = np.concatenate([[0], np.cumsum(table.sizes)]).tolist()

    def __len__(self) -> int:
        return len(self.table)

    @overload
    def __getitem__(self, index: int) -> Part: ...

    @overload
    def __getitem__(self, index: slice) -> list[Part]: ...

    def __getitem__(self, index: int | slice) -> Part | list[Part]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not 0 <= index < len(self):
            raise IndexError(f"chunk {index} of {len(self)}")
        first, end = self._first[index : index + 2]
        part = to_part(self.table[index], self.schema, first_row=first)
        if part.weight is not None and self.weight_unit != 1.0:
            part = part._replace(weight=part.weight / self.weight_unit)
        return part if self.keep is None else part.take(self.keep[first:end])

    def in_memory(self) -> "Sequence[Part]":
        """A list where the table is one chunk, so that it is kept; itself where it is read chunk by chunk."""
        return [self[0]] if len(self) == 1 else self

    def labels(self, columns: Iterable[str]) -> dict[str, Any]:
        """Any columns of the table, the rows of all chunks; None is missing."""
        found = {}
        for column in columns:
            values = self.table.column(column)
            labels = values.astype(object).where(values.notna(), None).to_numpy()
            found[column] = (labels if self.keep is None else labels[self.keep]).tolist()
        return found
