"""A mean and a standard deviation for each cell: fitted and taken off the target, in float64."""

import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping

import numpy as np
import numpy.typing as npt
import torch

from benchmarks.speed._measure import Comparison, Figure, Reach
from benchmarks.speed._subject import main
from reghead import CategoryNormalizer

TITLE = "Normalizing a target by category"
_MEMORY = """
import sys, torch
from benchmarks.speed._measure import resident_peak
from benchmarks.speed.normalizer import ids_and_target, reghead
rows, cells = map(int, sys.argv[1:])
reghead(*ids_and_target(1000, cells), cells)()
ids, target = ids_and_target(rows, cells)
print(resident_peak(reghead(ids, target, cells)) / (ids.nbytes + target.nbytes))
"""
FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]


def ids_and_target(rows: int, cells: int) -> tuple[IntArray, FloatArray]:
    """Ids from 1, each of them with two rows at least where there are so many, and a target that shifts with them."""
    rng = np.random.default_rng(0)
    ids = rng.integers(1, cells + 1, rows)
    forced = np.tile(np.arange(1, cells + 1), 2)[:rows]
    ids[: len(forced)] = forced
    return rng.permutation(ids), rng.standard_normal(rows) + 100.0


def reghead(ids: IntArray, target: FloatArray, cells: int) -> Callable[[], object]:
    """Fit and transform."""
    categories, column = {"site": torch.from_numpy(ids)}, torch.from_numpy(target).unsqueeze(1)

    def call() -> torch.Tensor:
        normalizer = CategoryNormalizer({"site": cells + 1}).fit(column, categories)
        z: torch.Tensor = normalizer(column, categories)
        return z

    return call


def chunks(ids: IntArray, target: FloatArray, cells: int, count: int) -> Callable[[], object]:
    """Fit only, in so many chunks; one is the fit of all rows at once."""
    parts = [
        (torch.from_numpy(y).unsqueeze(1), {"site": torch.from_numpy(i)})
        for y, i in zip(np.array_split(target, count), np.array_split(ids, count), strict=True)
    ]

    def call() -> object:
        normalizer = CategoryNormalizer({"site": cells + 1})
        for column, categories in parts:
            normalizer.partial_fit(column, categories)
        return normalizer

    return call


def _bincount(ids: IntArray, target: FloatArray, cells: int) -> FloatArray:
    """The limit: two passes, no checks, no missing values, no cells of one row."""
    count = np.bincount(ids, minlength=cells + 1)
    mean = np.bincount(ids, target, cells + 1) / np.maximum(count, 1)
    deviation = target - mean[ids]
    variance = np.bincount(ids, deviation * deviation, cells + 1) / np.maximum(count - 1, 1)
    scaled: FloatArray = deviation / np.sqrt(variance)[ids]
    return scaled


def _loop_of_masks(ids: IntArray, target: FloatArray) -> FloatArray:
    """As AAM has it: a mask over all rows for each cell."""
    z = np.empty_like(target)
    for key in np.unique(ids):
        here = ids == key
        z[here] = (target[here] - target[here].mean()) / target[here].std()
    return z


def peers(ids: IntArray, target: FloatArray) -> dict[str, Callable[[], object]]:
    """Those that are installed."""
    found: dict[str, Callable[[], object]] = {}
    try:
        import pandas as pd

        frame = pd.DataFrame({"site": ids, "y": target})

        def with_pandas() -> object:
            groups = frame.groupby("site")["y"]
            return (frame["y"] - groups.transform("mean")) / groups.transform("std")

        found["pandas groupby.transform"] = with_pandas
    except ImportError:
        pass
    try:
        import polars as pl

        table = pl.DataFrame({"site": ids, "y": target})
        y = pl.col("y")
        found["polars over"] = lambda: table.select((y - y.mean().over("site")) / y.std().over("site"))
        moments = [y.mean().alias("mean"), y.std().alias("std")]
        found["polars group_by, join"] = lambda: table.join(
            table.group_by("site").agg(moments), on="site", how="left", maintain_order="left"
        ).select((y - pl.col("mean")) / pl.col("std"))
    except ImportError:
        pass
    try:
        import pandas as pd
        from pytorch_forecasting.data.encoders import GroupNormalizer

        column, names = pd.Series(target), pd.DataFrame({"site": ids.astype(str)})
        found["pytorch-forecasting"] = lambda: (
            GroupNormalizer(groups=["site"]).fit(column, names).transform(column, names)
        )
    except ImportError:
        pass
    return found


def measure() -> Iterator[Comparison | Figure]:
    for rows, counts in ((10_000_000, (10, 1_000, 100_000)), (1_000_000, (10, 1_000, 100_000))):
        for cells in counts:
            yield _against_peers(rows, cells)
    yield from _without_peers()
    for cells in (1_000, 1_000_000):
        # A process of its own: what an allocator still holds would count as nothing.
        command = [sys.executable, "-c", _MEMORY, "10000000", str(cells)]
        yield Figure(
            f"memory, 1e7 rows, {cells:,} cells",
            float(subprocess.check_output(command)),
            "x the bytes of ids and target",
            at_most=3,
            how="resident set at its peak during fit and transform, beyond what was there before, in a new process",
        )


def _against_peers(rows: int, cells: int) -> Comparison:
    ids, target = ids_and_target(rows, cells)
    contenders: Mapping[str, Callable[[], object]] = {
        "reghead": reghead(ids, target, cells),
        "numpy bincount, two passes (limit)": lambda: _bincount(ids, target, cells),
        **peers(ids, target),
    }
    if rows > 1_000_000:  # those that take seconds are measured with fewer rows
        contenders = {name: call for name, call in contenders.items() if name.split()[0] in ("reghead", "numpy")}
    elif cells == 10:
        contenders = {**contenders, "loop of masks (AAM)": lambda: _loop_of_masks(ids, target)}
    others = tuple(name for name in contenders if name != "reghead" and "limit" not in name)
    return Comparison(
        f"fit and transform, {rows:.0e} rows, {cells:,} cells",
        contenders,
        [Reach(1.5, ("numpy bincount, two passes (limit)",)), *([Reach(1.0, others)] if others else [])],
        seconds=4.0,
        rounds=9,
        why="What a fit does once, the cells and their estimates, has fewer rows to spread over than 1e7.",
    )


def _without_peers() -> Iterator[Comparison]:
    for cells in (1_000, 100_000):
        ids, target = ids_and_target(10_000_000, cells)
        yield Comparison(
            f"fit in chunks of 1e6 of 1e7 rows, {cells:,} cells",
            {"reghead": chunks(ids, target, cells, 10), "one fit of all rows": chunks(ids, target, cells, 1)},
            [Reach(1.3, ("one fit of all rows",))],
            seconds=3.0,
            rounds=9,
            why="With 10 rows a cell in a chunk, merging and estimating the cells costs as much as reading the rows.",
        )
    ids, target = ids_and_target(10_000_000, 1_000_000)
    yield Comparison(
        "fit and transform, 1e+07 rows, 1,000,000 cells",
        {"reghead": reghead(ids, target, 1_000_000), "numpy": lambda: _bincount(ids, target, 1_000_000)},
        seconds=3.0,
        rounds=7,
    )


if __name__ == "__main__":
    main("normalizer", TITLE, measure)
