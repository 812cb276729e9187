"""Calibration against references by another road, and its coverage against the band that theory gives."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from scipy import stats

from reghead.calibration import ConformalizedQuantiles, CrossConformal, SplitConformal

F64 = torch.float64


def accepted(scores: np.ndarray, candidate: float, alpha: Fraction) -> bool:
    """Whether a p-value accepts a candidate score: full conformal inference, which knows no quantile."""
    p = Fraction(1 + int((scores >= candidate).sum()), len(scores) + 1)
    return p > alpha


@pytest.mark.parametrize("alpha", ["0.1", "0.2", "0.5"])
@pytest.mark.parametrize("n", [1, 4, 8, 9, 10, 25])
def test_the_interval_holds_the_targets_that_a_p_value_accepts(n: int, alpha: str) -> None:
    rng = np.random.default_rng(n)
    preds, target = rng.normal(size=(2, n, 1))
    conformal = SplitConformal(1 - float(alpha)).conformalize(torch.tensor(preds), torch.tensor(target))
    lower, upper = conformal.interval(torch.zeros(1, 1, dtype=F64))
    scores = np.abs(target - preds)[:, 0]
    grid = np.concatenate([scores - 1e-9, scores + 1e-9, [0.0, 1e6]])
    for y in (*grid, *-grid):
        assert accepted(scores, abs(y), Fraction(alpha)) == bool(lower.item() <= y <= upper.item())


@pytest.mark.parametrize("alpha", ["0.1", "0.4"])
@pytest.mark.parametrize("n", [3, 9, 30])
def test_conformalized_quantiles_hold_the_targets_that_a_p_value_accepts(n: int, alpha: str) -> None:
    rng = np.random.default_rng(n)
    ends = np.sort(rng.normal(size=(n, 1, 2)), axis=-1)
    target = rng.normal(size=(n, 1))
    tau = float(alpha) / 2
    conformal = ConformalizedQuantiles([tau, 1 - tau]).conformalize(torch.tensor(ends), torch.tensor(target))
    lower, upper = (e.item() for e in conformal.interval(torch.tensor([[[-2.0, 1.0]]], dtype=F64)))
    outside = np.array([max(lo - y, y - hi) for (lo, hi), y in zip(ends[:, 0], target[:, 0], strict=True)])
    for y in np.linspace(-8, 8, 2001):
        if min(abs(y - lower), abs(y - upper)) > 1e-9:
            assert accepted(outside, max(-2.0 - y, y - 1.0), Fraction(alpha)) == (lower <= y <= upper)


def mixture_quantile(own: list[float], everyone: list[float], pooling: Fraction, level: Fraction) -> float:
    """The mixture of a category's and everyone's distribution, inverted by trying every score in exact fractions."""
    n, total = len(own), len(everyone)
    share = Fraction(n) / (n + pooling)
    for s in sorted(everyone):
        mass = share * Fraction(sum(t <= s for t in own), n + 1)
        mass += (1 - share) * Fraction(sum(t <= s for t in everyone), total + 1)
        if mass >= level:
            return s
    return math.inf


@pytest.mark.parametrize("pooling", [0.0, 0.5, 20.0])
@pytest.mark.parametrize("seed", range(4))
def test_partial_pooling_by_exact_fractions(seed: int, pooling: float) -> None:
    rng = np.random.default_rng(seed)
    ids = rng.integers(0, 6, 80) * (rng.random(80) < 0.8)
    ids[ids == 5] = np.where(np.arange((ids == 5).sum()) < 2, 5, 4)  # one category with two rows at most
    target = rng.integers(0, 30, (80, 1)).astype(float)  # with ties
    for level in ("0.5", "0.8", "0.9"):
        conformal = SplitConformal(float(level), groups={"site": 7}, pooling=pooling)
        conformal.conformalize(torch.zeros(80, 1, dtype=F64), torch.tensor(target), {"site": torch.tensor(ids)})
        upper = conformal.interval(torch.zeros(7, 1, dtype=F64), {"site": torch.arange(7)})[1][:, 0]
        everyone = target[:, 0].tolist()
        for site in range(1, 7):
            own = target[ids == site, 0].tolist()
            if own:
                expected = mixture_quantile(own, everyone, Fraction(pooling), Fraction(level))
                assert upper[site].item() == expected, (level, site)


def hierarchical_quantile(environments: list[list[float]], level: Fraction) -> float:
    everyone = sorted(s for environment in environments for s in environment)
    for s in everyone:
        inside = sum(Fraction(sum(t <= s for t in e), len(e)) for e in environments)
        if inside >= level * (len(environments) + 1):
            return s
    return math.inf


@pytest.mark.parametrize("count", [3, 4, 9, 20])
@pytest.mark.parametrize("seed", range(4))
def test_the_hierarchical_rule_by_exact_fractions(seed: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, 8, count)
    ids = np.repeat(np.arange(1, count + 1), sizes)
    scores = rng.integers(0, 40, len(ids)).astype(float)
    environments = [scores[ids == k].tolist() for k in range(1, count + 1)]
    for level in ("0.5", "0.75", "0.8", "0.9", "0.95"):
        conformal = CrossConformal({"site": count + 2}, float(level)).conformalize(
            torch.zeros(len(ids), 1, dtype=F64),
            torch.tensor(scores).unsqueeze(-1),
            {"site": torch.tensor(ids)},
            left_out="environments",
        )
        upper = conformal.interval(torch.zeros(1, 1, dtype=F64), {"site": torch.tensor([count + 1])})[1].item()
        assert upper == hierarchical_quantile(environments, Fraction(level))


TRIALS = 2000


def band(probability: float) -> tuple[float, float]:
    """Where a share of independent trials lies, but for one run in a hundred thousand."""
    low, high = stats.binom.interval(1 - 1e-5, TRIALS, probability)
    return low / TRIALS, high / TRIALS


@pytest.mark.parametrize(("n", "level"), [(9, 0.9), (15, 0.9), (30, 0.8), (39, 0.95)])
def test_coverage_over_many_calibration_sets_is_the_rank_over_n_plus_one(n: int, level: float) -> None:
    """Each of the target columns is a trial: fresh calibration rows and one new row."""
    y = torch.randn(n + 1, TRIALS, generator=torch.Generator().manual_seed(n), dtype=F64)
    lower, upper = SplitConformal(level).conformalize(0 * y[:n], y[:n]).interval(0 * y[n:])
    covered = ((lower <= y[n:]) & (y[n:] <= upper)).double().mean().item()
    rank = math.ceil((n + 1) * Fraction(str(level)))
    low, high = band(rank / (n + 1))
    assert level <= rank / (n + 1)
    assert low <= covered <= high


@pytest.mark.parametrize("asymmetric", [False, True])
def test_conformalized_quantiles_cover_whatever_the_model(asymmetric: bool) -> None:
    n, rng = 39, torch.Generator().manual_seed(7)
    y = torch.randn(n + 1, TRIALS, generator=rng, dtype=F64).exp()  # skewed; the model below knows nothing of it
    preds = torch.stack([0.5 * y.new_ones(y.shape), 0.9 * y.new_ones(y.shape)], -1)
    conformal = ConformalizedQuantiles([0.05, 0.95], asymmetric=asymmetric).conformalize(preds[:n], y[:n])
    lower, upper = conformal.interval(preds[n:])
    low, high = band(0.9)  # 36 of 40, or 38 of 40 on each side
    assert low <= ((lower <= y[n:]) & (y[n:] <= upper)).double().mean().item() <= high
    if asymmetric:
        low, high = band(0.05)
        for miss in (y[n:] < lower, y[n:] > upper):
            assert low <= miss.double().mean().item() <= high


def test_without_pooling_every_category_is_covered_and_together_they_are_not() -> None:
    """A noisy category is covered too seldom, and a quiet one too often, by one quantile for all."""
    per, rng = 19, torch.Generator().manual_seed(3)
    ids, new = torch.tensor([1, 2, 3]).repeat(per), torch.tensor([1, 2, 3])
    spread = torch.tensor([0.2, 1.0, 5.0], dtype=F64).unsqueeze(-1)
    y = spread.repeat(per, 1) * torch.randn(3 * per, TRIALS, generator=rng, dtype=F64)
    test = spread * torch.randn(3, TRIALS, generator=rng, dtype=F64)
    shares = {}
    for pooling in (0.0, None):
        conformal = SplitConformal(0.9, groups={"site": 4}, pooling=pooling).conformalize(0 * y, y, {"site": ids})
        lower, upper = conformal.interval(0 * test, {"site": new})
        shares[pooling] = ((lower <= test) & (test <= upper)).double().mean(1)
    low, high = band(0.9)
    assert ((shares[0.0] >= low) & (shares[0.0] <= high)).all()
    assert shares[None][0] > high
    assert shares[None][2] < low


@pytest.mark.parametrize("count", [9, 19])
def test_new_environments_are_covered_by_whole_left_out_ones_and_not_by_left_out_rows(count: int) -> None:
    """Random effects: an environment has a mean of its own, which a model knows only if it has seen the place."""
    rng = torch.Generator().manual_seed(count)
    sizes = torch.arange(count) % 5 + 1
    ids = torch.arange(1, count + 1).repeat_interleave(sizes)
    effect = 3 * torch.randn(count + 1, TRIALS, generator=rng, dtype=F64)
    own = effect[:count].repeat_interleave(sizes, 0)
    y = own + torch.randn(len(ids), TRIALS, generator=rng, dtype=F64)
    conformal = CrossConformal({"site": count + 2}, 0.9)
    conformal.conformalize(own, y, {"site": ids}, left_out="rows")
    conformal.conformalize(0 * y, y, {"site": ids}, left_out="environments")
    low, high = band(0.9)

    def coverage(preds: torch.Tensor, target: torch.Tensor, site: int, module: object) -> float:
        lower, upper = module.interval(preds.unsqueeze(0), {"site": torch.tensor([site])})
        return ((lower <= target) & (target <= upper)).double().mean().item()

    known = effect[0] + torch.randn(TRIALS, generator=rng, dtype=F64)
    assert low <= coverage(effect[0], known, 1, conformal) <= high + 1 / (len(ids) + 1)
    new = effect[count] + torch.randn(TRIALS, generator=rng, dtype=F64)
    zero = torch.zeros(TRIALS, dtype=F64)
    # At most alpha plus the mass of one environment too wide.
    assert low <= coverage(zero, new, count + 1, conformal) <= high + 2 / (count + 1)
    from_rows = SplitConformal(0.9).conformalize(own, y)
    lower, upper = from_rows.interval(zero.unsqueeze(0))
    assert ((lower <= new) & (new <= upper)).double().mean().item() < 0.6
