"""What every loss owes to weights, masks and missing targets, whatever the data."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from reghead import functional as R

LEVELS = (0.05, 0.4, 0.9)
SEEDS = st.integers(0, 2**32 - 1)
NAN = float("nan")

Loss = Callable[..., Tensor]


def bind(function: Loss, trailing: tuple[int, ...] = (), *args: Any, **bound: Any) -> tuple[Loss, tuple[int, ...]]:
    def loss(preds: Tensor, target: Tensor, **kwargs: Any) -> Tensor:
        return function(preds, target, *args, **bound, **kwargs)

    return loss, trailing


def gaussian(preds: Tensor, target: Tensor, **kwargs: Any) -> Tensor:
    """The likelihood with mean and scale both in ``preds``."""
    mean, raw = preds.unbind(-1)
    return R.gaussian_nll_loss(mean, target, raw.abs().clamp(min=0.125), **kwargs)


LOSSES: dict[str, tuple[Loss, tuple[int, ...]]] = {
    "mse": bind(R.mse_loss),
    "mae": bind(R.mae_loss),
    "huber": bind(R.huber_loss, (), 0.5),
    "log_cosh": bind(R.log_cosh_loss),
    "expectile": bind(R.expectile_loss, (), 0.3),
    "asymmetric mse": bind(R.asymmetric_loss, (), 2.0, 0.5),
    "asymmetric mae": bind(R.asymmetric_loss, (), 2.0, 0.5, "mae"),
    "asymmetric huber": bind(R.asymmetric_loss, (), 2.0, 0.5, "huber", 0.5),
    "pinball": bind(R.pinball_loss, (3,), LEVELS),
    "huber pinball": bind(R.huber_pinball_loss, (3,), LEVELS, 0.5),
    "interval": bind(R.interval_score_loss, (2,), 0.8),
    "crps": bind(R.crps_loss, (3,), LEVELS),
    "gaussian": (gaussian, (2,)),
    "per output": bind(R.per_output_loss, (), {0: "mse", 1: {"type": "huber", "weight": 2.0}}),
    "per output quantiles": bind(R.per_output_loss, (2,), {0: "mae", 1: {"type": "quantile", "quantiles": [0.2, 0.5]}}),
}
SMOOTH = ("mse", "log_cosh", "gaussian")
each_loss = pytest.mark.parametrize("name", LOSSES)


def draw(name: str, seed: int, rows: int = 6) -> tuple[Loss, Tensor, Tensor, torch.Generator]:
    rng = torch.Generator().manual_seed(seed)
    loss, trailing = LOSSES[name]
    preds = torch.randn(rows, 2, *trailing, generator=rng, dtype=torch.float64).requires_grad_()
    target = torch.randn(rows, 2, generator=rng, dtype=torch.float64)
    return loss, preds, target, rng


def gradient(loss: Tensor, preds: Tensor) -> Tensor:
    return torch.autograd.grad(loss, preds)[0]


@each_loss
@settings(max_examples=10)
@given(seed=SEEDS)
def test_integer_weights_are_repeated_rows(name: str, seed: int) -> None:
    loss, preds, target, rng = draw(name, seed)
    times = torch.randint(0, 4, (6,), generator=rng)
    weighted = loss(preds, target, weight=times.double())
    repeated = loss(preds.repeat_interleave(times, 0), target.repeat_interleave(times, 0))
    assert_close(weighted, repeated)
    assert_close(gradient(weighted, preds), gradient(repeated, preds))


@each_loss
@settings(max_examples=10)
@given(seed=SEEDS, constant=st.floats(1e-3, 1e3))
def test_a_constant_weight_changes_nothing(name: str, seed: int, constant: float) -> None:
    loss, preds, target, _ = draw(name, seed)
    for shape in ((6,), (6, 2)):
        weight = torch.full(shape, constant, dtype=torch.float64)
        assert_close(loss(preds, target, weight=weight), loss(preds, target))


@each_loss
@settings(max_examples=10)
@given(seed=SEEDS)
def test_a_weight_of_zero_removes_the_row_even_a_broken_one(name: str, seed: int) -> None:
    loss, preds, target, rng = draw(name, seed)
    weight = torch.rand(6, generator=rng, dtype=torch.float64) + 0.1
    weight[[1, 4]] = 0.0
    keep = weight > 0
    clean = loss(preds[keep], target[keep], weight=weight[keep])
    broken_preds, broken_target = preds.detach().clone(), target.clone()
    broken_preds[1], broken_target[1], broken_preds[4] = NAN, NAN, float("inf")
    broken_preds.requires_grad_()
    weighted = loss(broken_preds, broken_target, weight=weight)
    assert_close(weighted, clean)
    grad = gradient(weighted, broken_preds)
    assert not grad[~keep].any()
    assert_close(grad[keep], gradient(clean, preds)[keep])


@each_loss
def test_weights_that_are_all_zero_give_zero_with_a_zero_gradient(name: str) -> None:
    loss, preds, target, _ = draw(name, 0)
    value = loss(preds, target, weight=torch.zeros(6))
    assert value.item() == 0.0
    assert not gradient(value, preds).any()


@each_loss
@settings(max_examples=10)
@given(seed=SEEDS)
def test_a_masked_row_is_a_removed_row(name: str, seed: int) -> None:
    loss, preds, target, rng = draw(name, seed)
    mask = torch.rand(6, generator=rng) > 0.4
    broken = preds.detach().clone()
    broken[~mask] = NAN
    broken.requires_grad_()
    masked, removed = loss(broken, target, mask=mask), loss(preds[mask], target[mask])
    assert_close(masked, removed)
    grad = gradient(masked, broken)
    assert not grad[~mask].any()
    assert_close(grad[mask], gradient(removed, preds)[mask])


@each_loss
@settings(max_examples=10)
@given(seed=SEEDS)
def test_omitting_nan_targets_is_masking_them(name: str, seed: int) -> None:
    loss, preds, target, rng = draw(name, seed)
    mask = torch.rand(6, 2, generator=rng) > 0.4
    missing = torch.where(mask, target, NAN)
    omitted, masked = loss(preds, missing, nan_policy="omit"), loss(preds, target, mask=mask)
    assert_close(omitted, masked, rtol=0.0, atol=0.0)
    assert_close(gradient(omitted, preds), gradient(masked, preds), rtol=0.0, atol=0.0)
    assert loss(preds, missing).isnan() == (not mask.all())


@each_loss
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
def test_a_nan_prediction_propagates(name: str, reduction: str) -> None:
    loss, preds, target, _ = draw(name, 0)
    preds = preds.detach().clone()
    preds[2, 1] = NAN
    for kwargs in ({}, {"nan_policy": "omit"}, {"weight": torch.ones(6)}, {"mask": torch.arange(6) > 0}):
        value = loss(preds, target, reduction=reduction, **kwargs)
        assert value.isnan().any()
        if reduction == "none":
            assert not value[:2].isnan().any()


@each_loss
@settings(max_examples=5)
@given(seed=SEEDS)
def test_the_sum_adds_up_the_cells_of_none(name: str, seed: int) -> None:
    loss, preds, target, rng = draw(name, seed)
    given_ = {"weight": torch.rand(6, generator=rng), "mask": torch.rand(6, 2, generator=rng) > 0.3}
    for kwargs in ({}, given_):
        cells = loss(preds, target, reduction="none", **kwargs)
        assert cells.shape[:2] == (6, 2)
        assert_close(loss(preds, target, reduction="sum", **kwargs), cells.sum())


@each_loss
@settings(max_examples=5)
@given(seed=SEEDS)
def test_gradients_are_those_of_finite_differences(name: str, seed: int) -> None:
    loss, preds, target, rng = draw(name, seed, rows=3)
    mask = torch.rand(3, 2, generator=rng) > 0.3
    target.requires_grad_()
    # Away from the kinks, where a difference quotient means something.
    spread = (preds - target.reshape(3, 2, *(1,) * (preds.ndim - 2))).abs()
    if name not in SMOOTH and (min((spread - kink).abs().min().item() for kink in (0.0, 0.5, 1.0)) < 1e-4):
        return
    assert torch.autograd.gradcheck(lambda p, t: loss(p, t, mask=mask), (preds, target))
    if name in SMOOTH:
        assert torch.autograd.gradgradcheck(lambda p, t: loss(p, t, mask=mask), (preds, target))


@each_loss
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_loses_less_than_one_percent_and_never_overflows(name: str, dtype: torch.dtype) -> None:
    loss, preds, target, _ = draw(name, 0, rows=50_000)
    wide = preds.detach().to(dtype).double().requires_grad_()
    narrow = preds.detach().to(dtype).requires_grad_()
    target = target.to(dtype)
    for reduction in ("mean", "sum"):
        value, exact = loss(narrow, target, reduction=reduction), loss(wide, target.double(), reduction=reduction)
        assert value.dtype == torch.float32
        assert_close(value.double(), exact, rtol=1e-4, atol=0.0)
    scaled = gradient(loss(narrow, target, reduction="sum"), narrow)
    assert_close(scaled.double(), gradient(exact, wide), rtol=2e-2, atol=2e-2)


@each_loss
def test_order_and_grouping_of_rows_do_not_matter(name: str) -> None:
    loss, preds, target, rng = draw(name, 0)
    order = torch.randperm(6, generator=rng)
    assert_close(loss(preds[order], target[order]), loss(preds, target))
    assert_close(loss(preds.unflatten(0, (2, 3)), target.unflatten(0, (2, 3))), loss(preds, target))


@each_loss
def test_inputs_need_not_be_contiguous(name: str) -> None:
    loss, preds, target, _ = draw(name, 0)
    crooked = preds.detach().movedim(0, -1).contiguous().movedim(-1, 0)
    assert not crooked.is_contiguous()
    assert_close(loss(crooked, target.t().contiguous().t()), loss(preds, target))


@each_loss
def test_predictions_and_targets_of_different_shapes_are_refused(name: str) -> None:
    loss, trailing = LOSSES[name]
    for target in (torch.zeros(6), torch.zeros(6, 1), torch.zeros(1, 2)):
        with pytest.raises(ValueError, match=r"must have|has 1 columns"):
            loss(torch.zeros(6, 2, *trailing), target)
