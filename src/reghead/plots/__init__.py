"""Figures, Axes in and Axes out, in the units of the data passed; needs the extra ``plots``."""

from reghead.plots._calibration import plot_calibration, plot_coverage
from reghead.plots._effects import Effect, plot_effects, plot_utilization
from reghead.plots._history import plot_history
from reghead.plots._pit import plot_pit
from reghead.plots._predictions import plot_predictions

__all__ = [
    "Effect",
    "plot_calibration",
    "plot_coverage",
    "plot_effects",
    "plot_history",
    "plot_pit",
    "plot_predictions",
    "plot_utilization",
]
