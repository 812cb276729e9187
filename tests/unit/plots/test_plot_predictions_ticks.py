"""Large numbers have separators on both axes, and small ones keep matplotlib's own labels."""

import pytest
import torch

pytest.importorskip("matplotlib")

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from reghead.plots import plot_predictions


def drawn(scale: float) -> Axes:
    figure = Figure()
    values = scale * torch.tensor([1.0, 2.0, 4.0])
    ax = plot_predictions(values, values, ax=figure.subplots())
    figure.canvas.draw()
    return ax


def test_dollars_of_houses_are_read_at_a_glance() -> None:
    ax = drawn(100_000.0)
    for labels in (ax.get_xticklabels(), ax.get_yticklabels()):
        texts = [label.get_text() for label in labels]
        assert "200,000" in texts
        assert all(float(text.replace(",", "")) % 1000 == 0 for text in texts)


@pytest.mark.parametrize("scale", [1e-9, 1.0, 1e9])
def test_other_sizes_are_left_to_matplotlib(scale: float) -> None:
    ax = drawn(scale)
    ticks = [label.get_text() for label in ax.get_xticklabels()]
    assert not any("," in text for text in ticks)
    assert max(len(text) for text in ticks) <= 5


def test_no_rows_have_no_size() -> None:
    assert plot_predictions(torch.empty(0), torch.empty(0), ax=Figure().subplots()).get_xlabel() == "predicted"
