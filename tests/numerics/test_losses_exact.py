"""Cells of losses against exact arithmetic at the ends of every dtype, and what they make of infinities and NaN."""

import itertools
import math
from fractions import Fraction

import pytest
import torch

from numerics._exact import DTYPES, LOSSES, rounding, rows, wide
from reghead import functional as R

INF, NAN = float("inf"), float("nan")
each_loss = pytest.mark.parametrize("name", LOSSES)
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))


@each_dtype
@each_loss
def test_a_cell_is_right_to_a_few_roundings_whatever_its_size(name: str, dtype: torch.dtype) -> None:
    """From 0 through subnormal numbers and 1e9 +- 1e-2 to 1e30; halves are computed in float32."""
    loss = LOSSES[name]
    table = torch.tensor(list(rows(loss, dtype)), dtype=torch.float64)
    got = loss(table[:, 1:].to(dtype), table[:, 0].to(dtype), reduction="none")
    assert got.dtype == wide(dtype)
    info, checked = torch.finfo(wide(dtype)), 0
    # What is smaller than the normal numbers has an absolute error; a kernel may also flush it to 0.
    underflow = 4 * info.smallest_normal
    for row, value in zip(table.tolist(), got.double().tolist(), strict=True):
        y, *p = map(Fraction, row)
        exact = loss.exact(y, *p)
        if max(exact, *(abs(y - x) for x in p)) > Fraction(info.max) / 8:
            continue
        checked += 1
        error = abs(Fraction(value) - exact)
        assert error <= loss.roundings * Fraction(rounding(dtype)) * abs(exact) + Fraction(underflow), row
    assert checked > len(table) / 5


@each_dtype
@pytest.mark.parametrize("name", [name for name, loss in LOSSES.items() if loss.slope is not None])
def test_the_gradient_of_a_cell_is_right_whatever_its_size(name: str, dtype: torch.dtype) -> None:
    loss = LOSSES[name]
    table = torch.tensor(list(rows(loss, dtype)), dtype=torch.float64)
    preds = table[:, 1:].to(dtype).requires_grad_()
    loss(preds, table[:, 0].to(dtype), reduction="sum").backward()
    assert preds.grad is not None
    info = torch.finfo(dtype)
    for (y, p), got in zip(table.tolist(), preds.grad.squeeze(-1).double().tolist(), strict=True):
        error = float(Fraction(y) - Fraction(p))
        exact = loss.slope(error)  # type: ignore[misc]
        if abs(exact) > info.max / 4 or abs(error) > info.max / 4:
            continue
        # Two roundings in the dtype of the predictions (the slope waits in it), and those of the wider one.
        bound = info.eps + 2 * loss.roundings * rounding(dtype)
        assert abs(got - exact) <= bound * abs(exact) + 4 * info.smallest_normal, (y, p, got, exact)


@each_loss
def test_an_infinite_error_costs_infinity_and_an_unknown_one_nan(name: str) -> None:
    loss = LOSSES[name]
    for y, p in itertools.product((-INF, 0.0, INF, NAN), (-INF, 0.0, INF, NAN)):
        if y == p == 0.0:
            continue
        value = loss(torch.full((1, loss.width), p), torch.full((1,), y), reduction="none").item()
        is_unknown = math.isnan(y) or math.isnan(p) or y == p
        assert math.isnan(value) if is_unknown else value == INF, (y, p, value)


def test_an_infinite_interval_scores_infinity_on_either_side_and_crossed_too() -> None:
    for lower, upper, y in itertools.product((-INF, -1.0, 1.0, INF), (-INF, -1.0, 1.0, INF), (-INF, 0.0, INF)):
        ends = torch.tensor([[lower, upper]])
        value = R.interval_score_loss(ends, torch.tensor([y]), 0.8, reduction="none").item()
        if y in (lower, upper) and math.isinf(y):
            assert math.isnan(value), "how far an infinite target is from an equal end is not known"
        else:
            assert value == INF or (math.isfinite(lower) and math.isfinite(upper) and math.isfinite(y))


@pytest.mark.parametrize("base", ["mse", "mae", "huber"])
def test_penalties_at_the_ends_of_float32_scale_the_loss(base: str) -> None:
    preds, target = torch.tensor([3.0, 1.0]), torch.tensor([2.0, 2.0])
    plain = R.asymmetric_loss(preds, target, base=base, reduction="none")  # type: ignore[arg-type]
    for size in (1e-30, 1e30):
        got = R.asymmetric_loss(preds, target, size, size, base, reduction="none")  # type: ignore[arg-type]
        torch.testing.assert_close(got / size, plain)


@pytest.mark.parametrize("tau", [1e-6, 1 - 1e-6])
def test_extreme_levels_lose_what_float32_cannot_tell_from_0_and_1(tau: float) -> None:
    """The relative error is the unit roundoff over the smaller of the level and its complement."""
    for error in (-1.0, 1.0):
        preds, target = torch.tensor([[-error]]), torch.tensor([0.0])
        exact = max(tau * error, (tau - 1) * error)
        bound = 4 * 2.0**-24 / min(tau, 1 - tau)
        assert R.pinball_loss(preds, target, [tau]).item() == pytest.approx(exact, rel=bound)
        assert R.pinball_loss(preds.double(), target.double(), [tau]).item() == pytest.approx(exact, rel=1e-9)
