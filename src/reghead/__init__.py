"""Regression heads, losses and target normalizers for targets that shift between categories."""

from reghead._warnings import RedundantOptionWarning, RegheadWarning, UnseenCategoryWarning
from reghead.heads import RegressionHead
from reghead.losses import AsymmetricLoss, PerOutputLoss, PinballLoss
from reghead.nn import ConditionalScaler, FiLMLayer, MixtureOfExperts
from reghead.normalization import CategoryNormalizer

__all__ = [
    "AsymmetricLoss",
    "CategoryNormalizer",
    "ConditionalScaler",
    "FiLMLayer",
    "MixtureOfExperts",
    "PerOutputLoss",
    "PinballLoss",
    "RedundantOptionWarning",
    "RegheadWarning",
    "RegressionHead",
    "UnseenCategoryWarning",
]
