"""What plot_predictions and plot_history draw: positions, counts, names."""

from io import BytesIO

import numpy as np
import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from reghead.plots import plot_history, plot_predictions

NAN = float("nan")


def new_axes() -> Axes:
    return Figure().subplots()


def legend_of(ax: Axes) -> list[str]:
    return [text.get_text() for text in ax.get_legend().get_texts()]


def points(ax: Axes) -> list[list[list[float]]]:
    return [c.get_offsets().tolist() for c in ax.collections if type(c).__name__ == "PathCollection"]


def renders(ax: Axes) -> bool:
    file = BytesIO()
    ax.figure.savefig(file, format="png")
    return file.getvalue().startswith(b"\x89PNG")


def test_prediction_is_horizontal_and_observation_vertical() -> None:
    ax = plot_predictions(torch.tensor([1.0, 2.0]), torch.tensor([10.0, 20.0]), units="m", ax=new_axes())
    assert points(ax) == [[[1.0, 10.0], [2.0, 20.0]]]
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("predicted (m)", "observed (m)")
    assert ax.get_legend() is None


def test_bars_span_the_outermost_quantiles_at_the_median() -> None:
    preds = torch.tensor([[[1.0, 2.0, 5.0]], [[0.0, 3.0, 4.0]]])
    ax = plot_predictions(preds, torch.tensor([[7.0], [8.0]]), quantiles=(0.1, 0.5, 0.9), ax=new_axes())
    bars = [bar.tolist() for bar in ax.collections[0].get_segments()]
    assert bars == [
        [[2.0, 1.0], [2.0, 5.0]],
        [[3.0, 0.0], [3.0, 4.0]],
    ]
    assert points(ax) == [[[2.0, 7.0], [3.0, 8.0]]]


@pytest.mark.parametrize("number", [2, 7, 8, 40])
def test_every_row_is_drawn_once_and_the_smallest_categories_share_one_mark(number: int) -> None:
    sizes = list(range(number, 0, -1))
    labels = [f"site {k}" for k, n in enumerate(sizes) for _ in range(n)]
    y = torch.arange(float(len(labels)))
    ax = plot_predictions(y, y, labels, ax=new_axes())
    drawn = sorted(x for series in points(ax) for x, _ in series)
    assert drawn == y.tolist()
    names = legend_of(ax)
    assert len(names) == min(number, 7)
    assert names[:2] == [f"site 0 ({sizes[0]})", f"site 1 ({sizes[1]})"]
    if number > 7:
        assert names[-1] == f"{number - 6} others ({sum(sizes[6:])})"
    colors = {tuple(c.get_facecolor()[0][:3]) for c in ax.collections}
    assert len(colors) == len(names)


def test_the_identity_does_not_stretch_the_axes_to_zero() -> None:
    y = torch.linspace(1000.0, 1010.0, 20)
    ax = plot_predictions(y, y, ax=new_axes())
    ax.figure.canvas.draw()
    assert ax.get_xlim()[0] > 990.0


def test_missing_targets_are_left_out_and_not_counted() -> None:
    ax = plot_predictions([1.0, NAN, 3.0], [1.0, NAN, 2.0], ["a", "b", "a"], ax=new_axes())
    assert legend_of(ax) == ["a (2)"]
    assert points(ax) == [[[1.0, 1.0], [3.0, 2.0]]]


def test_names_are_drawn_as_they_are_written() -> None:
    labels = ["_hidden", "$5 to $9", "A catchment with a very long name 17", None]
    y = torch.arange(4.0)
    ax = plot_predictions(y, y, labels, ax=new_axes())
    names = sorted(legend_of(ax))
    assert r"\$5 to \$9 (1)" in names
    assert "_hidden (1)" in names
    assert "missing (1)" in names
    assert "A catchment with …ng name 17 (1)" in names
    assert renders(ax)


def test_ids_are_named_by_number_and_zero_is_unknown() -> None:
    y = torch.arange(3.0, dtype=torch.bfloat16).requires_grad_()
    for ids in (torch.tensor([0, 2, 2]), torch.tensor([[0], [2], [2]])):
        ax = plot_predictions(y, y.detach(), ids, ax=new_axes())
        assert legend_of(ax) == ["2 (2)", "unknown (1)"]


def test_nothing_to_draw_is_an_empty_figure() -> None:
    assert renders(plot_predictions(torch.zeros(0), torch.zeros(0), ax=new_axes()))


def test_what_does_not_fit_says_so() -> None:
    y = torch.zeros(3)
    with pytest.raises(ValueError, match=r"preds must have shape of target = \(3,\), got \(3, 2\); give quantiles"):
        plot_predictions(torch.zeros(3, 2), y)
    with pytest.raises(ValueError, match=r"target must have shape \(B,\) or \(B, 1\), got \(3, 2\); draw one output"):
        plot_predictions(torch.zeros(3, 2), torch.zeros(3, 2))
    with pytest.raises(ValueError, match="preds must not be NaN where target is known, got 1 rows"):
        plot_predictions([NAN, 0.0], [0.0, 0.0])
    with pytest.raises(ValueError, match="categories must hold one label or id for each of the 3 rows, got 2"):
        plot_predictions(y, y, ["a", "b"])
    with pytest.raises(ValueError, match="max_categories must be at most 7, as many as can be told apart, got 8"):
        plot_predictions(y, y, ["a", "b", "c"], max_categories=8)
    with pytest.raises(ValueError, match="max_categories must be at least 2, got 1"):
        plot_predictions(y, y, ["a", "b", "c"], max_categories=1)


def test_curves_start_at_the_first_epoch_and_differ_in_colour_and_dash() -> None:
    ax = plot_history({"train": [3.0, 2.0, 1.0], "_val": [4.0, 3.5]}, units="$", log=True, ax=new_axes())
    assert [line.get_xydata().tolist() for line in ax.lines] == [
        [[1.0, 3.0], [2.0, 2.0], [3.0, 1.0]],
        [[1.0, 4.0], [2.0, 3.5]],
    ]
    assert legend_of(ax) == ["train", "_val"]
    assert ax.get_yscale() == "log"
    assert len({(line.get_color(), line.get_linestyle()) for line in ax.lines}) == 2
    assert renders(ax)


def test_many_curves_are_all_told_apart() -> None:
    ax = plot_history({f"fold {i}": [1.0, 0.5] for i in range(28)}, ax=new_axes())
    assert len({(line.get_color(), line.get_linestyle()) for line in ax.lines}) == 28


def test_a_diverged_run_shows() -> None:
    ax = plot_history({"train": [1.0, NAN, 2.0, np.inf]}, ax=new_axes())
    assert [x for x, _ in points(ax)[0]] == [2.0, 4.0]
    assert ax.lines[0].get_marker() == "o", "a value alone between gaps has no line"


def test_one_epoch_is_a_point() -> None:
    assert plot_history({"train": [1.0]}, ax=new_axes()).lines[0].get_marker() == "o"


def test_history_without_curves_or_with_tables_is_refused() -> None:
    with pytest.raises(ValueError, match="history must have at least one curve"):
        plot_history({})
    with pytest.raises(ValueError, match=r"history\['a'\] must hold one value per epoch, got shape \(1, 2\)"):
        plot_history({"a": [[1.0, 2.0]]})  # type: ignore[list-item]
