"""The probability integral transform and its histogram, at their edges and beside draws from known distributions."""

import re
from typing import Any

import pytest
import torch
from scipy.stats import binom, kstest
from torch.testing import assert_close

from reghead.metrics import pit, pit_histogram, quantile_coverage

LEVELS = (0.1, 0.5, 0.8)
Q = torch.tensor([0.0, 10.0, 20.0])


def transform(*targets: float, q: torch.Tensor = Q, **options: Any) -> list[float]:
    y = torch.tensor(targets)
    return pit(q.expand(len(y), 3), y, LEVELS, **options).tolist()


def counts(*targets: float, q: torch.Tensor = Q, levels: tuple[float, ...] = LEVELS) -> list[float]:
    y = torch.tensor(targets)
    return pit_histogram(q.expand(len(y), len(levels)), y, levels).counts.tolist()


def test_at_a_quantile_it_is_the_level_and_between_two_it_is_on_their_line() -> None:
    assert transform(0.0, 10.0, 20.0) == pytest.approx([0.1, 0.5, 0.8])
    assert transform(2.5, 15.0) == pytest.approx([0.2, 0.65])


def test_outside_all_quantiles_it_is_the_middle_of_what_is_left() -> None:
    assert transform(-1.0, -1e9, 21.0, float("inf")) == pytest.approx([0.05, 0.05, 0.9, 0.9])


def test_beside_an_infinite_quantile_only_the_levels_are_known() -> None:
    wide = torch.tensor([-torch.inf, 10.0, torch.inf])
    assert transform(-5.0, 5.0, 10.0, 30.0, q=wide) == pytest.approx([0.3, 0.3, 0.5, 0.65])
    assert counts(-5.0, 5.0, 30.0, q=wide) == [0.0, 2.0, 1.0, 0.0]


def test_at_equal_quantiles_it_is_between_their_levels() -> None:
    """A target with a lump at 0, such as rain."""
    dry = torch.tensor([0.0, 0.0, 20.0])
    assert transform(0.0, 10.0, q=dry) == pytest.approx([0.3, 0.65])
    drawn = torch.tensor(transform(*[0.0] * 200, q=dry, generator=torch.Generator().manual_seed(0)))
    assert 0.1 <= drawn.min() < 0.13
    assert 0.47 < drawn.max() <= 0.5


def test_a_generator_draws_what_is_not_known_and_nothing_else() -> None:
    first, again = (transform(-1.0, 5.0, 21.0, generator=torch.Generator().manual_seed(5)) for _ in range(2))
    assert first == again
    assert first[1] == pytest.approx(0.3)
    many = torch.tensor(transform(*[21.0] * 500, generator=torch.Generator().manual_seed(1)))
    assert kstest(many.numpy(), "uniform", args=(0.8, 0.2)).pvalue > 1e-3


def test_crossing_quantiles_are_put_in_order_first() -> None:
    assert transform(2.5, q=Q[[2, 0, 1]]) == transform(2.5)
    assert counts(2.5, 12.0, q=Q[[2, 0, 1]]) == counts(2.5, 12.0)


def test_nan_in_nan_out() -> None:
    assert pit(Q.expand(2, 3), torch.tensor([torch.nan, 5.0]), LEVELS).isnan().tolist() == [True, False]
    broken = torch.tensor([0.0, torch.nan, 20.0])
    assert pit(broken, torch.tensor(5.0), LEVELS).isnan()
    assert pit_histogram(broken.expand(2, 3), torch.zeros(2), LEVELS).counts.isnan().all()


def test_any_shape_and_half_precision() -> None:
    y = torch.tensor([[5.0, 15.0]])
    assert_close(pit(Q.expand(1, 2, 3), y, LEVELS), torch.tensor([[0.3, 0.65]]))
    assert pit(Q.bfloat16().expand(1, 2, 3), y.bfloat16(), LEVELS).dtype == torch.float32
    assert pit(torch.zeros(0, 3), torch.zeros(0), LEVELS).shape == (0,)


def test_each_target_is_in_the_bin_between_its_neighbours() -> None:
    assert counts(-1.0, 1.0, 2.0, 11.0, 30.0, 40.0) == [1.0, 2.0, 1.0, 2.0]
    assert counts(5.0, q=torch.tensor([1.0]), levels=(0.5,)) == [0.0, 1.0]


def test_a_target_on_quantiles_is_spread_over_the_bins_they_bound() -> None:
    dry = torch.tensor([0.0, 0.0, 20.0])
    assert counts(0.0, q=dry) == pytest.approx([0.1 / 0.8, 0.4 / 0.8, 0.3 / 0.8, 0.0])
    assert counts(10.0) == pytest.approx([0.0, 0.4 / 0.7, 0.3 / 0.7, 0.0])
    assert sum(counts(0.0, 10.0, 20.0, 30.0)) == pytest.approx(4.0)


def test_expected_counts_and_bands_are_those_of_a_binomial() -> None:
    histogram = pit_histogram(Q.expand(50, 3), torch.arange(50.0), LEVELS)
    assert_close(histogram.edges, torch.tensor([0.0, 0.1, 0.5, 0.8, 1.0], dtype=torch.float64))
    assert_close(histogram.expected, torch.tensor([5.0, 20.0, 15.0, 10.0], dtype=torch.float64))
    for low, high, width in zip(histogram.low, histogram.high, (0.1, 0.4, 0.3, 0.2), strict=True):
        assert (low.item(), high.item()) == tuple(binom.ppf([0.025, 0.975], 50, width))


def test_counts_add_up_to_what_is_covered() -> None:
    rng = torch.Generator().manual_seed(0)
    preds = torch.randn(40, 2, 3, generator=rng).sort(-1).values
    target = torch.randn(40, 2, generator=rng)
    found = pit_histogram(preds, target, LEVELS).counts[:-1].cumsum(0) / 80
    assert_close(found, quantile_coverage(preds, target, LEVELS).double(), rtol=1e-6, atol=1e-6)


def test_missing_and_masked_targets_count_nowhere() -> None:
    y = torch.tensor([[5.0, torch.nan], [15.0, -1.0]])
    assert pit_histogram(Q.expand(2, 2, 3), y, LEVELS, nan_policy="omit").counts.tolist() == [1.0, 1.0, 1.0, 0.0]
    mask = torch.tensor([False, True])
    assert pit_histogram(Q.expand(2, 2, 3), y, LEVELS, mask=mask).counts.tolist() == [1.0, 0.0, 1.0, 0.0]
    assert pit_histogram(Q.expand(2, 2, 3), y, LEVELS).counts.isnan().all()
    nothing = pit_histogram(Q.expand(2, 2, 3), y, LEVELS, mask=mask & ~mask)
    assert torch.stack(nothing[1:]).eq(0.0).all()


@pytest.mark.parametrize("function", [pit, pit_histogram])
def test_shapes_that_do_not_fit_are_refused(function: Any) -> None:
    with pytest.raises(ValueError, match=re.escape("preds must have shape (*target.shape, Q) = (2, 3), got (2, 2)")):
        function(torch.zeros(2, 2), torch.zeros(2), LEVELS)
    with pytest.raises(ValueError, match="quantiles must be strictly increasing"):
        function(torch.zeros(2, 2), torch.zeros(2), [0.5, 0.1])
