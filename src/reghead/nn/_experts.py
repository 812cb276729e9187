"""The ways to compute a mixture of experts over one layout of stacked parameters."""

from collections.abc import Callable, Iterable, Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from reghead._checks import reads_values

Hidden: TypeAlias = Callable[[Tensor, int, Tensor | None], Tensor]
"""What follows hidden linear layer ``layer``: ``hidden(h, layer, rows)`` with the rows in ``h``, None for all."""

LOOP_ROWS = 768  # pragma: no mutate
"""From so many rows on, in eager mode on a CPU, a loop over experts beats one batched product."""

LOOP_ALL = 2**15  # pragma: no mutate
"""So it does with more rows of all experts together than that: their hidden layers no longer fit the cache."""

SPARSE_WEIGHTS = 2**13  # pragma: no mutate
"""With fewer weights than that, rows times experts, one product over all experts beats dealing rows out."""

EXPERT_ROWS = 128  # pragma: no mutate
"""An expert more in a loop costs as much as so many rows of padding in one batched product."""

ROWS_PER_CELL = 8  # pragma: no mutate
"""With fewer rows a cell than that, one product over all experts beats parameters mixed cell by cell."""


def dense_mixture(
    x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor], routing: Tensor, hidden: Hidden
) -> Tensor:
    """Every expert on every row. Shapes: x (N, F), weights (E, in, out), biases (E, out), routing (N, E) -> (N, D)."""
    experts, rows = weights[0].shape[0], x.shape[0]
    # In this order: an export must not see a bound on the rows.
    if reads_values(x) and (
        rows >= LOOP_ROWS or rows * experts > LOOP_ALL  # pragma: no mutate
    ):
        out = torch.stack([_expert(x, layers, hidden, None) for layers in _layers_of(weights, biases)])
        return _mixed(out, routing)
    h = x.expand(weights[0].shape[0], *x.shape)
    for layer, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
        h = torch.baddbmm(bias.unsqueeze(1), h, weight)
        if layer + 1 < len(weights):
            h = hidden(h, layer, None)
    return _mixed(h, routing)


def sparse_mixture(
    x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor], routing: Tensor, hidden: Hidden, top_k: int
) -> Tensor:
    """The ``top_k`` experts of each row alone, where rows can be dealt out: eager mode on a CPU. Else all of them.

    Shapes as in :func:`dense_mixture`; ``routing`` holds at most ``top_k`` weights a row that are not zero.
    """
    if not reads_values(x) or routing.numel() < SPARSE_WEIGHTS:
        return dense_mixture(x, weights, biases, routing, hidden)
    share, expert = routing.topk(top_k) if top_k > 1 else routing.max(-1)
    experts, expert = routing.shape[1], expert.flatten()
    counts = torch.bincount(expert, minlength=experts)
    order = expert.argsort(stable=True)
    rows = order // top_k
    h = x.index_select(0, rows)
    if experts * int(counts.max()) <= len(rows) + EXPERT_ROWS * int(counts.count_nonzero()):
        h = _padded(h, weights, biases, hidden, rows, expert.index_select(0, order), counts)
    else:
        h = _one_by_one(h, weights, biases, hidden, rows, counts.tolist())
    h = h * share.flatten().index_select(0, order).unsqueeze(-1).to(h.dtype)
    return h.new_zeros(x.shape[0], h.shape[-1]).index_add(0, rows, h)


def _padded(
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    hidden: Hidden,
    rows: Tensor,
    expert: Tensor,
    counts: Tensor,
) -> Tensor:
    """Each row by its expert, in one batched product over experts filled up to the busiest with rows of zeros.

    ``x`` is sorted by ``expert``; ``rows`` are its rows in the batch, ``counts`` those of each expert.
    """
    most = int(counts.max())
    place = torch.arange(len(rows), device=x.device) + (expert * most - (counts.cumsum(0) - counts)[expert])
    size = len(counts) * most
    of_place = rows.new_zeros(size).index_copy(0, place, rows)
    h = x.new_zeros(size, x.shape[-1]).index_copy(0, place, x)
    for layer, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
        h = torch.baddbmm(bias.unsqueeze(1), torch.unflatten(h, 0, (-1, most)), weight).flatten(0, 1)
        if layer + 1 < len(weights):
            h = hidden(h, layer, of_place)
    return h.index_select(0, place)


def _one_by_one(
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    hidden: Hidden,
    rows: Tensor,
    counts: list[int],
) -> Tensor:
    """The same where few experts do most: a loop over those with rows."""
    shared = zip(_layers_of(weights, biases), torch.split(x, counts), torch.split(rows, counts), strict=True)
    return torch.cat([_expert(part, layers, hidden, of_part) for layers, part, of_part in shared if len(part)])


def mixed_parameters(
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    routing: Tensor,
    hidden: Hidden,
    cells: Tensor | None,
) -> Tensor:
    """One expert per row, whose parameters are the mixture of all. Shapes as in :func:`dense_mixture`.

    ``cells``, shape (N,), holds one number for all rows that are routed alike, where the routing has such.
    """
    if cells is not None and reads_values(x) and x.shape[0] >= LOOP_ROWS:
        order = cells.argsort()
        counts = torch.unique_consecutive(cells.index_select(0, order), return_counts=True)[1]
        if len(counts) * ROWS_PER_CELL <= x.shape[0]:
            first = order.index_select(0, counts.cumsum(0) - counts)
            return _cell_by_cell(x, weights, biases, routing.index_select(0, first), hidden, order, counts.tolist())
    h = x
    for layer, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
        # sum_e w_e (h W_e + b_e): one product against all experts side by side.
        each = torch.addmm(bias.flatten(), h, weight.transpose(0, 1).flatten(1))
        h = torch.einsum("neo,ne->no", torch.unflatten(each, 1, bias.shape), routing.to(each.dtype))
        if layer + 1 < len(weights):
            h = hidden(h, layer, None)
    return h


def _cell_by_cell(
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    routing: Tensor,
    hidden: Hidden,
    order: Tensor,
    counts: list[int],
) -> Tensor:
    """Mix parameters once per cell, ``routing`` (cells, E). ``order`` sorts the rows by cell, ``counts`` of each."""
    h = x.index_select(0, order)
    for layer, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
        mixed = torch.einsum("ce,eio->cio", routing.to(weight.dtype), weight).unbind()
        shift = (routing.to(bias.dtype) @ bias).unbind()
        h = torch.cat(
            [torch.addmm(b, rows, w) for b, rows, w in zip(shift, torch.split(h, counts), mixed, strict=True)]
        )
        if layer + 1 < len(weights):
            h = hidden(h, layer, order)
    return torch.empty_like(h).index_copy(0, order, h)


def _mixed(outputs: Tensor, routing: Tensor) -> Tensor:
    """Shapes: outputs (E, N, D), routing (N, E) -> (N, D)."""
    # Not einsum, which would multiply N small matrices.
    return (outputs * routing.to(outputs.dtype).t().unsqueeze(-1)).sum(0)


def _layers_of(weights: Sequence[Tensor], biases: Sequence[Tensor]) -> Iterable[tuple[tuple[Tensor, Tensor], ...]]:
    """Weight and bias of every layer, expert by expert."""
    # unbind, and not weights[e]: the backward of each slice would allocate a full-size gradient.
    return zip(*(zip(w.unbind(), b.unbind(), strict=True) for w, b in zip(weights, biases, strict=True)), strict=True)


def _expert(x: Tensor, layers: Sequence[tuple[Tensor, Tensor]], hidden: Hidden, rows: Tensor | None) -> Tensor:
    h = x
    for layer, (weight, bias) in enumerate(layers):
        h = torch.addmm(bias, h, weight)
        if layer + 1 < len(layers):
            h = hidden(h, layer, rows)
    return h
