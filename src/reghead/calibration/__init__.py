"""Intervals with finite-sample coverage, from point or quantile predictions, by conformal calibration."""

from reghead.calibration._cross import CrossConformal, EnvironmentRule, LeftOut
from reghead.calibration._quantile import conformal_quantile, conformal_rank
from reghead.calibration._quantiles import ConformalizedQuantiles
from reghead.calibration._split import SplitConformal
from reghead.calibration._table import Unseen

__all__ = [
    "ConformalizedQuantiles",
    "CrossConformal",
    "EnvironmentRule",
    "LeftOut",
    "SplitConformal",
    "Unseen",
    "conformal_quantile",
    "conformal_rank",
]
