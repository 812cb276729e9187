"""Quantile and asymmetric losses find the functional that they promise, on data where it is known in closed form."""

import math
from statistics import NormalDist

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from reghead import AsymmetricLoss, PinballLoss, RegressionHead
from reghead.losses import MAELoss, MSELoss
from reghead.metrics import coverage, mae

LEVELS = (0.1, 0.5, 0.9)
SPREAD = torch.tensor([math.nan, 0.5, 1.0, 2.0])  # of each category; id 0 does not occur
Rows = tuple[Tensor, dict[str, Tensor], Tensor]


def location_of(x: Tensor) -> Tensor:
    return torch.sin(2.0 * x)


def heteroscedastic(rows: int, seed: int) -> Rows:
    """y = sin(2 x) + s_c e with normal e: the quantile tau of a row is sin(2 x) + s_c Phi^-1(tau)."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(rows, 1, generator=generator) * 4.0 - 2.0
    ids = torch.randint(1, 4, (rows,), generator=generator)
    noise = torch.randn(rows, 1, generator=generator)
    return x, {"site": ids}, location_of(x) + SPREAD[ids].unsqueeze(-1) * noise


def fit(model: nn.Module, loss: nn.Module, data: Rows, steps: int = 600, lr: float = 5e-3) -> nn.Module:
    """Batches of 256 rows, with a learning rate that falls to 0."""
    x, categories, y = data
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in range(steps):
        rows = torch.randint(len(x), (256,))
        optimizer.zero_grad()
        loss(model(x[rows], {c: ids[rows] for c, ids in categories.items()}), y[rows]).backward()
        optimizer.step()
        schedule.step()
    return model.eval()


def film_head(quantiles: tuple[float, ...] | None, seed: int) -> RegressionHead:
    torch.manual_seed(seed)
    return RegressionHead(1, 1, (32, 32), cardinalities={"site": 4}, film=["site"], quantiles=quantiles)


@pytest.fixture(scope="module")
def test_rows() -> Rows:
    return heteroscedastic(3000, seed=1)


@pytest.fixture(scope="module")
def quantile_head() -> nn.Module:
    return fit(film_head(LEVELS, seed=0), PinballLoss(LEVELS), heteroscedastic(4000, seed=0))


@torch.no_grad()
def test_intervals_cover_the_nominal_share_of_new_rows_in_every_category(
    quantile_head: nn.Module, test_rows: Rows
) -> None:
    x, categories, y = test_rows
    low, _, high = quantile_head(x, categories).unbind(-1)
    for category in (None, 1, 2, 3):
        rows = torch.ones(len(y), dtype=torch.bool) if category is None else categories["site"] == category
        share = coverage(low[rows], high[rows], y[rows]).item()
        # Four standard errors of a binomial share, and what a network fitted on 4,000 rows may be off by.
        band = 4.0 * math.sqrt(0.8 * 0.2 / int(rows.sum())) + 0.03
        assert abs(share - 0.8) < band, f"category {category}: {share:.3f}"


@torch.no_grad()
def test_quantiles_are_those_of_the_distribution(quantile_head: nn.Module, test_rows: Rows) -> None:
    x, categories, _ = test_rows
    normal = torch.tensor([NormalDist().inv_cdf(level) for level in LEVELS])
    spread = SPREAD[categories["site"]].reshape(-1, 1, 1)
    exact = location_of(x).unsqueeze(-1) + spread * normal
    error = ((quantile_head(x, categories) - exact) / spread).abs().mean((0, 1))
    assert (error < 0.2).all(), error  # in standard deviations of the noise


@torch.no_grad()
def test_the_median_is_as_good_as_a_head_trained_for_the_absolute_error(
    quantile_head: nn.Module, test_rows: Rows
) -> None:
    x, categories, y = test_rows
    with torch.enable_grad():
        point = fit(film_head(None, seed=0), MAELoss(), heteroscedastic(4000, seed=0))
    median = quantile_head(x, categories)[..., 1]
    assert mae(median, y) < 1.05 * mae(point(x, categories), y)


@pytest.mark.parametrize("base", ["mse", "mae"])
def test_over_prediction_costs_exactly_twice(base: str) -> None:
    loss, target = AsymmetricLoss(over_penalty=2.0, base=base), torch.zeros(1, 1)  # type: ignore[arg-type]
    for error in (1e-3, 0.5, 3.0):
        over, under = (loss(torch.tensor([[sign * error]]), target) for sign in (1.0, -1.0))
        assert over == 2.0 * under


@pytest.mark.parametrize(("base", "symmetric"), [("mse", MSELoss()), ("mae", MAELoss())])
def test_an_over_penalty_lowers_the_predictions_of_a_trained_head(
    base: str, symmetric: nn.Module, test_rows: Rows
) -> None:
    x, categories, y = test_rows
    data = heteroscedastic(4000, seed=0)
    plain = fit(film_head(None, seed=0), symmetric, data, steps=300)
    careful = fit(film_head(None, seed=0), AsymmetricLoss(over_penalty=2.0, base=base), data, steps=300)  # type: ignore[arg-type]
    with torch.no_grad():
        lowered = plain(x, categories) - careful(x, categories)
        overs = [(model(x, categories) > y).float().mean().item() for model in (plain, careful)]
    for category in (1, 2, 3):
        assert lowered[categories["site"] == category].mean() > 0.1 * SPREAD[category]
    assert overs[1] < overs[0] - 0.05


@pytest.mark.parametrize(("over", "under"), [(2.0, 1.0), (1.0, 3.0), (9.0, 1.0)])
def test_the_asymmetric_absolute_loss_is_least_at_its_quantile(over: float, under: float) -> None:
    """The slope at c is over P(y < c) - under P(y > c), which is 0 where P(y < c) = under / (over + under)."""
    y = torch.linspace(0.0, 1.0, 1001, dtype=torch.float64).square().unsqueeze(-1)
    loss = AsymmetricLoss(over_penalty=over, under_penalty=under, base="mae")
    cost = torch.stack([loss(c.expand_as(y), y) for c in y])
    best = y[cost.argmin()].item()
    assert best == pytest.approx((under / (over + under)) ** 2, abs=3e-3)


@pytest.mark.parametrize(("over", "under"), [(2.0, 1.0), (1.0, 4.0)])
def test_the_asymmetric_squared_loss_is_least_at_its_expectile(over: float, under: float) -> None:
    """On targets 0 and 1 in equal number the slope at c is over c - under (1 - c): least at under / (over + under)."""
    y = torch.tensor([[0.0], [1.0]], dtype=torch.float64)
    constant = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([constant], tolerance_grad=1e-12, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss: Tensor = AsymmetricLoss(over_penalty=over, under_penalty=under)(constant.expand_as(y), y)
        loss.backward()
        return loss

    optimizer.step(closure)
    assert constant.item() == pytest.approx(under / (over + under), abs=1e-8)


def test_equal_penalties_are_the_symmetric_loss() -> None:
    generator = torch.Generator().manual_seed(0)
    preds, target = torch.randn(64, 2, generator=generator), torch.randn(64, 2, generator=generator)
    torch.testing.assert_close(AsymmetricLoss()(preds, target), F.mse_loss(preds, target))
