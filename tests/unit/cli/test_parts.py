"""Rows of a table as the training loop takes them: each once, and a large table never whole."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from _command import flags, lakes, saved
from reghead.cli import main
from reghead.cli._parts import TableParts
from reghead.cli._schema import Schema
from reghead.cli._tables import Table, open_table
from reghead.estimators._part import Part

SCHEMA = Schema(("pH",), ("lake",), ("depth", "light"), id_column="id", weight_column="weight")


def parquet(folder: Path, rows: int, group: int) -> Path:
    path = folder / "lakes.parquet"
    frame = lakes(rows).assign(weight=np.arange(rows) % 3 * 0.5)
    frame.to_parquet(path, row_group_size=group)
    return path


def joined(parts: Any) -> Part:
    found = list(parts)
    return Part(
        np.concatenate([part.numbers for part in found]),
        {"lake": np.concatenate([np.asarray(part.labels["lake"], object) for part in found])},
        np.concatenate([part.target for part in found]),
        np.concatenate([part.weight for part in found]),
    )


@given(rows=st.integers(1, 40), group=st.integers(1, 40), memory=st.integers(1, 40), seed=st.integers(0, 2**32 - 1))
def test_chunks_hold_the_kept_rows_once_and_in_order(
    tmp_path_factory: pytest.TempPathFactory, rows: int, group: int, memory: int, seed: int
) -> None:
    path = parquet(tmp_path_factory.mktemp("parts"), rows, group)
    keep = np.random.default_rng(seed).random(rows) < 0.7
    table = open_table(path, rows_in_memory=memory)
    parts = TableParts(table, SCHEMA, keep, weight_unit=0.5)
    whole, frame = joined(parts), lakes(rows)
    assert len(parts) == len(table.sizes)
    assert sum(len(part.target) for part in parts) == keep.sum()
    assert np.array_equal(whole.numbers, frame[["depth", "light"]].to_numpy()[keep])
    assert np.array_equal(whole.target[:, 0], frame["pH"].to_numpy()[keep])
    assert whole.labels["lake"].tolist() == frame["lake"][keep].tolist()
    assert np.array_equal(whole.weight, (np.arange(rows) % 3)[keep])  # type: ignore[arg-type]
    assert parts.labels(["lake", "season"])["lake"] == frame["lake"][keep].tolist()
    with pytest.raises(IndexError, match=f"chunk {len(parts)} of {len(parts)}"):
        parts[len(parts)]
    assert [len(part.target) for part in parts[:2]] == [len(part.target) for part in parts][:2]


def test_one_chunk_is_kept_and_several_are_not(tmp_path: Path) -> None:
    path = parquet(tmp_path, 30, 10)
    one, several = (TableParts(open_table(path, rows_in_memory=n), SCHEMA) for n in (30, 10))
    assert isinstance(one.in_memory(), list)
    assert several.in_memory() is several


def test_a_missing_label_is_none(tmp_path: Path) -> None:
    frame = lakes(3).assign(lake=["Como", None, "Erie"], weight=1.0)
    table = open_table(saved(tmp_path, frame), text_columns=("lake",))
    assert TableParts(table, SCHEMA).labels(["lake"]) == {"lake": ["Como", None, "Erie"]}


def train(path: Path, out: Path, memory: int, *more: Any) -> int:
    columns = ("--weight-column", "weight", "--dtype", "float64", "--normalize-targets-by", "lake")
    return main(flags(path, out, *columns, "--rows-in-memory", memory, *more))


@pytest.mark.parametrize("memory", [7, 25])
def test_statistics_are_those_of_the_table_in_memory(tmp_path: Path, memory: int) -> None:
    path = parquet(tmp_path, 103, 25)
    held = ("--validation-fraction", "0.25")
    assert train(path, tmp_path / "whole", 1000, *held) == 0
    assert train(path, tmp_path / "chunks", memory, *held) == 0
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("whole", "chunks"))
    assert one.keys() == two.keys()
    assert torch.equal(one["head._extra_state"], two["head._extra_state"]), "labels and their counts"
    compared = 0
    for name, value in one.items():
        statistic = not name.startswith("head.") or "counts" in name
        if statistic and not name.endswith(("_extra_state", "cell_mean_tail")):
            torch.testing.assert_close(two[name], value, rtol=1e-12, atol=1e-14, equal_nan=True, msg=name)
            compared += 1
    assert compared >= 8


def test_every_row_is_used_once_an_epoch_and_no_reading_is_larger_than_it_may_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a step of no size every target's mean loss is that of the untrained head: all of them count."""
    path, readings = parquet(tmp_path, 90, 30), []
    getitem, column = Table.__getitem__, Table.column

    def counted(self: Table, index: Any) -> Any:
        frame = getitem(self, index)
        readings.append(len(frame))
        return frame

    columns: list[str] = []

    def alone(self: Table, name: str) -> Any:
        columns.append(name)
        return column(self, name)

    monkeypatch.setattr(Table, "__getitem__", counted)
    monkeypatch.setattr(Table, "column", alone)
    losses = {}
    for memory in (8, 90):
        readings.clear()
        out = tmp_path / str(memory)
        assert train(path, out, memory, "--lr", "1e-300", "--batch-size", 5, "--max-epochs", 3) == 0
        assert max(readings) == memory
        lines = (out / "history.csv").read_text().splitlines()[1:]
        losses[memory] = [float(line.split(",")[1]) for line in lines]
    assert losses[8] == pytest.approx(losses[90], rel=1e-12)
    assert set(columns) <= {"lake", "season", "weight", "id", "pH"}, "features are never read whole"
