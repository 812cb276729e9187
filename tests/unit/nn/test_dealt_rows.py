"""Rows dealt out to experts: filled up to the busiest, or in a loop, they give what all experts on all rows give."""

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.testing import assert_close

from reghead.nn import MixtureOfExperts
from reghead.nn import _experts as module


def draw(seed: int, rows: int, experts: int, top_k: int, even: bool) -> tuple[Any, ...]:
    rng = torch.Generator().manual_seed(seed)
    randn = lambda *shape: torch.randn(*shape, generator=rng, dtype=torch.float64)  # noqa: E731
    x, gamma = randn(rows, 3), randn(rows, 4)
    weights, biases = [randn(experts, 3, 4), randn(experts, 4, 2)], [randn(experts, 4), randn(experts, 2)]
    scores = randn(rows, experts) + (0.0 if even else 5.0 * torch.arange(experts))
    share, index = scores.softmax(-1).topk(top_k)
    routing = torch.zeros_like(scores).scatter(-1, index, share)
    return x, weights, biases, routing, gamma


def results(mixture: Callable[..., Tensor], drawn: tuple[Any, ...], *more: int) -> list[Tensor]:
    x, weights, biases, routing, gamma = drawn
    inputs = [t.clone().requires_grad_() for t in (x, *weights, *biases, routing, gamma)]
    w, b, factors = inputs[1:3], inputs[3:5], inputs[6]

    def hidden(h: Tensor, layer: int, index: Tensor | None) -> Tensor:
        return torch.tanh(h * (factors if index is None else factors.index_select(0, index)))

    out = mixture(inputs[0], w, b, inputs[5], hidden, *more)
    grads = torch.autograd.grad(out.square().sum(), inputs)
    chosen = grads[5] * (routing != 0)  # the zeros of the routing are not dealt out, and have no gradient
    return [out.detach(), *grads[:5], chosen, grads[6]]


@given(
    seed=st.integers(0, 2**32 - 1),
    rows=st.integers(1, 12),
    experts=st.integers(2, 6),
    top_k=st.integers(1, 2),
    even=st.booleans(),
    loop=st.booleans(),
)
def test_values_and_gradients_agree(seed: int, rows: int, experts: int, top_k: int, even: bool, loop: bool) -> None:
    drawn = draw(seed, rows, experts, top_k, even)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "SPARSE_WEIGHTS", 1)
        patch.setattr(module, "EXPERT_ROWS", -100 if loop else 1000)
        dealt = results(module.sparse_mixture, drawn, top_k)
    assert_close(dealt, results(module.dense_mixture, drawn))


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
