"""FiLM, the layer around it, and what they promise about starts and unknown categories."""

import itertools

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.testing import assert_close

from reghead.nn import CategoryEmbedding, FiLM, FiLMLayer

F64 = torch.float64
COLUMNS = {"location": 4, "season": 3}


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def at(location: list[int], season: list[int]) -> dict[str, Tensor]:
    return {"location": torch.tensor(location), "season": torch.tensor(season)}


def fill(module: nn.Module, seed: int = 0) -> None:
    for i, parameter in enumerate(module.parameters()):
        parameter.data = draw(seed + i, *parameter.shape).to(parameter.dtype)


IDS = at([0, 1, 2, 3, 1], [1, 2, 0, 1, 2])


# The start


def test_it_starts_as_the_identity_bit_for_bit() -> None:
    x = draw(0, 5, 6).float()
    assert torch.equal(FiLM(3, 6)(x, draw(1, 5, 3).float()), x)
    embedding = CategoryEmbedding(COLUMNS, 2)
    assert torch.equal(FiLM(4, 6)(x, embedding.context(IDS)), x)


@pytest.mark.parametrize("init", [nn.init.xavier_uniform_, nn.init.kaiming_normal_])
def test_it_stays_the_identity_when_a_parent_initialises_every_linear_again(init: object) -> None:
    layer = FiLMLayer(3, 6, COLUMNS)
    for module in layer.modules():
        if isinstance(module, nn.Linear):
            init(module.weight)  # type: ignore[operator]
            nn.init.zeros_(module.bias)
    x = draw(0, 5, 3).float()
    assert torch.equal(layer(x, IDS), F.relu(F.linear(x, layer.linear.weight)))


def test_reset_parameters_makes_it_the_identity_again() -> None:
    layer = FiLMLayer(3, 6, COLUMNS)
    fill(layer)
    layer.reset_parameters()
    x = draw(0, 5, 3).float()
    assert torch.equal(layer(x, IDS), F.relu(layer.linear(x)))


def test_an_unknown_category_is_the_identity_after_any_training() -> None:
    torch.manual_seed(0)
    embedding, film = CategoryEmbedding(COLUMNS, 4), FiLM(8, 6)
    optimizer = torch.optim.AdamW([*embedding.parameters(), *film.parameters()], lr=0.05, weight_decay=0.3)
    x, target = draw(1, 5, 6).float(), draw(2, 5, 6).float()
    known, unknown = at([1, 2, 3, 0, 0], [1, 2, 0, 1, 0]), at([0] * 5, [0] * 5)
    for _ in range(60):
        optimizer.zero_grad()
        loss = (film(x, embedding.context(known)) - target).square().sum()
        loss = loss + (film(x, embedding.context(unknown)) - target).square().sum()
        loss.backward()
        optimizer.step()
    assert torch.equal(film(x, embedding.context(unknown)), x)
    assert (film(x, embedding.context(known))[:4] - x[:4]).abs().sum(-1).min() > 0.1


def test_the_first_step_moves_the_projection_and_the_second_the_embedding() -> None:
    layer = FiLMLayer(3, 6, COLUMNS)
    optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
    x, moved = draw(0, 5, 3).float(), []
    assert layer.embedding is not None
    for _ in range(2):
        before = {name: p.detach().clone() for name, p in layer.named_parameters()}
        optimizer.zero_grad()
        layer(x, IDS).square().sum().backward()
        optimizer.step()
        moved.append({name for name, p in layer.named_parameters() if not torch.equal(p, before[name])})
    projection = {"film.weight_gamma", "film.weight_beta"}
    table = {"embedding.weight_location", "embedding.weight_season"}
    assert projection <= moved[0]
    assert not table & moved[0]
    assert projection | table <= moved[1]


# What it computes


def test_factor_and_shift_are_linear_in_the_context() -> None:
    film, x, context = FiLM(3, 2, dtype=F64), draw(0, 4, 2), draw(1, 4, 3)
    fill(film, 5)
    got = film(x, context)
    for b, f in itertools.product(range(4), range(2)):
        gamma = 1 + sum(film.weight_gamma[f, c] * context[b, c] for c in range(3))
        beta = sum(film.weight_beta[f, c] * context[b, c] for c in range(3))
        assert_close(got[b, f], gamma * x[b, f] + beta)


@pytest.mark.parametrize("columns", [{"a": 5}, {"a": 5, "b": 3}, {"a": 40, "b": 50}, {"a": 2, "b": 3, "c": 300}])
def test_ids_and_their_dense_embedding_agree_in_values_and_gradients(columns: dict[str, int]) -> None:
    # The products 5, 15, 2000 and 1800 stand for one column, few cells, and many cells.
    embedding, film = CategoryEmbedding(columns, 3, dtype=F64), FiLM(3 * len(columns), 4, dtype=F64)
    fill(embedding, 1)
    fill(film, 7)
    ids = {c: torch.arange(12) * 7 % n for c, n in columns.items()}
    x, cotangent = draw(2, 12, 4), draw(3, 12, 4)
    parameters = [*embedding.parameters(), *film.parameters()]
    lazy, dense = film(x, embedding.context(ids)), film(x, embedding(ids))
    assert_close(lazy, dense)
    gradients = [torch.autograd.grad((out * cotangent).sum(), parameters) for out in (lazy, dense)]
    assert_close(*gradients)


@pytest.mark.parametrize("columns", [{"a": 5}, {"a": 5, "b": 3}])
def test_with_few_categories_the_rows_of_a_batch_have_no_factors_of_their_own(columns: dict[str, int]) -> None:
    """For wide features, memory is most of the time: nothing of the size of a batch is made but the result."""
    embedding, film = CategoryEmbedding(columns, 3), FiLM(3 * len(columns), 64)
    x = draw(0, 2**11, 64).float().requires_grad_()
    ids = {c: torch.arange(len(x)) % n for c, n in columns.items()}
    mine, sizes = x.untyped_storage().data_ptr(), []

    def pack(tensor: Tensor) -> Tensor:
        sizes.append(0 if tensor.untyped_storage().data_ptr() == mine else tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        film(x, embedding.context(ids)).sum().backward()
    assert 0 < max(sizes) <= len(x)  # the ids
    assert x.grad is not None
    assert torch.equal(x.grad, torch.ones_like(x))


@pytest.mark.parametrize("columns", [{"a": 5, "b": 3}, {"a": 40, "b": 50}])
def test_ids_of_rows_go_with_every_step_of_a_sequence(columns: dict[str, int]) -> None:
    layer = FiLMLayer(3, 4, columns, dtype=F64)
    fill(layer, 1)
    ids, x = {c: torch.tensor([0, 1, 2]) for c in columns}, draw(0, 3, 5, 3)
    steps = torch.stack([layer(x[:, s], ids) for s in range(5)], dim=1)
    assert_close(layer(x, ids), steps)
    assert_close(layer(x, {c: i[:, None].expand(3, 5) for c, i in ids.items()}), steps)


def test_the_order_is_linear_norm_film_activation_dropout() -> None:
    layer = FiLMLayer(3, 8, context_features=2, dropout=0.5, norm="layer", dtype=F64)
    fill(layer, 1)
    x, context = draw(0, 6, 3), draw(9, 6, 2)
    assert isinstance(layer.norm, nn.LayerNorm)
    assert layer.film is not None
    pre = layer.film(layer.norm(layer.linear(x)), context)
    assert_close(layer.eval()(x, context=context), pre.relu())
    torch.manual_seed(3)
    got = layer.train()(x, context=context)
    torch.manual_seed(3)
    assert_close(got, F.dropout(pre.relu(), 0.5))
    assert (pre < 0).any()


@pytest.mark.parametrize("activation", ["relu", "gelu", "silu", "tanh", "elu", "leaky_relu"])
def test_activations_follow_the_modulation(activation: str) -> None:
    layer, x = FiLMLayer(3, 4, context_features=2, activation=activation), draw(0, 5, 3).float()
    assert torch.equal(layer(x, context=torch.ones(5, 2)), getattr(F, activation)(layer.linear(x)))


def test_a_context_of_ids_may_come_from_a_shared_embedding() -> None:
    embedding, layer = CategoryEmbedding(COLUMNS, 2), FiLMLayer(3, 4, context_features=4)
    fill(layer)
    x = draw(0, 5, 3).float()
    assert_close(layer(x, context=embedding.context(IDS)), layer(x, context=embedding(IDS)))


@pytest.mark.parametrize("batch", [0, 1])
def test_small_batches(batch: int) -> None:
    layer = FiLMLayer(3, 4, COLUMNS)
    ids = {c: torch.zeros(batch, dtype=torch.int64) for c in COLUMNS}
    assert layer(torch.zeros(batch, 3), ids).shape == (batch, 4)


def test_repr_names_both_widths() -> None:
    assert repr(FiLM(3, 6)) == "FiLM(context_features=3, num_features=6)"


# Errors


@pytest.mark.parametrize("given", [{}, {"cardinalities": COLUMNS, "context_features": 3}])
def test_one_source_of_the_context_is_needed(given: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="exactly one of cardinalities and context_features must be given"):
        FiLMLayer(3, 4, **given)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: FiLM(0, 3), "context_features must be at least 1, got 0"),
        (lambda: FiLM(3, 0), "num_features must be at least 1, got 0"),
        (lambda: FiLMLayer(3, 4, {}), "cardinalities must name at least one column"),
        (lambda: FiLMLayer(3, 4, COLUMNS, dropout=1.0), "dropout must be finite and >= 0 and < 1, got 1.0"),
        (lambda: FiLMLayer(3, 4, COLUMNS, activation="rleu"), "activation must be one of .*did you mean 'relu'"),
        (lambda: FiLMLayer(3, 4, COLUMNS, norm="batch"), "norm must be one of None, 'layer', 'rms', got 'batch'"),
        (lambda: FiLMLayer(3, 4, COLUMNS, embedding_dim=0), "embedding_dim must be at least 1, got 0"),
    ],
)
def test_layers_that_cannot_be_built(build: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()  # type: ignore[operator]


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: FiLM(2, 3)(torch.ones(4, 3), torch.ones(4, 1)), ValueError, r"context must have shape .* C = 2"),
        (lambda: FiLM(2, 3)(torch.ones(4, 2), torch.ones(4, 2)), ValueError, r"x must have shape .* F = 3"),
        (lambda: FiLM(2, 3)(torch.ones(4, 3), torch.ones(5, 2)), ValueError, "must have the leading dimensions of x"),
        (
            lambda: FiLM(3, 3)(torch.ones(5, 3), CategoryEmbedding(COLUMNS, 2).context(IDS)),
            ValueError,
            "context must have 3 features, got 4",
        ),
        (
            lambda: FiLMLayer(2, 3, context_features=2)(torch.ones(4, 2)),
            ValueError,
            "context must be given: this layer was built with context_features",
        ),
        (
            lambda: FiLMLayer(2, 3, COLUMNS)(torch.ones(5, 2), IDS, context=torch.ones(5, 32)),
            ValueError,
            "context must not be given: this layer was built with cardinalities and takes categories",
        ),
        (lambda: FiLMLayer(2, 3, COLUMNS)(torch.ones(5, 2)), TypeError, "needs categories: .* got None"),
        (lambda: FiLMLayer(2, 3, COLUMNS)(torch.ones(5, 4), IDS), ValueError, "x must have shape .* in_features = 2"),
    ],
)
def test_inputs_that_do_not_fit(call: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        call()  # type: ignore[operator]


def test_categories_for_a_layer_of_dense_context_are_refused() -> None:
    layer = FiLMLayer(2, 3, context_features=4)
    with pytest.raises(ValueError, match="categories must not be given: this layer was built with context_features"):
        layer(torch.ones(1, 2), {"site": torch.tensor([1])}, context=torch.ones(1, 4))
