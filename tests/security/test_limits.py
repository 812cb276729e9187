"""Files that are made to fill the memory, to nest without end, or to lead elsewhere."""

import gzip
import io
import json
import os
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
import torch

from _command import errors, lakes, saved, train
from reghead._persistence import EXTRA_STATE, decode_json, encode_json
from reghead.cli import main
from reghead.cli._errors import InputError
from reghead.cli._limits import VARIABLE, check_unpacked
from reghead.cli._tables import open_table
from reghead.config import HeadConfig, LossConfig, config_from_args
from reghead.heads import RegressionHead

MIB = 2**20
Capture = pytest.CaptureFixture[str]


def gz(path: Path) -> None:
    with gzip.open(path, "wb", 9) as file:
        file.write(b"pH\n")
        for _ in range(8):
            file.write(b"1\n" * (MIB // 2))


def npz(path: Path) -> None:
    np.savez_compressed(path, ids=np.arange(2), embeddings=np.zeros((2, MIB // 2)))


def parquet(path: Path) -> None:
    pyarrow.parquet.write_table(pa.table({"pH": np.zeros(MIB)}), path)


@pytest.mark.parametrize(("name", "bomb"), [("t.csv.gz", gz), ("t.npz", npz), ("t.parquet", parquet)])
def test_a_file_that_unpacks_to_too_much(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, bomb: Callable[[Path], None]
) -> None:
    path, metadata = tmp_path / name, saved(tmp_path, lakes(3).assign(id=[0, 1, 2]))
    bomb(path)

    def opened() -> int:
        return open_table(path, metadata=metadata if name == "t.npz" else None, id_column="id").rows

    monkeypatch.setenv(VARIABLE, "0.001")
    with pytest.raises(
        InputError, match=rf"unpacks to more than 0\.001 GiB, and to more than 50 times.*set {VARIABLE}"
    ):
        opened()
    monkeypatch.setenv(VARIABLE, "1")
    assert opened() > 1
    monkeypatch.delenv(VARIABLE)
    assert opened() > 1


def test_what_people_write_is_never_too_much(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Numbers as text pack to a third of their size."""
    monkeypatch.setenv(VARIABLE, "1e-9")
    frame = lakes(2000)
    frame.to_csv(tmp_path / "t.csv.gz", index=False)
    frame.to_parquet(tmp_path / "t.parquet")
    for name in ("t.csv.gz", "t.parquet"):
        assert open_table(tmp_path / name, text_columns=["lake", "season"]).rows == 2000


def test_the_limit_is_four_gibibytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    (tmp_path / "t").write_bytes(b"0" * 100)
    check_unpacked(tmp_path / "t", 4 * 2**30)
    with pytest.raises(InputError, match="unpacks to more than 4 GiB"):
        check_unpacked(tmp_path / "t", 4 * 2**30 + 1)


@pytest.mark.parametrize("text", ["", "much", "0", "-1", "nan"])
def test_a_limit_that_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setenv(VARIABLE, text)
    with pytest.raises(InputError, match=f"{VARIABLE} must be a positive number of GiB, got '{text}'"):
        check_unpacked(tmp_path, 1)


def test_an_array_larger_than_its_file(tmp_path: Path) -> None:
    """The header of an array may name any shape."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f8", "fortran_order": False, "shape": (2**50, 2)})
    with zipfile.ZipFile(tmp_path / "t.npz", "w") as archive:
        archive.writestr("embeddings.npy", header.getvalue())
    with pytest.raises(InputError, match=r"cannot be read as \.npz"):
        open_table(tmp_path / "t.npz", metadata=saved(tmp_path, lakes()), id_column="id")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs devices")
def test_a_file_without_end(tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "endless.json").symlink_to("/dev/zero")
    for flag in ("--config", "--loss-config"):
        assert train(saved(tmp_path, lakes()), tmp_path / "out", flag, tmp_path / "endless.json") == 2
        (line,) = errors(capsys.readouterr().err)
        assert "it has more than 16 MiB, which no file of this kind has" in line


DEEP = "[" * 200_000


@pytest.mark.parametrize(
    "text", [DEEP, '{"a":' * 200_000, '{"head": ' + DEEP, "9" * 10_000, '{"delta": ' + "9" * 10_000]
)
def test_json_without_end(tmp_path: Path, capsys: Capture, text: str) -> None:
    for kind in (HeadConfig, LossConfig):
        with pytest.raises((ValueError, TypeError), match="is not valid JSON"):
            kind.from_json(text)
    with pytest.raises((ValueError, TypeError)):
        config_from_args({"loss_config": text})
    with pytest.raises(ValueError, match="do not parse"):
        decode_json(torch.tensor(list(text.encode()), dtype=torch.uint8))
    table = saved(tmp_path, lakes(30))
    for name, content in (("c.json", text), ("c.toml", f"a = {text}")):
        (tmp_path / name).write_text(content)
        assert train(table, tmp_path / "out", "--config", tmp_path / name) == 2
        (line,) = errors(capsys.readouterr().err)
        assert f"--config {tmp_path / name} is not valid" in line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "sizes",
    [
        {"hidden_dims": [10**6, 10**6]},
        {"in_features": 10**12},
        {"out_features": 10**9},
        {"moe": {"num_experts": 10**9, "route_features": True}},
        {"cardinalities": {"lake": 10**12}, "fusion": "concat"},
        {"hidden_dims": [8], "ensemble": 10**9},
    ],
    ids=lambda sizes: next(iter(sizes)),
)
def test_a_description_of_more_than_the_file_holds(sizes: dict[str, object]) -> None:
    """A file of a hundred bytes does not make a model of a terabyte."""
    state = RegressionHead(3, 1).state_dict()
    description = decode_json(state[EXTRA_STATE])
    description["config"] |= sizes
    state[EXTRA_STATE] = encode_json(description)
    with pytest.raises(ValueError, match=r"describes a RegressionHead of at least \d+ numbers, and holds \d+"):
        RegressionHead.from_state_dict(state)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    assert train(saved(folder, lakes()), folder / "out", "--max-epochs", 1) == 0
    return folder / "out"


def test_a_record_names_no_file_to_read(tmp_path: Path, model: Path, capsys: Capture) -> None:
    """A path in ``run.json``, absolute or upwards, is not followed: the model is the file beside it."""
    secret = tmp_path / "secret.safetensors"
    secret.write_bytes(b"secret")
    folder = shutil.copytree(model, tmp_path / "copy")
    record = json.loads((folder / "run.json").read_text())
    for path in (str(secret), "../secret.safetensors", "/etc/passwd", "", None, 3):
        record["model"]["file"] = path
        record["data"]["training"]["files"] = [{"name": path}]
        (folder / "run.json").write_text(json.dumps(record))
        before = sorted(tmp_path.iterdir())
        assert main(["predict", str(folder), str(model.parent / "lakes.csv"), "--output", str(tmp_path / "p.csv")]) == 0
        assert sorted(tmp_path.iterdir()) == sorted([*before, tmp_path / "p.csv"])
        (tmp_path / "p.csv").unlink()
        assert "secret" not in "".join(capsys.readouterr())


def test_links_are_not_followed_to_what_is_deleted(tmp_path: Path, model: Path, capsys: Capture) -> None:
    """In the place of an unfinished training, or inside it: what they lead to stays, whatever is replaced."""
    mine, table = tmp_path / "mine", model.parent / "lakes.csv"
    mine.mkdir()
    (mine / "unfinished.txt").write_text(
        "This training has not finished. The same command goes on with it with --resume.\n"
    )
    (mine / "thesis.txt").write_text("mine")
    (tmp_path / "out.partial").symlink_to(mine)
    code = train(table, tmp_path / "out", "--overwrite", "--max-epochs", 1)
    assert code in (0, 2)
    assert (mine / "thesis.txt").read_text() == "mine"
    capsys.readouterr()
    # Whatever was made of the link, the next start is none the worse.
    assert train(table, tmp_path / "out", "--overwrite", "--max-epochs", 1) == code
    assert (mine / "thesis.txt").read_text() == "mine"


def test_formulas_are_written_as_the_text_they_are(tmp_path: Path) -> None:
    """CSV is data, not a spreadsheet: a label is what it was, and the documentation says what to do with strangers'."""
    frame = lakes(30)
    frame["id"] = [f"=cmd|' /C calc'!A{i}" for i in range(30)]
    table = saved(tmp_path, frame)
    assert train(table, tmp_path / "out", "--max-epochs", 1) == 0
    assert main(["predict", str(tmp_path / "out"), str(table), "--output", str(tmp_path / "p.csv"), "--quiet"]) == 0
    assert open_table(tmp_path / "p.csv", text_columns=["id"]).column("id").tolist() == frame["id"].tolist()
    page = (Path(__file__).parents[2] / "docs" / "command_line.md").read_text(encoding="utf-8")
    assert "formula" in page
    assert VARIABLE in page
