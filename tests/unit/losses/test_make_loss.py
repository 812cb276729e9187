"""Losses from type names and from JSON data."""

import json
from typing import Any

import pytest

from reghead.config import LossConfig
from reghead.config._loss import PARAMETERS
from reghead.functional._loss_types import LOSS_TYPES
from reghead.losses import (
    AsymmetricLoss,
    ExpectileLoss,
    HuberLoss,
    HuberPinballLoss,
    LogCoshLoss,
    MAELoss,
    MSELoss,
    PerOutputLoss,
    PinballLoss,
    make_loss,
)


@pytest.mark.parametrize(
    ("spec", "module"),
    [
        ("mse", MSELoss()),
        ("mae", MAELoss()),
        ("huber", HuberLoss()),
        ("log_cosh", LogCoshLoss()),
        ("quantile", PinballLoss((0.1, 0.5, 0.9))),
        ("asymmetric", AsymmetricLoss()),
        ("huber_quantile", HuberPinballLoss((0.1, 0.5, 0.9))),
        ({"type": "huber", "delta": 2}, HuberLoss(2.0)),
        ({"type": "expectile", "expectile": 0.2}, ExpectileLoss(0.2)),
        (
            {"type": "quantile", "quantiles": [0.25, 0.75], "reduction": "sum"},
            PinballLoss((0.25, 0.75), reduction="sum"),
        ),
        (
            {"type": "asymmetric", "over_penalty": 2.0, "base": "mae", "nan_policy": "omit"},
            AsymmetricLoss(2.0, base="mae", nan_policy="omit"),
        ),
        (
            {"type": "per_output", "losses": {"a": "mse"}, "outputs": ["a", "b"], "default": "mae", "reduction": "sum"},
            PerOutputLoss({"a": "mse"}, outputs=["a", "b"], default="mae", reduction="sum"),
        ),
    ],
)
def test_a_spec_makes_its_module_also_after_a_trip_through_json(spec: Any, module: object) -> None:
    for given in (spec, json.loads(json.dumps(spec))):
        made = make_loss(given)
        assert type(made) is type(module)
        assert repr(made) == repr(module)


def test_the_configuration_knows_the_same_types_with_the_same_parameters() -> None:
    assert {kind: set(loss.defaults) for kind, loss in LOSS_TYPES.items()} == {
        kind: set(names) for kind, names in PARAMETERS.items()
    }


@pytest.mark.parametrize("kind", LOSS_TYPES)
def test_the_data_of_a_configuration_makes_its_loss(kind: str) -> None:
    alone = make_loss(LossConfig(type=kind).spec)  # type: ignore[arg-type]
    assert repr(alone) == repr(make_loss({"type": kind, "expectile": 0.5} if kind == "expectile" else kind))
    per_output = make_loss(LossConfig(type="mse", per_output={"0": kind}).spec)
    assert isinstance(per_output, PerOutputLoss)
    assert per_output.quantiles == getattr(alone, "quantiles", None)


@pytest.mark.parametrize(
    ("error", "spec", "message"),
    [
        (ValueError, "hubber", r"loss must be of a type among 'mse', .*, got 'hubber'; did you mean 'huber'\?"),
        (ValueError, {"type": "mse", "delta": 1.0}, r"has the parameter 'delta', which the loss 'mse' does not take"),
        (ValueError, {"type": "mse", "weight": 1.0}, r"has the parameter 'weight', which the loss 'mse' does not take"),
        (
            ValueError,
            {"type": "quantile", "quantile": [0.5]},
            r"loss has the parameter 'quantile', .* it takes quantiles, nan_policy, reduction; did you mean 'quantiles",
        ),
        (ValueError, {"type": "quantile", "quantiles": [2.0]}, r"loss\['quantiles'\]\[0\] must be finite and > 0 and"),
        (ValueError, "expectile", "loss needs 'expectile', which the loss 'expectile' has no default for"),
        (ValueError, {"type": "mse", "reduction": "avg"}, "reduction must be one of"),
        (ValueError, {"type": "per_output"}, "loss needs 'losses', which the loss 'per_output' has no default for"),
        (
            ValueError,
            {"type": "per_output", "losses": {}, "output": []},
            "loss has the parameter 'output', which the loss 'per_output' does not take; .*; did you mean 'outputs'",
        ),
        (TypeError, 3, "loss must be a loss type or a mapping with 'type', such as .*, got 3"),
        (TypeError, {"delta": 1.0}, "loss must be a loss type or a mapping with 'type'"),
    ],
)
def test_refusals(error: type[Exception], spec: Any, message: str) -> None:
    with pytest.raises(error, match=message):
        make_loss(spec)
