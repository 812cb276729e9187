"""What the scripts that time layers have in common."""

import itertools
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn


def forward_backward(call: Callable[[], Tensor], inputs: Iterable[Tensor], seed: int = 1) -> Callable[[], object]:
    """A call of ``call`` and of the gradients of ``inputs``, which are not accumulated anywhere."""
    wanted = [tensor for tensor in inputs if tensor.requires_grad]
    grads: list[Tensor] = []

    def step() -> object:
        out = call()
        if not grads:
            grads.append(torch.randn(out.shape, generator=torch.Generator().manual_seed(seed)))
        return torch.autograd.grad(out, wanted, grads[0])

    return step


def mlp(*widths: int) -> nn.Sequential:
    """Linear layers with a ReLU between every two."""
    layers: list[nn.Module] = []
    for before, after in itertools.pairwise(widths):
        layers += [nn.Linear(before, after), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def compiles() -> bool:
    """Whether ``torch.compile`` has a compiler to work with."""
    try:
        torch.compile(lambda x: x + 1.0)(torch.zeros(2))
    except Exception:  # whatever is missing: a compiler, its headers, OpenMP
        return False
    return True
