"""Labels of two processes, each with its own rows, against one process with all of them."""

import json
import os
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from reghead.categories import CategoryEncoder

# Of each process: location, season; None where it has seen no table.
ROWS: dict[str, list[list[tuple[object, object]] | None]] = {
    "other labels": [[("B", 1), ("A", 2)], [("C", 1), (None, 3), ("B", 1)]],
    "one has none": [None, [("A", 1)]],
    "one has no rows": [[("A", 1), ("A", None)], []],
}
pytestmark = pytest.mark.skipif(not dist.is_available(), reason="torch was built without distributed")


def fitted(rows: list[tuple[object, object]] | None) -> CategoryEncoder:
    encoder = CategoryEncoder(["location", "season"])
    if rows is not None:
        encoder.partial_fit({"location": [row[0] for row in rows], "season": [row[1] for row in rows]})
    return encoder


def worker(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2, timeout=timedelta(seconds=60)
    )
    results: dict[str, object] = {name: fitted(rows[rank]).all_reduce().to_dict() for name, rows in ROWS.items()}
    for name, encoder in {
        "nobody": fitted(None),
        "other columns": CategoryEncoder(["a"] if rank else ["b"]).fit({"a": [1], "b": [1]}),
    }.items():
        try:
            encoder.all_reduce()
        except (RuntimeError, ValueError) as error:
            results[name] = str(error)
    (Path(folder) / f"{rank}.json").write_text(json.dumps(results))
    dist.barrier()
    dist.destroy_process_group()


def test_all_ranks_hold_the_labels_of_one_process_with_all_rows(tmp_path: Path) -> None:
    # This file as a script: pytest imports it in a way that a spawned process cannot repeat.
    environment = os.environ | {"GLOO_SOCKET_IFNAME": "lo"}
    ranks = [
        subprocess.Popen([sys.executable, __file__, str(rank), str(tmp_path)], env=environment, stderr=subprocess.PIPE)
        for rank in range(2)
    ]
    messages = [process.communicate(timeout=120)[1].decode() for process in ranks]
    assert [process.returncode for process in ranks] == [0, 0], messages
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    told = [results.pop("other columns") for results in (first, second)]
    assert all("merge needs encoders of the same columns" in message for message in told)
    assert first == second
    for name, rows in ROWS.items():
        assert first[name] == fitted([row for share in rows for row in share or []]).to_dict(), name
    assert "has no labels yet" in first["nobody"]


if __name__ == "__main__":
    worker(int(sys.argv[1]), sys.argv[2])
