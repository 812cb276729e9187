"""Any valid configuration comes back from plain data and from JSON exactly, and survives copies."""

import json
import pickle
from typing import Any

from hypothesis import assume, given
from hypothesis import strategies as st

from reghead.config import HeadConfig, LossConfig, MoEConfig, NormalizerConfig, RegressionConfig
from reghead.losses import make_loss

NAMES = st.text(min_size=1, max_size=6)
FRACTIONS = st.floats(0.0, 1.0, exclude_min=True, exclude_max=True)
POSITIVE = st.floats(1e-300, 1e300)
LEVELS = st.lists(FRACTIONS, min_size=1, max_size=5, unique=True).map(sorted)
BOUNDS = st.lists(st.floats(-1e300, 1e300), min_size=2, max_size=2, unique=True).map(sorted)


def some(columns: list[str]) -> st.SearchStrategy[list[str]]:
    return st.lists(st.sampled_from(columns), unique=True) if columns else st.just([])


@st.composite
def experts(draw: st.DrawFn, columns: list[str]) -> MoEConfig:
    count = draw(st.integers(1, 8))
    routing = draw(some(columns))
    return MoEConfig(
        num_experts=count,
        routing=routing,
        route_features=not routing or draw(st.booleans()),
        gate=draw(st.sampled_from(["soft", "top_k", "hard"])),
        top_k=draw(st.integers(1, count)),
        temperature=draw(POSITIVE),
        load_balancing_weight=draw(st.just(0.0) | POSITIVE),
    )


@st.composite
def heads(draw: st.DrawFn) -> HeadConfig:
    columns = draw(st.lists(NAMES, unique=True, max_size=4))
    hidden = draw(st.lists(st.integers(1, 512), max_size=3))
    fields: dict[str, Any] = {
        "in_features": draw(st.none() | st.integers(1, 1000)),
        "out_features": draw(st.integers(1, 5)),
        "hidden_dims": hidden,
        "activation": draw(st.sampled_from(["relu", "gelu", "silu", "tanh", "elu", "leaky_relu"])),
        "columns": columns,
        "cardinalities": draw(st.none() | st.fixed_dictionaries({c: st.integers(1, 99) for c in columns})),
        "embedding_dim": draw(st.integers(1, 64)),
        "fusion": draw(st.sampled_from([None, "concat", "add"])) if columns else None,
        "moe": draw(st.none() | experts(columns)),
        "scaler": draw(some(columns)),
        "scaler_compose": draw(st.sampled_from(["sequential", "additive"])),
        "wide": draw(some(columns)),
        "quantiles": draw(st.none() | LEVELS),
        "non_crossing": draw(st.booleans()),
        "learnable_scale": draw(st.booleans()),
    }
    if hidden:
        fields["dropout"] = draw(st.just(0.0) | FRACTIONS)
        fields["norm"] = draw(st.sampled_from([None, "layer", "rms"]))
        fields["residual"] = draw(st.booleans())
        fields["film"] = draw(some(columns))
    if draw(st.booleans()):
        fields["output_activation"] = draw(st.sampled_from([None, "relu", "softplus", "exp"]))
    else:
        fields["bounds"] = draw(st.none() | BOUNDS)
    if fields["fusion"] or fields["scaler"] or fields["wide"]:
        fields["unknown_dropout"] = draw(st.just(0.0) | FRACTIONS)
    return HeadConfig(**fields)


def parameters(kind: str) -> st.SearchStrategy[dict[str, Any]]:
    optional: dict[str, st.SearchStrategy[Any]] = {
        "mse": st.fixed_dictionaries({}),
        "mae": st.fixed_dictionaries({}),
        "log_cosh": st.fixed_dictionaries({}),
        "huber": st.fixed_dictionaries({}, optional={"delta": POSITIVE}),
        "quantile": st.fixed_dictionaries({}, optional={"quantiles": LEVELS}),
        "huber_quantile": st.fixed_dictionaries({}, optional={"quantiles": LEVELS, "delta": POSITIVE}),
        "expectile": st.fixed_dictionaries({}, optional={"expectile": FRACTIONS}),
        "asymmetric": st.fixed_dictionaries(
            {},
            optional={
                "over_penalty": POSITIVE,
                "under_penalty": POSITIVE,
                "base": st.sampled_from(["mse", "mae", "huber"]),
            },
        ),
    }
    return optional[kind].map(lambda values: {"type": kind, **values})


SPECS = st.sampled_from(["mse", "mae", "huber", "quantile", "asymmetric", "expectile", "log_cosh", "huber_quantile"])
SPECS = SPECS.flatmap(parameters)


@st.composite
def losses(draw: st.DrawFn) -> LossConfig:
    outputs = draw(st.lists(NAMES, unique=True, max_size=4))
    names = st.sampled_from(outputs) if outputs else NAMES | st.integers(0, 9)
    weighted = st.tuples(SPECS, st.none() | POSITIVE).map(
        lambda pair: pair[0] | ({} if pair[1] is None else {"weight": pair[1]})
    )
    entries = draw(st.dictionaries(names, weighted, max_size=3))
    if not outputs:
        entries = {str(name): entry for name, entry in entries.items()}
    return LossConfig(**draw(SPECS), per_output=entries or None, outputs=outputs)


@st.composite
def regressions(draw: st.DrawFn) -> RegressionConfig:
    loss, head = draw(losses()), draw(heads()).to_dict()
    head |= {"quantiles": loss.levels, "out_features": len(loss.outputs) or head["out_features"]}
    by = draw(some(head["columns"]))
    free = head["bounds"] is None and head["output_activation"] is None
    transform = (
        draw(st.sampled_from(["identity", "log", "log1p", "logit", "softplus", "clamp"])) if free else "identity"
    )
    normalizer = NormalizerConfig(
        by=by,
        shrinkage=draw(st.sampled_from(["none", "empirical_bayes"])) if by else "none",
        fallback=draw(st.sampled_from(["global", "additive"])) if by else "global",
        transform=transform,
        bounds=draw(st.none() | BOUNDS) if transform == "logit" else None,
    )
    return RegressionConfig(
        head=HeadConfig.from_dict(head), loss=loss, normalizer=normalizer if draw(st.booleans()) else None
    )


@given(config=heads() | losses() | regressions())
def test_plain_data_and_json_give_the_configuration_back(
    config: HeadConfig | LossConfig | RegressionConfig,
) -> None:
    kind, data = type(config), config.to_dict()
    assert kind.from_dict(data) == config
    assert kind.from_json(config.to_json()) == config
    assert kind.from_dict(data).to_dict() == data == json.loads(config.to_json())
    assert pickle.loads(pickle.dumps(config)) == config


@given(config=regressions())
def test_the_target_scale_is_reached_in_one_step_and_is_valid_data(config: RegressionConfig) -> None:
    moved = config.on_target_scale()
    assert moved.on_target_scale() == moved
    assert RegressionConfig.from_json(moved.to_json()) == moved
    if config.normalizer is not None:
        assert moved.head.bounds is None
        assert moved.head.output_activation is None
    else:
        assert moved == config


@given(config=losses())
def test_the_spec_of_a_loss_is_json_and_holds_every_level(config: LossConfig) -> None:
    assert json.loads(json.dumps(config.spec)) == config.spec
    if config.levels is not None:
        assert list(config.levels) == sorted(set(config.levels))


@given(config=losses())
def test_the_spec_of_a_loss_builds_it_with_the_same_levels(config: LossConfig) -> None:
    assume(config.outputs or config.per_output is None)
    assert getattr(make_loss(config.spec), "quantiles", None) == config.levels
