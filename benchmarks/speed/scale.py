"""How cost grows: the slope of log time on log size, over a geometric sweep, for each size that a user chooses."""

import gc
import time
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch

from benchmarks.speed._measure import Figure
from benchmarks.speed._subject import main
from reghead import CategoryNormalizer, PinballLoss, RegressionHead
from reghead.categories import CategoryEncoder

TITLE = "How cost grows"
_ROUNDS, _RESAMPLES = 9, 2_000


def exponent(times: Sequence[Sequence[float]], sizes: Sequence[int]) -> tuple[float, float, float]:
    """The slope of log median on log size, with its 95 % band by a bootstrap over rounds. ``times``: size by round."""
    taken, x = np.log(np.array(times)), np.log(np.array(sizes, dtype=float))
    draws = np.random.default_rng(0).integers(0, taken.shape[1], (_RESAMPLES, taken.shape[1]))
    medians = np.median(taken[:, draws], axis=2)  # (sizes, resamples)
    slopes = np.polyfit(x, medians, 1)[0]
    low, high = np.quantile(slopes, [0.025, 0.975])
    return float(np.polyfit(x, np.median(taken, axis=1), 1)[0]), float(low), float(high)


def _sweep(case: str, sizes: Sequence[int], make: Callable[[int], Callable[[], object]]) -> Iterator[Figure]:
    """The sizes are measured in turns, so that what disturbs one disturbs all."""
    calls = [make(size) for size in sizes]
    for call in calls:
        call()
    times: list[list[float]] = [[] for _ in sizes]
    gc.collect()
    for _ in range(_ROUNDS):
        for call, taken in zip(calls, times, strict=True):
            start = time.perf_counter()
            call()
            taken.append(time.perf_counter() - start)
    value, low, high = exponent(times, sizes)
    swept = ", ".join(f"{size:,}: {np.median(taken) * 1e3:.3g} ms" for size, taken in zip(sizes, times, strict=True))
    yield Figure(case, value, "exponent", low, high, how=f"slope of log time on log size; medians {swept}")


def _normalizer(rows: int = 1_000_000, cells: int = 1_000, targets: int = 1) -> Callable[[], object]:
    generator = torch.Generator().manual_seed(0)
    ids = {"site": torch.randint(1, cells + 1, (rows,), generator=generator)}
    target = torch.randn(rows, targets, generator=generator, dtype=torch.float64)
    return lambda: CategoryNormalizer({"site": cells + 1}).fit(target, ids)(target, ids)


def _encoder(rows: int) -> Callable[[], object]:
    labels = [f"site-{i}" for i in range(1_000)]
    table = {"site": np.array(labels, dtype=object)[np.random.default_rng(0).integers(0, 1_000, rows)]}
    return lambda: CategoryEncoder(["site"]).fit_transform(table)


def _step(rows: int = 4_096, targets: int = 1, quantiles: int = 9, experts: int = 0) -> Callable[[], object]:
    """Forward and backward of a head with hidden layers, or experts in their place."""
    levels = [(i + 0.5) / quantiles for i in range(quantiles)]
    generator = torch.Generator().manual_seed(0)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        moe = {"num_experts": experts, "routing": ("site",)} if experts else None
        head = RegressionHead(64, targets, (64, 32), cardinalities={"site": 101}, quantiles=levels, moe=moe)
    loss = PinballLoss(levels)
    x, target = torch.randn(rows, 64, generator=generator), torch.randn(rows, targets, generator=generator)
    ids = {"site": torch.randint(1, 101, (rows,), generator=generator)}

    def call() -> None:
        head.zero_grad()
        loss(head(x, ids), target).backward()

    return call


def measure() -> Iterator[Figure]:
    rows = [10**5, 10**5 * 4, 10**5 * 16, 10**5 * 64]
    yield from _sweep("normalizer: rows, at 1,000 cells", rows, lambda n: _normalizer(rows=n))
    yield from _sweep("normalizer: cells, at 1e6 rows", [10**k for k in range(1, 6)], lambda n: _normalizer(cells=n))
    yield from _sweep("normalizer: targets, at 1e6 rows", [1, 2, 4, 8, 16], lambda n: _normalizer(targets=n))
    yield from _sweep("label encoding: rows, at 1,000 labels", rows, _encoder)
    yield from _sweep("head, forward and backward: rows", [4**k for k in range(5, 10)], lambda n: _step(rows=n))
    yield from _sweep("head and loss: targets, with 9 quantiles", [1, 4, 16, 64], lambda n: _step(targets=n))
    yield from _sweep("head and loss: quantiles, 4,096 rows", [3, 9, 27, 81, 243], lambda n: _step(quantiles=n))
    yield from _sweep("soft mixture: experts, 4,096 rows", [4, 8, 16, 32, 64], lambda n: _step(experts=n))


if __name__ == "__main__":
    main("scale", TITLE, measure)
