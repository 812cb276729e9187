"""What every layer with one row per category has in common."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from reghead._checks import check_cardinalities, check_ids
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

        Args:
            categories: Column -> ids of shape ``(*,)``. With several processes, those of all of them:
                DistributedDataParallel copies the counts of the first.
        """
        ids = check_ids(categories, self.cardinalities, type(self).__name__)
        for column, i in zip(self.cardinalities, ids, strict=True):
            counts = self.get_buffer(name_in("counts", column))
            counts.clamp_(min=0)
            counts += torch.bincount(i.reshape(-1), minlength=counts.numel())

    def _table(self, kind: str, column: str) -> Tensor:
        """The table of ``column`` with its rows of zeros: that of the unknown and those never seen in training."""
        # getattr, and not get_parameter, which refuses the plain tensors of torch.func.functional_call.
        table = F.pad(getattr(self, name_in(kind, column)), (0, 0, 1, 0))
        return table * self._known(column).unsqueeze(-1)

    def _known(self, column: str) -> Tensor:
        """False for the ids of ``column`` that were never seen in training."""
        return self.get_buffer(name_in("counts", column)) != 0

    def _new_table(self, kind: str, column: str, width: int, device: object, dtype: object) -> None:
        rows = self.cardinalities[column] - 1
        table = torch.empty(rows, width, device=device, dtype=dtype)  # type: ignore[call-overload]
        self.register_parameter(name_in(kind, column), nn.Parameter(table))

    def _tables(self, kind: str, columns: Sequence[str] | None = None) -> list[Tensor]:
        return [self._table(kind, column) for column in (self.cardinalities if columns is None else columns)]


def name_in(kind: str, column: str) -> str:
    """Name of the parameter or buffer of a column; a name may not hold a dot, a column may."""
    return f"{kind}_{column.replace('%', '%25').replace('.', '%2E')}"
