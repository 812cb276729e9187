"""Two processes on gloo: DDP without a search for unused parameters, validation with categories, and FSDP."""

import os
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

sys.path.insert(0, str(Path(__file__).parents[2]))  # run as a script, too

from adapters._hosts import HOSTS, host_named, ids, tokens
from reghead.adapters.aam import attach, prepare_trainer
from reghead.normalization import CategoryNormalizer

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not dist.is_available() or os.name == "nt", reason="needs gloo"),
]
ASKED: dict[str, Any] = {
    "hidden_dims": (8,),
    "film": ("location",),
    "scaler": ("location", "season"),
    "wide": ("season",),
    "learnable_scale": False,
    "moe": {"num_experts": 3, "routing": ("season",), "load_balancing_weight": 0.1},
    "quantiles": (0.1, 0.5, 0.9),
    "cardinalities": {"location": 4, "season": 3},
}
QUANTILES = {"type": "quantile", "quantiles": [0.1, 0.5, 0.9]}


def target() -> torch.Tensor:
    return torch.tensor([[1.0], [10.0], [100.0], [3.0], [12.0]], dtype=torch.float64)


def batch(rank: int, *, with_ids: bool = True) -> dict[str, Any]:
    rows = slice(0, 4) if rank == 0 else slice(1, 5)
    made: dict[str, Any] = {
        "tokens": tokens()[rows],
        "y_target": target()[rows],
        "sample_ids": [f"s{i}" for i in range(5)][rows],
    }
    if with_ids:
        made["categorical_ids"] = {column: values[rows] for column, values in ids().items()}
    return made


def normalizer() -> CategoryNormalizer:
    return CategoryNormalizer({"season": 3}).fit(target(), {"season": ids()["season"]})


def ddp(rank: int, name: str) -> dict[str, Any]:
    host = host_named(name)
    # Without categories of its own: AAM's fusion of them would be in one process's graph and not in the other's. And
    # with a frozen base, part of which only AAM's own losses reach.
    model = attach(host.predictor(count_prediction=False, freeze_base=True), ASKED, normalizer=normalizer())
    first = {key: value.clone() for key, value in model.state_dict().items()}
    wrapped = torch.nn.parallel.DistributedDataParallel(model, find_unused_parameters=False)
    used = [p for n, p in model.named_parameters() if n.startswith("target_head")]
    trainer = host.Trainer(wrapped, host.loss(QUANTILES), optimizer=torch.optim.SGD(used, lr=0.1))
    prepare_trainer(trainer)
    for _ in range(3):
        trainer.train_epoch([batch(rank)])
    scores, *_, full = trainer.validate_epoch([batch(rank)], collect_all_predictions=True)
    with torch.no_grad():
        out = model.eval()(batch(rank)["tokens"], categorical_ids=batch(rank)["categorical_ids"])["target_prediction"]
    expected = model.target_head.normalizer.inverse(
        out[..., 1].double(), {"season": batch(rank)["categorical_ids"]["season"]}
    )
    # One process has no categories: the parameters of the head are in every graph all the same.
    ids_of_one = {"categorical_ids": batch(rank)["categorical_ids"]} if rank == 0 else {}
    wrapped.train()
    for _ in range(2):
        outputs = wrapped(batch(rank)["tokens"], **ids_of_one)
        (outputs["target_prediction"].square().mean() + sum(p.sum() * 0 for p in outputs.values())).backward()
    moved = [key for key, value in model.state_dict().items() if not torch.equal(value, first[key])]
    return {
        "state": {key: value for key, value in model.state_dict().items() if key.startswith("target_head")},
        "gradients": [p.grad for p in used],
        "moved": [key for key in moved if key.startswith("target_head")],
        "error": (full["predictions"].double() - expected).abs().max().item(),
        "mae": scores["mae"],
    }


def fsdp(rank: int, name: str) -> dict[str, Any]:
    from torch.distributed.fsdp import FullyShardedDataParallel

    model = attach(host_named(name).predictor(count_prediction=False), ASKED)
    alone = model.eval()(tokens(), categorical_ids=ids())["target_prediction"].detach()
    wrapped = FullyShardedDataParallel(model, device_id=torch.device("cpu"), use_orig_params=True)
    out = wrapped(tokens(), categorical_ids=ids())["target_prediction"]
    wrapped.train()(tokens(), categorical_ids=ids())["target_prediction"].square().mean().backward()
    return {"error": (out - alone).abs().max().item(), "embedder": wrapped.categorical_embedder is not None}


def worker(rank: int, folder: str, kind: str, name: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2, timeout=timedelta(seconds=60)
    )
    result = {"ddp": ddp, "fsdp": fsdp}[kind](rank, name)
    torch.save(result, Path(folder) / f"{rank}.pt")
    dist.barrier()
    os._exit(0)  # torch's own teardown can crash after all is done


def run(folder: Path, kind: str, name: str) -> list[dict[str, Any]]:
    # This file as a script: pytest imports it in a way that a spawned process cannot repeat.
    environment = os.environ | {"GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-W", "ignore", __file__, str(rank), str(folder), kind, name],
            env=environment,
            stderr=subprocess.PIPE,
        )
        for rank in range(2)
    ]
    messages = [process.communicate(timeout=180)[1].decode() for process in ranks]
    assert [process.returncode for process in ranks] == [0, 0], messages
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.mark.parametrize("name", HOSTS)
def test_two_processes_train_one_head(name: str, tmp_path: Path) -> None:
    first, second = run(tmp_path, "ddp", name)
    for key, value in first["state"].items():
        assert torch.equal(value, second["state"][key]), key
    for mine, theirs in zip(first["gradients"], second["gradients"], strict=True):
        assert mine is not None
        assert torch.equal(mine, theirs)
    tables = ("target_head.output_scales.bias_location", "target_head.categorical_embedder.weight_season")
    assert set(tables) <= set(first["moved"])
    # Validation has the categories, and is in the units of the target, in both.
    for result in (first, second):
        assert result["error"] < 1e-4
        assert result["mae"] > 0


@pytest.mark.parametrize("name", HOSTS)
def test_sharded_parameters_predict_the_same(name: str, tmp_path: Path) -> None:
    for result in run(tmp_path, "fsdp", name):
        assert result["error"] < 1e-5
        assert result["embedder"]


if __name__ == "__main__":
    worker(int(sys.argv[1]), sys.argv[2], sys.argv[3], sys.argv[4])
