"""What a head sees of the numbers of a table, and what a mixed model sees of them."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from reghead._optional import import_optional
from reghead.estimators._part import FloatArray

Bins = Sequence[Sequence[float]]
"""For each number the edges between which its embedding is linear; none for one that is taken as it is."""
_MAX_BINS, _WIDTH = 48, 16
_ROWS_IN_A_BIN = 20  # at least: a bend between fewer is noise
_APART = 1e-5  # between edges, as a share of the larger: an embedding has them in float32
_NARROWEST = 1e-30  # of a bin, by which an embedding divides


class Features(nn.Module):
    r"""Smoothly bounded numbers, or their embeddings, and the indicators of missing ones beside them.

    With ``clip`` c a standardised number z becomes :math:`z / \sqrt{1 + (z / c)^2}`, bounded by c (smooth clipping,
    Holzmüller, Grinsztajn and Steinwart 2024). With ``bins`` that becomes a vector that is linear between the edges of
    bins (piecewise-linear embeddings, Gorishniy, Rubachev and Babenko 2022), so that the first layer can bend at
    each of them.

    NOTE[DIFF] the paper on clipping scales by quantiles; mean and deviation can be merged.

    Args:
        numbers: How many of the features are standardised numbers; they come first.
        others: How many are not.
        clip: About the largest number; None leaves them as they are.
        bins: Edges for each number, or None without embeddings.
        dtype: Of the embeddings.
        device: Where they live.
    """

    def __init__(
        self,
        numbers: int,
        others: int,
        *,
        clip: float | None = None,
        bins: Bins | None = None,
        dtype: torch.dtype,
        device: torch.device | None = None,
    ) -> None:
        super().__init__()
        if bins is not None and len(bins) != numbers:
            raise ValueError(f"bins must have edges for each of {numbers} numbers, got {len(bins)}")
        self.numbers, self.clip = numbers, clip
        self.bins = None if bins is None else tuple(tuple(edges) for edges in bins)
        embedded = [i for i, edges in enumerate(self.bins or ()) if edges]
        self.embedding: nn.Module | None = None
        if embedded and self.bins is not None:
            package = import_optional("rtdl_num_embeddings", "sklearn")
            edges = [torch.tensor(self.bins[i], dtype=torch.float64) for i in embedded]
            embedding: nn.Module = package.PiecewiseLinearEmbeddings(edges, _WIDTH, activation=False, version="B")
            self.embedding = embedding.to(device=device, dtype=dtype)
        self._embedded = embedded
        self._plain = [i for i in range(numbers + others) if i not in set(embedded)]

    @property
    def out_features(self) -> int:
        """Width of what a head sees."""
        return len(self._plain) + _WIDTH * len(self._embedded)

    def forward(self, x: Tensor) -> Tensor:
        """Features for a head. Shape ``(B, F)`` to ``(B, out_features)``."""
        x = self._bounded(x)
        if self.embedding is None:
            return x
        return torch.cat([x[:, self._plain], self.embedding(x[:, self._embedded]).flatten(1)], dim=1)

    def linear(self, x: Tensor) -> Tensor:
        """Features for a linear model: numbers as they are, and bounded ones, so that it can follow either."""
        return x if self.clip is None else torch.cat([self._bounded(x), x[:, : self.numbers]], dim=1)

    def _bounded(self, x: Tensor) -> Tensor:
        if self.clip is None:
            return x
        z = x[:, : self.numbers]
        # hypot: a square overflows, and the largest numbers would become 0.
        return torch.cat([z / torch.hypot(z.new_ones(()), z / self.clip), x[:, self.numbers :]], dim=1)


def make_bins(x: FloatArray, weight: FloatArray | None) -> list[list[float]]:
    """Edges at the quantiles of each column of ``x``; none where there are two or fewer, and nothing to bend at.

    A weight counts as so many rows: quantiles are those of the inverse distribution function.

    Args:
        x: Shape (rows, columns).
        weight: Shape (rows,).
    """
    weight = np.ones(len(x)) if weight is None else weight
    found = []
    for column in x.T:
        order = column.argsort(kind="stable")
        mass = weight[order].cumsum()
        bins = int(min(_MAX_BINS, max(mass[-1] // _ROWS_IN_A_BIN, 1)))
        wanted = np.linspace(0, 1, bins + 1) * mass[-1] * (1 - 1e-12)  # the last is the largest number
        edges: list[float] = []
        for edge in np.unique(column[order][mass.searchsorted(wanted)]).tolist():
            # A share: one wild number may leave all others within 1e-4 of each other.
            if not edges or edge - edges[-1] > max(_APART * max(abs(edge), abs(edges[-1])), _NARROWEST):
                edges.append(edge)
        found.append(edges if len(edges) > 2 else [])
    return found
