"""Sorting through NumPy and through torch give the same, and leave what they are given as it was."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from reghead.calibration import SplitConformal, conformal_quantile
from reghead.calibration import _sorting as sorting


def tied(count: int, columns: int, seed: int, dtype: torch.dtype) -> Tensor:
    """Few different values, so that many are equal, and infinities."""
    values = torch.randint(0, 12, (count, columns), generator=torch.Generator().manual_seed(seed)).to(dtype)
    return torch.where(values == 11, torch.inf, values)


@given(
    count=st.integers(1, 60),
    columns=st.integers(1, 3),
    seed=st.integers(0, 2**32 - 1),
    dtype=st.sampled_from([torch.float64, torch.float32, torch.float16, torch.bfloat16]),
)
def test_every_rank_is_that_of_a_sort(count: int, columns: int, seed: int, dtype: torch.dtype) -> None:
    values = tied(count, columns, seed, dtype)
    before, expected = values.clone(), values.sort(dim=0).values
    for rank in range(1, count + 1):
        assert_close(sorting.smallest(values, rank), expected[rank - 1], rtol=0, atol=0)
    assert_close(sorting.sort(values[:, 0]), expected[:, 0], rtol=0, atol=0)
    assert_close(values, before, rtol=0, atol=0)


@given(count=st.integers(1_000, 3_000), seed=st.integers(0, 2**32 - 1))
@settings(max_examples=20)
def test_a_rank_of_many_values_is_that_of_a_sort(count: int, seed: int) -> None:
    """A partition orders a few values as a side effect; of many it leaves the neighbours of a rank where they are."""
    values = torch.randn(count, 2, generator=torch.Generator().manual_seed(seed))
    expected = values.sort(dim=0).values
    for rank in {1, 2, count // 3, count // 2, count - 1, count}:
        assert_close(sorting.smallest(values, rank), expected[rank - 1], rtol=0, atol=0)


@given(
    count=st.integers(1, 60),
    size=st.sampled_from([1, 5, 2**16 - 1, 2**16, 2**16 + 1]),
    seed=st.integers(0, 2**32 - 1),
    dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16]),
)
def test_each_group_is_sorted_by_itself(count: int, size: int, seed: int, dtype: torch.dtype) -> None:
    values = tied(count, 1, seed, dtype).squeeze(1)
    groups = torch.randint(0, min(size, 5), (count,), generator=torch.Generator().manual_seed(seed))
    groups = torch.where(groups < 2, groups, groups + (size - 1 - groups.max()))  # the first and the last of many
    before, counts = values.clone(), torch.bincount(groups, minlength=size)
    found = sorting.sort_within(values, groups, counts)
    expected = torch.cat([values[groups == group].sort().values for group in groups.unique()])
    assert_close(found, expected, rtol=0, atol=0)
    assert_close(values, before, rtol=0, atol=0)


@given(
    rows=st.integers(1, 80),
    groups=st.integers(1, 6),
    pooling=st.sampled_from([0.0, 3.0, None]),
    seed=st.integers(0, 2**32 - 1),
)
def test_offsets_are_the_same_on_both_paths(rows: int, groups: int, pooling: float | None, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    target = tied(rows, 2, seed, torch.float64).clamp(max=20.0)
    preds, ids = torch.zeros_like(target), {"site": torch.randint(0, groups + 1, (rows,), generator=generator)}

    def offsets() -> tuple[Tensor, ...]:
        conformal = SplitConformal([0.5, 0.8], groups={"site": groups + 1}, pooling=pooling)
        conformal.conformalize(preds, target, ids)
        return conformal.group_keys, conformal.count, conformal.offsets

    with pytest.MonkeyPatch.context() as patch:
        here = offsets()
        patch.setattr(sorting, "_through_numpy", lambda values: False)
        there = offsets()
    for one, other in zip(here, there, strict=True):
        assert_close(one, other, rtol=0, atol=0)


def test_a_category_that_only_masked_rows_have_keeps_its_row() -> None:
    target = torch.tensor([[1.0], [2.0], [3.0]])
    ids, mask = {"site": torch.tensor([1, 3, 3])}, torch.tensor([False, True, True])
    conformal = SplitConformal(0.5, groups={"site": 5}).conformalize(torch.zeros(3, 1), target, ids, mask=mask)
    assert conformal.group_keys.tolist() == [0, 1, 3]
    assert conformal.count.flatten().tolist() == [2, 0, 2]


def test_scores_that_require_a_gradient_have_a_quantile_without_one() -> None:
    scores = torch.tensor([3.0, 1.0, 2.0], requires_grad=True)
    quantile = conformal_quantile(scores, 0.5)
    assert quantile.item() == 2.0
    assert not quantile.requires_grad


def test_scores_that_are_a_view_of_complex_numbers() -> None:
    scores = torch.complex(torch.zeros(9), torch.arange(9.0)).conj().imag  # a view that is read with the sign changed
    assert conformal_quantile(scores, 0.6) == -3.0
