"""Metrics category by category."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from reghead._checks import check_floating, check_int, check_prefix, check_quantiles, check_same_shape, check_shape
from reghead._reduction import counted_cells, trailing
from reghead._typing import NanPolicy, Quantiles
from reghead.categories import Vocabulary
from reghead.functional import nearest_level
from reghead.metrics._binomial import binomial_interval
from reghead.metrics._novelty import NOVELTIES
from reghead.metrics._point import explained_share

METRICS = (
    "count",
    "rmse",
    "mae",
    "bias",
    "r2",
    "pinball",
    "confidence_level",
    "coverage",
    "coverage_low",
    "coverage_high",
    "width",
    "interval_score",
    "crossing",
)


class CategoryReport(NamedTuple):
    """What :func:`category_report` returns: lists of rows, each of which ``pandas.DataFrame`` takes as it is.

    Attributes:
        categories: One row per category and output.
        overall: One row per output, over all rows of the data.
        worst: One row per output: that of the category with the highest RMSE.
        worst_coverage: One row per output: that of the category with the lowest coverage; none without an interval.
        novelty: One row per kind in :data:`NOVELTIES` that occurs, which it has as ``novelty``, and output; none
            without the argument of that name.
    """

    categories: list[dict[str, Any]]
    overall: list[dict[str, Any]]
    worst: list[dict[str, Any]]
    worst_coverage: list[dict[str, Any]]
    novelty: list[dict[str, Any]]


def category_report(
    preds: Tensor,
    target: Tensor,
    categories: Mapping[str, Tensor | Sequence[object]],
    *,
    quantiles: Quantiles | None = None,
    outputs: Sequence[str] | None = None,
    novelty: Tensor | None = None,
    min_count: int = 1,
    weight: Tensor | None = None,
    mask: Tensor | None = None,
    nan_policy: NanPolicy = "propagate",
) -> CategoryReport:
    """Metrics for each category, or each combination of categories, and each output.

    Everything is in the units of the tensors: pass predictions and targets in the target's own units, not on the
    scale that a normalizer learns on. A row has, after a value for each column of ``categories``:

    * ``output``, and ``count``, the number of targets that count;
    * ``rmse``, ``mae``, ``bias`` (mean of prediction minus target) and ``r2``, of the prediction, or of the quantile
      nearest the median;
    * with quantiles, ``pinball``, the mean over the levels of the pinball loss
      (:func:`~reghead.functional.pinball_loss`);
    * with two or more quantiles, of the interval between the outermost: ``confidence_level`` (what it should cover),
      ``coverage`` with ``coverage_low`` and ``coverage_high``, between which the share of all such targets lies with
      95 % confidence (:func:`binomial_interval` of the effective count, for independent targets), ``width`` and
      ``interval_score`` (width plus a penalty for each target outside, in proportion to how far: Gneiting and Raftery,
      "Strictly Proper Scoring Rules, Prediction, and Estimation", 2007, eq. 43, with each end's own level), and
      ``crossing``, the share of predictions whose quantiles are out of order.

    A category in which nothing counts has ``count`` 0 and NaN elsewhere.

    Args:
        preds: Predictions. Shape of ``target``, or ``(*, D, Q)`` with ``quantiles``.
        target: Observed values. Shape ``(*, D)``, or ``(B,)`` for one output.
        categories: Column to ids of shape ``(*,)``, or to a sequence of B labels.
        quantiles: The Q levels, strictly increasing; ``None`` for point predictions.
        outputs: Names of the outputs; their indices if left out.
        novelty: What :func:`novelty` returns for the rows: scores of rows that are new to the model are of another task
            than scores of rows like those of training, and get rows of their own. Shape ``(*,)``.
        min_count: How many targets a category needs to be called the worst.
        weight: Non-negative weights, shape ``(*,)`` per row or ``(*, D)``.
        mask: True where a target counts. Shape ``(*,)`` or ``(*, D)``.
        nan_policy: ``"omit"`` treats a NaN target as missing; ``"propagate"`` returns NaN.

    Raises:
        TypeError: If ``categories`` is not a mapping.
        ValueError: If shapes do not fit.

    Example:
        >>> import torch
        >>> preds, target = torch.tensor([1.0, 1.0, 5.0]), torch.tensor([1.0, 1.0, 2.0])
        >>> report = category_report(preds, target, {"location": ["A", "A", "B"]})
        >>> [(row["location"], row["count"], row["rmse"]) for row in report.categories]
        [('A', 2, 0.0), ('B', 1, 3.0)]
        >>> report.worst[0]["location"], report.overall[0]["mae"]
        ('B', 1.0)
        >>> report = category_report(preds, target, {"location": ["A", "A", "B"]}, novelty=torch.tensor([0, 2, 2]))
        >>> [(row["novelty"], row["count"], row["mae"]) for row in report.novelty]
        [('seen', 1, 0.0), ('unseen category', 2, 1.5)]
    """
    min_count = check_int("min_count", min_count)
    check_floating("preds", preds)
    check_floating("target", target)
    levels = None if quantiles is None else check_quantiles("quantiles", quantiles)
    if levels is None:
        check_same_shape(preds, target)
    else:
        hint = (
            "calibrated intervals have two ends: give their two levels as quantiles" if preds.shape[-1:] == (2,) else ""
        )
        check_shape("preds", preds, (*target.shape, len(levels)), "(*target.shape, Q)", hint)
    counted = counted_cells(target, weight, mask, nan_policy)
    size = target.shape[-1] if target.ndim > 1 else 1
    prefix = target.shape[:-1] if target.ndim > 1 else target.shape
    names = list(range(size)) if outputs is None else list(outputs)
    if len(names) != size:
        raise ValueError(f"outputs must name each of the {size} outputs, got {names}")

    def rows(tensor: Tensor) -> Tensor:
        wide = trailing(tensor.detach().cpu(), target.ndim).expand(target.shape)
        return wide.double().reshape(-1, size)

    # float64 on the CPU: the numbers are for people, and a device may lack the dtype.
    y = rows(target)
    q = preds.detach().cpu().double().reshape(len(y), size, 1 if levels is None else len(levels))
    share = torch.ones_like(y) if weight is None else rows(weight)
    present = torch.ones_like(y, dtype=torch.bool) if counted is None else rows(counted) != 0
    labels, group = _groups(categories, prefix)
    kinds = None if novelty is None else _kinds(novelty, prefix)
    moments = _moments(q, y, levels)

    def table(keys: Sequence[Mapping[str, object]], group: Tensor) -> list[dict[str, Any]]:
        summary = _summarise(moments, y, share, present, group, len(keys))
        if levels is not None and len(levels) > 1:
            summary["confidence_level"] = torch.full_like(summary["rmse"], round(levels[-1] - levels[0], 12))
        return [
            {**key, "output": name, **_row(summary, k, d)} for k, key in enumerate(keys) for d, name in enumerate(names)
        ]

    own = table([dict(zip(categories, label, strict=True)) for label in labels], group)
    split: list[dict[str, Any]] = []
    if kinds is not None:
        present_kinds, position = torch.unique(kinds, return_inverse=True)
        split = table([{"novelty": NOVELTIES[kind]} for kind in present_kinds.tolist()], position)
    return CategoryReport(
        own,
        table([{}], torch.zeros_like(group)),
        _worst(own, names, min_count, "rmse"),
        _worst(own, names, min_count, "coverage", sign=-1.0) if "coverage" in moments else [],
        split,
    )


def _worst(
    table: Sequence[dict[str, Any]], names: Sequence[object], min_count: int, metric: str, sign: float = 1.0
) -> list[dict[str, Any]]:
    worst = []
    for name in names:
        candidates = [row for row in table if row["output"] == name and row["count"] >= min_count]
        # A NaN is worse than any number: it must not hide behind one.
        worst += sorted(candidates, key=lambda row: (row[metric] != row[metric], sign * row[metric]))[-1:]
    return worst


def _kinds(novelty: Tensor, prefix: Sequence[int]) -> Tensor:
    """The novelty of each row, flat."""
    check_prefix("novelty", novelty, "the rows of target", prefix)
    kinds = trailing(novelty.detach().cpu(), len(prefix)).expand(prefix).reshape(-1)
    if novelty.dtype != torch.int64 or ((kinds < 0) | (kinds >= len(NOVELTIES))).any():
        raise ValueError(
            f"novelty must hold torch.int64 from 0 to {len(NOVELTIES) - 1}, as reghead.metrics.novelty gives them, "
            f"got {novelty.dtype}{f' from {kinds.min()} to {kinds.max()}' if kinds.numel() else ''}"
        )
    return kinds


def _moments(q: Tensor, y: Tensor, levels: tuple[float, ...] | None) -> dict[str, Tensor]:
    """What is averaged, cell by cell. Each of shape ``(N, D)``."""
    error = q[..., 0 if levels is None else nearest_level(levels)] - y
    moments = {"rmse": error.square(), "mae": error.abs(), "bias": error}
    if levels is None:
        return moments
    tau, above = torch.tensor(levels, dtype=q.dtype), y.unsqueeze(-1) - q
    # The larger of the two lines, and not a sum with |error|, which makes NaN of an infinite quantile.
    moments["pinball"] = torch.maximum(tau * above, (tau - 1.0) * above).mean(-1)
    if len(levels) < 2:
        return moments
    lower, upper = q[..., 0], q[..., -1]
    unknown = lower.isnan() | upper.isnan() | y.isnan()
    # Each fine by itself, and not as a pinball loss, so that an infinite interval scores infinity and not NaN.
    fines = (lower - y).clamp(min=0.0) / levels[0] + (y - upper).clamp(min=0.0) / (1.0 - levels[-1])
    return moments | {
        "coverage": torch.where(unknown, torch.nan, ((lower <= y) & (y <= upper)).double()),
        "width": upper - lower,
        "interval_score": upper - lower + fines,
        "crossing": torch.where(q.isnan().any(-1), torch.nan, (q[..., 1:] < q[..., :-1]).any(-1).double()),
    }


def _summarise(
    moments: Mapping[str, Tensor], y: Tensor, share: Tensor, present: Tensor, group: Tensor, groups: int
) -> dict[str, Tensor]:
    """Weighted means by group. Each of shape ``(K, D)``."""

    def total(values: Tensor) -> Tensor:
        return values.new_zeros(groups, y.shape[1]).index_add_(0, group, torch.where(present, values, 0.0))

    weight = total(share)
    summary = {"count": total(torch.ones_like(y))}
    summary |= {name: total(share * values) / weight for name, values in moments.items()}
    mean = total(share * y) / weight
    deviation = y - mean.index_select(0, group)
    deviation = deviation - (total(share * deviation) / weight).index_select(0, group)
    summary["r2"] = explained_share(summary["rmse"], total(share * deviation.square()) / weight, mean)
    summary["rmse"] = summary["rmse"].sqrt()
    if "coverage" in summary:
        # As if each target weighed the same, with as much to say as these have.
        effective = weight.square() / total(share.square())
        covered = summary["coverage"] * effective
        summary["coverage_low"], summary["coverage_high"] = binomial_interval(covered, effective)
    return summary


def _row(summary: Mapping[str, Tensor], group: int, output: int) -> dict[str, Any]:
    row = {name: summary[name][group, output].item() for name in METRICS if name in summary}
    return row | {"count": int(row["count"])}


def _groups(categories: object, prefix: Sequence[int]) -> tuple[list[tuple[object, ...]], Tensor]:
    """The combinations of categories that occur, in order, and the position of each row's among them."""
    if not isinstance(categories, Mapping) or not categories:
        raise TypeError(f"categories must map at least one column to ids or labels, got {categories!r}")
    reserved = {"output", *METRICS}.intersection(categories)
    if reserved:
        raise ValueError(f"categories has the column {min(reserved)!r}, which is also a name in the report; rename it")
    codes, values = [], []
    for column, given in categories.items():
        if isinstance(given, Tensor):
            check_prefix(f"categories[{column!r}]", given, "the rows of target", prefix)
            distinct, code = torch.unique(given.detach().cpu(), return_inverse=True)
            values.append(distinct.tolist())
            codes.append(trailing(code, len(prefix)).expand(prefix).reshape(-1))
        else:
            vocabulary = Vocabulary.from_labels(given)
            code = vocabulary.encode(given)
            if tuple(code.shape) != tuple(prefix):
                raise ValueError(
                    f"categories[{column!r}] must hold one label for each row of target, {tuple(prefix)}, "
                    f"got {len(code)} labels"
                )
            values.append([None, *vocabulary.labels])
            codes.append(code)
    cells, group = torch.unique(torch.stack(codes), dim=1, return_inverse=True)
    labels = [tuple(values[c][i] for c, i in enumerate(cell)) for cell in cells.T.tolist()]
    return labels, group
