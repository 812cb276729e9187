"""Rows dealt out to experts: filled up to the busiest, or in a loop, they give what all experts on all rows give."""

import copy
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.testing import assert_close

from reghead.nn import MixtureOfExperts
from reghead.nn import _experts as module

BATCHES: dict[str, st.SearchStrategy[Any]] = {
    "seed": st.integers(0, 2**32 - 1),
    "rows": st.integers(1, 12),
    "experts": st.integers(2, 6),
    "top_k": st.integers(1, 2),
    "even": st.booleans(),
}
"""What :func:`draw` takes."""


def draw(
    seed: int, rows: int, experts: int, top_k: int, even: bool, widths: tuple[int, int, int] = (3, 4, 2)
) -> tuple[Any, ...]:
    rng = torch.Generator().manual_seed(seed)
    randn = lambda *shape: torch.randn(*shape, generator=rng, dtype=torch.float64)  # noqa: E731
    before, between, after = widths
    x, gamma = randn(rows, before), randn(rows, between)
    weights = [randn(experts, before, between), randn(experts, between, after)]
    biases = [randn(experts, between), randn(experts, after)]
    scores = randn(rows, experts) + (0.0 if even else 5.0 * torch.arange(experts))
    share, index = scores.softmax(-1).topk(top_k)
    routing = torch.zeros_like(scores).scatter(-1, index, share)
    return x, weights, biases, routing, gamma


def results(
    mixture: Callable[..., Tensor], drawn: tuple[Any, ...], *more: int, dtype: torch.dtype = torch.float64
) -> list[Tensor]:
    """Values, gradients, and the gradients of those."""
    x, weights, biases, routing, gamma = drawn
    inputs = [t.to(dtype).clone().requires_grad_() for t in (x, *weights, *biases, routing, gamma)]
    w, b, factors = inputs[1:3], inputs[3:5], inputs[6]

    def hidden(h: Tensor, layer: int, index: Tensor | None) -> Tensor:
        return torch.tanh(h * (factors if index is None else factors.index_select(0, index)))

    def of_chosen(grads: Sequence[Tensor]) -> list[Tensor]:
        """The zeros of the routing are not dealt out, and have no gradient."""
        return [*grads[:5], grads[5] * (routing != 0), grads[6]]

    out = mixture(inputs[0], w, b, inputs[5], hidden, *more)
    grads = of_chosen(torch.autograd.grad(out.square().sum(), inputs, create_graph=True))
    again = of_chosen(torch.autograd.grad(sum(grad.sin().sum() for grad in grads), inputs))
    return [result.detach().double() for result in (out, *grads, *again)]


@given(**BATCHES, loop=st.booleans())
def test_values_and_gradients_agree(seed: int, rows: int, experts: int, top_k: int, even: bool, loop: bool) -> None:
    drawn = draw(seed, rows, experts, top_k, even)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "SPARSE_WEIGHTS", 1)
        patch.setattr(module, "EXPERT_ROWS", -100 if loop else 1000)
        dealt = results(module.sparse_mixture, drawn, top_k)
    assert_close(dealt, results(module.dense_mixture, drawn))


@pytest.mark.skipif(not module._has_grouped_mm(), reason="this torch has no product of groups on a CPU")
@given(**BATCHES, widths=st.tuples(st.integers(1, 9), st.integers(1, 9), st.integers(1, 9)))
def test_one_call_for_all_groups_agrees(
    seed: int, rows: int, experts: int, top_k: int, even: bool, widths: tuple[int, int, int]
) -> None:
    """Which torch has in float32, and for widths that are multiples of four; an expert may be without a row."""
    drawn, calls, plain = draw(seed, rows, experts, top_k, even, widths), [], module._grouped_mm
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "SPARSE_WEIGHTS", 1)
        patch.setattr(module, "GROUP_ROWS", -100)
        patch.setattr(module, "_grouped_mm", lambda *of: calls.append(of) or plain(*of))
        dealt = results(module.sparse_mixture, drawn, top_k, dtype=torch.float32)
    assert len(calls) == 2
    for one, other in zip(dealt, results(module.dense_mixture, drawn), strict=True):
        assert (one - other).abs().max() <= 1e-3 * other.abs().max().clamp(min=1.0)


@pytest.mark.parametrize("missing", [AttributeError, RuntimeError])
def test_a_torch_without_the_product_of_groups_does_without(
    missing: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = draw(0, 12, 3, 1, even=False)
    monkeypatch.setattr(module, "SPARSE_WEIGHTS", 1)
    monkeypatch.setattr(module, "EXPERT_ROWS", -100)
    with_it = results(module.sparse_mixture, drawn, 1, dtype=torch.float32)

    def grouped_mm(*_: object, **__: object) -> None:
        raise missing

    monkeypatch.setattr(nn.functional, "grouped_mm", grouped_mm)
    module._has_grouped_mm.cache_clear()
    try:
        assert_close(with_it, results(module.sparse_mixture, drawn, 1, dtype=torch.float32), atol=1e-4, rtol=1e-4)
    finally:
        module._has_grouped_mm.cache_clear()


def large(gate: Any, **options: Any) -> tuple[MixtureOfExperts, Tensor, dict[str, Tensor]]:
    """Enough rows to be dealt out, unevenly, in float32."""
    rng = torch.Generator().manual_seed(0)
    columns = {"location": 40, "season": 4}
    moe = MixtureOfExperts(5, 3, 32, (8,), cardinalities=columns, gate=gate, **options)
    for parameter in moe.parameters():
        nn.init.normal_(parameter, generator=rng)
    x = torch.randn(600, 5, generator=rng)
    return moe, x, {column: torch.randint(n, (600,), generator=rng) for column, n in columns.items()}


@pytest.mark.parametrize("gate", ["hard", "top_k"])
@pytest.mark.parametrize("temperature", [1.0, 0.3])
@pytest.mark.parametrize("double", [False, True])
def test_experts_chosen_by_category_are_those_chosen_by_row(gate: Any, temperature: float, double: bool) -> None:
    """With ``return_aux`` the choice is made row by row."""
    moe, x, ids = large(gate, temperature=temperature, top_k=3)
    assert moe.embedding is not None
    moe.embedding.observe({column: i[i > 1] for column, i in ids.items()})
    moe, x = (moe.double(), x.double()) if double else (moe, x)
    assert moe._choice_by_category(x, moe.embedding.context(ids)) is not None
    one, (other, _) = moe(x, ids), moe(x, ids, return_aux=True)
    assert torch.equal(one, other)
    grads = [torch.autograd.grad(out.sin().sum(), list(moe.parameters())) for out in (one, other)]
    precision = 1e-10 if double else 1e-3
    for left, right in zip(*grads, strict=True):
        assert (left - right).abs().max() <= precision * right.abs().max().clamp(min=1.0)


@pytest.mark.parametrize("gate", ["hard", "top_k"])
def test_ids_of_sequences_choose_for_each_of_their_rows(gate: Any) -> None:
    moe, x, ids = large(gate)
    first = {column: i[:200] for column, i in ids.items()}
    spread = {column: i.unsqueeze(1).expand(200, 3) for column, i in first.items()}
    assert_close(moe(x.view(200, 3, 5), first), moe(x.view(200, 3, 5), spread))


GATES = [("hard", "outputs"), ("top_k", "outputs"), ("soft", "outputs"), ("soft", "parameters")]


@pytest.mark.parametrize(("gate", "mix"), GATES)
@pytest.mark.parametrize("shared", ["x", "experts", "nothing"])
def test_layers_are_mapped_over_large_batches(gate: Any, mix: Any, shared: str) -> None:
    """As an ensemble is made of stacked layers: of one batch, whose rows each layer deals out in its own way."""
    layers = [large(gate, mix=mix)[0] for _ in range(2)]
    _, x, ids = large(gate)
    x, ids = x.repeat(3, 1), {column: i.repeat(3) for column, i in ids.items()}
    for parameter in layers[1].parameters():
        parameter.data = parameter.data.flip(0)
    parameters, buffers = torch.func.stack_module_state(layers)
    mapped = dict.fromkeys(parameters, 0)
    if shared == "experts":
        for name in parameters:
            if name.startswith(("weights", "biases")):
                parameters[name], mapped[name] = parameters[name][0], None
                layers[1].get_parameter(name).data = layers[0].get_parameter(name).data

    def call(parameters: Any, buffers: Any, x: Tensor) -> Any:
        return torch.func.functional_call(layers[0], (parameters, buffers), (x, ids))

    each = torch.stack([x, x.flip(0)]) if shared == "nothing" else x
    out = torch.vmap(call, in_dims=(mapped, 0, 0 if shared == "nothing" else None))(parameters, buffers, each)
    xs = each if shared == "nothing" else (x, x)
    for one, layer, own in zip(out, layers, xs, strict=True):
        other = layer(own, ids)
        assert (one - other).abs().max() <= 1e-5 * other.abs().max()


@pytest.mark.parametrize(("gate", "mix"), GATES)
@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")  # by torch's own forward derivatives
def test_large_batches_in_float32_have_every_derivative(gate: Any, mix: Any) -> None:
    """As those of float64 are: forward, in batches, and of a plain sum."""
    moe, x, ids = large(gate, mix=mix)
    x, ids = x.repeat(3, 1), {column: i.repeat(3) for column, i in ids.items()}
    wide = copy.deepcopy(moe).double()
    change = torch.randn(len(x), 5, generator=torch.Generator().manual_seed(1))
    rows = [(net, x.to(net.router_bias.dtype).requires_grad_()) for net in (moe, wide)]

    def agree(of: Callable[[MixtureOfExperts, Tensor], Tensor]) -> None:
        one, other = (of(net, at) for net, at in rows)
        assert (one - other).abs().max() <= 1e-4 * other.abs().max()

    def along(net: MixtureOfExperts, at: Tensor) -> Tensor:
        with forward_ad.dual_level():
            return forward_ad.unpack_dual(net(forward_ad.make_dual(at, change.to(at.dtype)), ids)).tangent

    agree(lambda net, at: net(at, ids))
    agree(along)
    agree(lambda net, at: torch.autograd.grad(net(at, ids).sum(), at)[0])
    agree(lambda net, at: torch.autograd.grad(net(at, ids).sum(), net.weights[0])[0])

    def in_batches(net: MixtureOfExperts, at: Tensor) -> Tensor:
        out = net(at, ids)
        basis = torch.eye(3, dtype=at.dtype).unsqueeze(1).expand(3, len(x), 3)
        return torch.autograd.grad(out, at, basis, is_grads_batched=True)[0]

    agree(in_batches)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        narrow = moe(x, ids)
    assert narrow.dtype == torch.bfloat16
    assert (narrow.float() - wide(x.double(), ids)).abs().max() <= 0.05 * narrow.abs().max()


@pytest.mark.parametrize("busy", [False, True])
def test_no_more_rows_are_computed_than_there_are(busy: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr(module, "SPARSE_WEIGHTS", 1)
    rows, experts = 1024, 64
    routing = nn.functional.one_hot(torch.zeros(rows).long() if busy else torch.arange(rows) % experts, experts).float()

    def hidden(h: Tensor, layer: int, index: Tensor | None) -> Tensor:
        seen.append(len(h))
        return h

    weights, biases = [torch.ones(experts, 3, 4), torch.ones(experts, 4, 1)], [torch.zeros(experts, 4)]
    module.sparse_mixture(torch.ones(rows, 3), weights, [*biases, torch.zeros(experts, 1)], routing, hidden, 1)
    assert seen == [rows]


@pytest.mark.parametrize("loop", [False, True])
def test_a_row_that_is_not_a_number_stays_alone(loop: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SPARSE_WEIGHTS", 1)
    monkeypatch.setattr(module, "EXPERT_ROWS", -100 if loop else 1000)
    x, weights, biases, _, _ = draw(0, 6, 3, 1, even=True)
    x[0] = torch.nan
    weights = [w.requires_grad_() for w in weights]
    routing = nn.functional.one_hot(torch.tensor([0, 1, 1, 2, 1, 1]), 3).double()
    out = module.sparse_mixture(x, weights, biases, routing, lambda h, *_: h.relu(), 1)
    assert out.isnan().any(-1).tolist() == [True] + [False] * 5
    grads = torch.autograd.grad(out[1:].sum(), weights)
    assert all(g[1:].isfinite().all() for g in grads)


@pytest.mark.parametrize("gate", ["hard", "top_k"])
def test_a_trace_deals_out_no_rows(gate: Any) -> None:
    """How many rows an expert gets is of one batch."""
    rng = torch.Generator().manual_seed(0)
    moe = MixtureOfExperts(5, 2, 4, (8,), route_features=True, gate=gate).double()
    x, y = (torch.randn(rows, 5, generator=rng, dtype=torch.float64) for rows in (3000, 2500))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a trace is deprecated, and warns of every look at a shape
        traced = torch.jit.trace(moe, (x,))
    assert_close(traced(y), moe(y))
