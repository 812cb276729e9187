"""The figures of a training, drawn without a display and without touching matplotlib's global state."""

import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor

from reghead._optional import import_optional
from reghead.categories import CategoryEncoder
from reghead.cli._report import Scored, cell_name, own_predictions
from reghead.functional import expert_utilization
from reghead.heads import RegressionHead
from reghead.metrics import NOVELTIES, category_report
from reghead.nn import MLP, FiLM
from reghead.plots import (
    plot_calibration,
    plot_coverage,
    plot_effects,
    plot_history,
    plot_pit,
    plot_predictions,
    plot_utilization,
)
from reghead.plots._axes import drawable, height_of
from reghead.plots._effects import by_strength, effect_table

if TYPE_CHECKING:
    import matplotlib.axes
    import matplotlib.figure

Draw: TypeAlias = Callable[["matplotlib.figure.Figure"], None]
Routing: TypeAlias = tuple[Tensor, Tensor, Sequence[object]]
"""Routing weights ``(N, E)``, ids ``(N,)`` of the routing column, and the labels of ids 1 to K - 1."""
LEARNED = "normalized target"
ROUTING = "mean routing weight"
BALANCING = "load balancing\n(1: even)"


def draw_figures(
    folder: Path,
    scored: Scored,
    *,
    part: str,
    outputs: Sequence[str],
    levels: Sequence[Sequence[float]],
    all_levels: Sequence[float] | None,
    by: Sequence[Sequence[str]],
    history: Mapping[str, Sequence[Any]],
    head: RegressionHead,
    encoder: CategoryEncoder | None,
    routing: Routing | None = None,
) -> list[str]:
    """Draw every figure that the model has something for into ``folder``.

    ``predictions.png``, and where there are levels ``calibration.png``, ``pit.png`` and ``coverage.png``: of an output
    each where there are several (``predictions_pH.png``), and of a further grouping each (``coverage_season.png``).
    ``coverage_novelty.png`` tells rows apart by what training has seen of them, where they differ in it.
    ``training.png``, ``utilization.png``, and ``effects_<column>.png`` and ``film_<column>.png`` of each column.

    Args:
        folder: Where to; made if it is not there.
        scored: Predictions for one part of the data.
        part: The name of the part, such as ``"validation"``.
        outputs: Names of the D outputs.
        levels: For each output the quantile levels that it was trained on; none for a point output.
        all_levels: The Q levels of the predictions' last dimension; None for point predictions.
        by: Groupings, each of one column or more.
        history: What the training returned: a value for each epoch.
        head: The trained head.
        encoder: Names the categories of the head.
        routing: What the router did with the rows of the part.

    Returns:
        For each figure that could not be drawn from these data, and each that has something missing, one line that
        says so. A trained model is worth more than a figure of it.
    """
    figures: list[tuple[str, Draw]] = [
        *_of_predictions(scored, part, outputs, levels, all_levels, by),
        *_of_training(history),
        *_of_routing(routing, part),
        *_of_effects(head, encoder, outputs),
    ]
    folder.mkdir(parents=True, exist_ok=True)
    messages = []
    taken: set[str] = set()
    for name, draw in figures:
        file = file_name(name, taken)
        try:
            messages += [f"{file}: {text}" for text in _save(folder / file, draw)]
        except ValueError as error:
            (folder / file).unlink(missing_ok=True)
            messages.append(f"{file} was not drawn: {error}")
    return messages


def file_name(name: str, taken: set[str]) -> str:
    """A file for ``name`` that no other has, on a file system that may not tell cases apart; added to ``taken``."""
    stem = re.sub(r"([^\w.-]|_)+", "_", name).strip("._")[:100]
    number, unique = 2, stem
    while unique.casefold() in taken:
        number, unique = number + 1, f"{stem}_{number}"
    taken.add(unique.casefold())
    return f"{unique}.png"


def _save(path: Path, draw: Draw) -> list[str]:
    """Draw into a new figure, and return what matplotlib has to say about it, once."""
    figure: matplotlib.figure.Figure = import_optional("matplotlib.figure", "plots").Figure(layout="constrained")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        draw(figure)
        figure.savefig(path, format="png", dpi=150)
    texts = (str(warning.message) for warning in caught)
    # One warning for each character of each label would bury everything else.
    return list(dict.fromkeys("some characters are not in its font" if "Glyph" in t else t for t in texts))


def _of_predictions(
    scored: Scored,
    part: str,
    outputs: Sequence[str],
    levels: Sequence[Sequence[float]],
    all_levels: Sequence[float] | None,
    by: Sequence[Sequence[str]],
) -> Iterator[tuple[str, Draw]]:
    names = [_names(scored.labels, columns) for columns in by]
    for d, output in enumerate(outputs):
        preds, own = own_predictions(scored.preds, d, levels[d], all_levels)
        suffix = f"_{output}" if len(outputs) > 1 else ""
        yield f"predictions{suffix}", _predictions(preds, scored.target[:, d], own, names, _title(output, part))
        if own is None:
            continue
        yield f"calibration{suffix}", _calibration(preds, scored.target[:, d], own, _title(output, part))
        yield f"pit{suffix}", _pit(preds, scored.target[:, d], own, _title(output, part))
        if len(own) == 1:
            continue
        for columns, labels in zip(by, names, strict=True):
            further = "" if columns is by[0] else f"_{'_'.join(columns)}"
            title = f"{_title(output, part)} by {', '.join(columns)}"
            yield f"coverage{suffix}{further}", _coverage(preds, scored.target[:, d], own, labels, title)
        if scored.novelty is not None and len(torch.unique(scored.novelty)) > 1:
            kinds = [NOVELTIES[kind] for kind in scored.novelty.tolist()]
            title = f"{_title(output, part)} by what training has seen"
            yield f"coverage{suffix}_novelty", _coverage(preds, scored.target[:, d], own, kinds, title)


def _predictions(
    preds: Tensor, target: Tensor, levels: tuple[float, ...] | None, names: Sequence[Sequence[str]], title: str
) -> Draw:
    def draw(figure: "matplotlib.figure.Figure") -> None:
        figure.set_size_inches(6.4, 5.2)
        plot_predictions(preds, target, names[0] if names else None, quantiles=levels, ax=figure.subplots())
        _set_title(figure, title)

    return draw


def _calibration(preds: Tensor, target: Tensor, levels: tuple[float, ...], title: str) -> Draw:
    def draw(figure: "matplotlib.figure.Figure") -> None:
        figure.set_size_inches(5.2, 5.4)
        plot_calibration(preds, target, levels, ax=figure.subplots())
        _set_title(figure, title)

    return draw


def _pit(preds: Tensor, target: Tensor, levels: tuple[float, ...], title: str) -> Draw:
    def draw(figure: "matplotlib.figure.Figure") -> None:
        plot_pit(preds, target, levels, ax=figure.subplots())
        _set_title(figure, title)

    return draw


def _coverage(preds: Tensor, target: Tensor, levels: tuple[float, ...], labels: Sequence[str], title: str) -> Draw:
    def draw(figure: "matplotlib.figure.Figure") -> None:
        # Without weights: what chance allows depends on how many rows there are.
        report = category_report(preds, target, {"category": labels}, quantiles=levels, nan_policy="omit")
        ax = plot_coverage(report, ax=figure.subplots())
        figure.set_size_inches(6.4, 0.3 + height_of(len(ax.get_yticks())))
        _set_title(figure, title)

    return draw


def _of_training(history: Mapping[str, Sequence[Any]]) -> Iterator[tuple[str, Draw]]:
    """One panel for each curve, since their units differ."""
    panels: list[tuple[str, Mapping[str, Sequence[float]]]] = []
    for key, label in (
        ("train_loss", f"training loss\n({LEARNED})"),
        ("validation_loss", "validation loss\n(target / its sd)"),
    ):
        if history.get(key):
            panels.append((label, {label.partition("\n")[0]: history[key]}))
    utilization = history.get("expert_utilization", ())
    if len(utilization):
        experts = zip(*utilization, strict=True)
        panels.append((ROUTING, {f"expert {e}": values for e, values in enumerate(experts)}))
    if history.get("load_balancing_loss"):
        panels.append((BALANCING, {"load balancing": history["load_balancing_loss"]}))
    if not panels:
        return

    def draw(figure: "matplotlib.figure.Figure") -> None:
        heights = [max(2.0, 0.4 + 0.17 * len(curves)) for _, curves in panels]
        figure.set_size_inches(7.0, 0.4 + sum(heights))
        grid = figure.subplots(len(panels), squeeze=False, sharex=True, height_ratios=heights)
        for ax, (label, curves) in zip(grid[:, 0], panels, strict=True):
            plot_history(curves, ax=ax)
            ax.set(ylabel=label, xlabel="epoch" if ax is grid[-1, 0] else "")
            if label == ROUTING:
                ax.set_ylim(bottom=0.0)  # an expert that nobody uses is at 0, and small differences look small
            elif label == BALANCING:  # noise a hundredth above even looks even
                ax.set_ylim(min(1.0, ax.dataLim.y0), max(1.1, ax.get_ylim()[1]))
            legend = ax.get_legend()
            if len(curves) == 1:
                legend.remove()
            else:  # beside the curves, which are everywhere
                legend.set_loc("upper left")
                legend.set_bbox_to_anchor((1.0, 1.05))
        validation = torch.tensor(history.get("validation_loss", ()), dtype=torch.float64)
        if validation.isfinite().any():
            best = int(torch.where(validation.isfinite(), validation, torch.inf).argmin()) + 1
            for ax in grid[:, 0]:
                ax.axvline(best, color="black", linewidth=0.8, linestyle=":", zorder=0)
            _set_title(figure, f"training; dotted: the weights that were kept, of epoch {best}")

    yield "training", draw


def _of_routing(routing: Routing | None, part: str) -> Iterator[tuple[str, Draw]]:
    if routing is None:
        return
    weights, ids, labels = routing
    counts = torch.bincount(ids.reshape(-1).cpu(), minlength=len(labels) + 1)
    table = expert_utilization(weights.detach().cpu(), ids.cpu(), len(labels) + 1)

    def draw(figure: "matplotlib.figure.Figure") -> None:
        ax = plot_utilization(table, labels, counts=counts, ax=figure.subplots())
        figure.set_size_inches(min(12.0, 4.0 + 0.6 * table.shape[1]), height_of(len(ax.get_yticks())))
        _set_title(figure, f"experts: {part} rows")

    yield "utilization", draw


def _of_effects(
    head: RegressionHead, encoder: CategoryEncoder | None, outputs: Sequence[str]
) -> Iterator[tuple[str, Draw]]:
    if encoder is None:
        return
    for column, vocabulary in encoder.vocabularies.items():
        effects = [
            (name, part, effect)
            for name, part, effect in (
                ("conditional scale", head.scaler, "scale"),
                ("conditional bias", head.scaler, "bias"),
                ("random intercept", head.wide, "bias"),
            )
            if part is not None and column in part.cardinalities
        ]
        options: dict[str, Any] = {"labels": vocabulary.labels, "counts": encoder.counts[column]}
        if effects:
            yield f"effects_{column}", _effects(effects, column, outputs, options)
        if column in head.config.film:
            yield f"film_{column}", _film(head, column, options)


def _effects(
    effects: Sequence[tuple[str, Any, Any]], column: str, outputs: Sequence[str], options: dict[str, Any]
) -> Draw:
    def draw(figure: "matplotlib.figure.Figure") -> None:
        grid = figure.subplots(1, len(effects), squeeze=False)[0]
        _, first, effect = effects[0]
        order = by_strength(effect_table(first, effect, column), effect)  # in all panels, to follow a category across
        for ax, (name, part, effect) in zip(grid, effects, strict=True):
            plot_effects(part, effect=effect, column=column, order=order, units=LEARNED, ax=ax, **options)
            ax.set_title(name, fontsize=10)
            ax.tick_params(labelleft=ax is grid[0])
            if len(outputs) > 1:
                ax.set_xticks(range(len(outputs)), [drawable(output) for output in outputs], rotation=90, fontsize=8)
        width = 2.4 if len(outputs) == 1 else min(8.0, 1.6 + 0.4 * len(outputs))
        figure.set_size_inches(1.8 + width * len(effects), 0.3 + height_of(len(grid[0].get_yticks())))
        _set_title(figure, f"effects of {column}")

    return draw


def _film(head: RegressionHead, column: str, options: dict[str, Any]) -> Draw:
    def draw(figure: "matplotlib.figure.Figure") -> None:
        films = _film_layers(head)
        grid = figure.subplots(len(films), squeeze=False)[:, 0]
        # One category at a time, the other columns unknown, as a row without them has it.
        device = next(head.parameters()).device
        ids = torch.arange(len(options["labels"]) + 1, device=device)
        categories = {name: ids if name == column else torch.zeros_like(ids) for name in head.config.film}
        assert head.embedding is not None  # film columns are embedded
        context = head.embedding.context(categories, head.config.film)
        order = by_strength(effect_table(films[0], "scale", context=context), "scale")
        for number, (ax, film) in enumerate(zip(grid, films, strict=True), start=1):
            plot_effects(film, effect="scale", context=context, order=order, ax=ax, **options)
            ax.set_title(f"hidden layer {number}", fontsize=10)
        width = max(film.num_features for film in films)
        figure.set_size_inches(
            min(10.0, 3.4 + 0.4 * width), 0.3 + len(films) * (0.3 + height_of(len(grid[0].get_yticks())))
        )
        _set_title(figure, f"FiLM of {column}: factor of each feature")

    return draw


def _film_layers(head: RegressionHead) -> list[FiLM]:
    if isinstance(head.trunk, MLP):
        layers = [layer.film for layer in head.trunk.layers]
    else:
        layers = [] if head.trunk is None else list(head.trunk.films)
    return [layer for layer in layers if isinstance(layer, FiLM)]


def _names(labels: Mapping[str, Sequence[object]], columns: Sequence[str]) -> list[str]:
    return [cell_name(cell) for cell in zip(*(labels[column] for column in columns), strict=True)]


def _title(output: str, part: str) -> str:
    return f"{output}: {part} rows"


def _set_title(figure: "matplotlib.figure.Figure", text: str) -> None:
    figure.suptitle(text.replace("$", r"\$"), fontsize=11)
