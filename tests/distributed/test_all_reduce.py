"""Two processes, each with its own rows, against one process with all of them."""

import os
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.testing import assert_close

from reghead.normalization import CategoryNormalizer

CARDINALITIES = {"a": 5, "b": 3}
pytestmark = pytest.mark.skipif(not dist.is_available(), reason="torch was built without distributed")


def data() -> tuple[Tensor, dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    ids = {c: torch.randint(0, k, (101,), generator=generator) for c, k in CARDINALITIES.items()}
    y = 1e6 + torch.randn(101, 2, generator=generator, dtype=torch.float64)
    y[::7, 1] = float("nan")
    return y, ids


def new() -> CategoryNormalizer:
    return CategoryNormalizer(CARDINALITIES, shrinkage="empirical_bayes", fallback="additive")


def worker(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2, timeout=timedelta(seconds=60)
    )
    y, ids = data()
    states = {}
    for name, edges in {"shared": (0, 40, 101), "one empty": (0, 0, 101)}.items():
        rows = slice(edges[rank], edges[rank + 1])
        normalizer = new().partial_fit(y[rows], {c: i[rows] for c, i in ids.items()})
        states[name] = normalizer.all_reduce().state_dict()
    errors = []
    other = CategoryNormalizer({"a": 5 + rank, "b": 3})
    for wrong in (new(), other, new().fit(torch.ones(2, 1 + rank), {c: torch.ones(2).long() for c in ids})):
        try:
            wrong.all_reduce()
        except ValueError as error:
            errors.append(str(error))
    torch.save({"states": states, "errors": errors}, Path(folder) / f"{rank}.pt")
    dist.barrier()
    dist.destroy_process_group()


def test_all_ranks_hold_the_statistics_of_one_process_with_all_rows(tmp_path: Path) -> None:
    # This file as a script: pytest imports it in a way that a spawned process cannot repeat.
    environment = os.environ | {"GLOO_SOCKET_IFNAME": "lo"}
    ranks = [
        subprocess.Popen([sys.executable, __file__, str(rank), str(tmp_path)], env=environment, stderr=subprocess.PIPE)
        for rank in range(2)
    ]
    messages = [process.communicate(timeout=120)[1].decode() for process in ranks]
    assert [process.returncode for process in ranks] == [0, 0], messages
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    expected = new().fit(*data()).state_dict()
    for name, state in first["states"].items():
        for key, value in expected.items():
            assert torch.equal(state[key].nan_to_num(), second["states"][name][key].nan_to_num()), key
            if key != "cell_mean_tail":
                assert_close(state[key], value, rtol=1e-12, atol=1e-12, equal_nan=True, msg=key)
        lost = sum(state[key] - expected[key] for key in ("cell_mean", "cell_mean_tail"))
        assert lost.abs().max() < 1e-13, "a mean of 1e6 is right to a thousandth of its rounding"
    for errors in (first["errors"], second["errors"]):
        assert "at least one fitted rank" in errors[0]
        assert "same CategoryNormalizer on every rank" in errors[1]
        assert "one number of target columns, got [1, 2] by rank" in errors[2]


def test_a_group_of_one_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    expected = new().fit(*data())
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        alone = new().fit(*data()).all_reduce()
        with pytest.raises(ValueError, match="all_reduce needs at least one fitted rank, but no rank has seen a row"):
            new().all_reduce()
        ids = {c: torch.ones(1, dtype=torch.int64) for c in CARDINALITIES}
        half = new().partial_fit(torch.tensor([[1.0, float("nan")]]), ids)
        with pytest.raises(ValueError, match="needs a value with a positive weight, but column 1 has none"):
            half.all_reduce()
    finally:
        dist.destroy_process_group()
    for name, value in expected.state_dict().items():
        assert torch.equal(alone.state_dict()[name].nan_to_num(), value.nan_to_num()), name


def test_without_a_process_group_it_says_what_to_do() -> None:
    with pytest.raises(RuntimeError, match=r"all_reduce needs a process group; call torch\.distributed\.init_process"):
        new().fit(*data()).all_reduce()


if __name__ == "__main__":
    worker(int(sys.argv[1]), sys.argv[2])
