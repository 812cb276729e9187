"""Exact intervals of a probability, beside SciPy's and beside what makes them exact."""

import re

import numpy as np
import pytest
import torch
from scipy.stats import beta, binom
from torch.testing import assert_close

from reghead.metrics import binomial_interval


def every_count(number: int) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.arange(number + 1.0, dtype=torch.float64), torch.full((number + 1,), float(number)).double()


@pytest.mark.parametrize("number", [1, 2, 7, 40, 1000])
@pytest.mark.parametrize("level", [0.5, 0.95, 0.999])
def test_the_ends_are_quantiles_of_the_beta_distribution(number: int, level: float) -> None:
    k, n = every_count(number)
    low, high = binomial_interval(k, n, level)
    inner = k.numpy()[1:]
    assert_close(low[1:], torch.from_numpy(beta.ppf((1 - level) / 2, inner, number - inner + 1)), rtol=1e-9, atol=0.0)
    outer = k.numpy()[:-1]
    assert_close(high[:-1], torch.from_numpy(beta.ppf((1 + level) / 2, outer + 1, number - outer)), rtol=1e-9, atol=0.0)
    assert low[0] == 0.0
    assert high[-1] == 1.0


def test_at_an_end_the_count_is_in_the_tail_of_the_binomial() -> None:
    k, n = every_count(30)
    low, high = (end.numpy() for end in binomial_interval(k, n, 0.9))
    assert_close(torch.from_numpy(binom.sf(k.numpy()[1:] - 1, 30, low[1:])), torch.full((30,), 0.05).double())
    assert_close(torch.from_numpy(binom.cdf(k.numpy()[:-1], 30, high[:-1])), torch.full((30,), 0.05).double())


@pytest.mark.parametrize("number", [1, 3, 10, 60])
@pytest.mark.parametrize("level", [0.8, 0.95])
def test_it_holds_the_truth_as_often_as_it_says_at_every_probability(number: int, level: float) -> None:
    """Summed over all counts, not simulated: a lower coverage at any probability would show."""
    k, n = every_count(number)
    low, high = (end.numpy()[:, None] for end in binomial_interval(k, n, level))
    truth = np.linspace(0.0, 1.0, 1001)
    held = (binom.pmf(k.numpy()[:, None], number, truth) * ((low <= truth) & (truth <= high))).sum(0)
    assert held.min() >= level - 1e-9


def test_millions_and_fractions_of_events() -> None:
    k = torch.tensor([10.0, 800_000.0, 999_990.0, 0.25, 2.5], dtype=torch.float64)
    n = torch.tensor([1e6, 1e6, 1e6, 3.0, 3.1], dtype=torch.float64)
    low, high = binomial_interval(k, n)
    assert_close(low, torch.from_numpy(beta.ppf(0.025, k, n - k + 1)), rtol=1e-7, atol=0.0)
    assert_close(high, torch.from_numpy(beta.ppf(0.975, k + 1, n - k)), rtol=1e-7, atol=0.0)


def test_nothing_counted_says_nothing_and_what_is_unknown_stays_unknown() -> None:
    low, high = binomial_interval(torch.tensor([0.0, torch.nan]), torch.tensor([0.0, 3.0]))
    assert (low[0], high[0]) == (0.0, 1.0)
    assert low[1].isnan()
    assert high[1].isnan()
    assert [end.shape for end in binomial_interval(torch.zeros(0, 2), torch.zeros(0, 2))] == [(0, 2), (0, 2)]


def test_a_count_that_is_off_by_its_rounding_makes_no_difference() -> None:
    n = torch.full((3,), 10.0, dtype=torch.float64)
    whole = torch.tensor([0.0, 3.0, 10.0], dtype=torch.float64)
    rounded = torch.tensor([1e-15, 10 * (0.1 + 0.2), 10.0 - 2e-15], dtype=torch.float64)
    assert_close(binomial_interval(rounded, n), binomial_interval(whole, n), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("events", "count", "level", "message"),
    [
        ([2.0], [1.0], 0.95, "events must be from 0 to count, got 2 of 1; give how often the event happened, not"),
        ([-1.0], [1.0], 0.95, "events must be from 0 to count, got -1 of 1"),
        ([1.0], [1.0, 1.0], 0.95, "count must have shape of events = (1,), got (2,)"),
        ([1.0], [1.0], 95.0, "confidence_level must be finite and > 0 and < 1, got 95.0"),
    ],
)
def test_what_is_no_count_or_no_level_is_refused(
    events: list[float], count: list[float], level: float, message: str
) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        binomial_interval(torch.tensor(events), torch.tensor(count), level)
