"""Normalizers, target transforms, metrics of intervals and conformal ranks against exact fractions and decimals."""

import math
from collections.abc import Sequence
from decimal import Context, Decimal
from fractions import Fraction

import numpy as np
import pytest
import torch
from scipy import stats
from torch.testing import assert_close

from reghead import metrics as M
from reghead.calibration import SplitConformal, conformal_quantile
from reghead.categories import GroupStatistics
from reghead.normalization import CategoryNormalizer, MixedEffects, TargetTransform

F64 = torch.float64
DIGITS = Context(prec=60, Emin=-(10**15), Emax=10**15)
U = 2.0**-53
SAMPLES: dict[str, list[float]] = {
    "ordinary": [1.0, 2.0, 4.0, -3.5],
    "far from zero": [1e9 - 1e-2, 1e9, 1e9 + 1e-2, 1e9 + 3e-2],
    "far below zero": [-1e12 - 0.5, -1e12, -1e12 + 0.25],
    "large": [1e30, 2e30, -4e30],
    "small": [1e-30, 2e-30, -4e-30],
    "subnormal in float32": [1e-45, 3e-45, 7e-45, 0.0],
    "the whole of float32": [-3.4e38, 3.4e38, 0.0, 1.0],
    "both sizes": [1e-30, 1e30, 0.0],
    "at the ends of the squares": [1e-150, 3e-150, 2e-150],
    "at the other ends of the squares": [1e150, 3e150, 2e150],
}


def moments(values: Sequence[float], weights: Sequence[float] | None = None) -> tuple[Fraction, Fraction, Fraction]:
    """Count, mean and sum of squares, exactly."""
    w = [Fraction(1)] * len(values) if weights is None else [Fraction(x) for x in weights]
    y = [Fraction(x) for x in values]
    mean = sum((a * b for a, b in zip(w, y, strict=True)), Fraction(0)) / sum(w)
    return sum(w, Fraction(0)), mean, sum((a * (b - mean) ** 2 for a, b in zip(w, y, strict=True)), Fraction(0))


def root(value: Fraction) -> float:
    return float(DIGITS.sqrt(DIGITS.divide(Decimal(value.numerator), Decimal(value.denominator))))


def column(values: Sequence[float], dtype: torch.dtype = F64) -> torch.Tensor:
    return torch.tensor(values, dtype=dtype).unsqueeze(-1)


@pytest.mark.parametrize("name", SAMPLES)
def test_mean_and_spread_are_right_to_a_few_roundings_of_the_spread(name: str) -> None:
    values = SAMPLES[name]
    normalizer = CategoryNormalizer().fit(column(values))
    count, mean, m2 = moments(values)
    scale = root(m2 / (count - 1))
    assert normalizer.scale.item() == pytest.approx(scale, rel=1e-12)
    assert abs(Fraction(normalizer.location.item()) - mean) <= Fraction(2 * U) * abs(mean) + Fraction(1e-12 * scale)
    z = normalizer(column(values)).flatten().tolist()
    for value, got in zip(values, z, strict=True):
        exact = float((Fraction(value) - mean) / Fraction(scale))
        # The mean, rounded to a number of float64, is off by that much of the spread.
        assert abs(got - exact) <= 1e-12 * (1 + abs(exact)) + 2 * U * abs(float(mean)) / scale
    back = normalizer.inverse(torch.tensor(z, dtype=F64).unsqueeze(-1))
    assert_close(back, column(values), rtol=4 * U, atol=8 * U * scale)


@pytest.mark.parametrize("name", SAMPLES)
def test_statistics_of_cells_in_any_shards_are_exact_too(name: str) -> None:
    values = SAMPLES[name]
    _, mean, m2 = moments(values)
    parts = [GroupStatistics.from_values(torch.zeros(1, dtype=torch.int64), column([v])) for v in values]
    merged = parts[0]
    for part in parts[1:]:
        merged = merged.merge(part)
    total = Fraction(merged.mean.item()) + Fraction(merged.mean_tail.item())
    assert abs(total - mean) <= Fraction(4 * U) * max(abs(Fraction(v)) for v in values) * Fraction(2.0**-10) + Fraction(
        1e-12 * root(m2)
    )
    assert merged.m2.item() == pytest.approx(float(m2), rel=1e-9)


@pytest.mark.parametrize("weights", [[1e15, 1e15, 1.0, 1.0], [1e-15, 2.0, 3.0, 1e-15], [1e-30, 1e30, 1e30, 1e-30]])
def test_weights_of_any_size_are_frequencies(weights: list[float]) -> None:
    values = [1.0, 5.0, -2.0, 1e6]
    normalizer = CategoryNormalizer().fit(column(values), weight=torch.tensor(weights, dtype=F64))
    count, mean, m2 = moments(values, weights)
    assert normalizer.location.item() == pytest.approx(float(mean), rel=1e-12)
    assert normalizer.scale.item() == pytest.approx(root(m2 / (count - 1)), rel=1e-9)


@pytest.mark.parametrize("value", [0.0, 5e-324, 1e-30, 0.1, 7.0, 1e9 + 1e-2, -1e30, 1e300])
@pytest.mark.parametrize("rows", [1, 3, 1000])
def test_equal_values_have_no_spread_and_a_scale_of_one(value: float, rows: int) -> None:
    """Rounding of the mean of 0.1 leaves squares that are no spread."""
    normalizer = CategoryNormalizer().fit(column([value] * rows))
    assert normalizer.scale.item() == 1.0
    assert abs(normalizer(column([value])).item()) <= 2 * U * abs(value)
    assert normalizer.inverse(normalizer(column([value]))).item() == pytest.approx(value, rel=4 * U)


@pytest.mark.parametrize(("size", "scale"), [(1e-170, 1.0), (1e160, math.inf)])
def test_beyond_squares_of_float64_there_is_no_spread_or_an_infinite_one(size: float, scale: float) -> None:
    """The stated range is 1e-150 to 1e150, and all of float32 is inside it."""
    assert CategoryNormalizer().fit(column([size, 3 * size])).scale.item() == scale


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_narrow_targets_lose_one_rounding_of_their_own(dtype: torch.dtype) -> None:
    rng = torch.Generator().manual_seed(0)
    y = (100 + torch.randn(500, 2, generator=rng)).to(dtype)
    ids = {"a": torch.randint(0, 4, (500,), generator=rng)}
    normalizer = CategoryNormalizer({"a": 4}).fit(y, ids)
    wide = CategoryNormalizer({"a": 4}).fit(y.double(), ids)
    z, exact = normalizer(y, ids), wide(y.double(), ids)
    assert z.dtype == dtype
    assert torch.equal(z, exact.to(dtype))
    back = normalizer.inverse(z, ids)
    assert back.dtype == torch.float32
    spread = wide.scale.max().item() * exact.abs().max().item()
    assert (back - y.float()).abs().max() <= torch.finfo(dtype).eps * spread + 100 * 2.0**-23


def test_infinite_and_unknown_targets_are_refused_or_missing() -> None:
    with pytest.raises(ValueError, match="target must be finite, or NaN where it is missing, got an infinite value"):
        CategoryNormalizer().fit(column([1.0, math.inf]))
    normalizer = CategoryNormalizer().fit(column([1.0, 3.0, math.nan]))
    assert normalizer.location.item() == 2.0
    z = normalizer(column([math.inf, -math.inf, math.nan])).flatten()
    assert z[:2].tolist() == [math.inf, -math.inf]
    assert z[2].isnan()


@pytest.mark.parametrize(("size", "shift"), [(1e-30, 0.0), (1e30, 0.0), (1e-2, 1e9), (1e-9, 0.0)])
def test_the_mixed_model_does_not_see_units_or_origin(size: float, shift: float) -> None:
    rng = torch.Generator().manual_seed(0)
    ids = {"a": torch.arange(40) % 5 + 1, "b": torch.arange(40) % 3 + 1}
    x = torch.randn(40, 2, generator=rng, dtype=F64)
    y = (
        torch.randn(5, 1, generator=rng, dtype=F64)[ids["a"] - 1]
        + x[:, :1]
        + torch.randn(40, 1, generator=rng).double()
    )
    sizes = {"a": 7, "b": 4}
    far = shift + size * y
    near = (far - shift) / size  # with the digits that are left
    expected, got = MixedEffects(sizes).fit(near, ids, x), MixedEffects(sizes).fit(far, ids, x)
    # The digits of 1e9 +- 1e-2 end at 1e-7, and its mean is rounded there.
    bound = 1e-8 if shift == 0 else 1e-4
    assert_close(got(far, ids, x), expected(near, ids, x), rtol=bound, atol=bound)
    assert_close(got.inverse(expected(near, ids, x), ids, x), far, rtol=1e-12, atol=bound * size)


KINDS = ("log", "log1p", "logit", "softplus")


def transformed(kind: str, y: float) -> Decimal:
    value = Decimal(y)
    if kind == "log":
        return DIGITS.ln(value)
    if kind == "log1p":
        return DIGITS.ln(DIGITS.add(Decimal(1), value)) if y > 1e-40 else value
    if kind == "logit":
        return DIGITS.ln(DIGITS.divide(value, DIGITS.subtract(Decimal(1), value)))
    lost = DIGITS.ln(DIGITS.subtract(Decimal(1), DIGITS.exp(-value))) if y < 100 else Decimal(0)
    return DIGITS.add(value, lost)


@pytest.mark.parametrize("kind", KINDS)
def test_transforms_are_right_to_a_few_roundings_to_the_edges_of_the_domain(kind: str) -> None:
    points = [1e-300, 1e-30, 1e-9, 1e-3, 0.2, 0.4999, 0.5, 0.7, 1 - 1e-3, 1 - 1e-9]
    if kind != "logit":
        points += [1.0, 2.0, 30.0, 1e9, 1e30]
    transform = TargetTransform(kind)  # type: ignore[arg-type]
    for point, got in zip(points, transform.forward(torch.tensor(points, dtype=F64)).tolist(), strict=True):
        exact = transformed(kind, point)
        # Of two terms that cancel, the larger counts.
        size = abs(exact) if kind in ("log", "log1p") else max(abs(exact), Decimal(point), Decimal(1))
        assert abs(Decimal(got) - exact) <= Decimal(8 * U) * size, (point, got, exact)


@pytest.mark.parametrize("kind", KINDS)
def test_inverses_are_right_to_a_few_roundings_in_both_tails(kind: str) -> None:
    points = [-700.0, -100.0, -30.0, -1.0, -1e-9, 0.0, 1e-30, 1e-3, 1.0, 20.0, 36.0, 100.0, 700.0]
    transform = TargetTransform(kind)  # type: ignore[arg-type]
    for point, got in zip(points, transform.inverse(torch.tensor(points, dtype=F64)).tolist(), strict=True):
        grown = DIGITS.exp(Decimal(point))
        exact = {
            "log": grown,
            "log1p": DIGITS.subtract(grown, Decimal(1)),
            "logit": DIGITS.divide(grown, DIGITS.add(Decimal(1), grown)),
            "softplus": grown if point < -100 else DIGITS.ln(DIGITS.add(Decimal(1), grown)),
        }[kind]
        assert abs(Decimal(got) - exact) <= Decimal(8 * U) * abs(exact), (point, got, exact)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_coverage_is_a_count_at_every_size(dtype: torch.dtype) -> None:
    """Comparisons are exact: an end that equals the target holds it, the next number of the dtype does not."""
    for value in (0.0, 3e-5, 1.0, 1e4):
        y = torch.full((3, 1), value, dtype=dtype)
        above = torch.nextafter(y[:1].float(), torch.tensor(math.inf)).to(dtype) if dtype == torch.float32 else None
        lower, upper = y.clone(), y.clone()
        if above is not None:
            lower[0] = above
            upper[0] = above
        got = M.coverage(lower, upper, y).item()
        assert got == pytest.approx(1.0 if above is None else 2 / 3)
    inf = torch.tensor([[math.inf]])
    assert M.coverage(-inf, inf, torch.tensor([[1e38]])).item() == 1.0
    assert M.mean_width(-inf, inf).item() == math.inf


def test_the_transform_of_targets_between_quantiles_of_any_size() -> None:
    levels = (0.1, 0.5, 0.9)
    for size in (1e-30, 1.0, 1e30):
        q = size * torch.tensor([[-1.0, 0.0, 2.0]])
        y = size * torch.tensor([1.0])
        assert M.pit(q, y, levels).item() == pytest.approx(0.7)
        assert M.pit_histogram(q, y, levels).counts.tolist() == [0.0, 0.0, 1.0, 0.0]
    edge = torch.tensor([[1e9, 1e9 + 64.0]])
    assert M.pit(edge, torch.tensor([1e9 + 64.0]), (0.2, 0.6)).item() == pytest.approx(0.6)


@pytest.mark.parametrize(("k", "n"), [(0, 1), (1, 1), (0, 10**6), (5, 10**6), (3, 7), (500_000, 10**6)])
def test_binomial_intervals_of_rare_events(k: int, n: int) -> None:
    low, high = M.binomial_interval(torch.tensor(float(k)), torch.tensor(float(n)))
    expected = stats.binomtest(k, n).proportion_ci(0.95, method="exact")
    assert low.item() == pytest.approx(expected.low, rel=1e-9, abs=1e-300)
    assert high.item() == pytest.approx(expected.high, rel=1e-9)


@pytest.mark.parametrize("n", [10, 10**4, 10**9])
def test_binomial_intervals_of_one_event_in_closed_form(n: int) -> None:
    """No event among n has probability (1 - p)^n; inverting the beta distribution numerically loses digits here."""
    low, _ = M.binomial_interval(torch.tensor(1.0, dtype=F64), torch.tensor(float(n), dtype=F64))
    assert low.item() == pytest.approx(-math.expm1(math.log1p(-0.025) / n), rel=1e-9)
    _, high = M.binomial_interval(torch.tensor(0.0, dtype=F64), torch.tensor(float(n), dtype=F64))
    assert high.item() == pytest.approx(-math.expm1(math.log(0.025) / n), rel=1e-9)


@pytest.mark.parametrize("size", [1e-300, 1e-30, 1.0, 1e30, 1e300])
def test_conformal_quantiles_are_scores_to_the_bit(size: float) -> None:
    rng = np.random.default_rng(0)
    scores = rng.exponential(size=99) * size
    exact = np.sort(scores)
    for level, rank in ((0.5, 50), (0.9, 90), (0.99, 99)):
        assert conformal_quantile(torch.from_numpy(scores), level).item() == exact[rank - 1]
    assert conformal_quantile(torch.from_numpy(scores), 0.995).item() == math.inf


def test_calibrated_intervals_far_from_zero_keep_the_digits_of_float64() -> None:
    target = column([1e9 + 1e-2 * i for i in range(9)])
    preds = torch.full_like(target, 1e9)
    conformal = SplitConformal(0.9).conformalize(preds, target)
    lower, upper = conformal.interval(preds[:1])
    assert (upper - lower).item() == pytest.approx(0.16, rel=1e-5)
    assert conformal.interval(preds[:1].float())[0].dtype == torch.float32


def test_infinite_scores_make_infinite_intervals_and_unknown_ones_are_refused() -> None:
    preds, target = torch.zeros(9, 1), torch.arange(9.0).unsqueeze(-1)
    target[0] = math.inf
    lower, upper = SplitConformal(0.9).conformalize(preds, target).interval(preds[:1])
    assert (lower.item(), upper.item()) == (-math.inf, math.inf)
    lower, upper = SplitConformal(0.8).conformalize(preds, target).interval(preds[:1])
    assert upper.item() == 8.0
    target[0] = math.nan
    with pytest.raises(ValueError, match="scores must not be NaN, but by target column"):
        SplitConformal(0.9).conformalize(preds, target)


@pytest.mark.parametrize(("score", "baseline", "exact"), [(1e-30, 1e30, 1.0), (1e30, 1e-30, -1e60), (0.0, 1e-40, 1.0)])
def test_skill_of_scores_of_any_size(score: float, baseline: float, exact: float) -> None:
    got = M.skill(torch.tensor(score, dtype=F64), torch.tensor(baseline, dtype=F64)).item()
    assert got == pytest.approx(exact)
