"""Conformalized quantile regression: both scores, several levels, shrinking, crossing."""

import re
import warnings

import pytest
import torch

from reghead import RegheadWarning
from reghead.calibration import ConformalizedQuantiles

LEVELS = (0.05, 0.25, 0.5, 0.75, 0.95)
NORMAL = torch.special.ndtri(torch.tensor(LEVELS, dtype=torch.float64))
TARGET = torch.randn(400, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
PREDS = NORMAL.expand(400, 2, 5)


def test_every_pair_of_levels_around_the_median_is_an_interval() -> None:
    conformal = ConformalizedQuantiles(LEVELS).conformalize(PREDS, TARGET)
    assert conformal.confidence_levels == (0.9, 0.5)
    assert conformal(PREDS).shape == (400, 2, 4)
    for level, pair in ((0.9, [0, 4]), (0.5, [1, 3])):
        alone = ConformalizedQuantiles([LEVELS[i] for i in pair]).conformalize(PREDS[..., pair], TARGET)
        assert torch.equal(torch.stack(conformal.interval(PREDS, confidence_level=level), -1), alone(PREDS[..., pair]))


@pytest.mark.parametrize("factor", [0.2, 1.0, 3.0])
def test_too_narrow_quantiles_grow_and_too_wide_ones_shrink(factor: float) -> None:
    preds = factor * PREDS
    conformal = ConformalizedQuantiles(LEVELS).conformalize(preds, TARGET)
    covered = (conformal(preds)[..., :2] <= TARGET.unsqueeze(-1)) & (
        TARGET.unsqueeze(-1) <= conformal(preds)[..., 2:].flip(-1)
    )
    torch.testing.assert_close(covered.double().mean((0, 1)), TARGET.new_tensor([0.9, 0.5]), atol=0.01, rtol=0)
    sign = conformal.offsets.sign().unique().tolist()
    if factor != 1.0:
        assert sign == [1.0 if factor < 1 else -1.0]


def test_asymmetric_ends_each_miss_with_half_of_alpha() -> None:
    """A bias of the model moves both ends the same way; one offset for both would have to widen both."""
    preds = PREDS + 3.0
    one, two = (ConformalizedQuantiles(LEVELS, asymmetric=a).conformalize(preds, TARGET) for a in (False, True))
    lower, upper = two.interval(preds, confidence_level=0.9)
    n = 400
    assert ((lower > TARGET).sum(0) == n - 381).all()  # rank ceil(401 * 0.95) = 381 is inside
    assert ((upper < TARGET).sum(0) == n - 381).all()
    wide = one.interval(preds, confidence_level=0.9)
    assert ((upper - lower) < 0.7 * (wide[1] - wide[0])).all()


@pytest.mark.parametrize(("rows", "infinite"), [(18, True), (19, False)])
def test_an_asymmetric_end_needs_two_over_alpha_minus_one_rows(rows: int, infinite: bool) -> None:
    two = ConformalizedQuantiles([0.05, 0.95], asymmetric=True)
    ends = two.conformalize(PREDS[:rows, :, [0, 4]], TARGET[:rows])(PREDS[:1, :, [0, 4]])
    assert ends.isinf().all().item() is infinite
    one = ConformalizedQuantiles([0.05, 0.95]).conformalize(PREDS[:rows, :, [0, 4]], TARGET[:rows])
    assert one(PREDS[:1, :, [0, 4]]).isfinite().all()  # 9 rows are enough


def test_an_interval_that_would_be_empty_is_its_middle() -> None:
    preds = torch.tensor([[[-10.0, 10.0]]]).expand(9, 1, 2)
    conformal = ConformalizedQuantiles([0.1, 0.9]).conformalize(preds, torch.zeros(9, 1))
    assert conformal(torch.tensor([[[1.0, 4.0]]])).tolist() == [[[2.5, 2.5]]]


def test_intervals_stay_nested_where_their_offsets_would_cross_them() -> None:
    preds = torch.tensor([[[-10.0, -1.0, 1.0, 10.0]]])
    target = torch.linspace(-3, 3, 39).unsqueeze(-1)
    conformal = ConformalizedQuantiles([0.1, 0.2, 0.8, 0.9]).conformalize(preds.expand(39, 1, 4), target)
    row = torch.tensor([[[-1.1, -1.0, 1.0, 1.1]]])
    raw = row[0, 0, [0, 1]] - conformal.offsets[0, 0].float()
    assert raw[0] > raw[1]  # the outer end is inside the inner one
    ends = conformal(row)
    assert (ends.diff(dim=-1) >= 0).all()
    assert ends[0, 0, 0] == ends[0, 0, 1] == raw[1]


def test_crossing_predictions_are_reported_not_hidden() -> None:
    crossed = PREDS.clone()
    crossed[:3, 0] = crossed[:3, 0].flip(-1)
    message = "3 of 800 predictions have a lower quantile above its upper one"
    with pytest.warns(RegheadWarning, match=message) as caught:
        conformal = ConformalizedQuantiles(LEVELS).conformalize(crossed, TARGET)
    assert caught[0].filename == __file__
    lower, upper = conformal.interval(crossed, confidence_level=0.9)
    assert (lower <= upper).all()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ConformalizedQuantiles(LEVELS).conformalize(PREDS, TARGET)


def test_a_prediction_counts_as_crossing_once_and_in_every_column() -> None:
    crossed = PREDS[:6].clone()
    crossed[1] = crossed[1].flip(-1)  # in both columns, and in both pairs of levels
    crossed[4, 1, 1:4] = crossed[4, 1, 1:4].flip(-1)  # in one column and the inner pair
    with pytest.warns(RegheadWarning, match="^3 of 12 predictions have a lower quantile above its upper one"):
        ConformalizedQuantiles(LEVELS).conformalize(crossed.view(2, 3, 2, 5), TARGET[:6].view(2, 3, 2))


def test_scores_in_units_of_a_predicted_spread() -> None:
    scale = torch.linspace(0.5, 2, 400, dtype=torch.float64).unsqueeze(-1).expand(400, 2)
    conformal = ConformalizedQuantiles(LEVELS, scaled=True).conformalize(PREDS, scale * TARGET, scale=scale)
    lower, upper = conformal.interval(PREDS, scale=scale, confidence_level=0.9)
    torch.testing.assert_close((upper - PREDS[..., 4]) / scale, conformal.offsets[0, :, 0].expand(400, 2))
    torch.testing.assert_close((PREDS[..., 0] - lower) / scale, conformal.offsets[0, :, 0].expand(400, 2))


def test_groups_calibrate_each_category() -> None:
    ids = torch.arange(400) % 2 + 1
    target = TARGET * ids.unsqueeze(-1)
    conformal = ConformalizedQuantiles([0.05, 0.95], groups={"site": 4}, pooling=0)
    preds = PREDS[..., [0, 4]]
    conformal.conformalize(preds, target, {"site": ids})
    for site in (1, 2):
        rows = ids == site
        alone = ConformalizedQuantiles([0.05, 0.95]).conformalize(preds[rows], target[rows])
        assert torch.equal(conformal(preds[rows], {"site": ids[rows]}), alone(preds[rows]))


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: ConformalizedQuantiles([0.05, 0.5, 0.9]),
            ValueError,
            "quantiles must be pairs around 0.5, as 0.05 and 0.95, got (0.05, 0.5, 0.9): 0.05 goes with 0.95",
        ),
        (lambda: ConformalizedQuantiles([0.5]), ValueError, "quantiles must hold a pair such as (0.05, 0.95)"),
        (
            lambda: ConformalizedQuantiles([0.1, 0.9]).conformalize(PREDS, TARGET),
            ValueError,
            "preds must have shape (*, Q) with Q = 2, got (400, 2, 5)",
        ),
        (
            lambda: ConformalizedQuantiles(LEVELS).conformalize(PREDS * torch.nan, TARGET),
            ValueError,
            "scores must not be NaN, but by target column [400, 400] rows",
        ),
        (
            lambda: ConformalizedQuantiles(LEVELS)(PREDS),
            RuntimeError,
            "this ConformalizedQuantiles has no offsets yet",
        ),
    ],
)
def test_errors(call, error, message) -> None:
    with pytest.raises(error, match=re.escape(message)):
        call()


def test_levels_with_rounding_are_pairs() -> None:
    levels = [0.1 * i for i in range(1, 10)]  # 0.30000000000000004 goes with 0.7000000000000001
    assert ConformalizedQuantiles(levels).confidence_levels == (0.8, 0.6, 0.4, 0.2)
