"""Feature-wise linear modulation."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from reghead._checks import check_last_dim, reads_values
from reghead.functional._lookup import align, lookup, sum_by_id

CHUNK = 2**18  # pragma: no mutate
"""Elements that are gathered at a time: what is gathered is used while it is in the cache, and not kept."""


WIDE = 2**16  # pragma: no mutate
"""Elements of features below which plain operations take less time than a function of our own."""


def film(x: Tensor, gamma: Tensor, beta: Tensor) -> Tensor:
    r"""Feature-wise linear modulation (FiLM).

    .. math:: \mathrm{FiLM}(x) = \gamma \odot x + \beta

    Perez et al., "FiLM: Visual Reasoning with a General Conditioning Layer", 2018, eq. 2.

    Args:
        x: Features. Shape ``(*, F)``.
        gamma: Factors, 1 for the identity. Shape ``(*prefix, F)`` with leading dimensions of ``x``.
        beta: Shifts, 0 for the identity. The shape of ``gamma``.

    Returns:
        A tensor of the shape of ``x``.

    Raises:
        ValueError: If the last dimensions differ, or ``gamma`` does not have leading dimensions of ``x``.

    Example:
        >>> x = torch.tensor([[1.0, 2.0]])
        >>> film(x, gamma=torch.tensor([[2.0, 1.0]]), beta=torch.tensor([[0.0, 10.0]]))
        tensor([[ 2., 12.]])
    """
    for name, factor in (("gamma", gamma), ("beta", beta)):
        check_last_dim(name, factor, x.shape[-1], "F")
        if factor.shape[:-1] != x.shape[: factor.ndim - 1] or factor.ndim > x.ndim:
            raise ValueError(
                f"{name} must have the leading dimensions of x, which has shape {tuple(x.shape)}, got "
                f"{tuple(factor.shape)}; ids of categories, or a context, go row by row with x"
            )
    # Under autocast the factors may come in a narrower dtype than the features; addcmul does not promote.
    return torch.addcmul(align(beta, x).to(x.dtype), align(gamma, x).to(x.dtype), x)


def film_by_id(x: Tensor, gamma: Tensor, beta: Tensor, ids: Tensor) -> Tensor:
    r"""FiLM whose factors and shifts stand in tables: ``film(x, lookup(gamma, ids), lookup(beta, ids))``.

    In eager mode on a CPU neither the factors nor the shifts of the rows are made, let alone kept for the backward
    pass: for wide features, memory is most of the time.

    Args:
        x: Features. Shape ``(*ids, *, F)``.
        gamma: Factors. Shape ``(N, F)``.
        beta: Shifts. Shape ``(N, F)``.
        ids: Integer ids in ``[0, N)``. Shape ``(*prefix)`` with leading dimensions of ``x``.

    Example:
        >>> x = torch.tensor([[1.0], [1.0]])
        >>> film_by_id(x, torch.tensor([[1.0], [2.0]]), torch.tensor([[0.0], [5.0]]), torch.tensor([0, 1]))
        tensor([[1.],
                [7.]])
    """
    if (
        reads_values(x)  # first: an export must not see a bound on the rows
        and x.shape[-1] > 1
        and x.numel() >= WIDE  # pragma: no mutate
        and x.dtype in (torch.float32, torch.float64)
        and gamma.dtype == beta.dtype == x.dtype
        and ids.shape == x.shape[:-1]
        and all(map(reads_values, (gamma, beta, ids)))
    ):
        rows = x.reshape(-1, x.shape[-1])
        result: Tensor = _FiLMById.apply(rows, gamma, beta, ids.reshape(-1))  # type: ignore[no-untyped-call]
        return result.reshape(x.shape)
    factors, shifts = lookup(gamma, ids), lookup(beta, ids)
    if factors.shape == x.shape and gamma.dtype == beta.dtype == x.dtype:
        return torch.addcmul(shifts, factors, x)
    return film(x, factors, shifts)


class _FiLMById(torch.autograd.Function):
    """Shapes: x (B, F), gamma and beta (N, F), ids (B,)."""

    @staticmethod
    def forward(x: Tensor, gamma: Tensor, beta: Tensor, ids: Tensor) -> Tensor:
        out = lookup(beta, ids)
        for part, of_x, of_ids in _chunks(out, x, ids):
            part.addcmul_(lookup(gamma, of_ids), of_x)
        return out

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        x, gamma, _, ids = inputs
        ctx.save_for_backward(x, gamma, ids)
        ctx.save_for_forward(x, gamma, ids)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, gamma, ids = ctx.saved_tensors
        to_x, *to_tables = ctx.needs_input_grad[:3]
        product, grads = None, [grad * x, grad] if any(to_tables) else []
        to_gamma, to_beta = sum_by_id(grads, ids, len(gamma)) if grads else (None, None)
        if to_x and (torch.is_grad_enabled() or not reads_values(grad)):  # for a second derivative, or several at once
            product = lookup(gamma, ids) * grad
        elif to_x:
            product = grads[0] if grads else torch.empty_like(grad)  # its memory, which is not needed any more
            for part, of_grad, of_ids in _chunks(product, grad, ids):
                torch.mul(lookup(gamma, of_ids), of_grad, out=part)
        return product, to_gamma, to_beta, None

    @staticmethod
    def jvp(ctx: Any, x: Tensor | None, gamma: Tensor | None, beta: Tensor | None, _: None) -> Tensor:
        at, factors, ids = ctx.saved_tensors
        change = torch.zeros_like(at)
        if x is not None:
            change = change + lookup(factors, ids) * x
        if gamma is not None:
            change = change + lookup(gamma, ids) * at
        return change if beta is None else change + lookup(beta, ids)


def _chunks(*tensors: Tensor) -> Iterable[tuple[Tensor, ...]]:
    """The tensors in pieces of the same rows, the first of which holds ``CHUNK`` elements or one row."""
    size = max(1, CHUNK // tensors[0].shape[-1])
    return zip(*(torch.split(tensor, size) for tensor in tensors), strict=True)
