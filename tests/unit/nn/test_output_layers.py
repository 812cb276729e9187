"""The last steps of a head: output activations and quantile shaping."""

import math
from statistics import NormalDist

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.testing import assert_close

from reghead.nn import OutputActivation, QuantileOutput


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


X = torch.linspace(-6, 6, 25, dtype=torch.float64)


@pytest.mark.parametrize(
    ("activation", "expected"),
    [
        (OutputActivation("relu"), X.clamp(min=0)),
        (OutputActivation("softplus"), (1 + X.exp()).log()),
        (OutputActivation("exp"), math.e**X),
        (OutputActivation("bounded"), 1 / (1 + (-X).exp())),
        (OutputActivation("bounded", (-2.0, 6.0)), -2 + 8 / (1 + (-X).exp())),
    ],
)
def test_activations_are_their_formulas_and_monotone(activation: OutputActivation, expected: Tensor) -> None:
    assert_close(activation(X), expected)
    assert (activation(X).diff() >= 0).all()
    assert activation(X.reshape(5, 5)).shape == (5, 5)
    assert activation(torch.zeros(0, 2)).shape == (0, 2)
    assert not list(activation.parameters())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_bounds_are_reached_and_not_passed(dtype: torch.dtype) -> None:
    activation = OutputActivation("bounded", (2.0, 10.0))
    got = activation(torch.tensor([-1e4, 0.0, 1e4], dtype=dtype))
    assert got.tolist() == [2, 6, 10]
    assert got.dtype == dtype


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (("tanh",), ValueError, "activation must be one of 'relu', 'softplus', 'exp', 'bounded', got 'tanh'"),
        (("sotfplus",), ValueError, "did you mean 'softplus'"),
        ((None,), ValueError, "activation must be one of"),
        (("bounded", (1.0, 1.0)), ValueError, r"bounds must be increasing, got \(1.0, 1.0\)"),
        (("bounded", (2.0, 1.0)), ValueError, "bounds must be increasing"),
        (("bounded", (0.0, math.inf)), ValueError, r"bounds\[1\] must be finite, got inf"),
        (("bounded", (0.0, "1")), TypeError, r"bounds\[1\] must be a number, got '1'"),
        (("bounded", (0.0, 1.0, 2.0)), ValueError, r"bounds must be a pair \(lower, upper\), got \(0.0, 1.0, 2.0\)"),
    ],
)
def test_activations_that_cannot_be(arguments: tuple[object, ...], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        OutputActivation(*arguments)  # type: ignore[arg-type]


def test_repr() -> None:
    assert repr(OutputActivation("relu")) == "OutputActivation('relu')"
    assert repr(OutputActivation("bounded", (0, 2))) == "OutputActivation('bounded', bounds=(0.0, 2.0))"
    assert repr(QuantileOutput([0.1, 0.5])) == "QuantileOutput([0.1, 0.5], non_crossing=True)"


# Quantiles


def test_free_quantiles_are_raw_in_training_and_sorted_in_eval_mode() -> None:
    layer, raw = QuantileOutput([0.1, 0.5, 0.9], non_crossing=False), draw(0, 20, 2, 3)
    assert torch.equal(layer(raw), raw)
    assert torch.equal(layer.eval()(raw), raw.sort(-1).values)
    assert not layer.training


def test_ordered_quantiles_are_the_same_in_both_modes() -> None:
    layer, raw = QuantileOutput([0.1, 0.5, 0.9]), draw(0, 20, 2, 3)
    assert torch.equal(layer(raw), layer.eval()(raw))
    assert (layer(raw).diff(dim=-1) > 0).all()


@pytest.mark.parametrize(
    ("levels", "anchor"), [([0.5, 0.9, 0.95], 0), ([0.1, 0.9], 0), ([0.05, 0.2], 1), ([0.9], 0), ([0.1, 0.5, 0.9], 1)]
)
def test_the_anchor_is_the_level_nearest_a_half_and_is_not_shaped(levels: list[float], anchor: int) -> None:
    layer, raw = QuantileOutput(levels), draw(0, 4, len(levels))
    assert layer.anchor == anchor
    assert torch.equal(layer(raw)[:, anchor], raw[:, anchor])


def test_a_cast_of_the_module_bends_no_level() -> None:
    levels = (0.001, 0.5, 0.999)
    layer = QuantileOutput(levels).bfloat16()
    assert layer.quantiles == levels
    assert not layer.state_dict()
    z = NormalDist().inv_cdf(0.999)
    assert_close(layer(torch.zeros(1, 3, dtype=torch.float64)), torch.tensor([[-z, 0, z]], dtype=torch.float64))
    assert layer(torch.zeros(1, 3, dtype=torch.bfloat16)).dtype == torch.bfloat16


def test_levels_may_be_a_tensor() -> None:
    assert QuantileOutput(torch.tensor([0.25, 0.5])).quantiles == (0.25, 0.5)


@pytest.mark.parametrize("non_crossing", [False, True])
def test_one_level_and_small_batches(non_crossing: bool) -> None:
    layer = QuantileOutput([0.5], non_crossing=non_crossing).eval()
    for batch in (0, 1):
        raw = draw(0, batch, 2, 1)
        assert torch.equal(layer(raw), raw)


@pytest.mark.parametrize("non_crossing", [False, True])
def test_quantile_outputs_that_cannot_be(non_crossing: bool) -> None:
    with pytest.raises(ValueError, match=r"raw must have shape \(\*, Q\) with Q = 2, got \(4, 3\)"):
        QuantileOutput([0.1, 0.9], non_crossing=non_crossing)(torch.zeros(4, 3))
    with pytest.raises(ValueError, match="quantiles must be strictly increasing"):
        QuantileOutput([0.9, 0.1], non_crossing=non_crossing)


def test_gradients_of_ordered_quantiles() -> None:
    layer = QuantileOutput([0.05, 0.3, 0.45, 0.9])
    assert torch.autograd.gradcheck(layer, draw(0, 2, 3, 4).requires_grad_())


def test_softplus_matches_at_extreme_values() -> None:
    x = torch.tensor([-1e4, 1e4])
    assert OutputActivation("softplus")(x).tolist() == F.softplus(x).tolist() == [0, 1e4]
