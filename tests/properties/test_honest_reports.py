"""What reports promise of any data: a partition, intervals that hold the truth, histograms that are flat."""

import itertools

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from reghead.metrics import (
    NOVELTIES,
    binomial_interval,
    category_report,
    distinct_combinations,
    novelty,
    pit,
    pit_histogram,
)

SEEDS = st.integers(0, 2**32 - 1)


def draw_ids(rng: torch.Generator, rows: int, columns: int, size: int) -> dict[str, Tensor]:
    return {f"c{i}": torch.randint(0, size, (rows,), generator=rng) for i in range(columns)}


@given(
    seed=SEEDS, rows=st.integers(0, 30), training=st.integers(1, 30), columns=st.integers(1, 3), size=st.integers(1, 6)
)
def test_novelty_is_the_partition_by_sets(seed: int, rows: int, training: int, columns: int, size: int) -> None:
    rng = torch.Generator().manual_seed(seed)
    seen, given_ids = draw_ids(rng, training, columns, size), draw_ids(rng, rows, columns, size)
    cells = set(zip(*(ids.tolist() for ids in seen.values()), strict=True))
    categories = [set(ids.tolist()) - {0} for ids in seen.values()]
    expected = []
    for cell in zip(*(ids.tolist() for ids in given_ids.values()), strict=True):
        if not all(i in known for i, known in zip(cell, categories, strict=True)):
            expected.append("unseen category")
        else:
            expected.append("seen" if cell in cells else "unseen combination")
    found = novelty(given_ids, seen)
    assert [NOVELTIES[kind] for kind in found.tolist()] == expected
    # Neither the order of rows, nor of training rows and how often each is there, nor of columns matters.
    order, other = torch.randperm(rows, generator=rng), torch.randint(0, training, (50,), generator=rng)
    again = {c: torch.cat([i[other], i.flip(0)]) for c, i in reversed(seen.items())}
    assert novelty({c: i[order] for c, i in given_ids.items()}, again).equal(found[order])
    assert novelty(given_ids, distinct_combinations(seen)).equal(found)


@given(seed=SEEDS, rows=st.integers(1, 40))
def test_kinds_of_rows_add_up_to_the_whole(seed: int, rows: int) -> None:
    rng = torch.Generator().manual_seed(seed)
    preds, target = (torch.randn(rows, *more, generator=rng, dtype=torch.float64) for more in ((2, 3), (2,)))
    kinds = torch.randint(0, 3, (rows,), generator=rng)
    report = category_report(preds, target, {"x": kinds}, quantiles=(0.1, 0.5, 0.9), novelty=kinds)
    for output, overall in enumerate(report.overall):
        parts = [row for row in report.novelty if row["output"] == output]
        assert sum(row["count"] for row in parts) == rows
        for name in ("mae", "coverage", "interval_score"):
            mean = sum(row["count"] * row[name] for row in parts) / rows
            assert abs(mean - overall[name]) <= 1e-9 * (1 + abs(mean))


@given(seed=SEEDS, rows=st.integers(5, 60), level=st.sampled_from([0.5, 0.8, 0.95]))
@settings(max_examples=15)
def test_the_band_of_a_coverage_holds_the_true_coverage(seed: int, rows: int, level: float) -> None:
    """2,000 data sets of one size: at least 95 % of their bands, but for the luck of so many."""
    rng = torch.Generator().manual_seed(seed)
    covered = (torch.rand(2000, rows, generator=rng) < level).sum(-1).double()
    low, high = binomial_interval(covered, torch.full_like(covered, float(rows)))
    held = ((low <= level) & (level <= high)).double().mean()
    assert held >= 0.95 - 5.0 * (0.95 * 0.05 / 2000) ** 0.5


@given(events=st.integers(0, 200), more=st.integers(0, 200), seed=SEEDS)
def test_intervals_hold_the_share_and_shrink_with_the_count(events: int, more: int, seed: int) -> None:
    k = torch.tensor([float(events), 4.0 * events], dtype=torch.float64)
    n = torch.tensor([float(events + more), 4.0 * (events + more)], dtype=torch.float64)
    low, high = binomial_interval(k, n)
    if events + more:
        assert ((low <= k / n) & (k / n <= high)).all()
        assert high[1] - low[1] < high[0] - low[0]
    narrow = binomial_interval(k, n, 0.5)
    assert (narrow[0] >= low).all()
    assert (narrow[1] <= high).all()


@given(seed=SEEDS, number=st.integers(1, 20))
@settings(max_examples=25)
def test_the_histogram_of_the_right_model_is_flat(seed: int, number: int) -> None:
    rng = torch.Generator().manual_seed(seed)
    center, scale = torch.randn(4000, generator=rng), torch.rand(4000, generator=rng) + 0.1
    levels = [k / (number + 1) for k in range(1, number + 1)]
    z = torch.special.ndtri(torch.tensor(levels))
    target = center + scale * torch.randn(4000, generator=rng)
    histogram = pit_histogram(center[:, None] + scale[:, None] * z, target, levels)
    sd = (histogram.expected * (1.0 - histogram.edges.diff())).sqrt()
    assert histogram.counts.sum() == 4000
    assert ((histogram.counts - histogram.expected).abs() < 5.5 * sd).all()


@given(seed=SEEDS)
@settings(max_examples=25)
def test_the_transform_of_the_right_model_is_uniform(seed: int) -> None:
    """By the largest distance between the distribution functions (Kolmogorov and Smirnov)."""
    rng = torch.Generator().manual_seed(seed)
    levels = [k / 100 for k in range(1, 100)]
    q = torch.special.ndtri(torch.tensor(levels, dtype=torch.float64)).expand(2000, 99)
    target = torch.randn(2000, generator=rng, dtype=torch.float64)
    values = pit(q, target, levels, generator=rng).sort().values
    steps = torch.arange(2000, dtype=torch.float64) / 2000
    assert torch.maximum(values - steps, steps + 1 / 2000 - values).max() < 3.0 / 2000**0.5


@given(seed=SEEDS, scale=st.floats(1e-3, 1e3), shift=st.floats(-10, 10))
def test_the_transform_follows_an_increasing_map_of_all(seed: int, scale: float, shift: float) -> None:
    rng = torch.Generator().manual_seed(seed)
    preds = torch.randn(20, 4, generator=rng, dtype=torch.float64).sort(-1).values
    target = torch.randn(20, generator=rng, dtype=torch.float64)
    levels = (0.1, 0.3, 0.6, 0.9)
    assert_close(
        pit(scale * preds + shift, scale * target + shift, levels), pit(preds, target, levels), atol=1e-6, rtol=0
    )
    counts = pit_histogram(preds.exp(), target.exp(), levels).counts
    assert_close(counts, pit_histogram(preds, target, levels).counts)
    mirrored = [1 - level for level in reversed(levels)]
    assert_close(counts.flip(0), pit_histogram(-preds.flip(-1), -target, mirrored).counts)


@given(seed=SEEDS)
def test_the_transform_increases_with_the_target(seed: int) -> None:
    rng = torch.Generator().manual_seed(seed)
    preds = torch.randn(4, generator=rng, dtype=torch.float64)
    target = torch.cat([preds, 2.0 * torch.randn(40, generator=rng, dtype=torch.float64)]).sort().values
    values = pit(preds.expand(44, 4), target, (0.1, 0.3, 0.6, 0.9)).tolist()
    assert all(0.0 <= a <= b + 1e-12 for a, b in itertools.pairwise(values))
    assert values[-1] <= 1.0
