"""Embeddings of categories, and the context they make for other layers."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import reduce

import torch
from torch import Tensor, nn

from reghead._checks import check_columns, check_ids, check_int
from reghead._typing import Categories
from reghead.functional import lookup
from reghead.functional._lookup import check_one_shape, joint_ids
from reghead.nn._part import CategoryPart

JOINT_ROWS = 1024  # pragma: no mutate
"""Up to so many combinations of categories, one gather from a joint table is cheaper than one gather a column."""


@dataclass(frozen=True)
class CategoryContext:
    """Embedded categories of a batch, not gathered yet.

    A linear map of the embedding needs one product per category, not per row: :meth:`project` maps the tables and
    gathers the results. :meth:`dense` gathers the embedding itself.

    Attributes:
        tables: Embedding table of each column, shape ``(N, embedding_dim)``, row 0 zero; or one of all columns, with a
            row for each combination, where those are few.
        ids: Ids of each table, one shape ``(*,)``.
    """

    tables: tuple[Tensor, ...]
    ids: tuple[Tensor, ...]

    def dense(self) -> Tensor:
        """The embedding of each row, columns side by side. Shape ``(*, C)``."""
        check_one_shape(self.ids)
        rows = [lookup(t, i) for t, i in zip(self.tables, self.ids, strict=True)]
        return rows[0] if len(rows) == 1 else torch.cat(rows, dim=-1)

    def project(self, weight: Tensor, offset: float | Tensor | None = None) -> Tensor:
        """``dense() @ weight.T + offset``, computed once per category.

        Args:
            weight: Shape ``(O, C)``.
            offset: Added to every row, a number or of shape ``(O,)``.

        Returns:
            Shape ``(*, O)``.
        """
        check_one_shape(self.ids)
        rows = [lookup(t, i) for t, i in zip(self.project_tables(weight, offset), self.ids, strict=True)]
        return reduce(torch.add, rows)

    def project_tables(self, weight: Tensor, offset: float | Tensor | None = None) -> list[Tensor]:
        """What :meth:`project` gathers from: a table of shape ``(N, O)`` in place of each of ``tables``."""
        weights = [weight] if len(self.tables) == 1 else torch.split(weight, [t.shape[-1] for t in self.tables], dim=-1)
        projected = [t @ w.t() for t, w in zip(self.tables, weights, strict=True)]
        if offset is not None:
            projected[0] = projected[0] + offset
        return projected

    def joined(self) -> "CategoryContext":
        """The same with one table of all combinations, where those are at most ``JOINT_ROWS``."""
        rows = [len(table) for table in self.tables]
        if len(rows) == 1 or math.prod(rows) > JOINT_ROWS or any(i.shape != self.ids[0].shape for i in self.ids):
            return self
        axes = range(len(rows))
        grids = [
            table.reshape([-1 if i == axis else 1 for i in axes] + [table.shape[-1]]).expand(*rows, -1)
            for axis, table in enumerate(self.tables)
        ]
        return CategoryContext((torch.cat(grids, dim=-1).flatten(0, -2),), (joint_ids(self.ids, rows),))


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
        >>> embedding({"location": torch.tensor([0])}).detach()
        tensor([[0., 0.]])
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
        return CategoryContext(tuple(self._tables("weight", chosen)), ids).joined()

    def forward(self, categories: Categories) -> Tensor:
        """Embed ``categories``: shape ``(*, C)``."""
        return self.context(categories).dense()

    def extra_repr(self) -> str:
        return f"{self.cardinalities}, embedding_dim={self.embedding_dim}"
