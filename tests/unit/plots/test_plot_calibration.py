"""What plot_coverage and plot_calibration draw, and that their bands are those of the binomial distribution."""

import itertools
from io import BytesIO

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.testing import assert_allclose
from scipy.stats import binom

from reghead.metrics import category_report
from reghead.metrics._binomial import binomial_band
from reghead.plots import plot_calibration, plot_coverage

NAN = float("nan")


def new_axes() -> Axes:
    return Figure().subplots()


def rows_of(ax: Axes) -> list[str]:
    return [text.get_text() for text in ax.get_yticklabels()]


def shares(ax: Axes) -> dict[int, float]:
    """Row -> share, over the points of both colours."""
    return {round(y): x for c in ax.collections for x, y in c.get_offsets().tolist()}


def intervals(covered: list[int], sizes: list[int]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, list[str]]:
    """Intervals from 0 to 1, and targets of which the first ``covered`` in each category are inside."""
    y = [0.5 if i < k else 2.0 for k, n in zip(covered, sizes, strict=True) for i in range(n)]
    labels = [f"site {k}" for k, n in enumerate(sizes) for _ in range(n)]
    return torch.zeros(len(y)), torch.ones(len(y)), torch.tensor(y), labels


@given(count=st.integers(1, 3000), probability=st.floats(0.01, 0.99))
def test_band_is_the_central_95_percent_of_the_binomial(count: int, probability: float) -> None:
    low, high = (end * count for end in binomial_band(count, probability))
    # The quantile function by its definition: the first count with at least this much at or below it.
    for end, level in ((low, 0.025), (high, 0.975)):
        assert binom.cdf(round(end), count, probability) >= level - 1e-9
        assert binom.cdf(round(end) - 1, count, probability) <= level + 1e-9


def test_band_of_millions_is_that_of_the_normal() -> None:
    low, high = binomial_band(4_000_000, 0.8)
    assert_allclose([low, high], 0.8 + np.array([-1.96, 1.96]) * 0.4 / 2000.0, atol=1e-6)


def test_rows_bands_and_points_are_where_they_belong() -> None:
    ax = plot_coverage(intervals([3, 45, 80], [4, 50, 100]), 0.9, ax=new_axes())
    assert rows_of(ax) == ["site 2 (100)", "site 1 (50)", "site 0 (4)"]
    assert shares(ax) == pytest.approx({0: 0.8, 1: 0.9, 2: 0.75})
    for bar, n in zip(ax.patches, (100, 50, 4), strict=True):
        low, high = binom.ppf([0.025, 0.975], n, 0.9) / n
        assert_allclose([bar.get_x(), bar.get_x() + bar.get_width()], [low, high], atol=1e-12)
    within, outside = ax.collections
    assert within.get_offsets()[:, 1].tolist() == [1.0, 2.0]
    assert outside.get_offsets()[:, 1].tolist() == [0.0]
    assert ax.lines[0].get_xdata() == [0.9, 0.9]
    assert ax.get_ylim()[0] > ax.get_ylim()[1], "the largest category is on top"


def test_a_report_and_its_tensors_make_one_figure() -> None:
    lower, upper, y, labels = intervals([3, 45], [4, 50])
    report = category_report(torch.stack([lower, upper], -1), y, {"site": labels}, quantiles=(0.1, 0.9))
    from_report = plot_coverage(report, ax=new_axes())
    assert from_report.lines[0].get_xdata()[0] == pytest.approx(0.8)
    for other in (plot_coverage(report.categories, 0.8, ax=new_axes()), plot_coverage((lower, upper, y, labels), 0.8)):
        assert rows_of(other) == rows_of(from_report)
        assert shares(other) == shares(from_report)


def test_the_pool_of_the_smallest_has_their_joint_coverage() -> None:
    sizes, covered = [5, 9, 3, 2], [5, 6, 3, 0]
    ax = plot_coverage(intervals(covered, sizes), 0.5, max_categories=2, ax=new_axes())
    assert rows_of(ax) == ["site 1 (9)", "3 others (10)"]
    assert shares(ax) == pytest.approx({0: 6 / 9, 1: 8 / 10})


@pytest.mark.parametrize("number", [2, 30, 31, 40])
def test_there_are_at_most_thirty_rows(number: int) -> None:
    ax = plot_coverage(intervals([1] * number, [2] * number), 0.5, ax=new_axes())
    assert len(rows_of(ax)) == len(ax.patches) == len(shares(ax)) == min(number, 30)


def test_combinations_are_named_by_all_their_columns() -> None:
    lower, upper, y, labels = intervals([1, 1], [1, 1])
    categories = {"site": labels, "season": [None, "dry"]}
    report = category_report(torch.stack([lower, upper], -1), y, categories, quantiles=(0.1, 0.9))
    assert rows_of(plot_coverage(report, ax=new_axes())) == ["site 0, missing (1)", "site 1, dry (1)"]


def test_categories_without_targets_are_not_drawn() -> None:
    lower, upper, y, labels = intervals([1, 1], [1, 1])
    ax = plot_coverage((lower, upper, torch.where(torch.tensor([True, False]), y, NAN), labels), 0.8, ax=new_axes())
    assert rows_of(ax) == ["site 0 (1)"]


def test_the_figure_of_coverage_renders() -> None:
    ax = plot_coverage(intervals([20] * 28, list(range(20, 48))), 0.8)
    file = BytesIO()
    ax.figure.savefig(file, format="png")
    assert file.getvalue().startswith(b"\x89PNG")


def test_coverage_refuses_what_it_cannot_draw() -> None:
    lower, upper, y, labels = data = intervals([1, 1], [1, 1])
    with pytest.raises(ValueError, match=r"confidence_level must be given with intervals, such as 0\.8"):
        plot_coverage(data)
    with pytest.raises(ValueError, match="confidence_level must be finite and > 0 and < 1"):
        plot_coverage(data, 80.0)
    with pytest.raises(ValueError, match="the coverage of 'site 0' is NaN: a prediction, or a target not left out"):
        plot_coverage((lower * NAN, upper, y, labels), 0.8)
    with pytest.raises(ValueError, match="data must have at least one category with a target, got none"):
        plot_coverage((lower, upper, y * NAN, labels), 0.8)
    two = torch.zeros(2, 2)
    report = category_report(torch.stack([two, two], -1), two, {"site": labels}, quantiles=(0.1, 0.9))
    with pytest.raises(ValueError, match="data must be of one output; choose the rows"):
        plot_coverage(report)
    with pytest.raises(ValueError, match="data must have a coverage; give category_report two quantiles or more"):
        plot_coverage(category_report(y, y, {"site": labels}))
    report = category_report(torch.stack([lower, upper], -1), y, {"site": labels}, quantiles=(0.1, 0.9))
    with pytest.raises(ValueError, match=r"confidence_level is 0\.5, while the report is about 0\.8; leave it out"):
        plot_coverage(report, 0.5)


def test_shares_stand_at_their_levels_in_bands_of_the_count() -> None:
    levels = (0.2, 0.6)
    y = torch.arange(1.0, 11.0).unsqueeze(-1)
    preds = torch.tensor([[[3.0, 6.0]]]).expand(10, 1, 2)
    ax = plot_calibration(preds, y, levels, ax=new_axes())
    band, observed = ax.collections
    assert_allclose(observed.get_offsets(), [[0.2, 0.3], [0.6, 0.6]])
    for segment, level in zip(band.get_segments(), levels, strict=True):
        low, high = binom.ppf([0.025, 0.975], 10, level) / 10
        assert_allclose(segment, [[level, low], [level, high]], atol=1e-12)


def test_calibration_leaves_missing_targets_out() -> None:
    preds = torch.tensor([[1.0], [1.0], [NAN]])
    ax = plot_calibration(preds, torch.tensor([0.0, 2.0, NAN]), [0.5], ax=new_axes())
    assert ax.collections[-1].get_offsets().tolist() == [[0.5, 0.5]]
    assert ax.get_ylabel() == "share of 2 targets at or below the quantile"


def test_a_quantile_outside_its_band_is_marked() -> None:
    y = torch.arange(1.0, 101.0)
    ax = plot_calibration(torch.tensor([10.0, 70.0, 90.0]).expand(100, 3), y, (0.1, 0.5, 0.9), ax=new_axes())
    within, outside = ax.collections[1:]
    assert_allclose(within.get_offsets(), [[0.1, 0.1], [0.9, 0.9]])
    assert_allclose(outside.get_offsets(), [[0.5, 0.7]])
    legend = [text.get_text() for text in ax.get_legend().get_texts()]
    assert legend == ["calibrated", "95 % by chance", "within", "outside"]


@given(covered=st.integers(0, 50), level=st.sampled_from([0.1, 0.5, 0.9]))
@settings(max_examples=20)
def test_a_share_is_within_where_its_count_is_in_the_central_95_percent(covered: int, level: float) -> None:
    y = torch.arange(1.0, 51.0)
    ax = plot_calibration(torch.full((50, 1), float(covered)), y, [level], ax=new_axes())
    low, high = binom.ppf([0.025, 0.975], 50, level)
    assert ax.collections[-1].get_label() == ("within" if low <= covered <= high else "outside")


@pytest.mark.parametrize(
    "levels", [[0.5], [0.1, 0.5, 0.9], [k / 20 for k in range(1, 20)], [k / 100 for k in range(1, 100)]]
)
def test_a_band_is_wider_than_its_dot_and_apart_from_the_next(levels: list[float]) -> None:
    y = torch.arange(1.0, 401.0)
    preds = torch.tensor(levels).mul(400).expand(400, len(levels))
    ax = plot_calibration(preds, y, levels)
    ax.figure.draw_without_rendering()
    band, dots = ax.collections[:2]
    width, diameter = band.get_linewidth()[0], dots.get_sizes()[0] ** 0.5
    assert width > 1.4 * diameter
    points = 72.0 * ax.get_window_extent().width / ax.figure.dpi
    if len(levels) < 50:  # 99 bars touch
        assert width < points * min((b - a for a, b in itertools.pairwise(levels)), default=1.0)
    plt.close(ax.figure)


@pytest.mark.parametrize("number", [1, 99])
def test_the_figure_of_calibration_renders(number: int) -> None:
    levels = torch.arange(1, number + 1) / (number + 1)
    y = torch.rand(300, generator=torch.Generator().manual_seed(0))
    file = BytesIO()
    plot_calibration(levels.expand(300, number), y, levels).figure.savefig(file, format="png")
    assert file.getvalue().startswith(b"\x89PNG")


def test_calibration_refuses_what_it_cannot_draw() -> None:
    with pytest.raises(ValueError, match=r"preds must have shape \(\*target.shape, Q\) = \(3, 1\), got \(3, 2\)"):
        plot_calibration(torch.zeros(3, 2), torch.zeros(3), [0.5])
    with pytest.raises(ValueError, match="target must have at least one known value to compare with, got none"):
        plot_calibration(torch.zeros(1, 1), torch.tensor([NAN]), [0.5])
    with pytest.raises(ValueError, match="preds must not be NaN where target is known"):
        plot_calibration(torch.tensor([[NAN]]), torch.zeros(1), [0.5])
