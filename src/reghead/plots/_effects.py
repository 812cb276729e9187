"""What categories do inside a model: the experts they use, the scale and shift they get."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import torch
from torch import Tensor

from reghead._checks import check_choice
from reghead.nn import CategoryContext, ConditionalScaler, FiLM
from reghead.plots._axes import COLORS, Data, as_tensor, drawable, height_of, label_with_units, make_axes, set_rows
from reghead.plots._categories import choose, counts_of_ids, names_of_ids, with_count

if TYPE_CHECKING:
    import matplotlib.axes

Effect: TypeAlias = Literal["scale", "bias"]
"""What a category does: multiplies, or adds."""
MOST_NUMBERS = 16
_NEUTRAL = {"scale": 1.0, "bias": 0.0}


def plot_utilization(
    utilization: Data,
    labels: Sequence[object] | None = None,
    *,
    counts: Tensor | Sequence[float] | None = None,
    max_categories: int = 30,
    ax: "matplotlib.axes.Axes | None" = None,
) -> "matplotlib.axes.Axes":
    """Mean routing weight of each expert by category, as a heatmap.

    Categories stand together by the expert they use most, the one they use it most for first. Beyond ``max_categories``
    those with the highest ``counts`` are drawn, and the mean of the rest, weighted by ``counts``, is the last row,
    "12 others". Categories without rows, which are NaN, are not drawn.

    Args:
        utilization: From :func:`~reghead.functional.expert_utilization`. Shape ``(K, E)``, row 0 the unknown.
        labels: Names of ids 1 to K - 1, such as ``encoder.vocabularies["location"].labels``.
        counts: Rows of each id, shape ``(K,)``, drawn beside the names; without them all weigh the same, and the first
            are drawn.
        max_categories: How many rows are drawn at most.
        ax: Where to draw; a new figure by default. The colour bar takes its room from it.

    Raises:
        ValueError: If shapes do not fit, or no category has rows.

    Example:
        >>> from matplotlib.figure import Figure
        >>> utilization = torch.tensor([[torch.nan, torch.nan], [0.25, 0.75], [1.0, 0.0]])
        >>> ax = plot_utilization(utilization, ["lake", "sea"], ax=Figure().subplots())
        >>> [text.get_text() for text in ax.get_yticklabels()], ax.images[0].get_array().tolist()
        (['sea', 'lake'], [[1.0, 0.0], [0.25, 0.75]])
    """
    table = as_tensor(utilization)
    if table.ndim != 2:
        raise ValueError(
            f"utilization must have shape (K, E), got {tuple(table.shape)}; give expert_utilization ids and cardinality"
        )
    names, weights = names_of_ids(labels, len(table)), counts_of_ids(counts, len(table))
    used = [i for i in range(len(table)) if not table[i].isnan().any()]
    if not used:
        raise ValueError("utilization must have at least one category with rows, got NaN in each")
    table, names, weights = table[used], [names[i] for i in used], [weights[i] for i in used]
    places = [(int(row.argmax()), -float(row.max())) for row in table]
    kept, texts = _pool(table, places, names, weights, max_categories, counted=counts is not None)

    ax = make_axes(ax, 2.8 + 0.6 * kept.shape[1], height_of(len(kept)))
    _heatmap(ax, kept, texts, "cividis", 0.0, float(kept.max()), "mean routing weight", "{:.2f}")
    ax.set_xlabel("expert")
    return ax


def plot_effects(
    module: ConditionalScaler | FiLM,
    labels: Sequence[object] | None = None,
    effect: Effect = "scale",
    *,
    column: str | None = None,
    context: Tensor | CategoryContext | None = None,
    counts: Tensor | Sequence[float] | None = None,
    order: Tensor | Sequence[int] | None = None,
    max_categories: int = 30,
    units: str | None = None,
    ax: "matplotlib.axes.Axes | None" = None,
) -> "matplotlib.axes.Axes":
    """Scale or shift that each category gets from a module, beside doing nothing.

    Of a :class:`~reghead.nn.ConditionalScaler`, the effect of ``column`` while all its other columns are unknown; of a
    :class:`~reghead.nn.FiLM`, gamma or beta of each row of ``context``. One output is a row of points sorted by the
    effect; several, or the features of a FiLM, are a heatmap sorted by how far a category is from doing nothing,
    which is white.

    Beyond ``max_categories`` those with the highest ``counts`` are drawn, and the mean of the rest, weighted by
    ``counts``, is the last row, "12 others". The unknown does nothing and is not drawn.

    Args:
        module: The layer.
        labels: Names of ids 1 to K - 1, such as ``encoder.vocabularies["location"].labels``.
        effect: ``"scale"`` (gamma), where 1 is nothing, or ``"bias"`` (beta), where 0 is.
        column: The column of a scaler; may be left out where it has one.
        context: Of a FiLM: what it gets for ids 0 to K - 1, such as ``embedding({"location": torch.arange(K)})``.
        counts: Rows of each id, shape ``(K,)``, drawn beside the names; without them all weigh the same, and the first
            are drawn.
        order: Ids 1 to K - 1 from the top down, such as those of another panel beside this one; by default sorted as
            above.
        max_categories: How many rows are drawn at most.
        units: Units of a bias: those of what the layer is applied to.
        ax: Where to draw; a new figure by default.

    Raises:
        TypeError: If ``module`` is of another type.
        ValueError: If an argument is missing or does not fit the module.

    Example:
        >>> from matplotlib.figure import Figure
        >>> from reghead.nn import ConditionalScaler
        >>> scaler = ConditionalScaler({"location": 3}, out_features=1)
        >>> _ = scaler.bias_location.data.copy_(torch.tensor([[3.0], [-1.0]]))
        >>> ax = plot_effects(scaler, ["lake", "sea"], "bias", ax=Figure().subplots())
        >>> ax.collections[-1].get_offsets().tolist(), [text.get_text() for text in ax.get_yticklabels()]
        ([[3.0, 0.0], [-1.0, 1.0]], ['lake', 'sea'])
        >>> ax = plot_effects(scaler, ["lake", "sea"], counts=[0, 5, 9], order=[2, 1], ax=Figure().subplots())
        >>> [text.get_text() for text in ax.get_yticklabels()]
        ['sea (9)', 'lake (5)']
    """
    table = effect_table(module, effect, column, context)
    names, weights = names_of_ids(labels, len(table))[1:], counts_of_ids(counts, len(table))[1:]
    if not names:
        raise ValueError("module must have a known category to draw, got the unknown alone")
    ids = by_strength(table, effect) if order is None else [int(i) for i in order]
    if sorted(ids) != list(range(1, len(table))):
        raise ValueError(f"order must hold each id from 1 to {len(names)} once, got {ids}")
    places = torch.tensor(ids).argsort().tolist()  # of each id, its place among the ids
    kept, texts = _pool(table[1:], places, names, weights, max_categories, counted=counts is not None)
    neutral = _NEUTRAL[effect]
    kind = ("gamma" if effect == "scale" else "beta") if isinstance(module, FiLM) else effect
    text = label_with_units(kind, units if effect == "bias" else None)

    if kept.shape[1] == 1:
        ax = make_axes(ax, 6.4, height_of(len(kept)))
        height = range(len(kept))
        ax.hlines(height, neutral, kept[:, 0].tolist(), color=COLORS[0], linewidth=1.0, zorder=1)
        ax.axvline(neutral, color="black", linewidth=0.8, zorder=2)
        ax.scatter(kept[:, 0].tolist(), height, s=24, color=COLORS[0], zorder=3)
        set_rows(ax, texts)
        ax.locator_params(axis="x", nbins=6)  # a factor near 1 has long numbers
        ax.set_xlabel(text)
        return ax
    ax = make_axes(ax, min(10.0, 3.4 + 0.4 * kept.shape[1]), height_of(len(kept)))
    span = max(float((kept - neutral).abs().max()), 1e-12)  # an untrained layer is all white, not all of one colour
    _heatmap(ax, kept, texts, "RdBu_r", neutral - span, neutral + span, text, "{:.2g}")
    ax.set_xlabel("output" if isinstance(module, ConditionalScaler) else "feature")
    return ax


def effect_table(
    module: ConditionalScaler | FiLM,
    effect: Effect,
    column: str | None = None,
    context: Tensor | CategoryContext | None = None,
) -> Tensor:
    """Effect of each id on each output or feature, shape ``(K, D)``."""
    check_choice("effect", effect, ("scale", "bias"))
    if isinstance(module, ConditionalScaler):
        if context is not None:
            raise ValueError("context is for a FiLM; a ConditionalScaler takes column")
        return _scaler_table(module, effect, column)
    if not isinstance(module, FiLM):
        raise TypeError(f"module must be a ConditionalScaler or a FiLM, got {type(module).__name__}")
    if context is None or column is not None:
        raise ValueError("a FiLM takes context, and no column: what it gets for each id, unknown (0) included")
    with torch.no_grad():
        table = as_tensor(module.gamma_beta(context)[0 if effect == "scale" else 1])
    if table.ndim != 2:
        raise ValueError(f"context must have one row for each id, (K, C), got a result of {tuple(table.shape)}")
    return table


def by_strength(table: Tensor, effect: Effect) -> list[int]:
    """The known ids by falling effect; where there are several outputs, by how far they are from no effect."""
    rows = table[1:]
    strength = rows[:, 0] if rows.shape[1] == 1 else (rows - _NEUTRAL[effect]).square().mean(-1)
    return [1 + i for i in strength.argsort(descending=True, stable=True).tolist()]


def _scaler_table(module: ConditionalScaler, effect: Effect, column: str | None) -> Tensor:
    """Scale or bias of each id of ``column``, shape ``(K, D)``: what the layer makes of 0 and of 1."""
    if column is None:
        if len(module.cardinalities) > 1:
            raise ValueError(f"column must be one of {', '.join(map(repr, module.cardinalities))}, got None")
        (column,) = module.cardinalities
    check_choice("column", column, tuple(module.cardinalities))
    device = next(module.parameters()).device
    ids = torch.arange(module.cardinalities[column], device=device)
    categories = {name: ids if name == column else torch.zeros_like(ids) for name in module.cardinalities}
    shape = (len(ids), module.out_features) + (1,) * (-1 - module.output_dim)
    zero = torch.zeros(shape, dtype=torch.float64, device=device)
    with torch.no_grad():
        bias = module(zero, categories)
        table = bias if effect == "bias" else module(zero + 1.0, categories) - bias
    return as_tensor(table.reshape(len(ids), module.out_features))


def _pool(
    table: Tensor,
    places: Sequence[Any],
    names: list[str],
    weights: list[float],
    max_categories: int,
    *,
    counted: bool,
) -> tuple[Tensor, list[str]]:
    """The rows to draw, sorted by ``places``, and their names; the pool of the rest, if any, is last."""

    def name(text: str, weight: float) -> str:
        return with_count(text, weight) if counted else drawable(text)

    shown = choose(weights, max_categories)
    kept = sorted(shown.kept, key=lambda i: places[i])
    rows, texts = table[kept], [name(names[i], weights[i]) for i in kept]
    if not shown.pooled:
        return rows, texts
    share = torch.tensor([weights[i] for i in shown.pooled], dtype=table.dtype)
    pool_name = name(f"{len(shown.pooled)} others", float(share.sum()))
    # Where no pooled category has rows, they weigh the same.
    share = share / share.sum() if share.sum() else torch.full_like(share, 1.0 / len(share))
    pool = (share @ table[shown.pooled]).unsqueeze(0)
    return torch.cat([rows, pool]), [*texts, pool_name]


def _heatmap(
    ax: "matplotlib.axes.Axes",
    table: Tensor,
    names: Sequence[str],
    cmap: str,
    low: float,
    high: float,
    text: str,
    form: str,
) -> None:
    """``table`` as colours, and as numbers where there is room for them."""
    image = ax.imshow(table.numpy(), cmap=cmap, vmin=low, vmax=high, aspect="auto", interpolation="nearest")
    set_rows(ax, names)
    ax.set_ylim(len(names) - 0.5, -0.5)
    ax.locator_params(axis="x", integer=True)
    ax.figure.colorbar(image, ax=ax, label=text)
    if table.shape[1] > MOST_NUMBERS:
        return
    ax.set_xticks(range(table.shape[1]))
    for row, values in enumerate(table.tolist()):
        for place, value in enumerate(values):
            red, green, blue, _ = image.cmap(image.norm(value))
            dark = 0.299 * red + 0.587 * green + 0.114 * blue < 0.5
            color = "white" if dark else "black"
            ax.text(place, row, form.format(value), ha="center", va="center", fontsize=7, color=color)
