"""Configurations from data that nobody checked."""

import argparse
import dataclasses
import json
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given

from fuzz._oracle import CORPUS, JSON, TEXTS, examples, mutated, tried
from reghead.config import (
    FLAGS,
    HeadConfig,
    LossConfig,
    MoEConfig,
    NormalizerConfig,
    RegressionConfig,
    add_arguments,
    config_from_args,
)
from reghead.config._base import Config
from reghead.config._loss import PARAMETERS
from reghead.losses import make_loss

KINDS: tuple[type[Config], ...] = (HeadConfig, LossConfig, NormalizerConfig, RegressionConfig, MoEConfig)
COLUMNS = st.sampled_from(["lake", "season", "é", "e\u0301", ""])
WORDS = st.sampled_from(
    [
        *PARAMETERS,
        *(
            "concat",
            "add",
            "relu",
            "exp",
            "softplus",
            "sigmoid",
            "mixed_effects",
            "moments",
            "empirical_bayes",
            "global",
        ),
        *(
            "additive",
            "logit",
            "log1p",
            "clamp",
            "hard",
            "top_k",
            "soft",
            "outputs",
            "parameters",
            "layer",
            "none",
            "Relu",
        ),
    ]
)
LEVELS = st.lists(st.floats(-0.1, 1.1), max_size=4) | st.just([0.1, 0.5, 0.9])
ENTRY = st.one_of(
    WORDS,
    st.dictionaries(
        st.sampled_from(["type", "delta", "weight", "quantiles", "base", "__class__", "module"]), JSON | WORDS
    ),
)
VALUES = st.one_of(
    JSON,
    WORDS,
    LEVELS,
    st.lists(COLUMNS, max_size=3),
    st.lists(st.integers(-1, 9), max_size=3),
    st.dictionaries(COLUMNS, st.integers(-1, 5) | JSON, max_size=3),
    st.dictionaries(COLUMNS, ENTRY, max_size=3),
)
VALID = RegressionConfig(
    head=HeadConfig(
        in_features=3,
        hidden_dims=(4,),
        cardinalities={"lake": 3, "season": 5},
        film=("lake",),
        scaler=("season",),
        moe=MoEConfig(num_experts=2, routing=("lake",)),
        quantiles=(0.1, 0.9),
    ),
    loss=LossConfig(type="quantile", quantiles=(0.1, 0.9), per_output={"pH": {"type": "quantile", "weight": 2.0}}),
    normalizer=NormalizerConfig(by=("lake",), shrinkage="empirical_bayes"),
)


def fields_of(kind: type[Config]) -> st.SearchStrategy[dict[Any, Any]]:
    names = st.sampled_from([field.name for field in dataclasses.fields(kind)])
    nested = {"head": HeadConfig, "loss": LossConfig, "normalizer": NormalizerConfig, "moe": MoEConfig}

    def filled(keys: list[str]) -> st.SearchStrategy[dict[Any, Any]]:
        parts: dict[Any, Any] = {key: fields_of(nested[key]) | VALUES if key in nested else VALUES for key in keys}
        return st.fixed_dictionaries(parts)

    known = st.lists(names, unique=True, max_size=4).flatmap(filled)
    return known | st.dictionaries(names | TEXTS | st.none() | st.integers(), VALUES, max_size=4)


def whole(config: Config) -> None:
    """What was accepted is plain data, and comes back from it."""
    text = config.to_json()
    json.loads(text)
    assert type(config).from_json(text) == config
    hash(text)
    repr(config)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
@examples(30)
@given(data=st.data())
def test_a_mapping(kind: type[Config], data: st.DataObject) -> None:
    value = data.draw(fields_of(kind) | JSON)
    config = tried(lambda: kind.from_dict(value))  # type: ignore[arg-type]
    if config is not None:
        whole(config)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
@examples(20)
@given(data=st.data())
def test_a_text(kind: type[Config], data: st.DataObject) -> None:
    valid = kind().to_json() if kind in (HeadConfig, LossConfig, NormalizerConfig) else VALID.to_json()
    changed = mutated(valid.encode()).map(lambda content: content.decode(errors="surrogateescape"))
    text = data.draw(st.text() | changed | JSON.filter(_printable).map(json.dumps))
    config = tried(lambda: kind.from_json(text))
    if config is not None:
        whole(config)


def _printable(value: object) -> bool:
    try:
        json.dumps(value)
    except ValueError:
        return False
    return True


@examples(30)
@given(
    losses=st.dictionaries(COLUMNS | TEXTS, ENTRY | JSON, max_size=4),
    outputs=st.lists(COLUMNS, unique=True, max_size=3),
)
def test_a_loss_for_each_output(losses: dict[str, Any], outputs: list[str]) -> None:
    """A loss that is accepted can be built, and is one of the library's."""
    config = tried(lambda: LossConfig(per_output=losses, outputs=tuple(outputs)))
    if config is None:
        return
    whole(config)
    loss = tried(lambda: make_loss(config.spec))
    if loss is not None:
        assert type(loss).__module__.startswith("reghead.losses")


@examples(30)
@given(spec=JSON | WORDS | st.dictionaries(st.sampled_from(["type", "losses", "default", "outputs", "delta"]), VALUES))
def test_a_loss_spec(spec: Any) -> None:
    loss = tried(lambda: make_loss(spec))
    if loss is not None:
        assert type(loss).__module__.startswith("reghead.losses")


TYPED = st.one_of(
    *(COLUMNS, WORDS, TEXTS, st.integers(-2, 9).map(str), st.floats().map(str)),
    st.lists(st.integers(-1, 9).map(str), max_size=3).map(",".join),
    st.lists(COLUMNS, max_size=3).map(",".join),
    LEVELS.map(lambda levels: ",".join(map(str, levels))),
    st.just("9" * 5000),
    st.dictionaries(COLUMNS, ENTRY).filter(_printable).map(json.dumps),
)


@examples(40)
@given(
    given_=st.dictionaries(st.sampled_from([flag.dest for flag in FLAGS]), TYPED | VALUES, max_size=5),
    outputs=st.lists(COLUMNS, unique=True, max_size=2),
)
def test_flags_as_data(given_: dict[str, Any], outputs: list[str]) -> None:
    config = tried(lambda: config_from_args(given_, outputs=outputs))
    if config is not None:
        whole(config)
        whole(config.on_target_scale())


class Parser(argparse.ArgumentParser):
    def error(self, message: str) -> Any:
        raise argparse.ArgumentError(None, message)


@examples(30)
@given(words=st.lists(st.tuples(st.sampled_from([flag.name for flag in FLAGS]), TYPED), max_size=5))
def test_flags_as_text(words: list[tuple[str, str]]) -> None:
    parser = Parser(exit_on_error=False)
    add_arguments(parser)
    try:
        args, _ = parser.parse_known_args([word for pair in words for word in pair])
    except argparse.ArgumentError:
        return
    config = tried(lambda: config_from_args(args))
    if config is not None:
        whole(config)


@pytest.mark.parametrize("file", sorted((CORPUS / "config").glob("*.json")), ids=lambda file: file.stem)
def test_what_once_failed(file: Any) -> None:
    for kind in KINDS:
        tried(lambda kind=kind: kind.from_json(file.read_text(encoding="utf-8", errors="surrogateescape")))  # type: ignore[misc]
