"""Targets to the scale a network learns on, category by category, and back."""

from reghead.normalization._normalizer import CategoryNormalizer
from reghead.normalization._state import CellTable
from reghead.normalization._transform import TargetTransform, TransformKind

__all__ = ["CategoryNormalizer", "CellTable", "TargetTransform", "TransformKind"]
