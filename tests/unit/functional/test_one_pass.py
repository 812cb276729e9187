"""What eager mode computes in one pass is what plain operations give: values, gradients, and gradients of these."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from reghead.functional import (
    _product,
    asymmetric_loss,
    crps_loss,
    expectile_loss,
    huber_loss,
    huber_pinball_loss,
    mae_loss,
    mse_loss,
    per_output_loss,
    pinball_loss,
)

Loss = Callable[..., Tensor]
COLUMNS = {0: "mse", 1: "mae", 2: {"type": "huber", "delta": 0.7}, 3: {"type": "asymmetric", "over_penalty": 2.0}}
MORE = {4: {"type": "expectile", "expectile": 0.8, "weight": 3.0}, 5: {"type": "asymmetric", "base": "mae"}}
POINTS: dict[str, Loss] = {
    "mse": mse_loss,
    "mae": mae_loss,
    "huber": lambda *tensors, **rest: huber_loss(*tensors, 0.7, **rest),
    "asymmetric mse": lambda *tensors, **rest: asymmetric_loss(*tensors, 2.0, 0.5, **rest),
    "asymmetric mae": lambda *tensors, **rest: asymmetric_loss(*tensors, 2.0, 0.5, "mae", **rest),
    "asymmetric huber": lambda *tensors, **rest: asymmetric_loss(*tensors, 2.0, 0.5, "huber", 0.7, **rest),
    "expectile": lambda *tensors, **rest: expectile_loss(*tensors, 0.8, **rest),
    "per output": lambda *tensors, **rest: per_output_loss(*tensors, COLUMNS | MORE, **rest),
    "per output, symmetric": lambda *tensors, **rest: per_output_loss(*tensors, {0: "mse", 3: "mae"}, **rest),
}
QUANTILES: dict[str, Loss] = {
    "pinball": lambda *tensors, **rest: pinball_loss(*tensors, (0.1, 0.5, 0.9), **rest),
    "huber pinball": lambda *tensors, **rest: huber_pinball_loss(*tensors, (0.1, 0.5, 0.9), 0.7, **rest),
}
WAYS = ("plain", "weight per row", "weight per cell", "mask per row", "mask", "omit", "all of them")


def options(way: str, target: Tensor, rng: torch.Generator) -> dict[str, Any]:
    weight = torch.randint(0, 3, target.shape, generator=rng).to(target.dtype)
    mask = torch.rand(target.shape, generator=rng) < 0.7
    rest: dict[str, Any] = {}
    if way.startswith("weight"):
        rest["weight"] = weight[..., 0] if way.endswith("row") else weight
    if way.startswith("mask"):
        rest["mask"] = mask[..., 0] if way.endswith("row") else mask
    if way in ("omit", "all of them"):
        target[torch.rand(target.shape, generator=rng) < 0.2] = torch.nan
        rest["nan_policy"] = "omit"
    if way == "all of them":
        rest |= {"weight": weight, "mask": mask}
    return rest


def values(loss: Loss, preds: Tensor, target: Tensor, **rest: Any) -> Iterator[Tensor]:
    """The loss in one pass, and by plain operations."""
    for plainly in (False, True):
        with pytest.MonkeyPatch.context() as patch:
            if plainly:
                patch.setattr(_product, "in_one_pass", lambda *_: False)
                patch.setattr("reghead.functional._per_output.in_one_pass", lambda *_: False)
            value = loss(preds, target, **rest)
        assert ("WeightedSum" in str(value.grad_fn)) is not plainly
        yield value


def both_ways(loss: Loss, preds: Tensor, target: Tensor, **rest: Any) -> list[tuple[Tensor, ...]]:
    return [
        (value.detach(), *torch.autograd.grad(value, (preds, target))) for value in values(loss, preds, target, **rest)
    ]


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", [*POINTS, *QUANTILES])
@settings(max_examples=6)
@given(seed=st.integers(0, 2**32 - 1), rows=st.integers(1, 40), block=st.sampled_from([1, 64, 2**16]))
def test_one_pass_has_the_values_and_gradients_of_plain_operations(
    name: str, way: str, reduction: str, seed: int, rows: int, block: int
) -> None:
    rng = torch.Generator().manual_seed(seed)
    target = torch.randn(rows, 6, generator=rng, dtype=torch.float64)
    shape = (rows, 6, 3) if name in QUANTILES else (rows, 6)
    preds = torch.randn(shape, generator=rng, dtype=torch.float64).requires_grad_()
    rest = options(way, target, rng)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_product, "_BLOCK", block)
        loss = (POINTS | QUANTILES)[name]
        fast, plain = both_ways(loss, preds, target.requires_grad_(), **rest, reduction=reduction)
    for a, b in zip(fast, plain, strict=True):
        assert_close(a, b, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", [*POINTS, *QUANTILES])
def test_the_gradient_is_the_same_each_time_and_the_last_time(name: str, way: str, dtype: torch.dtype) -> None:
    """The last to go back through the graph may use up what was saved; nobody before, and no batch of gradients."""
    rng = torch.Generator().manual_seed(0)
    target = torch.randn(5, 6, generator=rng).to(dtype)
    preds = torch.randn((5, 6, 3) if name in QUANTILES else (5, 6), generator=rng).to(dtype).requires_grad_()
    rest = options(way, target, rng)
    loss = (POINTS | QUANTILES)[name](preds, target.requires_grad_(), **rest)
    assert "WeightedSum" in str(loss.grad_fn)
    halves = torch.tensor([0.5, 2.0], dtype=loss.dtype)
    once, again = (torch.autograd.grad(loss, (preds, target), retain_graph=True) for _ in range(2))
    several = torch.autograd.grad(loss, (preds, target), halves, retain_graph=True, is_grads_batched=True)
    last = torch.autograd.grad(loss, (preds, target))
    for first, second, batch, end in zip(once, again, several, last, strict=True):
        assert first.isfinite().all()
        assert torch.equal(first, second)
        assert torch.equal(first, end)
        assert_close(batch, halves.to(dtype).reshape(2, *[1] * first.ndim) * first)


@pytest.mark.parametrize("name", [*POINTS, *QUANTILES])
def test_a_gradient_of_the_gradient(name: str) -> None:
    rng = torch.Generator().manual_seed(0)
    target = torch.randn(4, 6, generator=rng, dtype=torch.float64).requires_grad_()
    preds = torch.randn((4, 6, 3) if name in QUANTILES else (4, 6), generator=rng, dtype=torch.float64).requires_grad_()
    mask, weight = torch.rand(4, 6, generator=rng) < 0.7, torch.rand(4, 6, generator=rng, dtype=torch.float64)
    loss = (POINTS | QUANTILES)[name]
    for rest in ({}, {"mask": mask}, {"weight": weight}):
        assert torch.autograd.gradgradcheck(lambda p, t, rest=rest: loss(p, t, **rest), (preds, target))


@pytest.mark.parametrize("broken", [torch.nan, torch.inf])
@pytest.mark.parametrize("name", POINTS)
def test_what_is_broken_where_a_weight_is_zero_does_not_count(name: str, broken: float) -> None:
    rng = torch.Generator().manual_seed(0)
    preds, target = torch.randn(2, 4, 6, generator=rng, dtype=torch.float64)
    target[1] = broken
    weight = torch.tensor([1.0, 0.0, 2.0, 1.0], dtype=torch.float64)
    rest = weight != 0
    preds.requires_grad_()
    loss = POINTS[name](preds, target, weight=weight)
    assert_close(loss, POINTS[name](preds[rest], target[rest], weight=weight[rest]))
    (gradient,) = torch.autograd.grad(loss, preds)
    assert gradient.isfinite().all()
    assert not gradient[1].any()


@pytest.mark.parametrize("name", [*POINTS, *QUANTILES])
def test_an_infinite_error_is_an_infinite_loss(name: str) -> None:
    target = torch.zeros(2, 6)
    for infinite in (torch.inf, -torch.inf):
        preds = torch.full((2, 6, 3) if name in QUANTILES else (2, 6), infinite, requires_grad=True)
        assert (POINTS | QUANTILES)[name](preds, target).item() == torch.inf


def test_a_negative_weight_is_found_beside_one_that_is_nan() -> None:
    with pytest.raises(ValueError, match="weight must be non-negative, got -2"):
        mse_loss(torch.zeros(3), torch.zeros(3), weight=torch.tensor([torch.nan, -2.0, 1.0]))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", [*POINTS, *QUANTILES])
def test_autocast_narrows_nothing(name: str, dtype: torch.dtype) -> None:
    rng = torch.Generator().manual_seed(0)
    target = torch.randn(300, 6, generator=rng)
    shape = (*target.shape, 3) if name in QUANTILES else target.shape
    preds = torch.randn(shape, generator=rng, requires_grad=True)
    loss = (POINTS | QUANTILES)[name]
    expected = loss(preds, target)
    with torch.autocast("cpu", dtype=dtype):
        found = loss(preds, target)
        (gradient,) = torch.autograd.grad(found, preds, create_graph=True)
    assert torch.equal(found, expected)
    assert torch.equal(gradient, torch.autograd.grad(expected, preds)[0])


@pytest.mark.parametrize("shape", [(2_000_000,), (1, 2_000_000), (2_000_000, 1), (1000, 2000)])
def test_a_mean_of_millions_is_a_mean(shape: tuple[int, ...]) -> None:
    errors = torch.full(shape, 0.1)
    assert_close(mse_loss(errors, torch.zeros(shape)).item(), 0.01, rtol=2e-6, atol=0.0)
    drawn = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    exact = drawn.double().square().mean().item()
    assert_close(mse_loss(drawn, torch.zeros(shape)).item(), exact, rtol=2e-6, atol=0.0)


@pytest.mark.parametrize("size", [1e-34, 1e-31, 1e-3, 1e30])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_an_absolute_error_of_any_size_is_one_in_columns_too(size: float, dtype: torch.dtype) -> None:
    preds = torch.zeros(2, 1, dtype=dtype, requires_grad=True)
    loss = per_output_loss(preds, torch.full((2, 1), size, dtype=dtype), {0: "mae"})
    assert_close(loss.item(), size, rtol=1e-6, atol=0.0)
    (gradient,) = torch.autograd.grad(loss, preds)
    assert gradient.tolist() == [[-0.5], [-0.5]]


@pytest.mark.parametrize("reduction", ["sum", "mean"])
@pytest.mark.parametrize("weight", [1e-25, 1e9, 1e30])
def test_weights_of_columns_of_any_size(weight: float, reduction: Any) -> None:
    rng = torch.Generator().manual_seed(0)
    preds, target = torch.randn(50, 2, generator=rng), 1e3 * torch.randn(50, 2, generator=rng)
    losses = {0: {"type": "mae", "weight": weight}, 1: {"type": "mse", "weight": weight}}
    found = per_output_loss(preds, target, losses, reduction=reduction)
    mae, mse = (preds - target).double()[:, 0].abs(), (preds - target).double()[:, 1].square()
    exact = weight * (mae.sum() + mse.sum()) if reduction == "sum" else (mae.mean() + mse.mean()) / 2
    assert_close(found.double(), exact, rtol=1e-5, atol=0.0)


@pytest.mark.parametrize("reduction", ["none", "sum"])
@pytest.mark.parametrize(("over", "under"), [(1e20, 1e-20), (1e-20, 1e20), (1e20, 1e-9), (3.0, 1.0)])
def test_penalties_far_apart(over: float, under: float, reduction: Any) -> None:
    preds, target = torch.tensor([[3.0, 1.0]], requires_grad=True), torch.tensor([[2.0, 3.0]])
    loss = asymmetric_loss(preds, target, over, under, reduction=reduction).sum()
    assert_close(loss.item(), over + 4.0 * under, rtol=1e-6, atol=0.0)
    (gradient,) = torch.autograd.grad(loss, preds)
    assert_close(gradient, torch.tensor([[2.0 * over, -4.0 * under]]), rtol=1e-6, atol=0.0)


def test_levels_may_be_batched_where_errors_are_not() -> None:
    rng = torch.Generator().manual_seed(0)
    target, levels = torch.randn(6, 2, generator=rng), torch.tensor([[0.1, 0.5], [0.2, 0.9]])
    preds = torch.randn(6, 2, 2, generator=rng)
    for loss in (crps_loss, pinball_loss, huber_pinball_loss):
        found = torch.vmap(lambda tau, loss=loss: loss(preds, target, tau))(levels)
        assert_close(found, torch.stack([loss(preds, target, tau) for tau in levels]))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", [*POINTS, *QUANTILES])
def test_a_gradient_to_be_differentiated_again_is_the_gradient(name: str, way: str) -> None:
    """Penalties on gradients: what does not count stays out of both derivatives, and weights are in both."""
    rng = torch.Generator().manual_seed(1)
    target = torch.randn(5, 6, generator=rng, dtype=torch.float64)
    preds = torch.randn((5, 6, 3) if name in QUANTILES else (5, 6), generator=rng, dtype=torch.float64).requires_grad_()
    loss, rest = (POINTS | QUANTILES)[name], options(way, target, rng)
    target.requires_grad_()
    results = []
    for value in values(loss, preds, target, **rest):
        once = torch.autograd.grad(value, (preds, target), retain_graph=True)
        first = torch.autograd.grad(value, (preds, target), create_graph=True)
        assert_close(first, once, rtol=1e-12, atol=1e-14)
        second = torch.autograd.grad(sum((g * g.detach().cos()).sum() for g in first), (preds, target))
        results.append([*once, *second])
    assert_close(*results, rtol=1e-12, atol=1e-14)
    assert all(t.isfinite().all() for t in results[0])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", [*POINTS, *QUANTILES])
def test_half_precision_predictions_have_gradients_to_their_last_digit(name: str, way: str, dtype: torch.dtype) -> None:
    rng = torch.Generator().manual_seed(2)
    target = torch.randn(9, 6, generator=rng)
    preds = torch.randn((9, 6, 3) if name in QUANTILES else (9, 6), generator=rng).to(dtype).requires_grad_()
    loss, rest = (POINTS | QUANTILES)[name], options(way, target, rng)
    exact = loss(wide := preds.detach().double().requires_grad_(), target.double(), **rest)
    (expected,) = torch.autograd.grad(exact, wide)
    digit = torch.finfo(dtype).eps
    for again in (False, True):
        found = loss(preds, target, **rest)
        (gradient,) = torch.autograd.grad(found, preds, create_graph=again)
        assert gradient.dtype == dtype
        assert_close(found.double(), exact, rtol=1e-5, atol=0.0)
        assert_close(gradient.double(), expected, rtol=digit, atol=digit * expected.abs().max().item() / 100)


NOTHING: dict[str, dict[str, Any]] = {
    "mask": {"mask": torch.zeros(3, 6, dtype=torch.bool)},
    "weight": {"weight": torch.zeros(3)},
    "omit": {"nan_policy": "omit"},
}


@pytest.mark.parametrize("way", NOTHING)
@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("name", [*POINTS, *QUANTILES])
def test_nothing_that_counts_is_zero_in_one_pass_too(name: str, reduction: str, way: str) -> None:
    target = torch.full((3, 6), torch.nan) if way == "omit" else torch.ones(3, 6)
    preds = torch.zeros((3, 6, 3) if name in QUANTILES else (3, 6), requires_grad=True)
    loss = (POINTS | QUANTILES)[name](preds, target, **NOTHING[way], reduction=reduction)
    assert "WeightedSum" in str(loss.grad_fn)
    assert loss.item() == 0.0
    assert not torch.autograd.grad(loss, preds)[0].any()


@pytest.mark.parametrize("counts", [torch.tensor([True, False]), torch.tensor([1.0, 0.0])])
def test_a_column_without_a_cell_that_counts_needs_no_second_way(counts: Tensor) -> None:
    preds = torch.zeros(3, 2, requires_grad=True)
    only = {"mask": counts.expand(3, 2)} if counts.dtype == torch.bool else {"weight": counts.expand(3, 2)}
    losses = {0: {"type": "mse", "weight": 0.25}, 1: "mae"}
    loss = per_output_loss(preds, torch.tensor([[2.0, 5.0]] * 3), losses, **only)
    assert "WeightedSum" in str(loss.grad_fn)
    assert loss.item() == 4.0
    assert_close(torch.autograd.grad(loss, preds)[0], torch.tensor([[-4.0 / 3.0, 0.0]] * 3))


@pytest.mark.parametrize(
    ("shape", "by_column"),
    [
        *(((1000,), False), ((1000, 1), False), ((50, 20), False), ((10, 7, 13), False), ((7, 200), False)),
        *(((1000, 1), True), ((333, 3), True), ((10, 7, 13), True), ((5, 200), True), ((130, 100), True)),
    ],
)
def test_what_is_held_at_a_time_is_a_block(shape: tuple[int, ...], by_column: bool) -> None:
    """The memory that a loss takes beside its arguments: a few tensors of a block, which ends with a row."""
    seen: list[int] = []

    def factors(error: Tensor, columns: Tensor | None) -> tuple[Tensor, Tensor]:
        seen.append(error.numel())
        return error, error if columns is None else error * columns

    preds = torch.randn(shape, generator=torch.Generator().manual_seed(0), requires_grad=True)
    columns = torch.arange(1.0, shape[-1] + 1) if by_column else None
    most, row = 64, shape[-1] if len(shape) > 1 else 1
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch, "get_num_threads", lambda: 1)
        patch.setattr(_product, "_BLOCK", most // 4)
        rest: dict[str, Any] = {"weight": None, "mask": None, "nan_policy": "propagate", "reduction": "sum"}
        total = _product.reduce_product(
            _product.Product(factors), preds, torch.zeros(shape, requires_grad=True), columns, **rest
        )
    assert sum(seen) == preds.numel()
    # Where columns differ, short rows are taken as one of _INNER cells.
    most += max(_product._INNER, row) if by_column else row
    assert max(seen) <= most
    assert len(seen) >= preds.numel() // most > 1
    share = 1.0 if columns is None else columns
    assert_close(total, (preds.square() * share).sum())
