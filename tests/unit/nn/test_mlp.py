"""Multilayer perceptrons: the sequence of layers, the skip, and what is refused."""

import itertools

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from reghead.nn import MLP, FiLM


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def as_sequential(mlp: MLP, dropout: float) -> nn.Sequential:
    """The same network in torch's own layers."""
    linears = [m for name, m in mlp.named_modules() if isinstance(m, nn.Linear) and name != "skip"]
    layers: list[nn.Module] = []
    for linear in linears[:-1]:
        layers += [linear, nn.ReLU(), nn.Dropout(dropout)]
    return nn.Sequential(*layers, linears[-1])


def test_hidden_layers_are_linear_relu_dropout_and_the_last_is_linear() -> None:
    mlp, x = MLP(128, 5, (64, 32), dropout=0.1), draw(0, 7, 128)
    same = as_sequential(mlp, 0.1)
    assert [tuple(m.weight.shape) for m in same if isinstance(m, nn.Linear)] == [(64, 128), (32, 64), (5, 32)]
    torch.manual_seed(1)
    got = mlp(x)
    torch.manual_seed(1)
    assert torch.equal(got, same(x))
    assert torch.equal(mlp.eval()(x), same.eval()(x))
    assert sum(isinstance(m, nn.Dropout) for m in mlp.modules()) == 2


def test_without_hidden_layers_it_is_one_linear_layer() -> None:
    mlp, x = MLP(4, 2), draw(0, 3, 4)
    (linear,) = (m for m in mlp.modules() if isinstance(m, nn.Linear))
    assert torch.equal(mlp(x), linear(x))
    assert sum(p.numel() for p in mlp.parameters()) == 10


def test_it_starts_as_torch_starts_its_layers() -> None:
    torch.manual_seed(0)
    ours = MLP(4, 2, (3,))
    torch.manual_seed(0)
    first, last = nn.Linear(4, 3), nn.Linear(3, 2)
    for got, expected in zip(ours.parameters(), [*first.parameters(), *last.parameters()], strict=True):
        assert torch.equal(got, expected)
    assert_close(ours(draw(0, 3, 4)), last(first(draw(0, 3, 4)).relu()))


def test_no_dropout_means_no_dropout_layer() -> None:
    assert not any(isinstance(m, nn.Dropout) for m in MLP(4, 2, (3,)).modules())


def test_residual_adds_a_linear_map_of_the_input() -> None:
    mlp, x = MLP(4, 2, (3,), residual=True), draw(0, 5, 4)
    assert mlp.skip is not None
    assert_close(mlp(x), mlp.skip(x) + as_sequential(mlp, 0.0)(x))
    with torch.no_grad():
        mlp.output.weight.zero_()
        mlp.output.bias.zero_()
    assert_close(mlp(x), mlp.skip(x))


def test_residual_keeps_a_gradient_to_the_input_where_hidden_units_are_dead() -> None:
    norms = {}
    for residual in (False, True):
        mlp, x = MLP(4, 1, (3, 3), residual=residual), draw(0, 5, 4).requires_grad_()
        for layer in mlp.layers:
            layer.linear.bias.data.fill_(-100.0)
        (gradient,) = torch.autograd.grad(mlp(x).sum(), x)
        norms[residual] = gradient.norm().item()
    assert norms[False] == 0
    assert norms[True] > 0.1


def test_a_context_modulates_every_hidden_layer_before_its_activation() -> None:
    mlp, x, context = MLP(4, 2, (5, 3), norm="rms", context_features=2), draw(0, 6, 4), draw(1, 6, 2)
    for i, parameter in enumerate(mlp.parameters()):
        parameter.data = draw(i, *parameter.shape)
    h = x
    for layer in mlp.layers:
        assert isinstance(layer.film, FiLM)
        h = layer.film(layer.norm(layer.linear(h)), context).relu()
    assert_close(mlp(x, context), mlp.output(h))
    assert not torch.equal(mlp(x, context), mlp(x, 2 * context))


def test_every_parameter_gets_a_gradient() -> None:
    mlp = MLP(4, 2, (8, 8), norm="layer", residual=True, context_features=2)
    mlp(draw(0, 6, 4), draw(1, 6, 2)).square().sum().backward()
    assert all(p.grad is not None for p in mlp.parameters())


def test_reset_parameters_draws_anew_and_makes_film_the_identity() -> None:
    mlp = MLP(4, 2, (5,), norm="layer", residual=True, context_features=2)
    for parameter in mlp.parameters():
        parameter.data.fill_(7.0)
    mlp.reset_parameters()
    x = draw(0, 6, 4)
    assert torch.equal(mlp(x, draw(1, 6, 2)), mlp(x, torch.zeros(6, 2)))
    assert not any((p == 7).any() for p in mlp.parameters())


@pytest.mark.parametrize("shape", [(0,), (1,), (3, 5), ()])
def test_any_leading_dimensions(shape: tuple[int, ...]) -> None:
    assert MLP(4, 2, (3,), residual=True)(torch.ones(*shape, 4)).shape == (*shape, 2)


@pytest.mark.parametrize(
    ("norm", "activation"), list(itertools.product((None, "layer", "rms"), ("gelu", "silu", "tanh")))
)
def test_norms_and_activations_by_name(norm: str | None, activation: str) -> None:
    mlp, x = MLP(4, 2, (3,), norm=norm, activation=activation), draw(0, 5, 4)
    (layer,) = mlp.layers
    h = layer.linear(x)
    if norm == "layer":
        h = (h - h.mean(-1, keepdim=True)) / (h.var(-1, keepdim=True, correction=0) + 1e-5).sqrt()
    elif norm == "rms":
        h = h / (h.square().mean(-1, keepdim=True) + torch.finfo(h.dtype).eps).sqrt()
    phi = torch.tanh if activation == "tanh" else getattr(nn.functional, activation)
    assert_close(mlp(x), mlp.output(phi(h)))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (
            {"residual": True},
            ValueError,
            r"residual needs hidden_dims, got none; use .* hidden_dims=\(64, 32\)",
        ),
        ({"context_features": 2}, ValueError, "context_features needs hidden_dims, got none"),
        ({"hidden_dims": (3, 0)}, ValueError, r"hidden_dims\[1\] must be at least 1, got 0"),
        ({"hidden_dims": 3}, TypeError, r"hidden_dims must be a sequence of integers such as \(64, 32\), got 3"),
        ({"hidden_dims": "64,32"}, TypeError, "hidden_dims must be a sequence of integers"),
        ({"hidden_dims": (3.0,)}, TypeError, r"hidden_dims\[0\] must be an integer, got 3.0"),
        ({"dropout": 2.0}, ValueError, "dropout must be finite and >= 0 and < 1, got 2.0"),
        ({"activation": "swish"}, ValueError, "activation must be one of"),
        ({"norm": "batch"}, ValueError, "norm must be one of"),
        ({"hidden_dims": (3,), "dropout": 1.0}, ValueError, "dropout must be finite and >= 0 and < 1, got 1.0"),
        ({"hidden_dims": (3,), "dropout": -0.1}, ValueError, "dropout must be finite and >= 0"),
        ({"hidden_dims": (3,), "activation": "step"}, ValueError, "activation must be one of 'relu'"),
        ({"hidden_dims": (3,), "norm": "batch"}, ValueError, "norm must be one of None, 'layer', 'rms'"),
        ({"hidden_dims": (3,), "context_features": 0}, ValueError, "context_features must be at least 1, got 0"),
        ({"in_features": 0}, ValueError, "in_features must be at least 1, got 0"),
        ({"out_features": True}, TypeError, "out_features must be an integer, got True"),
    ],
)
def test_networks_that_cannot_be(options: dict[str, object], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        MLP(**{"in_features": 4, "out_features": 2, **options})  # type: ignore[arg-type]


def test_inputs_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match=r"x must have shape \(\*, in_features\) with in_features = 4, got \(3, 5\)"):
        MLP(4, 2)(torch.ones(3, 5))
    with pytest.raises(ValueError, match="context must be given: this layer was built with context_features"):
        MLP(4, 2, (3,), context_features=2)(torch.ones(3, 4))


def test_a_context_that_nothing_reads_is_refused() -> None:
    with pytest.raises(ValueError, match="context must not be given: this network was built without context_features"):
        MLP(2, 1, (3,))(torch.ones(1, 2), context=torch.ones(1, 7))


@pytest.mark.parametrize(
    ("x", "message"),
    [
        ([[1.0, 2.0]], "x must be a torch.Tensor, got list"),
        (torch.ones(1, 2).long(), "x must be of a floating-point dtype, got torch.int64"),
    ],
)
def test_what_is_no_float_tensor_is_refused(x: object, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        MLP(2, 1)(x)
