"""Interval score, CRPS and Gaussian likelihood: identities, ends of their range, and refusals."""

import math
from statistics import NormalDist

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.testing import assert_close

from reghead.functional import crps_loss, gaussian_nll_loss, interval_score_loss, pinball_loss


def randn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_the_interval_score_is_the_width_where_the_target_is_inside() -> None:
    preds = torch.tensor([[[1.0, 3.0]]])
    for inside in (1.0, 2.0, 3.0):
        assert interval_score_loss(preds, torch.tensor([[inside]]), 0.9).item() == 2.0


def test_each_miss_costs_two_over_alpha() -> None:
    preds, target = torch.tensor([[[1.0, 3.0]], [[1.0, 3.0]]]), torch.tensor([[0.5], [4.0]])
    loss = interval_score_loss(preds, target, 0.8, reduction="none")
    assert_close(loss, torch.tensor([[2 + 2 / 0.2 * 0.5], [2 + 2 / 0.2 * 1.0]]))


def test_the_interval_score_is_a_sum_of_pinball_losses_with_their_gradients() -> None:
    preds, target = randn(30, 2, 2), randn(30, 2, seed=1)  # crossed ends among them
    target[0] = preds[0, :, 0]  # and a tie
    preds.requires_grad_()
    score = interval_score_loss(preds, target, 0.9)
    pinball = 2 / 0.1 * 2 * pinball_loss(preds, target, [0.05, 0.95])
    assert_close(score, pinball)
    assert_close(torch.autograd.grad(score, preds), torch.autograd.grad(pinball, preds))


def test_crossed_ends_are_not_put_in_order() -> None:
    target = torch.tensor([[2.0]])
    crossed = interval_score_loss(torch.tensor([[[3.0, 1.0]]]), target, 0.5)
    assert crossed.item() == -2 + 2 / 0.5 + 2 / 0.5
    assert crossed > interval_score_loss(torch.tensor([[[1.0, 3.0]]]), target, 0.5)


@pytest.mark.parametrize("levels", [[0.5], [0.1, 0.5, 0.9], [0.02, 0.3, 0.31, 0.9]])
def test_the_weights_of_the_crps_integrate_to_one(levels: list[float]) -> None:
    """The pinball losses of errors 1 and -1 add up to 1 at any level, so 2 sum_q w_q is what both scores add up to."""
    preds, target = torch.zeros(1, 1, len(levels), dtype=torch.float64), torch.ones(1, 1, dtype=torch.float64)
    assert_close((crps_loss(preds, target, levels) + crps_loss(preds, -target, levels)).item(), 2.0)


def test_the_crps_weighs_a_level_by_the_width_of_its_cell() -> None:
    preds, target = torch.zeros(1, 1, 3, dtype=torch.float64, requires_grad=True), torch.zeros(1, 1) + 1.0
    crps_loss(preds, target, [0.1, 0.5, 0.7]).backward()
    assert preds.grad is not None
    by_hand = [-2 * width * tau for width, tau in ((0.3, 0.1), (0.3, 0.5), (0.4, 0.7))]
    assert_close(preds.grad.flatten(), torch.tensor(by_hand, dtype=torch.float64))


def test_the_crps_of_midpoints_is_that_of_the_normal_distribution() -> None:
    q = 99
    levels = [(k - 0.5) / q for k in range(1, q + 1)]
    target = torch.linspace(-3, 3, 25, dtype=torch.float64)[:, None]
    z = torch.tensor([NormalDist().inv_cdf(level) for level in levels], dtype=torch.float64)
    found = crps_loss(z.expand(25, 1, q), target, levels, reduction="none").flatten()
    normal = NormalDist()
    # Gneiting and Raftery (2007), eq. 21.
    exact = torch.tensor(
        [y * (2 * normal.cdf(y) - 1) + 2 * normal.pdf(y) - 1 / math.sqrt(math.pi) for y in target.flatten().tolist()],
        dtype=torch.float64,
    )
    assert_close(found, exact, rtol=1e-3, atol=0.0)


def test_the_crps_of_the_median_alone_is_the_absolute_error() -> None:
    preds, target = randn(9, 2), randn(9, 2, seed=1)
    assert_close(crps_loss(preds.unsqueeze(-1), target, [0.5]), (preds - target).abs().mean())


def test_the_gaussian_likelihood_is_that_of_torch_and_of_its_density() -> None:
    preds, target, scale = randn(9, 2), randn(9, 2, seed=1), randn(9, 2, seed=2).exp()
    loss = gaussian_nll_loss(preds, target, scale)
    assert_close(loss, F.gaussian_nll_loss(preds, target, scale.square(), full=True))
    assert_close(loss, -torch.distributions.Normal(preds, scale).log_prob(target).mean())


def test_a_small_scale_is_not_clamped() -> None:
    zero = torch.zeros(1, dtype=torch.float64)
    assert_close(gaussian_nll_loss(zero, zero, zero + 1e-9).item(), math.log(1e-9) + 0.5 * math.log(2 * math.pi))


def test_the_scale_of_a_cell_that_does_not_count_may_be_anything() -> None:
    preds, target = torch.zeros(3, 1), torch.zeros(3, 1)
    scale = torch.tensor([[1.0], [0.0], [float("nan")]], requires_grad=True)
    loss = gaussian_nll_loss(preds, target, scale, mask=torch.tensor([True, False, False]))
    loss.backward()
    assert_close(loss.item(), 0.5 * math.log(2 * math.pi))
    assert scale.grad is not None
    assert scale.grad.flatten().tolist() == [1.0, 0.0, 0.0]


def test_the_gaussian_likelihood_compiles_in_one_graph() -> None:
    preds, target, scale = randn(9, 2), randn(9, 2, seed=1), randn(9, 2, seed=2).exp()
    torch._dynamo.reset()
    compiled = torch.compile(gaussian_nll_loss, fullgraph=True, backend="aot_eager")
    assert_close(compiled(preds, target, scale), gaussian_nll_loss(preds, target, scale))


def test_refusals() -> None:
    target = torch.zeros(4, 1)
    with pytest.raises(ValueError, match=r"preds must have shape \(\*target.shape, 2\) = \(4, 1, 2\), got \(4, 2\)"):
        interval_score_loss(torch.zeros(4, 2), target, 0.9)
    with pytest.raises(ValueError, match=r"confidence_level must be finite and > 0 and < 1, got 90\.0"):
        interval_score_loss(torch.zeros(4, 1, 2), target, 90.0)
    with pytest.raises(ValueError, match=r"a flat head needs unflatten\(-1, \(1, 3\)\)"):
        crps_loss(torch.zeros(4, 3), target, [0.1, 0.5, 0.9])
    with pytest.raises(ValueError, match=r"scale must have shape preds.shape = \(4, 1\), got \(4,\)"):
        gaussian_nll_loss(target, target, torch.ones(4))
    with pytest.raises(ValueError, match="scale must be positive standard deviations, got -1; use softplus or exp"):
        gaussian_nll_loss(target, target, -torch.ones(4, 1))


def test_infinite_intervals_score_infinity_and_not_nan() -> None:
    """An interval without an end is legitimate: conformal prediction gives it where calibration rows are too few."""
    inf = torch.inf
    for ends in ((-inf, inf), (-inf, 3.0), (1.0, inf)):
        preds, target = torch.tensor([[ends]]), torch.tensor([[2.0]])
        assert interval_score_loss(preds, target, 0.9).item() == inf
        assert pinball_loss(preds, target, [0.05, 0.95]).item() == inf
        assert pinball_loss(preds, target, [0.05, 0.95], reduction="none").isfinite().sum() == (preds.isfinite()).sum()
        assert crps_loss(preds, target, [0.05, 0.95]).item() == inf
