"""Shaping of quantile predictions: sorting, the anchor, and gaps that cannot be negative."""

import math
from statistics import NormalDist

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from reghead.functional import nearest_level, non_crossing_quantiles, sort_quantiles

F64 = torch.float64
LEVELS = [[0.1, 0.5, 0.9], [0.5, 0.9, 0.95], [0.1, 0.9], [0.05, 0.1, 0.4], [0.5], [0.25]]
LEVELS.append([i / 20 for i in range(1, 20)])


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


@pytest.mark.parametrize(
    ("levels", "position"),
    [
        ([0.1, 0.5, 0.9], 1),
        ([0.5, 0.9, 0.95], 0),
        ([0.1, 0.9], 0),
        ([0.3, 0.7], 0),
        ([0.05, 0.1, 0.4], 2),
        ([0.1, 0.45, 0.55, 0.9], 1),
        ([0.2], 0),
        ([0.9], 0),
    ],
)
def test_the_anchor_is_nearest_a_half_and_the_lower_on_a_tie(levels: list[float], position: int) -> None:
    assert nearest_level(levels) == position


def test_nearest_to_another_level() -> None:
    assert nearest_level([0.1, 0.5, 0.9], 0.85) == 2


@pytest.mark.parametrize("levels", LEVELS)
def test_at_zero_the_gaps_are_exactly_those_of_the_normal_distribution(levels: list[float]) -> None:
    z = [NormalDist().inv_cdf(level) for level in levels]
    anchor = min(range(len(levels)), key=lambda i: abs(levels[i] - 0.5) + 1e-9 * i)
    got = non_crossing_quantiles(torch.zeros(2, 3, len(levels), dtype=F64), levels)
    expected = torch.tensor([value - z[anchor] for value in z], dtype=F64).expand_as(got)
    assert_close(got, expected, rtol=0, atol=1e-14)
    assert (got[..., anchor] == 0).all()


def test_values_by_hand() -> None:
    # Gaps of the standard normal times log(1 + (e - 1) e^r); at r = log 2 the factor is log(2e - 1).
    z, r = NormalDist().inv_cdf(0.9), math.log(2)
    got = non_crossing_quantiles(torch.tensor([[0.0, 5.0, r]], dtype=F64), [0.1, 0.5, 0.9])
    assert_close(got, torch.tensor([[5 - z, 5, 5 + z * math.log(2 * math.e - 1)]], dtype=F64))


@given(seed=st.integers(0, 2**32 - 1), levels=st.sampled_from(LEVELS))
def test_it_is_a_walk_from_the_anchor_to_both_sides(seed: int, levels: list[float]) -> None:
    raw = 3 * draw(seed, 2, len(levels))
    anchor = nearest_level(levels)
    got = non_crossing_quantiles(raw, levels)
    for row, result in zip(raw.tolist(), got.tolist(), strict=True):
        expected = {anchor: row[anchor]}
        for side in (1, -1):
            i = anchor + side
            while 0 <= i < len(levels):
                gap = NormalDist().inv_cdf(levels[i]) - NormalDist().inv_cdf(levels[i - side])
                expected[i] = expected[i - side] + gap * math.log(1 + (math.e - 1) * math.exp(row[i]))
                i += side
        assert_close(result, [expected[i] for i in range(len(levels))])


@given(
    seed=st.integers(0, 2**32 - 1),
    levels=st.sampled_from(LEVELS),
    size=st.sampled_from([0.0, 1.0, 1e2, 1e4]),
    dtype=st.sampled_from([torch.float64, torch.float32, torch.float16, torch.bfloat16]),
)
def test_quantiles_never_cross(seed: int, levels: list[float], size: float, dtype: torch.dtype) -> None:
    raw = (size * draw(seed, 4, 2, len(levels)).clamp(-1, 1)).to(dtype)
    got = non_crossing_quantiles(raw, levels)
    assert got.dtype == dtype
    assert not got.isnan().any()
    assert (got[..., 1:] >= got[..., :-1]).all()
    assert torch.equal(got[..., nearest_level(levels)], raw[..., nearest_level(levels)])


@pytest.mark.parametrize("levels", LEVELS)
def test_gradients(levels: list[float]) -> None:
    raw = draw(0, 2, len(levels)).requires_grad_()
    assert torch.autograd.gradcheck(lambda r: non_crossing_quantiles(r, levels), raw)
    assert torch.autograd.gradgradcheck(lambda r: non_crossing_quantiles(r, levels), raw)


def test_one_level_is_left_alone() -> None:
    raw = draw(0, 3, 1)
    assert torch.equal(non_crossing_quantiles(raw, [0.9]), raw)


@pytest.mark.parametrize("batch", [0, 1])
def test_small_batches(batch: int) -> None:
    assert non_crossing_quantiles(torch.zeros(batch, 2, 3), [0.1, 0.5, 0.9]).shape == (batch, 2, 3)


@pytest.mark.parametrize(
    ("levels", "error", "message"),
    [
        ([0.1, 0.9], ValueError, r"raw must have shape \(\*, Q\) with Q = 2, got \(4, 3\)"),
        ([0.9, 0.5, 0.1], ValueError, "quantiles must be strictly increasing"),
        ([0.5, 0.5, 0.9], ValueError, "quantiles must be strictly increasing, without repeats"),
        ([], ValueError, "quantiles must hold at least one level"),
        ([0.0, 0.5, 1.0], ValueError, r"quantiles\[0\] must be finite and > 0 and < 1, got 0.0"),
        (0.5, TypeError, "quantiles must be a sequence of levels"),
    ],
)
def test_levels_that_cannot_be(levels: list[float], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        non_crossing_quantiles(torch.zeros(4, 3), levels)


def test_sorting_orders_each_row_and_keeps_gradients_with_their_values() -> None:
    preds = torch.tensor([[3.0, 1.0, 2.0], [1.0, 2.0, 3.0]], requires_grad=True)
    got = sort_quantiles(preds)
    assert got.tolist() == [[1, 2, 3], [1, 2, 3]]
    (got * torch.tensor([1.0, 10.0, 100.0])).sum().backward()
    assert preds.grad is not None
    assert preds.grad.tolist() == [[100, 1, 10], [1, 10, 100]]
