"""Targets to the scale a network learns on, category by category, and back."""

from reghead.normalization._mixed_effects import MixedEffects
from reghead.normalization._mixed_predict import MixedPrediction, MixedStatistics
from reghead.normalization._normalizer import CategoryNormalizer
from reghead.normalization._state import CellTable
from reghead.normalization._transform import TargetTransform, TransformKind

__all__ = [
    "CategoryNormalizer",
    "CellTable",
    "MixedEffects",
    "MixedPrediction",
    "MixedStatistics",
    "TargetTransform",
    "TransformKind",
]
