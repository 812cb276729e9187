"""Layers, each usable alone in any model."""

from reghead.nn._activation import OutputActivation
from reghead.nn._embedding import CategoryContext, CategoryEmbedding
from reghead.nn._film import FiLM
from reghead.nn._mlp import MLP, FiLMLayer
from reghead.nn._moe import MixtureOfExperts, RoutingAux
from reghead.nn._quantile_output import QuantileOutput
from reghead.nn._scaler import ConditionalScaler, LearnableScale

__all__ = [
    "MLP",
    "CategoryContext",
    "CategoryEmbedding",
    "ConditionalScaler",
    "FiLM",
    "FiLMLayer",
    "LearnableScale",
    "MixtureOfExperts",
    "OutputActivation",
    "QuantileOutput",
    "RoutingAux",
]
