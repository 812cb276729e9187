"""Contenders that do the same thing, timed in turns in one process, so that what disturbs one disturbs all."""

import dataclasses
import gc
import random
import statistics
import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch

_SHORTEST = 2e-3  # seconds that one sample lasts at least; shorter calls are repeated within it
_LONG = 0.5  # seconds from which one call before measuring is enough
_ROUNDS = 400  # at most
_RESAMPLES = 2_000


@dataclasses.dataclass(frozen=True)
class Reach:
    """What is aimed at: at most ``times`` the fastest of the contenders ``of``, in time or in memory.

    ``times=0.25`` is "at least four times faster".
    """

    times: float
    of: tuple[str, ...]
    what: str = "time"

    def __post_init__(self) -> None:
        if self.what not in {"time", "memory"}:
            raise ValueError(f"what must be 'time' or 'memory', got {self.what!r}")


@dataclasses.dataclass(frozen=True)
class Comparison:
    """One thing done in several ways.

    Args:
        case: What is done, and how much of it: ``"B=65,536, Q=3"``.
        contenders: A call of each way, by name; what is prepared beforehand is not timed.
        reaches: What is aimed at.
        ours: The contender that is reghead.
        seconds: How long to measure, all contenders together.
        rounds: How many rounds to measure at least, however long they last.
        memory: The contenders whose peak memory is measured too, in one more call each.
        why: A sentence for what is missed.
    """

    case: str
    contenders: Mapping[str, Callable[[], object]]
    reaches: Sequence[Reach] = ()
    ours: str = "reghead"
    seconds: float = 6.0
    rounds: int = 15
    memory: Sequence[str] = ()
    why: str = ""


@dataclasses.dataclass(frozen=True)
class Figure:
    """One number that is not a ratio of contenders' times, and what is aimed at.

    Args:
        case: What it is of.
        value: The number; ``low`` and ``high`` are its 95 % band where it has one.
        unit: Such as ``"ms"``.
        at_most: What is aimed at, if anything.
        how: How it was measured.
        why: A sentence for what is missed.
    """

    case: str
    value: float
    unit: str
    low: float | None = None
    high: float | None = None
    at_most: float | None = None
    how: str = ""
    why: str = ""


def interleave(
    contenders: Mapping[str, Callable[[], object]], seconds: float, rounds: int = 15, seed: int = 0
) -> dict[str, list[float]]:
    """Seconds of each call, in rounds: each round calls all contenders once, in an order drawn anew."""
    repeats = {name: _repeats(call) for name, call in contenders.items()}
    order, draw = list(contenders), random.Random(seed)
    times: dict[str, list[float]] = {name: [] for name in contenders}
    enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        end = time.perf_counter() + seconds
        for done in range(_ROUNDS):
            if done >= rounds and time.perf_counter() > end:
                break
            draw.shuffle(order)
            for name in order:
                call, count = contenders[name], repeats[name]
                start = time.perf_counter()
                for _ in range(count):
                    call()
                times[name].append((time.perf_counter() - start) / count)
    finally:
        if enabled:
            gc.enable()
    return times


def _repeats(call: Callable[[], object]) -> int:
    for _ in range(3):  # the first calls allocate, compile and fill caches
        start = time.perf_counter()
        call()
        once = time.perf_counter() - start
        if once > _LONG:
            break
    return max(1, round(_SHORTEST / once))


def ratio(ours: Sequence[float], other: Sequence[float], seed: int = 0) -> tuple[float, float, float]:
    """The ratio of the medians with its 95 % band, by a bootstrap over rounds, which both share."""
    pair = np.array([ours, other])
    draws = np.random.default_rng(seed).integers(0, pair.shape[1], (_RESAMPLES, pair.shape[1]))
    above, below = np.median(pair[:, draws], axis=2)
    low, high = np.quantile(above / below, [0.025, 0.975])
    return float(np.median(pair[0]) / np.median(pair[1])), float(low), float(high)


def spread(times: Sequence[float]) -> tuple[float, float, float]:
    """The median, and the quantiles between which nine in ten of the calls lie."""
    low, high = np.quantile(times, [0.05, 0.95])
    return statistics.median(times), float(low), float(high)


def torch_peak(call: Callable[[], object]) -> int:
    """Bytes that torch's CPU allocator held at most during a call, beyond what it held before.

    The meter is the allocator's own record of each allocation and release, as ``torch.profiler`` reports them; memory
    of other libraries is not in it.
    """
    call()
    gc.collect()
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        result = call()
    held = peak = 0
    events = profile.profiler.kineto_results.events()
    for event in sorted((e for e in events if e.name() == "[memory]"), key=lambda e: e.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    del result
    return peak


def resident_peak(call: Callable[[], object]) -> int:
    """Bytes that the process was resident with at most during a call, beyond what it was before (Linux only).

    The meter is the kernel's high-water mark, set back before the call; memory that the allocator still holds from
    before counts as none, so it is for calls of many megabytes in a process that has done nothing else.
    """
    gc.collect()
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")
    before = _status("VmRSS")
    result = call()
    peak = _status("VmHWM")
    del result
    return max(0, peak - before)


def _status(name: str) -> int:
    with open("/proc/self/status") as file:
        (line,) = (line for line in file if line.startswith(f"{name}:"))
    return int(line.split()[1]) * 1024
