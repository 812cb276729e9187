"""``all_reduce`` of several ranks in one process: the ranks are threads."""

import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor


def all_reduce(parts: Sequence[Any], patch: pytest.MonkeyPatch) -> list[Any]:
    """Call ``all_reduce`` of one part per rank, all at once; what each returns, or the ValueError that it raises."""
    size = len(parts)
    barrier, rank, sent = threading.Barrier(size, timeout=20), threading.local(), {}

    def everyones(tensor: Tensor) -> list[Tensor]:
        sent[rank.number] = tensor.clone()
        barrier.wait()
        received = [sent[number] for number in range(size)]
        assert len({(t.shape, t.dtype) for t in received}) == 1, "a collective needs one shape on all ranks"
        barrier.wait()
        return received

    def all_gather(into: list[Tensor], tensor: Tensor, group: object) -> None:
        for place, received in zip(into, everyones(tensor), strict=True):
            place.copy_(received)

    def call(number: int) -> Any:
        rank.number = number
        try:
            return parts[number].all_reduce()
        except ValueError as error:
            return error

    patch.setattr(dist, "is_initialized", lambda: True)
    patch.setattr(dist, "get_world_size", lambda group: size)
    patch.setattr(dist, "all_gather", all_gather)
    patch.setattr(dist, "all_reduce", lambda tensor, group: tensor.copy_(torch.stack(everyones(tensor)).sum(0)))
    with ThreadPoolExecutor(size) as pool:
        return list(pool.map(call, range(size)))
