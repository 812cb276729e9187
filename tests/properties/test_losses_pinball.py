"""The pinball loss as mathematics: a metric-like, convex function that the quantile minimises."""

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import mean_pinball_loss
from torch import Tensor
from torch.nn import functional as F
from torch.testing import assert_close

from reghead.functional import asymmetric_loss, huber_pinball_loss, pinball_loss

SEEDS = st.integers(0, 2**32 - 1)
SIZES = st.integers(1, 6)


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def levels(seed: int, count: int) -> list[float]:
    drawn = torch.rand(count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return sorted({round(0.01 + 0.98 * tau, 6) for tau in drawn.tolist()})


@given(seed=SEEDS, batch=st.integers(1, 8), outputs=SIZES, count=SIZES)
def test_the_mean_is_that_of_scikit_learn_over_the_levels(seed: int, batch: int, outputs: int, count: int) -> None:
    tau = levels(seed, count)
    preds, target = draw(seed, batch, outputs, len(tau)), draw(seed + 1, batch, outputs)
    theirs = np.mean([mean_pinball_loss(target, preds[..., q], alpha=t) for q, t in enumerate(tau)])
    assert_close(pinball_loss(preds, target, tau).item(), float(theirs), rtol=1e-12, atol=1e-12)


@given(seed=SEEDS, count=SIZES)
def test_the_weighted_mean_is_that_of_scikit_learn(seed: int, count: int) -> None:
    tau = levels(seed, count)
    preds, target = draw(seed, 7, 2, len(tau)), draw(seed + 1, 7, 2)
    weight = draw(seed + 2, 7).abs() + 0.1
    theirs = np.mean(
        [mean_pinball_loss(target, preds[..., q], alpha=t, sample_weight=weight) for q, t in enumerate(tau)]
    )
    assert_close(pinball_loss(preds, target, tau, weight=weight).item(), float(theirs), rtol=1e-12, atol=1e-12)


@given(seed=SEEDS, batch=st.integers(1, 8))
def test_it_is_half_the_absolute_error_at_the_median(seed: int, batch: int) -> None:
    preds, target = draw(seed, batch, 2, 1), draw(seed + 1, batch, 2)
    assert_close(pinball_loss(preds, target, [0.5]), 0.5 * F.l1_loss(preds.squeeze(-1), target))


@given(seed=SEEDS)
def test_it_is_never_negative_and_zero_only_at_the_target(seed: int) -> None:
    tau = levels(seed, 4)
    preds, target = draw(seed, 5, 2, len(tau)), draw(seed + 1, 5, 2)
    assert (pinball_loss(preds, target, tau, reduction="none") > 0).all()
    assert pinball_loss(target.unsqueeze(-1).expand_as(preds), target, tau) == 0


@given(seed=SEEDS, share=st.floats(0.0, 1.0))
def test_it_is_convex(seed: int, share: float) -> None:
    tau = levels(seed, 3)
    a, b, target = draw(seed, 5, 2, len(tau)), draw(seed + 1, 5, 2, len(tau)), draw(seed + 2, 5, 2)
    for loss in (pinball_loss, huber_pinball_loss):
        between = loss(share * a + (1 - share) * b, target, tau, reduction="none")
        chord = share * loss(a, target, tau, reduction="none") + (1 - share) * loss(b, target, tau, reduction="none")
        assert (between <= chord + 1e-12).all()


@settings(max_examples=25)
@given(seed=SEEDS, size=st.integers(1, 40), tau=st.floats(0.02, 0.98))
def test_the_empirical_quantile_minimises_it(seed: int, size: int, tau: float) -> None:
    sample = draw(seed, size)
    quantile = np.quantile(sample.numpy(), tau, method="inverted_cdf")
    candidates = torch.cat([sample, torch.linspace(-4, 4, 81, dtype=torch.float64), torch.tensor([quantile])])
    losses = torch.stack([pinball_loss(c.expand(size, 1, 1), sample[:, None], [tau]) for c in candidates])
    assert losses[-1] <= losses.min() + 1e-12


@given(seed=SEEDS, factor=st.floats(1e-3, 1e3), shift=st.floats(-100, 100))
def test_it_scales_with_the_units_and_does_not_see_the_origin(seed: int, factor: float, shift: float) -> None:
    tau = levels(seed, 3)
    preds, target = draw(seed, 5, 2, len(tau)), draw(seed + 1, 5, 2)
    moved = pinball_loss(factor * preds + shift, factor * target + shift, tau)
    assert_close(moved, factor * pinball_loss(preds, target, tau), rtol=1e-7, atol=1e-9)


@given(seed=SEEDS)
def test_turning_the_axis_swaps_the_levels(seed: int) -> None:
    tau = levels(seed, 3)
    preds, target = draw(seed, 5, 2, len(tau)), draw(seed + 1, 5, 2)
    turned = pinball_loss(-preds.flip(-1), -target, [1 - t for t in reversed(tau)])
    assert_close(turned, pinball_loss(preds, target, tau))


@given(seed=SEEDS, over=st.floats(0.1, 10), under=st.floats(0.1, 10))
def test_the_asymmetric_absolute_error_is_a_scaled_pinball(seed: int, over: float, under: float) -> None:
    preds, target = draw(seed, 5, 2), draw(seed + 1, 5, 2)
    pinball = pinball_loss(preds.unsqueeze(-1), target, [under / (over + under)])
    assert_close(asymmetric_loss(preds, target, over, under, "mae"), (over + under) * pinball)


@given(seed=SEEDS, penalty=st.floats(0.1, 10))
def test_equal_penalties_are_the_symmetric_loss(seed: int, penalty: float) -> None:
    preds, target = draw(seed, 5, 2), draw(seed + 1, 5, 2)
    for base, symmetric in (("mse", F.mse_loss), ("mae", F.l1_loss), ("huber", F.huber_loss)):
        assert_close(asymmetric_loss(preds, target, 1.0, 1.0, base), symmetric(preds, target))
        assert_close(asymmetric_loss(preds, target, penalty, penalty, base), penalty * symmetric(preds, target))
