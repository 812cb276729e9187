"""Distinct keys by counting, and ids that take the memory of codes."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from reghead.categories import CategoryEncoder, GroupStatistics, Vocabulary
from reghead.categories._labels import gather
from reghead.categories._statistics import distinct


@given(
    keys=st.lists(st.integers(-5, 40), max_size=30),
    shift=st.sampled_from([0, 3, -1_000, 2**40]),
    wide=st.booleans(),
)
def test_distinct_is_unique_with_its_inverse(keys: list[int], shift: int, wide: bool) -> None:
    tensor = torch.tensor(keys, dtype=torch.int64) * (10**6 if wide else 1) + shift
    before = tensor.clone()
    found, expected = distinct(tensor), torch.unique(tensor, return_inverse=True)
    for one, other in zip(found, expected, strict=True):
        assert_close(one, other)
    assert_close(tensor, before)


@given(
    left=st.lists(st.integers(0, 50), min_size=1, max_size=20),
    right=st.lists(st.integers(0, 50), min_size=1, max_size=20),
    spacing=st.sampled_from([1, 10**6]),
    seed=st.integers(0, 2**32 - 1),
)
def test_merging_by_counting_and_by_sorting_is_the_same(
    left: list[int], right: list[int], spacing: int, seed: int
) -> None:
    values = torch.randn(len(left) + len(right), 1, generator=torch.Generator().manual_seed(seed)).double()
    keys = torch.tensor(left + right)
    at = len(left)

    def merged(factor: int) -> GroupStatistics:
        parts = [(keys[:at] * factor, values[:at]), (keys[at:] * factor, values[at:])]
        first, second = (GroupStatistics.from_values(k, v) for k, v in parts)
        return first.merge(second)

    near, far = merged(1), merged(spacing)
    assert_close(near.keys * spacing, far.keys)
    for one, other in zip(near.parts[1:], far.parts[1:], strict=True):
        assert_close(one, other, rtol=0, atol=0)
    assert near.keys.tolist() == sorted(set(left + right))


@pytest.mark.parametrize("writeable", [True, False])
def test_gather_reads_the_last_entry_for_a_missing_code(writeable: bool) -> None:
    codes = np.array([1, -1, 0, 2])
    codes.flags.writeable = writeable
    assert gather(np.array([10, 20, 30, 0]), codes).tolist() == [20, 0, 10, 30]
    assert writeable or codes.tolist() == [1, -1, 0, 2]


@pytest.mark.parametrize("kind", ["category", "str", "object", "Int64", "float64", "int64", "bool"])
def test_a_table_is_left_as_it_was(kind: str) -> None:
    pandas = pytest.importorskip("pandas")
    values: dict[str, list[object]] = {
        "category": ["b", None, "a", "b"],
        "str": ["b", None, "a", "b"],
        "object": ["b", None, 1, "b"],
        "Int64": [2, None, 1, 2],
        "float64": [2.0, float("nan"), 1.0, 2.0],
        "int64": [2, 1, 1, 2],
        "bool": [True, False, False, True],
    }
    table = pandas.DataFrame({"site": pandas.Series(values[kind], dtype=kind)})
    before = table.copy(deep=True)
    encoder = CategoryEncoder(["site"])
    first = encoder.fit_transform(table)["site"].clone()
    assert_close(encoder.transform(table)["site"], first)
    pandas.testing.assert_frame_equal(table, before)
    assert first[0] == first[3] > 0


@pytest.mark.parametrize("index", ["int64", "int32", "int8"])
def test_arrow_dictionaries_are_left_as_they_were(index: str) -> None:
    pandas, arrow = pytest.importorskip("pandas"), pytest.importorskip("pyarrow")
    column = arrow.DictionaryArray.from_arrays(arrow.array([1, 0, 1], getattr(arrow, index)()), ["low", "high"])
    series = pandas.Series(pandas.arrays.ArrowExtensionArray(column))
    assert Vocabulary(("high", "low")).encode(series).tolist() == [1, 2, 1]
    assert series.tolist() == ["high", "low", "high"]


def test_codes_that_another_object_keeps_are_left_as_they_were() -> None:
    class Column:
        codes = np.array([0, 1, 2, -1])

        def factorize(self) -> tuple[Any, list[int]]:
            return self.codes, [1, 2, 3]

    vocabulary, column = Vocabulary.from_distinct([1, 2, 3]), Column()
    first = vocabulary.encode(column)
    assert torch.equal(vocabulary.encode(column), first)
    assert column.codes.tolist() == [0, 1, 2, -1]
