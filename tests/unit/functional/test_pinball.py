"""The pinball loss: its ties, its levels, its cost, and that its fast path is the plain formula."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from reghead.functional import huber_pinball_loss, pinball_loss

LEVELS = (0.1, 0.5, 0.9)
WAYS = {
    "plain": {},
    "weight per row": {"weight": torch.tensor([1.0, 2.0, 0.5, 1.0], dtype=torch.float64)},
    "weight per cell": {"weight": torch.tensor([[1.0, 3.0]] * 4, dtype=torch.float64)},
    "mask": {"mask": torch.tensor([[True, True], [False, True], [True, True], [True, False]])},
    "omit": {"nan_policy": "omit"},
    "weight and mask": {
        "weight": torch.tensor([1.0, 2.0, 0.0, 1.0], dtype=torch.float64),
        "mask": torch.tensor([True, True, True, False]),
    },
}


def data(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(0)
    preds = torch.randn(4, 2, 3, generator=rng, dtype=torch.float64).to(dtype).requires_grad_()
    return preds, torch.randn(4, 2, generator=rng, dtype=torch.float64).to(dtype).requires_grad_()


def learned(levels: tuple[float, ...] = LEVELS) -> Tensor:
    """Levels that want a gradient, which only the plain operations can give."""
    return torch.tensor(levels, dtype=torch.float64, requires_grad=True)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("way", WAYS)
def test_the_fast_path_has_the_values_and_gradients_of_plain_operations(way: str, reduction: str) -> None:
    preds, target = data()
    fast = pinball_loss(preds, target, LEVELS, reduction=reduction, **WAYS[way])
    plain = pinball_loss(preds, target, learned(), reduction=reduction, **WAYS[way])
    assert "WeightedSum" in str(fast.grad_fn)
    assert "WeightedSum" not in str(plain.grad_fn)
    assert_close(fast, plain, rtol=1e-14, atol=1e-14)
    for a, b in zip(
        torch.autograd.grad(fast, (preds, target)), torch.autograd.grad(plain, (preds, target)), strict=True
    ):
        assert_close(a, b, rtol=1e-14, atol=1e-16)


def test_the_gradient_of_the_target_alone_is_minus_that_of_the_predictions() -> None:
    preds, target = data()
    (alone,) = torch.autograd.grad(pinball_loss(preds.detach(), target, LEVELS), target)
    assert_close(alone, -torch.autograd.grad(pinball_loss(preds, target, LEVELS), preds)[0].sum(-1))


def test_levels_and_weights_can_be_learned() -> None:
    preds, target = data()
    tau, weight = learned(), torch.ones(4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda t, w: pinball_loss(preds, target, t, weight=w), (tau, weight))


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("way", ["plain", "weight", "mask", "omit"])
def test_the_gradient_at_a_tie_is_a_half_minus_tau(way: str, compiled: bool, reduction: str) -> None:
    kwargs = {
        "plain": {},
        "weight": {"weight": torch.ones(1)},
        "mask": {"mask": torch.ones(1, dtype=torch.bool)},
        "omit": {"nan_policy": "omit"},
    }[way]

    def loss(preds: Tensor) -> Tensor:
        return pinball_loss(preds, torch.tensor([[2.0]]), LEVELS, reduction=reduction, **kwargs).sum()

    torch._dynamo.reset()
    preds = torch.full((1, 1, 3), 2.0, requires_grad=True)
    function: Callable[[Tensor], Tensor] = (
        torch.compile(loss, fullgraph=True, backend="aot_eager") if compiled else loss
    )
    (grad,) = torch.autograd.grad(function(preds), preds)
    assert_close(grad.flatten(), torch.tensor([0.4, 0.0, -0.4]) / (3 if reduction == "mean" else 1))


@pytest.mark.parametrize("way", WAYS)
def test_the_second_derivative_is_zero_and_not_an_error(way: str) -> None:
    preds, target = data()
    loss = pinball_loss(preds, target, LEVELS, **WAYS[way])
    first = torch.autograd.grad(loss, (preds, target), create_graph=True)
    second = torch.autograd.grad(sum(g.sum() for g in first), (preds, target))
    assert all(not g.any() for g in second)
    assert torch.autograd.gradgradcheck(lambda p, t: pinball_loss(p, t, LEVELS, **WAYS[way]), (preds, target))


def test_a_gradient_penalty_trains() -> None:
    """The gradient of the loss reaches the parameters through what comes before it."""
    scale = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    x, target = data()
    (grad,) = torch.autograd.grad(pinball_loss(scale * x, target, LEVELS), x, create_graph=True)
    (through,) = torch.autograd.grad(grad.square().sum(), scale)
    assert_close(through, 2 * grad.square().sum().detach() / 2.0)


@pytest.mark.parametrize("nan_policy", ["propagate", "omit"])
def test_per_sample_gradients(nan_policy: str) -> None:
    preds, target = (t.detach() for t in data())

    def of_one(p: Tensor, t: Tensor) -> Tensor:
        return pinball_loss(p, t, LEVELS, nan_policy=nan_policy, reduction="sum")

    together = torch.func.vmap(torch.func.grad(of_one))(preds, target)
    one_by_one = torch.stack([torch.func.grad(of_one)(p, t) for p, t in zip(preds, target, strict=True)])
    assert_close(together, one_by_one)


def test_vmap_over_weights_and_masks() -> None:
    preds, target = (t.detach() for t in data())
    weights = torch.rand(5, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    masks = weights > 0.5
    by_weight = torch.func.vmap(lambda w: pinball_loss(preds, target, LEVELS, weight=w))(weights)
    by_mask = torch.func.vmap(lambda m: pinball_loss(preds, target, LEVELS, mask=m))(masks)
    assert_close(by_weight, torch.stack([pinball_loss(preds, target, LEVELS, weight=w) for w in weights]))
    assert_close(by_mask, torch.stack([pinball_loss(preds, target, LEVELS, mask=m) for m in masks]))


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")
@pytest.mark.parametrize("way", WAYS)
def test_forward_and_backward_derivatives_agree(way: str) -> None:
    preds, target = data()
    assert torch.autograd.gradcheck(
        lambda p, t: pinball_loss(p, t, LEVELS, **WAYS[way]), (preds, target), check_forward_ad=True
    )
    hessian = torch.func.hessian(lambda p: pinball_loss(p, target.detach(), LEVELS, **WAYS[way]))(preds.detach())
    assert not hessian.any()


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("function", [pinball_loss, huber_pinball_loss])
def test_compiles_in_one_graph(function: Callable[..., Tensor], way: str) -> None:
    preds, target = data()
    torch._dynamo.reset()
    compiled = torch.compile(lambda p, t: function(p, t, LEVELS, **WAYS[way]), fullgraph=True, backend="aot_eager")
    assert_close(compiled(preds, target), function(preds, target, LEVELS, **WAYS[way]))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")
def test_compiles_with_the_default_backend() -> None:
    preds, target = data(torch.float32)
    torch._dynamo.reset()
    loss = torch.compile(lambda p, t: pinball_loss(p, t, LEVELS), fullgraph=True)(preds, target)
    assert_close(loss, pinball_loss(preds, target, LEVELS))
    assert_close(torch.autograd.grad(loss, preds), torch.autograd.grad(pinball_loss(preds, target, LEVELS), preds))


def saved_bytes(preds: Tensor, target: Tensor, levels: list[float], **kwargs: object) -> int:
    """Bytes that wait for the backward pass, beside the caller's own tensors."""
    owned = {t.data_ptr() for t in (preds, target, *(v for v in kwargs.values() if isinstance(v, Tensor)))}
    seen: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        if tensor.data_ptr() not in owned:
            seen[tensor.data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = pinball_loss(preds, target, levels, **kwargs)  # type: ignore[arg-type]
    loss.backward()
    return sum(seen.values())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("levels", [1, 3, 99])
def test_what_waits_for_the_backward_pass_is_no_larger_than_the_predictions(levels: int, dtype: torch.dtype) -> None:
    preds = torch.randn(512, 1, levels, generator=torch.Generator().manual_seed(0)).to(dtype).requires_grad_()
    quantiles = [(k + 0.5) / levels for k in range(levels)]
    size = preds.numel() * preds.element_size()
    assert 0 < saved_bytes(preds, torch.zeros(512, 1), quantiles) <= 1.05 * size
    assert saved_bytes(preds, torch.zeros(512, 1), quantiles, weight=torch.ones(512)) <= 1.05 * size


def count_nodes(loss: Tensor) -> int:
    """Nodes of the autograd graph behind a loss."""
    seen, todo = set(), [loss.grad_fn]
    while todo:
        node = todo.pop()
        if node is not None and node not in seen:
            seen.add(node)
            todo += [parent for parent, _ in node.next_functions]
    return len(seen)


@pytest.mark.parametrize("function", [pinball_loss, huber_pinball_loss])
def test_the_work_of_the_graph_does_not_depend_on_the_number_of_levels(function: Callable[..., Tensor]) -> None:
    def nodes(levels: int) -> int:
        preds = torch.zeros(4, 1, levels, requires_grad=True)
        return count_nodes(function(preds, torch.zeros(4, 1), [(k + 0.5) / levels for k in range(levels)]))

    assert nodes(99) == nodes(2) <= 12


def test_a_level_near_one_survives_half_precision() -> None:
    preds = torch.zeros(1, 1, 1, dtype=torch.bfloat16)
    over = pinball_loss(preds, torch.full((1, 1), -1.0, dtype=torch.bfloat16), [0.999])
    assert_close(over.item(), 0.001, rtol=1e-4, atol=0.0)


def test_a_rare_side_keeps_its_digits_in_a_large_sum() -> None:
    """At tau = 0.999 a term of an over-prediction is 1/500 of either part of |e| / 2 + (tau - 1/2) e."""
    preds = 2 + torch.rand(1_000_000, 1, 1, generator=torch.Generator().manual_seed(0))
    loss = pinball_loss(preds, torch.zeros(1_000_000, 1), [0.999])
    assert_close(loss.item(), 0.001 * preds.double().mean().item(), rtol=3e-5, atol=0.0)


def test_a_wider_target_gives_a_wider_loss_and_gradients_in_each_own_dtype() -> None:
    preds = torch.zeros(2, 1, 3, requires_grad=True)
    target = torch.ones(2, 1, dtype=torch.float64, requires_grad=True)
    loss = pinball_loss(preds, target, LEVELS)
    loss.backward()
    assert loss.dtype == torch.float64
    assert preds.grad is not None
    assert target.grad is not None
    assert (preds.grad.dtype, target.grad.dtype) == (torch.float32, torch.float64)


def test_a_tensor_of_levels_equals_the_floats() -> None:
    preds, target = data()
    levels = torch.tensor(LEVELS, dtype=torch.float64)
    assert_close(pinball_loss(preds, target, levels), pinball_loss(preds, target, LEVELS))
    assert_close(huber_pinball_loss(preds, target, levels), huber_pinball_loss(preds, target, LEVELS))


@pytest.mark.parametrize("delta", [0.2, 1.0, 3.0])
def test_the_knots_of_the_huber_pinball_are_at_plus_and_minus_delta_for_every_level(delta: float) -> None:
    error = torch.linspace(-5, 5, 1001, dtype=torch.float64)
    preds = (-error)[:, None, None].expand(-1, 1, 3).clone().requires_grad_()
    huber_pinball_loss(preds, torch.zeros(1001, 1, dtype=torch.float64), LEVELS, delta, reduction="sum").backward()
    assert preds.grad is not None
    for q, tau in enumerate(LEVELS):
        side = torch.where(error < 0, 1 - tau, tau)
        assert_close(preds.grad[:, 0, q], -side * (error / delta).clamp(-1, 1))


def test_the_huber_pinball_tends_to_the_pinball() -> None:
    preds, target = data()
    gaps = [
        (huber_pinball_loss(preds, target, LEVELS, delta) - pinball_loss(preds, target, LEVELS)).abs().item()
        for delta in (1e-1, 1e-3, 1e-6)
    ]
    assert gaps[0] > gaps[1] > gaps[2]
    assert gaps[2] < 1e-6


def test_the_huber_pinball_is_least_at_the_quantile_of_a_symmetric_density() -> None:
    """The weights of the two sides are tau and 1 - tau, so that at tau = 0.5 the centre stays the minimiser."""
    sample = torch.linspace(-3, 3, 601, dtype=torch.float64)[:, None]
    at = torch.zeros(601, 1, 1, dtype=torch.float64, requires_grad=True)
    huber_pinball_loss(at, sample, [0.5], 0.5).backward()
    assert at.grad is not None
    assert abs(at.grad.sum().item()) < 1e-12


@pytest.mark.parametrize("shape", [(0, 2), (1, 2), (3, 1), ()])
def test_small_shapes(shape: tuple[int, ...]) -> None:
    preds = torch.ones(*shape, 1, requires_grad=True)
    loss = pinball_loss(preds, torch.zeros(shape), [0.5])
    loss.backward()
    assert loss.item() == (0.0 if 0 in shape else 0.5)


def test_inputs_need_not_be_contiguous() -> None:
    preds, target = data()
    crooked = preds.detach().permute(2, 1, 0).contiguous().permute(2, 1, 0)
    assert not crooked.is_contiguous()
    assert_close(pinball_loss(crooked, target, LEVELS), pinball_loss(preds, target, LEVELS))


def test_a_wrong_shape_is_refused_with_the_way_out() -> None:
    target = torch.zeros(8, 2)
    with pytest.raises(
        ValueError,
        match=r"preds must have shape \(\*target.shape, Q\) = \(8, 2, 3\), got \(8, 6\); "
        r"a flat head needs unflatten\(-1, \(2, 3\)\)",
    ):
        pinball_loss(torch.zeros(8, 6), target, LEVELS)
    with pytest.raises(ValueError, match=r"a flat head needs unflatten\(-1, \(1, 3\)\)"):
        pinball_loss(torch.zeros(8, 3), torch.zeros(8, 1), LEVELS)
    with pytest.raises(ValueError, match=r"a flat head needs unflatten\(-1, \(2, 3\)\)"):
        pinball_loss(torch.zeros(8, 5, 6), torch.zeros(8, 5, 2), LEVELS)
    with pytest.raises(ValueError, match=r"got \(8, 1, 3\); use target.unsqueeze\(-1\)"):
        pinball_loss(torch.zeros(8, 1, 3), torch.zeros(8), LEVELS)
    with pytest.raises(ValueError, match=r"= \(8, 2, 3\), got \(8, 2, 2\)$"):
        pinball_loss(torch.zeros(8, 2, 2), target, LEVELS)


def test_wrong_levels_are_refused() -> None:
    preds, target = torch.zeros(4, 1, 2), torch.zeros(4, 1)
    with pytest.raises(ValueError, match=r"quantiles\[1\] must be finite and > 0 and < 1, got 1\.0"):
        pinball_loss(preds, target, [0.5, 1.0])
    with pytest.raises(ValueError, match=r"quantiles must be strictly increasing"):
        pinball_loss(preds, target, [0.9, 0.1])
    with pytest.raises(ValueError, match=r"quantiles must have shape \(Q,\), got \(1, 2\)"):
        pinball_loss(preds, target, torch.tensor([[0.1, 0.9]]))
    with pytest.raises(ValueError, match=r"quantiles must have shape \(Q,\), got \(\)"):
        pinball_loss(preds[..., :1], target, torch.tensor(0.5))
    with pytest.raises(ValueError, match="reduction must be one of"):
        pinball_loss(preds, target, [0.1, 0.9], reduction="avg")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="nan_policy must be one of"):
        pinball_loss(preds, target, [0.1, 0.9], weight=torch.ones(4), nan_policy="no")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="weight must have the leading dimensions of target"):
        pinball_loss(preds, target, [0.1, 0.9], weight=torch.ones(3))
    with pytest.raises(TypeError, match=r"preds must be of a floating-point dtype, got torch.int64"):
        pinball_loss(preds.long(), target, [0.1, 0.9])
