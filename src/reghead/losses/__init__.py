"""Loss modules, each around one function of :mod:`reghead.functional` with the same arguments in the same order."""

from reghead.losses._make import make_loss
from reghead.losses._per_output import PerOutputLoss
from reghead.losses._pointwise import AsymmetricLoss, ExpectileLoss, HuberLoss, LogCoshLoss, MAELoss, MSELoss
from reghead.losses._quantile import CRPSLoss, HuberPinballLoss, PinballLoss
from reghead.losses._scores import GaussianNLLLoss, IntervalScoreLoss

__all__ = [
    "AsymmetricLoss",
    "CRPSLoss",
    "ExpectileLoss",
    "GaussianNLLLoss",
    "HuberLoss",
    "HuberPinballLoss",
    "IntervalScoreLoss",
    "LogCoshLoss",
    "MAELoss",
    "MSELoss",
    "PerOutputLoss",
    "PinballLoss",
    "make_loss",
]
