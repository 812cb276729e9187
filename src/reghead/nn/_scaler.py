"""Per-category and global scale and bias of outputs."""

import math
from collections.abc import Mapping, Sequence
from functools import reduce
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from reghead._checks import check_choice, check_ids, check_int
from reghead._reduction import widen
from reghead._typing import Categories
from reghead.functional import lookup
from reghead.functional._film import film_by_id
from reghead.functional._lookup import align, check_one_shape, joint_ids
from reghead.nn._embedding import JOINT_ROWS
from reghead.nn._part import CategoryPart

Compose: TypeAlias = Literal["sequential", "additive"]
MAX_CELLS = 2**20


class ConditionalScaler(CategoryPart):
    r"""Scale and bias of outputs per category; the identity at the start and for unknown categories.

    .. math::
        \text{sequential:}\quad y = (\dots((x\, s_1 + b_1)\, s_2 + b_2)\dots) \qquad
        \text{additive:}\quad y = x \Big(1 + \sum_c \delta_c\Big) + \sum_c b_c

    with :math:`s_c = 1 + \delta_c[i_c]`, or :math:`\exp \delta_c[i_c]` with ``positive`` (the sum then stands in one
    exponent). Sequential applies the columns in the order of ``cardinalities``: scales multiply, and the bias of a
    column is scaled by the columns after it. Additive does not depend on the order. Deviations are stored, so
    weight decay pulls towards the identity, and :meth:`penalty` is partial pooling.

    Args:
        cardinalities: Column -> number of ids, id 0 included.
        out_features: D, the number of outputs.
        compose: ``"sequential"`` or ``"additive"``.
        scale: Whether categories scale. ``scale=False`` leaves a bias per category, random intercepts.
        cells: Also one row for each combination of known categories, added like one more column.
        positive: Scales stay positive, so that the order of quantiles survives.
        output_dim: The dimension of the outputs in ``x``: -1 for ``(*, D)``, -2 for quantiles ``(*, D, Q)``.
        device: Where the parameters live.
        dtype: Of the parameters.

    Raises:
        ValueError: If a value is out of range, ``cells`` is asked for one column, or there are too many cells.

    Shape:
        - ``x``: ``(*, D)`` or, with ``output_dim=-2``, ``(*, D, Q)``
        - ``categories``: column -> ids, all of one shape that is a prefix of ``*``
        - output: the shape of ``x``

    Example:
        >>> scaler = ConditionalScaler({"location": 2}, out_features=1)
        >>> _ = scaler.scale_location.data.fill_(1.0), scaler.bias_location.data.fill_(3.0)
        >>> scaler(torch.tensor([[5.0], [5.0]]), {"location": torch.tensor([0, 1])}).detach()
        tensor([[ 5.],
                [13.]])
    """

    def __init__(
        self,
        cardinalities: Mapping[str, int],
        out_features: int,
        *,
        compose: Compose = "sequential",
        scale: bool = True,
        cells: bool = False,
        positive: bool = False,
        output_dim: int = -1,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(cardinalities, device)
        self.out_features = check_int("out_features", out_features)
        check_choice("compose", compose, ("sequential", "additive"))
        check_choice("output_dim", output_dim, (-1, -2))
        self.compose, self.scale, self.cells = compose, bool(scale), bool(cells)
        self.positive, self.output_dim = bool(positive), output_dim
        rows = {column: n - 1 for column, n in self.cardinalities.items()}
        if self.cells:
            if len(rows) < 2:
                raise ValueError(f"cells needs at least two columns, got {list(rows)}")
            number = math.prod(self.cardinalities.values())
            if number > MAX_CELLS:
                raise ValueError(f"cells would need {number} rows, at most {MAX_CELLS}; use fewer columns")
        for kind in self._kinds():
            for column in rows:
                self._new_table(kind, column, self.out_features, device, dtype)
            if self.cells:
                # By name, so that another order of the columns cannot load the table transposed.
                shape = [rows[column] for column in sorted(rows)]
                cell = torch.empty(*shape, self.out_features, device=device, dtype=dtype)
                self.register_parameter(f"cell_{kind}", nn.Parameter(cell))
        self.reset_parameters()

    def _kinds(self) -> tuple[str, ...]:
        return ("scale", "bias") if self.scale else ("bias",)

    def reset_parameters(self) -> None:
        """Make the layer the identity, and forget what was observed."""
        self._forget()
        for parameter in self.parameters():
            nn.init.zeros_(parameter)

    def penalty(self) -> Tensor:
        r"""Sum of squared deviations from the identity, :math:`\sum \delta^2 + \sum b^2`: partial pooling."""
        return torch.stack([widen(p).square().sum() for p in self.parameters()]).sum()

    def forward(self, x: Tensor, categories: Categories) -> Tensor:
        """Scale and shift ``x``."""
        if x.ndim < -self.output_dim or x.shape[self.output_dim] != self.out_features:
            shape = "(*, D)" if self.output_dim == -1 else "(*, D, Q)"
            raise ValueError(f"x must have shape {shape} with D = {self.out_features}, got {tuple(x.shape)}")
        ids = check_ids(categories, self.cardinalities, type(self).__name__)
        sizes = tuple(self.cardinalities.values())
        if math.prod(sizes) <= JOINT_ROWS:
            # Few combinations: compose the tables once, then gather once.
            key = joint_ids(ids, sizes)
            grids = self._compose({kind: self._grid(kind) for kind in self._kinds()})
            tables = [grid.expand(*sizes, self.out_features).flatten(0, -2) for grid in grids]
            if self.scale and self.output_dim == -1 and key.shape == x.shape[:-1]:
                shifts, factors = tables
                return film_by_id(x, factors, shifts, key)
            rows = [lookup(table, key) for table in tables]
        else:
            rows = self._compose({kind: self._rows(kind, ids) for kind in self._kinds()})
        shift, *factor = (align(row, x, self.output_dim).to(x.dtype) for row in rows)
        return torch.addcmul(shift, factor[0], x) if factor else x + shift

    def _grid(self, kind: str) -> list[Tensor]:
        """The tables of the columns, shaped to broadcast over the grid of all combinations, and that of the cells."""
        grid = []
        for position, table in enumerate(self._tables(kind)):
            shape = [1] * len(self.cardinalities) + [self.out_features]
            shape[position] = table.shape[0]
            grid.append(table.reshape(shape))
        return [*grid, self._cell_table(kind)] if self.cells else grid

    def _rows(self, kind: str, ids: Sequence[Tensor]) -> list[Tensor]:
        """The rows of the batch in each table."""
        check_one_shape(ids)
        rows = [lookup(table, i) for table, i in zip(self._tables(kind), ids, strict=True)]
        if self.cells:
            key = joint_ids(ids, tuple(self.cardinalities.values()))
            rows.append(lookup(self._cell_table(kind).flatten(0, -2), key))
        return rows

    def _cell_table(self, kind: str) -> Tensor:
        """The table of the cells with zeros where a column is unknown. Shape ``(N_1, ..., N_k, D)``."""
        by_name = sorted(self.cardinalities)
        axes = [by_name.index(column) for column in self.cardinalities]
        table = F.pad(getattr(self, f"cell_{kind}"), [0, 0] + [1, 0] * len(by_name)).permute(*axes, -1)
        for position, column in enumerate(self.cardinalities):
            known = self._known(column)
            table = table * known.reshape([-1 if i == position else 1 for i in range(table.ndim)])
        return table

    def _compose(self, parts: Mapping[str, list[Tensor]]) -> list[Tensor]:
        """Shift and, where categories scale, factor: of deviations that broadcast against each other."""
        biases = parts["bias"]
        if not self.scale:
            return [reduce(torch.add, biases)]
        if self.compose == "additive":
            delta = reduce(torch.add, parts["scale"])
            return [reduce(torch.add, biases), self._factor(delta)]
        factors = [self._factor(delta) for delta in parts["scale"]]
        shift = biases[0]
        for factor, bias in zip(factors[1:], biases[1:], strict=True):
            shift = shift * factor + bias
        return [shift, reduce(torch.mul, factors)]

    def _factor(self, delta: Tensor) -> Tensor:
        return delta.exp() if self.positive else 1.0 + delta

    def extra_repr(self) -> str:
        text = f"{self.cardinalities}, out_features={self.out_features}, compose={self.compose!r}"
        options = {"scale": self.scale, "cells": self.cells, "positive": self.positive}
        return text + "".join(f", {name}={value}" for name, value in options.items() if value != (name == "scale"))


class LearnableScale(nn.Module):
    r"""One learnable scale and bias per output, the identity at the start: :math:`y = x (1 + \delta) + b`.

    With ``positive`` the factor is :math:`\exp \delta`, so that the order of quantiles survives.

    Args:
        out_features: D, the number of outputs.
        positive: Keep the factor positive.
        output_dim: -1 for ``(*, D)``, -2 for quantiles ``(*, D, Q)``.
        device: Where the parameters live.
        dtype: Of the parameters.

    Example:
        >>> layer = LearnableScale(1)
        >>> _ = layer.scale.data.fill_(1.0), layer.bias.data.fill_(3.0)
        >>> layer(torch.tensor([[5.0]])).detach()
        tensor([[13.]])
    """

    def __init__(
        self,
        out_features: int,
        *,
        positive: bool = False,
        output_dim: int = -1,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.out_features = check_int("out_features", out_features)
        check_choice("output_dim", output_dim, (-1, -2))
        self.positive, self.output_dim = bool(positive), output_dim
        self.scale = nn.Parameter(torch.empty(self.out_features, device=device, dtype=dtype))
        self.bias = nn.Parameter(torch.empty(self.out_features, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Make the layer the identity."""
        nn.init.zeros_(self.scale)
        nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Scale and shift ``x``."""
        if x.ndim < -self.output_dim or x.shape[self.output_dim] != self.out_features:
            raise ValueError(
                f"x must have D = {self.out_features} in dimension {self.output_dim}, got {tuple(x.shape)}"
            )
        factor = self.scale.exp() if self.positive else 1.0 + self.scale
        shift, factor = (align(row, x, self.output_dim).to(x.dtype) for row in (self.bias, factor))
        return torch.addcmul(shift, factor, x)

    def extra_repr(self) -> str:
        return f"out_features={self.out_features}, positive={self.positive}"
