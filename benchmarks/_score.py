r"""Scores of the methods on one row of the table (a data set and a kind of split), with bootstrap bands.

Rows of one cluster (a location or a cell that the split holds out) share their luck, so bands come from drawing
clusters, not rows, with replacement. One draw serves all methods, folds and seeds of a row: a band of a ratio is
paired.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch

from benchmarks._cache import Run
from benchmarks._data import Fold
from benchmarks._method import CONFIDENCE, LEVELS
from reghead.metrics import NOVELTIES, novelty

DRAWS = 1000
MIN_ROWS = 25  # of a category whose coverage is looked at

FloatArray = npt.NDArray[np.float64]


def losses(run: Run) -> dict[str, FloatArray]:
    """By test row. Squared error, pinball loss (mean over the levels) and interval score (Gneiting and Raftery 2007,
    eq. 43) are in standard deviations of the training target; ``mean`` is the squared error of its mean."""
    target = run.fold.test.target
    scale = run.fold.train.target.std()
    error = target[:, None] - run.prediction.quantiles
    low, _, high = run.prediction.quantiles.T
    outside = np.maximum(low - target, 0) + np.maximum(target - high, 0)
    return {
        "nrmse": ((target - run.prediction.point) / scale) ** 2,
        "mean": ((target - run.fold.train.target.mean()) / scale) ** 2,
        "pinball": np.maximum(np.array(LEVELS) * error, (np.array(LEVELS) - 1) * error).mean(-1) / scale,
        "coverage": ((low <= target) & (target <= high)).astype(float),
        "interval_score": (high - low + 2 / (1 - CONFIDENCE) * outside) / scale,
    }


def kinds(fold: Fold) -> npt.NDArray[np.str_]:
    """What training has seen of the location and season of each test row: one of ``NOVELTIES``."""
    seen, asked = {}, {}
    for column in filter(None, (fold.location, fold.season)):
        labels = pd.Index(fold.train.features[column].unique())
        for ids, part in ((seen, fold.train), (asked, fold.test)):
            ids[column] = torch.from_numpy(labels.get_indexer(part.features[column]).astype(np.int64) + 1)
    found: npt.NDArray[np.str_] = np.array(NOVELTIES)[novelty(asked, seen).numpy()]
    return found


class Row:
    """The runs of all methods on one data set and kind of split.

    Attributes:
        methods: In the order in which they were run; one that failed in some fold is left out, since medians over
            other folds don't compare.
        clusters: Number of clusters that bands are drawn from.
    """

    def __init__(self, runs: Sequence[Run]) -> None:
        folds: dict[str, set[int]] = {}
        for run in runs:
            folds.setdefault(run.method, set()).add(run.fold.index)
        self.methods = [method for method, of in folds.items() if of == set().union(*folds.values())]
        self.runs = [run for run in runs if run.method in self.methods]
        labels = np.unique(np.concatenate([run.fold.clusters for run in runs]))
        self.clusters = len(labels)
        self._kinds = {fold.index: kinds(fold) for fold in {run.fold.index: run.fold for run in self.runs}.values()}
        drawn = np.random.RandomState(0).multinomial(self.clusters, np.full(self.clusters, 1 / self.clusters), DRAWS)
        self._weights = np.vstack([np.ones(self.clusters), drawn])  # the first is the data themselves
        self._sums: dict[str, list[dict[str, FloatArray]]] = {method: [] for method in self.methods}
        for run in self.runs:
            place = np.searchsorted(labels, run.fold.clusters)
            sums = {name: np.bincount(place, loss, self.clusters) for name, loss in losses(run).items()}
            self._sums[run.method].append(sums | {"rows": np.bincount(place, minlength=self.clusters).astype(float)})

    def draws(self, method: str, score: str) -> FloatArray:
        """Median over folds and seeds, of the data and of ``DRAWS`` bootstrap draws: shape (1 + DRAWS,)."""
        total = np.stack([sums[score] for sums in self._sums[method]], -1)
        rows = np.stack([sums["rows"] for sums in self._sums[method]], -1)
        with np.errstate(invalid="ignore"):  # a draw without a single cluster of a fold says nothing about it
            means = (self._weights @ total) / (self._weights @ rows)
        values: FloatArray = np.nanmedian(np.sqrt(means) if score in ("nrmse", "mean") else means, axis=-1)
        return values

    def skill(self, method: str) -> FloatArray:
        """Of the RMSE against that of the mean of the training target, which no method needs a feature for."""
        return 1.0 - self.draws(method, "nrmse") / self.draws(method, "mean")

    def value(self, method: str, score: str) -> float:
        return float(self.draws(method, score)[0])

    def best(self, methods: Sequence[str], score: str) -> str:
        """The method with the lowest score."""
        return min(methods, key=lambda method: self.value(method, score))

    def rmse(self, method: str) -> float:
        """In the target's own units."""
        runs = [run for run in self.runs if run.method == method]
        return float(np.median([np.sqrt(np.mean((r.fold.test.target - r.prediction.point) ** 2)) for r in runs]))

    def seconds(self, method: str) -> float:
        return float(np.median([run.seconds for run in self.runs if run.method == method]))

    def coverage_by_kind(self, method: str) -> dict[str, float]:
        """The coverage of the rows that training has seen as much of, over all folds and seeds; NaN of no rows."""
        runs = [run for run in self.runs if run.method == method]
        kind = np.concatenate([self._kinds[run.fold.index] for run in runs])
        inside = pd.Series(np.concatenate([losses(run)["coverage"] for run in runs]))
        return {str(name): float(share) for name, share in inside.groupby(kind).mean().reindex(NOVELTIES).items()}

    def worst_coverage(self, method: str) -> float:
        """The lowest coverage of a location that has 25 test rows over all folds; NaN if none has."""
        found = [
            pd.DataFrame(
                {
                    "location": run.fold.test.features[run.fold.location],
                    "inside": losses(run)["coverage"],
                    "seed": run.seed,
                }
            )
            for run in self.runs
            if run.method == method
        ]
        rows = pd.concat(found)
        counts = rows[rows["seed"] == rows["seed"].iloc[0]].groupby("location").size()
        kept = counts.index[counts >= MIN_ROWS]
        return float(rows.groupby("location")["inside"].mean().reindex(kept).min())


def band(draws: FloatArray) -> tuple[float, float]:
    """The central 95 % of the bootstrap draws."""
    low, high = np.nanquantile(draws[1:], (0.025, 0.975))
    return float(low), float(high)
