"""One table of all scores, and what they say of reghead."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import pandas as pd

from benchmarks._method import CONFIDENCE
from benchmarks._reghead import PREFIX
from benchmarks._score import Row, band

Rows = Mapping[tuple[str, str], Row]

BASELINES = ("mean", "additive")
TREES, MIXED = "lightgbm", f"{PREFIX}-mixed"


def table(rows: Rows) -> pd.DataFrame:
    """A line per data set, kind of split and method; ratios are paired, with their 95 % bands.

    ``skill`` is of the RMSE against the mean of the training target. Coverage is told apart by what training has seen
    of a row's location and season, as a split may mix the kinds.
    """
    lines = []
    for (data, kind), row in rows.items():
        peers = [name for name in row.methods if not _is_ours(name)]
        best = row.best(peers, "nrmse") if peers else None
        for method in row.methods:
            line: dict[str, object] = {"data": data, "split": kind, "method": method, "rmse": row.rmse(method)}
            line["nrmse"] = row.value(method, "nrmse")
            line |= _ratio("nrmse_to_best_peer", row, method, best, "nrmse")
            line["skill"] = float(row.skill(method)[0])
            line["skill_low"], line["skill_high"] = band(row.skill(method))
            line["pinball"] = row.value(method, "pinball")
            line["coverage"] = row.value(method, "coverage")
            line["coverage_low"], line["coverage_high"] = band(row.draws(method, "coverage"))
            line |= {f"coverage_{of.replace(' ', '_')}": share for of, share in row.coverage_by_kind(method).items()}
            line["worst_category_coverage"] = row.worst_coverage(method)
            line["interval_score"] = row.value(method, "interval_score")
            line |= _ratio("interval_score_to_lightgbm", row, method, "lightgbm", "interval_score")
            line["seconds"] = row.seconds(method)
            line["clusters"] = row.clusters
            lines.append(line)
    return pd.DataFrame(lines)


def _ratio(name: str, row: Row, method: str, other: str | None, score: str) -> dict[str, float]:
    if other not in row.methods:
        return dict.fromkeys((name, f"{name}_low", f"{name}_high"), float("nan"))
    ratio = row.draws(method, score) / row.draws(other, score)
    low, high = band(ratio)
    return {name: float(ratio[0]), f"{name}_low": low, f"{name}_high": high}


def geometric_mean(rows: Rows, kind: str, method: str, other: str, score: str) -> tuple[float, float, float, int]:
    """Over the data sets with both methods, of the ratio of their scores: value, band and number of data sets."""
    found = [row for (_, of), row in rows.items() if of == kind and {method, other} <= set(row.methods)]
    if not found:
        return float("nan"), float("nan"), float("nan"), 0
    ratio = np.exp(np.mean([np.log(row.draws(method, score) / row.draws(other, score)) for row in found], axis=0))
    return float(ratio[0]), *band(ratio), len(found)


def geometric_means(rows: Rows, score: str, others: Sequence[str]) -> pd.DataFrame:
    """Per kind of split, each method against each of ``others``."""
    lines = []
    for kind, methods in _methods(rows).items():
        for method in methods:
            line = {"split": kind, "method": method}
            for other in others:
                ratio, low, high, count = geometric_mean(rows, kind, method, other, score)
                compared = count and method != other
                line[f"to {other}"] = f"{ratio:.3f} ({low:.3f} to {high:.3f}; {count})" if compared else ""
            lines.append(line)
    return pd.DataFrame(lines)


def misses(rows: Rows) -> list[str]:
    """Where a method of reghead is worse than it may be."""
    found = []
    for kind, methods in _methods(rows).items():
        for method in filter(_is_ours, methods):
            for score, others in {"nrmse": ("lightgbm", "catboost"), "interval_score": ("lightgbm",)}.items():
                for other in others:
                    ratio, *_ = geometric_mean(rows, kind, method, other, score)
                    if ratio > 1.0:
                        found.append(
                            f"{kind} {method}: the mean {score} is {ratio:.3f} times that of {other}, above 1.0"
                        )
    for (data, kind), row in rows.items():
        for method in filter(_is_ours, row.methods):
            found += [f"{data} {kind} {method}: {what}" for what in _misses_of(row, kind, method)]
    return found


def _misses_of(row: Row, kind: str, method: str) -> Iterator[str]:
    nrmse = row.draws(method, "nrmse")
    if peers := [name for name in row.methods if not _is_ours(name)]:
        best = row.best(peers, "nrmse")
        low, _ = band(nrmse / row.draws(best, "nrmse"))
        if low > 1.05:
            yield f"the band of nRMSE over that of {best} begins at {low:.3f}, above 1.05"
    if baselines := [name for name in BASELINES if name in row.methods]:
        best = row.best(baselines, "nrmse")
        ratio = nrmse[0] / row.value(best, "nrmse")
        if ratio > 1.02:
            yield f"nRMSE is {ratio:.3f} times that of {best}, above 1.02"
    if TREES in row.methods:
        ratio = row.value(method, "interval_score") / row.value(TREES, "interval_score")
        if ratio > 1.0:
            yield f"the interval score is {ratio:.3f} times that of {TREES}, above 1.0"
    if method.startswith(f"{PREFIX}+") and PREFIX in row.methods and kind != "random":
        low, _ = band(nrmse / row.draws(PREFIX, "nrmse"))
        if low > 1.0:
            yield f"the band of nRMSE over that of {PREFIX} begins at {low:.3f}, above 1.0"
    if kind.startswith("new"):
        if MIXED in row.methods and (ratio := nrmse[0] / row.value(MIXED, "nrmse")) > 1.0:
            yield f"nRMSE is {ratio:.3f} times that of {MIXED}, above 1.0"
        if (coverage := row.value(method, "coverage")) < 0.75:
            yield f"the coverage is {coverage:.3f}, below 0.75"
    else:
        low, high = band(row.draws(method, "coverage"))
        if not low <= CONFIDENCE <= high:
            yield f"the band of coverage, {low:.3f} to {high:.3f}, is without {CONFIDENCE}"
    worst = row.worst_coverage(method)
    if worst < 0.6:
        yield f"the worst category is covered {worst:.3f}, below 0.6"


def _methods(rows: Rows) -> dict[str, list[str]]:
    """Of each kind of split."""
    found: dict[str, list[str]] = {}
    for (_, kind), row in rows.items():
        found.setdefault(kind, []).extend(row.methods)
    return {kind: list(dict.fromkeys(methods)) for kind, methods in found.items()}


def _is_ours(method: str) -> bool:
    return method.startswith(PREFIX)


def markdown(rows: Rows) -> str:
    """The table and the summaries as a page."""
    short = table(rows)
    for name, digits in {"nrmse_to_best_peer": 3, "skill": 2, "coverage": 2, "interval_score_to_lightgbm": 3}.items():
        values = zip(short[name], short.pop(f"{name}_low"), short.pop(f"{name}_high"), strict=True)
        short[name] = [
            "" if np.isnan(v) else f"{v:.{digits}f} ({a:.{digits}f} to {b:.{digits}f})" for v, a, b in values
        ]
    parts = ["## All scores", _grid(short)]
    parts += ["## nRMSE: geometric means of ratios, with bands and data sets"]
    parts += [_grid(geometric_means(rows, "nrmse", ("lightgbm", "catboost", PREFIX)))]
    parts += ["## Interval score of 80 %: geometric means of ratios, with bands and data sets"]
    parts += [_grid(geometric_means(rows, "interval_score", ("lightgbm", PREFIX)))]
    if any(_is_ours(name) for row in rows.values() for name in row.methods):
        parts += ["## Misses of reghead", "\n".join(f"- {miss}" for miss in misses(rows)) or "None."]
    return "\n\n".join(parts) + "\n"


def _grid(frame: pd.DataFrame) -> str:
    texts = [
        [f"{value:.4g}" if isinstance(value, float) else str(value) for value in line] for line in frame.to_numpy()
    ]
    lines = [list(frame.columns), ["---"] * len(frame.columns), *texts]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
