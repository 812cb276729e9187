"""Empirical Bayes and the additive fallback: the limits they must reach, and what they gain."""

import math

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from reghead._warnings import UnseenCategoryWarning
from reghead.normalization import CategoryNormalizer

F64 = torch.float64
OPTIONS = {
    "plain": {},
    "additive": {"fallback": "additive"},
    "bayes": {"shrinkage": "empirical_bayes"},
    "both": {"fallback": "additive", "shrinkage": "empirical_bayes"},
}


def groups(sizes: list[int], means: list[float], seed: int = 0, sd: float = 1.0) -> tuple[Tensor, dict[str, Tensor]]:
    """Rows whose cells have exactly the given means, and noise around them."""
    generator = torch.Generator().manual_seed(seed)
    values, ids = [], []
    for i, (n, mean) in enumerate(zip(sizes, means, strict=True), start=1):
        noise = torch.randn(n, generator=generator, dtype=F64) * sd
        values.append(mean + noise - noise.mean())
        ids.append(torch.full((n,), i))
    return torch.cat(values).unsqueeze(-1), {"location": torch.cat(ids)}


def own_weights(normalizer: CategoryNormalizer) -> Tensor:
    """How far each cell keeps its own mean: 1 untouched, 0 the population's."""
    table = normalizer.statistics()
    return ((table.location[1:] - table.location[:1]) / (table.mean[1:] - table.location[:1])).flatten()


def test_a_singleton_is_shrunk_most_and_the_weight_tends_to_one() -> None:
    sizes, means = [1, 2, 5, 50, 5000], [3.0, -3.0, 3.0, -3.0, 1.0]
    y, ids = groups(sizes, means)
    normalizer = CategoryNormalizer({"location": 6}, shrinkage="empirical_bayes").fit(y, ids)
    weight = own_weights(normalizer)
    assert (weight.diff() > 0).all()
    assert 0 < weight[0] < 1
    assert 1 - weight[-1] < 1e-3
    # All weights come from one ratio of variances: w / (1 - w) is proportional to n.
    odds = weight / (1 - weight) / torch.tensor(sizes)
    assert_close(odds, odds[:1].expand(5), rtol=1e-6, atol=0)


def test_without_variance_between_cells_means_are_pooled_completely() -> None:
    y, ids = groups([4, 5, 6, 7], [2.0, 2.0, 2.0, 2.0])
    table = CategoryNormalizer({"location": 5}, shrinkage="empirical_bayes").fit(y, ids).statistics()
    assert_close(table.location, torch.full((5, 1), 2.0, dtype=F64))


def test_only_singletons_are_pooled_completely_as_nothing_tells_noise_from_signal() -> None:
    y = torch.tensor([[1.0], [4.0], [9.0]], dtype=F64)
    normalizer = CategoryNormalizer({"location": 4}, shrinkage="empirical_bayes")
    table = normalizer.fit(y, {"location": torch.tensor([1, 2, 3])}).statistics()
    assert_close(table.location[1:], y.mean().expand(3, 1))
    assert_close(table.scale, y.std().expand(4, 1))


def test_without_variance_within_cells_means_are_kept() -> None:
    y = torch.tensor([[1.0], [1.0], [4.0], [4.0], [8.0]], dtype=F64)
    normalizer = CategoryNormalizer({"location": 4}, shrinkage="empirical_bayes")
    table = normalizer.fit(y, {"location": torch.tensor([1, 1, 2, 2, 3])}).statistics()
    assert_close(table.location[1:].flatten(), torch.tensor([1.0, 4.0, 8.0], dtype=F64))
    assert_close(table.scale, y.std().expand(4, 1))


def test_scales_move_toward_the_pooled_one_by_degrees_of_freedom() -> None:
    # Ten cells with sd 1 and ten with sd 4: the variances differ, so they are shrunk but not pooled.
    small, ids_small = groups([3, 30] * 5, [0.0] * 10, seed=1)
    large, ids_large = groups([3, 30] * 5, [0.0] * 10, seed=2, sd=4.0)
    y, ids = torch.cat([small, large]), {"location": torch.cat([ids_small["location"], ids_large["location"] + 10])}
    raw = CategoryNormalizer({"location": 21}).fit(y, ids).statistics().scale[1:].square().flatten()
    shrunk = CategoryNormalizer({"location": 21}, shrinkage="empirical_bayes").fit(y, ids).statistics()
    variance = shrunk.scale[1:].square().flatten()
    df = torch.tensor([2, 29] * 10, dtype=F64)
    pooled = (df * raw).sum() / df.sum()
    kept = (variance - pooled) / (raw - pooled)
    # One prior for all: the share kept is d / (a + d).
    prior_df = df * (1 / kept - 1)
    assert_close(prior_df, prior_df[:1].expand(20))
    assert 2 < prior_df[0] < 20
    truth = torch.tensor([1.0] * 10 + [16.0] * 10, dtype=F64)
    few = df == 2
    error = [(v[few] / truth[few]).log().abs().mean() for v in (raw, variance, pooled.expand(20))]
    assert error[1] < error[0]
    assert error[1] < error[2]


def test_equal_variances_are_pooled_completely() -> None:
    y = torch.tensor([[-1.0], [1.0]] * 6, dtype=F64)
    ids = {"location": torch.arange(12) // 2 + 1}
    normalizer = CategoryNormalizer({"location": 7}, shrinkage="empirical_bayes").fit(y, ids)
    assert_close(normalizer.statistics().scale[1:], torch.full((6, 1), math.sqrt(2), dtype=F64))


def factorial(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """True means of a 20 x 8 factorial with interaction, the counts of its cells, 40 % of them 0, and their rows."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=F64)

    mean = 10 + 2 * normal(20, 1) + normal(1, 8) + 0.5 * normal(20, 8)
    sampled = torch.rand(20, 8, generator=generator) > 0.4
    count = torch.where(sampled, torch.empty(20, 8).geometric_(0.25, generator=generator).long(), 0)
    cells = torch.repeat_interleave(torch.arange(160), count.flatten())
    return mean, count, torch.stack([cells.double(), mean.flatten()[cells] + normal(len(cells))])


def test_new_cells_gain_from_main_effects_and_seen_cells_from_shrinkage_toward_them() -> None:
    everything = {"location": torch.arange(20).repeat_interleave(8) + 1, "season": torch.arange(8).repeat(20) + 1}
    unseen, seen, single = (dict.fromkeys(OPTIONS, 0.0) for _ in range(3))
    for seed in range(5):
        mean, count, (cells, y) = factorial(seed)
        ids = {column: i[cells.long()] for column, i in everything.items()}
        for name, options in OPTIONS.items():
            normalizer = CategoryNormalizer({"location": 21, "season": 9}, **options)  # type: ignore[arg-type]
            normalizer.fit(y.unsqueeze(-1), ids)
            with pytest.warns(UnseenCategoryWarning):
                error = normalizer.inverse(torch.zeros(160, 1, dtype=F64), everything).reshape(20, 8) - mean
            for sums, which in ((unseen, count == 0), (seen, count > 0), (single, count == 1)):
                sums[name] += error[which].square().mean().sqrt().item() / 5
    assert unseen["additive"] < unseen["plain"] / 2
    assert unseen["both"] == pytest.approx(unseen["additive"], rel=1e-12)
    assert seen["additive"] == pytest.approx(seen["plain"], rel=1e-12)
    assert seen["both"] < 0.85 * seen["plain"]
    assert seen["both"] < seen["bayes"] < seen["plain"]
    assert single["both"] < 0.65 * single["plain"]


def test_additive_data_are_completed_exactly() -> None:
    # y = location + season without noise, with holes: the holes are filled in.
    location, season = torch.tensor([0.0, 10.0, 30.0]), torch.tensor([0.0, 1.0, 5.0, 7.0])
    cells = torch.cartesian_prod(torch.arange(3), torch.arange(4))
    y = (location[cells[:, 0]] + season[cells[:, 1]]).double().unsqueeze(-1)
    kept = torch.tensor([i for i in range(12) if i not in (1, 6, 11)])
    normalizer = CategoryNormalizer({"location": 4, "season": 5}, fallback="additive")
    normalizer.fit(y[kept], {"location": cells[kept, 0] + 1, "season": cells[kept, 1] + 1})
    with pytest.warns(UnseenCategoryWarning, match=r"3 cells .*\(location=1, season=2\).*fallback='additive'"):
        filled = normalizer.inverse(torch.zeros_like(y), {"location": cells[:, 0] + 1, "season": cells[:, 1] + 1})
    assert_close(filled, y, rtol=1e-11, atol=1e-11)


def test_an_unknown_level_takes_the_average_of_its_column_and_no_known_level_the_population() -> None:
    # Balanced, so that the average over seasons of location 2 is its own mean.
    cells = torch.cartesian_prod(torch.arange(1, 4), torch.arange(1, 3)).repeat(5, 1)
    generator = torch.Generator().manual_seed(0)
    y = cells[:, :1] * 10.0 + cells[:, 1:] + torch.randn(30, 1, generator=generator, dtype=F64)
    normalizer = CategoryNormalizer({"location": 5, "season": 3}, fallback="additive")
    normalizer.fit(y, {"location": cells[:, 0], "season": cells[:, 1]})
    ids = {"location": torch.tensor([2, 0, 0]), "season": torch.tensor([0, 1, 0])}
    location = normalizer.inverse(torch.zeros(3, 1, dtype=F64), ids).flatten()
    expected = [y[cells[:, 0] == 2].mean(), y[cells[:, 1] == 1].mean(), y.mean()]
    assert_close(location, torch.stack(expected))
    scale = normalizer.inverse_scale(torch.ones(3, 1, dtype=F64), ids).flatten()
    pooled = torch.stack([y[(cells == c).all(1)].var() for c in cells[:6]]).mean().sqrt()
    assert_close(scale, torch.stack([pooled, pooled, y.std()]))
    # A level of the vocabulary without training rows is as unknown as id 0.
    new = {"location": torch.tensor([4]), "season": torch.tensor([1])}
    with pytest.warns(UnseenCategoryWarning):
        assert_close(normalizer.inverse(torch.zeros(1, 1, dtype=F64), new).flatten(), expected[1:2][0].reshape(1))


def test_a_disconnected_design_has_a_finite_answer_that_fits_what_was_seen() -> None:
    # Locations 1, 2 in season 1 only and location 3 in season 2 only: the seasons cannot be compared.
    ids = {"location": torch.tensor([1, 2, 3]), "season": torch.tensor([1, 1, 2])}
    y = torch.tensor([[1.0], [3.0], [20.0]], dtype=F64)
    normalizer = CategoryNormalizer({"location": 4, "season": 3}, fallback="additive").fit(y, ids)
    effects = normalizer.effects
    fitted = effects[0] + effects[1 + ids["location"]] + effects[1 + 4 + ids["season"]]
    assert_close(fitted, y)
    new = {"location": torch.tensor([3]), "season": torch.tensor([1])}
    with pytest.warns(UnseenCategoryWarning):
        other = normalizer.inverse(torch.zeros(1, 1, dtype=F64), new)
    assert 1 <= other.item() <= 20


@pytest.mark.filterwarnings("ignore::reghead._warnings.UnseenCategoryWarning")
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_each_target_column_is_estimated_alone(options: dict[str, str]) -> None:
    generator = torch.Generator().manual_seed(0)
    ids = {c: torch.randint(0, 4, (60,), generator=generator) for c in ("a", "b")}
    y = torch.randn(60, 3, generator=generator, dtype=F64) * torch.tensor([1.0, 50.0, 1e-3])
    y[:, 1] += 7 * ids["a"]
    y[::3, 2] = math.nan
    together = CategoryNormalizer({"a": 4, "b": 4}, **options).fit(y, ids)  # type: ignore[arg-type]
    for d in range(3):
        alone = CategoryNormalizer({"a": 4, "b": 4}, **options).fit(y[:, d : d + 1], ids)  # type: ignore[arg-type]
        one, three = torch.ones(60, 1, dtype=F64), torch.ones(60, 3, dtype=F64)
        assert_close(together.inverse(0 * three, ids)[:, d : d + 1], alone.inverse(0 * one, ids))
        assert_close(together.inverse_scale(three, ids)[:, d : d + 1], alone.inverse_scale(one, ids))


def test_a_column_without_values_leaves_the_others_alone() -> None:
    generator = torch.Generator().manual_seed(0)
    ids = {c: torch.randint(1, 4, (30,), generator=generator) for c in ("a", "b")}
    y = torch.randn(30, 2, generator=generator, dtype=F64)
    y[:, 1] = math.nan
    for options in OPTIONS.values():
        normalizer = CategoryNormalizer({"a": 4, "b": 4}, **options).partial_fit(y, ids)  # type: ignore[arg-type]
        alone = CategoryNormalizer({"a": 4, "b": 4}, **options).fit(y[:, :1], ids)  # type: ignore[arg-type]
        z = normalizer(torch.zeros(30, 2, dtype=F64), ids)
        assert z[:, 1].isnan().all()
        assert_close(z[:, :1], alone(torch.zeros(30, 1, dtype=F64), ids))
