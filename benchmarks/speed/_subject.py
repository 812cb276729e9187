"""One subject measured: a module that ends in ``main``, run by itself as ``python -m benchmarks.speed.pinball``."""

import argparse
import dataclasses
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from benchmarks.speed._measure import Comparison, Figure, interleave, ratio, spread, torch_peak


def measured(item: Comparison | Figure) -> dict[str, Any]:
    """What is written of a comparison or a figure."""
    if isinstance(item, Figure):
        holds = None if item.at_most is None else (item.value if item.low is None else item.low) <= item.at_most
        return {"kind": "figure", **dataclasses.asdict(item), "holds": holds}
    times = interleave(item.contenders, item.seconds, item.rounds)
    memory = {name: torch_peak(item.contenders[name]) for name in item.memory}
    medians = {name: spread(taken)[0] for name, taken in times.items()}
    reaches = []
    for reach in item.reaches:
        cost: dict[str, Any] = medians if reach.what == "time" else memory
        of = min((name for name in reach.of if name in cost), key=cost.__getitem__, default=None)
        if of is None:  # a peer that is not installed
            continue
        if reach.what == "time":
            value, low, high = ratio(times[item.ours], times[of])
        else:
            value = low = high = memory[item.ours] / memory[of]
        reaches.append(
            {"what": reach.what, "of": of, "at_most": reach.times, "value": value, "low": low, "high": high}
            | {"holds": low <= reach.times}
        )
    return {
        "kind": "comparison",
        "case": item.case,
        "ours": item.ours,
        "why": item.why,
        "contenders": {
            name: dict(zip(("median", "low", "high"), spread(taken), strict=True))
            | {"rounds": len(taken), "memory": memory.get(name)}
            for name, taken in times.items()
        },
        "reaches": reaches,
    }


def main(name: str, title: str, measure: Callable[[], Iterator[Comparison | Figure]]) -> None:
    """Measure in this process, as the command line says, and write the results as JSON.

    Args:
        name: The module, such as ``"pinball"``.
        title: A heading of the report.
        measure: Prepares one comparison after the other, so that no two are in memory.
    """
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.speed.{name}", description=title)
    parser.add_argument("--threads", type=int, default=1, help="of torch; set OMP_NUM_THREADS for the others")
    parser.add_argument("--quick", action="store_true", help="half a second a comparison: to try, not to report")
    parser.add_argument("--cases", default="", help="only those with this text in their name")
    parser.add_argument("--output", type=Path, help="a JSON file; the default is standard output")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    results = [measured(item) for item in _chosen(measure(), args.cases, args.quick)]
    text = json.dumps({"subject": name, "title": title, "threads": args.threads, "results": results}, indent=1)
    if args.output is None:
        sys.stdout.write(text + "\n")
    else:
        args.output.write_text(text + "\n")


def _chosen(items: Iterator[Comparison | Figure], text: str, quick: bool) -> Iterator[Comparison | Figure]:
    for item in items:
        if text in item.case:
            print(item.case, file=sys.stderr, flush=True)
            quickly = quick and isinstance(item, Comparison)
            yield dataclasses.replace(item, seconds=0.5, rounds=min(item.rounds, 5)) if quickly else item
