"""Tables as people bring them, and as nobody does."""

import gzip
import io
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pandas as pd
import pytest
from hypothesis import given

from _command import lakes
from fuzz._oracle import CORPUS, DOCUMENTED, TEXTS, check_own, examples, mutated
from reghead.cli._errors import InputError
from reghead.cli._files import data_fingerprint
from reghead.cli._schema import check_training, choose_schema, to_part
from reghead.cli._tables import open_table

Factory = pytest.TempPathFactory
ROLES = [
    {"targets": ["pH"], "categories": ["lake", "season"], "id_column": "id"},
    {"targets": ["pH"], "categories": ["lake"], "exclude": ["season"], "impute": True},
    {"targets": ["pH", "depth"], "features": ["light"], "weight_column": "id"},
]
PIECES = [
    *(
        "pH",
        "lake",
        "depth",
        "1",
        "1.5",
        "-0",
        "1e308",
        "1e309",
        "NaN",
        "inf",
        "-Infinity",
        "NA",
        "",
        "0x1f",
        "1_000",
        "\u0661",
    ),
    *(
        "2024-01-01",
        "2024-01-01T00:00:00Z",
        "12:30",
        "true",
        "TRUE",
        "=1+1",
        "Erie",
        "é",
        "\u2028",
        "ﬁ",
        "1,5",
        "\x00",
        "\x1a",
    ),
    *('"', '""', '"a', 'a"b', '"a\nb"', "'", "\\", "#", " 1", "\t1", "9" * 30, "9" * 400, "a" * 300),
]
FIELD = st.sampled_from(PIECES) | TEXTS
NAMES = st.sampled_from(
    ["pH", "lake", "season", "depth", "light", "id", "", "pH ", "PH", "\ufeffpH", '"pH"', "=x", "a,b"]
)


def read(path: Path, role: dict[str, Any], rows_in_memory: int = 17) -> int | None:
    """All that is done with a table before a training; its rows, or None where it was refused."""
    try:
        text = [*role.get("categories", ()), *([role["id_column"]] if "id_column" in role else [])]
        table = open_table(path, text_columns=text, id_column=role.get("id_column"), rows_in_memory=rows_in_memory)
        assert table.rows == sum(table.sizes) > 0
        schema = choose_schema(table, **role)
        check_training(table, schema)
        first = 0
        for i, size in enumerate(table.sizes):
            part = to_part(table[i], schema, first_row=first)
            assert part.numbers.shape == (size, len(schema.features))
            assert np.isfinite(part.target).all()
            first += size
        data_fingerprint(table, schema)
        return first
    except InputError as error:
        check_own(error)
        if len(str(error)) > 2000:
            raise AssertionError(f"too long for a line: {error}") from error
        return None


@pytest.fixture(scope="module")
def here(tmp_path_factory: Factory) -> Path:
    return tmp_path_factory.mktemp("tables")


def written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


@st.composite
def texts(draw: st.DrawFn) -> bytes:
    """A table that is nearly one: ragged, in some encoding, with any line ends."""
    names = draw(
        st.lists(NAMES | FIELD, min_size=1, max_size=6) | st.just(["pH", "lake", "season", "depth", "light", "id"])
    )
    rows = [names]
    for _ in range(draw(st.integers(0, 12))):
        width = draw(st.sampled_from([len(names)] * 12 + [0, 1, len(names) + 1]))
        rows.append([draw(FIELD) for _ in range(width)])
    separator = draw(st.sampled_from([","] * 6 + [";", "\t", "|", " "]))
    end = draw(st.sampled_from(["\n", "\r\n", "\r"]))
    ends = [draw(st.sampled_from([end] * 9 + ["\n", "\r\n", "\r", "", "\n\n"])) for _ in rows]
    text = "".join(separator.join(row) + e for row, e in zip(rows, ends, strict=True))
    encoding = draw(
        st.sampled_from(
            ["utf-8"] * 5 + ["utf-8-sig", "utf-16", "utf-16-le", "utf-32", "latin-1", "cp1252", "shift-jis"]
        )
    )
    errors = "surrogatepass" if encoding.startswith("utf") and encoding != "utf-8" else "replace"
    return text.encode(encoding, errors=errors)


@pytest.mark.parametrize("role", range(len(ROLES)))
@examples(40)
@given(content=texts(), suffix=st.sampled_from([".csv", ".csv", ".tsv", ".csv.gz"]))
def test_a_text_that_is_nearly_a_table(here: Path, role: int, content: bytes, suffix: str) -> None:
    if suffix.endswith(".gz"):
        content = gzip.compress(content, 1)
    read(written(here / f"text{suffix}", content), ROLES[role])


WHOLE = lakes(40).to_csv(index=False).encode()


def of_parquet(frame: pd.DataFrame, **options: Any) -> bytes:
    buffer = io.BytesIO()
    frame.to_parquet(buffer, **options)
    return buffer.getvalue()


def of_npz(compressed: bool) -> bytes:
    buffer = io.BytesIO()
    save = np.savez_compressed if compressed else np.savez
    save(buffer, ids=np.arange(40), embeddings=np.random.default_rng(0).normal(size=(40, 3)))
    return buffer.getvalue()


FORMATS = {
    "table.csv": WHOLE,
    "table.csv.gz": gzip.compress(WHOLE, mtime=0),
    "snappy.parquet": of_parquet(lakes(40), row_group_size=10),
    "plain.parquet": of_parquet(lakes(40), compression=None, use_dictionary=False),
    "zipped.npz": of_npz(True),
    "stored.npz": of_npz(False),
}


@pytest.mark.parametrize("name", FORMATS)
@examples(30)
@given(data=st.data())
def test_a_file_with_some_bytes_changed(here: Path, name: str, data: st.DataObject) -> None:
    content = data.draw(mutated(FORMATS[name]))
    path = written(here / name, content)
    if name.endswith(".npz"):
        metadata = written(here / "metadata.csv", WHOLE)
        try:
            table = open_table(path, metadata=metadata, id_column="id", text_columns=["lake", "season"])
            assert table.rows
        except DOCUMENTED as error:
            check_own(error)
    else:
        read(path, ROLES[0])


@examples(20)
@given(
    columns=st.dictionaries(
        NAMES | TEXTS,
        st.sampled_from(
            [
                "bytes",
                "dates",
                "times",
                "lists",
                "structs",
                "decimals",
                "mixed",
                "categories",
                "nulls",
                "half",
                "uint64",
            ]
        ),
        min_size=1,
        max_size=4,
    )
)
def test_a_parquet_of_any_types(here: Path, columns: dict[str, str]) -> None:
    import decimal

    import pyarrow as pa
    import pyarrow.parquet

    values: dict[str, Any] = {
        "bytes": pa.array([b"\xff", None, b""]),
        "dates": pa.array([0, 1, None], pa.date32()),
        "times": pa.array([0, 2**62, None], pa.timestamp("ns", tz="UTC")),
        "lists": pa.array([[1], [], None]),
        "structs": pa.array([{"a": 1}, None, {"a": None}]),
        "decimals": pa.array([decimal.Decimal("1.5"), None, decimal.Decimal(10) ** 30], pa.decimal128(38, 3)),
        "mixed": pa.array([1.5, float("nan"), float("inf")]),
        "categories": pa.array(["a", "b", None]).dictionary_encode(),
        "nulls": pa.nulls(3),
        "half": pa.array(np.array([1, 2, np.inf], np.float16)),
        "uint64": pa.array([2**64 - 1, 0, 1], pa.uint64()),
    }
    try:
        arrow = pa.table({name: values[kind] for name, kind in columns.items()})
    except UnicodeEncodeError:
        return
    path = here / "types.parquet"
    pyarrow.parquet.write_table(arrow, path)
    for role in ROLES:
        read(path, role)
    names = list(columns)
    read(path, {"targets": names[:1], "categories": names[1:]})


def test_a_very_wide_table(here: Path) -> None:
    names = ["pH", *(f"x{i}" for i in range(20_000))]
    row = ",".join("1.5" for _ in names)
    path = written(here / "wide.csv", f"{','.join(names)}\n{row}\n{row}\n".encode())
    assert read(path, {"targets": ["pH"]}) == 2
    assert read(path, {"targets": ["none"]}) is None


@pytest.mark.parametrize("file", sorted((CORPUS / "tables").glob("*")), ids=lambda file: file.name)
def test_what_once_failed(file: Path, here: Path) -> None:
    if file.suffix == ".npz":
        with pytest.raises(InputError) as caught:
            open_table(file, metadata=written(here / "metadata.csv", WHOLE), id_column="id")
        check_own(caught.value)
    for role in ROLES:
        read(file, role)
