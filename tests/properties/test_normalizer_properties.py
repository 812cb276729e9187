"""What holds for every data set: round trip, equivariance, invariance to order, shards and duplication."""

import itertools
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from reghead.normalization import CategoryNormalizer

F64 = torch.float64
CARDINALITIES = {"a": 4, "b": 3}
seeds = st.integers(0, 2**32 - 1)
sizes = st.integers(2, 60)
options = st.fixed_dictionaries(
    {
        "shrinkage": st.sampled_from(["none", "empirical_bayes"]),
        "fallback": st.sampled_from(["global", "additive"]),
    }
)
pytestmark = pytest.mark.filterwarnings("ignore::reghead._warnings.UnseenCategoryWarning")


def draw(seed: int, n: int, columns: int = 2) -> tuple[Tensor, dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    ids = {c: torch.randint(0, k, (n,), generator=generator) for c, k in CARDINALITIES.items()}
    y = torch.randn(n, columns, generator=generator, dtype=F64) + ids["a"].unsqueeze(-1)
    return y, ids


def new(**kwargs: Any) -> CategoryNormalizer:
    return CategoryNormalizer(CARDINALITIES, **kwargs)


def assert_same_statistics(one: CategoryNormalizer, other: CategoryNormalizer, tolerance: float = 1e-9) -> None:
    for name in ("cell_keys", "cell_count", "location", "scale", "effects", "effect_scale"):
        assert_close(getattr(one, name), getattr(other, name), rtol=tolerance, atol=tolerance, equal_nan=True, msg=name)


@given(seed=seeds, n=sizes, kwargs=options)
def test_the_inverse_gives_the_targets_back(seed: int, n: int, kwargs: dict[str, Any]) -> None:
    y, ids = draw(seed, n)
    normalizer = new(**kwargs).fit(y, ids)
    _, other = draw(seed + 1, n)
    for categories in (ids, other):  # any cell, sampled or not
        assert_close(normalizer.inverse(normalizer(y, categories), categories), y, rtol=1e-12, atol=1e-12)
    assert (normalizer.scale > 0).all()


@given(seed=seeds, n=sizes, kwargs=options, exponent=st.integers(-9, 9), shift=st.floats(-1e3, 1e3))
def test_a_change_of_units_changes_no_z(seed: int, n: int, kwargs: dict[str, Any], exponent: int, shift: float) -> None:
    y, ids = draw(seed, n)
    factor = 10.0**exponent
    z = new(**kwargs).fit(y, ids)(y, ids)
    moved = factor * (y + shift)
    assert_close(new(**kwargs).fit(moved, ids)(moved, ids), z, rtol=1e-6, atol=1e-6)


@given(seed=seeds, n=sizes, kwargs=options)
def test_the_mirror_image_has_the_mirrored_statistics(seed: int, n: int, kwargs: dict[str, Any]) -> None:
    y, ids = draw(seed, n)
    one, mirrored = new(**kwargs).fit(y, ids), new(**kwargs).fit(-y, ids)
    assert_close(mirrored.location, -one.location, rtol=1e-9, atol=1e-9)
    assert_close(mirrored.scale, one.scale, rtol=1e-9, atol=0)


@given(seed=seeds, n=sizes, kwargs=options)
def test_the_order_of_the_rows_does_not_matter(seed: int, n: int, kwargs: dict[str, Any]) -> None:
    y, ids = draw(seed, n)
    order = torch.randperm(n, generator=torch.Generator().manual_seed(seed))
    shuffled = new(**kwargs).fit(y[order], {c: i[order] for c, i in ids.items()})
    assert_same_statistics(shuffled, new(**kwargs).fit(y, ids))


@given(seed=seeds, n=sizes, kwargs=options, cuts=st.lists(st.integers(0, 60), max_size=4), reverse=st.booleans())
def test_shards_in_any_order_give_the_whole(
    seed: int, n: int, kwargs: dict[str, Any], cuts: list[int], reverse: bool
) -> None:
    y, ids = draw(seed, n)
    y = 1e9 + 1e-2 * y  # the spread is far below the mean
    edges = [0, *sorted(min(cut, n) for cut in cuts), n]
    parts = [slice(*pair) for pair in itertools.pairwise(edges)]
    merged, shards = new(**kwargs), new(**kwargs)
    for part in reversed(parts) if reverse else parts:
        shard = {c: i[part] for c, i in ids.items()}
        shards.partial_fit(y[part], shard)
        merged.merge(new(**kwargs).partial_fit(y[part], shard))
    whole = new(**kwargs).fit(y, ids)
    # Merging loses nothing of the moments; what is estimated of them holds to the rounding of the mean.
    for normalizer in (shards, merged):
        significant = whole.cell_m2 > 1e-9
        assert_close(normalizer.cell_m2[significant], whole.cell_m2[significant], rtol=1e-9, atol=0)
        assert torch.equal(normalizer.cell_count, whole.cell_count)
        assert_close(normalizer.location, whole.location, rtol=1e-14, atol=0)
        assert_close(normalizer.scale, whole.scale, rtol=1e-4, atol=0)


@given(seed=seeds, n=sizes, kwargs=options)
def test_integer_weights_are_repeated_rows(seed: int, n: int, kwargs: dict[str, Any]) -> None:
    y, ids = draw(seed, n)
    weight = torch.randint(0, 4, (n,), generator=torch.Generator().manual_seed(seed))
    weight[0] = 1
    repeated = new(**kwargs).fit(
        y.repeat_interleave(weight, dim=0), {c: i.repeat_interleave(weight) for c, i in ids.items()}
    )
    assert_same_statistics(new(**kwargs).fit(y, ids, weight=weight), repeated)


@given(seed=seeds, n=sizes, kwargs=options)
def test_a_missing_target_is_a_row_less_in_its_column(seed: int, n: int, kwargs: dict[str, Any]) -> None:
    y, ids = draw(seed, n)
    missing = torch.rand(n, 2, generator=torch.Generator().manual_seed(seed)) < 0.3
    missing[0] = False
    weighted = new(**kwargs).fit(y, ids, weight=(~missing).double())
    assert_same_statistics(new(**kwargs).fit(y.masked_fill(missing, float("nan")), ids), weighted)


@given(seed=seeds, n=sizes)
def test_z_has_mean_zero_and_standard_deviation_one_in_every_cell(seed: int, n: int) -> None:
    y, ids = draw(seed, n)
    z = new().fit(y, ids)(y, ids)
    cell = ids["a"] * 3 + ids["b"]
    for key in cell[(ids["a"] > 0) & (ids["b"] > 0)].unique():
        rows = z[cell == key]
        assert_close(rows.mean(dim=0), torch.zeros(2, dtype=F64), rtol=0, atol=1e-9)
        if len(rows) > 1:
            assert_close(rows.std(dim=0), torch.ones(2, dtype=F64), rtol=1e-9, atol=0)


@given(seed=seeds, n=sizes)
def test_shrinkage_moves_a_mean_between_its_own_and_the_prior(seed: int, n: int) -> None:
    y, ids = draw(seed, n, columns=1)
    table = new(shrinkage="empirical_bayes").fit(y, ids).statistics()
    low, high = torch.minimum(table.mean, table.location[0]), torch.maximum(table.mean, table.location[0])
    assert (table.location >= low - 1e-12).all()
    assert (table.location <= high + 1e-12).all()


@given(seed=seeds, n=sizes)
def test_labels_of_the_ids_do_not_matter(seed: int, n: int) -> None:
    y, ids = draw(seed, n)
    swap = torch.tensor([0, 3, 1, 2])
    renamed = {"a": swap[ids["a"]], "b": ids["b"]}
    for kwargs in ({}, {"shrinkage": "empirical_bayes", "fallback": "additive"}):
        z = new(**kwargs).fit(y, ids)(y, ids)
        assert_close(new(**kwargs).fit(y, renamed)(y, renamed), z, rtol=1e-9, atol=1e-9)
