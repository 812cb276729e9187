"""What ``import reghead`` costs after torch, and what it brings along."""

import compileall
import importlib.util
import statistics
import subprocess
import sys
from collections.abc import Iterator

from benchmarks.speed._measure import Figure
from benchmarks.speed._subject import main

TITLE = "import reghead after torch"
_SCRIPT = """
import time, torch
start = time.perf_counter()
import reghead
print(time.perf_counter() - start)
"""
_BROUGHT = """
import sys, torch
before = set(sys.modules)
import reghead
brought = {name.partition(".")[0] for name in set(sys.modules) - before} - set(sys.stdlib_module_names)
print(len(brought - {"reghead", "torch", "numpy"}))
"""


def measure() -> Iterator[Figure]:
    package = importlib.util.find_spec("reghead")
    assert package is not None
    for folder in package.submodule_search_locations or ():
        compileall.compile_dir(folder, quiet=2)  # as an installation does, also where Python is told to write none
    times = [float(subprocess.check_output([sys.executable, "-c", _SCRIPT])) * 1e3 for _ in range(21)]
    low, *_, high = statistics.quantiles(times, n=20)
    how = "median of 21 processes, with the quantiles between which nine in ten lie; byte code compiled before"
    yield Figure("import reghead", statistics.median(times), "ms", low, high, at_most=60, how=how)
    brought = float(subprocess.check_output([sys.executable, "-c", _BROUGHT]))
    how = "top-level names in sys.modules that torch, NumPy and Python's library do not have"
    yield Figure("packages that import reghead brings along", brought, "packages", at_most=0, how=how)


if __name__ == "__main__":
    main("importing", TITLE, measure)
