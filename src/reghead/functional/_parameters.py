"""Checks of the parameters of losses: a name means one thing in all of them."""

from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeAlias, get_args

import torch
from torch import Tensor

from reghead._checks import check_choice, check_number, check_quantiles

Base: TypeAlias = Literal["mse", "mae", "huber"]
"""The symmetric losses that an asymmetric one can be made of."""


def check_parameter(name: str, value: object, described: str | None = None) -> Any:
    """Return ``value`` in the form that the losses use, or raise and say what was expected of ``described``."""
    return CHECKS[name](described or name, value)


def constant(values: Sequence[float], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Python numbers as a tensor; the copy to an accelerator does not wait for the work queued there."""
    return torch.tensor(values, dtype=dtype).to(device, non_blocking=True)


def _check_base(name: str, value: object) -> object:
    check_choice(name, value, get_args(Base))
    return value


def _check_positive(name: str, value: object) -> float:
    return check_number(name, value, above=0.0)


def _check_fraction(name: str, value: object) -> float:
    return check_number(name, value, above=0.0, below=1.0)


CHECKS: dict[str, Callable[[str, object], object]] = {
    "base": _check_base,
    "confidence_level": _check_fraction,
    "delta": _check_positive,
    "expectile": _check_fraction,
    "over_penalty": _check_positive,
    "quantiles": check_quantiles,
    "under_penalty": _check_positive,
}
