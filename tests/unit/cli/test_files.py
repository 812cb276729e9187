"""Files are there whole or not at all, numbers come back as they were, and fingerprints tell changes."""

import errno
import gzip
import hashlib
import json
import math
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

import reghead
from reghead.cli._errors import InputError
from reghead.cli._files import (
    TableWriter,
    atomic_path,
    data_fingerprint,
    is_inside,
    library_fingerprint,
    sha256_of,
    write_json,
    write_table,
)
from reghead.cli._schema import Schema
from reghead.cli._tables import open_table

KINDS = ["t.csv", "t.tsv", "t.tab", "t.csv.gz", "t.tsv.gz", "t.parquet", "t.pq"]
needs_full_device = pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full, which is Linux's")


# Whole or not at all.


def test_a_file_takes_its_place_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "t.csv.gz"
    path.write_text("old")
    with atomic_path(path) as partial:
        assert partial.parent == tmp_path
        assert partial.name.endswith(".t.csv.gz")  # writers go by the suffix
        partial.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"
    assert os.listdir(tmp_path) == ["t.csv.gz"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit])
def test_an_error_leaves_what_was_there(tmp_path: Path, error: type[BaseException]) -> None:
    path = tmp_path / "t.csv"
    path.write_text("old")

    def write() -> None:
        with atomic_path(path) as partial:
            partial.write_text("half")
            raise error

    with pytest.raises(error):
        write()
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["t.csv"]


def test_a_symbolic_link_stays_one_and_a_device_stays_a_device(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "link.json").symlink_to(tmp_path / "folder" / "real.json")
    write_json(tmp_path / "link.json", [1])
    assert (tmp_path / "link.json").is_symlink()
    assert json.loads((tmp_path / "folder" / "real.json").read_text()) == [1]
    (tmp_path / "null.json").symlink_to("/dev/null")
    write_json(tmp_path / "null.json", [1])
    assert Path("/dev/null").is_char_device()


def test_a_place_that_cannot_be_written_to_is_told(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"cannot write .*: there is no folder .*missing; create it first"):
        write_json(tmp_path / "missing" / "a.json", 1)
    with pytest.raises(InputError, match=r"cannot write .*: it is a folder"):
        write_json(tmp_path, 1)


def test_a_name_may_be_as_long_as_the_file_system_takes(tmp_path: Path) -> None:
    write_json(tmp_path / ("x" * 250 + ".json"), 1)
    assert os.listdir(tmp_path) == ["x" * 250 + ".json"]


@pytest.mark.parametrize(
    ("number", "message"),
    [
        (errno.ENOSPC, "no space left on the device"),
        (errno.EDQUOT, "the disk quota is used up"),
        (errno.EACCES, "permission denied"),
        (errno.EROFS, "the file system is read-only"),
    ],
)
def test_a_failing_disk_is_told_with_the_file(tmp_path: Path, number: int, message: str) -> None:
    def write() -> None:
        with atomic_path(tmp_path / "t.csv") as partial:
            partial.write_text("half")
            raise OSError(number, os.strerror(number))

    with pytest.raises(InputError, match=f"cannot write .*t.csv: {message}"):
        write()
    assert os.listdir(tmp_path) == []


def test_an_error_of_another_file_is_not_blamed_on_this_one(tmp_path: Path) -> None:
    def write(error: OSError) -> None:
        with atomic_path(tmp_path / "t.csv"):
            raise error

    with pytest.raises(PermissionError):
        write(PermissionError(errno.EACCES, "no", "other.csv"))
    with pytest.raises(OSError, match="Input/output"):
        write(OSError(errno.EIO, "Input/output"))


@needs_full_device
@pytest.mark.parametrize("name", [*KINDS, "t.json"])
def test_a_full_disk_is_told_with_the_file(tmp_path: Path, name: str) -> None:
    (tmp_path / name).symlink_to("/dev/full")
    frame = pd.DataFrame({"x": np.random.default_rng(0).normal(size=10_000)})
    with pytest.raises(InputError, match=f"cannot write .*{name}: no space left on the device"):
        write_json(tmp_path / name, 1) if name == "t.json" else write_table(tmp_path / name, frame)


# JSON.


def test_json_has_null_where_there_is_no_number(tmp_path: Path) -> None:
    """NaN and Infinity are no JSON: most parsers refuse them."""
    value = {
        "rmse": math.nan, "by": [math.inf, (1, np.float32(0.5)), np.array([-math.inf, 2.0])], 3: np.int64(4),
        "where": Path("a"), "é": None, "ok": np.True_,
    }  # fmt: skip
    write_json(tmp_path / "m.json", value)
    text = (tmp_path / "m.json").read_text(encoding="utf-8")
    assert text.endswith("}\n")
    assert "é" in text
    expected = {"rmse": None, "by": [None, [1, 0.5], [None, 2.0]], "3": 4, "where": "a", "é": None, "ok": True}
    assert json.loads(text, parse_constant=pytest.fail) == expected


@given(x=st.floats(allow_nan=False, allow_infinity=False))
def test_floats_in_json_are_exact(tmp_path_factory: pytest.TempPathFactory, x: float) -> None:
    path = tmp_path_factory.getbasetemp() / "exact.json"
    write_json(path, {"x": np.float64(x)})
    assert json.loads(path.read_text())["x"] == x


def test_what_is_no_json_leaves_no_file(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="not JSON serializable"):
        write_json(tmp_path / "m.json", {"a": object()})
    assert os.listdir(tmp_path) == []


# Tables.


def awkward() -> pd.DataFrame:
    rng = np.random.default_rng(0)
    x = np.concatenate([[0.1 + 0.2, 1e-310, -0.0, 1e300, np.nan], rng.normal(size=15)])
    site = ['a,"b"\n', "01", "NA", None, "é\t"] * 4
    return pd.DataFrame({"site": pd.Series(site, dtype="str"), "x": x, "n": np.arange(20)})


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("rows", [1, 7, 20])
def test_chunks_come_back_as_one_table(tmp_path: Path, name: str, rows: int) -> None:
    frame = awkward()
    with TableWriter(tmp_path / name) as writer:
        for start in range(0, len(frame), rows):
            writer.write(frame[start : start + rows])
        assert not (tmp_path / name).exists()
    assert os.listdir(tmp_path) == [name]
    pd.testing.assert_frame_equal(open_table(tmp_path / name, text_columns=["site"])[0], frame, check_exact=True)


@pytest.mark.parametrize("name", KINDS)
def test_rows_as_mappings(tmp_path: Path, name: str) -> None:
    write_table(tmp_path / name, [{"site": "a", "rmse": 0.5}, {"site": "b", "rmse": math.nan}])
    read = open_table(tmp_path / name, text_columns=["site"])[0]
    assert read["site"].tolist() == ["a", "b"]
    np.testing.assert_array_equal(read["rmse"], [0.5, np.nan])


@pytest.mark.parametrize("name", ["t.csv", "t.parquet"])
def test_float32_comes_back_as_it_was(tmp_path: Path, name: str) -> None:
    x = np.random.default_rng(0).normal(size=500).astype(np.float32)
    write_table(tmp_path / name, {"x": x})
    np.testing.assert_array_equal(open_table(tmp_path / name).column("x").to_numpy(np.float32), x)


@pytest.mark.parametrize("name", KINDS)
def test_an_error_between_chunks_leaves_no_table(tmp_path: Path, name: str) -> None:
    def write() -> None:
        with TableWriter(tmp_path / name) as writer:
            writer.write(awkward())
            raise RuntimeError("the model broke")

    with pytest.raises(RuntimeError, match="the model broke"):
        write()
    assert os.listdir(tmp_path) == []


def test_parquet_whose_first_chunk_has_no_label(tmp_path: Path) -> None:
    with TableWriter(tmp_path / "t.parquet") as writer:
        writer.write(pd.DataFrame({"site": pd.Series([None], dtype=object)}))
        writer.write(pd.DataFrame({"site": ["a"]}))
    assert open_table(tmp_path / "t.parquet").column("site").tolist()[1] == "a"


@pytest.mark.parametrize("name", KINDS)
def test_a_table_without_rows_keeps_its_header(tmp_path: Path, name: str) -> None:
    write_table(tmp_path / name, awkward()[:0])
    with pytest.raises(InputError, match="has no rows"):
        open_table(tmp_path / name)


def test_equal_tables_are_equal_files(tmp_path: Path) -> None:
    """gzip stores the time and the name of the file unless it is told not to."""
    for name in ("a.csv.gz", "b.csv.gz"):
        write_table(tmp_path / name, awkward())
    assert sha256_of(tmp_path / "a.csv.gz") == sha256_of(tmp_path / "b.csv.gz")
    assert gzip.decompress((tmp_path / "a.csv.gz").read_bytes())[4:8] != b"\0" * 4
    assert (tmp_path / "a.csv.gz").read_bytes()[4:8] == b"\0" * 4


def test_standard_output_is_csv_with_one_header(capsys: pytest.CaptureFixture[str]) -> None:
    with TableWriter() as writer:
        writer.write(pd.DataFrame({"x": [0.5], "site": ["a"]}))
        writer.write(pd.DataFrame({"x": [np.nan], "site": ["b"]}))
    assert capsys.readouterr().out == "x,site\n0.5,a\n,b\n"


def test_chunks_have_the_same_columns(tmp_path: Path) -> None:
    with TableWriter(tmp_path / "t.csv") as writer:
        writer.write(pd.DataFrame({"x": [1]}))
        with pytest.raises(ValueError, match=r"columns of the first, \['x'\], got \['z'\]"):
            writer.write(pd.DataFrame({"z": [1]}))


@pytest.mark.parametrize("name", ["t.xlsx", "t", "t.npz", "t.parquet.gz"])
def test_a_name_of_no_known_kind_is_told_before_anything_is_computed(tmp_path: Path, name: str) -> None:
    with pytest.raises(InputError, match=r"cannot write .*: name it by what it is to be, \.csv, \.tsv, \.tab .*\.pq"):
        TableWriter(tmp_path / name)


# Fingerprints.


def test_sha256_is_that_of_the_bytes(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    assert sha256_of(tmp_path / "a") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_data_is_told_by_what_it_holds_not_by_where_it_lies(tmp_path: Path) -> None:
    prints = []
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        path = tmp_path / folder / "t.csv"
        path.write_text("y,site,x\n1,a,0.5\n2,b,1\n")
        prints.append(data_fingerprint(open_table(path, text_columns=["site"]), Schema(("y",), ("site",))))
    assert prints[0] == prints[1]
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert prints[0] == {
        "files": [{"name": "t.csv", "size": 23, "sha256": digest}],
        "rows": 2,
        "columns": {"y": "int64", "site": "string"},
    }
    json.dumps(prints)


def test_the_library_is_told_by_its_sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    copy = tmp_path / "reghead"
    shutil.copytree(Path(reghead.__file__).parent, copy, ignore=shutil.ignore_patterns("__pycache__"))
    before = library_fingerprint()
    assert before.keys() == {"reghead", "torch", "numpy", "python", "platform", "source_sha256"}
    monkeypatch.setattr(reghead, "__file__", str(copy / "__init__.py"))
    assert library_fingerprint() == before  # wherever it is installed
    (copy / "py.typed").write_text("no source")
    assert library_fingerprint() == before
    changes: list[Any] = [
        lambda: (copy / "_new.py").write_text(""),
        lambda: (copy / "_new.py").write_text("x = 1\n"),
        lambda: (copy / "_new.py").rename(copy / "_newer.py"),
        lambda: (copy / "_newer.py").rename(copy / "cli" / "_newer.py"),
    ]
    seen = {before["source_sha256"]}
    for change in changes:
        change()
        seen.add(library_fingerprint()["source_sha256"])
    assert len(seen) == 1 + len(changes)


def test_what_lies_in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "a"
    (folder / "b").mkdir(parents=True)
    (folder / "b" / "file").write_text("")
    (tmp_path / "link").symlink_to(folder, target_is_directory=True)
    os.link(folder / "b" / "file", tmp_path / "hard")
    monkeypatch.chdir(tmp_path)
    for inside in ("a", "a/b/file", "link/b", "a/none/yet", "aa/../a/x"):
        assert is_inside(inside, "a"), inside
        assert is_inside(inside, tmp_path / "link"), inside
    for outside in ("aa", ".", "a/../x", "hard"):
        assert not is_inside(outside, "a"), outside
    assert is_inside("hard", "a/b/file")
    assert not is_inside("a/b/none", "a/b/file")
