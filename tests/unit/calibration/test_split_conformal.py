"""Split conformal intervals around point predictions: columns, spread, categories, what is refused."""

import math
import re
from fractions import Fraction

import numpy as np
import pytest
import torch

from reghead.calibration import SplitConformal, conformal_quantile

RNG = torch.Generator().manual_seed(0)
PREDS, TARGET = torch.randn(2, 200, 2, generator=RNG, dtype=torch.float64)
SITE = {"site": torch.cat([torch.full((100,), 1), torch.full((90,), 2), torch.full((8,), 3), torch.zeros(2).long()])}
SPREAD = TARGET.new_tensor([1.0, 5.0, 0.2])[(SITE["site"] - 1).clamp(min=0)].unsqueeze(-1)
NEW = torch.zeros(6, 2, dtype=torch.float64)
IDS = {"site": torch.tensor([0, 1, 2, 3, 4, 5])}


def half_width(ends: torch.Tensor) -> torch.Tensor:
    return (ends[..., -1] - ends[..., 0]) / 2


def test_each_target_column_has_the_quantile_of_its_own_absolute_residuals() -> None:
    lower, upper = SplitConformal(0.9).conformalize(PREDS, TARGET).interval(NEW)
    expected = np.sort((TARGET - PREDS).abs().numpy(), axis=0)[180]  # rank ceil(201 * 0.9) = 181
    np.testing.assert_allclose(upper.numpy(), np.broadcast_to(expected, (6, 2)))
    np.testing.assert_allclose(lower.numpy(), -np.broadcast_to(expected, (6, 2)))


def test_a_column_in_units_a_thousand_times_as_large_changes_no_other() -> None:
    factor = torch.tensor([1.0, 1000.0], dtype=torch.float64)
    one = SplitConformal(0.8).conformalize(PREDS, TARGET)
    other = SplitConformal(0.8).conformalize(PREDS * factor, TARGET * factor)
    torch.testing.assert_close(other.offsets, one.offsets * factor.unsqueeze(-1))


def test_several_levels_are_nested_and_each_is_its_own() -> None:
    several = SplitConformal([0.5, 0.9, 0.8]).conformalize(PREDS, TARGET)
    assert several.confidence_levels == (0.9, 0.8, 0.5)
    ends = several(PREDS)
    assert ends.shape == (200, 2, 6)
    assert (ends.diff(dim=-1) > 0).all()
    for level in (0.5, 0.8, 0.9):
        alone = SplitConformal(level).conformalize(PREDS, TARGET)(PREDS)
        lower, upper = several.interval(PREDS, confidence_level=level)
        assert torch.equal(torch.stack([lower, upper], -1), alone)


def test_a_predicted_spread_scales_the_interval_of_its_row() -> None:
    rng = torch.Generator().manual_seed(1)
    scale = torch.rand(200, 2, generator=rng, dtype=torch.float64) + 0.5
    conformal = SplitConformal(0.9, scaled=True).conformalize(PREDS, TARGET, scale=scale)
    ends = conformal(NEW[:2], scale=torch.tensor([[1.0, 1.0], [2.0, 3.0]]))
    torch.testing.assert_close(half_width(ends)[0], conformal_quantile((TARGET - PREDS).abs() / scale, 0.9))
    torch.testing.assert_close(half_width(ends)[1], half_width(ends)[0] * torch.tensor([2.0, 3.0]))


def test_a_masked_target_is_no_row_in_its_column_alone_even_if_nan() -> None:
    target, mask = TARGET.clone(), torch.ones(200, 2, dtype=torch.bool)
    target[:50, 0], mask[:50, 0] = torch.nan, False
    conformal = SplitConformal(0.9).conformalize(PREDS, target, mask=mask)
    torch.testing.assert_close(
        conformal.offsets[0, 0], SplitConformal(0.9).conformalize(PREDS[50:], TARGET[50:]).offsets[0, 0]
    )
    torch.testing.assert_close(conformal.offsets[0, 1], SplitConformal(0.9).conformalize(PREDS, TARGET).offsets[0, 1])
    assert conformal.count.tolist() == [[150, 200]]


def test_a_column_without_a_counted_row_has_an_infinite_interval() -> None:
    mask = torch.tensor([True, False]).expand(200, 2)
    ends = SplitConformal(0.9).conformalize(PREDS, TARGET, mask=mask)(NEW)
    assert ends[:, 0].isfinite().all()
    assert ends[:, 1].isinf().all()


def test_without_pooling_a_category_has_its_own_quantile_and_infinity_where_rows_are_too_few() -> None:
    target = SPREAD * TARGET
    conformal = SplitConformal(0.9, groups={"site": 6}, pooling=0).conformalize(PREDS * 0, target, SITE)
    width = half_width(conformal(NEW, IDS))
    for site, rows in ((1, slice(0, 100)), (2, slice(100, 190))):
        torch.testing.assert_close(width[site], conformal_quantile(target[rows].abs(), 0.9))
    assert width[3].isinf().all()  # 8 rows; 0.9 needs 9
    assert conformal.count[:, 0].tolist() == [200, 100, 90, 8]  # all rows first
    everyone = conformal_quantile(target.abs(), 0.9)
    for unknown in (0, 4, 5):
        torch.testing.assert_close(width[unknown], everyone)


@pytest.mark.parametrize("level", ["0.5", "0.55", "0.56", "0.7", "0.8", "0.86", "0.9", "0.93", "0.95", "0.99"])
def test_the_rank_in_a_category_is_exact_for_every_number_of_rows(level: str) -> None:
    ids = torch.cat([torch.full((n,), n) for n in range(1, 121)])
    scores = torch.cat([torch.arange(1, n + 1, dtype=torch.float64) for n in range(1, 121)]).unsqueeze(-1)
    conformal = SplitConformal(float(level), groups={"site": 121}, pooling=0)
    conformal.conformalize(0 * scores, scores, {"site": ids})
    for n in range(1, 121):
        rank = math.ceil((n + 1) * Fraction(level))
        assert conformal.offsets[n].item() == (rank if rank <= n else math.inf), n


def test_an_unseen_category_gets_the_parent_or_infinity_never_zero_width() -> None:
    """Elsewhere a category without calibration rows gets [0, 0]."""
    for unseen in ("parent", "infinite"):
        conformal = SplitConformal(0.9, groups={"site": 6}, unseen=unseen).conformalize(PREDS, TARGET, SITE)
        ends = conformal(NEW, IDS)
        expected = conformal_quantile((TARGET - PREDS).abs(), 0.9)
        for unknown in (0, 4, 5):
            assert torch.equal(half_width(ends)[unknown], expected if unseen == "parent" else expected + torch.inf)
        assert ends[1:4].isfinite().all()


def test_a_category_seen_in_one_target_column_only_is_unseen_in_the_other() -> None:
    mask = torch.ones(200, 2, dtype=torch.bool)
    mask[:100, 1] = False
    conformal = SplitConformal(0.9, groups={"site": 6}, unseen="infinite").conformalize(PREDS, TARGET, SITE, mask=mask)
    assert conformal(NEW[:1], {"site": torch.tensor([1])}).isinf().tolist() == [[[False, False], [True, True]]]


def test_pooling_runs_from_the_categorys_own_quantile_to_that_of_all_rows() -> None:
    def widths(**options):
        return half_width(
            SplitConformal(0.9, groups={"site": 6}, **options).conformalize(PREDS * 0, SPREAD * TARGET, SITE)(NEW, IDS)
        )

    own, everyone = widths(pooling=0)[2], widths(pooling=None)[2]
    path = torch.stack([widths(pooling=m)[2] for m in (0.0, 5.0, 50.0, 500.0, 1e15)])
    assert (path.diff(dim=0) <= 0).all()
    assert torch.equal(path[0], own)
    assert torch.equal(path[-1], everyone)
    assert (everyone < own).all()


def test_a_category_with_few_rows_leans_on_all_rows_and_one_with_many_does_not() -> None:
    conformal = SplitConformal(0.9, groups={"site": 6}).conformalize(PREDS * 0, SPREAD * TARGET, SITE)
    width = half_width(conformal(NEW, IDS))
    assert width[3].isfinite().all()
    own = conformal_quantile((SPREAD * TARGET)[100:190].abs(), 0.9)
    everyone = width[0]
    assert ((width[2] - own).abs() < (width[2] - everyone).abs()).all()


def test_below_min_count_a_category_takes_the_quantile_of_all_rows() -> None:
    for minimum, backs_off in ((8, False), (9, True)):
        conformal = SplitConformal(0.7, groups={"site": 6}, pooling=0, min_count=minimum)
        width = half_width(conformal.conformalize(PREDS * 0, SPREAD * TARGET, SITE)(NEW, IDS))
        assert torch.equal(width[3], width[0]) is backs_off


def test_combinations_of_columns_are_categories_and_one_unknown_id_makes_none() -> None:
    rng = torch.Generator().manual_seed(3)
    ids = {name: torch.randint(0, 3, (200,), generator=rng) for name in ("b", "a")}
    conformal = SplitConformal(0.8, groups={"b": 3, "a": 3}, pooling=0).conformalize(PREDS, TARGET, ids)
    both = {"a": torch.tensor([1, 2, 0, 1, 0]), "b": torch.tensor([2, 1, 1, 0, 0])}
    width = half_width(conformal(NEW[:5], both))
    scores = (TARGET - PREDS).abs()
    for row, (a, b) in enumerate(zip(*(both[c].tolist() for c in "ab"), strict=True)):
        rows = (ids["a"] == a) & (ids["b"] == b) if a and b else torch.ones(200, dtype=torch.bool)
        assert torch.equal(width[row], conformal_quantile(scores[rows], 0.8))


def test_leading_dimensions() -> None:
    conformal = SplitConformal(0.9, groups={"site": 6}).conformalize(
        PREDS.view(20, 10, 2), TARGET.view(20, 10, 2), {"site": SITE["site"].view(20, 10)}
    )
    flat = SplitConformal(0.9, groups={"site": 6}).conformalize(PREDS, TARGET, SITE)
    assert torch.equal(conformal.offsets, flat.offsets)
    per_sequence = conformal(PREDS.view(20, 10, 2), {"site": torch.arange(20) % 6})
    per_row = conformal(PREDS, {"site": (torch.arange(20) % 6).repeat_interleave(10)})
    assert torch.equal(per_sequence.view(200, 2, 2), per_row)


@pytest.mark.parametrize("of_ids", [(4, 5, 10), (4, 5), (4,)])
@pytest.mark.parametrize("of_mask", [(4, 5, 10, 2), (4, 5, 10), (4,)])
def test_every_argument_has_leading_dimensions_of_the_predictions(
    of_ids: tuple[int, ...], of_mask: tuple[int, ...]
) -> None:
    rng = torch.Generator().manual_seed(4)
    ids = torch.randint(0, 6, of_ids, generator=rng)
    mask = torch.rand(of_mask, generator=rng) < 0.8
    scale = torch.rand(4, 5, 10, 2, generator=rng, dtype=torch.float64) + 0.5
    row_ids = ids[(..., *(None,) * (3 - ids.ndim))].expand(4, 5, 10).reshape(200)
    row_mask = mask[(..., *(None,) * (4 - mask.ndim))].expand(4, 5, 10, 2).reshape(200, 2)
    preds, target = PREDS.view(4, 5, 10, 2), TARGET.view(4, 5, 10, 2)
    conformal, flat = (SplitConformal(0.7, groups={"site": 7}, scaled=True, pooling=2.0) for _ in range(2))
    conformal.conformalize(preds, target, {"site": ids}, scale, mask=mask)
    flat.conformalize(PREDS, TARGET, {"site": row_ids}, scale.view(200, 2), mask=row_mask)
    for name, buffer in flat.named_buffers():
        assert torch.equal(conformal.get_buffer(name), buffer)
    ends = conformal(preds, {"site": ids}, scale)
    assert ends.shape == (4, 5, 10, 2, 2)
    assert torch.equal(ends.view(200, 2, 2), flat(PREDS, {"site": row_ids}, scale.view(200, 2)))
    with pytest.raises(ValueError, match="categories must have the leading dimensions of preds without its columns"):
        conformal(preds, {"site": torch.ones(4, 5, 10, 2, dtype=torch.int64)}, scale)
    with pytest.raises(ValueError, match="categories must have the leading dimensions of preds without its columns"):
        conformal(preds, {"site": torch.ones(4, 6, dtype=torch.int64)}, scale)


def test_what_is_refused_is_counted_by_column_where_it_counts() -> None:
    target, mask = TARGET[:6].clone(), torch.ones(6, 2, dtype=torch.bool)
    target[0, 0] = target[1, 0] = target[2, 1] = target[3, 1] = target[4, 1] = torch.nan
    mask[1, 0] = mask[5, 1] = False
    message = "scores must not be NaN, but by target column [1, 3] rows have a NaN in preds, target or scale"
    with pytest.raises(ValueError, match=re.escape(message)):
        SplitConformal([0.5, 0.6]).conformalize(PREDS[:6], target, mask=mask)


def test_a_failed_call_changes_nothing_and_a_second_one_forgets_the_first() -> None:
    conformal = SplitConformal(0.9).conformalize(PREDS, TARGET)
    before = conformal.offsets.clone()
    with pytest.raises(ValueError, match="scores must not be NaN"):
        conformal.conformalize(PREDS, TARGET * torch.nan)
    assert torch.equal(conformal.offsets, before)
    conformal.conformalize(PREDS, 2 * TARGET - PREDS)
    torch.testing.assert_close(conformal.offsets, 2 * before)


ONE = torch.ones(3, 1)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: SplitConformal(1.0), ValueError, "confidence_level must be finite and > 0 and < 1, got 1.0"),
        (lambda: SplitConformal([]), ValueError, "one level or several different ones, got []"),
        (lambda: SplitConformal([0.9, 0.9]), ValueError, "one level or several different ones, got [0.9, 0.9]"),
        (lambda: SplitConformal(0.9, pooling=-1.0), ValueError, "pooling must be finite and >= 0, got -1.0"),
        (lambda: SplitConformal(0.9, min_count=0), ValueError, "min_count must be at least 1, got 0"),
        (lambda: SplitConformal(0.9, unseen="zero"), ValueError, "unseen must be one of 'parent', 'infinite'"),
        (lambda: SplitConformal(0.9, groups=["site"]), TypeError, "groups must map each column"),
        (
            lambda: SplitConformal(0.9, groups={"a": 2**31, "b": 2**31}),
            ValueError,
            "the combinations of groups do not fit into 64 bits",
        ),
        (lambda: SplitConformal(0.9)(ONE), RuntimeError, "this SplitConformal has no offsets yet; call conformalize"),
        (
            lambda: SplitConformal(0.9).conformalize(ONE, ONE[:, 0]),
            ValueError,
            "target must have shape (*, D) = (3, 1), got (3,); nothing is broadcast",
        ),
        (
            lambda: SplitConformal(0.9).conformalize(ONE[:, 0], ONE[:, 0]),
            ValueError,
            "at least one leading dimension before the D target columns, got (3,)",
        ),
        (lambda: SplitConformal(0.9).conformalize(ONE[:0], ONE[:0]), ValueError, "needs at least one row"),
        (
            lambda: SplitConformal(0.9).conformalize(ONE, ONE * torch.nan),
            ValueError,
            "scores must not be NaN, but by target column [3] rows have a NaN in preds, target or scale",
        ),
        (
            lambda: SplitConformal(0.9).conformalize(ONE, ONE, mask=ONE),
            TypeError,
            "mask must be a tensor of torch.bool",
        ),
        (
            lambda: SplitConformal(0.9).conformalize(ONE, ONE, scale=ONE),
            ValueError,
            "this SplitConformal takes no scale; build it with scaled=True, got one",
        ),
        (
            lambda: SplitConformal(0.9, scaled=True).conformalize(ONE, ONE),
            ValueError,
            "this SplitConformal takes a scale, the predicted spread, got None",
        ),
        (
            lambda: SplitConformal(0.9, scaled=True).conformalize(ONE, ONE, scale=0 * ONE),
            ValueError,
            "scale must be positive, got 0",
        ),
        (
            lambda: SplitConformal(0.9, groups={"site": 2}).conformalize(ONE, ONE),
            TypeError,
            "SplitConformal needs categories: a mapping from column to ids with 'site', got None",
        ),
        (
            lambda: SplitConformal(0.9).conformalize(ONE, ONE)(torch.ones(3, 2)),
            ValueError,
            "preds must have D = 1 target columns as at conformalize, got preds of shape (3, 2)",
        ),
        *(
            (
                lambda shape=shape: SplitConformal(0.9, groups={"site": 6}).conformalize(PREDS, TARGET, SITE)(
                    torch.ones(shape), {"site": torch.zeros(shape[:-1], dtype=torch.int64)}
                ),
                ValueError,
                f"preds must have D = 2 target columns as at conformalize, got preds of shape {shape}",
            )
            for shape in ((), (1,), (3, 1), (2, 3), (2, 2, 4))
        ),
        (
            lambda: SplitConformal([0.8, 0.9]).conformalize(ONE, ONE).interval(ONE),
            ValueError,
            "confidence_level must be one of (0.9, 0.8), got None",
        ),
        (
            lambda: SplitConformal(0.9).conformalize(ONE, ONE).interval(ONE, confidence_level=0.95),
            ValueError,
            "confidence_level must be one of (0.9,), got 0.95",
        ),
    ],
)
def test_errors(call, error, message) -> None:
    with pytest.raises(error, match=re.escape(message)):
        call()


@pytest.mark.parametrize("sizes", [(2**31, 2**31), (2**31, 2**32), (2**21, 2**21, 2**21), (3, 2**61)])
def test_groups_with_more_combinations_than_keys_are_refused(sizes: tuple[int, ...]) -> None:
    columns = {f"c{i}": size for i, size in enumerate(sizes)}
    with pytest.raises(ValueError, match="the combinations of groups do not fit into 64 bits"):
        SplitConformal(0.9, groups=columns)
    SplitConformal(0.9, groups=columns | {"c0": 1})
