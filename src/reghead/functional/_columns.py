"""Which loss each output column has: names and indices, specs and weights, quantile levels and their slots."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reghead._checks import check_columns, check_number, did_you_mean
from reghead.functional._hubers import huber_form
from reghead.functional._loss_types import LossSpec, parse_loss
from reghead.functional._quantiles import nearest_level


@dataclasses.dataclass(frozen=True)
class ColumnLoss:
    """The loss of one column. Two columns with the same type and parameters are computed together."""

    kind: str
    parameters: tuple[tuple[str, Any], ...]
    weight: float

    @classmethod
    def parse(cls, name: str, spec: object) -> "ColumnLoss":
        """Check a spec that may hold a ``"weight"``."""
        kind, parameters = parse_loss(name, spec, also=("weight",))
        weight = spec.get("weight", 1.0) if isinstance(spec, Mapping) else 1.0
        return cls(kind, tuple(parameters.items()), check_number(f"weight of {name}", weight, at_least=0.0))

    @property
    def quantiles(self) -> tuple[float, ...]:
        """The levels of a quantile loss; none for a loss of points."""
        levels: tuple[float, ...] = dict(self.parameters).get("quantiles", ())
        return levels


@dataclasses.dataclass(frozen=True)
class Columns:
    """A loss for every column, by index where one is given and ``default`` elsewhere."""

    losses: dict[int, ColumnLoss]
    default: ColumnLoss
    outputs: tuple[str, ...] | None

    @classmethod
    def parse(cls, losses: object, outputs: Sequence[str] | None, default: LossSpec) -> "Columns":
        """Resolve names to indices and check every spec."""
        if not isinstance(losses, Mapping):
            raise TypeError(f"losses must map outputs to losses, such as {{'pH': 'mse'}}, got {losses!r}")
        names = None if outputs is None else check_columns("outputs", outputs)
        resolved: dict[int, ColumnLoss] = {}
        for key, spec in losses.items():
            index = _index(key, names)
            if index in resolved:
                raise ValueError(f"losses names the output {key!r} twice, once by its name and once by its index")
            resolved[index] = ColumnLoss.parse(f"losses[{key!r}]", spec)
        return cls(resolved, ColumnLoss.parse("default", default), names)

    @property
    def quantiles(self) -> tuple[float, ...] | None:
        """The levels of all columns together, increasing; ``None`` if every column has a point."""
        used = list(self.losses.values())
        if self.outputs is None or len(self.losses) < len(self.outputs):
            used.append(self.default)
        return tuple(sorted({level for loss in used for level in loss.quantiles})) or None

    def layout(self, shape: Sequence[int]) -> "Layout":
        """How the columns of a target of this shape are gathered by kind of loss, and put back."""
        if not shape or not shape[-1]:
            raise ValueError(f"target must have shape (*, D), a column for each output, got {tuple(shape)}")
        width = shape[-1]
        if self.outputs is not None and width != len(self.outputs):
            raise ValueError(f"target must have {len(self.outputs)} columns, one for each of outputs, got {width}")
        for index in self.losses:
            if index >= width:
                raise ValueError(f"losses names the output {index}, but target has {width} columns, counted from 0")
        per_column = [self.losses.get(index, self.default) for index in range(width)]
        levels = self.quantiles or (0.5,)
        order: list[int] = []
        places: list[int] = []
        groups = []
        for kind in dict.fromkeys((loss.kind, loss.parameters) for loss in per_column):
            members = [d for d, loss in enumerate(per_column) if (loss.kind, loss.parameters) == kind]
            group = Group(kind[0], dict(kind[1]), len(members))
            slots = [levels.index(level) for level in group.quantiles] or [nearest_level(levels)]
            order += members
            places += [d * len(levels) + slot for d in members for slot in slots]
            groups.append(group)
        inverse = [0] * width
        for position, d in enumerate(order):
            inverse[d] = position
        return Layout(
            groups,
            order,
            places,
            inverse,
            weights=[loss.weight for loss in per_column],
            quantiles=self.quantiles,
            hubers=_hubers(per_column) if self.quantiles is None else None,
        )


@dataclasses.dataclass(frozen=True)
class Group:
    """Columns with one kind of loss, computed in one call."""

    kind: str
    parameters: dict[str, Any]
    width: int

    @property
    def quantiles(self) -> tuple[float, ...]:
        """The levels of a quantile loss; none for a loss of points."""
        levels: tuple[float, ...] = self.parameters.get("quantiles", ())
        return levels


@dataclasses.dataclass(frozen=True)
class Layout:
    """Columns side by side by kind: ``order`` and ``places`` lead there from target and preds, ``inverse`` back."""

    groups: list[Group]
    order: list[int]
    places: list[int]
    inverse: list[int]
    weights: list[float]
    quantiles: tuple[float, ...] | None
    hubers: NDArray[np.float64] | None
    """Steepness, knot and penalties of each column in its place, where all losses are forms of a Huber function."""

    @property
    def symmetric(self) -> bool:
        """Whether each of those has equal penalties."""
        return self.hubers is not None and bool((self.hubers[2] == self.hubers[3]).all())


def _hubers(per_column: list[ColumnLoss]) -> NDArray[np.float64] | None:
    rows = []
    for loss in per_column:
        form = huber_form(loss.kind, dict(loss.parameters))
        if form is None:
            return None
        rows.append(form)
    return np.array(rows).T.copy()


def _index(key: object, names: tuple[str, ...] | None) -> int:
    if isinstance(key, bool) or not isinstance(key, str | int):
        raise TypeError(f"losses must have names or indices of outputs as keys, got {key!r}")
    if isinstance(key, str) and names is not None and key in names:
        return names.index(key)
    # JSON has no integer keys: it writes the index 0 as "0".
    if isinstance(key, int) or key.isdecimal():
        index = int(key)
        if index >= 0 and (names is None or index < len(names)):
            return index
    elif names is None:
        raise ValueError(f"losses names the output {key!r}, but the outputs have no names; pass outputs=[...]")
    known = "indices from 0" if names is None else ", ".join(map(repr, names))
    raise ValueError(
        f"losses names the output {key!r}, which is not among the outputs ({known}){did_you_mean(key, names or ())}"
    )
