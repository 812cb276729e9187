"""Training rows counted by two processes, each with its own, against one process with all of them."""

import os
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from reghead.heads import RegressionHead
from reghead.nn import CategoryEmbedding, ConditionalScaler

CARDINALITIES = {"location": 6, "season": 3}
PARTS = {
    "head": lambda: RegressionHead(2, 1, cardinalities=CARDINALITIES, fusion="add", scaler=["season"], wide=["season"]),
    "embedding": lambda: CategoryEmbedding(CARDINALITIES),
    "scaler": lambda: ConditionalScaler(CARDINALITIES, 1),
    "plain head": lambda: RegressionHead(2, 1),
}
# Rows of each process, by (location, season); None where observe is not called.
ROWS: dict[str, list[list[tuple[int, int]] | None]] = {
    "both": [[(1, 1), (1, 2), (0, 1)], [(3, 1), (1, 0)]],
    "one has none": [[], [(2, 1), (2, 1)]],
    "one was not told": [None, [(4, 2)]],
    "none was told": [None, None],
}
pytestmark = pytest.mark.skipif(not dist.is_available(), reason="torch was built without distributed")


def observed(name: str, rows: list[tuple[int, int]] | None) -> nn.Module:
    part = PARTS[name]()
    if rows is not None:
        ids = torch.tensor(rows, dtype=torch.int64).reshape(-1, 2)
        part.observe({"location": ids[:, 0], "season": ids[:, 1]})
    return part


def counts(part: nn.Module) -> dict[str, Tensor]:
    return {name: buffer for name, buffer in part.named_buffers() if "counts" in name}


def worker(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2, timeout=timedelta(seconds=60)
    )
    results = {}
    for name in PARTS:
        for case, rows in ROWS.items():
            part = observed(name, rows[rank])
            assert part.all_reduce() is part
            results[f"{name}, {case}"] = counts(part)
    errors = []
    sizes = {"location": 6 + rank, "season": 3}
    for wrong in (CategoryEmbedding(sizes), RegressionHead(2, 1, cardinalities=sizes, wide=["location"])):
        before = {name: buffer.clone() for name, buffer in counts(wrong).items()}
        try:
            wrong.all_reduce()
        except ValueError as error:
            errors.append(str(error))
        assert all(torch.equal(buffer, before[name]) for name, buffer in counts(wrong).items())
    alone = dist.new_group([0])
    if rank == 0:
        results["a group of one"] = counts(observed("head", ROWS["both"][0]).all_reduce(alone))
    torch.save({"results": results, "errors": errors}, Path(folder) / f"{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


def test_an_id_seen_by_one_process_is_known_to_all(tmp_path: Path) -> None:
    # This file as a script: pytest imports it in a way that a spawned process cannot repeat.
    environment = os.environ | {"GLOO_SOCKET_IFNAME": "lo"}
    ranks = [
        subprocess.Popen([sys.executable, __file__, str(rank), str(tmp_path)], env=environment, stderr=subprocess.PIPE)
        for rank in range(2)
    ]
    messages = [process.communicate(timeout=120)[1].decode() for process in ranks]
    assert [process.returncode for process in ranks] == [0, 0], messages
    states = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2)]
    for name in PARTS:
        for case, rows in ROWS.items():
            told = [row for share in rows if share is not None for row in share]
            expected = counts(observed(name, told or None))
            for state in states:
                result = state["results"][f"{name}, {case}"]
                assert result.keys() == expected.keys()
                for key, value in expected.items():
                    assert torch.equal(result[key], value), (name, case, key)
    alone = counts(observed("head", ROWS["both"][0]))
    assert all(torch.equal(states[0]["results"]["a group of one"][key], value) for key, value in alone.items())
    for state in states:
        assert state["errors"] == [
            f"all_reduce needs the same {kind} on every rank, but their columns or cardinalities differ"
            for kind in ("CategoryEmbedding", "RegressionHead")
        ]


@pytest.mark.parametrize("name", PARTS)
def test_without_a_process_group_observing_parts_say_what_to_do(name: str) -> None:
    with pytest.raises(RuntimeError, match=r"all_reduce needs a process group; call torch\.distributed\.init_process"):
        PARTS[name]().all_reduce()


if __name__ == "__main__":
    worker(int(sys.argv[1]), sys.argv[2])
