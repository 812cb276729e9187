"""With a loss of its own, each output of one model finds the functional that its loss elicits."""

import math

import pytest
import torch
from torch import Tensor

from reghead import PerOutputLoss, RegressionHead

LEVELS = (0.1, 0.5, 0.9)
LOSSES = {
    "pH": "mse",
    "temperature": {"type": "huber", "delta": 0.1},
    "yield": {"type": "quantile", "quantiles": list(LEVELS)},
}


def exponential(rows: int) -> Tensor:
    """The quantiles (i - 0.5) / n of the exponential distribution, whose mean, median and deciles all differ."""
    share = (torch.arange(rows, dtype=torch.float64) + 0.5) / rows
    return -torch.log1p(-share)


def train(y: Tensor, categories: dict[str, Tensor]) -> Tensor:
    torch.manual_seed(0)
    head = RegressionHead(1, 3, cardinalities={"site": 3}, wide=["site"], quantiles=LEVELS).double()
    loss = PerOutputLoss(LOSSES, outputs=["pH", "temperature", "yield"])
    assert loss.quantiles == LEVELS
    x = torch.zeros(len(y), 1, dtype=torch.float64)
    optimizer = torch.optim.Adam(head.parameters(), lr=0.05)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 800)
    for _ in range(800):
        optimizer.zero_grad()
        loss(head(x, categories), y).backward()
        optimizer.step()
        schedule.step()
    head.eval()
    with torch.no_grad():
        return head(x[:2], {"site": torch.tensor([1, 2])})


def huber_location(values: Tensor, delta: float) -> float:
    """Where the mean of the clipped errors is 0, by bisection."""
    low, high = values.min().item(), values.max().item()
    for _ in range(60):
        middle = 0.5 * (low + high)
        if (values - middle).clamp(-delta, delta).mean() > 0:
            low = middle
        else:
            high = middle
    return low


def test_each_column_finds_its_own_functional() -> None:
    values = exponential(500)
    sites = torch.tensor([1, 2]).repeat_interleave(500)
    # Site 2 lies 2 above site 1 in every column; the distribution is the same.
    y = (values.repeat(2) + 2.0 * (sites == 2)).unsqueeze(-1).expand(-1, 3).clone()
    preds = train(y, {"site": sites})  # (2, 3, 3)
    first = preds[0]
    assert first[0, 1].item() == pytest.approx(values.mean().item(), abs=0.02)  # 1, the mean
    # With so small a delta nearly the median.
    assert first[1, 1].item() == pytest.approx(huber_location(values, 0.1), abs=0.02)
    assert first[1, 1].item() == pytest.approx(math.log(2.0), abs=0.05)
    deciles = [-math.log(1.0 - level) for level in LEVELS]
    assert first[2].tolist() == pytest.approx(deciles, abs=0.03)
    shift = preds[1] - preds[0]
    for column, slot in ((0, 1), (1, 1), (2, 0), (2, 1), (2, 2)):
        assert shift[column, slot].item() == pytest.approx(2.0, abs=0.03)


def test_a_missing_value_in_one_column_leaves_the_others_as_they_are() -> None:
    values = exponential(300)
    y = values.unsqueeze(-1).repeat(1, 3)
    loss = PerOutputLoss(LOSSES, outputs=["pH", "temperature", "yield"], nan_policy="omit")
    generator = torch.Generator().manual_seed(0)
    preds = torch.rand(300, 3, 3, dtype=torch.float64, generator=generator).cumsum(-1).requires_grad_()
    (full,) = torch.autograd.grad(loss(preds, y), preds)
    holed = y.clone()
    holed[::2, 1] = torch.nan
    (some,) = torch.autograd.grad(loss(preds, holed), preds)
    assert torch.equal(some[:, 0], full[:, 0])
    assert torch.equal(some[:, 2], full[:, 2])
    assert (some[::2, 1] == 0).all()
    torch.testing.assert_close(some[1::2, 1], 2.0 * full[1::2, 1])
