"""The processes that train together, or this one alone."""

from dataclasses import dataclass
from typing import Any

import torch.distributed as dist
from torch import Tensor


@dataclass(frozen=True)
class Processes:
    """Which of how many processes this is.

    Of n processes, the one of a rank holds every n-th row, beginning with the row of its rank.

    Args:
        rank: From 0.
        size: 1 is this process alone, which needs no process group.
    """

    rank: int = 0
    size: int = 1

    @property
    def share(self) -> slice:
        """The rows that this process holds."""
        return slice(self.rank, None, self.size)

    def mine(self, index: Tensor) -> Tensor:
        """Of rows numbered over all processes those that this one holds, numbered as it holds them."""
        return index if self.size == 1 else index[index % self.size == self.rank] // self.size

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum over all processes, in ``tensor`` itself."""
        if self.size > 1:
            dist.all_reduce(tensor)
        return tensor

    def gather(self, value: Any) -> list[Any]:
        """The values of all processes, on each of them."""
        if self.size == 1:
            return [value]
        gathered: list[Any] = [None] * self.size
        dist.all_gather_object(gathered, value)
        return gathered


ALONE = Processes()
