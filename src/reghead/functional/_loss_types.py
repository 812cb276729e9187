"""The names of losses in specs such as ``{"type": "huber", "delta": 2.0}``, and what each takes."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, TypeAlias

from torch import Tensor

from reghead._checks import did_you_mean
from reghead.functional._asymmetric import asymmetric_loss, expectile_loss
from reghead.functional._parameters import check_parameter
from reghead.functional._pinball import huber_pinball_loss, pinball_loss
from reghead.functional._pointwise import huber_loss, log_cosh_loss, mae_loss, mse_loss

LossSpec: TypeAlias = str | Mapping[str, Any]
"""A loss type, or a mapping with ``"type"`` and any of its parameters."""


class LossType(NamedTuple):
    """A loss function and the parameters that a spec can give it, with their defaults; ``None`` is required."""

    function: Callable[..., Tensor]
    defaults: dict[str, Any]


QUANTILES = (0.1, 0.5, 0.9)

LOSS_TYPES: dict[str, LossType] = {
    "mse": LossType(mse_loss, {}),
    "mae": LossType(mae_loss, {}),
    "huber": LossType(huber_loss, {"delta": 1.0}),
    "quantile": LossType(pinball_loss, {"quantiles": QUANTILES}),
    "asymmetric": LossType(asymmetric_loss, {"over_penalty": 1.0, "under_penalty": 1.0, "base": "mse", "delta": 1.0}),
    "expectile": LossType(expectile_loss, {"expectile": None}),
    "log_cosh": LossType(log_cosh_loss, {}),
    "huber_quantile": LossType(huber_pinball_loss, {"quantiles": QUANTILES, "delta": 1.0}),
}


def parse_loss(name: str, spec: object, also: tuple[str, ...] = ()) -> tuple[str, dict[str, Any]]:
    """The type and all parameters of a loss spec, checked; ``also`` are other keys that it may hold, left out.

    Raises:
        TypeError: If ``spec`` is neither a type nor a mapping with ``"type"``.
        ValueError: If the type or a parameter is unknown, or a value is out of range.
    """
    given: dict[Any, Any] = {"type": spec} if isinstance(spec, str) else dict(spec) if isinstance(spec, Mapping) else {}
    kind = given.pop("type", None)
    if not isinstance(kind, str):
        raise TypeError(
            f"{name} must be a loss type or a mapping with 'type', such as {{'type': 'huber', 'delta': 2.0}}, "
            f"got {spec!r}"
        )
    if kind not in LOSS_TYPES:
        raise ValueError(
            f"{name} must be of a type among {', '.join(map(repr, LOSS_TYPES))}, got {kind!r}"
            f"{did_you_mean(kind, LOSS_TYPES)}"
        )
    defaults = LOSS_TYPES[kind].defaults
    for key in given:
        if key not in defaults and key not in also:
            takes = (*defaults, *also)
            raise ValueError(
                f"{name} has the parameter {key!r}, which the loss {kind!r} does not take; "
                f"it takes {', '.join(takes) or 'none'}{did_you_mean(key, takes)}"
            )
    parameters = {}
    for key, default in defaults.items():
        value = given.get(key, default)
        if value is None:
            raise ValueError(f"{name} needs {key!r}, which the loss {kind!r} has no default for")
        parameters[key] = check_parameter(key, value, f"{name}[{key!r}]")
    return kind, parameters
