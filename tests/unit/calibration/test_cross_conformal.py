"""Intervals for known and for new environments from out-of-fold predictions."""

import math
import re

import pytest
import torch

from reghead import RegheadWarning
from reghead.calibration import ConformalizedQuantiles, CrossConformal, SplitConformal, conformal_quantile

RNG = torch.Generator().manual_seed(0)
K, PER = 12, 10
SITE = {"site": torch.arange(1, K + 1).repeat_interleave(PER)}
TARGET = torch.randn(K * PER, 2, generator=RNG, dtype=torch.float64)
KNOWN = torch.zeros_like(TARGET)
NEW = KNOWN + 3 * torch.randn(K, 2, generator=RNG, dtype=torch.float64).repeat_interleave(PER, 0)
SIZES = {"site": K + 5}
ROWS = torch.zeros(4, 2, dtype=torch.float64)
IDS = {"site": torch.tensor([1, K, K + 1, 0])}


def conformalized(**options) -> CrossConformal:
    conformal = CrossConformal(SIZES, 0.9, **options)
    return conformal.conformalize(KNOWN, TARGET, SITE, left_out="rows").conformalize(
        NEW, TARGET, SITE, left_out="environments"
    )


def half_width(ends: torch.Tensor) -> torch.Tensor:
    return (ends[..., -1] - ends[..., 0]) / 2


def test_the_offset_is_chosen_by_whether_the_environment_is_known() -> None:
    width = half_width(conformalized()(ROWS, IDS))
    known = conformal_quantile((TARGET - KNOWN).abs(), 0.9)
    torch.testing.assert_close(width[:2], known.expand(2, 2))
    assert (width[2:] > 1.5 * known).all()  # a site id without calibration rows, and id 0
    assert torch.equal(width[2], width[3])


def test_with_as_many_rows_each_the_new_interval_is_the_smallest_that_holds_enough_environments() -> None:
    """With K environments of one size, a share of (K + 1)(1 - alpha) / K of all rows must lie inside."""
    scores = (TARGET - NEW).abs().sort(dim=0).values
    rank = math.ceil((K + 1) * 9 * PER / 10)  # each row weighs 1 / PER
    torch.testing.assert_close(half_width(conformalized()(ROWS, IDS))[2], scores[rank - 1])


def test_pooled_rows_are_one_sample() -> None:
    width = half_width(conformalized(rule="pooled")(ROWS, IDS))
    torch.testing.assert_close(width[2], conformal_quantile((TARGET - NEW).abs(), 0.9))


@pytest.mark.parametrize(("environments", "infinite"), [(8, True), (9, False)])
def test_too_few_environments_give_an_infinite_interval_unless_rows_are_pooled(
    environments: int, infinite: bool
) -> None:
    rows = slice(0, environments * PER)
    ids = {"site": SITE["site"][rows]}
    for rule in ("hierarchical", "pooled"):
        conformal = CrossConformal(SIZES, 0.9, rule=rule)
        conformal.conformalize(NEW[rows], TARGET[rows], ids, left_out="environments")
        assert conformal(ROWS, IDS).isinf().all().item() is (infinite and rule == "hierarchical")


def test_a_large_environment_weighs_as_much_as_a_small_one() -> None:
    times = torch.where(SITE["site"] == 1, 30, 1)
    more = [t.repeat_interleave(times, 0) for t in (NEW, TARGET, SITE["site"])]
    once, often = (
        CrossConformal(SIZES, 0.9).conformalize(p, y, {"site": ids}, left_out="environments")
        for p, y, ids in ((NEW, TARGET, SITE["site"]), more)
    )
    assert torch.equal(once.offsets, often.offsets)


def test_a_kind_that_was_not_calibrated_is_never_made_up() -> None:
    rows_only = CrossConformal(SIZES, 0.9).conformalize(KNOWN, TARGET, SITE, left_out="rows")
    ends = rows_only(ROWS, IDS)
    assert ends[:2].isfinite().all()
    assert ends[2:].isinf().all()
    environments_only = CrossConformal(SIZES, 0.9).conformalize(NEW, TARGET, SITE, left_out="environments")
    assert torch.equal(environments_only(ROWS, IDS), conformalized()(ROWS, IDS)[2:3].expand(4, 2, 2))


def test_the_order_of_the_two_calls_does_not_matter_and_each_forgets_its_own_kind_only() -> None:
    one = conformalized()
    mask = SITE["site"] != 3  # a site that the rows of one kind lack
    other = CrossConformal(SIZES, 0.9).conformalize(2 * NEW, TARGET, SITE, left_out="environments")
    other.conformalize(KNOWN, TARGET, SITE, left_out="rows", mask=mask)
    assert torch.equal(other.offsets[3], other.offsets[0])
    other.conformalize(NEW, TARGET, SITE, left_out="environments")
    assert torch.equal(other.offsets[3], other.offsets[0])
    other.conformalize(KNOWN, TARGET, SITE, left_out="rows")
    for name, tensor in one.state_dict().items():
        assert torch.equal(tensor, other.state_dict()[name]), name
    assert one.count[0].tolist() == [K, K]
    assert one.count[1].tolist() == [PER, PER]


def test_known_environments_share_one_offset_or_have_their_own() -> None:
    target = TARGET * SITE["site"].unsqueeze(-1)
    shared = CrossConformal(SIZES, 0.5).conformalize(KNOWN, target, SITE, left_out="rows")
    own = CrossConformal(SIZES, 0.5, pooling=0.0).conformalize(KNOWN, target, SITE, left_out="rows")
    split = SplitConformal(0.5, groups=SIZES, pooling=0.0).conformalize(KNOWN, target, SITE)
    assert len(shared.offsets[1:].unique(dim=0)) == 1
    assert torch.equal(own.offsets[1:], split.offsets[1:])


def test_rows_of_unknown_environments_count_for_known_ones_together() -> None:
    ids = {"site": SITE["site"].clone()}
    ids["site"][:PER] = 0
    conformal = CrossConformal(SIZES, 0.9).conformalize(KNOWN, TARGET, ids, left_out="rows")
    width = half_width(conformal(ROWS, IDS))
    assert width[0].isinf().all()  # site 1 was never named
    torch.testing.assert_close(width[1], conformal_quantile(TARGET.abs(), 0.9))


def test_quantile_predictions_and_combinations_of_columns() -> None:
    cells = {"site": SITE["site"], "season": torch.arange(K * PER) % 2 + 1}
    preds = torch.stack([KNOWN - 1, KNOWN, KNOWN + 1], -1)
    for asymmetric in (False, True):
        conformal = CrossConformal(
            {"site": K + 1, "season": 4}, quantiles=[0.1, 0.5, 0.9], asymmetric=asymmetric
        ).conformalize(preds, TARGET, cells, left_out="rows")
        conformal.conformalize(2 * preds, TARGET, cells, left_out="environments")
        known = ConformalizedQuantiles([0.1, 0.5, 0.9], asymmetric=asymmetric).conformalize(preds, TARGET)
        assert torch.equal(conformal(preds, cells), known(preds))
        other_season = {"site": SITE["site"], "season": torch.full((K * PER,), 3)}
        assert not torch.equal(conformal(preds, other_season), known(preds))


def test_crossing_predictions_are_reported() -> None:
    preds = torch.stack([KNOWN + 1, KNOWN - 1], -1)
    with pytest.warns(RegheadWarning, match="120 of 240|240 of 240") as caught:
        CrossConformal(SIZES, quantiles=[0.1, 0.9]).conformalize(preds, TARGET, SITE, left_out="rows")
    assert caught[0].filename == __file__


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: CrossConformal({}, 0.9), ValueError, "environments must name at least one column, got none"),
        (
            lambda: CrossConformal(SIZES),
            ValueError,
            "exactly one of confidence_level (for point predictions) and quantiles (for quantile predictions) must be "
            "given, got None and None",
        ),
        (lambda: CrossConformal(SIZES, 0.9, quantiles=[0.1, 0.9]), ValueError, "exactly one of confidence_level"),
        (lambda: CrossConformal(SIZES, 0.9, asymmetric=True), ValueError, "asymmetric=True needs quantiles"),
        (
            lambda: CrossConformal(SIZES, 0.9, rule="pool"),
            ValueError,
            "rule must be one of 'hierarchical', 'pooled', got 'pool'; did you mean 'pooled'?",
        ),
        (
            lambda: CrossConformal(SIZES, 0.9).conformalize(KNOWN, TARGET, SITE, left_out="row"),
            ValueError,
            "left_out must be one of 'rows', 'environments', got 'row'",
        ),
        (
            lambda: CrossConformal(SIZES, 0.9).conformalize(
                NEW, TARGET, {"site": SITE["site"] - 1}, left_out="environments"
            ),
            ValueError,
            'left_out="environments" needs the environment of every row, got id 0 in 10 rows; leave them out with mask',
        ),
        (
            lambda: conformalized().conformalize(KNOWN[:, :1], TARGET[:, :1], SITE, left_out="rows"),
            ValueError,
            "preds must have D = 2 target columns as in the first call of conformalize, got 1",
        ),
        (
            lambda: CrossConformal(SIZES, 0.9).conformalize(NEW, NEW * torch.nan, SITE, left_out="environments"),
            ValueError,
            "scores must not be NaN, but by target column [120, 120] rows",
        ),
    ],
)
def test_errors(call, error, message) -> None:
    with pytest.raises(error, match=re.escape(message)):
        call()
