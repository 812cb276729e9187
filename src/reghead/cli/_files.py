"""Files that are written whole or not at all, and fingerprints of what went into them."""

import errno
import gzip
import hashlib
import io
import json
import math
import os
import platform
import secrets
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from importlib import metadata
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeAlias

import numpy as np
import torch

import reghead
from reghead.cli._arrow import DataFrame, need
from reghead.cli._errors import InputError
from reghead.cli._schema import Schema
from reghead.cli._tables import DELIMITERS, PARQUET, Table, table_suffix

_PathLike: TypeAlias = str | os.PathLike[str]
_USERS_TO_MEND = {
    errno.ENOSPC: "no space left on the device",
    errno.EFBIG: "the file would be larger than it may be",
    errno.EDQUOT: "the disk quota is used up",
    errno.EACCES: "permission denied",
    errno.EPERM: "permission denied",
    errno.EROFS: "the file system is read-only",
}


@contextmanager
def atomic_path(path: _PathLike) -> Iterator[Path]:
    """A file beside ``path`` to write to: it takes the place of ``path`` at the end, or is gone after an error.

    A device or pipe such as ``/dev/null`` is written to directly.

    Raises:
        InputError: If the folder does not exist, may not be written to, or is full.
    """
    path = Path(path)
    final = path.resolve()  # the file that a symbolic link stands for
    if final.is_dir():
        raise InputError(f"cannot write {path}: it is a folder")
    if not final.parent.is_dir():
        raise InputError(f"cannot write {path}: there is no folder {final.parent}; create it first")
    special = final.exists() and not final.is_file()
    # The suffix stays last, since writers go by it; a name may be as long as the file system takes.
    partial = final if special else final.with_name(f".{secrets.token_hex(4)}.partial.{final.name[-50:]}")
    try:
        yield partial
        if not special:
            os.replace(partial, final)
    except OSError as error:
        ours = error.filename in (None, str(partial))
        if not ours or error.errno not in _USERS_TO_MEND:
            raise
        raise InputError(f"cannot write {path}: {_USERS_TO_MEND[error.errno]}") from error
    finally:
        if not special:
            with suppress(OSError):  # moved away, or never there
                partial.unlink()


def is_inside(path: _PathLike, folder: _PathLike) -> bool:
    """Whether ``path`` is ``folder``, or lies in it, links followed; also of two names of one file."""
    resolved = Path(path).resolve()
    return any(_is_same(parent, Path(folder).resolve()) for parent in (resolved, *resolved.parents))


def check_inputs_stay(output_dir: str, inputs: Mapping[str, _PathLike | None]) -> None:
    """Refuse an output folder that holds what is read: it is replaced as a whole.

    Args:
        output_dir: As the user wrote it.
        inputs: What the user calls a file or folder that is read, and where it is; None where it was not given.
    """
    for name, path in inputs.items():
        if path is not None and (is_inside(path, output_dir) or is_inside(path, f"{Path(output_dir)}.partial")):
            raise InputError(
                f"--output-dir {output_dir} would replace {path}, which is given as {name}; choose another --output-dir"
            )


def _is_same(one: Path, other: Path) -> bool:
    return one == other or (one.exists() and other.exists() and one.samefile(other))


def sha256_of(path: _PathLike) -> str:
    """SHA-256 of a file, in hexadecimal digits."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def library_fingerprint() -> dict[str, str]:
    """What computes: versions, and one SHA-256 over reghead's own source files, names and contents."""
    root = Path(reghead.__file__).parent
    digest = hashlib.sha256()
    for name in sorted(file.relative_to(root).as_posix() for file in root.rglob("*.py")):
        digest.update(f"{name} {sha256_of(root / name)}\n".encode())
    return {
        "reghead": metadata.version("reghead"),
        "torch": str(torch.__version__),
        "numpy": np.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "source_sha256": digest.hexdigest(),
    }


def data_fingerprint(table: Table, schema: Schema) -> dict[str, Any]:
    """What was computed with: each file by name, size and SHA-256, the rows, and the types of the columns in use.

    Of a join, also how many embeddings and how many rows of metadata had no counterpart.
    """
    joined = {"unmatched": dict(zip(("embeddings", "metadata"), table.unmatched, strict=True))}
    return {
        "files": [{"name": path.name, "size": path.stat().st_size, "sha256": sha256_of(path)} for path in table.paths],
        "rows": table.rows,
        "columns": {column: table.types[column] for column in schema.columns if column in table.types},
        **(joined if len(table.paths) > 1 else {}),
    }


def write_json(path: _PathLike, value: object) -> None:
    """Write ``value`` as JSON to be read by people and by every parser: NaN and infinities are ``null``."""
    text = json.dumps(_plain(value), indent=2, ensure_ascii=False, allow_nan=False) + "\n"
    with atomic_path(path) as partial:
        partial.write_text(text, encoding="utf-8")


def _plain(value: object) -> object:
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return str(value) if isinstance(value, os.PathLike) else value


def write_table(path: _PathLike, rows: Any) -> None:
    """Write a DataFrame, or a list of rows as mappings, to a CSV, TSV (``.gz`` or not) or Parquet file."""
    with TableWriter(path) as writer:
        writer.write(need("pandas").DataFrame(rows))


class TableWriter:
    """Writes a table chunk by chunk: the file is there when all of it is, and not at all after an error.

    Floats are written with as many digits as it takes to read the same number; a missing value is an empty field.

    Args:
        path: A ``.csv``, ``.tsv`` or ``.tab`` file, with ``.gz`` or without, or a ``.parquet`` or ``.pq`` file;
            ``None`` is CSV on the standard output.

    Raises:
        InputError: If the name is of another kind, or the file cannot be written.
    """

    def __init__(self, path: _PathLike | None = None) -> None:
        self.path = None if path is None else Path(path)
        suffix = ".csv" if self.path is None else table_suffix(self.path)
        if suffix is None:
            raise InputError(
                f"cannot write {path}: name it by what it is to be, {', '.join(DELIMITERS)} (with .gz or without) "
                f"or {', '.join(PARQUET)}"
            )
        self._suffix = suffix
        self._columns: list[str] | None = None
        self._stack = ExitStack()
        self._stream: Any = None  # a text file, or a file name until Parquet's columns are known

    def __enter__(self) -> Self:
        if self.path is None:
            self._stream = sys.stdout
            return self
        with ExitStack() as stack:
            partial = stack.enter_context(atomic_path(self.path))
            if self._suffix in PARQUET:
                self._stream = partial
            else:
                binary: Any = stack.enter_context(partial.open("wb"))
                if self._suffix.endswith(".gz"):
                    # No name and no time inside, so that equal tables are equal files.
                    binary = stack.enter_context(gzip.GzipFile("", "wb", fileobj=binary, mtime=0))
                self._stream = stack.enter_context(io.TextIOWrapper(binary, encoding="utf-8", newline=""))
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self.path is None and error is None:
            sys.stdout.flush()
        self._stack.__exit__(kind, error, traceback)

    def write(self, frame: DataFrame) -> None:
        """Append rows; every chunk has the columns of the first."""
        columns = list(frame.columns)
        first = self._columns is None
        if not first and columns != self._columns:
            raise ValueError(f"every chunk must have the columns of the first, {self._columns}, got {columns}")
        self._columns = columns
        if self._suffix in PARQUET:
            self._write_parquet(frame)
        else:
            separator = DELIMITERS[self._suffix.removesuffix(".gz")]
            frame.to_csv(self._stream, sep=separator, index=False, header=first, lineterminator="\n")

    def _write_parquet(self, frame: DataFrame) -> None:
        pa, parquet = need("pyarrow"), need("pyarrow.parquet")
        if isinstance(self._stream, Path):
            schema = pa.Schema.from_pandas(frame, preserve_index=False).remove_metadata()
            # A first chunk without any label: the next one may have some.
            schema = pa.schema([f.with_type(pa.string()) if pa.types.is_null(f.type) else f for f in schema])
            self._stream = self._stack.enter_context(parquet.ParquetWriter(self._stream, schema))
        self._stream.write_table(pa.Table.from_pandas(frame, schema=self._stream.schema, preserve_index=False))
