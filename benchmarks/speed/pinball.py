"""The pinball loss, forward and backward."""

import functools
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.speed._measure import Comparison, Reach
from benchmarks.speed._subject import main
from reghead.functional import pinball_loss

TITLE = "Pinball loss, forward and backward"
LIMIT = "limit: C++, fused"
REACHES = {3: (1.5, 4), 9: (3, 7), 99: (4, 9)}
WHY = {
    3: "Rows of three cells are short for torch: it takes as long to set each target beside its three predictions as "
    "the whole kernel does, and the calls of autograd and the checks add to that.",
    9: "The kernel keeps sixteen targets in a register where torch sets each target beside its predictions in memory.",
    99: "Block by block in the cache, the slopes are still written once, and read once in the backward pass.",
}


@functools.cache
def kernel() -> Any:
    """The compiled limit, or ``None`` where there is no compiler."""
    if shutil.which("g++") is None or shutil.which("ninja") is None:
        return None
    from torch.utils import cpp_extension

    source = Path(__file__).with_suffix(".cpp")
    return cpp_extension.load("reghead_pinball_limit", [str(source)], extra_cflags=["-O3", "-march=native"])


def broadcast(preds: Tensor, target: Tensor, levels: Tensor) -> Tensor:
    """As AAM's ``compute_pinball_loss``."""
    error = target.unsqueeze(-1) - preds
    return torch.max(levels * error, (levels - 1) * error).mean()


COMPILED = torch.compile(broadcast)  # at its first call


def by_column(preds: Tensor, target: Tensor, levels: list[float]) -> Tensor:
    """As the loss is mostly written: a loop over the levels."""
    losses = []
    for q, level in enumerate(levels):
        error = target - preds[..., q]
        losses.append(torch.max((level - 1) * error, level * error))
    return torch.stack(losses, -1).mean()


def peers(preds: Tensor, target: Tensor, levels: list[float]) -> Iterator[tuple[str, Callable[[], Tensor]]]:
    # The peers have one target each: predictions (B, 1, Q) are theirs of one time step.
    try:
        from pytorch_forecasting.metrics import QuantileLoss
    except ImportError:
        pass
    else:
        theirs = QuantileLoss(levels)
        yield "pytorch-forecasting", lambda: theirs.loss(preds, target).mean()
    try:
        from neuralforecast.losses.pytorch import MQLoss
    except ImportError:
        pass
    else:
        mq = MQLoss(quantiles=levels)
        yield "neuralforecast", lambda: mq(y=target.unsqueeze(-1), y_hat=preds.unsqueeze(2))


def measure() -> Iterator[Comparison]:
    rng = torch.Generator().manual_seed(0)
    for number in (3, 9, 99):
        preds = torch.randn(65_536, 1, number, generator=rng).requires_grad_()
        target = torch.randn(65_536, 1, generator=rng)
        weight = torch.rand(65_536, generator=rng)
        levels = [(k + 1) / (number + 1) for k in range(number)]
        row = torch.tensor(levels)

        def gradient(loss: Callable[[], Tensor], preds: Tensor = preds) -> Callable[[], object]:
            return lambda: torch.autograd.grad(loss(), preds)

        ours = gradient(lambda p=preds, t=target, q=levels: pinball_loss(p, t, q))
        contenders = {"reghead": ours}
        if (limit := kernel()) is not None:
            flat, column = preds.detach()[:, 0], target[:, 0]
            contenders[LIMIT] = lambda p=flat, t=column, q=row: limit.pinball(p, t, q)
        contenders["AAM: broadcast"] = gradient(lambda p=preds, t=target, q=row: broadcast(p, t, q))
        contenders["loop over columns"] = gradient(lambda p=preds, t=target, q=levels: by_column(p, t, q))
        if limit is not None:
            contenders["broadcast, torch.compile"] = gradient(lambda p=preds, t=target, q=row: COMPILED(p, t, q))
        contenders |= {name: gradient(loss) for name, loss in peers(preds, target, levels)}
        of_limit, of_broadcast = REACHES[number]
        eager = [name for name in contenders if name not in ("reghead", LIMIT, "broadcast, torch.compile")]
        yield Comparison(
            f"B=65,536, Q={number}",
            contenders,
            [Reach(of_limit, (LIMIT,)), Reach(1 / of_broadcast, ("AAM: broadcast",)), Reach(1, tuple(eager))],
            seconds=6 if number < 99 else 20,
            why=WHY[number],
        )
        copy = "a copy of the predictions"
        yield Comparison(
            f"B=65,536, Q={number}, memory",
            {"reghead": ours, copy: preds.detach().clone},
            [Reach(2.2, (copy,), "memory")],
            seconds=1,
            memory=("reghead", copy),
        )
        yield Comparison(
            f"B=65,536, Q={number}, weighted by row, memory",
            {
                "reghead": gradient(lambda p=preds, t=target, q=levels, w=weight: pinball_loss(p, t, q, weight=w)),
                copy: preds.detach().clone,
            },
            [Reach(2.2, (copy,), "memory")],
            seconds=1,
            memory=("reghead", copy),
        )


if __name__ == "__main__":
    main("pinball", TITLE, measure)
