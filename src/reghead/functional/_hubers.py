"""Losses of different columns as one: all that are Huber functions with penalties."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from reghead.functional._product import Product

# The knot of an absolute value: a power of two, so that nothing is rounded, and no error of a float32 target is between
# it and 0 unless its square is lost in float32 as well.
_NARROW = 2.0**-100
_LARGEST = 1e6  # penalty, so that it can be divided by this in float32


def huber_form(kind: str, parameters: Mapping[str, Any]) -> tuple[float, float, float] | None:
    r"""The knot and the penalties with which a loss is a Huber function, or ``None`` if it is none.

    .. math:: \ell(e) = c \, H_\delta(e), \qquad c = \text{over} \text{ where } e < 0, \text{ under elsewhere}

    A square is twice :math:`H_\infty`, and :math:`H_\delta / \delta` is the absolute value
    beyond a small one.

    Example:
        >>> huber_form("asymmetric", {"over_penalty": 3.0, "under_penalty": 2.0, "base": "huber", "delta": 0.5})
        (0.5, 3.0, 2.0)
    """
    over, under = parameters.get("over_penalty", 1.0), parameters.get("under_penalty", 1.0)
    base = parameters["base"] if kind == "asymmetric" else kind
    if kind == "expectile":
        base, over, under = "mse", 1.0 - parameters["expectile"], parameters["expectile"]
    if base == "mse":
        return math.inf, 2.0 * over, 2.0 * under
    if base == "mae" and max(over, under) < _LARGEST:
        return _NARROW, over / _NARROW, under / _NARROW
    if base == "huber":
        return parameters["delta"], over, under
    return None


def _one_sided(error: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
    delta, penalty, ratio = columns
    clamped = torch.clamp(error, -delta, delta)
    return F.prelu(clamped, ratio).mul_(penalty), torch.sub(error, clamped, alpha=0.5)


def _two_sided(error: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
    delta, penalty, _ = columns
    clamped = torch.clamp(error, -delta, delta)
    return clamped * penalty, torch.sub(error, clamped, alpha=0.5)


ONE_SIDED = Product(_one_sided)
"""Takes knots, penalties below, and the penalties above divided by these, of each column. Shape ``(3, D)``."""
TWO_SIDED = Product(_two_sided)
"""The same where both penalties are equal."""
