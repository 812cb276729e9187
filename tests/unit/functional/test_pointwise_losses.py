"""Values, limits and errors of the losses of one prediction for one target."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.testing import assert_close

from reghead.functional import (
    asymmetric_loss,
    expectile_loss,
    huber_loss,
    log_cosh_loss,
    mae_loss,
    mse_loss,
)


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_mse_mae_and_huber_have_the_values_of_torch() -> None:
    preds, target = 3 * randn(20, 2), randn(20, 2, seed=1)
    assert_close(mse_loss(preds, target), F.mse_loss(preds, target))
    assert_close(mae_loss(preds, target), F.l1_loss(preds, target))
    assert_close(huber_loss(preds, target, 0.7), F.huber_loss(preds, target, delta=0.7))


def test_huber_is_half_the_square_for_a_wide_delta_and_tends_to_delta_times_the_absolute_error() -> None:
    preds, target = randn(20), randn(20, seed=1)
    assert_close(huber_loss(preds, target, 1e6), 0.5 * mse_loss(preds, target))
    assert_close(huber_loss(preds, target, 1e-9) / 1e-9, mae_loss(preds, target))


def test_log_cosh_is_right_to_rounding_at_every_size() -> None:
    error = torch.tensor([0.0, 1e-6, 1e-3, 0.5, 1.0 - 2**-24, 1.0, 1.5, 20.0, 89.0, 1e4, 1e30])
    # By the power series of log cosh where it is small, by its asymptote where it is large.
    exact = [0.0, 5e-13, 5e-7 * (1 - 1e-6 / 6), *(math.log(math.cosh(float(e))) for e in error[3:8])]
    exact += [float(e) - math.log(2.0) for e in error[8:]]
    for sign in (1.0, -1.0):
        loss = log_cosh_loss(sign * error, torch.zeros(len(error)), reduction="none")
        assert_close(loss, torch.tensor(exact, dtype=torch.float64).float(), rtol=3e-7, atol=0.0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_log_cosh_in_half_precision(dtype: torch.dtype) -> None:
    error = torch.tensor([0.0, 1e-3, 89.0, 1e4], dtype=dtype)
    loss = log_cosh_loss(error, torch.zeros_like(error), reduction="none")
    wide = log_cosh_loss(error.double(), torch.zeros(4, dtype=torch.float64), reduction="none")
    assert_close(loss, wide.float(), rtol=1e-6, atol=0.0)


def test_the_gradient_of_log_cosh_is_tanh() -> None:
    error = torch.tensor([-1e4, -89.0, -1.0, -1e-6, 0.0, 1e-6, 0.3, 1.0, 1e4], requires_grad=True)
    log_cosh_loss(error, torch.zeros(9), reduction="sum").backward()
    assert_close(error.grad, torch.tanh(error.detach()), rtol=1e-6, atol=0.0)


@pytest.mark.parametrize(("base", "symmetric"), [("mse", mse_loss), ("mae", mae_loss), ("huber", huber_loss)])
def test_an_over_prediction_costs_its_penalty(base: str, symmetric: object) -> None:
    preds, target = torch.tensor([3.0, 1.0, 2.0]), torch.tensor([2.0, 2.0, 2.0])
    loss = asymmetric_loss(preds, target, over_penalty=2.0, under_penalty=0.5, base=base, reduction="none")
    plain = symmetric(preds, target, reduction="none")  # type: ignore[operator]
    assert_close(loss, plain * torch.tensor([2.0, 0.5, 1.0]))


def test_the_huber_base_has_a_delta() -> None:
    preds, target = randn(9), randn(9, seed=1)
    loss = asymmetric_loss(preds, target, base="huber", delta=0.3)
    assert_close(loss, huber_loss(preds, target, 0.3))


def test_penalties_keep_their_precision_in_float64() -> None:
    loss = asymmetric_loss(torch.ones(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64), over_penalty=0.1)
    assert loss.item() == 0.1


def test_the_expectile_at_a_half_is_half_the_squared_error() -> None:
    preds, target = randn(9), randn(9, seed=1)
    assert_close(expectile_loss(preds, target, 0.5), 0.5 * mse_loss(preds, target))


@pytest.mark.parametrize("level", [0.1, 0.8])
def test_the_expectile_loss_is_least_at_the_expectile(level: float) -> None:
    sample = randn(200)
    at = torch.zeros((), dtype=torch.float64)
    for _ in range(200):  # the expectile is the mean with weights that depend on the side: a fixed point
        weights = level + (1 - 2 * level) * (sample < at).double()
        at = (weights * sample).sum() / weights.sum()
    at = at.expand(200).clone().requires_grad_()
    expectile_loss(at, sample, level).backward()
    assert at.grad is not None
    assert abs(at.grad.sum().item()) < 1e-12


def test_refuses_a_parameter_out_of_range() -> None:
    x = torch.zeros(2)
    with pytest.raises(ValueError, match=r"delta must be finite and > 0, got 0\.0"):
        huber_loss(x, x, 0.0)
    with pytest.raises(ValueError, match=r"over_penalty must be finite and > 0, got -1\.0"):
        asymmetric_loss(x, x, over_penalty=-1.0)
    with pytest.raises(ValueError, match=r"under_penalty must be finite and > 0, got 0\.0"):
        asymmetric_loss(x, x, under_penalty=0.0)
    with pytest.raises(
        ValueError, match=r"base must be one of 'mse', 'mae', 'huber', got 'hubr'; did you mean 'huber'"
    ):
        asymmetric_loss(x, x, base="hubr")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"expectile must be finite and > 0 and < 1, got 1\.0"):
        expectile_loss(x, x, 1.0)


@pytest.mark.parametrize("function", [mse_loss, mae_loss, huber_loss, log_cosh_loss, asymmetric_loss])
def test_refuses_to_broadcast(function: object) -> None:
    with pytest.raises(ValueError, match=r"same shape, got \(4, 1\) and \(4,\); use target.unsqueeze\(-1\)"):
        function(torch.zeros(4, 1), torch.zeros(4))  # type: ignore[operator]
    with pytest.raises(ValueError, match=r"same shape, got \(4,\) and \(4, 1\); use preds.unsqueeze\(-1\)"):
        function(torch.zeros(4), torch.zeros(4, 1))  # type: ignore[operator]
