"""What to report about predictions, in the units of the tensors passed: pass the target's own."""

from reghead.metrics._binomial import binomial_interval
from reghead.metrics._interval import CrossingUnit, coverage, crossing_rate, mean_width, quantile_coverage
from reghead.metrics._novelty import NOVELTIES, Novelty, distinct_combinations, novelty
from reghead.metrics._pit import PitHistogram, pit, pit_histogram
from reghead.metrics._point import bias, mae, r2, rmse
from reghead.metrics._report import CategoryReport, category_report
from reghead.metrics._skill import skill

__all__ = [
    "NOVELTIES",
    "CategoryReport",
    "CrossingUnit",
    "Novelty",
    "PitHistogram",
    "bias",
    "binomial_interval",
    "category_report",
    "coverage",
    "crossing_rate",
    "distinct_combinations",
    "mae",
    "mean_width",
    "novelty",
    "pit",
    "pit_histogram",
    "quantile_coverage",
    "r2",
    "rmse",
    "skill",
]
