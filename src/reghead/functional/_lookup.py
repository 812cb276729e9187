"""Gathers from per-category tables."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from reghead._checks import reads_values

BAG_ROWS = 2048  # pragma: no mutate
"""From so many rows on, sorting them by id pays before they are summed."""


def lookup(table: Tensor, ids: Tensor) -> Tensor:
    """Rows of ``table`` at ``ids``: shapes ``(N, *)`` and ``(*ids)`` give ``(*ids, *)``.

    ``index_select`` and not ``F.embedding``, whose backward is slow where few rows are hit often.

    Args:
        table: One row per id. Shape ``(N, *)``.
        ids: Integer ids in ``[0, N)``, of any shape.

    Example:
        >>> import torch
        >>> lookup(torch.tensor([[0.0], [5.0]]), torch.tensor([1, 0, 1])).squeeze(-1)
        tensor([5., 0., 5.])
    """
    if table[:1].numel() == 1:
        # One number a row: five times faster when it is gathered as a number, and not as a row.
        return table.reshape(-1).index_select(0, ids.reshape(-1)).reshape(*ids.shape, *table.shape[1:])
    rows = table.index_select(0, ids.reshape(-1))
    return rows if ids.ndim == 1 else rows.reshape(*ids.shape, *table.shape[1:])


def sum_by_id(rows: Sequence[Tensor], ids: Tensor, number: int) -> list[Tensor]:
    """The sums of rows with the same id: shapes ``(B, D)`` and ``(B,)`` give ``(number, D)``, of every tensor.

    What the backward pass of a lookup needs. Only on a CPU in eager mode, and differentiable.

    Args:
        rows: Tensors of one shape ``(B, D)``.
        ids: Integer ids in ``[0, number)``. Shape ``(B,)``.
        number: How many sums there are.

    Example:
        >>> import torch
        >>> sum_by_id([torch.tensor([[1.0, 0.0], [2.0, 0.0], [4.0, 1.0]])], torch.tensor([1, 0, 1]), 3)
        [tensor([[2., 0.],
                [5., 1.],
                [0., 0.]])]
    """
    width = rows[0].shape[-1]
    if torch.is_grad_enabled() or len(ids) < BAG_ROWS or not reads_values(rows[0]):
        return [r.new_zeros(number, width).index_add(0, ids, r) for r in rows]
    # Bags of rows, sorted by id, are summed up to ten times faster than rows are added one by one, and in that order.
    order = (ids.to(torch.int16) if number <= torch.iinfo(torch.int16).max else ids).argsort(stable=True)
    ends = torch.bincount(ids, minlength=number).cumsum(0)
    starts = torch.cat([ends.new_zeros(1), ends[:-1]])
    return [F.embedding_bag(order, r, starts, mode="sum") for r in rows]


def joint_ids(ids: Sequence[Tensor], cardinalities: Sequence[int]) -> Tensor:
    r"""One id per combination of categories, the last column running fastest.

    .. math:: k = (i_1 N_2 + i_2) N_3 + i_3

    Args:
        ids: Ids of each column, all of one shape.
        cardinalities: Number of ids :math:`N` of each column, in the same order.

    Example:
        >>> import torch
        >>> joint_ids([torch.tensor([0, 2]), torch.tensor([1, 3])], [3, 4])
        tensor([ 1, 11])
    """
    check_one_shape(ids)
    if math.prod(cardinalities) >= 2**62:
        raise ValueError(f"the combinations of {tuple(cardinalities)} ids do not fit into 64 bits; use fewer columns")
    key = ids[0]
    for column, cardinality in zip(ids[1:], cardinalities[1:], strict=True):
        key = torch.add(column, key, alpha=cardinality)
    return key


def check_one_shape(ids: Sequence[Tensor]) -> None:
    """Raise unless the ids of all columns have one shape: nothing is broadcast."""
    if any(i.shape != ids[0].shape for i in ids):
        raise ValueError(f"the ids of all columns must have one shape, got {[tuple(i.shape) for i in ids]}")


def align(rows: Tensor, like: Tensor, output_dim: int = -1) -> Tensor:
    """View ``rows`` of shape ``(*prefix, D)`` so that it broadcasts along the dimension ``output_dim`` of ``like``.

    ``prefix`` are the leading dimensions of ``like``: ids of shape ``(B,)`` go with features of ``(B, S, D)``.
    """
    prefix, size = rows.shape[:-1], rows.shape[-1]
    leading = like.shape[: like.ndim + output_dim] if output_dim < 0 else like.shape[:output_dim]
    if tuple(prefix) != tuple(leading[: len(prefix)]):
        raise ValueError(
            f"categories must have the leading dimensions of the tensor they go with, which has shape "
            f"{tuple(like.shape)}, got ids of shape {tuple(prefix)}"
        )
    between = (1,) * (len(leading) - len(prefix))
    after = (1,) * (like.ndim - len(leading) - 1)
    return rows.reshape(*prefix, *between, size, *after) if between or after else rows
