"""Reading with Arrow: a text file into a typed table, and what went wrong in one line."""

import codecs
import math
import mmap
import re
import zipfile
import zlib
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from decimal import Decimal
from pathlib import Path
from types import ModuleType
from typing import Any, TypeAlias

import numpy as np

from reghead._optional import import_optional
from reghead.cli._errors import InputError
from reghead.cli._limits import Counted

# pandas and pyarrow ship without types.
DataFrame: TypeAlias = Any  # pandas.DataFrame
Series: TypeAlias = Any  # pandas.Series
ArrowTable: TypeAlias = Any  # pyarrow.Table

MISSING_TOKENS = ("", "NA", "N/A", "n/a", "#N/A", "NaN", "nan", "-NaN", "-nan", "NULL", "null", "None", "<NA>", "NaT")
_WHOLE = re.compile(r"-?(0|[1-9]\d*)\.0")
_LONGEST_QUOTE = 60  # characters of a file in a message


def need(module: str) -> ModuleType:
    """A module of the extra ``cli``."""
    try:
        return import_optional(module, extra="cli")
    except ImportError as error:
        raise InputError(str(error)) from error


@contextmanager
def reading(path: Path, kind: str) -> Iterator[None]:
    """Tell in one line what goes wrong while ``path`` is read."""
    try:
        yield
    except PermissionError as error:
        raise InputError(f"{path} cannot be read: permission denied") from error
    except MemoryError as error:
        raise InputError(f"{path} cannot be read as {kind}: it holds more than there is memory for") from error
    # Arrow's own errors are ValueErrors, apart from some (NotImplementedError, KeyError) for files it cannot read; an
    # archive may be encrypted (RuntimeError), and what is in it broken.
    except (OSError, EOFError, ValueError, LookupError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(f"{path} cannot be read as {kind}: {_shorten(str(error))}") from error


def _shorten(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 2 * _LONGEST_QUOTE else line[: 2 * _LONGEST_QUOTE - 3] + "..."


def listed(names: Sequence[object]) -> str:
    return ", ".join(map(repr, names[:10])) + (f" and {len(names) - 10} more" if len(names) > 10 else "")


def read_text(path: Path, delimiter: str, text_columns: Collection[str]) -> ArrowTable:
    """The table in a CSV or TSV file; ``text_columns`` as text, where only the empty field is missing."""
    pa, csv = need("pyarrow"), need("pyarrow.csv")
    compute = need("pyarrow.compute")
    missing = list(MISSING_TOKENS)
    with reading(path, "text"), path.open("rb") as file:
        if file.read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
            raise _encoding(path)

    packed = path.suffix.lower() == ".gz"

    def read(threads: bool) -> Any:
        return csv.read_csv(
            pa.PythonFile(Counted(path, pa.input_stream(path, compression="gzip")), "r") if packed else path,
            read_options=csv.ReadOptions(use_threads=threads),
            parse_options=csv.ParseOptions(delimiter=delimiter, newlines_in_values=_may_quote(path)),
            convert_options=csv.ConvertOptions(
                column_types=dict.fromkeys(text_columns, pa.string()), null_values=missing, strings_can_be_null=False
            ),
        )

    kind = "gzip" if packed else "CSV" if delimiter == "," else "TSV"
    with reading(path, kind):
        try:
            arrow = read(threads=True)
            names = arrow.column_names
        except UnicodeDecodeError as error:
            raise _encoding(path) from error
        except pa.ArrowInvalid as error:
            if "UTF8" in str(error):
                raise _encoding(path) from error
            if "Expected" not in str(error):
                raise
            try:  # only a single thread counts rows
                read(threads=False)
            except pa.ArrowInvalid as again:
                raise InputError(_broken_row(path, str(again))) from error
            raise  # pragma: no cover
    if len(names) == 1 and (other := next((c for c in ";\t|," if c in names[0] and c != delimiter), None)):
        raise InputError(
            f"{path} has one column, {names[0]!r}, which looks like several separated by {other!r}; "
            "a .csv is separated by commas and a .tsv by tabs"
        )
    check_names(path, names)
    arrow = arrow.select([name for name in names if name])
    for i, field in enumerate(arrow.schema):
        if pa.types.is_binary(field.type):  # Arrow's guess at what is no text
            raise _encoding(path)
        if field.name in text_columns:
            column = arrow.column(i)
            present = compute.not_equal(column, "")
            arrow = arrow.set_column(i, field.name, compute.if_else(present, column, pa.scalar(None, pa.string())))
    return arrow


def _may_quote(path: Path) -> bool:
    """Whether a field may span lines; Arrow splits a file faster where none can."""
    if path.suffix.lower() == ".gz":
        return True
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return content.find(b'"') != -1


def _encoding(path: Path) -> InputError:
    return InputError(f"{path} is not encoded in UTF-8; convert it, for example with iconv -t UTF-8")


def _broken_row(path: Path, message: str) -> str:
    found = re.search(r"Row #(\d+): Expected (\d+) columns, got (\d+)(?:: (.*))?", message, re.DOTALL)
    if found is None:
        return f"{path} cannot be read: {_shorten(message)}"
    row, expected, got, text = found.groups()
    shown = "" if text is None else f": {_shorten(text)[:_LONGEST_QUOTE]!r}"
    return f"{path} has {got} fields in row {int(row) - 1}, expected {expected} as in its header{shown}"


def check_names(path: Path, names: Sequence[str]) -> None:
    seen: set[str] = set()
    for name in filter(None, names):
        if name in seen:
            raise InputError(f"{path} has more than one column {name!r}; give each a name of its own")
        seen.add(name)


def types_of(schema: Any) -> tuple[dict[str, str], list[str]]:
    kinds = need("pyarrow").types
    numbers = (kinds.is_integer, kinds.is_floating, kinds.is_decimal, kinds.is_boolean, kinds.is_null)
    numeric = [field.name for field in schema if any(is_kind(field.type) for is_kind in numbers)]
    return {field.name: str(field.type) for field in schema}, numeric


def as_text(value: object) -> str:
    """A label or an id as text, a whole number without a decimal point: 1, 1.0 and "1.0" are "1"; "01" stays."""
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    if isinstance(value, float | np.floating | Decimal) and math.isfinite(value) and value == int(value):
        return str(int(value))
    text = f"{value:f}".rstrip("0").rstrip(".") if isinstance(value, Decimal) else str(value)
    return text[:-2] if _WHOLE.fullmatch(text) else text


def _labels_as_text(column: Any) -> Any:
    """A column of numbers, booleans or text as text; each distinct value is looked at once."""
    pa = need("pyarrow")
    kinds = pa.types
    kind = column.type.value_type if kinds.is_dictionary(column.type) else column.type
    numbers = (kinds.is_integer, kinds.is_floating, kinds.is_decimal, kinds.is_boolean)
    texts = (kinds.is_string, kinds.is_large_string, kinds.is_string_view)
    if not any(is_kind(kind) for is_kind in (*numbers, *texts)):
        return column
    if kinds.is_float16(kind) or kinds.is_string_view(kind):  # Arrow does not count those
        column = column.cast(pa.float32() if kinds.is_float16(kind) else pa.string())
    codes = pa.chunked_array(column.dictionary_encode()).combine_chunks()
    distinct = codes.dictionary
    # As NumPy's numbers, which are written as short as their own precision allows.
    values = list(distinct.to_numpy(zero_copy_only=False)) if kinds.is_floating(kind) else distinct.to_pylist()
    labels = [None if v is None or v != v else as_text(v) for v in values]
    return pa.array(labels, pa.string()).take(codes.indices)


def to_pandas(arrow: Any, labels: Collection[str] = ()) -> DataFrame:
    """A DataFrame in which every number is of a NumPy dtype, NaN where it is missing; the ``labels`` are text."""
    pa = need("pyarrow")
    for i, name in enumerate(arrow.column_names):
        if name in labels:
            arrow = arrow.set_column(i, name, _labels_as_text(arrow.column(i)))
    for i, field in enumerate(arrow.schema):
        boolean = pa.types.is_boolean(field.type) and arrow.column(i).null_count
        if boolean or pa.types.is_null(field.type) or pa.types.is_decimal(field.type):
            arrow = arrow.set_column(i, field.name, arrow.column(i).cast(pa.float64()))
    return arrow.to_pandas(ignore_metadata=True)
