"""What holds for metrics of any data."""

from collections.abc import Callable

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from reghead.metrics import bias, category_report, coverage, crossing_rate, mae, mean_width, quantile_coverage, r2, rmse

LEVELS = (0.1, 0.5, 0.9)
SEEDS = st.integers(0, 2**32 - 1)


def draw(seed: int, rows: int) -> tuple[Tensor, Tensor, Tensor]:
    rng = torch.Generator().manual_seed(seed)
    target = torch.randn(rows, 2, generator=rng, dtype=torch.float64)
    preds = torch.randn(rows, 2, 3, generator=rng, dtype=torch.float64)
    return preds, target, torch.randint(0, 4, (rows,), generator=rng)


def everything(preds: Tensor, target: Tensor, weight: Tensor | None = None) -> dict[str, Tensor]:
    point, lower, upper = preds[..., 1], preds[..., 0], preds[..., 2]
    metrics: dict[str, Callable[..., Tensor]] = {"rmse": rmse, "mae": mae, "bias": bias, "r2": r2}
    return {name: metric(point, target, weight=weight) for name, metric in metrics.items()} | {
        "coverage": coverage(lower, upper, target, weight=weight),
        "width": mean_width(lower, upper, weight=weight),
        "crossing": crossing_rate(preds, weight=weight),
        "quantiles": quantile_coverage(preds, target, LEVELS, weight=weight),
    }


@given(seed=SEEDS, rows=st.integers(2, 30))
def test_integer_weights_are_repeated_rows(seed: int, rows: int) -> None:
    preds, target, weight = draw(seed, rows)
    repeated = everything(preds.repeat_interleave(weight, 0), target.repeat_interleave(weight, 0))
    assert_close(everything(preds, target, weight), repeated, equal_nan=True, rtol=1e-9, atol=1e-9)


@given(seed=SEEDS, rows=st.integers(2, 30))
def test_the_order_of_rows_and_a_constant_weight_do_not_matter(seed: int, rows: int) -> None:
    preds, target, _ = draw(seed, rows)
    order = torch.randperm(rows, generator=torch.Generator().manual_seed(seed))
    plain = everything(preds, target)
    assert_close(everything(preds[order], target[order]), plain)
    assert_close(everything(preds, target, torch.full((rows,), 3.0, dtype=torch.float64)), plain)


@given(seed=SEEDS, rows=st.integers(2, 30), scale=st.floats(1e-6, 1e6), shift=st.floats(-10, 10))
def test_units(seed: int, rows: int, scale: float, shift: float) -> None:
    """Errors and widths carry the target's unit; shares do not, and a change of origin changes nothing."""
    preds, target, _ = draw(seed, rows)
    plain = everything(preds, target)
    other = everything(scale * preds + scale * shift, scale * target + scale * shift)
    for name, value in plain.items():
        expected = scale * value if name in ("rmse", "mae", "bias", "width") else value
        assert_close(other[name], expected, rtol=1e-6, atol=1e-9 * max(1.0, scale))


@given(seed=SEEDS, rows=st.integers(1, 30))
def test_the_squared_error_is_squared_bias_and_spread(seed: int, rows: int) -> None:
    preds, target, _ = draw(seed, rows)
    point = preds[..., 1]
    spread = (point - target).var(correction=0)
    assert_close(rmse(point, target).square(), bias(point, target).square() + spread)
    assert mae(point, target) <= rmse(point, target) * (1 + 1e-12)


@given(seed=SEEDS, rows=st.integers(1, 30))
def test_categories_add_up_to_the_whole(seed: int, rows: int) -> None:
    preds, target, ids = draw(seed, rows)
    report = category_report(preds, target, {"x": ids}, quantiles=LEVELS)
    for overall in report.overall:
        parts = [row for row in report.categories if row["output"] == overall["output"]]
        assert sum(row["count"] for row in parts) == overall["count"] == rows
        for name in ("mae", "bias", "coverage", "width", "interval_score", "crossing"):
            mean = sum(row["count"] * row[name] for row in parts) / rows
            assert abs(mean - overall[name]) <= 1e-9 * (1 + abs(mean))
        worst = max(row["rmse"] for row in parts)
        assert next(row for row in report.worst if row["output"] == overall["output"])["rmse"] == worst
