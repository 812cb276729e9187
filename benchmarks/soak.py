"""``python -m benchmarks.soak``: many training steps, and whether memory, time, objects or warnings grow with them.

A head with FiLM, experts and per-category scales learns quantiles from batches of changing sizes, whose categories are
known, new and missing; its normalizer takes every batch in.
"""

import argparse
import contextlib
import gc
import os
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from reghead import CategoryNormalizer, PinballLoss, RegressionHead
from reghead.normalization import MixedEffects

LEVELS = (0.1, 0.5, 0.9)
SIZES = {"location": 12, "season": 5}
SAMPLES = 100

# What a step may leave behind, of 1e5: 100 bytes would be a tenth of a megabyte each thousand steps.
BYTES_PER_STEP = 100.0
SLOWER = 1.15
WARNINGS = 10
OBJECTS = 200


def resident() -> int:
    """Bytes of this process in memory."""
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@dataclass
class Report:
    """What a soak found. Memory and objects are sampled, and judged over the second half."""

    steps: int
    seconds: np.ndarray
    at: np.ndarray
    memory: np.ndarray
    objects: np.ndarray
    warned: int
    loss: tuple[float, float]

    @property
    def bytes_per_step(self) -> float:
        """Slope of the resident memory over the second half."""
        half = len(self.at) // 2
        return float(np.polyfit(self.at[half:], self.memory[half:], 1)[0])

    @property
    def slower(self) -> float:
        """Median step of the last tenth over that of the first; the very first steps warm up."""
        tenth = max(1, self.steps // 10)
        return float(np.median(self.seconds[-tenth:]) / np.median(self.seconds[min(100, tenth // 2) : tenth]))

    @property
    def new_objects(self) -> int:
        """Python objects at the end less those at the middle."""
        return int(self.objects[-1] - self.objects[len(self.objects) // 2])

    def rows(self) -> list[tuple[str, str, str, bool]]:
        """What, figure, bound, and whether it holds."""
        memory = abs(self.memory[-1] - self.memory[len(self.memory) // 2]) / 2**20
        return [
            ("resident memory, slope", f"{self.bytes_per_step:.1f} B/step", f"<= {BYTES_PER_STEP:.0f}", self.is_flat),
            ("resident memory, second half", f"{memory:.1f} MiB", "", True),
            ("median step, last tenth / first", f"{self.slower:.3f}", f"<= {SLOWER}", self.slower <= SLOWER),
            ("median step", f"{1e3 * np.median(self.seconds):.2f} ms", "", True),
            ("new Python objects, second half", f"{self.new_objects}", f"<= {OBJECTS}", self.new_objects <= OBJECTS),
            ("warnings", f"{self.warned}", f"<= {WARNINGS}", self.warned <= WARNINGS),
            ("loss, first and last tenth", "{:.3f} -> {:.3f}".format(*self.loss), "less", self.loss[1] < self.loss[0]),
        ]

    @property
    def is_flat(self) -> bool:
        """Whether memory stays: by its slope, or within two megabytes, which an allocator moves by itself."""
        half = self.memory[len(self.memory) // 2 :]
        return self.bytes_per_step <= BYTES_PER_STEP or int(half.max() - half.min()) <= 2**21


class Stream:
    """Batches without an end: 1 to 64 rows; a tenth of the ids is missing, and a location appears late."""

    def __init__(self, seed: int = 0) -> None:
        self.rng = torch.Generator().manual_seed(seed)

    def draw(self, step: int, steps: int) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        rows = int(torch.randint(1, 65, (), generator=self.rng))
        # The last two locations have no rows in the first third.
        known = SIZES["location"] - (2 if step < steps / 3 else 0)
        ids = {
            "location": torch.randint(1, known, (rows,), generator=self.rng),
            "season": torch.randint(1, SIZES["season"], (rows,), generator=self.rng),
        }
        for column, values in ids.items():
            missing = torch.rand(rows, generator=self.rng) < 0.1
            ids[column] = torch.where(missing, 0, values)
        x = torch.randn(rows, 4, generator=self.rng)
        noise = torch.randn(rows, 1, generator=self.rng)
        y = 100 + ids["location"].unsqueeze(-1) * (1 + 0.1 * x[:, :1]) + 0.5 * noise
        return x, ids, y


def make_step() -> tuple[Callable[[Tensor, dict[str, Tensor], Tensor], float], Callable[[], None]]:
    """A training step, and what is done now and then beside it: saved, loaded, refitted."""
    torch.manual_seed(0)
    head = RegressionHead(
        4,
        1,
        (16, 8),
        cardinalities=SIZES,
        embedding_dim=4,
        film=["season"],
        moe={"num_experts": 3, "routing": ["location"], "load_balancing_weight": 0.01},
        scaler=["location"],
        wide=["location", "season"],
        quantiles=LEVELS,
        unknown_dropout=0.1,
        dropout=0.1,
    ).train()
    normalizer = CategoryNormalizer(SIZES, shrinkage="empirical_bayes")
    loss = PinballLoss(LEVELS)
    optimizer = torch.optim.Adam(head.parameters(), lr=1e-3)

    def step(x: Tensor, ids: dict[str, Tensor], y: Tensor) -> float:
        normalizer.partial_fit(y, ids)
        head.observe(ids)
        optimizer.zero_grad()
        preds, aux = head(x, ids, return_aux=True)
        total = loss(preds, normalizer(y, ids)) + sum(aux.losses.values())
        total.backward()
        optimizer.step()
        return total.item()

    def checkpoint() -> None:
        RegressionHead.from_state_dict(head.state_dict()).eval()
        again = CategoryNormalizer.from_state_dict(normalizer.state_dict())
        ids = {column: torch.arange(1, size) for column, size in SIZES.items()}
        small = {column: values[:4] for column, values in ids.items()}
        y = torch.arange(4.0).unsqueeze(-1)
        MixedEffects(SIZES).fit(y, small)
        again.inverse(torch.zeros(4, 1, 3), small, output_dim=-2)

    return step, checkpoint


def soak(steps: int) -> Report:
    """Train for that many steps, or until interrupted, and report."""
    stream, (step, checkpoint) = Stream(), make_step()
    every = max(1, steps // SAMPLES)
    seconds, losses = np.empty(steps), np.empty(steps)
    at, memory, objects = [], [], []
    done = count = 0

    def counting(*args: object, **kwargs: object) -> None:
        nonlocal count
        count += 1

    with warnings.catch_warnings(), contextlib.suppress(KeyboardInterrupt):
        warnings.simplefilter("always")
        warnings.showwarning = counting  # restored with the filters
        for i in range(steps):
            batch = stream.draw(i, steps)
            start = time.perf_counter()
            losses[i] = step(*batch)
            seconds[i] = time.perf_counter() - start
            if i % every == every - 1:
                checkpoint()
                gc.collect()
                at.append(i)
                memory.append(resident())
                objects.append(len(gc.get_objects()))
            done = i + 1
    tenth = max(1, done // 10)
    ends = (float(losses[:tenth].mean()), float(losses[done - tenth : done].mean()))
    return Report(done, seconds[:done], np.array(at), np.array(memory), np.array(objects), count, ends)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.soak", description=__doc__)
    parser.add_argument("--steps", type=int, default=100_000)
    args = parser.parse_args()
    torch.set_num_threads(1)
    report = soak(args.steps)
    print(f"{report.steps:,} steps\n")
    print("| | found | bound | |\n| --- | --- | --- | --- |")
    for what, found, bound, holds in report.rows():
        print(f"| {what} | {found} | {bound} | {'' if holds else 'MISSED'} |")
    sys.exit(not all(holds for *_, holds in report.rows()))


if __name__ == "__main__":
    main()
