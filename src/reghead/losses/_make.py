"""From the data of a loss to its module."""

from collections.abc import Mapping
from typing import Any

from torch import nn

from reghead._checks import did_you_mean
from reghead.functional._loss_types import LOSS_TYPES, LossSpec, parse_loss
from reghead.losses._base import Loss
from reghead.losses._per_output import PerOutputLoss
from reghead.losses._pointwise import AsymmetricLoss, ExpectileLoss, HuberLoss, LogCoshLoss, MAELoss, MSELoss
from reghead.losses._quantile import HuberPinballLoss, PinballLoss

_MODULES: dict[Any, type[Loss]] = {
    module.function: module
    for module in (
        AsymmetricLoss,
        ExpectileLoss,
        HuberLoss,
        HuberPinballLoss,
        LogCoshLoss,
        MAELoss,
        MSELoss,
        PinballLoss,
    )
}
_PER_OUTPUT = ("losses", "outputs", "default", "uncertainty")
_COMMON = ("nan_policy", "reduction")


def make_loss(spec: LossSpec) -> nn.Module:
    """Build a loss module from a type name, or from data as it stands in a JSON file.

    Args:
        spec: A type: ``"mse"``, ``"mae"``, ``"huber"``, ``"quantile"``, ``"asymmetric"``, ``"expectile"``,
            ``"log_cosh"``, ``"huber_quantile"``; or a mapping with ``"type"`` and any of: the parameters of that type,
            ``"nan_policy"``, ``"reduction"``. The type ``"per_output"`` takes the arguments of
            :class:`PerOutputLoss`.

    Raises:
        TypeError: If ``spec`` is neither a type nor a mapping with ``"type"``.
        ValueError: If the type or a parameter is unknown, or a value is out of range.

    Example:
        >>> make_loss({"type": "huber", "delta": 2.0})
        HuberLoss(delta=2.0, nan_policy='propagate', reduction='mean')
        >>> make_loss({"type": "per_output", "losses": {"pH": "mse"}, "outputs": ["pH"]}).quantiles is None
        True
    """
    if isinstance(spec, Mapping) and spec.get("type") == "per_output":
        given = {key: value for key, value in spec.items() if key != "type"}
        takes = (*_PER_OUTPUT, *_COMMON)
        for key in given:
            if key not in takes:
                raise ValueError(
                    f"loss has the parameter {key!r}, which the loss 'per_output' does not take; "
                    f"it takes {', '.join(takes)}{did_you_mean(key, takes)}"
                )
        if "losses" not in given:
            raise ValueError("loss needs 'losses', which the loss 'per_output' has no default for")
        return PerOutputLoss(**given)
    kind, parameters = parse_loss("loss", spec, also=_COMMON)
    common = {key: spec[key] for key in _COMMON if key in spec} if isinstance(spec, Mapping) else {}
    return _MODULES[LOSS_TYPES[kind].function](**parameters, **common)
