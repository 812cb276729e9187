"""Which figures a training gets, what is in them, and that none of them costs a trained model."""

import itertools
import subprocess
import sys
from pathlib import Path
from typing import Any

import matplotlib as mpl
import pytest
import torch
from matplotlib.figure import Figure
from torch import Tensor
from torch.testing import assert_close

from reghead.categories import CategoryEncoder
from reghead.cli import _figures
from reghead.cli._figures import draw_figures, file_name
from reghead.cli._report import Scored
from reghead.heads import RegressionHead

LEVELS = (0.1, 0.5, 0.9)
PNG = b"\x89PNG\r\n\x1a\n"
HISTORY = {"train_loss": [3.0, 2.0, 1.0, 0.5], "validation_loss": [4.0, float("nan"), 2.5, 3.0]}


def draw_data(outputs: int = 1, levels: tuple[float, ...] | None = LEVELS, rows: int = 30) -> Scored:
    rng = torch.Generator().manual_seed(0)
    target = torch.randn(rows, outputs, generator=rng, dtype=torch.float64)
    preds = target + 0.5 * torch.randn(rows, outputs, generator=rng, dtype=torch.float64)
    if levels is not None:
        preds = preds.unsqueeze(-1) + torch.tensor(levels, dtype=torch.float64) - 0.5
    labels = {"location": ["lake", "sea", None] * (rows // 3), "season": ["dry", "wet"] * (rows // 2)}
    return Scored(preds, target, labels)


def make_head(scored: Scored, **options: Any) -> tuple[RegressionHead, CategoryEncoder]:
    encoder = CategoryEncoder(["location", "season"]).fit(scored.labels)
    head = RegressionHead(4, scored.target.shape[1], encoder=encoder, **options)
    rng = torch.Generator().manual_seed(1)
    for parameter in head.parameters():
        parameter.data.normal_(generator=rng)
    return head, encoder


def draw(folder: Path, scored: Scored, **change: Any) -> list[str]:
    outputs = scored.target.shape[1]
    levels = LEVELS if scored.preds.ndim == 3 else None
    arguments: dict[str, Any] = {
        "part": "validation",
        "outputs": ["pH", "salt / g"][:outputs],
        "levels": [levels or ()] * outputs,
        "all_levels": levels,
        "by": [("location",), ("location", "season")],
        "history": HISTORY,
        "head": RegressionHead(4, outputs, quantiles=levels),
        "encoder": None,
    }
    return draw_figures(folder, scored, **{**arguments, **change})


def files(folder: Path) -> set[str]:
    assert all(path.read_bytes()[:8] == PNG for path in folder.iterdir())
    return {path.name for path in folder.iterdir()}


def draw_effects(head: RegressionHead, encoder: CategoryEncoder) -> dict[str, Figure]:
    figures = {}
    for name, draw_into in _figures._of_effects(head, encoder, ["pH"]):
        figures[name] = Figure()
        draw_into(figures[name])
    return figures


def heat(figure: Figure, panel: int = 0) -> tuple[list[str], Tensor]:
    ax = [ax for ax in figure.axes if ax.images][panel]
    return [text.get_text() for text in ax.get_yticklabels()], torch.from_numpy(ax.images[0].get_array().data)


def rows_of(figure: Figure, panel: int = 0) -> list[str]:
    return heat(figure, panel)[0]


def test_a_plain_head_has_predictions_and_a_training(tmp_path: Path) -> None:
    assert draw(tmp_path / "new" / "figures", draw_data(levels=None)) == []
    assert files(tmp_path / "new" / "figures") == {"predictions.png", "training.png"}


def test_each_part_of_a_model_has_its_figures(tmp_path: Path) -> None:
    scored = draw_data()
    columns = ("location", "season")
    head, encoder = make_head(scored, hidden_dims=(3,), film=("location",), scaler=("season",), wide=columns)
    ids = encoder.transform(scored.labels)["location"]
    weights = torch.full((30, 2), 0.5)
    routing = (weights, ids, encoder.vocabularies["location"].labels)
    assert draw(tmp_path, scored, head=head, encoder=encoder, routing=routing) == []
    assert files(tmp_path) == {
        "predictions.png",
        "calibration.png",
        "pit.png",
        "coverage.png",
        "coverage_location_season.png",
        "training.png",
        "utilization.png",
        "effects_location.png",
        "effects_season.png",
        "film_location.png",
    }


def test_several_outputs_have_figures_of_their_own_and_a_point_has_no_calibration(tmp_path: Path) -> None:
    assert draw(tmp_path, draw_data(2), levels=[LEVELS, ()], history={}, by=[("season",)]) == []
    assert files(tmp_path) == {
        "predictions_pH.png",
        "calibration_pH.png",
        "pit_pH.png",
        "coverage_pH.png",
        "predictions_salt_g.png",
    }


def test_one_level_is_calibrated_and_covers_nothing(tmp_path: Path) -> None:
    assert draw(tmp_path, draw_data(), levels=[(0.9,)], history={}) == []
    assert files(tmp_path) == {"predictions.png", "calibration.png", "pit.png"}


def test_no_grouping_is_predictions_without_categories(tmp_path: Path) -> None:
    assert draw(tmp_path, draw_data(), by=[], history={}) == []
    assert files(tmp_path) == {"predictions.png", "calibration.png", "pit.png"}


def test_what_cannot_be_drawn_is_said_and_the_rest_is_drawn(tmp_path: Path) -> None:
    scored = draw_data()
    scored.preds[0, 0] = torch.nan
    messages = draw(tmp_path, scored, by=[("location",)])
    assert messages == [
        "predictions.png was not drawn: preds must not be NaN where target is known, got 1 rows",
        "calibration.png was not drawn: preds must not be NaN where target is known",
        "pit.png was not drawn: preds must not be NaN where target is known",
        "coverage.png was not drawn: the coverage of 'lake' is NaN: a prediction, or a target not left out, is NaN",
    ]
    assert files(tmp_path) == {"training.png"}


def test_a_figure_that_fails_half_way_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(self: Figure, path: Path, **_: object) -> None:
        path.write_bytes(PNG)
        raise ValueError("Image size of 100000x3 pixels is too large")

    monkeypatch.setattr(Figure, "savefig", failing)
    (message,) = draw(tmp_path, draw_data(levels=None), history={})
    assert message == "predictions.png was not drawn: Image size of 100000x3 pixels is too large"
    assert files(tmp_path) == set()


def test_a_fault_of_ours_is_raised(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise TypeError("a fault")

    monkeypatch.setattr(_figures, "plot_history", broken)
    with pytest.raises(TypeError, match="a fault"):
        draw(tmp_path, draw_data())


def test_characters_without_a_glyph_are_told_once(tmp_path: Path) -> None:
    scored = draw_data(levels=None)
    labels = {"location": ["湖の東", "海の西", "山"] * 10, "season": scored.labels["season"]}
    messages = draw(tmp_path, scored._replace(labels=labels), history={})
    assert messages == ["predictions.png: some characters are not in its font"]
    assert files(tmp_path) == {"predictions.png"}


def test_names_of_columns_and_outputs_are_drawn_as_written_and_saved_under_names_any_system_takes(
    tmp_path: Path,
) -> None:
    scored = draw_data(2)
    labels = {"a/b: $x_1$\nc": scored.labels["season"]}
    outputs = ["CO$_2$ / ppm", "co__2 ppm"]
    assert draw(tmp_path, scored._replace(labels=labels), outputs=outputs, by=[tuple(labels)], history={}) == []
    assert {name for name in files(tmp_path) if name.startswith("predictions")} == {
        "predictions_CO_2_ppm.png",
        "predictions_co_2_ppm_2.png",
    }


def test_a_file_name_is_taken_once() -> None:
    taken: set[str] = set()
    names = [file_name(name, taken) for name in ("x_a/b", "x_A b", "x_a:b", "../x", "x" * 300)]
    assert names == ["x_a_b.png", "x_A_b_2.png", "x_a_b_3.png", "x.png", "x" * 100 + ".png"]


def test_each_curve_has_a_panel_and_the_best_epoch_is_marked() -> None:
    history = {
        **HISTORY,
        "expert_utilization": [[0.5, 0.5], [0.6, 0.4], [0.7, 0.3], [0.8, 0.2]],
        "load_balancing_loss": [1.0, 1.1, 1.2, 1.3],
        "seconds": [1.0] * 4,
    }
    ((name, draw_into),) = _figures._of_training(history)
    figure = Figure()
    draw_into(figure)
    assert name == "training"
    assert [ax.get_ylabel().splitlines()[0] for ax in figure.axes] == [
        "training loss",
        "validation loss",
        "mean routing weight",
        "load balancing",
    ]
    experts = figure.axes[2].lines
    assert [line.get_ydata().tolist() for line in experts[:2]] == [[0.5, 0.6, 0.7, 0.8], [0.5, 0.4, 0.3, 0.2]]
    for ax in figure.axes:
        assert list(ax.lines[-1].get_xdata()) == [3, 3]  # NaN at epoch 2 is not the lowest
    assert figure.get_suptitle() == "training; dotted: the weights that were kept, of epoch 3"


@pytest.mark.parametrize(("values", "low", "high"), [([1.005, 1.007], 1.0, 1.1), ([0.9, 3.0], 0.9, 3.0)])
def test_the_axis_of_load_balancing_starts_at_even(values: list[float], low: float, high: float) -> None:
    ((_, draw_into),) = _figures._of_training({"load_balancing_loss": values})
    figure = Figure()
    draw_into(figure)
    bottom, top = figure.axes[0].get_ylim()
    assert bottom == pytest.approx(low)
    assert high <= top < 1.1 * high


def test_a_training_without_validation_has_no_best_epoch() -> None:
    ((_, draw_into),) = _figures._of_training({"train_loss": [2.0, 1.0]})
    figure = Figure()
    draw_into(figure)
    (ax,) = figure.axes
    assert [line.get_ydata().tolist() for line in ax.lines] == [[2.0, 1.0]]
    assert figure.get_suptitle() == ""


@pytest.mark.parametrize("experts", [False, True])
def test_film_is_drawn_one_category_at_a_time_with_the_other_columns_unknown(experts: bool) -> None:
    moe = {"moe": {"num_experts": 2, "routing": ("season",)}} if experts else {}
    head, encoder = make_head(draw_data(), hidden_dims=(3, 2), film=("season", "location"), embedding_dim=2, **moe)
    figures = draw_effects(head, encoder)
    assert set(figures) == {"film_location", "film_season"}
    state = head.state_dict()
    prefix = "trunk.films.{}" if experts else "trunk.layers.{}.film"
    for column, place in (("location", slice(0, 2)), ("season", slice(2, 4))):
        for layer in range(2):
            projection = state[f"{prefix.format(layer)}.weight_gamma"].double()[:, place]
            gamma = 1.0 + state[f"embedding.weight_{column}"].double() @ projection.T
            names, table = heat(figures[f"film_{column}"], layer)
            names = [name.partition(" (")[0] for name in names]
            labels = encoder.vocabularies[column].labels
            assert sorted(names) == sorted(labels)
            assert rows_of(figures[f"film_{column}"], layer) == rows_of(figures[f"film_{column}"])
            assert_close(table, gamma[[labels.index(name) for name in names]], rtol=1e-5, atol=1e-6)


def test_effects_are_those_of_the_scaler_and_of_the_random_intercepts() -> None:
    head, encoder = make_head(draw_data(), scaler=("location",), wide=("location", "season"))
    figures = draw_effects(head, encoder)
    titles = {name: [ax.get_title() for ax in figure.axes] for name, figure in figures.items()}
    assert titles == {
        "effects_location": ["conditional scale", "conditional bias", "random intercept"],
        "effects_season": ["random intercept"],
    }
    state, labels = head.state_dict(), encoder.vocabularies["location"].labels
    expected = [1.0 + state["scaler.scale_location"], state["scaler.bias_location"], state["wide.bias_location"]]
    panels = figures["effects_location"].axes
    names = [text.get_text() for text in panels[0].get_yticklabels()]
    for ax, table in zip(panels, expected, strict=True):
        drawn = dict(zip(names, ax.collections[-1].get_offsets(), strict=True))
        for label, value in zip(labels, table, strict=True):
            assert drawn[f"{label} (10)"][0] == pytest.approx(value.item(), rel=1e-6)


@pytest.mark.parametrize("outputs", [1, 2])
def test_panels_side_by_side_have_one_order_that_of_the_first_and_names_once(outputs: int) -> None:
    scored = draw_data(outputs)
    scored = scored._replace(labels={"location": [f"site {i}" for i in range(30)], "season": scored.labels["season"]})
    head, encoder = make_head(scored, scaler=("location",), wide=("location",))
    figure = draw_effects(head, encoder)["effects_location"]
    panels = [ax for ax in figure.axes if ax.get_title()]
    names, *others = [[text.get_text() for text in ax.get_yticklabels()] for ax in panels]
    assert others == [[], []]
    order = [list(encoder.vocabularies["location"].labels).index(name.partition(" (")[0]) for name in names]
    assert sorted(order) == list(range(30))
    state = head.state_dict()
    expected = [1.0 + state["scaler.scale_location"], state["scaler.bias_location"], state["wide.bias_location"]]
    for ax, table in zip(panels, expected, strict=True):
        offsets = ax.images[0].get_array() if outputs > 1 else ax.collections[-1].get_offsets()[:, :1]
        assert_close(torch.from_numpy(offsets.data), table[order].double(), rtol=1e-5, atol=1e-6)
    strength = expected[0][order, 0] if outputs == 1 else (expected[0][order] - 1.0).square().sum(-1)
    assert (strength[:-1] >= strength[1:]).all()


def test_utilization_is_the_mean_weight_by_category() -> None:
    weights = torch.tensor([[1.0, 0.0], [0.5, 0.5], [0.0, 1.0], [0.2, 0.8]])
    routing = (weights.requires_grad_(), torch.tensor([1, 1, 2, 0]), ["lake", "sea"])
    ((_, draw_into),) = _figures._of_routing(routing, "test")
    figure = Figure()
    draw_into(figure)
    names, table = heat(figure)
    assert names == ["lake (2)", "sea (1)", "unknown (1)"]
    assert_close(table, torch.tensor([[0.75, 0.25], [0.0, 1.0], [0.2, 0.8]], dtype=torch.float64))


def test_the_categories_with_few_rows_are_pooled() -> None:
    ids = torch.cat([torch.arange(1, 41), torch.arange(20, 41)])
    routing = (torch.full((len(ids), 2), 0.5), ids, [f"site {i}" for i in range(1, 41)])
    ((_, draw_into),) = _figures._of_routing(routing, "test")
    figure = Figure()
    draw_into(figure)
    names, _ = heat(figure)
    assert len(names) == 30
    assert names[-1] == "11 others (11)"
    assert {f"site {i} (2)" for i in range(20, 41)} <= set(names)


def test_coverage_is_a_share_of_rows_whatever_they_weigh() -> None:
    """What chance allows is a matter of counts; a share by weight cannot be compared with it."""
    preds = torch.tensor([[[-1.0, 0.0, 1.0]]] * 5, dtype=torch.float64)
    target = torch.tensor([[0.0], [0.0], [0.0], [5.0], [torch.nan]], dtype=torch.float64)
    scored = Scored(preds, target, {"site": ["a"] * 5}, torch.tensor([1.0, 1.0, 1.0, 97.0, 1.0]))
    figures = dict(_figures._of_predictions(scored, "test", ["y"], [LEVELS], LEVELS, [("site",)]))
    figure = Figure()
    figures["coverage"](figure)
    shares = [float(x) for c in figure.axes[0].collections for x, _ in c.get_offsets()]
    assert shares == [0.75]


def test_rows_that_are_new_to_the_model_have_a_coverage_of_their_own(tmp_path: Path) -> None:
    scored = draw_data()._replace(novelty=torch.arange(30) % 5 % 3)
    figures = dict(_figures._of_predictions(scored, "test", ["y"], [LEVELS], LEVELS, [("season",)]))
    figure = Figure()
    figures["coverage_novelty"](figure)
    names = [text.get_text() for text in figure.axes[0].get_yticklabels()]
    assert names == ["seen (12)", "unseen combination (12)", "unseen category (6)"]
    alike = scored._replace(novelty=torch.ones(30, dtype=torch.int64))
    assert "coverage_novelty" not in dict(
        _figures._of_predictions(alike, "test", ["y"], [LEVELS], LEVELS, [("season",)])
    )


def test_long_names_and_many_categories_leave_room_for_the_data(tmp_path: Path) -> None:
    names = [f"station {i:02d} of the northern monitoring network" for i in range(45)]
    scored = draw_data(rows=90)
    labels = {"site": names * 2}
    figures = dict(
        _figures._of_predictions(scored._replace(labels=labels), "test", ["y"], [LEVELS], LEVELS, [("site",)])
    )
    figure = Figure(layout="constrained")
    figures["coverage"](figure)
    figure.savefig(tmp_path / "coverage.png")
    (ax,) = figure.axes
    inches = ax.get_window_extent().width / figure.dpi
    assert inches > figure.get_size_inches()[0] / 2
    rows = [text.get_window_extent() for text in ax.get_yticklabels()]
    assert all(above.y0 >= below.y1 - 1.0 for above, below in itertools.pairwise(rows))


def test_nothing_global_changes(tmp_path: Path) -> None:
    before = mpl.rcParams.copy()
    draw(tmp_path, draw_data())
    assert mpl.rcParams.copy() == before


def test_no_display_and_no_pyplot(tmp_path: Path) -> None:
    """Importing pyplot would choose a backend for the whole process."""
    code = (
        "import sys, pathlib, torch\n"
        "from reghead.cli._figures import draw_figures\n"
        "from reghead.cli._report import Scored\n"
        "from reghead.heads import RegressionHead\n"
        "scored = Scored(torch.zeros(2, 1), torch.ones(2, 1), {'x': ['a', 'b']})\n"
        "options = dict(outputs=['y'], levels=[()], all_levels=None, by=[('x',)], history={'train_loss': [1.0]})\n"
        "print(draw_figures(pathlib.Path(sys.argv[1]), scored, part='test', head=RegressionHead(1, 1), encoder=None,\n"
        "                   **options), 'matplotlib.pyplot' in sys.modules)\n"
    )
    env = {"PATH": "", "MPLCONFIGDIR": str(tmp_path / "config"), "MPLBACKEND": "TkAgg"}
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "figures")], env=env, capture_output=True, text=True, timeout=120
    )
    assert done.stdout.strip().splitlines()[-1:] == ["[] False"], done.stderr
    assert files(tmp_path / "figures") == {"predictions.png", "training.png"}
