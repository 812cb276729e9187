"""HeadConfig and MoEConfig: what they take, what they refuse, and that they never change afterwards."""

import dataclasses
import pickle
import re
from copy import deepcopy

import numpy as np
import pytest

from reghead.config import HeadConfig, MoEConfig

COLUMNS = ("location", "season")


def test_lists_become_tuples_and_numpy_numbers_become_python_s() -> None:
    config = HeadConfig(
        in_features=np.int64(8),
        hidden_dims=[np.int32(64), 32],
        dropout=np.float64(0.25),
        residual=np.bool_(True),
        columns=list(COLUMNS),
        film=["location"],
        quantiles=np.array([0.1, 0.9]),
        bounds=[0, 1],
    )
    assert (config.in_features, config.hidden_dims, config.dropout) == (8, (64, 32), 0.25)
    assert [type(v) for v in (config.in_features, *config.hidden_dims, config.dropout)] == [int, int, int, float]
    assert config.residual is True
    assert config.columns == COLUMNS
    assert config.film == ("location",)
    assert config.quantiles == (0.1, 0.9)
    assert config.bounds == (0.0, 1.0)


def test_a_configuration_cannot_be_changed_directly_or_through_what_it_was_built_from() -> None:
    dims, cardinalities = [64], {"location": 3}
    config = HeadConfig(hidden_dims=dims, cardinalities=cardinalities)
    dims.append(32)
    cardinalities["season"] = 4
    assert (config.hidden_dims, config.cardinalities) == ((64,), {"location": 3})
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.dropout = 0.5  # type: ignore[misc]


def test_copies_and_pickles_are_equal() -> None:
    config = HeadConfig(columns=COLUMNS, moe=MoEConfig(num_experts=4, routing=COLUMNS))
    assert deepcopy(config) == config
    assert pickle.loads(pickle.dumps(config)) == config


def test_fields_go_by_keyword_only() -> None:
    with pytest.raises(TypeError, match="positional"):
        HeadConfig(8)  # type: ignore[misc]


def test_columns_default_to_those_of_the_cardinalities() -> None:
    assert HeadConfig(cardinalities={"season": 5, "location": 3}).columns == ("season", "location")
    assert HeadConfig().columns == ()


def test_of_the_cardinalities_the_columns_are_kept_in_their_order() -> None:
    config = HeadConfig(columns=COLUMNS, cardinalities={"season": 5, "year": 9, "location": 3})
    assert list((config.cardinalities or {}).items()) == [("location", 3), ("season", 5)]


def test_with_data_fills_in_what_the_data_knows_and_keeps_the_rest() -> None:
    config = HeadConfig(hidden_dims=(4,), columns=("location",), film=("location",), moe=None)
    filled = config.with_data(in_features=7, out_features=2, cardinalities={"location": 3, "season": 5})
    assert filled == HeadConfig(
        in_features=7,
        out_features=2,
        hidden_dims=(4,),
        columns=("location",),
        film=("location",),
        cardinalities={"location": 3},
    )
    assert filled.with_data() == filled


def test_with_data_refuses_cardinalities_without_a_column_that_is_used() -> None:
    with pytest.raises(ValueError, match=re.escape("columns names the column 'location', which is not among cardinal")):
        HeadConfig(columns=("location",)).with_data(cardinalities={"season": 5})


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"in_features": 8.0}, "in_features must be an integer, got 8.0"),
        ({"in_features": True}, "in_features must be an integer, got True"),
        ({"hidden_dims": "64,32"}, "hidden_dims must be a sequence of integers"),
        ({"hidden_dims": None}, "hidden_dims must be a sequence of integers"),
        ({"dropout": "0.1"}, "dropout must be a number, got '0.1'"),
        ({"residual": "yes"}, "residual must be True or False, got 'yes'"),
        ({"residual": 1}, "residual must be True or False, got 1"),
        ({"non_crossing": None}, "non_crossing must be True or False, got None"),
        ({"learnable_scale": 0.0}, "learnable_scale must be True or False, got 0.0"),
        ({"columns": "location"}, "columns must be a sequence of column names"),
        ({"film": "location", "columns": COLUMNS}, "film must be a sequence of column names"),
        ({"cardinalities": ["location"]}, "cardinalities must map each column to its number of ids"),
        ({"ensemble": 2.0}, "ensemble must be an integer, got 2.0"),
        ({"partial_pooling": "3"}, "partial_pooling must be a number, got '3'"),
        ({"moe": 4}, "moe must be a MoEConfig or a mapping, got 4 of type int"),
        ({"bounds": 1.0}, "bounds must be a pair of numbers such as (0.0, 1.0), got 1.0"),
        ({"bounds": "01"}, "bounds must be a pair of numbers"),
        ({"bounds": (0, 1, 2)}, "bounds must be a pair of numbers"),
        ({"quantiles": "0.5"}, "quantiles must be a sequence of levels"),
        ({"moe": {"num_experts": 2.0, "route_features": True}}, "num_experts must be an integer, got 2.0"),
    ],
)
def test_a_wrong_type_raises_and_names_the_field(fields: dict[str, object], message: str) -> None:
    with pytest.raises(TypeError, match=re.escape(message)):
        HeadConfig(**fields)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"in_features": 0}, "in_features must be at least 1, got 0"),
        ({"out_features": 0}, "out_features must be at least 1, got 0"),
        ({"hidden_dims": (64, 0)}, "hidden_dims[1] must be at least 1, got 0"),
        ({"dropout": 1.0, "hidden_dims": (4,)}, "dropout must be finite and >= 0 and < 1, got 1.0"),
        ({"dropout": float("nan")}, "dropout must be finite"),
        ({"activation": "rleu"}, "activation must be one of 'relu', 'gelu', 'silu', 'tanh', 'elu', 'leaky_relu', got"),
        ({"activation": "rleu"}, "did you mean 'relu'?"),
        ({"norm": "batch"}, "norm must be one of None, 'layer', 'rms', got 'batch'"),
        ({"embedding_dim": 0}, "embedding_dim must be at least 1, got 0"),
        ({"fusion": "concatenate"}, "fusion must be one of None, 'concat', 'add', got 'concatenate'"),
        ({"scaler_compose": "sum"}, "scaler_compose must be one of 'sequential', 'additive', got 'sum'"),
        ({"output_activation": "sigmoid"}, "output_activation must be one of None, 'relu', 'softplus', 'exp', got"),
        ({"quantiles": ()}, "quantiles must hold at least one level"),
        ({"quantiles": (0.9, 0.1)}, "quantiles must be strictly increasing"),
        ({"bounds": (1, 0)}, "bounds must be (low, high) with low < high, got (1.0, 0.0)"),
        ({"bounds": (0, float("inf"))}, "bounds[1] must be finite"),
        ({"unknown_dropout": -0.1}, "unknown_dropout must be finite and >= 0 and < 1, got -0.1"),
        ({"ensemble": 0}, "ensemble must be at least 1, got 0"),
        ({"partial_pooling": -1}, "partial_pooling must be finite and >= 0, got -1.0"),
        ({"columns": ("location", "location")}, "columns must not repeat a column"),
    ],
)
def test_a_value_out_of_range_raises_and_names_the_field(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        HeadConfig(**fields)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"film": ("location",), "columns": COLUMNS},
            "film acts on hidden layers and hidden_dims gives none; give hidden_dims (such as 64,32), or leave film "
            "out",
        ),
        ({"residual": True}, "residual acts on hidden layers and hidden_dims gives none"),
        ({"dropout": 0.1}, "dropout acts on hidden layers and hidden_dims gives none"),
        ({"ensemble": 2}, "ensemble acts on hidden layers and hidden_dims gives none"),
        (
            {"ensemble": 2, "hidden_dims": (4,), "moe": {"num_experts": 2, "route_features": True}},
            "ensemble and moe.num_experts both take the place of the hidden layers: members share them, experts have "
            "their own; keep one of them",
        ),
        (
            {"partial_pooling": 1.0, "columns": COLUMNS, "fusion": "add"},
            "partial_pooling pulls categories to the population, but no part has effects of categories to pull; "
            "give scaler or wide, or leave partial_pooling out",
        ),
        ({"norm": "layer"}, "norm acts on hidden layers and hidden_dims gives none"),
        ({"fusion": "add"}, "fusion joins embeddings to the features and needs columns"),
        (
            {"bounds": (0, 1), "output_activation": "relu"},
            "bounds and output_activation are both the last step of the head; keep one of them",
        ),
        (
            {"unknown_dropout": 0.1, "columns": COLUMNS},
            "unknown_dropout hides categories in training, but no part uses them; "
            "give fusion, film, scaler, wide or moe.routing, or leave unknown_dropout out",
        ),
        (
            {"film": ("seson",), "columns": COLUMNS, "hidden_dims": (4,)},
            "film names the column 'seson', which is not among columns ('location', 'season'); did you mean 'season'?",
        ),
        ({"scaler": ("x",)}, "scaler names the column 'x', which is not among columns (none given)"),
        ({"wide": ("x",), "columns": COLUMNS}, "wide names the column 'x', which is not among columns"),
        (
            {"moe": {"num_experts": 2, "routing": ("x",)}, "columns": COLUMNS},
            "moe.routing names the column 'x', which is not among columns ('location', 'season')",
        ),
    ],
)
def test_options_that_do_not_go_together_raise_and_both_are_named(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        HeadConfig(**fields)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "part",
    [
        {"fusion": "concat"},
        {"film": ("location",), "hidden_dims": (4,)},
        {"scaler": ("location",)},
        {"wide": ("location",)},
        {"moe": {"num_experts": 2, "routing": ("location",)}},
    ],
)
def test_unknown_dropout_goes_with_every_part_that_uses_categories(part: dict[str, object]) -> None:
    assert HeadConfig(columns=COLUMNS, unknown_dropout=0.1, **part).unknown_dropout == 0.1  # type: ignore[arg-type]


def test_scaler_and_learnable_scale_go_together() -> None:
    config = HeadConfig(columns=COLUMNS, scaler=COLUMNS, learnable_scale=True)
    assert config.learnable_scale
    assert config.scaler == COLUMNS


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_experts": 0, "route_features": True}, "num_experts must be at least 1, got 0"),
        ({"num_experts": 2}, "the router sees nothing: give routing columns, or route_features=True"),
        ({"num_experts": 2, "route_features": True, "gate": "topk"}, "gate must be one of 'soft', 'top_k', 'hard'"),
        ({"num_experts": 2, "route_features": True, "temperature": 0}, "temperature must be finite and > 0, got 0.0"),
        (
            {"num_experts": 2, "route_features": True, "load_balancing_weight": -1},
            "load_balancing_weight must be finite and >= 0, got -1.0",
        ),
        (
            {"num_experts": 2, "route_features": True, "mix": "output"},
            "mix must be one of 'outputs', 'parameters', got",
        ),
        (
            {"num_experts": 2, "route_features": True, "mix": "parameters", "gate": "hard"},
            "mix parameters makes one expert of all and needs gate soft, got gate hard; keep one of them, or choose "
            "mix outputs",
        ),
        (
            {"num_experts": 2, "route_features": True, "gate": "top_k", "top_k": 3},
            "top_k must be at most num_experts = 2 with gate top_k, got 3; lower it, or add experts",
        ),
    ],
)
def test_experts_refuse(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        MoEConfig(**fields)  # type: ignore[arg-type]


def test_top_k_only_counts_with_its_gate() -> None:
    assert MoEConfig(num_experts=1, route_features=True).top_k == 2
    assert MoEConfig(num_experts=2, route_features=True, gate="top_k").top_k == 2


def test_pooling_goes_with_either_part_that_has_effects() -> None:
    for part in ("scaler", "wide"):
        assert HeadConfig(columns=COLUMNS, partial_pooling=3, **{part: COLUMNS}).partial_pooling == 3.0  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "fields",
    [
        {"ensemble": 8, "hidden_dims": (4,)},
        {"columns": COLUMNS, "wide": COLUMNS, "partial_pooling": 2.5},
        {"moe": {"num_experts": 2, "route_features": True, "mix": "parameters"}},
    ],
)
def test_members_pooling_and_mix_come_back_from_json(fields: dict[str, object]) -> None:
    config = HeadConfig(**fields)  # type: ignore[arg-type]
    assert HeadConfig.from_json(config.to_json()) == config
    assert config != HeadConfig(**{k: v for k, v in fields.items() if k in ("hidden_dims", "columns", "wide")})  # type: ignore[arg-type]


def test_one_member_is_no_ensemble_and_goes_with_everything() -> None:
    config = HeadConfig(ensemble=1, moe={"num_experts": 2, "route_features": True})  # type: ignore[arg-type]
    assert config == dataclasses.replace(config, ensemble=1)
    assert HeadConfig(ensemble=1) == HeadConfig()


def test_a_mapping_is_read_as_a_mixture_of_experts() -> None:
    moe = HeadConfig(moe={"num_experts": 2, "route_features": True}).moe  # type: ignore[arg-type]
    assert moe == MoEConfig(num_experts=2, route_features=True)


def test_an_unknown_key_raises_with_what_was_meant() -> None:
    with pytest.raises(ValueError, match=re.escape("HeadConfig has no field 'hiden_dims'; did you mean 'hidden_dims'")):
        HeadConfig.from_dict({"hiden_dims": [4]})
    with pytest.raises(ValueError, match=re.escape("MoEConfig has no field 'experts'")):
        HeadConfig.from_dict({"moe": {"experts": 4}})


def test_a_missing_field_and_a_wrong_kind_of_data_raise() -> None:
    with pytest.raises(ValueError, match="MoEConfig needs the field 'num_experts'"):
        MoEConfig.from_dict({"route_features": True})
    with pytest.raises(TypeError, match=re.escape("HeadConfig must be a mapping from field to value, got [1]")):
        HeadConfig.from_json("[1]")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"dropout": 0.1,\n "norm": }', "HeadConfig is not valid JSON at line 2, column 10: Expecting value"),
        ("", "HeadConfig is not valid JSON at line 1, column 1: Expecting value"),
        ('{"dropout": NaN}', "HeadConfig is not valid JSON: NaN is not a number in JSON"),
        ('{"dropout": 0.1, "dropout": 0.2}', "the key 'dropout' appears twice in one object"),
        ("[" * 100_000, "HeadConfig is not valid JSON"),
    ],
)
def test_malformed_json_raises_with_its_position(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        HeadConfig.from_json(text)


def test_json_holds_every_field_and_reads_well() -> None:
    text = HeadConfig(hidden_dims=(4,)).to_json(indent=2)
    assert '\n  "hidden_dims": [\n    4\n  ],\n' in text
    assert list(HeadConfig().to_dict()) == [field.name for field in dataclasses.fields(HeadConfig)]
