"""With learned uncertainty the unit of a target matters to those losses alone that have a length of their own."""

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from reghead.functional import per_output_loss

SCALING = (
    *("mse", "mae", "quantile", "asymmetric"),
    {"type": "expectile", "expectile": 0.8},
    {"type": "asymmetric", "base": "mae", "over_penalty": 3.0},
)
WITH_A_TURN = (
    *("huber", "huber_quantile", "log_cosh"),
    {"type": "asymmetric", "base": "huber", "under_penalty": 2.0},
)
DELTA = ("huber", "huber_quantile", {"type": "asymmetric", "base": "huber"})


def gradient(spec: object, unit: float) -> Tensor:
    """Of the loss at its least over s, in terms of predictions that do not know the unit."""
    rng = torch.Generator().manual_seed(0)
    preds = torch.randn(40, 1, 3, dtype=torch.float64, generator=rng).sort(-1).values
    target = 2 * torch.randn(40, 1, dtype=torch.float64, generator=rng)
    name = spec if isinstance(spec, str) else spec["type"]  # type: ignore[index]
    preds = (preds if "quantile" in str(name) else preds[..., 1]).requires_grad_()

    def loss(log_variance: Tensor | None) -> Tensor:
        return per_output_loss(preds * unit, target * unit, {0: spec}, log_variance=log_variance)  # type: ignore[dict-item]

    least = loss(None).detach().log().unsqueeze(0)
    return torch.autograd.grad(loss(least), preds)[0]


@pytest.mark.parametrize("unit", [1e-3, 40.0])
@pytest.mark.parametrize("spec", SCALING, ids=str)
def test_the_unit_does_not_matter_to_a_loss_that_scales_with_it(spec: object, unit: float) -> None:
    assert_close(gradient(spec, unit), gradient(spec, 1.0), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("spec", WITH_A_TURN, ids=str)
def test_it_matters_to_one_that_turns_from_square_to_linear(spec: object) -> None:
    assert (gradient(spec, 40.0) - gradient(spec, 1.0)).abs().max() > 0.1 * gradient(spec, 1.0).abs().max()


@pytest.mark.parametrize("spec", DELTA, ids=str)
def test_unless_delta_is_given_in_the_new_unit(spec: object) -> None:
    options = {"type": spec} if isinstance(spec, str) else dict(spec)  # type: ignore[call-overload]
    in_metres, in_feet = ({**options, "delta": delta} for delta in (1.5, 1.5 * 3.28))
    assert_close(gradient(in_feet, 3.28), gradient(in_metres, 1.0), rtol=1e-9, atol=1e-12)
