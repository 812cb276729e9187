"""Gathers from tables, ids of combinations, and the alignment of rows with what they go with."""

import itertools

import pytest
import torch
from torch.testing import assert_close

from reghead.functional import lookup
from reghead.functional._lookup import align, joint_ids


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32])
@pytest.mark.parametrize("shape", [(), (0,), (1,), (5,), (2, 3), (2, 0)])
def test_lookup_is_indexing(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    table = torch.arange(12.0).reshape(4, 3)
    ids = (torch.arange(torch.Size(shape).numel()) % 4).reshape(shape).to(dtype)
    assert torch.equal(lookup(table, ids), table[ids])


def test_lookup_of_tables_with_any_rows_and_ids_that_are_not_contiguous() -> None:
    table, ids = torch.arange(24.0).reshape(4, 3, 2), torch.tensor([[0, 1, 2], [3, 3, 0]]).t()
    assert not ids.is_contiguous()
    assert torch.equal(lookup(table, ids), table[ids])


def test_the_gradient_of_a_row_is_the_sum_over_its_hits() -> None:
    table = torch.zeros(3, 1, requires_grad=True)
    (lookup(table, torch.tensor([2, 0, 2])).squeeze(-1) * torch.tensor([1.0, 10.0, 100.0])).sum().backward()
    assert table.grad is not None
    assert table.grad.tolist() == [[10], [0], [101]]


def test_joint_ids_count_the_combinations_with_the_last_column_fastest() -> None:
    sizes = [2, 3, 4]
    combinations = torch.tensor(list(itertools.product(*map(range, sizes))))
    assert joint_ids(list(combinations.unbind(-1)), sizes).tolist() == list(range(24))


def test_joint_ids_of_columns_with_different_shapes() -> None:
    with pytest.raises(ValueError, match=r"must have one shape, got \[\(3,\), \(3, 3\)\]"):
        joint_ids([torch.zeros(3, dtype=torch.int64), torch.zeros(3, 3, dtype=torch.int64)], [2, 2])


def test_joint_ids_that_would_overflow() -> None:
    with pytest.raises(ValueError, match="do not fit into 64 bits; use fewer columns"):
        joint_ids([torch.zeros(1, dtype=torch.int64)] * 2, [2**31, 2**31])


@pytest.mark.parametrize(
    ("rows", "like", "output_dim", "expected"),
    [
        ((4, 2), (4, 2), -1, (4, 2)),
        ((4, 2), (4, 5, 2), -1, (4, 1, 2)),
        ((4, 5, 2), (4, 5, 2), -1, (4, 5, 2)),
        ((2,), (4, 5, 2), -1, (1, 1, 2)),
        ((4, 2), (4, 2, 3), -2, (4, 2, 1)),
        ((4, 2), (4, 5, 2, 3), -2, (4, 1, 2, 1)),
        ((2,), (2, 3), -2, (2, 1)),
        ((4, 2), (4, 2, 3), 1, (4, 2, 1)),
    ],
)
def test_align_broadcasts_along_the_output_dimension(
    rows: tuple[int, ...], like: tuple[int, ...], output_dim: int, expected: tuple[int, ...]
) -> None:
    values = torch.arange(float(torch.Size(rows).numel())).reshape(rows)
    got = align(values, torch.zeros(like), output_dim)
    assert got.shape == expected
    assert_close(got.flatten(), values.flatten())
    assert torch.broadcast_shapes(got.shape, like) == like


@pytest.mark.parametrize("rows", [(5, 2), (4, 2, 2), (1, 2)])
def test_align_refuses_rows_of_another_batch(rows: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="categories must have the leading dimensions of the tensor they go with"):
        align(torch.zeros(rows), torch.zeros(4, 2))
