"""What plot_pit draws, and that its boxes are those of the binomial distribution."""

import re
from io import BytesIO

import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.testing import assert_allclose
from scipy.stats import binom

from reghead.plots import plot_pit

NAN = float("nan")
LEVELS = (0.1, 0.5, 0.9)


def drawn(target: torch.Tensor, preds: tuple[float, ...] = (10.0, 50.0, 90.0)) -> Axes:
    return plot_pit(torch.tensor(preds).expand(len(target), 3), target, LEVELS, ax=Figure().subplots())


def test_the_area_of_a_bar_is_its_share_of_the_targets() -> None:
    ax = drawn(torch.arange(1.0, 101.0) - 0.5)
    values, edges, _ = ax.patches[-1].get_data()
    assert_allclose(edges, [0.0, 0.1, 0.5, 0.9, 1.0])
    assert_allclose(values, 1.0)
    values = drawn(torch.tensor([5.0, 20.0, 30.0, 95.0])).patches[-1].get_data().values
    assert_allclose(values * np.diff(edges), [0.25, 0.5, 0.0, 0.25])


def test_boxes_hold_95_percent_of_what_chance_makes() -> None:
    ax = drawn(torch.arange(1.0, 101.0) - 0.5)
    for box, width, left in zip(ax.patches[:4], (0.1, 0.4, 0.4, 0.1), (0.0, 0.1, 0.5, 0.9), strict=True):
        low, high = binom.ppf([0.025, 0.975], 100, width) / 100 / width
        assert_allclose([box.get_y(), box.get_y() + box.get_height()], [low, high])
        assert_allclose([box.get_x(), box.get_width()], [left, width])


def test_a_bin_outside_its_box_is_marked() -> None:
    ax = drawn(torch.cat([torch.full((30,), 5.0), torch.full((35,), 30.0), torch.full((35,), 70.0)]))
    within, outside = ax.collections
    assert_allclose(within.get_offsets(), [[0.3, 0.875], [0.7, 0.875]])
    assert_allclose(outside.get_offsets(), [[0.05, 3.0], [0.95, 0.0]])
    legend = [text.get_text() for text in ax.get_legend().get_texts()]
    assert legend == ["calibrated", "95 % by chance", "within", "outside"]


def test_missing_targets_are_left_out() -> None:
    ax = plot_pit(torch.tensor([[1.0], [1.0], [NAN]]), torch.tensor([[0.0], [2.0], [NAN]])[:, 0], [0.5])
    assert ax.patches[-1].get_data().values.tolist() == [1.0, 1.0]
    assert ax.get_ylabel() == "share of 2 targets / width of the bin"


@pytest.mark.parametrize("number", [1, 99])
def test_the_histogram_renders(number: int) -> None:
    levels = torch.arange(1, number + 1) / (number + 1)
    target = torch.rand(300, generator=torch.Generator().manual_seed(0))
    file = BytesIO()
    ax = plot_pit(levels.expand(300, number), target, levels, ax=Figure(layout="constrained").subplots())
    ax.figure.savefig(file, format="png")
    assert file.getvalue().startswith(b"\x89PNG")
    assert ax.get_ylim()[1] > max(ax.patches[-1].get_data().values)


def test_what_cannot_be_drawn_is_refused() -> None:
    with pytest.raises(ValueError, match=re.escape("preds must have shape (*target.shape, Q) = (3, 1), got (3, 2)")):
        plot_pit(torch.zeros(3, 2), torch.zeros(3), [0.5])
    with pytest.raises(ValueError, match="target must have at least one known value to compare with, got none"):
        plot_pit(torch.zeros(1, 1), torch.tensor([NAN]), [0.5])
    with pytest.raises(ValueError, match="preds must not be NaN where target is known"):
        plot_pit(torch.tensor([[NAN]]), torch.zeros(1), [0.5])
    with pytest.raises(ValueError, match=re.escape("target must have shape (B,) or (B, 1), got (2, 2); draw one")):
        plot_pit(torch.zeros(2, 2, 1), torch.zeros(2, 2), [0.5])
