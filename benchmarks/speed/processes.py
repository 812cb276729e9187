"""Statistics of two processes (gloo) that hold half of the rows each, against one with all of them."""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from benchmarks.speed._measure import Figure
from benchmarks.speed._subject import main
from reghead import CategoryNormalizer

TITLE = "Statistics in two processes"
_ROWS, _CELLS, _ROUNDS = 10_000_000, (1_000, 100_000), 7
_BYTES = 8 * 5  # of a cell with one target: its key, count, mean, sum of squares and tail of the mean


def _rows(cells: int) -> tuple[Tensor, dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(1, cells + 1, (_ROWS,), generator=generator)
    return 1e3 + torch.randn(_ROWS, 1, generator=generator, dtype=torch.float64), {"site": ids}


def _state(normalizer: CategoryNormalizer) -> dict[str, Tensor]:
    table = normalizer.statistics()
    return {"count": table.count, "mean": table.mean, "location": table.location, "scale": table.scale}


def _worker(rank: int, folder: str) -> None:
    """Measure half of the rows, and agree with the other process."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2, timeout=timedelta(seconds=150)
    )
    results = {}
    for cells in _CELLS:
        target, categories = _rows(cells)
        half = slice(rank * _ROWS // 2, (rank + 1) * _ROWS // 2)
        mine, ids = target[half].clone(), {name: i[half].clone() for name, i in categories.items()}
        del target, categories
        taken, meeting = [], []
        for _ in range(_ROUNDS):
            dist.barrier()
            start = time.perf_counter()
            normalizer = CategoryNormalizer({"site": cells + 1}).partial_fit(mine, ids)
            dist.barrier()  # so that the meeting is not charged with waiting
            between = time.perf_counter()
            normalizer.all_reduce()
            taken.append(time.perf_counter() - start)
            meeting.append(time.perf_counter() - between)
        results[cells] = {"taken": taken, "meeting": meeting, "state": _state(normalizer)}
    torch.save(results, Path(folder) / f"{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


def measure() -> Iterator[Figure]:
    if torch.get_num_threads() != 1:
        return  # the two processes need a core each
    with tempfile.TemporaryDirectory() as folder:
        environment = os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
        command = [sys.executable, "-m", "benchmarks.speed.processes", "--worker"]
        ranks = [subprocess.Popen([*command, str(rank), folder], env=environment) for rank in range(2)]
        codes = [rank.wait(timeout=160) for rank in ranks]
        if any(codes):
            raise RuntimeError("a process has failed; its error is above")
        two = torch.load(Path(folder) / "0.pt", weights_only=True)
    for cells in _CELLS:
        target, categories = _rows(cells)
        taken = []
        for _ in range(_ROUNDS):
            start = time.perf_counter()
            normalizer = CategoryNormalizer({"site": cells + 1}).fit(target, categories)
            taken.append(time.perf_counter() - start)
        difference = max(
            float(((two[cells]["state"][name] - value) / value.abs().clamp(min=1e-300)).abs().max())
            for name, value in _state(normalizer).items()
        )
        case = f"1e7 rows, {cells:,} cells"
        yield Figure(
            f"largest relative difference, {case}",
            difference,
            "",
            at_most=1e-12,
            how="of counts, means, locations and scales, to one process with all rows",
        )
        yield Figure(
            f"speed-up by two processes, {case}",
            statistics.median(taken) / statistics.median(two[cells]["taken"]),
            "x",
            how=f"one process over two, on {os.cpu_count()} cores, medians of {_ROUNDS}, exchange included",
        )
        yield Figure(
            f"exchange of the statistics, {case}",
            statistics.median(two[cells]["meeting"]) * 1e3,
            "ms",
            how="all_reduce after a barrier, with the merge and the estimates of all cells",
        )
        yield Figure(
            f"volume of the exchange, {case}",
            _BYTES * cells,
            "bytes a process",
            how="worked out: key, count, mean, sum of squares and tail of each cell, 8 bytes each, sent to every other",
        )


if __name__ == "__main__":
    if "--worker" in sys.argv:
        _worker(int(sys.argv[-2]), sys.argv[-1])
    else:
        main("processes", TITLE, measure)
