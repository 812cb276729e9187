"""Shaping of raw outputs into quantiles."""

import torch
from torch import Tensor, nn

from reghead._checks import check_last_dim, check_quantiles
from reghead._typing import Quantiles
from reghead.functional import nearest_level, sort_quantiles
from reghead.functional._quantiles import normal_gaps, spread_by_gaps


class QuantileOutput(nn.Module):
    r"""Makes quantiles of raw outputs.

    With ``non_crossing`` they cannot cross: the level nearest 0.5 is the anchor, the others are reached by
    cumulated positive gaps, which at zero are the gaps of the standard normal distribution (see
    :func:`reghead.functional.non_crossing_quantiles`). Without it raw values pass through in training, and are
    sorted in eval mode (:func:`reghead.functional.sort_quantiles`). No parameters.

    Args:
        quantiles: The Q levels, strictly between 0 and 1 and increasing.
        non_crossing: Ordered by construction, or free and sorted in eval mode.

    Raises:
        ValueError: If the levels are not strictly increasing inside (0, 1).

    Shape:
        - ``raw``: ``(*, D, Q)``
        - output: ``(*, D, Q)``

    Example:
        >>> QuantileOutput([0.1, 0.5, 0.9])(torch.zeros(1, 3))
        tensor([[-1.2816,  0.0000,  1.2816]])
    """

    def __init__(self, quantiles: Quantiles, non_crossing: bool = True) -> None:
        super().__init__()
        # Python floats: a cast of the module to bfloat16 must not turn 0.999 into 1.
        self.quantiles = check_quantiles("quantiles", quantiles)
        self.non_crossing = bool(non_crossing)
        self._gaps = normal_gaps(self.quantiles)  # numbers in an exported graph: ONNX has no normal quantile function

    @property
    def anchor(self) -> int:
        """Position of the level nearest 0.5, the one comparable to a point prediction."""
        return nearest_level(self.quantiles)

    def forward(self, raw: Tensor) -> Tensor:
        """Shape ``raw``."""
        check_last_dim("raw", raw, len(self.quantiles), "Q")
        if self.non_crossing:
            return spread_by_gaps(raw, self.anchor, torch.tensor(self._gaps, dtype=raw.dtype, device=raw.device))
        return raw if self.training else sort_quantiles(raw)

    def extra_repr(self) -> str:
        return f"{list(self.quantiles)}, non_crossing={self.non_crossing}"
