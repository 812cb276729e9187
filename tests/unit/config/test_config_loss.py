"""LossConfig: which loss for which output, with which parameters."""

import json
import re

import pytest

from reghead.config import LossConfig
from reghead.config._loss import PARAMETERS
from reghead.losses import make_loss


@pytest.mark.parametrize(
    ("fields", "spec"),
    [
        ({}, {"type": "huber", "delta": 1.0}),
        ({"type": "mse"}, {"type": "mse"}),
        ({"type": "mae"}, {"type": "mae"}),
        ({"type": "log_cosh"}, {"type": "log_cosh"}),
        ({"type": "huber", "delta": 2}, {"type": "huber", "delta": 2.0}),
        ({"type": "quantile"}, {"type": "quantile", "quantiles": [0.1, 0.5, 0.9]}),
        ({"type": "quantile", "quantiles": (0.5,)}, {"type": "quantile", "quantiles": [0.5]}),
        ({"type": "huber_quantile"}, {"type": "huber_quantile", "quantiles": [0.1, 0.5, 0.9], "delta": 1.0}),
        ({"type": "expectile", "expectile": 0.8}, {"type": "expectile", "expectile": 0.8}),
        (
            {"type": "asymmetric", "over_penalty": 2},
            {"type": "asymmetric", "over_penalty": 2.0, "under_penalty": 1.0, "base": "mse"},
        ),
        (
            {"type": "asymmetric", "base": "huber", "delta": 3.0},
            {"type": "asymmetric", "over_penalty": 1.0, "under_penalty": 1.0, "base": "huber", "delta": 3.0},
        ),
    ],
)
def test_the_spec_names_the_loss_and_all_its_parameters_in_json(fields: dict[str, object], spec: object) -> None:
    config = LossConfig(**fields)  # type: ignore[arg-type]
    assert config.spec == spec
    assert json.loads(json.dumps(config.spec)) == spec


def test_an_entry_takes_what_it_leaves_out_from_the_configuration() -> None:
    config = LossConfig(
        type="asymmetric",
        over_penalty=2.0,
        quantiles=(0.25, 0.75),
        per_output={
            "pH": "mse",
            "yield": "quantile",
            "temperature": {"type": "huber", "delta": 2.0, "weight": 0.5},
            "salt": {"type": "asymmetric", "under_penalty": 3.0},
        },
    )
    assert config.spec == {
        "type": "per_output",
        "losses": {
            "pH": {"type": "mse"},
            "yield": {"type": "quantile", "quantiles": [0.25, 0.75]},
            "temperature": {"type": "huber", "delta": 2.0, "weight": 0.5},
            "salt": {"type": "asymmetric", "over_penalty": 2.0, "under_penalty": 3.0, "base": "mse"},
        },
        "outputs": None,
        "default": {"type": "asymmetric", "over_penalty": 2.0, "under_penalty": 1.0, "base": "mse"},
    }


def test_levels_are_the_union_over_the_outputs() -> None:
    assert LossConfig(type="mse").levels is None
    assert LossConfig(type="quantile", quantiles=(0.2, 0.8)).levels == (0.2, 0.8)
    mixed = {"a": {"type": "quantile", "quantiles": [0.1, 0.9]}, "b": "mse"}
    assert LossConfig(type="huber_quantile", quantiles=(0.5, 0.9), per_output=mixed).levels == (0.1, 0.5, 0.9)
    assert LossConfig(per_output=mixed).levels == (0.1, 0.9)


def test_levels_leave_out_a_default_that_no_output_has() -> None:
    config = LossConfig(type="quantile", per_output={"a": "mse", "b": "mae"})
    assert config.levels == (0.1, 0.5, 0.9)
    assert config.with_data(outputs=("a", "b")).levels is None
    assert config.with_data(outputs=("a", "b", "c")).levels == (0.1, 0.5, 0.9)


def test_outputs_may_be_named_by_their_index() -> None:
    assert LossConfig(per_output={0: "mse"}).per_output == {"0": {"type": "mse"}}  # type: ignore[dict-item]
    for key in (1, "1", "salt"):
        config = LossConfig(per_output={key: "mse"}, outputs=("pH", "salt"))  # type: ignore[dict-item]
        assert config.per_output == {"salt": {"type": "mse"}}


def test_a_name_that_looks_like_an_index_is_a_name() -> None:
    config = LossConfig(per_output={"0": "mse"}, outputs=("1", "0"))
    assert config.per_output == {"0": {"type": "mse"}}


def test_no_entries_are_none() -> None:
    assert LossConfig(per_output={}).per_output is None


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"type": "hubr"}, "did you mean 'huber'?"),
        ({"type": "mse", "quantiles": (0.5,)}, "quantiles is for type quantile or huber_quantile, and no output takes"),
        ({"type": "mse", "quantiles": (0.5,)}, "(type is mse); choose type quantile or huber_quantile, or leave quan"),
        (
            {"over_penalty": 2.0},
            "over_penalty is for type asymmetric, and no output takes it from here (type is huber)",
        ),
        ({"under_penalty": 2.0}, "under_penalty is for type asymmetric"),
        ({"base": "mae"}, "base is for type asymmetric"),
        (
            {"type": "mse", "delta": 2.0},
            "delta is for type huber or asymmetric (with base huber) or huber_quantile, and",
        ),
        ({"type": "asymmetric", "delta": 2.0}, "delta is for type huber or asymmetric"),
        ({"expectile": 0.2}, "expectile is for type expectile"),
        ({"delta": 0.0}, "delta must be finite and > 0, got 0.0"),
        ({"type": "asymmetric", "over_penalty": -1.0}, "over_penalty must be finite and > 0, got -1.0"),
        ({"type": "asymmetric", "under_penalty": 0}, "under_penalty must be finite and > 0, got 0.0"),
        ({"type": "asymmetric", "base": "mean"}, "base must be one of 'mse', 'mae', 'huber', got 'mean'"),
        ({"type": "expectile", "expectile": 1.0}, "expectile must be finite and > 0 and < 1, got 1.0"),
        ({"type": "quantile", "quantiles": (0.5, 0.5)}, "quantiles must be strictly increasing"),
        ({"per_output": {"a": "mze"}}, "per_output['a']['type'] must be one of"),
        (
            {"per_output": {"a": {"type": "huber", "dleta": 1}}},
            "per_output['a'] has the parameter 'dleta', which the loss 'huber' does not take; it takes delta, weight; "
            "did you mean 'delta'?",
        ),
        ({"per_output": {"a": {"type": "mse", "delta": 1}}}, "which the loss 'mse' does not take; it takes weight"),
        ({"per_output": {"a": {"type": "huber", "delta": 0}}}, "per_output['a']['delta'] must be finite and > 0"),
        ({"per_output": {"a": {"type": "mse", "weight": -1}}}, "per_output['a']['weight'] must be finite and >= 0"),
        (
            {"per_output": {"a": {"type": "asymmetric", "delta": 1}}},
            "per_output['a'] has a 'delta', which the loss 'asymmetric' takes with the base 'huber' only",
        ),
        (
            {"per_output": {"slat": "mse"}, "outputs": ("pH", "salt")},
            "per_output names the output 'slat', which is not among the outputs ('pH', 'salt'); did you mean 'salt'?",
        ),
        ({"per_output": {2: "mse"}, "outputs": ("pH", "salt")}, "per_output names the output 2, which is not among"),
        ({"per_output": {-1: "mse"}, "outputs": ("pH", "salt")}, "per_output names the output -1, which is not among"),
        ({"per_output": {0: "mse", "pH": "mae"}, "outputs": ("pH",)}, "per_output names the output 'pH' twice"),
        ({"outputs": ("a", "a")}, "outputs must not repeat a column"),
    ],
)
def test_refusals(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        LossConfig(**fields)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"per_output": ["mse"]}, "per_output must map outputs to losses, such as {'pH': 'mse'}, got ['mse']"),
        ({"per_output": {"a": 3}}, "per_output['a'] must be a loss type or a mapping with 'type', such as"),
        ({"per_output": {"a": {"delta": 3}}}, "per_output['a'] must be a loss type or a mapping with 'type'"),
        ({"per_output": {None: "mse"}}, "per_output must have names or indices of outputs as keys, got None"),
        ({"per_output": {True: "mse"}}, "per_output must have names or indices of outputs as keys, got True"),
        ({"delta": "1"}, "delta must be a number, got '1'"),
    ],
)
def test_wrong_types(fields: dict[str, object], message: str) -> None:
    with pytest.raises(TypeError, match=re.escape(message)):
        LossConfig(**fields)  # type: ignore[arg-type]


@pytest.mark.parametrize("kind", PARAMETERS)
def test_every_loss_that_can_be_built_takes_the_parameters_of_the_configuration(kind: str) -> None:
    loss = make_loss(LossConfig(type=kind).spec)  # type: ignore[arg-type]
    for parameter in PARAMETERS[kind]:
        assert getattr(loss, parameter) == getattr(LossConfig(type=kind), parameter)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="'reghead'") as caught:
        make_loss("reghead")
    assert all(f"'{known}'" in str(caught.value) for known in PARAMETERS)
