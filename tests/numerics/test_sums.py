"""Sums over many cells, and weights of any size: against exact sums of the very numbers that went in."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from numerics._exact import DTYPES, LOSSES, rounding
from reghead import functional as R
from reghead import metrics as M

ROWS = 300_000
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))
MEANS: dict[str, Callable[..., Tensor]] = {
    **{name: loss for name, loss in LOSSES.items() if name in ("mse", "mae", "log_cosh", "pinball 0.3", "crps")},
    "per output": lambda p, y, **o: R.per_output_loss(p.squeeze(-1), y, {0: "mae"}, **o),
    "metric": lambda p, y, **o: M.mae(p.squeeze(-1), y, **o),
}


def draw(name: str, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Errors of one sign and of sizes from 0 to 1, which a sum of bfloat16 could not add up."""
    width = LOSSES[name].width if name in LOSSES else 1
    rng = torch.Generator().manual_seed(0)
    preds = torch.rand(ROWS, 1, width, generator=rng, dtype=torch.float64).sort(-1).values
    return preds.to(dtype), torch.zeros(ROWS, 1, dtype=dtype)


def cells(name: str, preds: Tensor, target: Tensor) -> list[float]:
    """The cells in float64, of the numbers as they were rounded."""
    if name in LOSSES:
        values = LOSSES[name](preds.double(), target.double(), reduction="none")
    else:
        values = preds.double().squeeze(-1)
    return values.flatten().tolist()


@each_dtype
@pytest.mark.parametrize("name", MEANS)
def test_a_mean_of_many_cells_is_right_to_a_few_roundings(name: str, dtype: torch.dtype) -> None:
    """Cells are added up in pairs: 1e-6 in float32, 1.8e-15 in float64."""
    preds, target = draw(name, dtype)
    exact = math.fsum(cells(name, preds, target)) / ROWS
    bound = 16 * rounding(dtype)
    for options in ({}, {"weight": torch.ones(ROWS)}, {"mask": torch.ones(ROWS, dtype=torch.bool)}):
        assert abs(MEANS[name](preds, target, **options).item() / exact - 1) <= bound, options


@pytest.mark.parametrize("size", [1e-30, 1e-10, 1e10, 1e30])
@pytest.mark.parametrize("name", MEANS)
def test_a_weight_at_the_ends_of_float32_is_no_weight(name: str, size: float) -> None:
    preds, target = draw(name, torch.float32)
    plain, weight = MEANS[name](preds, target), torch.full((ROWS,), size)
    assert abs((MEANS[name](preds, target, weight=weight) / plain).item() - 1) < 1e-5


@pytest.mark.parametrize("name", MEANS)
def test_weights_of_very_different_sizes_leave_the_heavy_rows(name: str) -> None:
    preds, target = draw(name, torch.float64)
    weight = torch.where(torch.arange(ROWS) < 10, 1e15, 1e-15).double()
    exact = math.fsum(cells(name, preds[:10], target[:10])) / 10
    assert MEANS[name](preds, target, weight=weight).item() == pytest.approx(exact, rel=1e-12)


@pytest.mark.parametrize("name", MEANS)
def test_a_mean_is_infinite_where_its_sum_is_or_right(name: str) -> None:
    """The sum may come before the division: 1,000 cells of 1e36 are more than float32 holds."""
    width = LOSSES[name].width if name in LOSSES else 1
    preds, target = torch.full((1000, 1, width), 1e36), torch.zeros(1000, 1)
    exact = MEANS[name](preds.double(), target.double()).item()
    assert math.isfinite(exact)
    assert MEANS[name](preds, target).item() in (math.inf, pytest.approx(exact, rel=1e-4))


@pytest.mark.parametrize("function", [M.rmse, M.mae, M.bias])
@pytest.mark.parametrize("size", [1e-18, 1e-6, 1.0, 1e9, 1e18])
def test_metrics_follow_the_units(function: Callable[..., Tensor], size: float) -> None:
    """Squares of float32 are finite and not 0 from 1e-18 to 1e18; float64 goes to 1e150."""
    rng = torch.Generator().manual_seed(1)
    preds, target = torch.randn(2, 50, 2, generator=rng, dtype=torch.float64)
    exact = function(preds, target).item()
    for dtype, bound in ((torch.float64, 1e-13), (torch.float32, 1e-5)):
        got = function((size * preds).to(dtype), (size * target).to(dtype)).item()
        assert got / size == pytest.approx(exact, rel=bound, abs=bound)


def test_squares_beyond_the_range_of_the_dtype_are_infinite_or_nothing() -> None:
    zero: Any = torch.zeros(3, 1)
    assert M.rmse(zero + 1e20, zero).item() == math.inf
    assert M.rmse(zero + 1e-30, zero).item() == 0.0
    assert M.rmse(zero.double() + 1e20, zero.double()).item() == pytest.approx(1e20)
    assert M.rmse(zero.double() + 1e-30, zero.double()).item() == pytest.approx(1e-30)


@pytest.mark.parametrize("noise", [1e-2, 1e-3])
def test_r_squared_far_from_zero_is_that_of_the_shifted_target(noise: float) -> None:
    rng = torch.Generator().manual_seed(2)
    error, target = torch.randn(2, 200, 1, generator=rng, dtype=torch.float64)
    far = 1e9 + noise * target  # on a grid of 1.2e-7
    near = far - 1e9
    expected = M.r2(near + noise * error, near).item()
    assert M.r2(far + noise * error, far).item() == pytest.approx(expected, abs=1e-4)


def test_utilization_counts_on_beyond_the_last_number_of_float32() -> None:
    """16,777,216 + 1 is 16,777,216 in float32, so a sum of ones ends there."""
    weights = torch.cat([torch.tensor([[2.0**24]]), torch.ones(1000, 1)])
    got = R.expert_utilization(weights, torch.zeros(1001, dtype=torch.int64), 1)
    assert got.dtype == torch.float32
    assert got.item() == pytest.approx((2**24 + 1000) / 1001, rel=1e-7)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_utilization_of_many_rows(dtype: torch.dtype) -> None:
    rng = torch.Generator().manual_seed(3)
    weights = torch.rand(ROWS, 3, generator=rng).to(dtype)
    ids = torch.randint(0, 2, (ROWS,), generator=rng)
    got = R.expert_utilization(weights, ids, 2)
    for k in range(2):
        torch.testing.assert_close(got[k].double(), weights[ids == k].double().mean(0), rtol=1e-6, atol=0)


def test_the_balance_of_many_rows() -> None:
    rng = torch.Generator().manual_seed(4)
    logits = 3 * torch.randn(ROWS, 5, generator=rng)
    for gate in ("soft", "top_k", "hard"):
        exact = R.load_balancing_loss(logits.double(), gate)  # type: ignore[arg-type]
        assert R.load_balancing_loss(logits, gate).item() == pytest.approx(exact.item(), rel=1e-5)  # type: ignore[arg-type]
