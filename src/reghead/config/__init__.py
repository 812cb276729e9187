"""Configuration as plain data: frozen, validated at construction, exact in JSON, and reachable by flags."""

from reghead.config._args import add_arguments, config_from_args
from reghead.config._flag import Flag, Kind
from reghead.config._flags import FLAGS
from reghead.config._head import HeadConfig, MoEConfig
from reghead.config._loss import LossConfig
from reghead.config._normalizer import NormalizerConfig
from reghead.config._regression import RegressionConfig

__all__ = [
    "FLAGS",
    "Flag",
    "HeadConfig",
    "Kind",
    "LossConfig",
    "MoEConfig",
    "NormalizerConfig",
    "RegressionConfig",
    "add_arguments",
    "config_from_args",
]
