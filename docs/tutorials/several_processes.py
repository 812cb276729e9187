"""Train one head in two processes, each with rows of its own."""

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from reghead import CategoryNormalizer, RegressionHead
from reghead.categories import CategoryEncoder
from reghead.losses import MSELoss


def rows_of(rank: int) -> tuple[torch.Tensor, list[str], torch.Tensor]:
    """What this process has read: features, sites and targets."""
    generator = torch.Generator().manual_seed(rank)
    # The second one alone has been to the sea.
    sites = (["river", "lake"] if rank == 0 else ["lake", "sea"]) * 100
    levels = {"river": 10.0, "lake": 50.0, "sea": 400.0}
    level = torch.tensor([levels[site] for site in sites]).unsqueeze(-1)
    x = torch.randn(len(sites), 3, generator=generator)
    noise = torch.randn(len(sites), 1, generator=generator)
    return x, sites, level * (1 + 0.1 * x[:, :1] + 0.02 * noise)


def main() -> None:
    """Measure, agree, train together, and score in the first process."""
    dist.init_process_group("gloo")  # "nccl" on GPUs
    rank = dist.get_rank()
    x, sites, y = rows_of(rank)

    encoder = CategoryEncoder(["site"]).partial_fit({"site": sites}).all_reduce()
    categories = encoder.transform({"site": sites})
    normalizer = CategoryNormalizer(encoder.cardinalities)
    normalizer.partial_fit(y, categories).all_reduce()

    torch.manual_seed(0)
    head = RegressionHead(3, 1, (16,), encoder=encoder, film=["site"])
    head.observe(categories)
    head.all_reduce()

    model = DistributedDataParallel(head)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    z = normalizer(y, categories)
    for _ in range(100):
        optimizer.zero_grad()
        MSELoss()(model(x, categories), z).backward()
        optimizer.step()

    if rank == 0:
        head.eval()
        everything = [rows_of(r) for r in range(dist.get_world_size())]
        x = torch.cat([x for x, _, _ in everything])
        y = torch.cat([y for _, _, y in everything])
        sites = [site for _, some, _ in everything for site in some]
        categories = encoder.transform({"site": sites})
        alone = CategoryNormalizer(encoder.cardinalities).fit(y, categories)
        merged = normalizer.statistics().location.flatten()
        expected = alone.statistics().location.flatten()
        assert torch.allclose(merged, expected, rtol=1e-12)
        with torch.no_grad():
            preds = normalizer.inverse(head(x, categories), categories)
        error = (preds / y - 1).abs().mean()
        print("sites known to all:", ", ".join(encoder.vocabularies["site"].labels))
        means = [round(mean, 1) for mean in merged.tolist()]
        print("means, of all and of each site:", means)
        print(f"mean error {error:.1%}, in process 0, which has no row of the sea")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
