"""Predictions of rows from all others where rows all but determine their own: by many digits, and by iteration."""

from typing import Any

import mpmath
import numpy as np
import pytest
import torch
from torch import Tensor

from reghead.normalization import MixedEffects, _mixed_fit, _mixed_state

F64 = torch.float64


def left_out(y: Tensor, ids: dict[str, Tensor], ratios: Tensor, sigma: float) -> Any:
    """Errors of predictions from all other rows over their standard deviations, with 60 digits.

    With V the covariance of the rows and P what is left of its inverse by the intercept, the error of a row that is
    left out is (P u)_i / P_ii, and its variance 1 / P_ii.
    """
    with mpmath.workdps(60):
        n, u = len(y), mpmath.matrix(((y - y.mean()) / y.std(correction=0)).flatten().tolist())
        covariance = mpmath.eye(n)
        for ratio, i in zip(ratios.tolist(), ids.values(), strict=False):
            for r in range(n):
                for s in range(n):
                    covariance[r, s] += mpmath.mpf(ratio) * int(i[r] == i[s])
        inverse = covariance**-1
        sums = inverse * mpmath.ones(n, 1)
        projection = inverse - sums * sums.T / sum(sums)
        errors = projection * u
        return np.array([float(errors[i] / mpmath.sqrt(projection[i, i]) / sigma) for i in range(n)])


@pytest.mark.parametrize("noise", [0.1, 1e-2, 1e-3, 3e-4, 1e-4, 3e-5, 1e-5])
@pytest.mark.parametrize("seed", range(2))
def test_a_row_alone_in_its_category_is_predicted_to_digits_or_not_at_all(seed: int, noise: float) -> None:
    """With variances of up to 1e10 of the residual one, what is left of such a row is lost in rounding."""
    rng = torch.Generator().manual_seed(seed)
    ids = {
        "a": torch.cat([torch.arange(5).repeat(4), torch.arange(5, 8)]) + 1,
        "b": torch.cat([torch.arange(4).repeat_interleave(5), torch.arange(3)]) + 1,
    }
    y = noise * torch.randn(23, 1, generator=rng, dtype=F64)
    for i in ids.values():
        y = y + torch.randn(9, 1, generator=rng, dtype=F64)[i]
    model = MixedEffects({"a": 9, "b": 5}, cells=False)
    z = model.fit_transform(y, ids).flatten().numpy()
    expected = left_out(y, ids, model.ratios[0], model.residual_variance.sqrt().item())
    told = z != 0
    np.testing.assert_allclose(z[told], expected[told], rtol=1e-2, atol=1e-6)
    assert told[:20].all()
    if noise >= 1e-2:
        assert told.all()


def iterated(model: MixedEffects, rows: tuple[Any, ...], ratios: Tensor) -> MixedEffects:
    """Fit by iteration at given ratios."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_mixed_state, "MAX_LEVELS", 0)
        patch.setattr(_mixed_fit, "estimate_sampled_ratios", lambda _: ratios[0])
        return model.fit(*rows)


@pytest.mark.parametrize("cells", [True, False])
def test_by_iteration_what_is_left_of_a_row_that_is_a_whole_profile_is_known_to_digits(cells: bool) -> None:
    """Of rows of categories of their own less than a thousandth is left, below what 64 samples tell of others."""
    rng = torch.Generator().manual_seed(0)
    ids = {c: torch.cat([torch.arange(1, 31), torch.randint(31, 41, (270,), generator=rng)]) for c in "ab"}
    y = 3 * torch.randn(300, 1, generator=rng, dtype=F64)
    sizes = {"a": 41, "b": 41}
    ratios = torch.tensor([[900.0, 900.0, 5.0 * cells, 0.0]], dtype=F64)
    exact, ours = (MixedEffects(sizes, cells=cells) for _ in range(2))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_mixed_fit, "estimate_ratios", lambda _: ratios[0])
        expected = exact.fit_transform(y, ids).flatten()
    z = iterated(ours, (y, ids), ratios).leave_one_out(y, ids).flatten()
    np.testing.assert_allclose(z[:30] / expected[:30], 1, atol=0.5)


def test_by_iteration_rows_of_large_leverage_among_others_stay_bounded_and_count() -> None:
    """Samples may say that less than nothing is left of them: then it is as much as they can tell from nothing."""
    rng = torch.Generator().manual_seed(0)
    ids = {c: torch.randint(1, 6, (200,), generator=rng) for c in "ab"}
    ids = {c: torch.cat([i, i[:12], i[:12]]) for c, i in ids.items()}  # profiles of three rows and more
    x = 0.1 * torch.randn(224, 12, generator=rng, dtype=F64)
    x[torch.arange(12), torch.arange(12)] = 20.0  # which all but determine their own predictions
    y = torch.randn(224, 1, generator=rng, dtype=F64)
    ratios = torch.tensor([[0.3, 0.3, 0.1, 0.0]], dtype=F64)
    exact, ours = (MixedEffects({"a": 6, "b": 6}, shrink_features=False) for _ in range(2))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_mixed_fit, "estimate_ratios", lambda _: ratios[0])
        exact.fit(y, ids, x)
    iterated(ours, (y, ids, x), ratios)
    expected, z = exact.leave_one_out(y, ids, x), ours.leave_one_out(y, ids, x)
    assert (z[:12] != 0).all()
    assert (z[:12].sign() == expected[:12].sign()).all()
    assert (z[:12].abs() < 6 * expected[:12].abs() + 1e-6).all()
    np.testing.assert_allclose(z[12:], expected[12:], atol=0.2)
