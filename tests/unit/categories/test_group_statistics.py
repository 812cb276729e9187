"""Moments of groups: exact where raw moments cancel, and merged as if computed at once."""

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from reghead.categories import GroupStatistics


def moments(statistics: GroupStatistics) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return statistics.parts[:4]


def column(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64).unsqueeze(-1)


def test_a_small_case_by_hand() -> None:
    statistics = GroupStatistics.from_values(torch.tensor([7, 2, 7, 7]), column(1, 10, 2, 6))
    assert statistics.keys.tolist() == [2, 7]
    assert statistics.count.flatten().tolist() == [1, 3]
    assert statistics.mean.flatten().tolist() == [10, 3]
    assert statistics.m2.flatten().tolist() == [0, 4 + 1 + 9]


def test_a_variance_far_below_the_mean_is_kept() -> None:
    # Raw moments give 0 here in float64: (1e9)^2 has a rounding of 128.
    values = column(1e9 - 0.01, 1e9 + 0.01, 1e9 - 0.01, 1e9 + 0.01)
    exact = ((values - 1e9) ** 2).sum()  # these differences are exact
    statistics = GroupStatistics.from_values(torch.zeros(4, dtype=torch.int64), values)
    assert_close(statistics.m2[0, 0], exact, rtol=1e-9, atol=0)
    assert_close(statistics.mean[0, 0], values.new_tensor(1e9), rtol=1e-16, atol=0)


def test_merging_keeps_a_variance_far_below_the_mean_in_any_order() -> None:
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(999, 1, generator=generator, dtype=torch.float64) * 1e-2
    values, keys = 1e9 + noise, torch.arange(999) % 3
    whole = GroupStatistics.from_values(keys, values)
    parts = [GroupStatistics.from_values(keys[i::37], values[i::37]) for i in range(37)]
    forward, backward = GroupStatistics.empty(1), GroupStatistics.empty(1)
    for part, last in zip(parts, reversed(parts), strict=True):
        forward, backward = forward.merge(part), last.merge(backward)
    for merged in (forward, backward):
        # The rounding of a mean is 1e-5 standard deviations here: 1e-9 needs what it took off.
        assert_close(merged.m2, whole.m2, rtol=1e-9, atol=0)
        assert_close(merged.mean, whole.mean, rtol=1e-15, atol=0)
        assert torch.equal(merged.count, whole.count)


def test_many_rows_of_one_group_stay_exact_across_blocks() -> None:
    # 300,000 rows are several blocks: 1, 2, 3, ... has a mean and a sum of squares in closed form.
    n = 300_000
    values = torch.arange(1, n + 1, dtype=torch.float64).unsqueeze(-1)
    statistics = GroupStatistics.from_values(torch.zeros(n, dtype=torch.int64), values)
    assert statistics.count.item() == n
    assert statistics.mean.item() == (n + 1) / 2
    assert_close(statistics.m2.item(), n * (n * n - 1) / 12, rtol=1e-13, atol=0)


def test_counts_go_beyond_what_float32_can_count() -> None:
    weight = torch.tensor([2.0**24, 1.0])
    statistics = GroupStatistics.from_values(torch.tensor([1, 1]), column(0, 1), weight)
    assert statistics.count.item() == 16_777_217


def test_missing_values_leave_their_own_column_alone() -> None:
    nan = float("nan")
    values = torch.tensor([[1.0, nan], [3.0, 5.0], [nan, nan]], dtype=torch.float64)
    statistics = GroupStatistics.from_values(torch.tensor([4, 4, 9]), values)
    assert statistics.keys.tolist() == [4], "a group without any value is no group"
    assert statistics.count.tolist() == [[2, 1]]
    assert statistics.mean.tolist() == [[2, 5]]


def test_a_group_with_values_in_one_column_only_has_count_zero_in_the_other() -> None:
    values = torch.tensor([[1.0, float("nan")], [float("nan"), 2.0]], dtype=torch.float64)
    statistics = GroupStatistics.from_values(torch.tensor([1, 2]), values)
    assert statistics.count.tolist() == [[1, 0], [0, 1]]
    merged = statistics.merge(GroupStatistics.from_values(torch.tensor([1]), torch.tensor([[3.0, 8.0]])))
    assert merged.mean.tolist() == [[2, 8], [0, 2]]
    assert merged.m2.tolist() == [[2, 0], [0, 0]]


def test_weights_by_row_and_by_value() -> None:
    keys, values = torch.tensor([1, 1]), torch.tensor([[0.0, 0.0], [3.0, 3.0]], dtype=torch.float64)
    by_row = GroupStatistics.from_values(keys, values, torch.tensor([2, 1]))
    by_value = GroupStatistics.from_values(keys, values, torch.tensor([[2.0, 1.0], [1.0, 2.0]]))
    assert by_row.mean.tolist() == [[1, 1]]
    assert by_value.mean.tolist() == [[1, 2]]
    assert by_value.m2.tolist() == [[6, 6]]


def test_weight_zero_is_no_row() -> None:
    keys, values = torch.tensor([1, 1, 2]), column(1, 5, 9)
    weighted = GroupStatistics.from_values(keys, values, torch.tensor([1.0, 0.0, 0.0]))
    assert_close(moments(weighted), moments(GroupStatistics.from_values(keys[:1], values[:1])), rtol=0, atol=0)


@pytest.mark.parametrize("offset", [0, 3, -5, 10**15])
def test_sparse_and_offset_keys_give_the_groups_of_dense_ones(offset: int) -> None:
    generator = torch.Generator().manual_seed(1)
    keys = torch.randint(5, (200,), generator=generator)
    values = torch.randn(200, 2, generator=generator, dtype=torch.float64)
    dense = GroupStatistics.from_values(keys, values)
    for stride in (1, 10**14):  # the second is sorted, not counted
        moved = GroupStatistics.from_values(keys * stride + offset, values)
        assert torch.equal(moved.keys, dense.keys * stride + offset)
        assert_close(moments(moved)[1:], moments(dense)[1:], rtol=1e-15, atol=1e-15)


def test_empty_is_neutral_on_both_sides() -> None:
    statistics = GroupStatistics.from_values(torch.tensor([1, 2, 2, 2]), column(1.1, 2.7, 3.3, 1e9))
    assert statistics.mean_tail.any()
    empty = GroupStatistics.from_values(torch.zeros(0, dtype=torch.int64), torch.zeros(0, 1))
    for merged in (statistics.merge(empty), empty.merge(statistics), statistics.merge(GroupStatistics.empty(1))):
        assert all(map(torch.equal, merged.parts, statistics.parts))
    assert not len(empty.merge(empty).keys)


def test_total_is_the_statistics_of_all_rows() -> None:
    generator = torch.Generator().manual_seed(2)
    keys = torch.randint(6, (100,), generator=generator)
    values = 1e6 + torch.randn(100, 3, generator=generator, dtype=torch.float64)
    total = GroupStatistics.from_values(keys, values).total()
    whole = GroupStatistics.from_values(torch.zeros(100, dtype=torch.int64), values)
    assert total.keys.tolist() == [0]
    assert_close(moments(total)[1:], moments(whole)[1:], rtol=1e-12, atol=0)
    assert_close(total.mean_tail, whole.mean_tail, rtol=0, atol=1e-13)


def test_the_total_of_nothing_counts_zero() -> None:
    total = GroupStatistics.empty(2).total()
    assert total.count.tolist() == [[0, 0]]
    assert total.m2.tolist() == [[0, 0]]


def test_what_does_not_fit_is_refused() -> None:
    keys, values = torch.tensor([1, 1]), column(1, 2)
    with pytest.raises(ValueError, match=r"shapes \(N,\) and \(N, D\), got \(2,\) and \(2,\)"):
        GroupStatistics.from_values(keys, values.squeeze(-1))
    with pytest.raises(ValueError, match=r"got \(1,\) and \(2, 1\)"):
        GroupStatistics.from_values(keys[:1], values)
    for weight in (-1.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="weight must be finite and non-negative"):
            GroupStatistics.from_values(keys, values, torch.tensor([1.0, weight]))
    with pytest.raises(ValueError, match="weight must have the leading dimensions of values"):
        GroupStatistics.from_values(keys, values, torch.ones(3))
    with pytest.raises(ValueError, match="of 1 and of 2 target columns do not merge"):
        GroupStatistics.empty(1).merge(GroupStatistics.empty(2))
