"""Training rows as tensors: in chunks, shared between processes, and drawn in batches."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, Self

import torch
from torch import Tensor

from reghead._typing import Categories
from reghead.estimators._processes import Processes


class Rows(NamedTuple):
    """Rows of the data, all on one device."""

    x: Tensor  # (B, F)
    categories: Categories  # column -> ids (B,)
    target: Tensor  # (B, D); z in training, what the score wants in validation
    weight: Tensor | None = None  # (B,)

    def take(self, index: Tensor | slice) -> "Rows":
        """The rows of ``index``."""
        weight = None if self.weight is None else _take(self.weight, index)
        return Rows(_take(self.x, index), take_ids(self.categories, index), _take(self.target, index), weight)


class Chunks(Protocol):
    """A sequence of rows, which may be read anew each time."""

    def __getitem__(self, index: int, /) -> Rows: ...

    def __iter__(self) -> Iterator[Rows]: ...


@dataclass(frozen=True)
class Data:
    """All rows, in chunks that need not be in memory at once.

    Args:
        chunks: The rows of every chunk that this process holds.
        sizes: How many rows each chunk has over all processes.
    """

    chunks: Chunks
    sizes: Sequence[int]

    @classmethod
    def of(cls, *chunks: Rows) -> Self:
        """Rows in memory, all of them this process's."""
        return cls(chunks, [len(rows.x) for rows in chunks])

    def batches(self, batch_size: int, processes: Processes, generator: torch.Generator) -> Iterator[Rows]:
        """This process's part of every batch, chunk by chunk; chunks and the rows in them are shuffled.

        A chunk that fits in one batch is one, in the given order. Every process draws the same batches, so that the
        training is the same however many there are.
        """
        order = torch.randperm(len(self.sizes), generator=generator).tolist() if len(self.sizes) > 1 else [0]
        for chunk in order:
            rows, size = self.chunks[chunk], self.sizes[chunk]
            if 0 < size <= batch_size:
                yield rows
                continue
            for index in torch.split(torch.randperm(size, generator=generator), batch_size) if size else ():
                yield rows.take(processes.mine(index).to(rows.x.device))


class Lazy:
    """Chunks that are made anew each time.

    Args:
        size: How many there are.
        make: From a chunk's position to its rows.
    """

    def __init__(self, size: int, make: Callable[[int], Rows]) -> None:
        self._size, self._make = size, make

    def __getitem__(self, index: int, /) -> Rows:
        return self._make(index)

    def __iter__(self) -> Iterator[Rows]:
        return map(self._make, range(self._size))


def take_ids(categories: Categories, index: Tensor | slice) -> dict[str, Tensor]:
    """The ids of the rows of ``index``."""
    return {column: _take(ids, index) for column, ids in categories.items()}


def _take(tensor: Tensor, index: Tensor | slice) -> Tensor:
    # Indexing by a tensor takes five times as long as index_select.
    return tensor[index] if isinstance(index, slice) else tensor.index_select(0, index)
