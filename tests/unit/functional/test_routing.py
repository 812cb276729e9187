"""Routing weights, their balance, entropy and use, by hand."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from reghead.functional import expert_utilization, load_balancing_loss, routing_entropy, routing_weights

SEEDS = st.integers(0, 2**32 - 1)
GATES = st.sampled_from(["soft", "top_k", "hard"])


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


THIRDS = torch.log(torch.tensor([[1.0, 2.0, 3.0]], dtype=torch.float64))


# Weights


def test_soft_weights_are_the_softmax() -> None:
    assert_close(routing_weights(THIRDS), torch.tensor([[1.0, 2.0, 3.0]], dtype=torch.float64) / 6)


def test_the_temperature_divides_the_logits() -> None:
    assert_close(routing_weights(THIRDS, temperature=0.5), torch.tensor([[1.0, 4.0, 9.0]], dtype=torch.float64) / 14)


@pytest.mark.parametrize(("k", "expected"), [(1, [0, 0, 0.5]), (2, [0, 0.4, 0.6]), (3, [1 / 6, 2 / 6, 3 / 6])])
def test_top_k_keeps_the_largest_and_divides_by_their_sum_but_for_one(k: int, expected: list[float]) -> None:
    assert_close(routing_weights(THIRDS, "top_k", top_k=k), torch.tensor([expected], dtype=torch.float64))


def test_hard_weights_are_exactly_one_with_the_gradient_of_the_log_probability() -> None:
    logits = draw(0, 50, 4).float().requires_grad_()
    weights = routing_weights(logits, "hard")
    assert set(weights.flatten().tolist()) == {0.0, 1.0}
    assert torch.equal(weights.argmax(-1), logits.argmax(-1))
    (got,) = torch.autograd.grad(weights.max(-1).values.sum(), logits)
    (expected,) = torch.autograd.grad(logits.log_softmax(-1).max(-1).values.sum(), logits)
    assert_close(got, expected)
    assert expected.abs().max() > 0.1


def test_a_single_expert_of_top_k_gives_the_router_a_gradient() -> None:
    logits = draw(0, 5, 3).requires_grad_()
    routing_weights(logits, "top_k", top_k=1).sum().backward()
    assert logits.grad is not None
    assert (logits.grad.abs().sum(-1) > 1e-3).all()


@given(seed=SEEDS, gate=GATES, experts=st.integers(2, 6), shift=st.floats(-1e3, 1e3))
def test_weights_are_a_convex_combination_and_only_differences_of_logits_count(
    seed: int, gate: str, experts: int, shift: float
) -> None:
    logits = draw(seed, 7, experts)
    weights = routing_weights(logits, gate)  # type: ignore[arg-type]
    assert (weights >= 0).all()
    assert_close(weights.sum(-1), torch.ones(7, dtype=torch.float64))
    assert_close(routing_weights(logits + shift, gate), weights, atol=1e-9, rtol=0)  # type: ignore[arg-type]


@given(seed=SEEDS, gate=GATES)
def test_permuted_logits_give_permuted_weights(seed: int, gate: str) -> None:
    logits = draw(seed, 5, 4)
    order = torch.randperm(4, generator=torch.Generator().manual_seed(seed))
    got = routing_weights(logits[:, order], gate)  # type: ignore[arg-type]
    assert_close(got, routing_weights(logits, gate)[:, order])  # type: ignore[arg-type]


@given(seed=SEEDS)
def test_all_experts_of_top_k_are_soft_and_a_low_temperature_is_hard(seed: int) -> None:
    logits = draw(seed, 6, 4)
    assert_close(routing_weights(logits, "top_k", top_k=4), routing_weights(logits))
    assert_close(routing_weights(logits, temperature=1e-9), routing_weights(logits, "hard"), atol=1e-3, rtol=0)


@pytest.mark.parametrize("gate", ["soft", "top_k", "hard"])
def test_weights_of_narrow_logits_are_float32(gate: str) -> None:
    weights = routing_weights(draw(0, 4, 3).bfloat16(), gate)  # type: ignore[arg-type]
    assert weights.dtype == torch.float32
    assert_close(weights.sum(-1), torch.ones(4))


@pytest.mark.parametrize("gate", ["soft", "top_k"])
def test_gradients_of_weights(gate: str) -> None:
    assert torch.autograd.gradcheck(lambda x: routing_weights(x, gate, top_k=2), draw(3, 4, 3).requires_grad_())  # type: ignore[arg-type]


def test_extreme_logits_stay_finite() -> None:
    logits = torch.tensor([[1e4, -1e4, 0.0], [-1e4, -1e4, -1e4], [0.0, -torch.inf, 0.0]])
    expected = torch.tensor([[1, 0, 0], [1 / 3, 1 / 3, 1 / 3], [0.5, 0, 0.5]])
    assert_close(routing_weights(logits), expected)
    assert routing_weights(logits, "top_k").isfinite().all()


@pytest.mark.parametrize("function", [routing_weights, load_balancing_loss])
@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"gate": "topk"}, ValueError, "gate must be one of 'soft', 'top_k', 'hard', got 'topk'; did you mean 'top_k'"),
        ({"gate": "top_k", "top_k": 4}, ValueError, "top_k must be at most the number of experts, 3, got 4"),
        ({"gate": "top_k", "top_k": 0}, ValueError, "top_k must be at least 1, got 0"),
        ({"gate": "top_k", "top_k": 1.0}, TypeError, "top_k must be an integer, got 1.0"),
        ({"temperature": 0.0}, ValueError, "temperature must be finite and > 0, got 0.0"),
    ],
)
def test_gates_that_cannot_be(
    function: object, options: dict[str, object], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        function(torch.zeros(2, 3), **options)  # type: ignore[operator]


# Balance


@pytest.mark.parametrize(
    ("gate", "k"), [("soft", 2), ("hard", 2), ("top_k", 1), ("top_k", 2), ("top_k", 3), ("top_k", 4)]
)
def test_balance_is_one_at_uniform_routing_for_any_k(gate: str, k: int) -> None:
    assert load_balancing_loss(torch.zeros(6, 4), gate, top_k=k).item() == 1.0  # type: ignore[arg-type]
    # Each expert is first, second, ... in one row each: even use without even rows.
    rolled = torch.stack([torch.arange(4.0).roll(shift) for shift in range(4)])
    even_use = load_balancing_loss(rolled, gate, top_k=k)  # type: ignore[arg-type]
    assert_close(even_use, torch.tensor(1.0))


@pytest.mark.parametrize(("gate", "k"), [("soft", 2), ("hard", 2), ("top_k", 1)])
def test_balance_is_the_number_of_experts_at_collapse(gate: str, k: int) -> None:
    logits = torch.tensor([[0.0, 200.0, 0.0, 0.0]]).expand(5, 4)
    assert load_balancing_loss(logits, gate, top_k=k).item() == 4.0  # type: ignore[arg-type]


@given(seed=SEEDS, gate=GATES, k=st.integers(1, 4), rows=st.integers(1, 6))
def test_balance_is_the_sum_over_experts_of_share_times_mean_probability(
    seed: int, gate: str, k: int, rows: int
) -> None:
    logits = draw(seed, rows, 4)
    total = 0.0
    for expert in range(4):
        share = mean = 0.0
        for row in logits:
            p = [math.exp(v) / sum(math.exp(u) for u in row.tolist()) for v in row.tolist()]
            kept = sorted(range(4), key=lambda e, p=p: -p[e])[: k if gate == "top_k" else 1]  # type: ignore[misc]
            soft = gate == "soft" or (gate == "top_k" and k == 4)
            share += (p[expert] if soft else (expert in kept) / len(kept)) / rows
            mean += p[expert] / rows
        total += 4 * share * mean
    assert_close(load_balancing_loss(logits, gate, top_k=k).item(), total)  # type: ignore[arg-type]


@pytest.mark.parametrize("gate", ["soft", "top_k", "hard"])
def test_the_gradient_of_balance_goes_through_the_probabilities_alone(gate: str) -> None:
    logits = draw(1, 5, 3).requires_grad_()
    p = logits.softmax(-1)
    shares = {
        "soft": p.detach(),
        "top_k": (p.argsort(-1).argsort(-1) >= 1).double() / 2,
        "hard": (p.argsort(-1).argsort(-1) == 2).double(),
    }[gate]
    (got,) = torch.autograd.grad(load_balancing_loss(logits, gate), logits)  # type: ignore[arg-type]
    (expected,) = torch.autograd.grad(3 * (shares.mean(0) * p.mean(0)).sum(), logits)
    assert_close(got, expected)


def test_balance_takes_any_leading_dimensions_and_none() -> None:
    logits = draw(0, 2, 3, 4)
    assert_close(load_balancing_loss(logits), load_balancing_loss(logits.reshape(6, 4)))
    empty = torch.zeros(0, 4, requires_grad=True)
    load_balancing_loss(empty).backward()
    assert load_balancing_loss(empty).item() == 0.0


# Entropy


def test_entropy_by_hand() -> None:
    weights = torch.tensor([[1.0, 0.0], [0.5, 0.5]])
    assert_close(routing_entropy(weights), torch.tensor(math.log(2) / 2))
    assert routing_entropy(torch.tensor([[1.0, 0.0]])).item() == 0.0
    for rows in (1, 2, 3):
        assert_close(routing_entropy(torch.full((rows, 8), 1 / 8)), torch.tensor(math.log(8)))
    assert_close(routing_entropy(weights.expand(3, 2, 2)), torch.tensor(math.log(2) / 2))
    assert routing_entropy(torch.zeros(0, 3)).item() == 0.0


@pytest.mark.parametrize("gate", ["soft", "top_k", "hard"])
def test_the_gradient_of_entropy_is_finite_where_a_weight_is_zero(gate: str) -> None:
    logits = torch.tensor([[1.0, 3000.0, 2.0]], requires_grad=True)
    routing_entropy(routing_weights(logits, gate)).backward()  # type: ignore[arg-type]
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


# Utilisation


def test_utilization_over_all_rows_and_per_category() -> None:
    weights = torch.tensor([[[1.0, 0.0], [0.5, 0.5]], [[0.0, 1.0], [0.25, 0.75]]])
    assert expert_utilization(weights).tolist() == [0.4375, 0.5625]
    got = expert_utilization(weights, torch.tensor([[1, 1], [3, 0]]), 4)
    assert got[[0, 1, 3]].tolist() == [[0.25, 0.75], [0.75, 0.25], [0.0, 1.0]]
    assert got[2].isnan().all()


def test_utilization_of_many_narrow_weights_does_not_stop_at_256_rows() -> None:
    weights = torch.ones(1000, 2, dtype=torch.bfloat16)
    assert expert_utilization(weights, torch.ones(1000, dtype=torch.int64), 2)[1].tolist() == [1.0, 1.0]


def test_utilization_errors() -> None:
    with pytest.raises(ValueError, match="cardinality must be given with ids: the number of ids, id 0 included"):
        expert_utilization(torch.ones(3, 2), torch.zeros(3, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"ids must have shape \(3,\), one per row of weights, got \(2,\)"):
        expert_utilization(torch.ones(3, 2), torch.zeros(2, dtype=torch.int64), 2)


@pytest.mark.parametrize("temperature", [1e-3, 1e-30, 1e-39])
def test_towards_temperature_zero_the_weights_become_one_hot(temperature: float) -> None:
    weights = routing_weights(torch.tensor([[1e9, 2e9], [2.0, 1.0]]), temperature=temperature)
    assert torch.equal(weights, torch.tensor([[0.0, 1.0], [1.0, 0.0]]))
