"""Losses of different columns as one: all that are Huber functions with penalties."""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from reghead.functional._asymmetric import have_one_scale
from reghead.functional._product import Product


def huber_form(kind: str, parameters: Mapping[str, Any]) -> tuple[float, float, float, float] | None:
    r"""The steepness, the knot and the penalties with which a loss is of this form, or ``None`` if it is not.

    .. math:: \ell(e) = c \, \psi(e) \big(e - \tfrac{1}{2 k} \psi(e)\big), \qquad
        \psi(e) = \min\{\max\{k e, -\delta\}, \delta\}, \qquad
        c = \text{over} \text{ where } e < 0, \text{ under elsewhere}

    With k = 1 that is the Huber function, and with an infinite knot half the square; with a steepness without end, and
    a knot of 1, the absolute value.

    Example:
        >>> huber_form("asymmetric", {"over_penalty": 3.0, "under_penalty": 2.0, "base": "huber", "delta": 0.5})
        (1.0, 0.5, 3.0, 2.0)
    """
    over, under = parameters.get("over_penalty", 1.0), parameters.get("under_penalty", 1.0)
    base = parameters["base"] if kind == "asymmetric" else kind
    if kind == "expectile":
        base, over, under = "mse", 1.0 - parameters["expectile"], parameters["expectile"]
    if not have_one_scale(over, under):
        return None
    if base == "mse":
        return 1.0, math.inf, 2.0 * over, 2.0 * under
    if base == "mae":
        return math.inf, 1.0, over, under
    if base == "huber":
        return 1.0, parameters["delta"], over, under
    return None


def columns_of(hubers: NDArray[np.float64], dtype: torch.dtype) -> NDArray[np.float64]:
    """What the factors below take of each column, in numbers that ``dtype`` holds. Shape ``(5, D)``.

    Args:
        hubers: Steepness, knot and penalties, as :func:`huber_form` returns them. Shape ``(4, D)``.
        dtype: Of the errors.
    """
    steepness, knot, over, under = hubers
    half = 0.5 / steepness  # none of an absolute value
    steepness = np.minimum(steepness, 1.0 / torch.finfo(dtype).tiny)  # only a subnormal error is below its knot
    return np.stack([steepness, np.minimum(knot, torch.finfo(dtype).max), half, under, over / under])


def _two_sided(error: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
    steepness, knot, half, penalty, _ = columns
    clamped = torch.clamp(error * steepness, -knot, knot)
    return clamped * penalty, torch.addcmul(error, clamped, half, value=-1)


def _one_sided(error: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
    steepness, knot, half, penalty, ratio = columns
    clamped = torch.clamp(error * steepness, -knot, knot)
    return F.prelu(clamped, ratio).mul_(penalty), torch.addcmul(error, clamped, half, value=-1)


ONE_SIDED = Product(_one_sided)
"""Takes the columns of :func:`columns_of`."""
TWO_SIDED = Product(_two_sided)
"""The same where both penalties are equal."""
