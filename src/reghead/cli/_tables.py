"""Tables from files: CSV, TSV, Parquet, and embeddings (npz) joined with what is known about their rows."""

import operator
import os
import re
import zipfile
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self, TypeAlias

import numpy as np
import numpy.typing as npt

from reghead._checks import check_int, did_you_mean
from reghead.cli._arrow import (
    DataFrame,
    Series,
    as_text,
    check_names,
    listed,
    need,
    read_text,
    reading,
    to_pandas,
    types_of,
)
from reghead.cli._errors import InputError
from reghead.cli._limits import check_unpacked

_PathLike: TypeAlias = str | os.PathLike[str]

DELIMITERS = {".csv": ",", ".tsv": "\t", ".tab": "\t"}
PARQUET = (".parquet", ".pq")
_NUMBER = 8  # bytes of a number, or of a reference to a label
_PARQUET_INDEX = re.compile(r"__index_level_\d+__")  # the name of a pandas index that has none


class Table(Sequence[DataFrame]):
    """Chunks of rows in a fixed order, which can be read again and again.

    A table of one chunk stays in memory once it was read; of a larger one nothing does.

    Attributes:
        paths: The files it comes from.
        types: Column -> its type, in Arrow's words.
        numeric: The columns that hold numbers or booleans.
        sizes: Number of rows of each chunk.
        unmatched: Number of embeddings without metadata, and of rows of metadata without an embedding.
    """

    def __init__(
        self,
        paths: Iterable[Path],
        types: Mapping[str, str],
        sizes: Iterable[int],
        read: Callable[[int | None, list[str]], DataFrame],
        *,
        numeric: Iterable[str],
        unmatched: tuple[int, int] = (0, 0),
    ) -> None:
        self.paths, self.types, self.sizes = tuple(paths), dict(types), tuple(sizes)
        self.numeric, self.unmatched = frozenset(numeric), unmatched
        self._read = read
        self._kept: DataFrame | None = None

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the columns."""
        return tuple(self.types)

    @property
    def rows(self) -> int:
        """Number of rows."""
        return sum(self.sizes)

    def __repr__(self) -> str:
        return f"Table({', '.join(path.name for path in self.paths)}: {self.rows} rows, {len(self.columns)} columns)"

    def __len__(self) -> int:
        return len(self.sizes)

    def __getitem__(self, index: Any) -> DataFrame:
        i = operator.index(index)
        if not -len(self) <= i < len(self):
            raise IndexError(f"chunk {i} of a table of {len(self)}")
        if len(self) > 1:
            return self._read(i % len(self), list(self.columns))
        if self._kept is None:
            self._kept = self._read(0, list(self.columns))
        return self._kept.copy(deep=False)

    def column(self, name: str) -> Series:
        """One column over all rows; the others are not read."""
        self._check((name,))
        return (self._read(None, [name]) if self._kept is None else self._kept)[name]

    def select(self, columns: Iterable[str]) -> Self:
        """The same rows with these columns alone."""
        names = tuple(columns)
        self._check(names)
        types = {name: self.types[name] for name in names}
        return type(self)(
            self.paths, types, self.sizes, self._read, numeric=self.numeric & types.keys(), unmatched=self.unmatched
        )

    def _check(self, names: Iterable[str]) -> None:
        for name in names:
            if name not in self.types:
                raise InputError(
                    f"{self.paths[0]} has no column {name!r}, but {listed(self.columns)}"
                    f"{did_you_mean(name, self.columns)}"
                )


def open_table(
    path: _PathLike,
    *,
    metadata: _PathLike | None = None,
    id_column: str | None = None,
    rows_in_memory: int = 2_000_000,
    columns: Iterable[str] | None = None,
    text_columns: Iterable[str] = (),
) -> Table:
    """The table in a file: ``.csv``, ``.tsv`` or ``.tab`` (with ``.gz`` or without), ``.parquet``, ``.pq``, ``.npz``.

    In CSV and TSV, a column of ``text_columns`` is read as it stands: ``01`` stays ``"01"``, ``NA`` and ``None`` are
    labels, and only the empty field is missing. In every other column the tokens of ``MISSING_TOKENS`` are missing,
    and the type is the one that fits all rows. Parquet has types of its own, but its ``text_columns``, apart from the
    ids, become text too: so that a label is the same from every file, where 1, 1.0 and ``"1.0"`` are ``"1"``. A column
    without a name is the row index that pandas writes, and is left out.

    An ``.npz`` holds embeddings, an array of shape (N, F), and their N ids. Its rows are those whose id is in
    ``metadata``, in the order of the ``.npz``; the embeddings become columns ``embedding_0``, ``embedding_1``, ...
    Ids compare as text, where a whole number is written without a decimal point.

    Args:
        path: The file.
        metadata: For an ``.npz``: a table in one of the other formats.
        id_column: The column with the ids.
        rows_in_memory: Rows of one chunk at most, for Parquet; every other table is one chunk.
        columns: The columns wanted; all by default.
        text_columns: Columns to read as text, the categorical ones and the ids; those that are not there are ignored.

    Raises:
        InputError: If the file is missing or broken, or a column is not there.
    """
    path = Path(path)
    suffix = _suffix(path)
    check_int("rows_in_memory", rows_in_memory)
    labels = {*text_columns} - {id_column}
    if suffix == ".npz":
        if metadata is None or id_column is None:
            raise InputError(
                f"{path} holds embeddings alone: pass the table with their targets and categories as --metadata, "
                "and its column of ids as --id-column"
            )
        if _suffix(Path(metadata)) == ".npz":
            raise InputError(f"--metadata must be a CSV, TSV or Parquet file, got {metadata}")
        described = open_table(metadata, id_column=id_column, text_columns=(*text_columns, id_column))
        table = _join(path, described, id_column)
    elif metadata is not None:
        raise InputError(f"--metadata goes with embeddings in an .npz file, and {path} is a table of its own")
    elif suffix in PARQUET:
        table = _open_parquet(path, rows_in_memory, labels)
    else:
        arrow = read_text(path, DELIMITERS[suffix.removesuffix(".gz")], set(text_columns))
        types, numeric = types_of(arrow.schema)
        table = _in_memory([path], to_pandas(arrow, labels), types, numeric)
    if not table.columns:
        raise InputError(f"{path} has no columns with a name")
    if not table.rows:
        raise InputError(f"{path} has no rows")
    return table if columns is None else table.select(columns)


def table_suffix(path: Path) -> str | None:
    """How the name of a table ends, ``.gz`` included; ``None`` where that is no table reghead writes or reads."""
    name = path.name.lower()
    known = [*DELIMITERS, *(suffix + ".gz" for suffix in DELIMITERS), *PARQUET]
    return next((suffix for suffix in known if name.endswith(suffix)), None)


def _suffix(path: Path) -> str:
    """The suffix of a file that is there to be read."""
    suffix = ".npz" if path.suffix.lower() == ".npz" else table_suffix(path)
    if path.is_dir():
        raise InputError(f"{path} is a folder, expected a file")
    if not path.exists():
        raise InputError(f"{path} does not exist")
    if suffix is None:
        raise InputError(
            f"{path} has a name of no known kind; name it by what it is: {', '.join(DELIMITERS)} (with .gz or "
            f"without), {', '.join(PARQUET)} or .npz"
        )
    if not path.is_file():
        raise InputError(f"{path} is not a regular file; save it to one first, since it is read more than once")
    with reading(path, "a file"):
        size = path.stat().st_size
        path.open("rb").close()
    if not size:
        raise InputError(f"{path} is empty")
    return suffix


def _in_memory(
    paths: Iterable[Path],
    frame: DataFrame,
    types: Mapping[str, str],
    numeric: Iterable[str],
    unmatched: tuple[int, int] = (0, 0),
) -> Table:
    def read(index: int | None, names: list[str]) -> DataFrame:
        return frame[names]

    return Table(paths, types, [len(frame)], read, numeric=numeric, unmatched=unmatched)


def _open_parquet(path: Path, rows_in_memory: int, labels: Collection[str]) -> Table:
    pa, parquet = need("pyarrow"), need("pyarrow.parquet")
    need("pandas")
    with reading(path, "Parquet"), parquet.ParquetFile(path) as file:
        check_names(path, file.schema_arrow.names)
        schema = pa.schema([f for f in file.schema_arrow if f.name and not _PARQUET_INDEX.fullmatch(f.name)])
        groups = [file.metadata.row_group(i).num_rows for i in range(file.metadata.num_row_groups)]
    chunks = _plan(groups, rows_in_memory)
    # A column of all rows, or all columns of a chunk, is what is in memory at once.
    largest = max((stop - start for _, _, start, stop in chunks), default=0)
    check_unpacked(path, _NUMBER * max(sum(groups), largest * len(schema)))

    def read(index: int | None, names: list[str]) -> DataFrame:
        with reading(path, "Parquet"), parquet.ParquetFile(path) as file:
            if index is None:
                return to_pandas(file.read(columns=names), labels)
            first, last, start, stop = chunks[index]
            if last - first > 1 or stop - start == groups[first]:
                return to_pandas(file.read_row_groups(list(range(first, last)), columns=names).select(names), labels)
            # A part of a row group: what lies before it is decoded and let go.
            parts, seen = [], 0
            for batch in file.iter_batches(min(rows_in_memory, 65_536), row_groups=[first], columns=names):
                begin, end = max(start - seen, 0), min(stop - seen, len(batch))
                seen += len(batch)
                if begin < end:
                    parts.append(batch.slice(begin, end - begin))
                if seen >= stop:
                    break
            return to_pandas(pa.Table.from_batches(parts).select(names), labels)

    types, numeric = types_of(schema)
    return Table([path], types, [stop - start for _, _, start, stop in chunks], read, numeric=numeric)


def _plan(groups: Sequence[int], rows: int) -> list[tuple[int, int, int, int]]:
    """Chunks of at most ``rows`` rows: row groups ``first`` to ``last`` (not included), or rows of a single one."""
    chunks: list[tuple[int, int, int, int]] = []
    for i, size in enumerate(groups):
        if size > rows:
            chunks += [(i, i + 1, start, min(start + rows, size)) for start in range(0, size, rows)]
        elif chunks and chunks[-1][2] == 0 and (pooled := chunks[-1][3] + size) <= rows and chunks[-1][1] == i:
            chunks[-1] = (chunks[-1][0], i + 1, 0, pooled)
        elif size:
            chunks.append((i, i + 1, 0, size))
    return chunks


def _join(path: Path, metadata: Table, id_column: str) -> Table:
    pandas = need("pandas")
    embeddings, ids = _load_npz(path)
    metadata._check([id_column])
    described = pandas.concat(list(metadata), ignore_index=True)
    keys = _keys(described[id_column], f"column {id_column!r} of {metadata.paths[0]}")
    own = _keys(ids, f"the ids of {path}")
    where = keys.get_indexer(own)
    known = where >= 0
    if not known.any():
        raise InputError(
            f"no id of {path} (such as {own[0]!r}) is in column {id_column!r} of {metadata.paths[0]} "
            f"(such as {keys[0]!r})"
        )
    names = [f"embedding_{f}" for f in range(embeddings.shape[1])]
    check_names(path, [*metadata.columns, *names])
    kept = embeddings if known.all() else embeddings[known]
    frame = described.iloc[where[known]].reset_index(drop=True).join(pandas.DataFrame(kept, columns=names))

    return _in_memory(
        [path, *metadata.paths],
        frame,
        {**metadata.types, **dict.fromkeys(names, str(embeddings.dtype))},
        [*metadata.numeric, *names],
        unmatched=(int((~known).sum()), len(described) - int(known.sum())),
    )


def _load_npz(path: Path) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """Embeddings of shape (N, F) and their N ids."""
    with reading(path, ".npz"), path.open("rb") as opened:
        with zipfile.ZipFile(opened) as archive:
            check_unpacked(path, sum(each.file_size for each in archive.infolist()))
        opened.seek(0)
        with np.load(opened, allow_pickle=False) as file:
            read = {name: file[name] for name in file.files}
    arrays = {name: array for name, array in read.items() if isinstance(array, np.ndarray)}  # or bytes of another file
    flat = [name for name, array in arrays.items() if array.ndim == 1]
    square = [name for name, array in arrays.items() if array.ndim == 2]
    ids, embeddings = (flat[0], square[0]) if len(flat) == len(square) == 1 else ("ids", "embeddings")
    if ids not in flat or embeddings not in square:
        found = ", ".join(f"{name} {array.shape}" for name, array in arrays.items()) or "nothing"
        raise InputError(f"{path} must hold embeddings, an array (N, F), and ids, an array (N,); it holds {found}")
    if arrays[embeddings].dtype.kind not in "fiu":
        raise InputError(f"{embeddings} in {path} must hold numbers, got {arrays[embeddings].dtype}")
    if len(arrays[ids]) != len(arrays[embeddings]):
        raise InputError(f"{path} has {len(arrays[ids])} ids and {len(arrays[embeddings])} embeddings")
    if not len(arrays[ids]):
        raise InputError(f"{path} has no rows")
    return arrays[embeddings], arrays[ids]


def _keys(values: Any, described: str) -> Any:
    """Ids as text, each of them once, in a pandas.Index."""
    pandas = need("pandas")
    series = pandas.Series(values)
    missing = series.isna().to_numpy()
    if missing.any():
        raise InputError(f"{described} has no value in row {int(missing.argmax()) + 1}")
    texts = pandas.Index([as_text(value) for value in series.tolist()], dtype=object)
    if not texts.is_unique:
        raise InputError(f"{described} must be unique, and {texts[texts.duplicated()][0]!r} is there more than once")
    return texts
