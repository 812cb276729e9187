"""A loss of its own for every column against one loss for all, forward and backward."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.speed._measure import Comparison, Reach
from benchmarks.speed._subject import main
from reghead.losses import PerOutputLoss

TITLE = "Per-output loss, forward and backward"
CELLS = 2**18
KINDS = ("mse", "mae", "huber", {"type": "asymmetric", "over_penalty": 2.0})


def by_column(preds: Tensor, target: Tensor) -> Tensor:
    """As it is mostly written: a loop over the columns."""
    losses = []
    for d in range(preds.shape[1]):
        error = preds[:, d] - target[:, d]
        if d % 4 == 0:
            losses.append(error.square().mean())
        elif d % 4 == 1:
            losses.append(error.abs().mean())
        elif d % 4 == 2:
            losses.append(F.huber_loss(preds[:, d], target[:, d]))
        else:
            losses.append(torch.where(error > 0, 2 * error.square(), error.square()).mean())
    return torch.stack(losses).mean()


def measure() -> Iterator[Comparison]:
    rng = torch.Generator().manual_seed(0)
    calls: dict[str, Callable[[], object]] = {}
    for columns in (4, 64, 512):
        preds = torch.randn(CELLS // columns, columns, generator=rng).requires_grad_()
        target = torch.randn(CELLS // columns, columns, generator=rng)
        loss = PerOutputLoss({d: KINDS[d % 4] for d in range(columns)}, outputs=[f"y{d}" for d in range(columns)])

        def gradient(loss: Callable[..., Tensor], p: Tensor = preds, t: Tensor = target) -> Callable[[], object]:
            return lambda: torch.autograd.grad(loss(p, t), p)

        calls[f"{columns} columns"] = gradient(loss)
        contenders = {"reghead": gradient(loss), "one mse_loss": gradient(F.mse_loss)}
        if columns < 512:
            contenders["loop over columns"] = gradient(by_column)
        yield Comparison(
            f"{columns} columns of 4 losses, {CELLS:,} cells",
            contenders,
            [Reach(2, ("one mse_loss",))],
            seconds=4,
            why="torch has one kernel forward and one backward for its squares; knots and penalties of columns are "
            "passes of their own.",
        )
    yield Comparison(
        f"the number of columns at {CELLS:,} cells",
        calls,
        [Reach(1.2, ("64 columns",))],
        ours="512 columns",
        seconds=4,
    )


if __name__ == "__main__":
    main("per_output", TITLE, measure)
