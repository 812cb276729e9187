"""Preconditioned conjugate gradients (Hestenes and Stiefel 1952) for several right-hand sides at once."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

MAX_ITERATIONS = 1_000


class Iterated(NamedTuple):
    """A solution, shape ``(S, R)``, and the relative residual of its worst column, or a bound of its error."""

    solution: Tensor
    residual: float


def conjugate_gradients(
    product: Callable[[Tensor], Tensor],
    precondition: Callable[[Tensor], Tensor],
    right: Tensor,
    *,
    tolerance: float,
    start: Tensor | None = None,
) -> Iterated:
    r"""Solve :math:`M x = h` for a positive definite :math:`M` that is known by its products.

    With the preconditioner :math:`D`, it ends when :math:`\|h - M x\|_{D^{-1}} \le \tau \|h\|_{D^{-1}}` in each column.

    Args:
        product: :math:`x \mapsto M x`, columns on their own.
        precondition: :math:`x \mapsto D^{-1} x`.
        right: Shape ``(S, R)``.
        tolerance: :math:`\tau`.
        start: Where to begin, 0 by default.
    """
    residual = right.clone() if start is None else right - product(start)
    solution = torch.zeros_like(right) if start is None else start.clone()
    norm = (right * precondition(right)).sum(dim=0)
    bound = tolerance**2 * norm
    direction = precondition(residual)
    square = (residual * direction).sum(dim=0)
    for _ in range(MAX_ITERATIONS):
        active = square > bound
        if not active.any():
            break
        image = product(direction)
        bend = (direction * image).sum(dim=0)
        length = torch.where(active, square / torch.where(bend > 0, bend, 1.0), 0.0)
        solution.addcmul_(direction, length)
        residual.addcmul_(image, length, value=-1)
        better = precondition(residual)
        new = (residual * better).sum(dim=0)
        direction.mul_(new / torch.where(square > 0, square, 1.0)).add_(better)
        square = new
    worst = (square / torch.where(norm > 0, norm, 1.0)).max().sqrt()
    return Iterated(solution, float(worst))
