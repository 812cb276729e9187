"""Regression heads."""

from reghead.heads._regression_head import HeadAux, RegressionHead

__all__ = ["HeadAux", "RegressionHead"]
