"""The types that public signatures share."""

from collections.abc import Mapping, Sequence
from typing import Literal, TypeAlias

from torch import Tensor

Reduction: TypeAlias = Literal["none", "mean", "sum"]
NanPolicy: TypeAlias = Literal["propagate", "omit"]
Quantiles: TypeAlias = Sequence[float] | Tensor
"""Quantile levels, strictly between 0 and 1 and increasing."""
Categories: TypeAlias = Mapping[str, Tensor]
"""Column name -> integer ids; id 0 is "unknown or missing" in every column."""
Gate: TypeAlias = Literal["soft", "top_k", "hard"]
"""How a router turns logits into weights of experts."""
Mix: TypeAlias = Literal["outputs", "parameters"]
"""What a mixture of experts mixes."""
