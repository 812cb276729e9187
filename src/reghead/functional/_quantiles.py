"""Shaping of quantile predictions."""

import itertools
from collections.abc import Sequence
from statistics import NormalDist

import torch
from torch import Tensor
from torch.nn import functional as F

from reghead._checks import check_last_dim, check_quantiles


def nearest_level(quantiles: Sequence[float], level: float = 0.5) -> int:
    """Position of the level nearest ``level``, the lower one on a tie.

    Example:
        >>> nearest_level([0.5, 0.9, 0.95])
        0
    """
    nearest = 0
    for i, quantile in enumerate(quantiles):  # min with a key is nothing that torch.compile(dynamic=True) traces
        if abs(quantile - level) < abs(quantiles[nearest] - level) - 1e-12:
            nearest = i
    return nearest


def sort_quantiles(preds: Tensor) -> Tensor:
    """Quantile predictions in increasing order along the last dimension.

    The sorted (rearranged) quantiles are never further from the truth than the crossing ones: Chernozhukov,
    Fernández-Val and Galichon, "Quantile and Probability Curves Without Crossing", 2010.

    Args:
        preds: Predicted quantiles. Shape ``(*, D, Q)``.

    Example:
        >>> sort_quantiles(torch.tensor([[3.0, 1.0, 2.0]]))
        tensor([[1., 2., 3.]])
    """
    return preds.sort(dim=-1).values


def non_crossing_quantiles(raw: Tensor, quantiles: Sequence[float]) -> Tensor:
    r"""Quantiles that cannot cross: an anchor plus cumulated positive gaps.

    With the level nearest 0.5 at position :math:`a` and the normal quantile function :math:`\Phi^{-1}`,

    .. math::
        \hat q_a = r_a, \qquad
        \hat q_{i+1} - \hat q_i = \left(\Phi^{-1}(\tau_{i+1}) - \Phi^{-1}(\tau_i)\right)
        \log\left(1 + (e - 1)\, e^{r_j}\right)

    where :math:`r_j` is the raw value of the outer of the two levels. At ``raw = 0`` the quantiles are those of
    the standard normal distribution around 0, shifted so that the anchor is 0.

    Args:
        raw: Unconstrained values. Shape ``(*, D, Q)``.
        quantiles: The Q levels, strictly increasing.

    Returns:
        Quantiles in increasing order for any finite ``raw``. Shape ``(*, D, Q)``.

    Raises:
        ValueError: If the last dimension of ``raw`` is not Q.

    Example:
        >>> non_crossing_quantiles(torch.zeros(1, 3), [0.1, 0.5, 0.9])
        tensor([[-1.2816,  0.0000,  1.2816]])
    """
    levels = check_quantiles("quantiles", quantiles)
    check_last_dim("raw", raw, len(levels), "Q")
    # torch.compile cannot trace NormalDist.inv_cdf.
    z = torch.special.ndtri(torch.tensor(levels, dtype=torch.float64, device="cpu"))
    return spread_by_gaps(raw, nearest_level(levels), z.diff().to(device=raw.device, dtype=raw.dtype))


def normal_gaps(levels: Sequence[float]) -> list[float]:
    """Between the quantiles of the standard normal distribution, as numbers that no cast of a module can bend."""
    z = [NormalDist().inv_cdf(level) for level in levels]
    return [above - below for below, above in itertools.pairwise(z)]


def spread_by_gaps(raw: Tensor, anchor: int, gaps: Tensor) -> Tensor:
    """:func:`non_crossing_quantiles`, with the ``gaps`` at ``raw = 0`` given. Shape ``(Q - 1,)``."""
    center = raw[..., anchor : anchor + 1]
    below = F.softplus(raw[..., :anchor] + UNIT_SOFTPLUS) * gaps[:anchor]
    above = F.softplus(raw[..., anchor + 1 :] + UNIT_SOFTPLUS) * gaps[anchor:]
    parts = [center]
    if anchor:
        parts.insert(0, center - below.flip(-1).cumsum(-1).flip(-1))
    if anchor + 1 < raw.shape[-1]:
        parts.append(center + above.cumsum(-1))
    return torch.cat(parts, dim=-1)


UNIT_SOFTPLUS = 0.5413248546129181
"""log(e - 1), where softplus is 1."""
