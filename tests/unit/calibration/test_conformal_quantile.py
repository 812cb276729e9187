"""The conformal quantile: the exact rank, infinity where scores are too few, weights."""

import math
import re
from fractions import Fraction

import numpy as np
import pytest
import torch

from reghead.calibration import conformal_quantile, conformal_rank

ALPHAS = [*(f"0.{i:02d}" for i in range(1, 16)), "0.2", "0.3", "0.44", "0.45", "0.5"]
CASES = [(n, Fraction(alpha)) for n in range(1, 80) for alpha in ALPHAS]


def test_the_rank_is_exact_in_1580_cases() -> None:
    """Floats put ceil((n + 1)(1 - alpha)) one too high at some of them."""
    assert len(CASES) == 1580
    for n, alpha in CASES:
        expected = math.ceil((n + 1) * (1 - alpha))
        for level in (1 - alpha, float(1 - alpha), 1 - float(alpha)):
            assert conformal_rank(n, level) == expected, (n, alpha, level)
    naive = sum(math.ceil((n + 1) * (1 - float(a))) != math.ceil((n + 1) * (1 - a)) for n, a in CASES)
    assert naive > 0  # the cases tell an exact rank from a rounded one


@pytest.mark.parametrize("level", [0.9, np.float32(0.9), np.float64(0.9), Fraction(9, 10), 0.95 - 0.05, 1 - 0.1])
def test_every_way_to_write_nine_tenths_is_nine_tenths(level: float) -> None:
    assert conformal_rank(9, level) == 9
    assert conformal_rank(99_999, level) == 90_000


def test_levels_next_to_an_end_stay_inside() -> None:
    assert conformal_rank(10, 1e-12) == 1
    assert conformal_rank(10, 1 - 1e-12) == 11


def test_the_quantile_is_the_score_of_that_rank_in_every_case() -> None:
    rng = torch.Generator().manual_seed(0)
    for n, alpha in CASES:
        scores = torch.randperm(n, generator=rng).double() + 1
        rank = math.ceil((n + 1) * (1 - alpha))
        assert conformal_quantile(scores, float(1 - alpha)).item() == (rank if rank <= n else math.inf), (n, alpha)


def test_too_few_scores_are_fewer_than_one_over_alpha_minus_one() -> None:
    assert conformal_quantile(torch.arange(8.0), 0.9) == torch.inf
    assert conformal_quantile(torch.arange(9.0), 0.9) == 8
    assert conformal_quantile(torch.zeros(0, 2), 0.5).tolist() == [torch.inf, torch.inf]


def test_columns_are_apart() -> None:
    scores = torch.randn(30, 2, 3, generator=torch.Generator().manual_seed(1))
    together = conformal_quantile(scores, 0.8)
    assert together.shape == (2, 3)
    for i in range(2):
        for j in range(3):
            assert together[i, j] == conformal_quantile(scores[:, i, j], 0.8)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision(dtype: torch.dtype) -> None:
    quantile = conformal_quantile(torch.arange(100, dtype=dtype), 0.9)
    assert quantile.dtype == dtype
    assert quantile.item() == 90  # rank 91


def test_more_scores_than_torch_quantile_takes() -> None:
    n = 2**24 + 3
    assert conformal_quantile(torch.arange(n, dtype=torch.int32).double(), 0.5).item() == (n + 1) // 2 - 1


def by_definition(scores: list[float], weights: list[float], test: float, level: Fraction) -> float:
    exact = [Fraction(w) for w in weights]
    total = sum(exact) + Fraction(test)
    for s in sorted(scores):
        if sum(w for t, w in zip(scores, exact, strict=True) if t <= s) >= level * total:
            return s
    return math.inf


@pytest.mark.parametrize("seed", range(20))
def test_weighted_quantiles_follow_their_definition(seed: int) -> None:
    rng = np.random.default_rng(seed)
    scores = rng.integers(0, 6, 12).astype(float)  # with ties
    weights, test = rng.integers(0, 9, 12) / 8, float(rng.integers(1, 9) / 8)
    for level in (Fraction(1, 2), Fraction(3, 4), Fraction(9, 10)):
        ours = conformal_quantile(
            torch.tensor(scores), float(level), weight=torch.tensor(weights), test_weight=test
        ).item()
        assert ours == by_definition(scores.tolist(), weights.tolist(), test, level)


def test_weights_of_one_are_none_weights_of_zero_are_no_rows_and_whole_ones_repeat() -> None:
    scores = torch.randn(40, 2, generator=torch.Generator().manual_seed(2))
    ones = torch.ones(40)
    for n in (3, 9, 19, 40):
        for level in (0.5, 0.7, 0.9, 0.95):
            expected = conformal_quantile(scores[:n], level)
            assert torch.equal(conformal_quantile(scores[:n], level, weight=ones[:n]), expected)
            first = (torch.arange(40) < n).float()
            assert torch.equal(conformal_quantile(scores, level, weight=first), expected)
    times = torch.arange(40) % 3
    repeated = conformal_quantile(scores.repeat_interleave(times, dim=0), 0.8)
    assert torch.equal(conformal_quantile(scores, 0.8, weight=times), repeated)


def test_a_heavier_test_row_needs_a_larger_quantile_and_at_last_infinity() -> None:
    scores, weight = torch.arange(20.0), torch.ones(20)
    quantiles = [conformal_quantile(scores, 0.8, weight=weight, test_weight=w).item() for w in (0.5, 1, 2, 4, 8)]
    assert quantiles == sorted(quantiles)
    assert quantiles[-1] == math.inf


def test_it_carries_no_gradient() -> None:
    assert not conformal_quantile(torch.arange(9.0, requires_grad=True), 0.5).requires_grad


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: conformal_quantile(torch.tensor(1.0), 0.9), ValueError, "must have shape (N, *), got a scalar"),
        (lambda: conformal_quantile(torch.tensor([1.0, torch.nan]), 0.9), ValueError, "must not be NaN, got 1 of 2"),
        (lambda: conformal_quantile(torch.arange(3), 0.9), TypeError, "scores must be of a floating-point dtype"),
        (lambda: conformal_quantile(torch.ones(3), 1.0), ValueError, "confidence_level must be finite and > 0 and < 1"),
        (lambda: conformal_rank(-1, 0.9), ValueError, "count must be at least 0, got -1"),
        (lambda: conformal_rank(3, "0.9"), TypeError, "confidence_level must be a number, got '0.9'"),
        (
            lambda: conformal_quantile(torch.ones(3), 0.9, weight=torch.ones(2)),
            ValueError,
            "weight must have the leading dimensions of scores",
        ),
        (
            lambda: conformal_quantile(torch.ones(2), 0.9, weight=torch.tensor([1.0, -1.0])),
            ValueError,
            "weight must be non-negative and finite",
        ),
        (
            lambda: conformal_quantile(torch.ones(2), 0.9, weight=torch.ones(2), test_weight=0.0),
            ValueError,
            "test_weight must be finite and > 0, got 0.0",
        ),
    ],
)
def test_errors(call, error, message) -> None:
    with pytest.raises(error, match=re.escape(message)):
        call()
