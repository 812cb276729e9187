"""Which effects a mixed model has: of columns, of their combinations, and which of them are eliminated."""

import itertools
from collections.abc import Mapping, Sequence
from functools import cached_property

import torch
from torch import Tensor

from reghead.normalization._cells import CellLayout


class EffectLayout:
    """The effects that the categories of a row bring.

    The categories of a single column, and the cells where they combine all columns, make blocks of their own in the
    equations, which are eliminated: there may be any number of them. The effects of several columns, and of the
    combinations of some of them, are levels among those that remain.

    Args:
        cardinalities: Column -> number of ids, id 0 included; sorted.
        cells: The columns whose combinations have an effect, sorted; none for no such effect.
    """

    def __init__(self, cardinalities: Mapping[str, int], cells: Sequence[str]) -> None:
        several = len(cardinalities) > 1
        #: The columns with effects among the levels.
        self.columns = tuple(cardinalities) if several else ()
        #: Whether the effects of cells are eliminated.
        self.eliminates = bool(cardinalities) and (not several or len(cells) == len(cardinalities))
        combined = tuple(cardinalities) if self.eliminates else tuple(cells)
        self._combined = [list(cardinalities).index(column) for column in combined]
        self._cells = CellLayout({column: cardinalities[column] for column in combined})
        self._cardinalities = dict(cardinalities)
        sizes = [cardinalities[column] for column in self.columns]
        self._offsets = tuple(itertools.accumulate(sizes, initial=0))

    @cached_property
    def _profiles(self) -> CellLayout:
        return CellLayout(self._cardinalities)

    @property
    def components(self) -> int:
        """The number of variance components: of the columns, of the cells, and of the coefficients."""
        return len(self.columns) + 2

    @property
    def factors(self) -> int:
        """The number of effects of a row among the levels."""
        return len(self.columns) + (bool(self._combined) and not self.eliminates)

    def cell_keys(self, ids: Sequence[Tensor]) -> Tensor:
        """The key of each row's eliminated cell, 0 for none."""
        if not self.eliminates:
            return torch.zeros_like(ids[0])
        return self._cells.cell_keys(ids)

    def level_ids(self, ids: Sequence[Tensor]) -> list[Tensor]:
        """For each factor an integer that no other level of any factor has, 0 for an unknown one."""
        result = [torch.where(i > 0, i + offset, 0) for i, offset in zip(ids, self._offsets, strict=False)]
        if not self.columns:
            return []
        if self.factors > len(self.columns):
            key = self._cells.cell_keys([ids[c] for c in self._combined])
            result.append(torch.where(key > 0, key + self._offsets[-1], 0))
        return result

    def level_ids_of_cells(self, keys: Tensor) -> list[Tensor]:
        """:meth:`level_ids` of cells that are eliminated."""
        return self.level_ids(self._cells.ids(keys)) if self.eliminates else []

    def profile_keys(self, ids: Sequence[Tensor]) -> Tensor:
        """The key of each row's profile, its ids with 0 among them; that of its cell, if it has one."""
        return self._profiles.keys(ids)

    def level_ids_of_profiles(self, keys: Tensor) -> list[Tensor]:
        """:meth:`level_ids` of profiles."""
        return self.level_ids(self._profiles.ids(keys))

    def have_cells(self, keys: Tensor) -> Tensor:
        """Whether the rows of profiles have an eliminated cell."""
        known = torch.full_like(keys, self.eliminates, dtype=torch.bool)
        for ids in self._profiles.ids(keys):
            known = known & (ids > 0)
        return known

    def owners(self, level_ids: Tensor) -> Tensor:
        """The factor of each level."""
        return torch.searchsorted(torch.tensor(self._offsets[1:]), level_ids)
