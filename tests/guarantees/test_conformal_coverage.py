"""Coverage of conformal intervals over 1,000 calibration sets, against the distribution that theory gives it.

Each target column of one call is a calibration set of its own. The score of a new row has a known distribution, so the
coverage of each set is computed and not counted: nothing is left to chance but the calibration set, and its seed is
fixed.
"""

import itertools
import math
from collections.abc import Callable
from fractions import Fraction

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from reghead.calibration import ConformalizedQuantiles, CrossConformal, SplitConformal, conformal_rank

SETS, F64 = 1000, torch.float64
NORMAL = stats.norm()


def normal(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def ends(
    module: SplitConformal | ConformalizedQuantiles | CrossConformal, *arguments: object
) -> tuple[np.ndarray, ...]:
    """Lower and upper ends for one new row, in every set."""
    lower, upper = module.interval(*arguments)  # type: ignore[arg-type]
    return lower[0].numpy(), upper[0].numpy()


def check_beta(coverage: np.ndarray, n: int, level: float) -> None:
    """Vovk 2012: the coverage of a set of n exchangeable continuous scores has a Beta distribution of its rank."""
    k = conformal_rank(n, level)
    beta = stats.beta(k, n + 1 - k)
    assert stats.kstest(coverage, beta.cdf).pvalue > 0.01
    counts, edges = np.histogram(beta.cdf(coverage), bins=10, range=(0, 1))
    assert stats.chisquare(counts).pvalue > 0.01, edges
    assert abs(coverage.mean() - k / (n + 1)) < 4 * beta.std() / math.sqrt(len(coverage))
    assert level <= k / (n + 1)


@pytest.mark.parametrize(("n", "level"), [(9, 0.9), (39, 0.9), (100, 0.8), (250, 0.95)])
def test_split_conformal_coverage_is_beta_distributed(n: int, level: float) -> None:
    y = normal(n, n, SETS)
    lower, upper = ends(SplitConformal(level).conformalize(0 * y, y), torch.zeros(1, SETS, dtype=F64))
    check_beta(NORMAL.cdf(upper) - NORMAL.cdf(lower), n, level)


@pytest.mark.parametrize("level", [0.8, 0.9])
def test_scaled_scores_are_beta_distributed_too(level: float) -> None:
    n = 60
    spread = torch.linspace(0.1, 9.0, n, dtype=F64).unsqueeze(-1).expand(n, SETS)
    y = spread * normal(1, n, SETS)
    module = SplitConformal(level, scaled=True).conformalize(0 * y, y, scale=spread)
    lower, upper = ends(module, torch.zeros(1, SETS, dtype=F64), None, torch.full((1, SETS), 7.0, dtype=F64))
    check_beta(NORMAL.cdf(upper / 7) - NORMAL.cdf(lower / 7), n, level)


def test_every_category_without_pooling_is_beta_distributed() -> None:
    """Mondrian: each has its own number of rows and its own spread, and its own Beta."""
    sizes, level = {1: 15, 2: 40, 3: 100}, 0.8
    site = torch.cat([torch.full((n,), k) for k, n in sizes.items()])
    spread = torch.tensor([0.0, 0.1, 1.0, 20.0], dtype=F64)
    y = spread[site].unsqueeze(-1) * normal(2, len(site), SETS)
    module = SplitConformal(level, groups={"site": 4}, pooling=0.0).conformalize(0 * y, y, {"site": site})
    for k, n in sizes.items():
        lower, upper = ends(module, torch.zeros(1, SETS, dtype=F64), {"site": torch.tensor([k])})
        width = spread[k].item()
        check_beta(NORMAL.cdf(upper / width) - NORMAL.cdf(lower / width), n, level)


@pytest.mark.parametrize("n", [19, 80])
def test_conformalized_quantiles_are_beta_distributed_whatever_the_model(n: int) -> None:
    y = normal(3, n, SETS).exp()  # skewed; the predicted quantiles know nothing of it
    preds = torch.tensor([0.5, 0.9], dtype=F64).expand(n + 1, SETS, 2)
    module = ConformalizedQuantiles([0.1, 0.9]).conformalize(preds[:n], y)
    lower, upper = ends(module, preds[n:])
    cdf = stats.lognorm(1.0).cdf
    check_beta(cdf(upper) - cdf(lower), n, 0.8)


def test_each_side_of_asymmetric_quantiles_is_beta_distributed() -> None:
    n = 59
    y = normal(4, n, SETS).exp()
    preds = torch.tensor([0.5, 0.9], dtype=F64).expand(n + 1, SETS, 2)
    module = ConformalizedQuantiles([0.1, 0.9], asymmetric=True).conformalize(preds[:n], y)
    lower, upper = ends(module, preds[n:])
    cdf = stats.lognorm(1.0).cdf
    check_beta(1 - cdf(lower), n, 0.9)
    check_beta(cdf(upper), n, 0.9)


@pytest.mark.parametrize("step", [0.25, 1.0])
@pytest.mark.parametrize("quantiles", [False, True])
def test_ties_only_add_coverage(step: float, quantiles: bool) -> None:
    """Rounded targets: at least nominal on average, and set by set no less, in distribution, than without ties."""
    n, level = 40, 0.8
    y = (normal(5, n, SETS) / step).round() * step
    if quantiles:
        preds = torch.tensor([-step, step], dtype=F64).expand(n + 1, SETS, 2)
        lower, upper = ends(ConformalizedQuantiles([0.1, 0.9]).conformalize(preds[:n], y), preds[n:])
    else:
        lower, upper = ends(SplitConformal(level).conformalize(0 * y, y), torch.zeros(1, SETS, dtype=F64))
    # A rounded value inside holds all that is rounded to it.
    coverage = NORMAL.cdf(upper + step / 2) - NORMAL.cdf(lower - step / 2)
    assert coverage.mean() > level
    k = conformal_rank(n, level)
    assert stats.kstest(coverage, stats.beta(k, n + 1 - k).cdf, alternative="greater").pvalue > 0.01


# New environments


def environments(seed: int, count: int, effect: float) -> tuple[Tensor, Tensor, Tensor]:
    """Ids of the rows, targets ``(rows, SETS)`` of mean 0, and the spread of a row of a new environment."""
    sizes = torch.arange(count) * 7 % 5 + 1
    ids = torch.arange(1, count + 1).repeat_interleave(sizes)
    level = effect * normal(seed, count, SETS)
    return (
        ids,
        level.repeat_interleave(sizes, 0) + normal(seed + 1, len(ids), SETS),
        torch.tensor(effect).hypot(torch.tensor(1.0)),
    )


def coverage_of_new(module: CrossConformal, count: int, spread: float) -> np.ndarray:
    lower, upper = ends(module, torch.zeros(1, SETS, dtype=F64), {"site": torch.tensor([count + 1])})
    return NORMAL.cdf(upper / spread) - NORMAL.cdf(lower / spread)


@pytest.mark.parametrize("effect", [0.0, 1.0, 5.0])
@pytest.mark.parametrize("count", [9, 14, 40])
def test_new_environments_are_covered_at_the_level_itself(count: int, effect: float) -> None:
    """The hierarchical rule is proven at 1 - alpha for exchangeable environments, and wastes one at most."""
    level = 0.9
    ids, y, spread = environments(10 * count, count, effect)
    module = CrossConformal({"site": count + 2}, level)
    module.conformalize(0 * y, y, {"site": ids}, left_out="environments")
    coverage = coverage_of_new(module, count, spread.item())
    slack = 4 * coverage.std() / math.sqrt(SETS)
    assert level - slack <= coverage.mean() <= level + 1 / (count + 1) + 0.02 + slack


def test_rows_counted_as_draws_cover_too_little_where_environments_differ() -> None:
    """The pooled rule has no guarantee there, and needs none where they do not."""
    count, rows, shares = 9, 20, {}
    ids = torch.arange(1, count + 1).repeat_interleave(rows)
    for effect in (0.0, 5.0):
        y = (effect * normal(77, count, SETS)).repeat_interleave(rows, 0) + normal(78, count * rows, SETS)
        module = CrossConformal({"site": count + 2}, 0.9, rule="pooled")
        module.conformalize(0 * y, y, {"site": ids}, left_out="environments")
        shares[effect] = coverage_of_new(module, count, math.hypot(effect, 1.0)).mean()
    assert shares[0.0] > 0.895
    assert shares[5.0] < 0.885


@pytest.mark.parametrize("folds", [5, 20])
def test_out_of_fold_means_cover_about_the_level_and_at_least_twice_the_misses(folds: int) -> None:
    """Several models and one more for the prediction: 1 - 2 alpha is what cross-validation+ is proven at.

    The model is the mean of the environments that it was fitted on; it changes little with a fold, so the coverage is
    near 1 - alpha.
    """
    count, level, effect = 20, 0.9, 3.0
    ids, y, _ = environments(5, count, effect)
    fold_of = torch.arange(count) % folds
    means = torch.stack([y[ids == k].mean(0) for k in range(1, count + 1)])
    oof = torch.stack([means[fold_of != fold_of[k - 1]].mean(0) for k in ids.tolist()])
    module = CrossConformal({"site": count + 2}, level).conformalize(oof, y, {"site": ids}, left_out="environments")
    final = means.mean(0, keepdim=True)
    lower, upper = ends(module, final, {"site": torch.tensor([count + 1])})
    spread = math.hypot(effect, 1.0)
    coverage = NORMAL.cdf(upper / spread) - NORMAL.cdf(lower / spread)
    assert coverage.mean() >= 1 - 2 * (1 - level)
    assert abs(coverage.mean() - level) < 0.03


def test_known_environments_are_beta_distributed() -> None:
    ids, y, _ = environments(8, 12, 5.0)
    own = torch.stack([y[ids == k].mean(0) for k in range(1, 13)])[ids - 1]
    residual = normal(9, *y.shape)
    module = CrossConformal({"site": 14}, 0.8).conformalize(own, own + residual, {"site": ids}, left_out="rows")
    lower, upper = ends(module, torch.zeros(1, SETS, dtype=F64), {"site": torch.tensor([3])})
    check_beta(NORMAL.cdf(upper) - NORMAL.cdf(lower), len(ids), 0.8)


# Too little to say anything


def upper_of(module: SplitConformal | CrossConformal, **categories: int) -> float:
    ids = {column: torch.tensor([i]) for column, i in categories.items()} or None
    return module.interval(torch.zeros(1, 1), ids)[1].item()  # type: ignore[arg-type]


@pytest.mark.parametrize("level", [0.5, 0.8, 0.9, 0.95, 0.99])
@pytest.mark.parametrize("n", [1, 2, 3, 4, 8, 9, 18, 19, 98, 99])
def test_tiny_calibration_sets_give_infinite_intervals_and_never_short_ones(n: int, level: float) -> None:
    y = torch.arange(1.0, n + 1).unsqueeze(-1)
    site = {"site": torch.ones(n, dtype=torch.int64)}
    enough = n + 1 >= 1 / (1 - Fraction(str(level)))
    rank = math.ceil((n + 1) * Fraction(str(level)))
    expected = float(rank) if enough else math.inf
    assert upper_of(SplitConformal(level).conformalize(0 * y, y)) == expected
    groups: Callable[..., SplitConformal] = lambda **o: SplitConformal(level, groups={"site": 3}, **o)  # noqa: E731
    assert upper_of(groups(pooling=0.0).conformalize(0 * y, y, site), site=1) == expected
    assert upper_of(groups(unseen="infinite").conformalize(0 * y, y, site), site=2) == math.inf
    each = {"site": torch.arange(1, n + 1)}
    cross = CrossConformal({"site": n + 2}, level).conformalize(0 * y, y, each, left_out="environments")
    assert upper_of(cross, site=n + 1) == expected
    one_site = CrossConformal({"site": 3}, level).conformalize(0 * y, y, site, left_out="environments")
    assert upper_of(one_site, site=2) == (math.inf if level > 0.5 else one_site.offsets[0, 0, 0].item())


@pytest.mark.parametrize(("n", "finite"), [(18, False), (19, True)])
def test_each_side_needs_twice_the_rows(n: int, finite: bool) -> None:
    y = torch.arange(1.0, n + 1).unsqueeze(-1)
    preds = torch.zeros(n, 1, 2)
    both = ConformalizedQuantiles([0.05, 0.95], asymmetric=True).conformalize(preds, y)
    assert all(math.isfinite(e.item()) == finite for e in both.interval(preds[:1]))


# Limits of partial pooling


def test_pooling_ends_at_the_category_and_at_all_rows() -> None:
    site = {"site": torch.arange(120) % 3 + 1}
    y = normal(11, 120, 50) * torch.tensor([0.2, 1.0, 5.0], dtype=F64)[torch.arange(120) % 3].unsqueeze(-1)
    row = {"site": torch.tensor([3])}

    def upper(pooling: float | None) -> Tensor:
        module = SplitConformal(0.9, groups={"site": 4}, pooling=pooling).conformalize(0 * y, y, site)
        return module.interval(torch.zeros(1, 50, dtype=F64), row)[1]

    assert torch.equal(upper(1e-9), upper(0.0))
    assert torch.equal(upper(1e12), upper(None))
    steps = [upper(m) for m in (0.0, 5.0, 50.0, 500.0, None)]
    assert all((later <= earlier).all() for earlier, later in itertools.pairwise(steps))
