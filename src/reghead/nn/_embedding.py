"""Embeddings of categories, and the context they make for other layers."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from reghead._checks import check_columns, check_ids, check_int
from reghead._typing import Categories
from reghead.functional import lookup
from reghead.functional._lookup import check_one_shape, joint_ids
from reghead.nn._part import CategoryPart

JOINT_ROWS = 1024
"""Up to so many combinations of categories, one gather from a joint table is cheaper than one gather a column."""


@dataclass(frozen=True)
class CategoryContext:
    """Embedded categories of a batch, not gathered yet.

    A linear map of the embedding needs one product per category, not per row: :meth:`project` maps the tables and
    gathers the results. :meth:`dense` gathers the embedding itself.

    Attributes:
        tables: Embedding table of each column, shape ``(N, embedding_dim)``, row 0 zero.
        ids: Ids of each column, one shape ``(*,)``.
    """

    tables: tuple[Tensor, ...]
    ids: tuple[Tensor, ...]

    def dense(self) -> Tensor:
        """The embedding of each row, columns side by side. Shape ``(*, C)``."""
        check_one_shape(self.ids)
        return torch.cat([lookup(t, i) for t, i in zip(self.tables, self.ids, strict=True)], dim=-1)

    def project(self, weight: Tensor, offset: float = 0.0) -> Tensor:
        """``dense() @ weight.T + offset``, computed once per category.

        Args:
            weight: Shape ``(O, C)``.
            offset: Added to every element.

        Returns:
            Shape ``(*, O)``.
        """
        weights = torch.split(weight, [t.shape[-1] for t in self.tables], dim=-1)
        projected = [t @ w.t() for t, w in zip(self.tables, weights, strict=True)]
        projected[0] = projected[0] + offset
        rows = [p.shape[0] for p in projected]
        if len(rows) > 1 and math.prod(rows) <= JOINT_ROWS:
            joint = projected[0]
            for table in projected[1:]:
                joint = (joint.unsqueeze(1) + table).flatten(0, 1)
            return lookup(joint, joint_ids(self.ids, rows))
        check_one_shape(self.ids)
        result = lookup(projected[0], self.ids[0])
        for table, ids in zip(projected[1:], self.ids[1:], strict=True):
            result = result + lookup(table, ids)
        return result


class CategoryEmbedding(CategoryPart):
    r"""Embedding of categorical columns; an unknown category embeds to exactly zero.

    .. math:: e = [E_1[i_1], \dots, E_k[i_k]], \qquad E_j[0] = 0

    Columns are sorted by name. Rows start from :math:`\mathcal N(0, 1)`, as in :class:`torch.nn.Embedding`; the
    row of the unknown is not a parameter (see :class:`~reghead.nn.ConditionalScaler` for the same rule), and an id
    without training rows counts as unknown once :meth:`observe` has been told.

    Args:
        cardinalities: Column -> number of ids, id 0 included.
        embedding_dim: Width of each column's embedding.
        device: Where the parameters live.
        dtype: Of the parameters.

    Raises:
        ValueError: If no column is given or a size is below 1.

    Shape:
        - ``categories``: column -> ids of shape ``(*,)``
        - output: ``(*, C)`` with ``C = embedding_features``, that is columns x embedding_dim

    Example:
        >>> embedding = CategoryEmbedding({"location": 3}, embedding_dim=2)
        >>> embedding({"location": torch.tensor([0])})
        tensor([[0., 0.]], grad_fn=<CatBackward0>)
    """

    def __init__(
        self,
        cardinalities: Mapping[str, int],
        embedding_dim: int = 16,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(cardinalities, device)
        self.cardinalities = dict(sorted(self.cardinalities.items()))
        self.embedding_dim = check_int("embedding_dim", embedding_dim)
        for column in self.cardinalities:
            self._new_table("weight", column, self.embedding_dim, device, dtype)
        self.reset_parameters()

    @property
    def embedding_features(self) -> int:
        """C, the width of the output with all columns."""
        return self.embedding_dim * len(self.cardinalities)

    def reset_parameters(self) -> None:
        """Draw every row from the standard normal distribution, and forget what was observed."""
        self._forget()
        for parameter in self.parameters():
            nn.init.normal_(parameter)

    def context(self, categories: Categories, columns: Sequence[str] | None = None) -> CategoryContext:
        """The embedding as a :class:`CategoryContext`, which layers use without gathering it.

        Args:
            categories: Column -> ids of shape ``(*,)``.
            columns: The columns to embed; all by default.
        """
        chosen = (
            list(self.cardinalities)
            if columns is None
            else sorted(check_columns("columns", columns, self.cardinalities))
        )
        ids = check_ids(categories, {c: self.cardinalities[c] for c in chosen}, type(self).__name__)
        return CategoryContext(tuple(self._tables("weight", chosen)), ids)

    def forward(self, categories: Categories) -> Tensor:
        """Embed ``categories``: shape ``(*, C)``."""
        return self.context(categories).dense()

    def extra_repr(self) -> str:
        return f"{self.cardinalities}, embedding_dim={self.embedding_dim}"
