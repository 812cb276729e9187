"""Large eager calls on the CPU, block by block."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from reghead._checks import reads_values

_BLOCK = 1 << 15  # pragma: no mutate


def by_blocks(
    function: Callable[[Tensor, Sequence[Tensor]], Tensor],
    tensor: Tensor,
    ids: Sequence[Tensor],
    *,
    output_dim: int,
    dtype: torch.dtype,
) -> Tensor:
    """``function(tensor, ids)`` in ``dtype``; with temporaries that stay in cache, 5 times faster at 1e7 rows.

    Args:
        function: Works row by row, and keeps the shape of its first argument.
        tensor: Its dimensions before ``output_dim`` are rows.
        ids: With one dimension for each of those, of the same size or 1.
        output_dim: The dimension of the target columns, negative.
        dtype: Of the result.
    """
    if (
        not reads_values(tensor)
        or tensor.numel() <= 2 * _BLOCK
        or tensor.ndim == -output_dim
        or (tensor.requires_grad and torch.is_grad_enabled())
    ):
        return function(tensor, ids).to(dtype)
    size = max(1, _BLOCK * len(tensor) // tensor.numel())  # pragma: no mutate
    result = tensor.new_empty(tensor.shape, dtype=dtype)
    for start in range(0, len(tensor), size):
        rows = slice(start, start + size)
        result[rows] = function(tensor[rows], [i if len(i) == 1 else i[rows] for i in ids])
    return result
