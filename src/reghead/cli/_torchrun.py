"""The processes that ``torchrun`` started."""

import contextlib
import os
from collections.abc import Iterator
from typing import Any

import torch
import torch.distributed as dist

from reghead.cli._errors import ToldElsewhereError
from reghead.estimators._processes import ALONE, Processes


@contextlib.contextmanager
def joined(device: torch.device) -> Iterator[tuple[Processes, torch.device]]:
    """The processes that ``torchrun`` started, or this one alone; an error is told by the first that has one."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield ALONE, device
        return
    if device.type == "cuda" and device.index is None:
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
        torch.cuda.set_device(device)
    from torch.distributed.rendezvous import rendezvous  # not in every build

    store, rank, size = next(rendezvous("env://"))
    try:
        # Fails if another process has failed before this one met it.
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo", store=store, rank=rank, world_size=size)
        yield Processes(rank, size), device
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt) and rank:
            raise  # the first process tells
        first = _is_first_to_fail(store)
        lost = error.__cause__ is not None and is_lost_connection(error.__cause__)
        if first is False or (first is None and not lost):
            raise ToldElsewhereError from error  # it has the same error, or lost the connection to the one that has
        if rank:  # with no store, the first process is gone: killed, perhaps, and never to say a word
            error.add_note(f"(process {rank})")
        raise
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def is_lost_connection(error: BaseException) -> bool:
    """Whether ``error`` is that of a process whose counterpart has gone: those of gloo and NCCL have no class."""
    signs = ("gloo", "NCCL", "Connection closed by peer", "Connection reset by peer")
    return isinstance(error, RuntimeError) and any(sign in str(error) for sign in signs)


def _is_first_to_fail(store: Any) -> bool | None:
    """None where the store is gone, with the process that held it."""
    try:
        return bool(store.add("reghead failed", 1) == 1)
    except RuntimeError:
        return None
