"""What holds for every head, whatever its parameters and data."""

from typing import Any

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from reghead.heads import RegressionHead

SIZES = {"location": 4, "season": 3}
SEEDS = st.integers(0, 2**32 - 1)
PARTS: dict[str, Any] = {
    "hidden_dims": (4,),
    "cardinalities": SIZES,
    "embedding_dim": 2,
    "fusion": "add",
    "film": ["season"],
    "scaler": ["location", "season"],
    "wide": ["season", "location"],
}


def head_and_batch(seed: int, rows: int, spread: float = 1.0, **options: Any) -> tuple[RegressionHead, Tensor, Any]:
    rng = torch.Generator().manual_seed(seed)
    head = RegressionHead(3, 2, **options).eval()
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.copy_(spread * torch.randn(parameter.shape, generator=rng))
    x = torch.randn(rows, 3, generator=rng)
    return head, x, {c: torch.randint(0, n, (rows,), generator=rng) for c, n in SIZES.items()}


@given(seed=SEEDS, rows=st.integers(0, 6))
def test_rows_may_come_in_any_order_and_columns_too(seed: int, rows: int) -> None:
    head, x, categories = head_and_batch(seed, rows, **PARTS)
    order = torch.randperm(rows, generator=torch.Generator().manual_seed(seed))
    mixed = {c: categories[c][order] for c in reversed(categories)}
    assert_close(head(x[order], mixed), head(x, categories)[order])


@given(
    seed=SEEDS,
    levels=st.lists(st.floats(0.001, 0.999), min_size=1, max_size=9, unique=True).map(sorted),
    non_crossing=st.booleans(),
    spread=st.sampled_from([0.1, 1.0, 10.0]),
    ensemble=st.integers(1, 9),
)
def test_quantiles_never_cross(
    seed: int, levels: list[float], non_crossing: bool, spread: float, ensemble: int
) -> None:
    options = {**PARTS, "quantiles": levels, "non_crossing": non_crossing, "ensemble": ensemble}
    head, x, categories = head_and_batch(seed, 5, spread, **options)
    out = head(x, categories)
    assert out.shape == (5, 2, len(levels))
    assert (out[..., 1:] >= out[..., :-1]).all()


@given(
    seed=SEEDS,
    low=st.floats(-100, 100, width=32),
    width=st.floats(0.0625, 100, width=32),
    spread=st.sampled_from([1.0, 1000.0]),
    ensemble=st.integers(1, 9),
)
def test_predictions_stay_inside_the_bounds(seed: int, low: float, width: float, spread: float, ensemble: int) -> None:
    head, x, categories = head_and_batch(seed, 20, spread, **PARTS, bounds=(low, low + width), ensemble=ensemble)
    out = head(x, categories)
    bounds = torch.tensor([low, low + width])  # the bounds in the dtype of the predictions
    assert (out >= bounds[0]).all()
    assert (out <= bounds[1]).all()


def test_a_saturated_prediction_is_the_bound_itself() -> None:
    head = RegressionHead(1, 1, bounds=(0.57, 1.18))  # 0.57 + (1.18 - 0.57) is above 1.18 in float32
    out = head(torch.tensor([[1e9], [-1e9]]) * head.weight.detach().sign())
    assert out.flatten().tolist() == torch.tensor([1.18, 0.57]).tolist()


@given(seed=SEEDS, order=st.permutations(range(4)))
def test_members_may_come_in_any_order(seed: int, order: list[int]) -> None:
    head, x, categories = head_and_batch(seed, 5, **PARTS, ensemble=4)
    out, aux = head(x, categories, return_aux=True)
    with torch.no_grad():
        for name, parameter in head.trunk.named_parameters():
            if name.endswith(("linear.bias", "_scale", "output.weight", "output.bias")):
                parameter.copy_(parameter[order])
    mixed, mixed_aux = head(x, categories, return_aux=True)
    assert_close(mixed_aux.members, aux.members[order])
    assert_close(mixed, out, atol=1e-4, rtol=1e-4)


@given(seed=SEEDS, strength=st.floats(0.001, 1000), copies=st.integers(1, 5))
def test_pooling_weighs_less_beside_more_rows(seed: int, strength: float, copies: int) -> None:
    """Every training row told again: the data weigh more, the pull of the population less, in proportion."""
    head, x, categories = head_and_batch(seed, 5, **PARTS, partial_pooling=strength)
    head.observe(categories)
    once = head(x, categories, return_aux=True)[1].losses["partial_pooling"]
    for _ in range(copies - 1):
        head.observe(categories)
    again = head(x, categories, return_aux=True)[1]
    assert_close(again.losses["partial_pooling"] * copies, once)
    assert_close(once, sum(again.penalties.values()) * strength / (5 * 2))


@given(seed=SEEDS)
def test_state_dict_is_the_whole_head(seed: int) -> None:
    head, x, categories = head_and_batch(seed, 5, **PARTS, quantiles=(0.1, 0.5, 0.8))
    assert torch.equal(RegressionHead.from_state_dict(head.state_dict()).eval()(x, categories), head(x, categories))
