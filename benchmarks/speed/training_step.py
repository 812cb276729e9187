"""A whole training step: forward, loss, backward and a fused Adam, where calls cost more than arithmetic."""

import statistics
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import nn

from benchmarks.speed._layers import mlp
from benchmarks.speed._measure import Comparison, Figure, Reach, interleave
from benchmarks.speed._subject import main
from reghead import RegressionHead

TITLE = "Training step with a fused Adam"
_CARDINALITIES = {"location": 8, "season": 4}
_EQUAL = "nn.Sequential of equal FLOPs"
_WHY = {
    "MLP": "",
    "FiLM of two columns": (
        "Tables of two columns are padded, joined, projected and gathered: some fifty small operations each way, which"
        " outnumber those of the network; compiled they are fused."
    ),
    "16 experts": "The router and its checks are some thirty small operations forward, which a plain network has not.",
}


def _step(model: nn.Module, inputs: Sequence[object], target: torch.Tensor) -> Callable[[], object]:
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, fused=True)

    def step() -> None:
        optimizer.zero_grad()
        nn.functional.mse_loss(model(*inputs), target).backward()
        optimizer.step()

    return step


def _heads() -> Iterator[tuple[str, RegressionHead, tuple[int, ...]]]:
    yield "MLP", RegressionHead(128, 1, (64, 32)), (128, 64, 32, 1)
    film = RegressionHead(128, 1, (64, 32), cardinalities=_CARDINALITIES, film=tuple(_CARDINALITIES))
    yield "FiLM of two columns", film, (128, 64, 32, 1)
    routed = {"num_experts": 16, "routing": ("location",)}
    yield "16 experts", RegressionHead(128, 1, (64, 32), cardinalities=_CARDINALITIES, moe=routed), (128, 1024, 32, 1)


def _overhead() -> Figure:
    """What a head adds to its own layers called one after the other."""
    x = torch.randn(32, 128)
    head, plain = RegressionHead(128, 1, (64, 32)), mlp(128, 64, 32, 1)
    taken = np.array(list(interleave({"head": lambda: head(x), "plain": lambda: plain(x)}, 6.0).values())) * 1e6
    drawn = np.random.default_rng(0).integers(0, taken.shape[1], (2_000, taken.shape[1]))
    ours, other = np.median(taken[:, drawn], axis=2)
    low, high = np.quantile(ours - other, [0.025, 0.975])
    value = statistics.median(taken[0]) - statistics.median(taken[1])
    how = "difference of the medians of forward calls, B=32, 128 -> 64 -> 32 -> 1"
    return Figure("RegressionHead over nn.Sequential", value, "us", float(low), float(high), at_most=15.0, how=how)


def measure() -> Iterator[Comparison | Figure]:
    torch.manual_seed(0)
    for rows, times in ((32, 1.8), (256, 1.3)):
        x, target = torch.randn(rows, 128), torch.randn(rows, 1)
        categories = {column: torch.randint(n, (rows,)) for column, n in _CARDINALITIES.items()}
        for name, head, widths in _heads():
            contenders = {
                "reghead": _step(head, (x, categories), target),
                _EQUAL: _step(mlp(*widths), (x,), target),
            }
            yield Comparison(f"{name}, B={rows}", contenders, [Reach(times, (_EQUAL,))], seconds=5.0, why=_WHY[name])
    yield _overhead()


if __name__ == "__main__":
    main("training_step", TITLE, measure)
