r"""The one reduction rule of the library.

A cell *counts* unless its mask is False, its weight is 0, or its target is NaN under ``nan_policy="omit"``.
The mean is :math:`\sum w \ell / \sum w` over the cells that count, so integer weights equal repeated rows, and a
cell that does not count has exactly zero gradient. Nothing counted gives 0 with a zero gradient.
"""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from reghead._checks import check_choice, check_floating, check_prefix, check_tensor, reads_values
from reghead._typing import NanPolicy, Reduction


def widen(tensor: Tensor) -> Tensor:
    """``tensor`` in float32 or wider: a sum of 1e5 ones overflows in float16."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def shared_array(tensor: Tensor) -> NDArray[Any]:
    """The numbers of a tensor on the CPU, for NumPy to look at."""
    result: NDArray[Any] = tensor.detach().resolve_conj().resolve_neg().numpy()
    return result


def without_autocast(device_type: str) -> AbstractContextManager[Any]:
    """A context in which autocast narrows nothing."""
    # A device without autocast, such as meta, has none to turn off; a compiler need not trace the question.
    available = torch.compiler.is_compiling() or torch.amp.is_autocast_available(device_type)
    narrows = available and torch.is_autocast_enabled(device_type)
    return torch.autocast(device_type, enabled=False) if narrows else nullcontext()


def trailing(tensor: Tensor, ndim: int) -> Tensor:
    """``tensor`` with dimensions of size 1 appended up to ``ndim``: the prefix rule."""
    return tensor.reshape((*tensor.shape, *(1,) * (ndim - tensor.ndim)))


def counted_cells(target: Tensor, weight: Tensor | None, mask: Tensor | None, nan_policy: NanPolicy) -> Tensor | None:
    """Which cells of ``target`` count, in its shape; ``None`` where all do without looking."""
    check_choice("nan_policy", nan_policy, ("propagate", "omit"))
    counted = None
    if mask is not None:
        check_tensor("mask", mask)
        if mask.dtype != torch.bool:
            raise TypeError(f"mask must be a tensor of torch.bool, True where a target counts, got {mask.dtype}")
        check_prefix("mask", mask, "target", target.shape)
        counted = trailing(mask, target.ndim)
    if weight is not None:
        check_weight(weight, target)
        weighted = trailing(weight, target.ndim).bool()
        counted = weighted if counted is None else counted & weighted
    if nan_policy == "omit":
        present = _present(target)
        counted = present if counted is None else counted & present
    return None if counted is None else counted.expand(target.shape)


def _present(target: Tensor) -> Tensor:
    if type(target) is Tensor and target.dtype in (torch.float32, torch.float64) and reads_values(target):
        values = shared_array(target)
        return torch.from_numpy(np.asarray(np.equal(values, values)))  # in a tenth of the time of isnan
    return ~target.isnan()


def check_weight(weight: Tensor, target: Tensor) -> None:
    """Raise unless ``weight`` fits ``target``, and holds no negative numbers where they can be looked at."""
    check_prefix("weight", weight, "target", target.shape)
    if reads_values(weight) and weight.numel():
        least = weight.min()
        # The least is found several times as fast as any, and is NaN where one weight is: only then all are asked.
        if not bool(least >= 0) and bool((weight < 0).any()):
            raise ValueError(f"weight must be non-negative, got {weight[weight < 0].min().item():g}")


def residual(
    preds: Tensor, target: Tensor, weight: Tensor | None, mask: Tensor | None, nan_policy: NanPolicy
) -> tuple[Tensor, Tensor | None]:
    """``target - preds`` in float32 or wider, 0 where a cell does not count, and the cells that count.

    ``preds`` has the shape of ``target``, or that shape followed by more dimensions. The zero is put in before
    any nonlinearity: a ``where`` after a square still sends NaN into the gradient.
    """
    check_floating("preds", preds)
    check_floating("target", target)
    counted = counted_cells(target, weight, mask, nan_policy)
    error = trailing(widen(target), preds.ndim) - widen(preds)
    if counted is not None:
        counted = trailing(counted, preds.ndim)
        error = torch.where(counted, error, 0.0)
    return error, counted


def reduce(loss: Tensor, weight: Tensor | None, counted: Tensor | None, reduction: Reduction) -> Tensor:
    """Reduce ``loss`` by the library's rule; ``weight`` and ``counted`` follow the prefix rule."""
    check_choice("reduction", reduction, ("none", "mean", "sum"))
    loss = widen(loss)
    if weight is not None:
        weight = trailing(weight.to(loss.dtype), loss.ndim)
    weighted = loss if weight is None else loss * weight
    if counted is not None:
        counted = trailing(counted, loss.ndim)
        weighted = torch.where(counted, weighted, 0.0)
    if reduction == "none":
        return weighted
    total = weighted.sum()
    if reduction == "sum":
        return total
    if counted is None and weight is None:
        return total / max(loss.numel(), 1)
    share = torch.ones((), dtype=loss.dtype, device=loss.device) if weight is None else weight
    if counted is not None:
        share = torch.where(counted, share, 0.0)
    denominator = share.expand(loss.shape).sum()
    return total / torch.where(denominator == 0, 1.0, denominator)
