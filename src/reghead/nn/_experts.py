"""The ways to compute a mixture of experts over one layout of stacked parameters."""

import functools
from collections.abc import Callable, Iterable, Sequence
from typing import TypeAlias

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import functional as F

from reghead._checks import reads_values
from reghead.functional import lookup

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

GROUP_ROWS = 32  # pragma: no mutate
"""So many where all experts are one call, with several threads, of which small products make little use."""

LARGE_GROUP = 384  # pragma: no mutate
"""With more rows a group than that, a loop that stays in the cache through all layers beats one call a layer."""

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
    if not can_deal_out(routing.numel(), x, routing, *weights, *biases):
        return dense_mixture(x, weights, biases, routing, hidden)
    return deal_out(x, weights, biases, *chosen(routing, top_k), hidden)


def can_deal_out(number: int, x: Tensor, *others: Tensor) -> bool:
    """Whether rows can be dealt out to experts, and are enough for that to pay: ``number`` is rows times experts."""
    # In this order: an export must not see a bound on the rows.
    return reads_values(x) and number >= SPARSE_WEIGHTS and all(map(reads_values, others))


def chosen(routing: Tensor, top_k: int) -> tuple[Tensor, Tensor]:
    """Weights and numbers of the ``top_k`` experts of each row: (N, E) gives (N, top_k), twice."""
    return routing.topk(top_k) if top_k > 1 else routing.max(-1, keepdim=True)


def deal_out(
    x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor], share: Tensor, expert: Tensor, hidden: Hidden
) -> Tensor:
    """:func:`sparse_mixture` by what :func:`chosen` gives."""
    experts, top_k, expert = weights[0].shape[0], expert.shape[1], expert.flatten()
    counts = torch.bincount(expert, minlength=experts)
    order = expert.argsort(stable=True)
    rows = order // top_k
    h, of_row = x.index_select(0, rows), expert.index_select(0, order)
    groups = _can_group(h, weights, biases)
    worth = EXPERT_ROWS if not groups else GROUP_ROWS if torch.get_num_threads() > 1 else -1  # pragma: no mutate
    padding = experts * int(counts.max()) - len(rows)  # pragma: no mutate
    compute = _grouped if groups else _one_by_one
    if padding <= worth * int(counts.count_nonzero()):  # pragma: no mutate
        compute = _padded
    h = compute(h, weights, biases, hidden, rows, of_row, counts)
    h = h * share.flatten().index_select(0, order).unsqueeze(-1).to(h.dtype)
    return h.new_zeros(x.shape[0], h.shape[-1]).index_add(0, rows, h)


def _padded(
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    hidden: Hidden,
    rows: Tensor,
    group: Tensor,
    counts: Tensor,
) -> Tensor:
    """Each row by its group's network, in one batched product over groups filled up to the busiest with rows of zeros.

    ``x`` is sorted by ``group``, which says whose weights, (G, in, out), each row meets; ``rows`` are its rows in the
    batch, ``counts`` those of each group.
    """
    most = int(counts.max())
    place = torch.arange(len(rows), device=x.device) + (group * most - (counts.cumsum(0) - counts)[group])
    size = len(counts) * most
    of_place = rows.new_zeros(size).index_copy(0, place, rows)
    h = x.new_zeros(size, x.shape[-1]).index_copy(0, place, x)
    for layer, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
        h = torch.baddbmm(bias.unsqueeze(1), torch.unflatten(h, 0, (-1, most)), weight).flatten(0, 1)
        if layer + 1 < len(weights):
            h = hidden(h, layer, of_place)
    return h.index_select(0, place)


def _grouped(
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    hidden: Hidden,
    rows: Tensor,
    group: Tensor,
    counts: Tensor,
) -> Tensor:
    """The same in one call a layer, of as many products as there are groups, each of its own rows alone."""
    h, ends = x, counts.cumsum(0).to(torch.int32)
    for layer, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
        h = _grouped_mm(h, weight, ends) + lookup(bias, group)
        if layer + 1 < len(weights):
            h = hidden(h, layer, rows)
    return h


def _one_by_one(
    x: Tensor,
    weights: Sequence[Tensor],
    biases: Sequence[Tensor],
    hidden: Hidden,
    rows: Tensor,
    _: Tensor,
    counts: Tensor,
) -> Tensor:
    """The same in a loop over the groups that have rows."""
    sizes = counts.tolist()
    shared = zip(_layers_of(weights, biases), torch.split(x, sizes), torch.split(rows, sizes), strict=True)
    return torch.cat([_expert(part, layers, hidden, of_part) for layers, part, of_part in shared if len(part)])


def _grouped_mm(x: Tensor, weight: Tensor, ends: Tensor) -> Tensor:
    """Rows of ``x`` up to the first of ``ends`` times the first of ``weight``, and so on: (N, in), (G, in, out)."""
    before, after = (-size % _ALIGNMENT for size in weight.shape[1:])
    if before or after:
        x, weight = F.pad(x, (0, before)), F.pad(weight, (0, after, 0, before))
    out = F.grouped_mm(x, weight, offs=ends)
    return out[:, : out.shape[1] - after] if after else out


_ALIGNMENT = 4  # float32 numbers in the 16 bytes of which torch's rows must be multiples


def _can_group(x: Tensor, weights: Sequence[Tensor], biases: Sequence[Tensor]) -> bool:
    """Whether :func:`_grouped` can be used, where values can be read, and pays."""
    return (
        x.shape[0] <= LARGE_GROUP * weights[0].shape[0]  # pragma: no mutate
        and all(tensor.dtype == torch.float32 and reads_values(tensor) for tensor in (x, *weights, *biases))
        and forward_ad._current_level < 0
        and not torch.is_autocast_enabled("cpu")
        and _has_grouped_mm()
    )


@functools.cache
def _has_grouped_mm() -> bool:
    """Whether this release of torch has the product on a CPU."""
    try:
        F.grouped_mm(torch.zeros(4, 4), torch.zeros(1, 4, 4), offs=torch.tensor([4], dtype=torch.int32))
    except (AttributeError, RuntimeError):
        return False
    return True


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
        in_order = cells.index_select(0, order)
        _, cell, counts = torch.unique_consecutive(in_order, return_inverse=True, return_counts=True)
        if len(counts) * ROWS_PER_CELL <= x.shape[0]:
            share = routing.index_select(0, order.index_select(0, counts.cumsum(0) - counts))
            mixed = [torch.einsum("ce,eio->cio", share.to(weight.dtype), weight) for weight in weights]
            shifts = [share.to(bias.dtype) @ bias for bias in biases]
            compute = _grouped if _can_group(x, mixed, shifts) else _one_by_one
            h = compute(x.index_select(0, order), mixed, shifts, hidden, order, cell, counts)
            return torch.empty_like(h).index_copy(0, order, h)
    h = x
    for layer, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
        # sum_e w_e (h W_e + b_e): one product against all experts side by side.
        each = torch.addmm(bias.flatten(), h, weight.transpose(0, 1).flatten(1))
        h = torch.einsum("neo,ne->no", torch.unflatten(each, 1, bias.shape), routing.to(each.dtype))
        if layer + 1 < len(weights):
            h = hidden(h, layer, None)
    return h


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
