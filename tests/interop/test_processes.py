"""Every module in two spawned processes: it arrives whole, and trains by DDP and by FSDP2 as in one process."""

import multiprocessing
import os
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.utils import parametrize
from torch.testing import assert_close

from _cases import CASES, Case
from interop._worker import run
from reghead.heads import RegressionHead

pytestmark = pytest.mark.skipif(not dist.is_available(), reason="torch was built without distributed")
Answers = dict[str, dict[str, Any]]
# Means of halves add up to the mean of the whole where each cell counts the same.
TRAINED = [case for case in CASES if any(True for _ in case.build().parameters())]


@pytest.fixture(scope="module")
def answers(tmp_path_factory: pytest.TempPathFactory) -> list[Answers]:
    """What both processes say of all modules, which travel to them as they are."""
    folder = tmp_path_factory.mktemp("pair")
    jobs = [(case.name, case.module(), case.batch(8)) for case in CASES]
    context = multiprocessing.get_context("spawn")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(os.environ, "GLOO_SOCKET_IFNAME", "lo")
        pair = [context.Process(target=run, args=(rank, jobs, str(folder))) for rank in range(2)]
        for process in pair:
            process.start()
    for process in pair:
        process.join(timeout=150)
        if process.is_alive():
            process.kill()
    assert [process.exitcode for process in pair] == [0, 0]
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_spawn(case: Case, answers: list[Answers]) -> None:
    with torch.no_grad():
        expected = case.module()(*case.batch(8))
    for answer in answers:
        assert_close(answer[case.name]["spawn"], expected, rtol=0, atol=0)


@pytest.mark.parametrize("way", ["DDP", "FSDP2"])
@pytest.mark.parametrize("case", TRAINED, ids=lambda case: case.name)
def test_two_processes_train_as_one(case: Case, way: str, answers: list[Answers]) -> None:
    for answer in answers:
        got, expected = answer[case.name][way], answer[case.name]["alone"]
        assert not isinstance(got, str), got
        assert got.keys() == expected.keys()
        for name, grad in expected.items():
            assert_close(got[name], grad, rtol=1e-4, atol=1e-5, msg=lambda text, name=name: f"{name}: {text}")
    assert any(grad.any() for grad in answers[0][case.name]["alone"].values())


def test_a_head_of_another_class_that_torch_made_of_it_says_what_it_is() -> None:
    """A parametrization replaces the class of a module, as sharding does; what is written must be read by the head."""
    head = RegressionHead(3, 2)
    parametrize.register_parametrization(head, "weight", nn.Identity())
    assert type(head).__name__ == "ParametrizedRegressionHead"
    description = head.get_extra_state()
    assert torch.equal(description, RegressionHead(3, 2).get_extra_state())
    head.set_extra_state(description)
