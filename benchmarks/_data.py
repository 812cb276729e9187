"""Tables with environments (a location, mostly a season too), and the three kinds of split of their rows.

A folder of tables is read from where the environment variable ``REGHEAD_BENCHMARK_DATA`` points, if it is set: one
subfolder a table, with ``data.csv.gz``, ``splits.csv.gz`` (columns ``random0``, ``combo0``, ``loc0``, ``random1``, ...;
0 train, 1 validation, 2 test) and ``meta.json`` (the roles of the columns: ``targets``, ``loc``, ``season``, ``cats``,
``nums``). A table there takes the place of one of the same name from PyPI.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from benchmarks import _pypi, _splits

VARIABLE = "REGHEAD_BENCHMARK_DATA"
KINDS = ("random", "combo", "loc", "new1", "new3", "new8")
MAX_TRAINING_ROWS, MAX_VALIDATION_ROWS, MAX_TEST_ROWS = 8_000, 2_000, 20_000
MIN_LOCATIONS = 10  # with fewer, whole locations make no band; their seasons are taken for clusters then

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.intp]


@dataclass(frozen=True)
class Table:
    """One target, its environment and its features.

    Attributes:
        name: Of the data set.
        features: All columns that a method may use: labels are strings, numbers are floats and may be missing.
        target: Shape (rows,), in its own units, nothing missing.
        location: The column of places.
        season: The column of seasons, or None.
        splits: Columns such as ``random0``; 0 train, 1 validation, 2 test.
    """

    name: str
    features: pd.DataFrame
    target: FloatArray
    location: str
    season: str | None
    splits: pd.DataFrame


@dataclass(frozen=True)
class Part:
    features: pd.DataFrame
    target: FloatArray


@dataclass(frozen=True)
class Fold:
    """Rows to train on, to stop early and calibrate by, and to predict.

    Attributes:
        clusters: What the split holds out, for each test row: a location, or a cell of location and season. Rows of
            one cluster share their luck, so bands are taken over clusters.
        fingerprint: Changes with any of the rows.
    """

    table: str
    kind: str
    index: int
    train: Part
    validation: Part
    test: Part
    location: str
    season: str | None
    clusters: npt.NDArray[np.str_]
    fingerprint: str

    @property
    def categories(self) -> list[str]:
        return [column for column in self.train.features if not is_number(self.train.features[column])]

    @property
    def numbers(self) -> list[str]:
        return [column for column in self.train.features if is_number(self.train.features[column])]


def is_number(column: pd.Series) -> bool:
    return bool(pd.api.types.is_numeric_dtype(column))


def available() -> dict[str, Callable[[], Table]]:
    """The tables that can be read here, by name."""
    found: dict[str, Callable[[], Table]] = {}
    for name, roles in _pypi.SETS.items():
        found[name] = cache(lambda name=name, roles=roles: _from_pypi(name, roles))
    if folder := os.environ.get(VARIABLE):
        if not Path(folder).is_dir():
            raise NotADirectoryError(
                f"{VARIABLE} must name a folder of tables, got {folder!r}; set another or unset it"
            )
        for meta in sorted(Path(folder).glob("*/meta.json")):
            found[meta.parent.name] = cache(lambda path=meta.parent: _from_folder(path))
    return found


def folds(table: Table, kinds: tuple[str, ...], count: int) -> Iterator[Fold]:
    """The folds of ``table``; a kind of split that it doesn't have is left out."""
    for kind in kinds:
        base = "loc" if kind.startswith("new") else kind
        for index in range(count):
            if f"{base}{index}" in table.splits:
                yield _fold(table, kind, index, table.splits[f"{base}{index}"].to_numpy())


def _fold(table: Table, kind: str, index: int, role: npt.NDArray[np.int8]) -> Fold:
    rng = np.random.RandomState(index)
    train = _at_most(np.flatnonzero(role == 0), MAX_TRAINING_ROWS, rng)
    validation = _at_most(np.flatnonzero(role == 1), MAX_VALIDATION_ROWS, rng)
    test = _at_most(np.flatnonzero(role == 2), MAX_TEST_ROWS, rng)
    location = table.features[table.location].to_numpy(str)
    if kind.startswith("new"):
        arrived, test = _splits.first_rows(test, location[test], int(kind[3:]), rng)
        train = np.union1d(train, arrived)
    clusters = _splits.cells(table.features, table.location, table.season)
    if kind not in ("random", "combo") and len(np.unique(location)) >= MIN_LOCATIONS:
        clusters = location
    parts = [Part(table.features.iloc[r].reset_index(drop=True), table.target[r]) for r in (train, validation, test)]
    contents = hashlib.sha256()
    for part in parts:
        contents.update(pd.util.hash_pandas_object(part.features).to_numpy().tobytes() + part.target.tobytes())
    return Fold(
        table.name,
        kind,
        index,
        train=parts[0],
        validation=parts[1],
        test=parts[2],
        location=table.location,
        season=table.season,
        clusters=clusters[test],
        fingerprint=contents.hexdigest()[:12],
    )


def _at_most(rows: IntArray, limit: int, rng: np.random.RandomState) -> IntArray:
    return rows if len(rows) <= limit else np.sort(rng.choice(rows, limit, replace=False))


def _from_pypi(name: str, roles: _pypi.Roles) -> Table:
    return _table(name, roles.read(), roles.target, roles.location, roles.season, roles.categories, roles.numbers, None)


def _from_folder(path: Path) -> Table:
    meta = json.loads((path / "meta.json").read_text())
    labels = [column for column in (meta["loc"], meta["season"], *meta["cats"]) if column]
    frame = pd.read_csv(path / "data.csv.gz", dtype=dict.fromkeys(labels, str), low_memory=False)
    splits = pd.read_csv(path / "splits.csv.gz", dtype=np.int8)
    return _table(path.name, frame, meta["targets"][0], meta["loc"], meta["season"], meta["cats"], meta["nums"], splits)


def _table(
    name: str,
    frame: pd.DataFrame,
    target: str,
    location: str,
    season: str | None,
    categories: list[str],
    numbers: list[str],
    splits: pd.DataFrame | None,
) -> Table:
    kept = frame[target].notna().to_numpy()
    frame = frame[kept].reset_index(drop=True)
    labels = [column for column in (location, season, *categories) if column]
    columns = {column: frame[column].astype("str").fillna("missing").astype(object) for column in labels}
    columns |= {column: frame[column].astype(np.float64) for column in numbers}
    features = pd.DataFrame(columns)
    splits = _splits.make(features, location, season) if splits is None else splits[kept].reset_index(drop=True)
    return Table(name, features, frame[target].to_numpy(np.float64), location, season, splits)
