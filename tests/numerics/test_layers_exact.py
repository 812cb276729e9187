"""Layers and what they are made of, at the ends of float32, against decimals of 60 digits and NumPy float64."""

import math
from collections.abc import Callable
from decimal import Context, Decimal
from statistics import NormalDist

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from reghead import functional as R
from reghead.nn import ConditionalScaler, FiLM, LearnableScale, MixtureOfExperts, OutputActivation, QuantileOutput

DIGITS = Context(prec=60, Emin=-(10**15), Emax=10**15)
U = {torch.float64: 2.0**-53, torch.float32: 2.0**-24}
BOTH = pytest.mark.parametrize("dtype", U, ids=["float64", "float32"])
POINTS = [0.0, 1e-40, 1e-30, 1e-8, 0.3, 1.0, 5.0, 19.0, 25.0, 80.0, 103.0, 600.0, 1e9, 1e30]
POINTS = [*POINTS, *(-x for x in POINTS)]


def exp(x: float) -> Decimal:
    return DIGITS.exp(Decimal(max(-1e6, min(x, 1e6))))  # what is beyond is beyond every dtype too


def sigmoid(x: float) -> Decimal:
    return DIGITS.divide(Decimal(1), DIGITS.add(Decimal(1), exp(-x)))


def softplus(x: float) -> Decimal:
    if x < -100:
        return exp(x)  # the next term is smaller by e^-100
    return DIGITS.add(Decimal(x), Decimal(0)) if x > 1000 else DIGITS.ln(DIGITS.add(Decimal(1), exp(x)))


def compare(
    function: Callable[[Tensor], Tensor],
    exact: Callable[[float], Decimal],
    dtype: torch.dtype,
    roundings: float,
    *,
    relative: float = 0.0,
    absolute: float = 0.0,
    condition: Callable[[float], float] = lambda x: 0.0,
) -> None:
    """``function`` is within so many roundings of ``exact`` at all points where that is a number of the dtype.

    ``condition`` is by how much a rounding of the input itself moves the result, in roundings.
    """
    x = torch.tensor(POINTS, dtype=dtype)
    info = torch.finfo(dtype)
    for point, got in zip(x.double().tolist(), function(x).double().tolist(), strict=True):
        wanted = exact(point)
        if wanted > Decimal(info.max):
            assert got == math.inf, point
            continue
        bound = Decimal((roundings + condition(point)) * U[dtype] + relative) * abs(wanted)
        assert abs(Decimal(got) - wanted) <= bound + Decimal(absolute + 4 * info.smallest_normal), (point, got, wanted)


@BOTH
def test_softplus_is_right_to_a_few_roundings_or_to_1e_10(dtype: torch.dtype) -> None:
    """From 20 on it is its input, which is 2e-9 too little: more than a rounding in float64 alone."""
    compare(OutputActivation("softplus"), softplus, dtype, 8, absolute=2.1e-9 if dtype == torch.float64 else 0.0)


@BOTH
def test_exp_is_right_to_a_few_roundings_and_infinite_beyond_the_dtype(dtype: torch.dtype) -> None:
    compare(OutputActivation("exp"), exp, dtype, 4)


@BOTH
@pytest.mark.parametrize("bounds", [(0.0, 1.0), (-3.0, 4.0), (1e9, 1e9 + 64.0), (-1e30, 1e30), (0.57, 1.18)])
def test_a_bounded_activation_is_off_by_roundings_of_its_bounds_and_never_outside(
    dtype: torch.dtype, bounds: tuple[float, float]
) -> None:
    low, high = (torch.tensor(b, dtype=dtype).item() for b in bounds)
    module = OutputActivation("bounded", bounds)

    def exact(x: float) -> Decimal:
        return DIGITS.add(Decimal(low), DIGITS.multiply(Decimal(high) - Decimal(low), sigmoid(x)))

    compare(module, exact, dtype, 0, absolute=6 * U[dtype] * max(abs(low), abs(high)))
    out = module(torch.tensor(POINTS, dtype=dtype))
    assert ((low <= out) & (out <= high)).all()


@BOTH
@pytest.mark.parametrize("size", [1e-30, 1.0, 1e4, 1e30])
def test_ordered_quantiles_are_normal_gaps_stretched(dtype: torch.dtype, size: float) -> None:
    levels = (0.001, 0.2, 0.5, 0.9, 0.999)
    rng = np.random.default_rng(0)
    raw = torch.from_numpy(rng.normal(size=(20, 1, 5)) * size).to(dtype)
    z = np.array([NormalDist().inv_cdf(level) for level in levels])
    wide = raw.numpy().astype(np.longdouble)
    stretch = np.where(
        wide > 700, wide + np.log(np.longdouble(math.e - 1)), np.log1p((math.e - 1) * np.exp(wide.clip(max=700)))
    )
    below = np.cumsum((stretch[..., :2] * np.diff(z)[:2])[..., ::-1], -1)[..., ::-1]
    above = np.cumsum(stretch[..., 3:] * np.diff(z)[2:], -1)
    exact = np.concatenate([wide[..., 2:3] - below, wide[..., 2:3], wide[..., 2:3] + above], -1)
    scale = np.abs(exact).max(-1, keepdims=True)
    for got in (QuantileOutput(levels)(raw), R.non_crossing_quantiles(raw, levels)):
        assert (np.abs(got.numpy() - exact) <= (16 * U[dtype] + 3e-9 * (dtype == torch.float64)) * scale).all()
        assert (got.diff(dim=-1) >= 0).all()


def test_sorting_takes_every_value() -> None:
    values = torch.tensor([math.inf, 5e-324, -math.inf, 0.0, 1e308, -1e-300], dtype=torch.float64)
    assert torch.equal(R.sort_quantiles(values), torch.from_numpy(np.sort(values.numpy())))
    assert R.sort_quantiles(torch.tensor([1.0, math.nan, 0.0])).isnan().tolist() == [False, False, True]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("temperature", [1e-6, 1.0, 1e6])
def test_routing_is_the_softmax_of_the_rounded_logits(dtype: torch.dtype, temperature: float) -> None:
    rng = torch.Generator().manual_seed(0)
    for size in (1e-3, 1.0, 1e4):
        logits = (size * torch.randn(50, 4, generator=rng, dtype=torch.float64)).to(dtype)
        x = logits.double().numpy()
        scaled = (x - x.max(-1, keepdims=True)) / temperature
        exact = np.exp(scaled) / np.exp(scaled).sum(-1, keepdims=True)
        got = R.routing_weights(logits, temperature=temperature)
        assert got.dtype == torch.promote_types(dtype, torch.float32)
        # A rounding of x / T is an error of x / T roundings of the weight, which is exp(-x / T).
        np.testing.assert_allclose(got.double().numpy(), exact, rtol=0, atol=8 * U[got.dtype])
        assert_close(got.sum(-1).double(), torch.ones(50).double(), rtol=0, atol=8 * U[got.dtype])


def test_routing_of_logits_at_the_ends_of_float32() -> None:
    logits = torch.tensor([[3e38, 3e38], [-3e38, 3e38], [1e-40, 0.0], [0.0, -math.inf]])
    expected = torch.tensor([[0.5, 0.5], [0.0, 1.0], [0.5, 0.5], [1.0, 0.0]])
    assert torch.equal(R.routing_weights(logits), expected)
    for unknown in ([math.inf, 0.0], [-math.inf, -math.inf], [math.nan, 0.0]):
        assert R.routing_weights(torch.tensor([unknown])).isnan().all()


def test_the_entropy_of_weights_at_the_ends_of_float32() -> None:
    for p in (0.0, 1e-45, 1e-38, 1e-30, 1e-3, 0.5):
        exact = -sum(w * math.log(w) for w in (p, 1 - p) if w)
        # Subnormal weights count as the smallest normal number under the logarithm.
        assert R.routing_entropy(torch.tensor([[p, 1 - p]])).item() == pytest.approx(exact, rel=1e-5, abs=1e-38)


def numbers(seed: int, *shape: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.normal(size=shape) * 10.0 ** rng.integers(-15, 16, shape)


@BOTH
def test_modulation_is_one_product_and_one_sum(dtype: torch.dtype) -> None:
    x, gamma, beta = (torch.from_numpy(numbers(i, 200, 3)).to(dtype) for i in range(3))
    exact = gamma.numpy().astype(np.longdouble) * x.numpy() + beta.numpy()
    size = np.abs(gamma.numpy().astype(np.longdouble) * x.numpy()) + np.abs(beta.numpy())
    assert (np.abs(R.film(x, gamma, beta).numpy() - exact) <= 2 * U[dtype] * size).all()


@BOTH
@pytest.mark.parametrize("compose", ["sequential", "additive"])
@pytest.mark.parametrize("positive", [False, True])
def test_scaling_by_two_columns_row_by_row(dtype: torch.dtype, compose: str, positive: bool) -> None:
    sizes = {"a": 4, "b": 3}
    layer = ConditionalScaler(sizes, 2, compose=compose, positive=positive, dtype=dtype)  # type: ignore[arg-type]
    rng = torch.Generator().manual_seed(0)
    for parameter in layer.parameters():
        parameter.data = (3 * torch.randn(parameter.shape, generator=rng, dtype=torch.float64)).to(dtype)
    ids = {c: torch.randint(0, n, (60,), generator=rng) for c, n in sizes.items()}
    x = torch.from_numpy(numbers(1, 60, 2)).to(dtype)
    out = layer(x, ids).detach().double().numpy()
    state = {name: p.detach().double().numpy() for name, p in layer.named_parameters()}
    for row in range(60):
        value, size = x[row].double().numpy(), np.abs(x[row].double().numpy())
        deltas = {
            kind: [state[f"{kind}_{c}"][ids[c][row] - 1] if ids[c][row] else np.zeros(2) for c in sizes]
            for kind in ("scale", "bias")
        }
        if compose == "additive":
            total = sum(deltas["scale"])
            deltas = {"scale": [total], "bias": [sum(deltas["bias"])]}
        for delta, bias in zip(deltas["scale"], deltas["bias"], strict=True):
            factor = np.exp(delta) if positive else 1 + delta
            value = factor * value + bias
            size = (np.exp(delta) if positive else 1 + np.abs(delta)) * size + np.abs(bias) + 1
        assert (np.abs(out[row] - value) <= 40 * U[dtype] * size).all()


@pytest.mark.parametrize("layer", [LearnableScale(2), ConditionalScaler({"a": 3}, 2), FiLM(2, 2)])
def test_an_identity_at_the_start_is_one_to_the_bit(layer: torch.nn.Module) -> None:
    x = torch.from_numpy(numbers(0, 50, 2)).float()
    arguments = {LearnableScale: (), ConditionalScaler: ({"a": torch.arange(50) % 3},), FiLM: (x,)}[type(layer)]
    assert torch.equal(layer(x, *arguments), x)


@BOTH
def test_a_mixture_mixes_outputs_of_any_size(dtype: torch.dtype) -> None:
    """Linear experts of one feature: the mixture is a number that can be written down."""
    moe = MixtureOfExperts(1, 1, 3, route_features=True, dtype=dtype)
    with torch.no_grad():
        for parameter, value in zip(
            (moe.weights[0], moe.biases[0], moe.router_bias, moe.router_features),
            ([1e-10, 1.0, 1e10], [1.0, -2.0, 1e5], [0.0, 1.0, -3.0], [2.0, 0.0, -1.0]),
            strict=True,
        ):
            assert parameter is not None
            parameter.copy_(torch.tensor(value, dtype=dtype).reshape(parameter.shape))
    x = torch.tensor([-1e4, -3.0, -1e-20, 0.0, 1e-3, 5.0, 1e4], dtype=dtype)
    inputs = x.double().numpy()
    weight, bias = moe.weights[0].detach().double().numpy().ravel(), moe.biases[0].detach().double().numpy().ravel()
    for got, value in zip(moe(x.unsqueeze(-1)).detach().flatten().double().tolist(), inputs, strict=True):
        logits = np.array([2.0, 0.0, -1.0]) * value + np.array([0.0, 1.0, -3.0])
        share = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
        terms = share * (value * weight + bias)
        size = np.abs(share) * (np.abs(value * weight) + np.abs(bias)) * (1 + np.abs(logits - logits.max()))
        assert abs(got - terms.sum()) <= 20 * U[dtype] * size.sum() + 1e-30
