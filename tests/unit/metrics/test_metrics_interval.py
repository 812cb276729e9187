"""Metrics of intervals and quantiles: what is covered, how wide, and whether it is in order."""

import re

import numpy as np
import pytest
import torch

from reghead.metrics import coverage, crossing_rate, mean_width, quantile_coverage

LOWER = torch.tensor([[0.0, 0.0], [1.0, 2.0], [3.0, 1.0]])
UPPER = torch.tensor([[1.0, 4.0], [2.0, 3.0], [1.0, 1.0]])  # the last of the first output is crossed
TARGET = torch.tensor([[1.0, 2.0], [0.0, 3.5], [2.0, 1.0]])


def test_both_ends_are_inside_and_a_crossed_interval_holds_nothing() -> None:
    assert coverage(LOWER, UPPER, TARGET).item() == pytest.approx(3 / 6)
    torch.testing.assert_close(coverage(LOWER, UPPER, TARGET, per_output=True), torch.tensor([1 / 3, 2 / 3]))


def test_the_width_keeps_its_sign() -> None:
    """The absolute value would make a crossed interval look like an honest one."""
    torch.testing.assert_close(mean_width(LOWER, UPPER, per_output=True), torch.tensor([0.0, 5 / 3]))
    assert mean_width(LOWER, UPPER).item() == pytest.approx(5 / 6)


def test_weights_masks_and_missing_targets() -> None:
    weight = torch.tensor([2.0, 1.0, 0.0])
    assert coverage(LOWER, UPPER, TARGET, weight=weight).item() == pytest.approx(4 / 6)
    assert mean_width(LOWER, UPPER, weight=weight).item() == pytest.approx((2 * 5 + 2) / 6)
    mask = torch.tensor([True, False, False])
    assert coverage(LOWER, UPPER, TARGET, mask=mask).item() == 1.0
    assert mean_width(LOWER, UPPER, mask=mask).item() == 2.5
    holes = TARGET.clone()
    holes[1] = torch.nan
    assert coverage(LOWER, UPPER, holes, nan_policy="omit").item() == pytest.approx(3 / 4)
    assert coverage(LOWER, UPPER, holes).isnan()


def test_an_infinite_interval_covers_and_is_infinitely_wide() -> None:
    lower, upper = torch.full((2, 1), -torch.inf), torch.full((2, 1), torch.inf)
    assert coverage(lower, upper, torch.zeros(2, 1)).item() == 1.0
    assert mean_width(lower, upper).item() == torch.inf


def test_a_nan_end_is_reported_never_counted_as_a_miss() -> None:
    lower = LOWER.clone()
    lower[0, 0] = torch.nan
    for metric in (coverage(lower, UPPER, TARGET, nan_policy="omit", per_output=True), coverage(UPPER, lower, TARGET)):
        assert metric.isnan().any()
    assert coverage(lower, UPPER, TARGET, per_output=True).isnan().tolist() == [True, False]
    assert mean_width(lower, UPPER).isnan()
    assert crossing_rate(torch.stack([lower, UPPER], dim=-1)).isnan()
    assert crossing_rate(lower.unsqueeze(-1)).isnan()
    assert quantile_coverage(torch.stack([lower, UPPER], -1), TARGET, [0.1, 0.9]).isnan().tolist() == [True, False]


def test_nothing_counted_is_nan() -> None:
    nothing = torch.zeros(3, dtype=torch.bool)
    preds = torch.stack([LOWER, UPPER], dim=-1)
    assert coverage(LOWER, UPPER, TARGET, mask=nothing).isnan()
    assert mean_width(LOWER, UPPER, mask=nothing).isnan()
    assert crossing_rate(preds, mask=nothing).isnan()
    assert quantile_coverage(preds, TARGET, [0.1, 0.9], mask=nothing).isnan().all()


def test_crossings_are_counted_by_pair_or_by_row() -> None:
    preds = torch.tensor([[[1.0, 2.0, 2.0]], [[3.0, 2.0, 1.0]], [[1.0, 3.0, 2.0]]])
    assert crossing_rate(preds).item() == pytest.approx((0 + 1 + 0.5) / 3)
    assert crossing_rate(preds, "rows").item() == pytest.approx(2 / 3)
    assert crossing_rate(preds, "rows", weight=torch.tensor([2.0, 1.0, 1.0])).item() == pytest.approx(0.5)
    assert crossing_rate(preds, mask=torch.tensor([True, False, False])).item() == 0.0
    assert crossing_rate(preds[..., :1]).item() == 0.0


def test_quantile_coverage_against_counting() -> None:
    rng = np.random.default_rng(0)
    target, levels = rng.normal(size=(500, 2)), [0.1, 0.5, 0.9]
    preds = np.sort(rng.normal(size=(500, 2, 3)), axis=-1)
    weight = rng.integers(0, 3, size=500)
    below = np.repeat(target[..., None] <= preds, weight, axis=0)
    args = (torch.from_numpy(preds), torch.from_numpy(target), levels)
    ours = quantile_coverage(*args, weight=torch.from_numpy(weight), per_output=True)
    np.testing.assert_allclose(ours.numpy(), below.mean(0), rtol=1e-12)
    overall = quantile_coverage(*args, weight=torch.from_numpy(weight))
    np.testing.assert_allclose(overall.numpy(), below.mean((0, 1)), rtol=1e-12)


def test_true_quantiles_are_calibrated() -> None:
    """The share below each level lies within 4 standard deviations of the binomial."""
    rows, levels = 20_000, [0.05, 0.25, 0.5, 0.75, 0.95]
    rng = torch.Generator().manual_seed(0)
    scale = torch.rand(rows, 1, generator=rng) + 0.1
    target = scale * torch.randn(rows, 1, generator=rng)
    tau = torch.tensor(levels)
    preds = scale.unsqueeze(-1) * torch.special.ndtri(tau)
    error = (quantile_coverage(preds, target, levels) - tau).abs()
    assert (error < 4 * (tau * (1 - tau) / rows).sqrt()).all()


def test_shapes_are_checked() -> None:
    with pytest.raises(ValueError, match=re.escape("upper must have shape of lower = (3, 2), got (3,)")):
        coverage(LOWER, UPPER[:, 0], TARGET)
    with pytest.raises(ValueError, match=re.escape("target must have shape of lower and upper = (3, 2), got (3, 1)")):
        coverage(LOWER, UPPER, TARGET[:, :1])
    with pytest.raises(ValueError, match=re.escape("upper must have shape of lower = (3, 2), got (3, 1)")):
        mean_width(LOWER, UPPER[:, :1])
    with pytest.raises(ValueError, match=re.escape("preds must have shape (*, D, Q) with at least one level, got ()")):
        crossing_rate(torch.tensor(1.0))
    with pytest.raises(ValueError, match=re.escape("preds must have shape (*.target.shape, Q)".replace("*.", "*"))):
        quantile_coverage(LOWER, TARGET, [0.1, 0.9])
    with pytest.raises(ValueError, match=re.escape("preds must have shape (*, Q) with Q = 3, got (3, 2)")):
        quantile_coverage(LOWER, TARGET, [0.1, 0.5, 0.9])
    with pytest.raises(ValueError, match="unit must be one of 'pairs', 'rows', got 'row'; did you mean 'rows'"):
        crossing_rate(LOWER, "row")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="lower must be of a floating-point dtype"):
        coverage(LOWER.long(), UPPER, TARGET)


def test_one_graph_under_the_compiler() -> None:
    def everything(lower: torch.Tensor, upper: torch.Tensor, target: torch.Tensor) -> tuple[torch.Tensor, ...]:
        preds = torch.stack([lower, upper], dim=-1)
        return (
            coverage(lower, upper, target, nan_policy="omit"),
            mean_width(lower, upper, per_output=True),
            crossing_rate(preds),
            quantile_coverage(preds, target, [0.1, 0.9]),
        )

    compiled = torch.compile(everything, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(LOWER, UPPER, TARGET), everything(LOWER, UPPER, TARGET))
