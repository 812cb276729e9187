"""What holds for layers with any parameters and any inputs."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from reghead.functional import film, pinball_loss, sort_quantiles
from reghead.nn import (
    MLP,
    CategoryEmbedding,
    ConditionalScaler,
    FiLM,
    MixtureOfExperts,
    OutputActivation,
    QuantileOutput,
)

SEEDS = st.integers(0, 2**32 - 1)
SIZES = st.integers(1, 6)


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def ids(seed: int, rows: int, sizes: dict[str, int]) -> dict[str, Tensor]:
    rng = torch.Generator().manual_seed(seed)
    return {column: torch.randint(n, (rows,), generator=rng) for column, n in sizes.items()}


def fill(module: torch.nn.Module, seed: int, size: float = 1.0) -> None:
    for i, parameter in enumerate(module.parameters()):
        parameter.data = size * draw(seed + i, *parameter.shape)


@given(seed=SEEDS, n=SIZES, m=SIZES, rows=st.integers(0, 5))
def test_film_of_any_ids_is_film_of_their_embedding(seed: int, n: int, m: int, rows: int) -> None:
    sizes = {"a": n, "b": m}
    embedding, layer = CategoryEmbedding(sizes, 2, dtype=torch.float64), FiLM(4, 3, dtype=torch.float64)
    fill(embedding, seed)
    fill(layer, seed + 10)
    x, labels = draw(seed, rows, 3), ids(seed, rows, sizes)
    assert_close(layer(x, embedding.context(labels)), layer(x, embedding(labels)))


@given(seed=SEEDS)
def test_film_composes_as_affine_maps_do(seed: int) -> None:
    x, a, b, c, d = (draw(seed + i, 4, 3) for i in range(5))
    assert_close(film(film(x, a, b), c, d), film(x, a * c, b * c + d))


@given(seed=SEEDS, size=st.sampled_from([0.1, 1.0, 30.0]), compose=st.sampled_from(["sequential", "additive"]))
def test_positive_scaling_keeps_the_order_of_quantiles(seed: int, size: float, compose: str) -> None:
    sizes = {"a": 3, "b": 4}
    layer = ConditionalScaler(sizes, 2, compose=compose, positive=True, cells=True, output_dim=-2).double()  # type: ignore[arg-type]
    fill(layer, seed, size)
    got = layer(draw(seed, 6, 2, 5).sort(-1).values, ids(seed, 6, sizes))
    assert (got.diff(dim=-1) >= 0).all()


@given(seed=SEEDS)
def test_additive_scaling_does_not_depend_on_the_order_of_columns(seed: int) -> None:
    sizes = {"a": 3, "b": 4, "c": 2}
    one = ConditionalScaler(sizes, 2, compose="additive", dtype=torch.float64)
    other = ConditionalScaler(dict(reversed(sizes.items())), 2, compose="additive", dtype=torch.float64)
    fill(one, seed)
    other.load_state_dict(one.state_dict())
    x, labels = draw(seed, 6, 2), ids(seed, 6, sizes)
    assert_close(one(x, labels), other(x, labels))


@given(seed=SEEDS)
def test_scaling_is_affine_in_its_input(seed: int) -> None:
    layer, sizes = ConditionalScaler({"a": 3, "b": 4}, 2, dtype=torch.float64), {"a": 3, "b": 4}
    fill(layer, seed)
    x, y, labels = draw(seed, 5, 2), draw(seed + 1, 5, 2), ids(seed, 5, sizes)
    assert_close(layer(0.3 * x + 0.7 * y, labels), 0.3 * layer(x, labels) + 0.7 * layer(y, labels))


@settings(max_examples=40)
@given(
    seed=SEEDS,
    experts=st.integers(1, 5),
    how=st.sampled_from([{"gate": "soft"}, {"gate": "top_k"}, {"gate": "hard"}, {"mix": "parameters"}]),
)
def test_experts_that_agree_make_a_mixture_that_agrees(seed: int, experts: int, how: dict[str, str]) -> None:
    moe = MixtureOfExperts(  # type: ignore[call-overload]
        3, 2, experts, (4,), route_features=True, top_k=min(2, experts), dtype=torch.float64, **how
    )
    fill(moe, seed)
    for parameter in (*moe.weights, *moe.biases):
        parameter.data = parameter.data[:1].expand_as(parameter).clone()
    x = draw(seed, 6, 3)
    alone = (x @ moe.weights[0][0] + moe.biases[0][0]).relu() @ moe.weights[1][0] + moe.biases[1][0]
    assert_close(moe(x), alone)


@given(seed=SEEDS, experts=st.integers(1, 5), rows=st.integers(0, 6))
def test_mixing_the_parameters_of_linear_experts_is_mixing_their_outputs(seed: int, experts: int, rows: int) -> None:
    sizes = {"a": 3, "b": 2}
    one, other = (
        MixtureOfExperts(3, 2, experts, cardinalities=sizes, mix=mix, dtype=torch.float64)  # type: ignore[arg-type]
        for mix in ("parameters", "outputs")
    )
    fill(one, seed)
    other.load_state_dict(one.state_dict())
    x, labels = draw(seed, rows, 3), ids(seed, rows, sizes)
    assert_close(one(x, labels), other(x, labels))


@given(seed=SEEDS, k=st.integers(2, 4))
def test_members_with_the_same_parameters_agree(seed: int, k: int) -> None:
    mlp = MLP(3, 2, (4, 3), ensemble=k, dtype=torch.float64)
    fill(mlp, seed)
    own = ("linear.bias", "_scale", "output.weight", "output.bias")
    for name, parameter in mlp.named_parameters():
        if name.endswith(own):
            parameter.data = parameter.data[:1].expand_as(parameter).clone()
    out = mlp(draw(seed, 5, 3))
    assert_close(out, out[:, :1].expand_as(out))


@given(seed=SEEDS, size=st.sampled_from([1.0, 100.0, 1e4]), count=SIZES)
def test_quantiles_of_any_weights_are_sorted(seed: int, size: float, count: int) -> None:
    levels = [(i + 1) / (count + 1) for i in range(count)]
    got = QuantileOutput(levels)(size * draw(seed, 5, 2, count))
    assert torch.equal(got, got.sort(-1).values)


@given(seed=SEEDS)
def test_sorting_never_makes_the_pinball_loss_worse(seed: int) -> None:
    preds, target, levels = draw(seed, 8, 2, 5), draw(seed + 1, 8, 2), [0.05, 0.2, 0.5, 0.7, 0.9]
    assert pinball_loss(sort_quantiles(preds), target, levels) <= pinball_loss(preds, target, levels) + 1e-12


@given(seed=SEEDS, name=st.sampled_from(["relu", "softplus", "exp", "bounded"]), size=st.floats(0.1, 300))
def test_output_activations_keep_the_order_of_quantiles_and_their_range(seed: int, name: str, size: float) -> None:
    got = OutputActivation(name, (-1.0, 3.0))((size * draw(seed, 4, 6)).sort(-1).values)
    assert (got.diff(dim=-1) >= 0).all()
    assert (got >= (-1 if name == "bounded" else 0)).all()
    assert name != "bounded" or (got <= 3).all()
