"""Mixtures of experts: gates, the ways of computing one result, balance, initialisation, loading, errors."""

import itertools
import math

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from reghead.functional import expert_utilization
from reghead.nn import CategoryEmbedding, MixtureOfExperts
from reghead.nn._experts import LOOP_ROWS

COLUMNS = {"location": 4, "season": 3}
GATES = [("soft", 2), ("top_k", 2), ("top_k", 1), ("hard", 2)]


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def filled(num_experts: int = 3, **options: object) -> MixtureOfExperts:
    options = {"hidden_dims": (4, 3), "cardinalities": COLUMNS, "embedding_dim": 2, **options}
    moe = MixtureOfExperts(5, 2, num_experts, dtype=torch.float64, **options)  # type: ignore[arg-type]
    for i, parameter in enumerate(moe.parameters()):
        parameter.data = 0.7 * draw(i, *parameter.shape)
    return moe


def ids(rows: int) -> dict[str, Tensor]:
    return {column: torch.arange(rows) * 7 % n for column, n in COLUMNS.items()}


def experts_alone(moe: MixtureOfExperts, x: Tensor) -> Tensor:
    """What each expert says by itself. Shape (E, N, D)."""
    h = x.expand(moe.num_experts, *x.shape)
    for layer, (weight, bias) in enumerate(zip(moe.weights, moe.biases, strict=True)):
        h = torch.einsum("eni,eio->eno", h, weight) + bias.unsqueeze(1)
        h = h if layer + 1 == len(moe.weights) else h.relu()
    return h


# Gates


def test_soft_outputs_lie_between_those_of_the_experts() -> None:
    moe, x = filled(route_features=True), draw(0, 20, 5)
    out, alone = moe(x, ids(20)), experts_alone(moe, x)
    assert (out >= alone.min(0).values - 1e-12).all()
    assert (out <= alone.max(0).values + 1e-12).all()


def test_hard_outputs_are_those_of_one_expert_exactly() -> None:
    moe, x = filled(gate="hard"), draw(0, 20, 5)
    out, aux = moe(x, ids(20), return_aux=True)
    assert set(aux.routing_weights.flatten().tolist()) == {0.0, 1.0}
    assert_close(out, experts_alone(moe, x)[aux.routing_weights.argmax(-1), torch.arange(20)])


def test_keeping_all_experts_is_soft_and_a_low_temperature_is_hard() -> None:
    x, soft = draw(0, 20, 5), filled()
    assert_close(filled(gate="top_k", top_k=3)(x, ids(20)), soft(x, ids(20)))
    assert_close(filled(temperature=1e-4)(x, ids(20)), filled(gate="hard")(x, ids(20)))


@pytest.mark.parametrize(("gate", "k"), [("top_k", 1), ("hard", 2)])
@pytest.mark.parametrize("rows", [8, LOOP_ROWS])
def test_one_expert_a_row_still_trains_the_router(gate: str, k: int, rows: int) -> None:
    moe = filled(gate=gate, top_k=k)
    moe(draw(0, rows, 5), ids(rows)).square().mean().backward()
    for parameter in (moe.router_bias, moe.router_context):
        assert parameter is not None
        assert parameter.grad is not None
        assert parameter.grad.abs().max() > 1e-3


@pytest.mark.parametrize(("gate", "k"), GATES)
def test_the_order_of_the_experts_does_not_matter(gate: str, k: int) -> None:
    moe, other, order = filled(gate=gate, top_k=k), filled(gate=gate, top_k=k), torch.tensor([2, 0, 1])
    for name, parameter in other.named_parameters():
        if name.startswith(("weights", "biases", "router")):
            parameter.data = parameter.data[order]
    assert_close(other(draw(0, 9, 5), ids(9)), moe(draw(0, 9, 5), ids(9)))


# Ways of computing


@pytest.mark.parametrize(("gate", "k"), GATES)
@pytest.mark.parametrize("rich", [False, True])
def test_many_rows_and_few_rows_agree_in_values_and_gradients(gate: str, k: int, rich: bool) -> None:
    more = {"norm": "layer", "film_features": 2, "residual": True, "route_features": True} if rich else {}
    moe, rows = filled(gate=gate, top_k=k, **more), LOOP_ROWS + 32
    x, context, cotangent = draw(0, rows, 5).requires_grad_(), draw(1, rows, 2) if rich else None, draw(2, rows, 2)
    wanted = [x, *moe.parameters()]

    def part(start: int, stop: int) -> Tensor:
        chosen = {column: i[start:stop] for column, i in ids(rows).items()}
        return moe(x[start:stop], chosen, film_context=None if context is None else context[start:stop])

    many = part(0, rows)
    few = torch.cat([part(start, start + 100) for start in range(0, rows, 100)])
    assert_close(many, few)
    assert_close(*[torch.autograd.grad((out * cotangent).sum(), wanted) for out in (many, few)])


@pytest.mark.parametrize("gate", ["soft", "top_k", "hard"])
def test_many_rows_with_an_expert_that_nobody_uses(gate: str) -> None:
    moe = filled(gate=gate)
    moe.router_bias.data[1] = -1e3
    moe(draw(0, LOOP_ROWS, 5), ids(LOOP_ROWS)).sum().backward()
    for parameter in (*moe.weights, *moe.biases):
        assert parameter.grad is not None
        assert (parameter.grad[1] == 0).all()
        assert parameter.grad[[0, 2]].isfinite().all()


@pytest.mark.parametrize("gate", ["soft", "top_k", "hard"])
@pytest.mark.parametrize("rows", [8, LOOP_ROWS])
def test_under_autocast_the_routing_is_decided_in_float32(gate: str, rows: int) -> None:
    moe = filled(gate=gate, route_features=True).float()
    x = draw(0, rows, 5).float()
    exact, aux = moe(x, ids(rows), return_aux=True)
    with torch.autocast("cpu", torch.bfloat16):
        out, narrow = moe(x, ids(rows), return_aux=True)
    assert torch.equal(narrow.routing_weights, aux.routing_weights)
    assert narrow.routing_weights.dtype == torch.float32
    assert_close(out.float(), exact, rtol=0.05, atol=0.1)


@pytest.mark.parametrize(("gate", "k"), GATES)
@pytest.mark.parametrize("rows", [0, 1])
def test_small_batches_give_finite_results_and_gradients(gate: str, k: int, rows: int) -> None:
    moe = filled(gate=gate, top_k=k, residual=True)
    out, aux = moe(draw(0, rows, 5), ids(rows), return_aux=True)
    assert out.shape == (rows, 2)
    assert aux.load_balancing_loss.isfinite()
    assert aux.entropy.isfinite()
    (out.sum() + aux.load_balancing_loss + aux.entropy).backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in moe.parameters())


def test_sequences_are_rows_with_the_ids_of_their_first_dimension() -> None:
    moe, x = filled(film_features=2, route_features=True), draw(0, 4, 6, 5)
    context = draw(1, 4, 2)
    out, aux = moe(x, ids(4), film_context=context, return_aux=True)
    steps = [moe(x[:, s], ids(4), film_context=context) for s in range(6)]
    assert_close(out, torch.stack(steps, dim=1))
    assert aux.routing_weights.shape == (4, 6, 3)


# What routes


def test_routing_by_category_by_features_and_by_both() -> None:
    x, same = draw(0, 6, 5), draw(0, 1, 5).expand(6, 5)
    weights = {}
    for name, options in {
        "category": {},
        "features": {"cardinalities": None, "route_features": True},
        "both": {"route_features": True},
    }.items():
        moe = filled(**options)
        for of, rows in (("x", x), ("same x", same)):
            for labels, chosen in (("ids", ids(6)), ("same ids", {c: torch.ones(6).long() for c in COLUMNS})):
                weights[name, of, labels] = moe(rows, chosen, return_aux=True)[1].routing_weights.std(0).max() > 1e-6
    for name, of, labels in itertools.product(("category", "features", "both"), ("x", "same x"), ("ids", "same ids")):
        differs = (labels == "ids" and name != "features") or (of == "x" and name != "category")
        assert bool(weights[name, of, labels]) == differs, (name, of, labels)


def test_unknown_categories_are_routed_by_the_bias_alone() -> None:
    moe = filled()
    unknown = {column: torch.zeros(2, dtype=torch.int64) for column in COLUMNS}
    got = moe(draw(0, 2, 5), unknown, return_aux=True)[1].routing_weights
    assert_close(got, moe.router_bias.softmax(-1).expand(2, 3))


def test_a_context_of_any_model_or_of_a_shared_embedding_routes() -> None:
    moe, embedding = filled(cardinalities=None, context_features=4), CategoryEmbedding(COLUMNS, 2).double()
    x = draw(0, 6, 5)
    assert_close(moe(x, context=embedding.context(ids(6))), moe(x, context=embedding(ids(6))))
    out, aux = moe(x, context=draw(1, 6, 4), return_aux=True)
    assert moe.router_context is not None
    assert_close(aux.routing_weights, (draw(1, 6, 4) @ moe.router_context.t() + moe.router_bias).softmax(-1))
    assert out.shape == (6, 2)


def test_every_parameter_gets_a_gradient() -> None:
    moe = filled(norm="rms", film_features=2, residual=True, route_features=True)
    moe(draw(0, 12, 5), ids(12), film_context=draw(1, 12, 2)).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in moe.parameters())


# Aux


def test_balance_and_entropy_at_uniform_routing_and_at_collapse() -> None:
    for gate, k in GATES:
        moe = filled(gate=gate, top_k=k)
        assert moe.router_context is not None
        moe.router_context.data.zero_()
        moe.router_bias.data.zero_()
        even = moe(draw(0, 8, 5), ids(8), return_aux=True)[1]
        assert_close(even.load_balancing_loss.item(), 1.0)
        moe.router_bias.data = torch.tensor([0.0, 500.0, 0.0]).double()
        collapsed = moe(draw(0, 8, 5), ids(8), return_aux=True)[1]
        # Two experts share the rows when two are kept: half of each row goes to one that has no probability.
        assert_close(collapsed.load_balancing_loss.item(), 1.5 if (gate, k) == ("top_k", 2) else 3.0)
        assert collapsed.entropy.item() < 1e-200
        if gate == "soft":
            assert_close(even.entropy.item(), math.log(3))


def test_utilization_of_the_routing_weights_per_category() -> None:
    moe = filled(cardinalities={"location": 4})
    location = torch.tensor([1, 1, 2, 0])
    weights = moe(draw(0, 4, 5), {"location": location}, return_aux=True)[1].routing_weights
    table = expert_utilization(weights, location, 4)
    assert_close(table[[1, 2, 0]], weights[[0, 2, 3]])
    assert table[3].isnan().all()


def test_aux_changes_nothing_and_nothing_is_kept_on_the_layer() -> None:
    moe, x = filled(), draw(0, 6, 5)
    before = set(vars(moe))
    assert torch.equal(moe(x, ids(6)), moe(x, ids(6), return_aux=True)[0])
    assert set(vars(moe)) == before


# Initialisation and loading


def test_each_expert_starts_as_its_own_linear_layers() -> None:
    torch.manual_seed(0)
    moe = MixtureOfExperts(16, 2, 8, (400,), route_features=True)
    for weight, bias, width in zip(moe.weights, moe.biases, (16, 400), strict=True):
        bound = width**-0.5
        for expert in range(8):
            assert weight[expert].abs().max() <= bound
            assert weight[expert].abs().max() > 0.9 * bound
            assert bias[expert].abs().max() <= bound
    assert_close(moe.weights[0].std().item(), 16**-0.5 / 3**0.5, rtol=0.05, atol=0)
    assert torch.pdist(moe.weights[0].flatten(1)).min() > 1


def test_the_router_starts_as_a_linear_layer_without_a_bias() -> None:
    """Uniform within one over the root of what goes in, however many experts there are."""
    torch.manual_seed(0)
    moe = MixtureOfExperts(900, 1, 4, cardinalities={"location": 3}, embedding_dim=400, route_features=True)
    for router, size in ((moe.router_context, 400), (moe.router_features, 900)):
        assert router is not None
        bound = size**-0.5
        assert 0.95 * bound < router.abs().max() <= bound
        assert_close(router.std(), router.new_tensor(bound / 3**0.5), rtol=0.05, atol=0.0)
    assert (moe.router_bias == 0).all()


def test_dropout_and_reset() -> None:
    moe = filled(dropout=0.5, norm="layer", film_features=2, residual=True)
    x, context = draw(0, 6, 5), draw(1, 6, 2)
    assert not torch.equal(moe(x, ids(6), film_context=context), moe(x, ids(6), film_context=context))
    moe.eval().reset_parameters()
    out = moe(x, ids(6), film_context=context)
    assert torch.equal(out, moe(x, ids(6), film_context=0 * context)), "FiLM is not the identity after a reset"


class Listed(nn.Module):
    """The same mixture with one sub-module per expert."""

    def __init__(self, experts: int) -> None:
        super().__init__()
        self.experts = nn.ModuleList(nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 2)) for _ in range(experts))


@pytest.mark.parametrize("prefix", ["", "head."])
def test_a_state_with_one_module_per_expert_is_taken(prefix: str) -> None:
    # Twelve experts: by text, "10" would come before "2".
    torch.manual_seed(0)
    listed = Listed(12).double()
    moe = filled(12, hidden_dims=(4,))
    state = {name: p for name, p in moe.state_dict().items() if not name.startswith(("weights", "biases"))}
    state = {prefix + name: p for name, p in {**state, **listed.state_dict()}.items()}
    keys = list(state)
    target = moe if not prefix else nn.ModuleDict({"head": moe})
    target.load_state_dict(state)
    assert list(state) == keys
    x = draw(0, 7, 5)
    out, aux = moe(x, ids(7), return_aux=True)
    expected = sum(aux.routing_weights[:, e : e + 1] * expert(x) for e, expert in enumerate(listed.experts))
    assert_close(out, expected)


# Errors


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({}, ValueError, "nothing routes: give cardinalities, context_features or route_features=True"),
        ({"cardinalities": {}}, ValueError, "nothing routes"),
        (
            {"cardinalities": COLUMNS, "context_features": 2},
            ValueError,
            "at most one of cardinalities and context_features may be given",
        ),
        ({"context_features": 0}, ValueError, "context_features must be at least 1, got 0"),
        ({"film_features": 0, "hidden_dims": (3,)}, ValueError, "film_features must be at least 1, got 0"),
        ({"num_experts": 0}, ValueError, "num_experts must be at least 1, got 0"),
        ({"gate": "topk"}, ValueError, "gate must be one of .*did you mean 'top_k'"),
        ({"gate": "top_k", "top_k": 4}, ValueError, "top_k must be at most the number of experts, 3, got 4"),
        ({"gate": "top_k", "top_k": 0}, ValueError, "top_k must be at least 1, got 0"),
        ({"temperature": 0.0}, ValueError, "temperature must be finite and > 0, got 0.0"),
        ({"residual": True}, ValueError, "residual needs hidden_dims, got none"),
        ({"film_features": 2}, ValueError, "needs hidden_dims, got none"),
        ({"dropout": 1.0}, ValueError, "dropout must be finite"),
        ({"activation": "step"}, ValueError, "activation must be one of"),
        ({"norm": "batch", "hidden_dims": (3,)}, ValueError, "norm must be one of"),
        ({"hidden_dims": 3}, TypeError, "hidden_dims must be a sequence of integers"),
    ],
)
def test_mixtures_that_cannot_be(options: dict[str, object], error: type[Exception], message: str) -> None:
    source = {"context_features", "cardinalities"} & set(options) or "nothing routes" in message
    with pytest.raises(error, match=message):
        MixtureOfExperts(  # type: ignore[misc]
            **{"in_features": 5, "out_features": 2, "num_experts": 3, "route_features": not source, **options}
        )


@pytest.mark.parametrize(
    ("options", "inputs", "error", "message"),
    [
        ({}, {"x": torch.ones(3, 4)}, ValueError, "x must have shape .* in_features = 5, got"),
        ({}, {"categories": None}, TypeError, "needs categories: .* got None"),
        (
            {},
            {"context": torch.ones(3, 4)},
            ValueError,
            "context must not be given: this layer was built with cardinalities",
        ),
        (
            {"cardinalities": None, "context_features": 2},
            {},
            ValueError,
            "context must be given: this layer was built with context_features",
        ),
        (
            {"cardinalities": None, "context_features": 2},
            {"context": torch.ones(3, 3)},
            ValueError,
            r"context must have shape \(\*, C\) with C = 2",
        ),
        (
            {"film_features": 2},
            {},
            ValueError,
            "film_context must be given: this layer was built with film_features",
        ),
        ({"film_features": 2}, {"film_context": torch.ones(3, 3)}, ValueError, "context must have shape .* C = 2"),
        ({}, {"categories": ids(4)}, ValueError, "must have the leading dimensions"),
    ],
)
def test_inputs_that_do_not_fit(
    options: dict[str, object], inputs: dict[str, object], error: type[Exception], message: str
) -> None:
    moe = filled(**options).float()
    with pytest.raises(error, match=message):
        moe(**{"x": torch.ones(3, 5), "categories": ids(3), **inputs})  # type: ignore[arg-type]


def test_repr_names_sizes_and_the_gate() -> None:
    text = repr(MixtureOfExperts(5, 2, 3, (4,), route_features=True, gate="top_k"))
    assert "in_features=5, out_features=2, num_experts=3, hidden_dims=(4,), gate='top_k', top_k=2" in text
    text = repr(MixtureOfExperts(5, 2, 3, (4,), route_features=True, mix="parameters"))
    assert "in_features=5, out_features=2, num_experts=3, mix='parameters', hidden_dims=(4,), gate='soft'\n" in text


def test_contexts_that_nothing_reads_are_refused() -> None:
    x, context = torch.ones(2, 3), torch.ones(2, 4)
    moe = MixtureOfExperts(3, 1, 2, route_features=True)
    with pytest.raises(ValueError, match="context must not be given: this layer was built without context_features"):
        moe(x, context=context)
    with pytest.raises(ValueError, match="film_context must not be given: this layer was built without film_features"):
        moe(x, film_context=context)
    with pytest.raises(ValueError, match="film_features needs hidden_dims"):
        MixtureOfExperts(3, 1, 2, route_features=True, film_features=4)


def test_shapes_propagate_on_the_meta_device() -> None:
    moe = MixtureOfExperts(3, 1, 2, route_features=True, device="meta")
    assert moe(torch.ones(5, 3, device="meta")).shape == (5, 1)
