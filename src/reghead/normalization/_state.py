"""The statistics of a normalizer as buffers: how they are adopted, moved, loaded and looked up."""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn, Self

import torch
from torch import Tensor

from reghead._checks import check_ids, check_prefix, reads_values
from reghead._persistence import SelfDescribingStatistics, refuse_a_part
from reghead._typing import Categories
from reghead._warnings import UnseenCategoryWarning
from reghead.categories import GroupStatistics
from reghead.normalization._cells import CellLayout
from reghead.normalization._estimates import estimate

_MOMENTS = ("cell_keys", "cell_count", "cell_mean", "cell_m2", "cell_mean_tail")
_ESTIMATES = ("location", "scale", "effects", "effect_scale")
_STATE = _MOMENTS + _ESTIMATES
_DENSE_LIMIT = 2**20


@dataclass(frozen=True)
class CellTable:
    """The statistics of a normalizer, one row per cell; the first row, of ids 0, is the population.

    ``mean`` is that of the rows, ``location`` and ``scale`` are what normalizes; all three are on the scale of the
    target transform.

    Args:
        ids: Column -> ids of the cells, shape ``(K,)``.
        count: Training rows, the sum of their weights. Shape ``(K, D)``.
        mean: Shape ``(K, D)``.
        location: Shape ``(K, D)``.
        scale: Shape ``(K, D)``.
    """

    ids: dict[str, Tensor]
    count: Tensor
    mean: Tensor
    location: Tensor
    scale: Tensor


def refuse_empty_column(column: int) -> NoReturn:
    """Raise for a target column without a single value."""
    raise ValueError(
        f"every column of target needs a value with a positive weight, but column {column} has none; leave it out"
    )


class CellStatistics(SelfDescribingStatistics):
    """Moments of cells, what is estimated from them, and the lookup of a row's cell.

    The moments allow more rows to be merged; the estimates are kept beside them, not recomputed, so that a loaded
    module answers as the saved one did. Row 0 is the population's, with key 0.
    """

    cell_keys: Tensor
    cell_count: Tensor
    cell_mean: Tensor
    cell_m2: Tensor
    cell_mean_tail: Tensor
    location: Tensor
    scale: Tensor
    effects: Tensor
    effect_scale: Tensor
    dense_location: Tensor | None
    dense_scale: Tensor | None
    dense_sampled: Tensor | None

    def __init__(self, cardinalities: Mapping[str, int], shrinkage: str, fallback: str) -> None:
        super().__init__()
        # Sorted, so that the same columns in another order make the same keys.
        self.cardinalities = dict(sorted(cardinalities.items()))
        self.shrinkage, self.fallback = shrinkage, fallback
        self._layout = CellLayout(self.cardinalities)
        self._warned = False
        for name in _STATE:
            shape = (0,) if name in ("cell_keys", "effect_scale") else (0, 0)
            self.register_buffer(name, torch.zeros(shape, dtype=torch.int64 if name == "cell_keys" else torch.float64))
        for name in ("dense_location", "dense_scale", "dense_sampled"):
            self.register_buffer(name, None, persistent=False)

    @property
    def is_fitted(self) -> bool:
        """Whether there are statistics: after a fit, or after loading those of one."""
        return len(self.cell_keys) > 0

    @property
    def out_features(self) -> int:
        """The number of target columns, D."""
        self._check_fitted()
        return self.location.shape[1]

    def statistics(self) -> CellTable:
        """A copy of the statistics, for reports."""
        self._check_fitted()
        total = self._moments().total()
        ids = dict(zip(self.cardinalities, self._layout.ids(self.cell_keys), strict=True))
        count, mean = self.cell_count.clone(), self.cell_mean.clone()
        count[0], mean[0] = total.count[0], total.mean[0]
        return CellTable(ids, count, mean, self.location.clone(), self.scale.clone())

    def _check_fitted(self) -> None:
        if not self.is_fitted:
            raise RuntimeError(
                f"this {type(self).__name__} has no statistics yet; call fit(target, categories) on the training rows, "
                "or load a state_dict"
            )

    def _moments(self) -> GroupStatistics:
        return GroupStatistics(*(getattr(self, name).cpu() for name in _MOMENTS))

    def _adopt(self, statistics: GroupStatistics, *, complete: bool = False) -> Self:
        """Take over ``statistics`` and what follows from them, all of it or nothing."""
        moments = [part.cpu() for part in statistics.parts]
        if complete and not moments[1].any(dim=0).all():
            refuse_empty_column(int((~moments[1].any(dim=0)).nonzero()[0]))
        if moments[0][0] != 0:  # rows in no cell have key 0; there may be none, but row 0 is the population's
            moments = [torch.cat([t.new_zeros(1, *t.shape[1:]), t]) for t in moments]
        # On the CPU, where sums have one order: the same rows give the same statistics on every device.
        estimates = estimate(GroupStatistics(*moments), self._layout, self.shrinkage, self.fallback)
        derived = (getattr(estimates, name) for name in _ESTIMATES)
        device = self.cell_keys.device
        for name, tensor in zip(_STATE, (*moments, *derived), strict=True):
            setattr(self, name, tensor.to(device))
        self._refresh()
        return self

    @torch.no_grad()
    def _refresh(self) -> None:
        """Rebuild what is looked up from the statistics: where there are few keys, a table over all of them."""
        self._warned = False
        self.dense_location = self.dense_scale = self.dense_sampled = None
        if self.cardinalities and self.is_fitted and self._layout.size * self.location.shape[1] <= _DENSE_LIMIT:
            keys = torch.arange(self._layout.size, device=self.cell_keys.device)
            ids, rows = self._layout.ids(keys), torch.zeros_like(keys)
            rows[self.cell_keys] = torch.arange(len(self.cell_keys), device=keys.device)  # as _rows, without a search
            self.dense_location, self.dense_scale = self._resolve(rows, ids)
            self.dense_sampled = self._is_sampled(rows, ids)
            # Nothing to warn of, and no row to look at, where every cell has training rows.
            self._warned = reads_values(keys) and bool(self.dense_sampled.all())

    def _ids(self, categories: Categories | None, lead: torch.Size, name: str) -> list[Tensor]:
        """The ids of each column with as many dimensions as ``lead``, the leading ones of the argument ``name``."""
        if not self.cardinalities:
            return []
        columns = check_ids(categories, self.cardinalities, type(self).__name__)
        for column, ids in zip(self.cardinalities, columns, strict=True):
            if ids.ndim > len(lead):
                raise ValueError(
                    f"categories[{column!r}] has shape {tuple(ids.shape)}, but {name} has only the leading dimensions "
                    f"{tuple(lead)} before its D columns; use {name}.unsqueeze(-1) if D = 1"
                )
            check_prefix(f"categories[{column!r}]", ids, f"{name} without its columns", lead)
        return [ids.to(torch.int64)[(..., *(None,) * (len(lead) - ids.ndim))] for ids in columns]

    def _cells_of(self, ids: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Location and scale of each row, in shapes that broadcast to ``(*, D)``."""
        if not ids:
            return self.location[0], self.scale[0]
        keys = self._layout.keys(ids)
        if self.dense_location is None or self.dense_scale is None:
            return self._resolve(self._rows(keys), ids)
        return _take(self.dense_location, keys), _take(self.dense_scale, keys)

    def _rows(self, keys: Tensor) -> Tensor:
        """The row of each key in the statistics; 0, the population's, where it has none."""
        rows = torch.searchsorted(self.cell_keys, keys).clamp(max=len(self.cell_keys) - 1)
        found = _take(self.cell_keys.unsqueeze(1), rows).squeeze(-1)
        return torch.where(found == keys, rows, 0)

    def _resolve(self, rows: Tensor, ids: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Location and scale of rows of the statistics, with the fallback where a cell was never sampled."""
        location, scale = _take(self.location, rows), _take(self.scale, rows)
        if self.fallback == "additive":
            known, fitted = torch.zeros_like(location, dtype=torch.bool), self.effects[0]
            for at in self._layout.effect_rows(ids):
                effect = _take(self.effects, at)
                known, fitted = known | ~effect.isnan(), fitted + effect.nan_to_num()
            known = known & (rows == 0).unsqueeze(-1)
            location = torch.where(known, fitted, location)
            scale = torch.where(known, self.effect_scale, scale)
        return location, scale

    def _is_sampled(self, rows: Tensor, ids: Sequence[Tensor]) -> Tensor:
        """False for a cell without training rows; a row in no cell was warned about by whoever set its id to 0."""
        return (rows > 0) | (self._layout.cell_keys(ids) == 0)

    def _warn_never_sampled(self, ids: Sequence[Tensor], stacklevel: int) -> None:
        if self._warned or not ids or not reads_values(ids[0]):
            return
        keys = self._layout.keys(ids)
        flat = keys.reshape(-1)
        if self.dense_sampled is None:
            sampled = self._is_sampled(self._rows(keys), ids).reshape(-1)
        else:
            sampled = self.dense_sampled.index_select(0, flat)
        if sampled.all():
            return
        distinct = torch.unique(flat[~sampled])
        examples = [
            "(" + ", ".join(f"{c}={int(i)}" for c, i in zip(self.cardinalities, row, strict=True)) + ")"
            for row in zip(*self._layout.ids(distinct[:3]), strict=True)
        ]
        self._warned = True
        warnings.warn(
            f"{int((~sampled).sum())} rows are in {len(distinct)} cells that had no training rows, such as "
            f"{', '.join(examples)}; they are normalized by fallback={self.fallback!r} (said once)",
            UnseenCategoryWarning,
            stacklevel=stacklevel,
        )

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        """Take the sizes of what is loaded: D and the number of cells are not known before a fit."""
        present = self._present(state_dict, prefix, _STATE)
        refuse_a_part(present, prefix, _STATE)
        if present:
            self._check_shapes(present)
            self._resize(present)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
        if present:
            self._refresh()

    def _check_shapes(self, state: Mapping[str, Tensor]) -> None:
        shape = state["cell_mean"].shape
        levels = self._layout.levels if self.fallback == "additive" and len(state["cell_keys"]) else 0
        expected = dict.fromkeys(_STATE, shape) | {
            "cell_keys": shape[:1],
            "effects": torch.Size((levels, *shape[1:])),
            "effect_scale": shape[1:],
        }
        for name, tensor in state.items():
            if tensor.shape != expected[name]:
                raise ValueError(
                    f"the state_dict's {name} must have shape {tuple(expected[name])} to go with cell_mean, "
                    f"got {tuple(tensor.shape)}"
                )
        keys, scale = state["cell_keys"], state["scale"]
        if keys.is_meta or not len(keys):
            return
        # They are searched in, and say where to look in tables.
        if keys[0] != 0 or keys[-1] >= self._layout.size or not (keys.diff() > 0).all():
            raise ValueError(
                f"the state_dict's cell_keys must be 0 and increasing numbers below {self._layout.size}, the number of "
                "cells; it was changed, or describes other cardinalities"
            )
        if (scale <= 0).any():
            raise ValueError(f"the state_dict's scale must be positive, got {scale.min().item():g}")


def _take(table: Tensor, rows: Tensor) -> Tensor:
    """``table[rows]``, also for a single row under vmap.

    A one-dimensional ``index_select`` is 5 times faster than one of rows of size 1.
    """
    narrow = table.reshape(-1) if table.shape[1] == 1 else table
    return narrow.index_select(0, rows.reshape(-1)).reshape(*rows.shape, table.shape[1])
