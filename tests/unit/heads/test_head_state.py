"""What a head keeps in its ``state_dict``, and what it refuses to load."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from reghead._persistence import decode_json, encode_json
from reghead.categories import CategoryEncoder
from reghead.config import HeadConfig
from reghead.heads import RegressionHead

SIZES = {"location": 4, "season": 3}
TABLE = {"location": ["a", "b", "c", "a"], "season": [1, 2, 1, None]}


def encoder() -> CategoryEncoder:
    return CategoryEncoder(["location", "season"]).fit(TABLE)


def test_encoder_travels_in_the_state_dict() -> None:
    head = RegressionHead(3, 2, encoder=encoder(), scaler=["location"])
    rebuilt = RegressionHead.from_state_dict(head.state_dict())
    assert head.config.cardinalities == {"location": 4, "season": 3}
    assert rebuilt.encoder is not None
    assert rebuilt.encoder.to_dict() == encoder().to_dict()
    x = torch.ones(4, 3)
    assert torch.equal(rebuilt(x, rebuilt.encoder.transform(TABLE)), head(x, encoder().transform(TABLE)))


def test_encoder_and_cardinalities_must_agree() -> None:
    with pytest.raises(ValueError, match="cardinalities must be those of the encoder"):
        RegressionHead(3, 2, encoder=encoder(), cardinalities={"location": 9, "season": 3})


def test_columns_of_a_config_stay_when_an_encoder_knows_more() -> None:
    config = HeadConfig(in_features=3, columns=("location",), fusion="concat", embedding_dim=2)
    head = RegressionHead.from_config(config, encoder=encoder())
    assert head.config.columns == ("location",)
    assert head(torch.ones(1, 3), {"location": torch.tensor([1])}).shape == (1, 1)
    assert RegressionHead.from_state_dict(head.state_dict()).config == head.config


def test_head_is_rebuilt_out_of_a_larger_model() -> None:
    model = nn.Sequential(nn.Linear(3, 3), RegressionHead(3, 2, (4,), cardinalities=SIZES, film=["season"]))
    head = RegressionHead.from_state_dict(model.state_dict(), prefix="1.")
    x, ids = torch.ones(2, 3), {"season": torch.tensor([1, 2])}
    assert torch.equal(head(x, ids), model[1](x, ids))
    with pytest.raises(ValueError, match=r"no key '_extra_state', .*pass prefix= if the module is part of a model"):
        RegressionHead.from_state_dict(model.state_dict())


def test_state_of_another_configuration_names_the_difference_and_overwrites_nothing() -> None:
    head = RegressionHead(3, 2, bounds=(0.0, 1.0))
    other = RegressionHead(3, 2, output_activation="relu")
    before = head.weight.detach().clone()
    with pytest.raises(ValueError, match=r"bounds is None there and \[0.0, 1.0\] here.*from_state_dict"):
        head.load_state_dict(other.state_dict())
    assert torch.equal(head.weight, before)


def test_state_with_another_encoder_is_refused() -> None:
    one = RegressionHead(3, 2, encoder=encoder(), scaler=["location"])
    swapped = CategoryEncoder(["location", "season"]).fit({"location": ["x", "y", "z"], "season": [1, 2, 1]})
    with pytest.raises(ValueError, match="written by another RegressionHead"):
        RegressionHead(3, 2, encoder=swapped, scaler=["location"]).load_state_dict(one.state_dict())


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (torch.zeros(3), "extra state must be JSON in a one-dimensional uint8 tensor, got a tensor of torch.float32"),
        (torch.zeros(0, dtype=torch.uint8), "the bytes do not parse"),
        (torch.tensor([123, 34], dtype=torch.uint8), "the bytes do not parse"),
        (encode_json([1]), "must describe a RegressionHead in a JSON object, got list"),
        (encode_json({}), "the state_dict has format None"),
        (
            encode_json({"format": 99, "type": "RegressionHead"}),
            "has format 99, this version of reghead reads format 1",
        ),
        (
            encode_json({"format": 1, "type": "CategoryNormalizer"}),
            "describes a CategoryNormalizer, not a RegressionHead",
        ),
        (encode_json({"format": 1, "type": "RegressionHead"}), "config"),
        (encode_json({"format": 1, "type": "RegressionHead", "config": {"inn": 3}}), "inn"),
    ],
)
def test_malformed_extra_state(extra: Any, message: str) -> None:
    head = RegressionHead(3, 2)
    state = {**head.state_dict(), "_extra_state": extra}
    with pytest.raises(ValueError, match=message):
        RegressionHead.from_state_dict(state)
    with pytest.raises(ValueError, match=r"config|extra state|format|describes"):
        head.load_state_dict(state)


@pytest.mark.parametrize(
    "options",
    [
        {"hidden_dims": (4,)},
        {"learnable_scale": True},
        {"cardinalities": SIZES, "scaler": ["location"]},
        {"cardinalities": SIZES, "fusion": "add"},
        {"quantiles": (0.1, 0.9)},
    ],
    ids=str,
)
def test_missing_extra_state_is_an_error_unless_the_head_is_one_linear_layer(options: dict[str, Any]) -> None:
    head = RegressionHead(3, 2, **options)
    state = {key: value for key, value in head.state_dict().items() if key != "_extra_state"}
    with pytest.raises(RuntimeError, match=r"Missing key.*_extra_state"):
        head.load_state_dict(state)


def test_missing_and_unexpected_parameters_are_strict_errors() -> None:
    head = RegressionHead(3, 2)
    state = dict(head.state_dict())
    with pytest.raises(RuntimeError, match=r"Unexpected key.*other"):
        head.load_state_dict({**state, "other": torch.zeros(1)})
    del state["weight"]
    with pytest.raises(RuntimeError, match=r'Missing key.*"weight"'):
        head.load_state_dict(state)


def test_observed_counts_are_kept(tmp_path: Path) -> None:
    pytest.importorskip("safetensors")
    head = RegressionHead(3, 2, cardinalities=SIZES, wide=["location"])
    head.observe({"location": torch.tensor([1, 1, 3])})
    head.save(tmp_path / "head.safetensors")
    loaded = RegressionHead.load(tmp_path / "head.safetensors")
    assert loaded.wide.counts_location.tolist() == [0, 2, 0, 1]
    assert decode_json(loaded.get_extra_state())["config"]["wide"] == ["location"]


def test_refitting_the_callers_encoder_changes_no_head() -> None:
    """A head that shared the encoder would read one category's row for another."""
    encoder = CategoryEncoder(["site"]).fit({"site": ["x", "y"]})
    head = RegressionHead(2, 1, encoder=encoder, scaler=["site"])
    encoder.fit({"site": ["w", "x", "z"]})
    assert head.encoder is not None
    assert head.encoder.cardinalities == {"site": 3}
    assert head.encoder.transform({"site": ["x"]})["site"].item() == 1
    assert RegressionHead.from_state_dict(head.state_dict()).encoder.to_dict() == head.encoder.to_dict()


def test_an_encoder_of_another_kind_is_refused() -> None:
    with pytest.raises(TypeError, match="encoder must be a fitted CategoryEncoder, got list"):
        RegressionHead(2, 1, encoder=["site"])


def test_observing_is_all_or_nothing() -> None:
    head = RegressionHead(2, 1, (3,), cardinalities={"site": 3, "season": 2}, film=["site"], scaler=["season"])
    before = {name: buffer.clone() for name, buffer in head.named_buffers()}
    with pytest.raises(ValueError, match="needs the column 'season'"):
        head.observe({"site": torch.tensor([1, 1])})
    assert all(torch.equal(buffer, before[name]) for name, buffer in head.named_buffers())


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"hidden_dims": (4,), "residual": True},
        {"hidden_dims": (4,), "ensemble": 3},
        {"moe": {"num_experts": 2, "route_features": True}, "hidden_dims": (4,)},
    ],
    ids=["linear", "residual", "ensemble", "experts"],
)
def test_an_output_of_zero_is_where_a_correction_starts(options: dict[str, Any]) -> None:
    x = torch.linspace(-2, 2, 12).reshape(4, 3)
    assert torch.equal(RegressionHead(3, 2, **options).zero_output()(x), torch.zeros(4, 2))
    quantiles = RegressionHead(3, 1, quantiles=(0.1, 0.5, 0.9), **options).zero_output()(x)
    expected = torch.tensor([-1.2816, 0.0, 1.2816]).expand(4, 1, 3)  # those of the standard normal distribution
    torch.testing.assert_close(quantiles, expected, atol=1e-4, rtol=0)
