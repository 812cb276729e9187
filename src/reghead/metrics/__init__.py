"""What to report about predictions, in the units of the tensors passed: pass the target's own."""

from reghead.metrics._interval import CrossingUnit, coverage, crossing_rate, mean_width, quantile_coverage
from reghead.metrics._point import bias, mae, r2, rmse
from reghead.metrics._report import CategoryReport, category_report

__all__ = [
    "CategoryReport",
    "CrossingUnit",
    "bias",
    "category_report",
    "coverage",
    "crossing_rate",
    "mae",
    "mean_width",
    "quantile_coverage",
    "r2",
    "rmse",
]
