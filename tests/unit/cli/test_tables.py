"""Tables: what a file holds is what comes out, in every format, and a broken file is told in one line."""

import gzip
import itertools
import sys
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reghead.cli import _arrow
from reghead.cli._errors import InputError
from reghead.cli._tables import PARQUET, Table, _plan, open_table

ROWS = pd.DataFrame({"depth": [0.1, 2.5, -3e-9], "count": [1, 2, 3], "wet": [True, False, True], "site": list("abc")})


def written(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def saved(folder: Path, name: str, frame: pd.DataFrame, **options: Any) -> Path:
    path = folder / name
    if name.endswith(PARQUET):
        frame.to_parquet(path, **options)
    else:
        frame.to_csv(path, index=False, sep="," if ".csv" in name.lower() else "\t")
    return path


@pytest.mark.parametrize("name", ["t.csv", "t.CSV", "t.csv.gz", "t.tsv", "t.tab.gz", "t.parquet", "t.pq"])
def test_every_format_gives_the_same_rows(tmp_path: Path, name: str) -> None:
    path = saved(tmp_path, name, ROWS)
    table = open_table(path)
    assert isinstance(table, Table)
    assert (len(table), table.rows, table.sizes, table.paths) == (1, 3, (3,), (path,))
    assert table.columns == ("depth", "count", "wet", "site")
    assert table.numeric == {"depth", "count", "wet"}
    for frame in (table[0], table[-1], next(iter(table))):
        pd.testing.assert_frame_equal(frame, ROWS)
    pd.testing.assert_series_equal(table.column("site"), ROWS["site"])
    assert list(table.select(["site", "depth"])[0].columns) == ["site", "depth"]
    assert list(open_table(path, columns=["wet", "depth"])[0].columns) == ["wet", "depth"]


def test_an_index_outside_the_chunks_is_an_index_error(tmp_path: Path) -> None:
    table = open_table(saved(tmp_path, "t.csv", ROWS))
    with pytest.raises(IndexError, match="chunk 1 of a table of 1"):
        table[1]
    with pytest.raises(TypeError):
        table[0:1]


def test_a_chunk_that_is_changed_changes_no_other_reading(tmp_path: Path) -> None:
    table = open_table(saved(tmp_path, "t.csv", ROWS))
    frame = table[0]
    frame["depth"] = 0.0
    frame["new"] = 1
    pd.testing.assert_frame_equal(table[0], ROWS)


# What is a label and what is missing.


def test_text_columns_stay_as_they_are_written(tmp_path: Path) -> None:
    """pandas reads 01 as 1, and the locations NA, None and null as missing."""
    labels = ["01", "1", "NA", "None", "null", "nan", "1.00", "true", " x", ""]
    path = written(tmp_path, "t.csv", "site,y\n" + "".join(f"{label},1\n" for label in labels))
    column = open_table(path, text_columns=["site", "absent"]).column("site")
    assert column[:9].tolist() == labels[:9]
    assert column.isna().tolist() == [False] * 9 + [True]


def test_a_label_is_the_same_whatever_the_other_rows_are(tmp_path: Path) -> None:
    """An integer-looking category is "1" in a file where all are integers, and in one where some are not."""
    train = open_table(written(tmp_path, "a.csv", "site,y\n1,1\n2,1\n"), text_columns=["site"])
    later = open_table(written(tmp_path, "b.csv", "site,y\n1,1\nx,1\n,1\n"), text_columns=["site"])
    assert train[0]["site"][0] == later[0]["site"][0] == "1"


@pytest.mark.parametrize(
    ("values", "labels"),
    [
        (["1", "01", "1.0", "-2.0", "1.5", "1.00", "v1.0"], ["1", "01", "1", "-2", "1.5", "1.00", "v1.0"]),
        (pd.array([1, None, 2**62 + 1], "Int64"), ["1", None, str(2**62 + 1)]),
        (np.array([1.0, np.nan, 0.1, 1e20, -3.0]), ["1", None, "0.1", "1" + 20 * "0", "-3"]),
        (np.array([0.1, 3.0], np.float32), ["0.1", "3"]),
        (np.array([0.5, 3.0], np.float16), ["0.5", "3"]),
        ([True, False, None], ["True", "False", None]),
        ([Decimal("1.50"), Decimal("100.00"), None], ["1.5", "100", None]),
        (pd.Categorical([10, 2, 10, None]), ["10", "2", "10", None]),
        (pd.Categorical(["1.0", "b"]), ["1", "b"]),
    ],
)
@pytest.mark.parametrize("rows_in_memory", [100, 2])
def test_a_label_is_the_same_text_from_a_parquet_file(
    tmp_path: Path, values: Any, labels: list[str | None], rows_in_memory: int
) -> None:
    """Of each type a whole number is written without a decimal point, and another as short as it can be."""
    frame = pd.DataFrame({"y": np.arange(len(labels)), "site": values})
    frame.to_parquet(tmp_path / "t.parquet", index=False)
    table = open_table(tmp_path / "t.parquet", text_columns=["site"], rows_in_memory=rows_in_memory)
    assert table.rows == len(labels)
    chunked = [label for chunk in table for label in chunk["site"]]
    for read in (table.column("site").tolist(), chunked):
        assert [None if pd.isna(label) else label for label in read] == labels
    # The same from text, as pandas writes it, where that is the same text.
    if frame["site"].dtype != np.float16 and not isinstance(values[0], Decimal):
        frame.to_csv(tmp_path / "t.csv", index=False)
        again = open_table(tmp_path / "t.csv", text_columns=["site"]).column("site").tolist()
        wanted = [f"1{'0' * 20}" if label == "1e+20" else label for label in again]
        assert [None if pd.isna(label) else label for label in wanted] == labels


def test_ids_and_what_is_no_label_keep_their_type_in_parquet(tmp_path: Path) -> None:
    frame = pd.DataFrame({"id": [7, 8], "day": pd.to_datetime(["2024-01-01", "2024-01-02"]), "x": [1.0, 2.0]})
    frame.to_parquet(tmp_path / "t.parquet", index=False)
    read = open_table(tmp_path / "t.parquet", id_column="id", text_columns=["id", "day"])[0]
    assert read["id"].tolist() == [7, 8]
    assert read["day"].dtype.kind == "M"
    assert read["x"].dtype == np.float64


@pytest.mark.parametrize("token", ["", "NA", "NaN", "nan", "null", "NULL", "None", "N/A"])
def test_a_missing_number_is_nan_whatever_the_type_of_its_column(tmp_path: Path, token: str) -> None:
    content = f"f,i,b,z\n1.5,1,true,{token}\n{token},{token},{token},{token}\n"
    frame = open_table(written(tmp_path, "t.csv", content))[0]
    assert [str(dtype) for dtype in frame.dtypes] == ["float64"] * 4
    np.testing.assert_array_equal(frame, [[1.5, 1, 1, np.nan], [np.nan] * 4])


def test_numbers_are_the_nearest_float64_of_what_is_written(tmp_path: Path) -> None:
    values = np.random.default_rng(0).normal(size=2000) * 10.0 ** np.random.default_rng(1).integers(-300, 300, 2000)
    path = written(tmp_path, "t.csv", "x\n" + "\n".join(map(repr, values.tolist())))
    np.testing.assert_array_equal(open_table(path).column("x"), values)


def test_a_type_is_that_of_all_rows_not_of_the_first(tmp_path: Path) -> None:
    path = written(tmp_path, "t.csv", "x,y\n" + "1,7\n" * 400_000 + "0.5,7\n")
    assert open_table(path).types == {"x": "double", "y": "int64"}


@pytest.mark.parametrize("name", ["t.csv", "t.csv.gz"])
def test_quoted_fields_may_hold_commas_quotes_and_line_breaks(tmp_path: Path, name: str) -> None:
    frame = pd.DataFrame({"site": ["a,b", 'c"d', "e\nf", "é"] * 3, "y": 1.5})
    pd.testing.assert_frame_equal(open_table(saved(tmp_path, name, frame))[0], frame)


def test_line_breaks_in_quotes_are_kept_in_a_large_file(tmp_path: Path) -> None:
    """A file is parsed in blocks, and a block must not begin inside a field."""
    label = "\n".join("1,2" for _ in range(40))
    table = open_table(written(tmp_path, "t.csv", "site,y\n" + f'"{label}",1\n' * 20_000))
    assert table.rows == 20_000
    assert table.column("site").unique().tolist() == [label]


def test_a_single_column_may_have_a_comma_in_its_name(tmp_path: Path) -> None:
    assert open_table(written(tmp_path, "t.csv", '"a,b"\n1\n')).columns == ("a,b",)


def test_byte_order_mark_and_windows_line_ends_are_no_part_of_the_data(tmp_path: Path) -> None:
    table = open_table(written(tmp_path, "t.csv", b"\xef\xbb\xbfsite,y\r\na,1\r\n"))
    assert table[0].to_dict("list") == {"site": ["a"], "y": [1]}


def test_the_row_index_that_pandas_writes_is_left_out(tmp_path: Path) -> None:
    """Row numbers are a feature that says nothing, or gives the split away."""
    ROWS.to_csv(tmp_path / "t.csv")
    shuffled = ROWS.iloc[[2, 0, 1]]
    shuffled.to_parquet(tmp_path / "t.parquet")
    for name, expected in (("t.csv", ROWS), ("t.parquet", shuffled.reset_index(drop=True))):
        pd.testing.assert_frame_equal(open_table(tmp_path / name)[0], expected)
    ROWS.set_index("site").to_parquet(tmp_path / "named.parquet")
    assert open_table(tmp_path / "named.parquet").column("site").tolist() == ["a", "b", "c"]


def test_parquet_keeps_its_types(tmp_path: Path) -> None:
    frame = pd.DataFrame({"code": [1, 2], "label": ["01", "NA"], "kind": pd.Categorical(["a", "b"])})
    read = open_table(saved(tmp_path, "t.parquet", frame))[0]
    assert read["code"].tolist() == [1, 2]
    assert read["label"].tolist() == ["01", "NA"]
    assert read["kind"].tolist() == ["a", "b"]


def test_missing_values_of_parquet_become_nan(tmp_path: Path) -> None:
    decimals = pa.array([None, "1.25"]).cast(pa.decimal128(5, 2))
    pq.write_table(
        pa.table({"i": pa.array([1, None]), "b": pa.array([None, True]), "d": decimals, "z": pa.nulls(2)}),
        tmp_path / "t.parquet",
    )
    table = open_table(tmp_path / "t.parquet")
    assert table.numeric == {"i", "b", "d", "z"}
    np.testing.assert_array_equal(table[0], [[1, np.nan, np.nan, np.nan], [np.nan, 1, 1.25, np.nan]])


# Parquet in pieces.


@given(st.lists(st.integers(0, 9), max_size=8), st.integers(1, 12))
def test_a_plan_takes_every_row_once_and_in_order(groups: list[int], rows: int) -> None:
    chunks = _plan(groups, rows)
    taken = []
    for first, last, start, stop in chunks:
        inside = [(group, row) for group in range(first, last) for row in range(groups[group])]
        taken += inside[start:stop]
        assert 0 < stop - start <= rows
    assert taken == [(group, row) for group, size in enumerate(groups) for row in range(size)]
    # Pooled: two neighbours of whole row groups don't fit together.
    whole = [c for c in chunks if c[2] == 0 and c[3] == sum(groups[c[0] : c[1]])]
    for left, right in itertools.pairwise(whole):
        if left[1] == right[0] and chunks.index(right) == chunks.index(left) + 1:
            assert left[3] + groups[right[0]] > rows


@pytest.mark.parametrize("rows_in_memory", [1, 3, 4, 7, 8, 10, 19, 20, 100])
def test_parquet_in_chunks_is_the_whole_table(tmp_path: Path, rows_in_memory: int) -> None:
    frame = pd.DataFrame({"x": np.arange(20.0), "site": [f"s{i % 3}" for i in range(20)], "k": range(20)})
    table = open_table(saved(tmp_path, "t.parquet", frame, row_group_size=8), rows_in_memory=rows_in_memory)
    assert table.rows == 20
    assert len(table) == len(table.sizes) >= 20 / rows_in_memory
    assert max(table.sizes) <= rows_in_memory
    for _ in range(2):  # re-readable
        chunks = list(table)
        assert [len(chunk) for chunk in chunks] == list(table.sizes)
        assert all(chunk.index.equals(pd.RangeIndex(len(chunk))) for chunk in chunks)
        pd.testing.assert_frame_equal(pd.concat(chunks, ignore_index=True), frame)
    pd.testing.assert_frame_equal(table[-1], chunks[-1])
    pd.testing.assert_series_equal(table.column("site"), frame["site"])
    chosen = table.select(["k", "x"])
    assert all(list(chunk.columns) == ["k", "x"] for chunk in chosen)


def test_a_row_group_is_cut_where_it_spans_many_batches(tmp_path: Path) -> None:
    frame = pd.DataFrame({"x": np.arange(200_000)})
    table = open_table(saved(tmp_path, "t.parquet", frame), rows_in_memory=90_000)
    assert table.sizes == (90_000, 90_000, 20_000)
    pd.testing.assert_frame_equal(table[1], frame[90_000:180_000].reset_index(drop=True))


def test_a_larger_table_is_not_kept_and_a_column_is_read_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(tmp_path, "t.parquet", ROWS, row_group_size=1)
    table = open_table(path, rows_in_memory=2)
    assert table[0] is not table[0]
    asked = []
    read = pq.ParquetFile.read
    monkeypatch.setattr(pq.ParquetFile, "read", lambda file, columns: asked.append(columns) or read(file, columns))
    assert table.column("count").tolist() == [1, 2, 3]
    assert asked == [["count"]]


def test_a_name_that_is_the_beginning_of_another_reads_its_own_column(tmp_path: Path) -> None:
    frame = pd.DataFrame({"a.b": [1], "a": [2]})
    table = open_table(saved(tmp_path, "t.parquet", frame))
    assert table.column("a").tolist() == [2]
    assert table.column("a.b").tolist() == [1]
    assert table.select(["a"])[0].to_dict("list") == {"a": [2]}


# Embeddings.


def archive(folder: Path, arrays: dict[str, Any]) -> Path:
    np.savez(folder / "e.npz", **arrays)
    return folder / "e.npz"


def embeddings(folder: Path, ids: Any) -> Path:
    values = np.arange(2.0 * len(ids), dtype=np.float32).reshape(-1, 2)
    return archive(folder, {"vectors": values, "names": np.asarray(ids)})


def test_embeddings_are_joined_by_id_in_their_own_order(tmp_path: Path) -> None:
    path = embeddings(tmp_path, ["c", "a", "x", "b"])
    metadata = saved(tmp_path, "m.csv", pd.DataFrame({"id": list("abcd"), "pH": [7.0, 7.1, 7.2, 7.3]}))
    table = open_table(path, metadata=metadata, id_column="id")
    expected = {"id": ["c", "a", "b"], "pH": [7.2, 7.0, 7.1], "embedding_0": [0.0, 2.0, 6.0]}
    expected["embedding_1"] = [1.0, 3.0, 7.0]
    assert table[0].to_dict("list") == expected
    assert table.columns == tuple(expected)
    assert table.numeric == {"pH", "embedding_0", "embedding_1"}
    assert table.unmatched == (1, 1)
    assert table.paths == (path, metadata)
    assert table.column("embedding_1").dtype == np.float32


@pytest.mark.parametrize("name", ["m.csv", "m.parquet"])
@pytest.mark.parametrize("ids", [[10, 2], [10.0, 2.0], ["10", "2"], np.array([b"10", b"2"])])
def test_ids_compare_as_text(tmp_path: Path, name: str, ids: Any) -> None:
    metadata = saved(tmp_path, name, pd.DataFrame({"id": [2, 10], "y": [0.5, 0.25]}))
    table = open_table(embeddings(tmp_path, ids), metadata=metadata, id_column="id")
    assert table[0]["y"].tolist() == [0.25, 0.5]
    assert table.unmatched == (0, 0)


def test_ids_with_leading_zeros_are_not_numbers(tmp_path: Path) -> None:
    metadata = written(tmp_path, "m.csv", "id,y\n01,1\n1,2\n")
    table = open_table(embeddings(tmp_path, ["1", "01"]), metadata=metadata, id_column="id")
    assert table[0]["y"].tolist() == [2, 1]


def test_arrays_are_told_apart_by_name_where_their_shapes_do_not(tmp_path: Path) -> None:
    metadata = written(tmp_path, "m.csv", "id,y\na,1\n")
    arrays = {"ids": np.array(["a"]), "embeddings": np.ones((1, 3)), "other": np.ones(4)}
    table = open_table(archive(tmp_path, arrays), metadata=metadata, id_column="id")
    assert table.columns == ("id", "y", "embedding_0", "embedding_1", "embedding_2")


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"ids": np.array(["a"])}, r"must hold embeddings, an array \(N, F\), and ids.*it holds ids \(1,\)"),
        ({"a": np.ones((1, 2)), "b": np.ones((1, 2)), "ids": np.ones(1)}, r"it holds a \(1, 2\), b \(1, 2\), ids"),
        ({"ids": np.array(["a", "b"]), "e": np.ones((1, 2))}, "has 2 ids and 1 embeddings"),
        ({"ids": np.array(["a"]), "e": np.array([["x"]])}, "e in .* must hold numbers, got <U1"),
        ({"ids": np.array(["a", "a"]), "e": np.ones((2, 2))}, "the ids of .* must be unique, and 'a' is there more"),
        ({"ids": np.array([1.0, np.nan]), "e": np.ones((2, 2))}, "the ids of .* has no value in row 2"),
        ({"ids": np.array([], "U1"), "e": np.ones((0, 2))}, "has no rows"),
        ({"ids": np.array(["q"]), "e": np.ones((1, 2))}, r"no id of .*such as 'q'.* 'id' of .*such as 'a'"),
        ({"ids": np.array(["a"], object), "e": np.ones((1, 2))}, "cannot be read as .npz: Object arrays cannot"),
    ],
)
def test_embeddings_that_do_not_fit_are_told(tmp_path: Path, arrays: dict[str, Any], message: str) -> None:
    metadata = written(tmp_path, "m.csv", "id,y\na,1\nb,2\n")
    with pytest.raises(InputError, match=message):
        open_table(archive(tmp_path, arrays), metadata=metadata, id_column="id")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("id,y\na,1\na,2\n", "column 'id' of .*m.csv must be unique, and 'a' is there"),
        ("id,y\na,1\n,2\n", "column 'id' of .*m.csv has no value in row 2"),
        ("ids,y\na,1\n", "m.csv has no column 'id', but 'ids', 'y'; did you mean 'ids'"),
        ("id,embedding_0\na,1\n", "more than one column 'embedding_0'"),
    ],
)
def test_metadata_that_does_not_fit_is_told(tmp_path: Path, content: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        open_table(embeddings(tmp_path, ["a"]), metadata=written(tmp_path, "m.csv", content), id_column="id")


def test_metadata_goes_with_embeddings_alone(tmp_path: Path) -> None:
    npz, csv = embeddings(tmp_path, ["a"]), written(tmp_path, "m.csv", "id,y\na,1\n")
    for options in ({}, {"metadata": csv}, {"id_column": "id"}):
        with pytest.raises(InputError, match=r"pass the table .* as --metadata, and its column of ids as --id-column"):
            open_table(npz, **options)
    with pytest.raises(InputError, match=r"--metadata goes with embeddings in an .npz file"):
        open_table(csv, metadata=csv, id_column="id")
    with pytest.raises(InputError, match="--metadata must be a CSV, TSV or Parquet file"):
        open_table(npz, metadata=npz, id_column="id")


# Broken files.


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.csv", "", "t.csv is empty"),
        ("t.csv", "a,b\n", "t.csv has no rows"),
        ("t.csv", ",\n1,2\n", "t.csv has no columns with a name"),
        ("t.csv", "a,b,a\n1,2,3\n", "more than one column 'a'; give each a name of its own"),
        ("t.csv", "a,b\n1,2\n3\n", "t.csv has 1 fields in row 2, expected 2 as in its header: '3'"),
        ("t.csv", "a,b\n1,2\n3,4\n5,6,7\n", "t.csv has 3 fields in row 3, expected 2 as in its header: '5,6,7'"),
        ("t.csv", 'a,b\n"x,1\n2,3\n', "t.csv has 1 fields in row 1, expected 2"),
        ("t.csv", "a;b\n1;2\n", "has one column, 'a;b', which looks like several separated by ';'"),
        ("t.tsv", "a,b\n1,2\n", "has one column, 'a,b', which looks like several separated by ','"),
        ("t.csv", b"a,\xe9\n1,2\n", "t.csv is not encoded in UTF-8; convert it"),
        ("t.csv", b"a,b\n1,\xe9\n", "t.csv is not encoded in UTF-8; convert it"),
        ("t.csv", "a,b\n1,2\n".encode("utf-16"), "t.csv is not encoded in UTF-8; convert it"),
        ("t.csv", b"site,b\n\xe9,1\n", "t.csv is not encoded in UTF-8; convert it"),
        ("t.csv.gz", "a,b\n1,2\n", "t.csv.gz cannot be read as gzip: zlib inflate failed"),
        (
            "t.csv.gz",
            gzip.compress(b"a,b\n" + b"1,2\n" * 99, mtime=0)[:-9],
            "t.csv.gz cannot be read as gzip: Truncated",
        ),
        ("t.parquet", "a,b\n1,2\n", "t.parquet cannot be read as Parquet: Parquet"),
        ("t.npz", "a,b\n1,2\n", "t.npz cannot be read as .npz"),
        ("t.npz", b"PK\x03\x04 broken", "t.npz cannot be read as .npz: File is not a zip file"),
        ("t.xlsx", "a", r"t.xlsx has a name of no known kind; .*\.csv, \.tsv, \.tab .*\.parquet, \.pq or \.npz"),
        ("t.txt", "a", "t.txt has a name of no known kind"),
        ("t.parquet.gz", "a", "t.parquet.gz has a name of no known kind"),
    ],
)
def test_a_broken_file_is_told_in_one_line(tmp_path: Path, name: str, content: Any, message: str) -> None:
    metadata = written(tmp_path, "m.csv", "id,y\na,1\n") if name.endswith(".npz") else None
    with pytest.raises(InputError, match=message) as raised:
        open_table(
            written(tmp_path, name, content),
            metadata=metadata,
            id_column="id" if metadata else None,
            text_columns=["site"],
        )
    assert "\n" not in str(raised.value)


def test_the_row_of_a_break_far_down_the_file(tmp_path: Path) -> None:
    path = written(tmp_path, "t.csv", "a,b\n" + "1,2\n" * 700_000 + "3\n" + "1,2\n" * 9)
    with pytest.raises(InputError, match="has 1 fields in row 700001, expected 2"):
        open_table(path)


def test_parquet_that_is_broken_inside_is_told(tmp_path: Path) -> None:
    path = saved(tmp_path, "t.parquet", pd.DataFrame({"x": np.random.default_rng(0).normal(size=1000)}))
    content = bytearray(path.read_bytes())
    content[4:2000] = b"\xff" * 1996
    path.write_bytes(content)
    with pytest.raises(InputError, match=r"t.parquet cannot be read as Parquet"):
        open_table(path)[0]


def test_parquet_without_rows_and_with_a_name_twice(tmp_path: Path) -> None:
    pq.write_table(pa.table({"x": pa.array([], pa.float64())}), tmp_path / "a.parquet")
    with pytest.raises(InputError, match=r"a.parquet has no rows"):
        open_table(tmp_path / "a.parquet")
    pq.write_table(pa.table([[1], [2]], names=["x", "x"]), tmp_path / "b.parquet")
    with pytest.raises(InputError, match="more than one column 'x'"):
        open_table(tmp_path / "b.parquet")


def test_a_file_that_is_not_there_or_not_a_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"t.csv does not exist"):
        open_table(tmp_path / "t.csv")
    with pytest.raises(InputError, match="is a folder, expected a file"):
        open_table(tmp_path)
    (tmp_path / "null.csv").symlink_to("/dev/null")
    with pytest.raises(InputError, match=r"null.csv is not a regular file"):
        open_table(tmp_path / "null.csv")


def test_a_file_without_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved(tmp_path, "t.csv", ROWS)

    def refuse(*_: Any) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(InputError, match=r"t.csv cannot be read: permission denied"):
        open_table(path)


def test_a_column_that_is_not_there_is_told_with_a_guess(tmp_path: Path) -> None:
    path = saved(tmp_path, "t.csv", ROWS)
    with pytest.raises(InputError, match=r"has no column 'dept', but 'depth', .*; did you mean 'depth'"):
        open_table(path, columns=["dept"])
    wide = saved(tmp_path, "w.csv", pd.DataFrame({f"c{i}": [1] for i in range(50)}))
    with pytest.raises(InputError, match="'c9' and 40 more"):
        open_table(wide).column("x")


@pytest.mark.parametrize(("package", "name"), [("pyarrow", "t.csv"), ("pyarrow", "t.parquet")])
def test_a_missing_package_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: str, name: str
) -> None:
    path = saved(tmp_path, name, ROWS)
    for module in [module for module in sys.modules if module.partition(".")[0] == package]:
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(InputError, match=rf"this needs {package}, .*pip install 'reghead\[cli\]'"):
        open_table(path)


def test_pandas_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(InputError, match=r"this needs pandas, .*pip install 'reghead\[cli\]'"):
        _arrow.need("pandas")


@pytest.mark.parametrize("name", ["ArrowInvalid", "ArrowNotImplementedError", "ArrowKeyError", "ArrowIndexError"])
def test_whatever_arrow_says_of_a_file_is_one_line_with_its_name(name: str) -> None:
    error = getattr(pa.lib, name)
    message = r"t\.parquet cannot be read as Parquet: .*a codec of the future"
    with pytest.raises(InputError, match=message), _arrow.reading(Path("t.parquet"), "Parquet"):
        raise error("a codec of the future")
