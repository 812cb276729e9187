"""Cells, the combinations of categories, as integer keys in mixed radix."""

import itertools
import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

_MAX_KEYS = 2**62


class CellLayout:
    """How the ids of several columns make one int64 key, and one row of a table of main effects.

    A key has one digit per column, in base ``cardinality``. A row with id 0 in any column belongs to no cell. Key 0,
    all ids unknown, stands for "no cell", so it is the population's.

    Args:
        cardinalities: Column -> number of ids, id 0 included.
    """

    def __init__(self, cardinalities: Mapping[str, int]) -> None:
        sizes = tuple(cardinalities.values())
        self.size = math.prod(sizes)
        if self.size > _MAX_KEYS:
            raise ValueError(
                f"cardinalities must have a product of at most 2**62 for cells to have integer keys, got {self.size} "
                f"from {dict(cardinalities)}; use fewer columns"
            )
        self.sizes = sizes
        self.strides = tuple(math.prod(sizes[i + 1 :]) for i in range(len(sizes)))
        # Row 0 of the effects is the intercept.
        self.offsets = tuple(1 + start for start in itertools.accumulate((0, *sizes[:-1]))) if sizes else ()
        self.levels = 1 + sum(sizes)

    def keys(self, ids: Sequence[Tensor]) -> Tensor:
        """The key of each row; one that holds an id 0 equals no cell's key."""
        key = ids[-1]  # its stride is 1
        for i, stride in zip(ids[:-1], self.strides[:-1], strict=True):
            key = key + i * stride
        return key

    def cell_keys(self, ids: Sequence[Tensor]) -> Tensor:
        """The key of each row's cell; 0 where an id is 0, as the row belongs to no cell."""
        key = self.keys(ids)
        if len(ids) == 1:
            return key
        known = ids[0] > 0
        for i in ids[1:]:
            known = known & (i > 0)
        return torch.where(known, key, 0)

    def ids(self, keys: Tensor) -> tuple[Tensor, ...]:
        """The ids of the columns, the inverse of :meth:`keys`."""
        return tuple(
            torch.div(keys, stride, rounding_mode="floor") % size
            for size, stride in zip(self.sizes, self.strides, strict=True)
        )

    def effect_rows(self, ids: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """The rows of the main effects that apply, one per column."""
        return tuple(i + offset for i, offset in zip(ids, self.offsets, strict=True))
