"""What every layer with one row per category has in common."""

import zlib
from collections.abc import Mapping, Sequence
from typing import Self

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional as F

from reghead._checks import check_cardinalities, check_ids, reads_values
from reghead._typing import Categories


class CategoryPart(nn.Module):
    """A layer with tables of one row per category.

    Row 0, the unknown, is not stored: a table of a column with N ids is a raw parameter of N - 1 rows, so neither
    weight decay nor a parent that re-initialises its children can give the unknown a value of its own.

    A buffer per column counts the training rows of each id. An id that was never seen in training is unknown too.
    Until :meth:`observe` is called the counts are -1, "not told", and every id is taken as known.
    """

    def __init__(self, cardinalities: Mapping[str, int], device: torch.device | str | None = None) -> None:
        super().__init__()
        self.cardinalities = check_cardinalities("cardinalities", cardinalities)
        if not self.cardinalities:
            raise ValueError("cardinalities must name at least one column, got {}")
        for column, cardinality in self.cardinalities.items():
            counts = torch.full((cardinality,), -1, dtype=torch.int64, device=device)
            self.register_buffer(name_in("counts", column), counts)

    def _forget(self) -> None:
        """Take every id as known again; a module made on the meta device has no counts until then."""
        for column in self.cardinalities:
            self.get_buffer(name_in("counts", column)).fill_(-1)

    def observe(self, categories: Categories) -> None:
        """Count training rows, so that an id without any is treated as unknown.

        Call it with the ids of the training rows, all at once or batch by batch.

        With several processes each tells its own rows, and then all call :meth:`all_reduce`.

        Args:
            categories: Column -> ids of shape ``(*,)``.
        """
        ids = check_ids(categories, self.cardinalities, type(self).__name__)
        for column, i in zip(self.cardinalities, ids, strict=True):
            counts = self.get_buffer(name_in("counts", column))
            counts.clamp_(min=0)
            counts += torch.bincount(i.reshape(-1), minlength=counts.numel())

    def all_reduce(self, group: "dist.ProcessGroup | None" = None) -> Self:
        """Sum the counts of training rows over all processes, so that an id seen by one is known to all.

        Each process calls :meth:`observe` with its own rows, which may be none, and then this once: a second call
        would count every row again. A process that was told nothing adds nothing; if none was, every id stays known.
        The buffers must be on a device that the group's backend serves.

        Args:
            group: The process group, the default one if None.

        Raises:
            RuntimeError: If there is no process group.
            ValueError: If the columns or their numbers of ids differ between processes.
        """
        sum_counts([self], type(self).__name__, group)
        return self

    def observed_rows(self) -> Tensor:
        """Number of training rows that :meth:`observe` was told of; negative before it was. A scalar."""
        return self.get_buffer(name_in("counts", next(iter(self.cardinalities)))).sum()

    def _table(self, kind: str, column: str) -> Tensor:
        """The table of ``column`` with its rows of zeros: that of the unknown and those never seen in training."""
        # getattr, and not get_parameter, which refuses the plain tensors of torch.func.functional_call.
        table = F.pad(getattr(self, name_in(kind, column)), (0, 0, 1, 0))
        counts = self.get_buffer(name_in("counts", column))
        if reads_values(counts) and bool(counts.all()):
            return table  # every id is known
        return table * (counts != 0).unsqueeze(-1)

    def _known(self, column: str) -> Tensor:
        """False for the ids of ``column`` that were never seen in training."""
        return self.get_buffer(name_in("counts", column)) != 0

    def _new_table(self, kind: str, column: str, width: int, device: object, dtype: object) -> None:
        rows = self.cardinalities[column] - 1
        table = torch.empty(rows, width, device=device, dtype=dtype)  # type: ignore[call-overload]
        self.register_parameter(name_in(kind, column), nn.Parameter(table))

    def _tables(self, kind: str, columns: Sequence[str] | None = None) -> list[Tensor]:
        return [self._table(kind, column) for column in (self.cardinalities if columns is None else columns)]


def sum_counts(parts: Sequence[CategoryPart], owner: str, group: "dist.ProcessGroup | None") -> None:
    """Sum the counts of training rows of ``parts`` over the processes of ``group``, in place, in one message."""
    if not (dist.is_available() and dist.is_initialized()):
        raise RuntimeError("all_reduce needs a process group; call torch.distributed.init_process_group first")
    counts = [part.get_buffer(name_in("counts", column)) for part in parts for column in part.cardinalities]
    device = counts[0].device if counts else torch.device("cpu")
    fingerprint = zlib.crc32(repr([list(part.cardinalities.items()) for part in parts]).encode())
    mine = torch.tensor(fingerprint, device=device)
    theirs = [torch.empty_like(mine) for _ in range(dist.get_world_size(group))]
    dist.all_gather(theirs, mine, group=group)
    # Every rank sees the same fingerprints, so every rank raises and none is left waiting.
    if len({int(other) for other in theirs}) > 1:
        raise ValueError(f"all_reduce needs the same {owner} on every rank, but their columns or cardinalities differ")
    if not counts:
        return
    told = torch.stack([count.amax() >= 0 for count in counts]).long()
    total = torch.cat([told, *(count.clamp(min=0) for count in counts)])
    dist.all_reduce(total, group=group)
    told, *sums = torch.split(total, [len(counts), *(len(count) for count in counts)])
    for count, ranks, rows in zip(counts, told, sums, strict=True):
        count.copy_(torch.where(ranks > 0, rows, -1))


def name_in(kind: str, column: str) -> str:
    """Name of the parameter or buffer of a column; a name may not hold a dot, a column may."""
    return f"{kind}_{column.replace('%', '%25').replace('.', '%2E')}"
