"""What plot_utilization and plot_effects draw, and what every figure leaves alone."""

import subprocess
import sys
from collections.abc import Callable
from io import BytesIO

import matplotlib as mpl
import pytest
import torch
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch.testing import assert_close

from reghead.nn import CategoryEmbedding, ConditionalScaler, FiLM
from reghead.plots import (
    plot_calibration,
    plot_coverage,
    plot_effects,
    plot_history,
    plot_pit,
    plot_predictions,
    plot_utilization,
)

NAN = float("nan")


def new_axes() -> Axes:
    return Figure().subplots()


def rows_of(ax: Axes) -> list[str]:
    return [text.get_text() for text in ax.get_yticklabels()]


def heat(ax: Axes) -> torch.Tensor:
    return torch.from_numpy(ax.images[0].get_array().data)


def scaler(cardinality: int = 4, out_features: int = 1, **options: object) -> ConditionalScaler:
    module = ConditionalScaler({"site": cardinality, "season": 3}, out_features, **options)  # type: ignore[arg-type]
    rng = torch.Generator().manual_seed(0)
    for parameter in module.parameters():
        parameter.data.normal_(generator=rng)
    return module


def test_categories_that_use_an_expert_most_stand_together() -> None:
    table = torch.tensor([[NAN, NAN], [0.4, 0.6], [0.7, 0.3], [0.1, 0.9], [0.8, 0.2]])
    ax = plot_utilization(table, ["a", "b", "c", "d"], ax=new_axes())
    assert rows_of(ax) == ["d", "b", "c", "a"]
    assert_close(heat(ax), table[[4, 2, 3, 1]].double())
    texts = [text.get_text() for text in ax.texts]
    assert texts == ["0.80", "0.20", "0.70", "0.30", "0.10", "0.90", "0.40", "0.60"]


def test_the_pool_is_the_mean_by_count_and_stays_last() -> None:
    table = torch.tensor([[0.5, 0.5], [1.0, 0.0], [0.0, 1.0], [0.6, 0.4]])
    ax = plot_utilization(table, ["a", "b", "c"], counts=[2, 1, 9, 3], max_categories=3, ax=new_axes())
    assert rows_of(ax) == ["c (3)", "b (9)", "2 others (3)"]
    assert_close(heat(ax)[-1], torch.tensor([2.0, 1.0]).double() / 3.0)


def test_categories_are_numbered_without_labels() -> None:
    ax = plot_utilization(torch.eye(3), ax=new_axes())
    assert rows_of(ax) == ["unknown", "1", "2"]


@pytest.mark.parametrize(("experts", "numbers"), [(16, 32), (17, 0)])
def test_numbers_stand_where_there_is_room(experts: int, numbers: int) -> None:
    assert len(plot_utilization(torch.full((2, experts), 1.0 / experts), ax=new_axes()).texts) == numbers


def test_utilization_refuses_what_it_cannot_draw() -> None:
    with pytest.raises(ValueError, match=r"utilization must have shape \(K, E\), got \(2,\); give expert_"):
        plot_utilization(torch.ones(2))
    with pytest.raises(ValueError, match=r"labels must name ids 1 to 2, as vocabulary.labels does .* got 3 labels"):
        plot_utilization(torch.ones(3, 2), ["a", "b", "c"])
    with pytest.raises(ValueError, match="counts must hold 3 numbers, one for each id with id 0, got 2"):
        plot_utilization(torch.ones(3, 2), counts=[1, 2])
    with pytest.raises(ValueError, match="utilization must have at least one category with rows, got NaN in each"):
        plot_utilization(torch.full((2, 2), NAN))


@pytest.mark.parametrize("positive", [False, True])
@pytest.mark.parametrize("output_dim", [-1, -2])
@pytest.mark.parametrize("compose", ["sequential", "additive"])
def test_effects_of_a_scaler_are_its_parameters(positive: bool, output_dim: int, compose: str) -> None:
    module = scaler(positive=positive, output_dim=output_dim, compose=compose)
    deviation, bias = module.scale_site.detach()[:, 0].double(), module.bias_site.detach()[:, 0].double()
    expected = {"scale": deviation.exp() if positive else 1.0 + deviation, "bias": bias}
    for effect, values in expected.items():
        ax = plot_effects(module, ["a", "b", "c"], effect, column="site", units="m", ax=new_axes())  # type: ignore[arg-type]
        drawn = torch.from_numpy(ax.collections[-1].get_offsets().data)
        assert_close(drawn[:, 0], values.sort(descending=True).values, atol=1e-6, rtol=1e-6)
        assert rows_of(ax) == ["abc"[i] for i in values.argsort(descending=True).tolist()]
        assert ax.lines[0].get_xdata()[0] == (1.0 if effect == "scale" else 0.0)
        assert ax.get_xlabel() == ("scale" if effect == "scale" else "bias (m)")


@pytest.mark.parametrize("out_features", [1, 2])
@pytest.mark.parametrize("as_order", [list, torch.tensor])
def test_two_panels_can_have_one_order(out_features: int, as_order: Callable[[list[int]], object]) -> None:
    module = scaler(out_features=out_features)
    for effect, table in (("scale", 1.0 + module.scale_site.detach()), ("bias", module.bias_site.detach())):
        ax = plot_effects(module, "abc", effect, column="site", order=as_order([2, 3, 1]), ax=new_axes())  # type: ignore[arg-type]
        assert rows_of(ax) == ["b", "c", "a"]
        drawn = heat(ax) if out_features > 1 else torch.from_numpy(ax.collections[-1].get_offsets().data)[:, :1]
        assert_close(drawn, table[[1, 2, 0]].double(), atol=1e-6, rtol=1e-6)


def test_counts_stand_by_the_names_and_choose_the_rows_of_any_order() -> None:
    options = {"column": "site", "counts": [7, 1200, 2, 1], "ax": new_axes()}
    assert rows_of(plot_effects(scaler(), "abc", order=[3, 2, 1], **options)) == ["c (1)", "b (2)", "a (1,200)"]  # type: ignore[arg-type]
    ax = plot_effects(scaler(), "abc", order=[3, 2, 1], max_categories=2, **options)  # type: ignore[arg-type]
    assert rows_of(ax) == ["a (1,200)", "2 others (3)"]


def test_an_unseen_category_does_nothing() -> None:
    module = scaler()
    module.observe({"site": torch.tensor([1, 2]), "season": torch.tensor([1, 1])})
    ax = plot_effects(module, ["a", "b", "unseen"], "bias", column="site", ax=new_axes())
    assert ax.collections[-1].get_offsets()[rows_of(ax).index("unseen")][0] == 0.0


def test_several_outputs_are_colours_around_doing_nothing() -> None:
    module = scaler(out_features=2)
    ax = plot_effects(module, ["a", "b", "c"], column="site", ax=new_axes())
    order = ["abc".index(name) for name in rows_of(ax)]
    assert_close(heat(ax), 1.0 + module.scale_site.detach()[order].double(), atol=1e-6, rtol=1e-6)
    low, high = ax.images[0].get_clim()
    assert (low + high) / 2 == pytest.approx(1.0)
    strength = (heat(ax) - 1.0).square().sum(-1)
    assert (strength[:-1] >= strength[1:]).all()


def test_film_is_drawn_from_the_context_of_each_id() -> None:
    embedding, film = CategoryEmbedding({"site": 4}, 2), FiLM(2, 3)
    rng = torch.Generator().manual_seed(0)
    film.weight_gamma.data.normal_(generator=rng)
    film.weight_beta.data.normal_(generator=rng)
    ids = {"site": torch.arange(4)}
    for effect, kind, table in zip(("scale", "bias"), ("gamma", "beta"), film.gamma_beta(embedding(ids)), strict=True):
        for context in (embedding(ids), embedding.context(ids)):
            ax = plot_effects(film, ["a", "b", "c"], effect, context=context, ax=new_axes())  # type: ignore[arg-type]
            order = [1 + "abc".index(name) for name in rows_of(ax)]
            assert_close(heat(ax), table.detach()[order].double(), atol=1e-6, rtol=1e-6)
            assert ax.figure.axes[-1].get_ylabel() == kind


@pytest.mark.parametrize("out_features", [1, 2])
def test_a_layer_at_its_start_does_nothing_and_renders(out_features: int) -> None:
    ax = plot_effects(ConditionalScaler({"site": 41}, out_features))
    assert len(rows_of(ax)) == 30
    assert rows_of(ax)[-1] == "11 others"
    file = BytesIO()
    ax.figure.savefig(file, format="png")
    assert file.getvalue().startswith(b"\x89PNG")


def test_effects_refuse_what_they_cannot_draw() -> None:
    film = FiLM(2, 3)
    with pytest.raises(ValueError, match="column must be one of 'site', 'season', got None"):
        plot_effects(scaler())
    with pytest.raises(ValueError, match="column must be one of 'site', 'season', got 'sites'; did you mean 'site'"):
        plot_effects(scaler(), column="sites")
    with pytest.raises(ValueError, match="effect must be one of 'scale', 'bias', got 'gamma'"):
        plot_effects(scaler(), effect="gamma")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="context is for a FiLM; a ConditionalScaler takes column"):
        plot_effects(scaler(), column="site", context=torch.zeros(4, 2))
    for options in ({}, {"context": torch.zeros(4, 2), "column": "site"}):
        with pytest.raises(ValueError, match="a FiLM takes context, and no column: what it gets for each id"):
            plot_effects(film, **options)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"context must have one row for each id, \(K, C\), got a result of \(3,\)"):
        plot_effects(film, context=torch.zeros(2))
    for order in ([1, 2], [0, 1, 2], [1, 2, 2], [1, 2, 4]):
        with pytest.raises(ValueError, match=r"order must hold each id from 1 to 3 once, got \[\d, "):
            plot_effects(scaler(), column="site", order=order)
    with pytest.raises(TypeError, match="module must be a ConditionalScaler or a FiLM, got Linear"):
        plot_effects(torch.nn.Linear(1, 1))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="module must have a known category to draw, got the unknown alone"):
        plot_effects(ConditionalScaler({"site": 1}, 1))


Y = torch.arange(4.0)
FIGURES: dict[str, Callable[..., Axes]] = {
    "predictions": lambda **o: plot_predictions(Y, Y, ["a", "a", "b", "b"], **o),
    "coverage": lambda **o: plot_coverage((Y - 1, Y + 1, Y, ["a", "a", "b", "b"]), 0.8, **o),
    "calibration": lambda **o: plot_calibration(Y.unsqueeze(-1), Y, [0.5], **o),
    "pit": lambda **o: plot_pit(Y.unsqueeze(-1), Y, [0.5], **o),
    "utilization": lambda **o: plot_utilization(torch.eye(3), **o),
    "effects": lambda **o: plot_effects(scaler(out_features=2), column="site", **o),
    "history": lambda **o: plot_history({"train": [2.0, 1.0]}, **o),
}


@pytest.mark.parametrize("name", FIGURES)
def test_given_axes_are_drawn_on_and_nothing_else_changes(name: str) -> None:
    before, ax = dict(mpl.rcParams), new_axes()
    open_before = plt.get_fignums()
    assert FIGURES[name](ax=ax) is ax
    assert ax.get_xlabel()
    assert plt.get_fignums() == open_before
    assert dict(mpl.rcParams) == before


@pytest.mark.parametrize("name", FIGURES)
def test_without_axes_there_is_one_new_figure(name: str) -> None:
    plt.close("all")
    ax = FIGURES[name]()
    assert [plt.figure(number) for number in plt.get_fignums()] == [ax.figure]
    file = BytesIO()
    ax.figure.savefig(file, format="png")
    assert file.getvalue().startswith(b"\x89PNG")
    plt.close("all")


def test_without_matplotlib_the_import_works_and_a_figure_names_the_extra() -> None:
    script = """
import sys
sys.modules["matplotlib"] = None
from reghead.plots import plot_history
try:
    plot_history({"train": [1.0]})
except ImportError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "this needs matplotlib, which is not installed; run: pip install 'reghead[plots]'"
