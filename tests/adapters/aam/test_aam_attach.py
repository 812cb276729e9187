"""attach and detach: predictions, categories, what is refused, and what AAM's own code sees afterwards."""

import copy
import inspect
import io
import pickle
import threading
from typing import Any

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from adapters._hosts import (
    CARDINALITIES,
    EVERYTHING,
    HOSTS,
    Host,
    host_named,
    ids,
    predict,
    shaken,
    tokens,
    with_categories,
)
from reghead import RedundantOptionWarning, RegheadWarning, RegressionHead
from reghead.adapters.aam import TargetHead, attach, detach
from reghead.categories import CategoryEncoder
from reghead.config import HeadConfig

pytestmark = pytest.mark.filterwarnings("ignore:scaler and learnable_scale:reghead.RedundantOptionWarning")

LINEAR: dict[str, Any] = {}
MLP = {"regressor_hidden_dims": [8, 4]}
RESIDUAL = {**MLP, "residual_regression_head": True}
SCALED = {"conditional_scaling_columns": ["season", "location"], "learnable_output_scale": True}


@pytest.fixture(params=HOSTS)
def host(request: pytest.FixtureRequest) -> Host:
    return host_named(request.param)


@pytest.mark.parametrize("shape", [{}, {"bounded_targets": True}, {"output_activation": "softplus"}])
@pytest.mark.parametrize("scaled", [{}, SCALED])
@pytest.mark.parametrize(
    ("own", "asked"),
    [(LINEAR, {}), (MLP, {"hidden_dims": (8, 4)}), (RESIDUAL, {"hidden_dims": (8, 4), "residual": True})],
)
def test_kept_weights_keep_predictions(host: Host, own: Any, asked: Any, scaled: Any, shape: Any) -> None:
    model = with_categories(host, out_dim=2, **own, **scaled, **shape)
    with shaken(model), torch.no_grad():
        for table in (model.output_scales or {}), (model.output_biases or {}):
            for column in table:
                table[column].weight[0] = 1.0 if table is model.output_scales else 0.0
    before = [predict(model, given) for given in (ids(), None, {"season": ids()["season"]})]
    film = {"film": ("location",)} if asked else {}
    attach(model, {**asked, **film}, keep_weights=True)
    after = [predict(model, given) for given in (ids(), None, {"season": ids()["season"]})]
    for old, new in zip(before, after, strict=True):
        assert_close(new, old, atol=1e-6, rtol=1e-6)


def test_kept_weights_of_free_quantiles_keep_predictions(host: Host) -> None:
    model = with_categories(host, num_quantiles=3, out_dim=2)
    before = predict(model, ids())
    attach(model, {"quantiles": (0.1, 0.5, 0.9), "non_crossing": False}, keep_weights=True)
    assert_close(predict(model, ids()), before.sort(-1).values)


def test_a_decayed_unknown_row_is_left_behind_with_a_warning(host: Host) -> None:
    model = with_categories(host, conditional_scaling_columns=["location"])
    with torch.no_grad():
        model.output_scales["location"].weight[0] = 0.8
    with pytest.warns(RegheadWarning, match="scales rows of an unknown location, which weight decay has moved"):
        attach(model, {}, keep_weights=True)


def test_the_plain_head_is_a_linear_with_its_names_and_all_other_names_stay(host: Host) -> None:
    model = with_categories(host)
    before = {name for name in model.state_dict() if not name.startswith("target_head.")}
    attach(model, HeadConfig())
    state = model.state_dict()
    assert {name for name in state if not name.startswith("target_head.")} == before
    assert {name for name in state if name.startswith("target_head.")} == {
        "target_head.weight",
        "target_head.bias",
        "target_head._extra_state",
    }


def test_signature_output_and_kind_stay(host: Host) -> None:
    plain, model = with_categories(host), with_categories(host)
    attach(model, EVERYTHING)
    assert inspect.signature(model.forward) == inspect.signature(plain.forward) or (
        list(inspect.signature(model.forward).parameters) == list(inspect.signature(plain.forward).parameters)
    )
    assert isinstance(model, host.SequencePredictor)
    assert model.eval()(tokens(), categorical_ids=ids()).keys() == plain.eval()(tokens(), categorical_ids=ids()).keys()
    by_place = model(tokens(), None, ids())["target_prediction"]
    assert_close(by_place, predict(model, ids()))
    assert "base_embeddings" in model(tokens(), return_sample_embeddings=True)


@pytest.mark.parametrize("fusion", ["concat", "add"])
def test_the_head_sees_the_pooled_embedding_and_the_categories(host: Host, fusion: str) -> None:
    model = with_categories(host, categorical_fusion=fusion)
    asked = {"hidden_dims": (8,), "film": ("location",), "scaler": ("season",), "bounds": (0.0, 1.0)}
    attach(model, {**asked, "quantiles": (0.1, 0.9)})
    with shaken(model.target_head):
        pooled: list[torch.Tensor] = []
        model.target_head.register_forward_pre_hook(lambda _, inputs: pooled.append(inputs[0]))
        out = predict(model, ids())
    apart = RegressionHead.from_config(model.target_head.config).eval()
    ours = {"categorical_embedder": "embedding", "output_scales": "scaler"}
    for name, parameter in model.target_head.named_parameters():
        part, _, rest = name.partition(".")
        apart.get_parameter(f"{ours.get(part, part)}.{rest}").data.copy_(parameter)
    assert_close(out, apart(pooled[0], ids()).detach())
    assert out.shape == (5, 1, 2)
    assert ((out > 0) & (out < 1)).all()
    assert not torch.allclose(out, predict(model))


def test_what_scales_and_bounds_points_acts_on_quantiles(host: Host) -> None:
    model = with_categories(host, num_quantiles=2, bounded_targets=True, **SCALED)
    attach(model, {"quantiles": (0.25, 0.75)})
    out = model(tokens(), categorical_ids=ids())["target_prediction"]
    assert ((out > 0) & (out < 1)).all()
    out.square().sum().backward()
    for part in ("output_scales", "learnable_scale"):
        for name, parameter in getattr(model.target_head, part).named_parameters():
            assert parameter.grad is not None, name
            assert parameter.grad.abs().sum() > 0, name


def test_missing_and_impossible_categories_are_unknown(host: Host) -> None:
    model = attach(host.predictor(), {**EVERYTHING, "moe": None, "cardinalities": CARDINALITIES})
    with shaken(model):
        unknown = predict(model, {column: torch.zeros(5, dtype=torch.int64) for column in CARDINALITIES})
    for given in (
        None,
        {},
        {"other": torch.ones(5, dtype=torch.int64)},
        {"location": torch.full((5,), 4), "season": torch.full((5,), -1)},
    ):
        assert_close(predict(model, given), unknown)
    known = predict(model, {"location": torch.ones(5, dtype=torch.int64)})
    assert not torch.allclose(known, unknown)


def test_an_unknown_category_is_the_population_whatever_was_learned(host: Host) -> None:
    model = attach(host.predictor(), {"hidden_dims": (8,), "film": ("location",), "cardinalities": CARDINALITIES})
    plain = attach(host.predictor(), {"hidden_dims": (8,)})
    with shaken(model.target_head):
        for name, parameter in plain.target_head.named_parameters():
            parameter.data.copy_(model.target_head.get_parameter(name))
    assert_close(predict(model), predict(plain))


def test_categories_do_not_outlive_the_call(host: Host) -> None:
    model = attach(with_categories(host), EVERYTHING)
    alone = predict(model)
    predict(model, ids())
    assert_close(predict(model), alone)
    assert model.target_head._ids is None
    with pytest.raises((TypeError, ValueError, RuntimeError, IndexError, AttributeError)):
        model("no tokens", categorical_ids=ids())
    assert model.target_head._ids is None
    model.train()(tokens(), categorical_ids=ids())
    assert model.target_head._extras == {}


def test_every_head_parameter_has_a_gradient_with_and_without_categories(host: Host) -> None:
    model = attach(with_categories(host), EVERYTHING)
    for given in (ids(), None):
        model.zero_grad()
        outputs = model.train()(tokens(), categorical_ids=given)
        (outputs["target_prediction"].sum() + outputs["head_load_balancing"].sum()).backward()
        assert [n for n, p in model.target_head.named_parameters() if p.grad is None] == []


def test_detach_gives_the_model_back(host: Host) -> None:
    model = with_categories(host, **MLP, **SCALED, bounded_targets=True)
    before, names, kind = predict(model, ids()), list(model.state_dict()), type(model)
    attach(model, EVERYTHING)
    model.train()
    detach(model)
    assert type(model) is kind
    assert model.target_head.training
    assert list(model.state_dict()) == names
    assert torch.equal(predict(model, ids()), before)
    plain = host.predictor()
    attach(plain, {"scaler": ("location",), "cardinalities": CARDINALITIES})
    assert plain.categorical_embedder is not None
    assert detach(plain).categorical_embedder is None
    assert plain.categorical_fusion == "concat"
    with pytest.raises(TypeError, match="model must be one that attach returned, got SequencePredictor"):
        detach(plain)


def test_detach_follows_the_model_to_another_dtype(host: Host) -> None:
    model = attach(with_categories(host, learnable_output_scale=True), {}).double()
    detach(model)
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float64}


def test_the_head_has_the_dtype_of_the_one_it_replaces(host: Host) -> None:
    model = host.predictor()
    model.base_model.double()
    assert attach(model, {}).target_head.weight.dtype == torch.float32


def test_a_built_head_keeps_its_weights_and_labels(host: Host) -> None:
    encoder = CategoryEncoder(["location"]).fit({"location": ["A", "B", "C"]})
    head = RegressionHead(16, 1, (8,), film=["location"], scaler=["location"], encoder=encoder)
    with shaken(head):
        model = attach(host.predictor(), head)
    pooled: list[torch.Tensor] = []
    model.target_head.register_forward_pre_hook(lambda _, inputs: pooled.append(inputs[0]))
    out = predict(model, ids())
    assert_close(out, head.eval()(pooled[0], ids()).detach())
    assert model.target_head.encoder.to_dict() == encoder.to_dict()
    other = CategoryEncoder(["location"]).fit({"location": ["X", "Y", "Z"]})
    with pytest.raises(ValueError, match="has labels of its own, which encoder= contradicts; leave it out"):
        attach(host.predictor(), head, encoder=other)


def test_copies_and_pickles_are_whole(host: Host) -> None:
    model = attach(with_categories(host), EVERYTHING)
    with shaken(model.target_head):
        expected = predict(model, ids())
    whole = io.BytesIO()
    torch.save(model, whole)
    whole.seek(0)
    for again in (
        copy.deepcopy(model),
        pickle.loads(pickle.dumps(model)),
        torch.load(whole, weights_only=False),
    ):
        assert type(again) is type(model)
        assert_close(predict(again, ids()), expected)
        assert type(detach(again)) is host.SequencePredictor
    assert_close(predict(model, ids()), expected)


def test_replicas_in_threads_have_categories_of_their_own(host: Host) -> None:
    model = attach(with_categories(host), {"scaler": ("location",)}).eval()
    with shaken(model.target_head):
        expected = [predict(model, {"location": torch.full((5,), place)}) for place in range(4)]
    replicas = []
    for _ in range(4):
        replica = model._replicate_for_data_parallel()
        replica.target_head = model.target_head._replicate_for_data_parallel()
        replica.target_head.output_scales = copy.copy(model.target_head.output_scales)
        for name, parameter in model.target_head.named_parameters(recurse=False):
            setattr(replica.target_head, name, parameter)
        replicas.append(replica)
    got: dict[int, Any] = {}

    def work(place: int) -> None:
        for _ in range(20):
            got[place] = predict(replicas[place], {"location": torch.full((5,), place)})

    threads = [threading.Thread(target=work, args=(place,)) for place in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for place in range(4):
        assert_close(got[place], expected[place])


def test_linear_maps_start_as_in_aam_and_categories_at_the_identity(host: Host) -> None:
    model = attach(with_categories(host), {"hidden_dims": (64,), "residual": True, "film": ("location",)})
    head = model.target_head
    linears = [module for module in head.modules() if isinstance(module, nn.Linear)]
    assert len(linears) == 3
    for linear in linears:
        bound = (6.0 / (linear.in_features + linear.out_features)) ** 0.5
        assert not linear.bias.any()
        assert 0.6 * bound < linear.weight.abs().max() <= bound
    experts = attach(host.predictor(), {"hidden_dims": (64,), "moe": {"num_experts": 3, "route_features": True}})
    weight = experts.target_head.trunk.weights[0]
    bound = (6.0 / (16 + 64)) ** 0.5
    assert (weight.abs().amax(dim=(1, 2)) > 0.9 * bound).all()
    assert (weight.abs() <= bound).all()
    assert not experts.target_head.trunk.biases[0].any()
    plain = attach(host.predictor(), {"out_features": 1})
    assert not plain.target_head.bias.any()
    members = attach(host.predictor(), {"hidden_dims": (8,), "ensemble": 2})
    assert not members.target_head.trunk.output.bias.any()
    predict(members)


def test_quantiles_start_with_the_gaps_of_the_normal(host: Host) -> None:
    model = attach(host.predictor(), {"quantiles": (0.1, 0.5, 0.9)})
    gaps = predict(model).diff(dim=-1)
    assert_close(gaps, torch.full_like(gaps, 1.2815515655446004))


def test_the_identity_survives_when_aam_initialises_again(host: Host) -> None:
    asked = {"hidden_dims": (8,), "film": ("location",), "scaler": ("location",), "cardinalities": CARDINALITIES}
    model = attach(host.predictor(), asked)
    before = predict(model)
    torch.manual_seed(1)
    model._init_weights()
    unknown = predict(model)
    assert not torch.allclose(unknown, before)
    for place in range(1, 4):
        assert_close(predict(model, {"location": torch.full((5,), place)}), unknown)


def test_the_optimizer_of_aam_finds_the_tables_of_categories(host: Host) -> None:
    model = attach(host.predictor(), {**EVERYTHING, "cardinalities": CARDINALITIES})
    head = model.target_head
    tables = {id(p) for part in (head.embedding, head.scaler, head.wide) for p in part.parameters()}
    optimizer = host.create_optimizer(model, lr=1e-3, categorical_lr=1e-2)
    slow, fast = ({id(p) for p in group["params"]} for group in optimizer.param_groups)
    assert fast == tables
    assert slow | fast == {id(p) for p in model.parameters()}
    groups = {group["name"]: group for group in head.param_groups(lr=1e-3, categorical_lr=1e-2, weight_decay=0.1)}
    assert {id(p) for p in groups["categorical"]["params"]} == tables
    assert groups["categorical"]["lr"] == 1e-2
    assert sum(len(group["params"]) for group in groups.values()) == len(list(head.parameters()))


def test_a_classifier_keeps_its_log_softmax(host: Host) -> None:
    model = with_categories(host, out_dim=3, is_classifier=True, **MLP)
    before = predict(model, ids())
    attach(model, {"hidden_dims": (8, 4), "film": ("location",)}, keep_weights=True)
    assert_close(predict(model, ids()), before)
    assert_close(predict(model, ids()).exp().sum(-1), torch.ones(5))


def test_a_frozen_base_stays_frozen_and_the_head_learns(host: Host) -> None:
    model = attach(with_categories(host, freeze_base=True), {"scaler": ("location",)})
    model(tokens(), categorical_ids=ids())["target_prediction"].sum().backward()
    assert all(p.grad is None and not p.requires_grad for p in model.base_model.parameters())
    assert all(p.grad is not None for p in model.target_head.parameters())


def test_scaling_twice_is_told() -> None:
    model = host_named("stand-in").predictor(categorical_cardinalities=CARDINALITIES, learnable_output_scale=True)
    with (
        pytest.warns(RedundantOptionWarning, match="with categories scaler alone is preferred"),
        torch.random.fork_rng(),
    ):
        attach(model, {"scaler": ("location",)})


def test_the_head_describes_itself(host: Host) -> None:
    model = attach(with_categories(host, target_layer_norm=False), {"quantiles": (0.5,)}, outputs=["pH"])
    again = TargetHead.from_state_dict(model.state_dict(), prefix="target_head.")
    assert again.outputs == ("pH",)
    assert again.config == model.target_head.config
    torch.manual_seed(0)
    rebuilt = host.SequencePredictor(**again.host)
    assert rebuilt.target_norm is None
    own = {name: value.shape for name, value in model.state_dict().items() if not name.startswith("target_head")}
    new = {name: value.shape for name, value in rebuilt.state_dict().items() if not name.startswith("target_head")}
    assert own == new
