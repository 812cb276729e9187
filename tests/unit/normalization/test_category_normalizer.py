"""Normalization by category: the statistics, scales of cells with little data, and shards."""

import itertools
import math
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from reghead.categories import CategoryEncoder
from reghead.config import NormalizerConfig
from reghead.normalization import CategoryNormalizer

F64 = torch.float64


def column(*values: float) -> Tensor:
    return torch.tensor(values, dtype=F64).unsqueeze(-1)


def at(*ids: int) -> dict[str, Tensor]:
    return {"location": torch.tensor(ids, dtype=torch.int64)}


def by_location(n: int = 4, **options: object) -> CategoryNormalizer:
    return CategoryNormalizer({"location": n}, **options)  # type: ignore[arg-type]


# The statistics


def test_mean_and_standard_deviation_divide_by_degrees_of_freedom_everywhere() -> None:
    y = column(1, 3, 10, 14, 18)
    table = by_location().fit(y, at(1, 1, 2, 2, 2)).statistics()
    assert table.ids["location"].tolist() == [0, 1, 2]
    assert table.count.flatten().tolist() == [5, 2, 3]
    assert_close(table.mean.flatten(), torch.tensor([9.2, 2, 14], dtype=F64))
    # Sums of squares 2 and 32; the population has 4 degrees of freedom.
    population = ((y - 9.2) ** 2).sum().item() / 4
    assert_close(table.scale.flatten() ** 2, torch.tensor([population, 2, 16], dtype=F64))


def test_no_columns_means_one_mean_and_standard_deviation() -> None:
    y = column(1, 2, 3)
    for normalizer in (CategoryNormalizer(), CategoryNormalizer({})):
        assert_close(normalizer.fit(y)(y), column(-1, 0, 1))
        assert_close(normalizer(y, at(1, 1, 1)), column(-1, 0, 1), msg="columns that are not asked for are ignored")


def test_each_target_column_has_its_own_statistics() -> None:
    y = torch.tensor([[1.0, 1000.0], [3.0, 3000.0]], dtype=F64)
    normalizer = by_location().fit(y, at(1, 1))
    assert normalizer.statistics().location[1].tolist() == [2, 2000]
    z = normalizer(y, at(1, 1))
    assert_close(z[:, 0], z[:, 1])


def test_combinations_of_columns_are_cells_in_any_order_of_the_columns() -> None:
    ids = torch.tensor(list(itertools.product((1, 2), (1, 2, 3), range(2))))
    y = (100 * ids[:, 0] + 10 * ids[:, 1] + ids[:, 2]).double().unsqueeze(-1)
    categories = {"season": ids[:, 1], "location": ids[:, 0]}
    one = CategoryNormalizer({"location": 3, "season": 4}).fit(y, categories)
    other = CategoryNormalizer({"season": 4, "location": 3}).fit(y, categories)
    table = one.statistics()
    assert_close(table.location[1:, 0], (100 * table.ids["location"] + 10 * table.ids["season"] + 0.5)[1:].double())
    assert torch.equal(one(y, categories), other(y, categories))
    assert one.merge(other).statistics().count[1:].unique().tolist() == [4]


def test_labels_that_collide_when_joined_as_strings_stay_apart() -> None:
    encoder = CategoryEncoder(["a", "b"])
    categories = encoder.fit_transform({"a": ["1,b=2", "1"] * 2, "b": ["3", "2,b=3"] * 2})
    normalizer = CategoryNormalizer(encoder.cardinalities).fit(column(0, 100, 2, 102), categories)
    assert sorted(normalizer.statistics().location[1:].flatten().tolist()) == [1, 101]


def test_a_row_with_an_unknown_id_counts_for_the_population_and_forms_no_cell() -> None:
    normalizer = CategoryNormalizer({"a": 3, "b": 3})
    categories = {"a": torch.tensor([1, 1, 0, 2]), "b": torch.tensor([1, 1, 2, 0])}
    table = normalizer.fit(column(1, 3, 100, 200), categories).statistics()
    assert {column: ids.tolist() for column, ids in table.ids.items()} == {"a": [0, 1], "b": [0, 1]}
    assert table.count.flatten().tolist() == [4, 2]
    assert table.location.flatten().tolist() == [76, 2]
    assert table.mean.flatten().tolist() == [76, 2]


def test_missing_targets_are_missing_in_their_own_column() -> None:
    nan = math.nan
    y = torch.tensor([[1.0, nan], [3.0, 5.0], [nan, 7.0]], dtype=F64)
    normalizer = by_location().fit(y, at(1, 1, 1))
    assert normalizer.statistics().location[1].tolist() == [2, 6]
    assert torch.equal(normalizer(y, at(1, 1, 1)).isnan(), y.isnan())


def test_a_cell_without_values_in_one_column_takes_the_fallback_there() -> None:
    nan = math.nan
    y = torch.tensor([[1.0, 10.0], [3.0, 14.0], [8.0, nan]], dtype=F64)
    normalizer = by_location().fit(y, at(1, 1, 2))
    table = normalizer.statistics()
    assert table.location[2].tolist() == [8, 12]
    assert_close(table.scale[2], torch.tensor([math.sqrt(2), math.sqrt(8)], dtype=F64))


def test_weights_are_frequencies_and_count_beyond_float32() -> None:
    normalizer = by_location().fit(column(0, 1), at(1, 1), weight=torch.tensor([2**24, 1]))
    assert normalizer.statistics().count[1].item() == 16_777_217
    twice = by_location().fit(column(1, 5), at(1, 1), weight=torch.tensor([2, 1]))
    assert_close(twice.statistics().scale[1], by_location().fit(column(1, 1, 5), at(1, 1, 1)).statistics().scale[1])


def test_a_weight_of_the_batch_is_per_row_also_when_the_batch_is_as_long_as_the_columns() -> None:
    y = torch.tensor([[0.0, 0.0], [3.0, 30.0]], dtype=F64)
    assert by_location().fit(y, at(1, 1), weight=torch.tensor([2, 1])).statistics().mean[1].tolist() == [1, 10]
    weight = torch.tensor([[2, 1], [1, 2]])
    assert by_location().fit(y, at(1, 1), weight=weight).statistics().mean[1].tolist() == [1, 20]


# Scales that are too small to divide by


def test_a_singleton_borrows_the_pooled_scale_and_stays_bounded() -> None:
    y = column(7.0, 1.0, 3.0, 11.0, 15.0)
    normalizer = by_location().fit(y, at(1, 2, 2, 3, 3))
    pooled = math.sqrt((2 + 8) / 2)
    assert_close(normalizer.statistics().scale[1].item(), pooled)
    z = normalizer(column(7.1), at(1))
    assert_close(z.item(), 0.1 / pooled)
    assert_close(normalizer.inverse(z, at(1)), column(7.1))


@pytest.mark.parametrize("constant", [0.1, 1e9 + 1 / 3, -1e-9 / 3, 0.0])
def test_a_constant_cell_borrows_the_pooled_scale_whatever_the_rounding_of_its_mean(constant: float) -> None:
    y = column(*[constant] * 7, 2.0, 4.0)
    ids = at(*[1] * 7, 2, 2)
    whole = by_location().fit(y, ids)
    shards = by_location()
    for rows in (slice(0, 2), slice(2, 3), slice(3, 8), slice(8, 9)):
        shards.partial_fit(y[rows], at(*ids["location"][rows].tolist()))
    pooled = math.sqrt(2 / 7)  # a constant cell has degrees of freedom and no spread
    for normalizer in (whole, shards):
        assert_close(normalizer.statistics().scale[1].item(), pooled)
        assert normalizer(y[:7], at(*[1] * 7)).abs().max() <= 1e-6


def test_a_spread_of_a_rounding_is_none() -> None:
    y = column(0.3, 0.1 + 0.2, 2.0, 4.0)  # the first two differ by a rounding
    assert y[0] != y[1]
    normalizer = by_location().fit(y, at(1, 1, 2, 2))
    assert_close(normalizer.statistics().scale[1].item(), 1.0)


def test_without_spread_within_cells_the_population_scale_is_used_and_without_any_one() -> None:
    y = column(1, 1, 3, 3)
    normalizer = by_location().fit(y, at(1, 1, 2, 2))
    assert_close(normalizer.statistics().scale.flatten(), torch.full((3,), math.sqrt(4 / 3), dtype=F64))
    for constant in (column(5, 5), column(5)):
        normalizer = by_location().fit(constant, at(*[1] * len(constant)))
        assert normalizer.statistics().scale.flatten().tolist() == [1, 1]
        assert normalizer(column(7), at(1)).item() == 2


@pytest.mark.parametrize("factor", [1e-9, 1e-3, 1e9])
@pytest.mark.parametrize("shrinkage", ["none", "empirical_bayes"])
@pytest.mark.parametrize("fallback", ["global", "additive"])
def test_units_do_not_matter(factor: float, shrinkage: str, fallback: str) -> None:
    generator = torch.Generator().manual_seed(0)
    ids = {c: torch.randint(1, 4, (40,), generator=generator) for c in ("a", "b")}
    y = torch.randn(40, 1, generator=generator, dtype=F64) + ids["a"].unsqueeze(-1)
    normalizer = CategoryNormalizer({"a": 4, "b": 4}, shrinkage=shrinkage, fallback=fallback)  # type: ignore[arg-type]
    z = normalizer.fit(y, ids)(y, ids)
    assert_close(normalizer.fit(factor * y, ids)(factor * y, ids), z, rtol=1e-9, atol=1e-9)


def test_a_spread_far_below_the_mean_is_exact() -> None:
    y = 1e9 + column(-0.015625, 0.015625, -0.015625, 0.015625)  # exact in binary
    z = by_location().fit(y, at(1, 1, 1, 1))(y, at(1, 1, 1, 1))
    assert_close(z.abs(), torch.full_like(z, math.sqrt(3) / 2), rtol=1e-12, atol=0)


def test_negative_means_keep_their_sign() -> None:
    y = column(-10, -12, 4, 6)
    normalizer = by_location().fit(y, at(1, 1, 2, 2))
    assert normalizer.statistics().location.flatten().tolist() == [-3, -11, 5]
    assert (normalizer.statistics().scale > 0).all()


# Shards


def test_shards_give_the_statistics_of_the_whole_and_an_empty_one_changes_nothing() -> None:
    generator = torch.Generator().manual_seed(0)
    y = 1e6 + torch.randn(60, 2, generator=generator, dtype=F64)
    ids = torch.randint(0, 4, (60,), generator=generator)
    whole = by_location().fit(y, {"location": ids})
    shards, merged = by_location(), by_location()
    for rows in torch.arange(60).split([0, 7, 30, 0, 23]):
        part = {"location": ids[rows]}
        shards.partial_fit(y[rows], part)
        merged.merge(by_location().partial_fit(y[rows], part))
    for normalizer in (shards, merged):
        for name in ("location", "scale"):
            assert_close(getattr(normalizer, name), getattr(whole, name), rtol=1e-12, atol=0)
        assert torch.equal(normalizer.cell_count, whole.cell_count)


def test_merging_an_unfitted_normalizer_changes_nothing() -> None:
    fitted = by_location().fit(column(1, 3), at(1, 1))
    before = fitted.statistics()
    assert torch.equal(fitted.merge(by_location()).statistics().location, before.location)
    assert torch.equal(by_location().merge(fitted).statistics().location, before.location)


def test_a_column_without_a_value_so_far_normalizes_to_nan_until_it_has_one() -> None:
    y = torch.tensor([[1.0, math.nan], [3.0, math.nan]])
    normalizer = by_location().partial_fit(y, at(1, 1))
    assert normalizer(y.nan_to_num(), at(1, 1)).isnan().tolist() == [[False, True]] * 2
    normalizer.partial_fit(torch.tensor([[2.0, 5.0], [2.0, 7.0]]), at(1, 1))
    assert_close(normalizer.statistics().location[1], torch.tensor([2.0, 6.0], dtype=F64))


@pytest.mark.parametrize(("transform", "ignored"), [("log", -5.0), ("identity", torch.inf), ("identity", 1e9)])
def test_a_weight_of_zero_is_no_row_whatever_its_target(transform: Any, ignored: float) -> None:
    target, weight = torch.tensor([[1.0], [2.0], [ignored]]), torch.tensor([1.0, 1.0, 0.0])
    fitted = CategoryNormalizer(transform=transform).fit(target, weight=weight)
    without = CategoryNormalizer(transform=transform).fit(target[:2])
    assert torch.equal(fitted(target[:2]), without(target[:2]))


def test_weights_that_sum_to_one_are_refused() -> None:
    """Frequencies of less than one row have no degrees of freedom; a scale of 1 would be a silent wrong answer."""
    with pytest.raises(ValueError, match=r"weights of all rows sum to 1, .* multiply weights that sum to 1"):
        CategoryNormalizer().fit(torch.tensor([[1.0], [3.0]]), weight=torch.tensor([0.5, 0.5]))


def test_degrees_of_freedom_of_weights_that_hardly_exceed_one() -> None:
    y = torch.tensor([[1.0, 1.0], [3.0, 3.0]], dtype=F64)
    with pytest.raises(ValueError, match=r"the weights of all rows sum to 0\.8, and a variance needs more than 1"):
        CategoryNormalizer().fit(y, weight=torch.tensor([[1.0, 0.4], [1.0, 0.4]]))
    # Mean 2, sum of squares 1.25, 0.25 degrees of freedom.
    table = CategoryNormalizer().fit(y, weight=torch.full((2,), 0.625)).statistics()
    assert_close(table.scale, torch.full((1, 2), math.sqrt(5), dtype=F64))
    # Without spread there is nothing to divide: one row of half the weight is that row.
    assert CategoryNormalizer().fit(y[:1], weight=torch.tensor([0.5])).statistics().scale.tolist() == [[1, 1]]


@pytest.mark.parametrize("shrinkage", ["none", "empirical_bayes"])
def test_a_cell_whose_weights_sum_to_no_more_than_one_borrows_the_pooled_scale(shrinkage: str) -> None:
    """It has no degree of freedom, whatever the spread of its rows, which then is no part of the pooled one."""
    y, weight = column(0, 50, 2, 4, 5, 11), torch.tensor([0.4, 0.4, 1, 1, 1, 1])
    variance = by_location(shrinkage=shrinkage).fit(y, at(1, 1, 2, 2, 3, 3), weight=weight).statistics().scale ** 2
    assert_close(variance[1].item(), (2 + 18) / 2)
    if shrinkage == "none":
        assert_close(variance[2:].flatten(), torch.tensor([2.0, 18.0], dtype=F64))


def test_from_config_takes_the_columns_it_names() -> None:
    config = NormalizerConfig(by=["location"], shrinkage="empirical_bayes", transform="log")
    normalizer = CategoryNormalizer.from_config(config, {"season": 3, "location": 5})
    assert (
        normalizer.extra_repr()
        == CategoryNormalizer({"location": 5}, shrinkage="empirical_bayes", transform="log").extra_repr()
    )
    assert CategoryNormalizer.from_config(NormalizerConfig()).cardinalities == {}
    with pytest.raises(ValueError, match="by names the column 'location', which is not among"):
        CategoryNormalizer.from_config(config, {"season": 3})
