"""Mixtures of the experts' parameters: what they equal, however they are computed."""

import re

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from reghead.nn import CategoryEmbedding, MixtureOfExperts
from reghead.nn._experts import LOOP_ROWS

COLUMNS = {"location": 4, "season": 3}


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def filled(num_experts: int = 3, **options: object) -> MixtureOfExperts:
    options = {"hidden_dims": (4, 3), "cardinalities": COLUMNS, "embedding_dim": 2, "mix": "parameters", **options}
    moe = MixtureOfExperts(5, 2, num_experts, dtype=torch.float64, **options)  # type: ignore[arg-type]
    for i, parameter in enumerate(moe.parameters()):
        parameter.data = 0.7 * draw(i, *parameter.shape)
    return moe


def batch(rows: int, seed: int = 0) -> tuple[Tensor, dict[str, Tensor]]:
    rng = torch.Generator().manual_seed(seed)
    return draw(seed, rows, 5), {c: torch.randint(0, n, (rows,), generator=rng) for c, n in COLUMNS.items()}


def twin(moe: MixtureOfExperts, **options: object) -> MixtureOfExperts:
    other = filled(moe.num_experts, **options)
    other.load_state_dict(moe.state_dict())
    return other


def row_by_row(moe: MixtureOfExperts, x: Tensor, routing: Tensor) -> Tensor:
    """One network per row, with the weighted sum of all parameters."""
    out = []
    for row, w in zip(x, routing.to(x.dtype), strict=True):
        h = row
        for layer, (weight, bias) in enumerate(zip(moe.weights, moe.biases, strict=True)):
            theta = sum(w[e] * weight[e] for e in range(moe.num_experts))
            h = h @ theta + sum(w[e] * bias[e] for e in range(moe.num_experts))
            h = h if layer + 1 == len(moe.weights) else h.relu()
        out.append(h)
    return torch.stack(out)


@pytest.mark.parametrize("route_features", [False, True])
@pytest.mark.parametrize("rows", [1, 7, LOOP_ROWS])
def test_each_row_meets_one_network_of_mixed_parameters(route_features: bool, rows: int) -> None:
    moe = filled(route_features=route_features)
    x, ids = batch(rows)
    out, aux = moe(x, ids, return_aux=True)
    assert_close(out, row_by_row(moe, x, aux.routing_weights), atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("rows", [5, LOOP_ROWS])
def test_linear_experts_may_be_mixed_either_way(rows: int) -> None:
    moe = filled(hidden_dims=())
    x, ids = batch(rows)
    assert_close(moe(x, ids), twin(moe, hidden_dims=(), mix="outputs")(x, ids), atol=1e-12, rtol=1e-12)


def test_experts_with_hidden_layers_are_another_model_than_their_mixed_outputs() -> None:
    moe = filled()
    x, ids = batch(20)
    assert not torch.allclose(moe(x, ids), twin(moe, mix="outputs")(x, ids), atol=1e-3)


def test_equal_experts_are_one_expert_however_they_are_mixed() -> None:
    moe = filled()
    for parameter in (*moe.weights, *moe.biases):
        parameter.data.copy_(parameter.data[:1].expand_as(parameter))
    x, ids = batch(20)
    assert_close(moe(x, ids), twin(moe, mix="outputs")(x, ids))


def test_cell_by_cell_and_all_at_once_have_one_result_and_one_gradient() -> None:
    """A batch is computed cell by cell from some size on; its first rows alone, all at once."""
    moe = filled(norm="layer", film_features=3, residual=True)
    x, ids = batch(LOOP_ROWS)
    x.requires_grad_()
    film = draw(3, LOOP_ROWS, 3)
    half = LOOP_ROWS // 2

    def gradients(out: Tensor) -> tuple[Tensor, ...]:
        return torch.autograd.grad(out.sin().sum(), [x, *moe.parameters()])

    def part(rows: slice) -> Tensor:
        result: Tensor = moe(x[rows], {c: i[rows] for c, i in ids.items()}, film_context=film[rows])
        return result

    whole = moe(x, ids, film_context=film)
    parts = torch.cat([part(slice(0, half)), part(slice(half, None))])
    assert_close(whole, parts, atol=1e-12, rtol=1e-12)
    for one, other in zip(gradients(whole), gradients(parts), strict=True):
        assert_close(one, other, atol=1e-10, rtol=1e-10)


def test_ids_that_training_has_not_seen_share_the_network_of_the_unknown() -> None:
    moe = filled(cardinalities={"location": 4})
    assert moe.embedding is not None
    moe.embedding.observe({"location": torch.tensor([1, 2])})
    x = draw(0, LOOP_ROWS, 5)
    unseen = moe(x, {"location": torch.full((LOOP_ROWS,), 3)})
    assert_close(unseen, moe(x, {"location": torch.zeros(LOOP_ROWS, dtype=torch.int64)}))


def test_many_cells_of_few_rows_each() -> None:
    """More cells than are worth a network of their own."""
    moe = filled(cardinalities={"location": LOOP_ROWS})
    x, ids = draw(0, LOOP_ROWS, 5), {"location": torch.arange(LOOP_ROWS)}
    _, aux = moe(x, ids, return_aux=True)
    assert_close(moe(x, ids), row_by_row(moe, x, aux.routing_weights), atol=1e-12, rtol=1e-12)


@pytest.mark.parametrize("shape", [(), (3,), (2, 3), (LOOP_ROWS, 2), (0,)])
def test_ids_of_rows_go_with_features_of_sequences(shape: tuple[int, ...]) -> None:
    moe = filled()
    x = draw(0, *shape, 5)
    rng = torch.Generator().manual_seed(1)
    each = {c: torch.randint(0, n, shape, generator=rng) for c, n in COLUMNS.items()}
    assert moe(x, each).shape == (*shape, 2)
    if len(shape) == 2:
        first = {c: i[:, 0] for c, i in each.items()}
        spread = {c: i.unsqueeze(1).expand(shape) for c, i in first.items()}
        assert_close(moe(x, first), moe(x, spread))


def test_a_dense_context_routes_too() -> None:
    embedding = CategoryEmbedding(COLUMNS, 2, dtype=torch.float64)
    moe = filled(cardinalities=None, context_features=embedding.embedding_features)
    x, ids = batch(LOOP_ROWS)
    dense, gathered = embedding(ids), embedding.context(ids)
    assert_close(moe(x, context=dense), moe(x, context=gathered), atol=1e-12, rtol=1e-12)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("rows", [20, LOOP_ROWS])
def test_autocast_is_close_to_full_precision(rows: int) -> None:
    moe = filled().float()
    x, ids = batch(rows)
    exact = moe(x.float(), ids)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = moe(x.float(), ids)
    assert (out.float() - exact).abs().max() <= 0.04 * exact.abs().max()


def test_dropout_draws_for_each_row() -> None:
    moe = filled(dropout=0.5).train()
    x = torch.ones(LOOP_ROWS, 5, dtype=torch.float64)
    torch.manual_seed(0)
    out = moe(x, {c: torch.ones(LOOP_ROWS, dtype=torch.int64) for c in COLUMNS})
    assert len(out[:, 0].unique()) > 1
    assert len(moe.eval()(x, {c: torch.ones(LOOP_ROWS, dtype=torch.int64) for c in COLUMNS})[:, 0].unique()) == 1


@pytest.mark.parametrize("gate", ["top_k", "hard"])
def test_gates_that_choose_experts_are_refused(gate: str) -> None:
    message = f'mix="parameters" makes one expert of all and needs gate="soft", got gate={gate!r}'
    with pytest.raises(ValueError, match=re.escape(message)):
        filled(gate=gate)


def test_what_is_mixed_is_one_of_two() -> None:
    with pytest.raises(ValueError, match=r"mix must be one of 'outputs', 'parameters', got 'output'; did you mean"):
        filled(mix="output")
