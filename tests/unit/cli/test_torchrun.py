"""Processes that ``torchrun`` started: one of them tells what went wrong."""

import importlib

import pytest
import torch
import torch.distributed as dist

from reghead.cli._errors import ToldElsewhereError
from reghead.cli._torchrun import joined

pytestmark = pytest.mark.skipif(not dist.is_available(), reason="needs torch.distributed")


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> "dist.HashStore":
    """That of two processes, of which the other can't be reached."""
    store = dist.HashStore()

    def unreachable(*_: object, **__: object) -> None:
        raise RuntimeError("connection closed by peer")

    monkeypatch.setenv("WORLD_SIZE", "2")
    # The package has a function of the module's name.
    meeting = importlib.import_module("torch.distributed.rendezvous")
    monkeypatch.setattr(meeting, "rendezvous", lambda _: iter([(store, 0, 2)]))
    monkeypatch.setattr(dist, "init_process_group", unreachable)
    return store


def test_the_failure_to_meet_is_told(store: "dist.HashStore") -> None:
    with pytest.raises(RuntimeError, match="connection closed"), joined(torch.device("cpu")):
        raise AssertionError("never met")


def test_the_loss_of_a_process_that_has_told_why_is_not_told_again(store: "dist.HashStore") -> None:
    """The other one may fail and leave while this one still waits to meet it."""
    store.add("reghead failed", 1)
    with pytest.raises(ToldElsewhereError), joined(torch.device("cpu")):
        raise AssertionError("never met")
