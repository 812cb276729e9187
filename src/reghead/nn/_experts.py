"""The ways to compute a mixture of experts over one layout of stacked parameters."""

from collections.abc import Callable, Iterable, Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from reghead._checks import reads_values

Hidden: TypeAlias = Callable[[Tensor, int, Tensor | None], Tensor]
"""What follows hidden linear layer ``layer``: ``hidden(h, layer, rows)`` with the rows in ``h``, None for all."""

LOOP_ROWS = 768
"""From so many rows on, in eager mode on a CPU, a loop over experts beats one batched product."""

ROWS_PER_CELL = 8
"""With fewer rows a cell than that, one product over all experts beats parameters mixed cell by cell."""


def dense_mixture(
    x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor], routing: Tensor, hidden: Hidden
) -> Tensor:
    """Every expert on every row. Shapes: x (N, F), weights (E, in, out), biases (E, out), routing (N, E) -> (N, D)."""
    if reads_values(x) and x.shape[0] >= LOOP_ROWS:  # in this order: an export must not see a bound on the rows
        out = torch.stack([_expert(x, layers, hidden, None) for layers in _layers_of(weights, biases)])
        return torch.einsum("end,ne->nd", out, routing.to(out.dtype))
    h = x.expand(weights[0].shape[0], *x.shape)
    for layer, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
        h = torch.baddbmm(bias.unsqueeze(1), h, weight)
        if layer + 1 < len(weights):
            h = hidden(h, layer, None)
    return torch.einsum("end,ne->nd", h, routing.to(h.dtype))


def sparse_mixture(
    x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor], routing: Tensor, hidden: Hidden
) -> Tensor:
    """The experts with a weight alone, where rows can be dealt out to them: eager mode on a CPU. Else all of them."""
    if not reads_values(x) or x.shape[0] < LOOP_ROWS:
        return dense_mixture(x, weights, biases, routing, hidden)
    index, results = [], []
    for expert, layers in enumerate(_layers_of(weights, biases)):
        share = routing[:, expert]
        rows = share.nonzero().squeeze(-1)
        result = _expert(x.index_select(0, rows), layers, hidden, rows)
        index.append(rows)
        results.append(result * share.index_select(0, rows).unsqueeze(-1).to(result.dtype))
    stacked = torch.cat(results)
    return stacked.new_zeros(x.shape[0], stacked.shape[-1]).index_add(0, torch.cat(index), stacked)


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
        h = torch.einsum("neo,ne->no", torch.unflatten(each, -1, bias.shape), routing.to(each.dtype))
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
