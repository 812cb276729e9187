"""Feature-wise linear modulation."""

import torch
from torch import Tensor

from reghead._checks import check_last_dim
from reghead.functional._lookup import align


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
