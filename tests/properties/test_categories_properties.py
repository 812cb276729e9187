"""What holds for every column of labels and every grouping."""

import json
import random
from typing import Any

import numpy as np
import pandas as pd
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from reghead.categories import CategoryEncoder, GroupStatistics, Vocabulary

labels = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 3), st.sampled_from([0.5, 1.0, float("nan")]), st.text("ab1", max_size=2)
)
columns = st.lists(labels, max_size=20)
seeds = st.integers(0, 2**32 - 1)


def is_missing(value: object) -> bool:
    return value is None or value != value


@given(column=columns)
def test_decode_gives_equal_labels_back(column: list[Any]) -> None:
    vocabulary = Vocabulary.from_labels(column)
    decoded = vocabulary.decode(vocabulary.encode(column))
    assert decoded == [None if is_missing(value) else value for value in column]


@given(column=columns, seed=st.integers())
def test_ids_do_not_depend_on_the_order_of_the_rows(column: list[Any], seed: int) -> None:
    shuffled = column.copy()
    random.Random(seed).shuffle(shuffled)
    vocabulary = Vocabulary.from_labels(column)
    assert Vocabulary.from_labels(shuffled) == vocabulary
    assert vocabulary.encode(list(vocabulary.labels)).tolist() == list(range(1, len(vocabulary)))


@given(column=columns)
def test_equal_labels_have_equal_ids_and_others_do_not(column: list[Any]) -> None:
    ids = Vocabulary.from_labels(column).encode(column).tolist()
    for x, i in zip(column, ids, strict=True):
        for y, j in zip(column, ids, strict=True):
            assert (i == j) == (x == y or (is_missing(x) and is_missing(y)))


@given(column=columns)
def test_lists_arrays_and_series_agree(column: list[Any]) -> None:
    vocabulary = Vocabulary.from_labels(column)
    expected = vocabulary.encode(column).tolist()
    array = np.empty(len(column), dtype=object)
    array[:] = column
    for other in (array, pd.Series(array, dtype=object)):
        assert Vocabulary.from_labels(other) == vocabulary
        assert vocabulary.encode(other).tolist() == expected


@given(column=columns)
def test_json_keeps_the_encoder(column: list[Any]) -> None:
    encoder = CategoryEncoder(["x"]).fit({"x": column})
    loaded = CategoryEncoder.from_json(encoder.to_json())
    assert loaded.to_dict() == encoder.to_dict() == json.loads(encoder.to_json())
    assert torch.equal(loaded.transform({"x": column})["x"], encoder.transform({"x": column})["x"])
    assert encoder.counts["x"].sum() == len(column)


def grouped(seed: int, n: int) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    keys = torch.randint(-2, 4, (n,), generator=generator)
    values = 1e3 + torch.randn(n, 2, generator=generator, dtype=torch.float64)
    values[torch.rand(n, 2, generator=generator) < 0.2] = float("nan")
    return keys, values, torch.randint(0, 3, (n,), generator=generator)


def assert_same_moments(one: GroupStatistics, other: GroupStatistics) -> None:
    for left, right in zip(one.parts[:4], other.parts[:4], strict=True):
        assert_close(left, right, rtol=1e-9, atol=1e-9)


@given(seed=seeds, n=st.integers(0, 40))
def test_moments_are_those_of_a_loop_over_the_groups(seed: int, n: int) -> None:
    keys, values, weight = grouped(seed, n)
    statistics = GroupStatistics.from_values(keys, values, weight)
    found = {int(k): i for i, k in enumerate(statistics.keys)}
    assert list(found) == sorted(found)
    for key in keys.unique().tolist():
        for d in range(2):
            chosen = (keys == key) & ~values[:, d].isnan()
            rows = np.repeat(values[chosen, d].numpy(), weight[chosen].numpy())
            if key not in found:
                assert len(rows) == 0
                continue
            i = found[key]
            assert statistics.count[i, d] == len(rows)
            if len(rows):
                np.testing.assert_allclose(statistics.mean[i, d].item(), rows.mean(), rtol=1e-12)
                np.testing.assert_allclose(statistics.m2[i, d].item(), rows.var() * len(rows), rtol=1e-9, atol=1e-9)


@given(seed=seeds, n=st.integers(0, 40), cut=st.integers(0, 40))
def test_merging_is_commutative_and_equals_all_rows_at_once(seed: int, n: int, cut: int) -> None:
    keys, values, weight = grouped(seed, n)
    whole = GroupStatistics.from_values(keys, values, weight)
    head = GroupStatistics.from_values(keys[:cut], values[:cut], weight[:cut])
    tail = GroupStatistics.from_values(keys[cut:], values[cut:], weight[cut:])
    assert_same_moments(head.merge(tail), whole)
    assert_same_moments(tail.merge(head), whole)


@given(seeds=st.tuples(seeds, seeds, seeds))
def test_merging_is_associative(seeds: tuple[int, int, int]) -> None:
    a, b, c = (GroupStatistics.from_values(*grouped(seed, 15)) for seed in seeds)
    assert_same_moments(a.merge(b).merge(c), a.merge(b.merge(c)))
    assert_same_moments(a.merge(b).total(), a.total().merge(b.total()))
