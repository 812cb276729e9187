"""Regression heads."""

from reghead.heads._aux import HeadAux
from reghead.heads._regression_head import RegressionHead

__all__ = ["HeadAux", "RegressionHead"]
