"""One of two processes that train every module together: by DDP, and by FSDP2."""

import traceback
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.utils._pytree import tree_map

Job = tuple[str, nn.Module, Any]
"""Name, module and a batch of an even number of rows."""


def objective(out: Tensor) -> Tensor:
    """Of a batch the mean over its halves."""
    return out.square().mean() if out.ndim else out


def gradients(module: nn.Module) -> dict[str, Tensor]:
    full = {}
    for name, parameter in module.named_parameters():
        if parameter.grad is not None:
            grad: Any = parameter.grad
            full[name.removeprefix("module.")] = grad.full_tensor() if hasattr(grad, "full_tensor") else grad
    return full


def alone(module: nn.Module, inputs: Any) -> tuple[Tensor, dict[str, Tensor]]:
    """Output and gradients in one process with the whole batch."""
    module.zero_grad()
    out = module(*inputs)
    if out.requires_grad:
        objective(out).backward()
    found = {name: grad.clone() for name, grad in gradients(module).items()}
    module.zero_grad()
    return out.detach(), found


def together(module: nn.Module, inputs: Any, rank: int) -> dict[str, Tensor]:
    half = tree_map(lambda t: t[rank::2].contiguous(), inputs)
    objective(module(*half)).backward()
    return gradients(module)


def ddp(module: nn.Module, inputs: Any, rank: int) -> dict[str, Tensor]:
    return together(DistributedDataParallel(module), inputs, rank)


def fsdp2(module: nn.Module, inputs: Any, rank: int) -> dict[str, Tensor]:
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    fully_shard(module, mesh=init_device_mesh("cpu", (2,)))
    found = together(module, inputs, rank)
    whole = get_model_state_dict(module, options=StateDictOptions(full_state_dict=True))
    for name, tensor in before.items():
        if rank == 0 and not torch.equal(torch.as_tensor(whole[name]).nan_to_num(), tensor.nan_to_num()):
            raise AssertionError(f"the gathered state_dict has another {name}")
    return found


def run(rank: int, jobs: Sequence[Job], folder: str) -> None:
    """Answer, for every module that arrived, what came out and what gradients there were."""
    torch.set_num_threads(1)
    store = f"file://{folder}/store"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=2, timeout=timedelta(seconds=60))
    answers: dict[str, dict[str, Any]] = {}
    ways: dict[str, Callable[..., dict[str, Tensor]]] = {"DDP": ddp, "FSDP2": fsdp2}
    for name, module, inputs in jobs:
        out, expected = alone(module, inputs)
        answers[name] = {"spawn": out, "alone": expected}
        for way, train in ways.items():
            if expected:
                try:
                    answers[name][way] = train(module, inputs, rank)
                except Exception:
                    answers[name][way] = traceback.format_exc()
                module.zero_grad()
    torch.save(answers, Path(folder) / f"{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()
