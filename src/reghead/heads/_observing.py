"""What training has seen, told to every part of a head at once."""

from typing import Self

import torch.distributed as dist
from torch import nn

from reghead._checks import check_ids
from reghead._typing import Categories
from reghead.nn._part import CategoryPart, sum_counts


class ObservesRows(nn.Module):
    """A module whose children have tables of categories, and count the training rows of each."""

    def observe(self, categories: Categories) -> None:
        """Count the training rows of every id, so that an id without any is treated as unknown.

        With several processes each tells its own rows, and then all call :meth:`all_reduce`.

        Args:
            categories: Column -> ids of the training rows, all at once or batch by batch.
        """
        parts = self._category_parts()
        for part in parts:
            check_ids(categories, part.cardinalities, type(self).__name__)  # all of them before any is counted
        for part in parts:
            part.observe(categories)

    def all_reduce(self, group: "dist.ProcessGroup | None" = None) -> Self:
        """Sum the counts of training rows over all processes, so that an id seen by one is known to all.

        Each process calls :meth:`observe` with its own rows, which may be none, and then this once: a second call
        would count every row again. A process that was told nothing adds nothing; if none was, every id stays known.
        The buffers must be on a device that the group's backend serves.

        Args:
            group: The process group, the default one if None.

        Raises:
            RuntimeError: If there is no process group.
            ValueError: If the categories of the heads differ between processes.
        """
        sum_counts(self._category_parts(), type(self).__name__, group)
        return self

    def _category_parts(self) -> list[CategoryPart]:
        return [part for part in self.children() if isinstance(part, CategoryPart)]
