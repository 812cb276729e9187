"""What holds for every calibration set: order, units, levels, unseen categories, and ends in order."""

import itertools

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from reghead.calibration import (
    ConformalizedQuantiles,
    CrossConformal,
    SplitConformal,
    conformal_quantile,
    conformal_rank,
)

F64 = torch.float64
SIZES = {"site": 7}
LEVELS = (0.05, 0.2, 0.5, 0.8, 0.95)
seeds = st.integers(0, 2**32 - 1)
rows = st.integers(1, 60)
levels = st.floats(0.01, 0.99)
poolings = st.sampled_from([0.0, 3.0, 20.0, None])


def draw(seed: int, n: int, *, ties: bool = False) -> tuple[Tensor, Tensor, Tensor, dict[str, Tensor]]:
    """Point and quantile predictions in order, targets and ids, of which 6 never occurs."""
    rng = torch.Generator().manual_seed(seed)
    points, target = torch.randn(2, n, 2, generator=rng, dtype=F64)
    quantiles = torch.randn(n, 2, len(LEVELS), generator=rng, dtype=F64).sort(-1).values
    if ties:
        points, target, quantiles = points.round(), target.round(), quantiles.round()
    return points, quantiles, target, {"site": torch.randint(0, 6, (n,), generator=rng)}


@given(seed=seeds, n=rows, level=levels)
def test_the_quantile_has_exactly_enough_scores_at_or_below_it(seed: int, n: int, level: float) -> None:
    scores = draw(seed, n, ties=True)[2][:, 0]
    rank, quantile = conformal_rank(n, level), conformal_quantile(scores, level)
    assert (rank > n) == bool(quantile.isinf())
    if rank <= n:
        assert int((scores <= quantile).sum()) >= rank > int((scores < quantile).sum())


@given(seed=seeds, n=rows, one=levels, other=levels, pooling=poolings, ties=st.booleans())
def test_a_higher_confidence_level_never_narrows(
    seed: int, n: int, one: float, other: float, pooling: float | None, ties: bool
) -> None:
    points, _, target, ids = draw(seed, n, ties=ties)
    low, high = sorted((one, other))
    widths = [
        SplitConformal(level, groups=SIZES, pooling=pooling).conformalize(points, target, ids).offsets
        for level in (low, high)
    ]
    assert (widths[0] <= widths[1]).all()


@given(seed=seeds, n=rows, level=levels, pooling=poolings, ties=st.booleans())
def test_the_order_of_the_rows_does_not_matter(
    seed: int, n: int, level: float, pooling: float | None, ties: bool
) -> None:
    points, quantiles, target, ids = draw(seed, n, ties=ties)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    shuffled = {"site": ids["site"][order]}
    split = SplitConformal(level, groups=SIZES, pooling=pooling)
    first = split.conformalize(points, target, ids).offsets.clone()
    assert torch.equal(split.conformalize(points[order], target[order], shuffled).offsets, first)
    cqr = ConformalizedQuantiles(LEVELS, groups=SIZES, pooling=pooling)
    first = cqr.conformalize(quantiles, target, ids).offsets.clone()
    assert torch.equal(cqr.conformalize(quantiles[order], target[order], shuffled).offsets, first)
    cross, known = CrossConformal(SIZES, level), ids["site"] > 0
    first = cross.conformalize(points, target, ids, left_out="environments", mask=known).offsets.clone()
    cross.conformalize(points[order], target[order], shuffled, left_out="environments", mask=known[order])
    assert torch.equal(cross.offsets, first)


@given(seed=seeds, n=rows, asymmetric=st.booleans(), crossed=st.booleans(), pooling=poolings)
def test_lower_is_never_above_upper_and_the_wider_holds_the_narrower(
    seed: int, n: int, asymmetric: bool, crossed: bool, pooling: float | None
) -> None:
    _, quantiles, target, ids = draw(seed, n)
    cqr = ConformalizedQuantiles(LEVELS, asymmetric=asymmetric, groups=SIZES, pooling=pooling)
    cqr.conformalize(3 * quantiles, target, ids)
    preds = draw(seed + 1, 20)[1]
    ends = cqr(preds.flip(-1) if crossed else preds, {"site": torch.arange(20) % 7})
    assert all((a <= b).all() for a, b in itertools.pairwise(ends.unbind(-1)))


@given(seed=seeds, n=rows, level=levels, pooling=poolings)
def test_an_unseen_category_has_the_interval_of_all_rows_or_an_infinite_one(
    seed: int, n: int, level: float, pooling: float | None
) -> None:
    points, _, target, ids = draw(seed, n)
    unseen = {"site": torch.tensor([6, 0])}
    everyone = SplitConformal(level).conformalize(points, target)(points[:1]).expand(2, 2, 2)
    grouped = SplitConformal(level, groups=SIZES, pooling=pooling).conformalize(points, target, ids)
    assert torch.equal(grouped(points[:1].expand(2, 2), unseen), everyone)
    refusing = SplitConformal(level, groups=SIZES, pooling=pooling, unseen="infinite").conformalize(points, target, ids)
    assert refusing(points[:1].expand(2, 2), unseen).isinf().all()
    cross = CrossConformal(SIZES, level).conformalize(points, target, ids, left_out="rows")
    assert cross(points[:1].expand(2, 2), unseen).isinf().all()


@given(seed=seeds, n=rows, exponent=st.integers(-6, 6), shift=st.floats(-1e3, 1e3))
def test_a_change_of_units_changes_the_intervals_alike(seed: int, n: int, exponent: int, shift: float) -> None:
    _, quantiles, target, ids = draw(seed, n)
    factor = 10.0**exponent
    cqr = ConformalizedQuantiles(LEVELS, groups=SIZES)
    ends = cqr.conformalize(quantiles, target, ids)(quantiles, ids)
    moved = cqr.conformalize(factor * quantiles + shift, factor * target + shift, ids)(factor * quantiles + shift, ids)
    assert_close(moved, factor * ends + shift, rtol=1e-9, atol=1e-9 * (factor + 1000))


@given(seed=seeds, n=rows, level=levels, ties=st.booleans())
def test_the_calibration_rows_themselves_are_covered(seed: int, n: int, level: float, ties: bool) -> None:
    """Ends belong to the interval, so at least the rank of them are inside, also with ties."""
    points, _, target, _ = draw(seed, n, ties=ties)
    conformal = SplitConformal(level).conformalize(points, target)
    lower, upper = conformal.interval(points)
    inside = ((lower - 1e-12 <= target) & (target <= upper + 1e-12)).sum(0)
    assert (inside >= min(conformal_rank(n, level), n)).all()
