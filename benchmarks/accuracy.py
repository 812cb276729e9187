"""Compare HeadRegressor with its peers: ``python -m benchmarks.accuracy --help``.

Every method gets the same rows: at most 8,000 to train on, others to stop early and to calibrate by, and those of one
fold to predict, with intervals of 80 %. Splits hold out rows of known environments (``random``), whole combinations
of location and season (``combo``) or whole locations (``loc``); in ``new1``, ``new3`` and ``new8`` 1, 3 and 8 rows of
each held-out location are in training. Scores are medians over folds and seeds.

Predictions are kept in a folder by the code of their method, so that a second run only makes what has changed.
Install with ``pip install -e ".[cli]" --group bench -c constraints.txt``; a peer that isn't installed is left out.
"""

import argparse
import os
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before any library reads it: times are those of one thread

from benchmarks import _data, _peers, _reghead, _report
from benchmarks._cache import MethodError, Run, run
from benchmarks._method import METHODS
from benchmarks._score import Row
from benchmarks._splits import FOLDS


def main(arguments: Sequence[str] | None = None) -> None:
    """Run what is asked for and print the tables."""
    tables = _data.available()
    options = _parse(arguments, list(tables))
    missing = [name for name in options.methods if not METHODS[name].is_installed()]
    for name in missing:
        _log(f"{name} is left out: {METHODS[name].requires} is not installed")
    runs: dict[tuple[str, str], list[Run]] = {}
    for kind in options.splits:
        for data in options.datasets:
            for fold in _data.folds(tables[data](), (kind,), options.folds):
                for method in (METHODS[name] for name in options.methods if name not in missing):
                    for seed in range(options.seeds if method.seeded else 1):
                        try:
                            with warnings.catch_warnings():
                                warnings.simplefilter("ignore")
                                result = run(method, fold, seed, options.cache, _log)
                        except MethodError as error:
                            _log(f"{data} {kind}{fold.index} {method.name} raises {error}")
                        else:
                            runs.setdefault((data, kind), []).append(result)
    rows = {key: Row(found) for key, found in runs.items()}
    page = _report.markdown(rows)
    for path in options.output:
        if path.suffix == ".csv":
            _report.table(rows).to_csv(path, index=False)
        else:
            path.write_text(page)
    print(page)


def _parse(arguments: Sequence[str] | None, tables: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m benchmarks.accuracy", description=__doc__.partition("\n")[0])
    parser.add_argument("--datasets", nargs="+", choices=tables, default=tables, metavar="NAME", help=", ".join(tables))
    parser.add_argument("--splits", nargs="+", choices=_data.KINDS, default=list(_data.KINDS[:3]))
    peers = [name for name, method in METHODS.items() if method.run.__module__ == _peers.__name__]
    known = [*peers, *_reghead.OPTIONS]
    parser.add_argument(
        "--methods", nargs="+", choices=known, default=[*peers, _reghead.PREFIX], metavar="NAME", help=", ".join(known)
    )
    parser.add_argument("--folds", type=int, choices=range(1, FOLDS + 1), default=FOLDS)
    parser.add_argument("--seeds", type=int, default=3, help="for methods that draw; others run once")
    parser.add_argument("--cache", type=Path, default=Path("build/accuracy"), help="folder of predictions made before")
    parser.add_argument("--output", type=Path, nargs="*", default=[], help="a page (.md) or a table (.csv) to write")
    parser.add_argument("--quick", action="store_true", help="the two smallest sets, one fold, one seed")
    options = parser.parse_args(arguments)
    if options.quick:
        options.datasets, options.folds, options.seeds = ["penguins", "rice"], 1, 1
    return options


def _log(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
