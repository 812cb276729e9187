"""The sums and the solution of a mixed model as buffers: how they are adopted, moved, loaded and looked up."""

from collections.abc import Mapping
from typing import Any, Self

import torch
from torch import Tensor

from reghead._checks import check_ids, check_prefix
from reghead._persistence import SelfDescribingStatistics, refuse_a_part
from reghead._typing import Categories
from reghead.normalization._mixed_layout import EffectLayout
from reghead.normalization._mixed_rows import Scaling
from reghead.normalization._mixed_solve import Equations, solve
from reghead.normalization._mixed_sums import MixedSums, independent_basis, scaled_basis
from reghead.normalization._reml import estimate_ratios
from reghead.normalization._transform import TargetTransform

MAX_LEVELS = 2_000
_SUMS = ("cell_keys", "level_ids", "cell_count", "cell_features", "cell_target", "gram", "moment", "square")
_SCALING = ("target_center", "target_scale", "feature_center", "feature_scale")
_VARIANCES = ("residual_variance", "ratios")
_SOLUTION = ("basis", "coefficients", "level_effects", "cell_effects", "cell_share", "inverse_matrix")
_STATE = _SUMS + _SCALING + _VARIANCES + _SOLUTION
_INTEGERS = ("cell_keys", "level_ids")
_DIMS = dict.fromkeys(_STATE, 2) | {
    **dict.fromkeys(("cell_features", "gram", "basis", "inverse_matrix"), 3),
    **dict.fromkeys((*_INTEGERS, *_SCALING, "square", "residual_variance"), 1),
}


class MixedState(SelfDescribingStatistics):
    """Sums of the rows, variance components, effects, and the prediction that follows from them.

    The sums allow more rows to be added. The solution is kept beside them, not recomputed, so that a loaded module
    answers as the saved one did.
    """

    cell_keys: Tensor
    level_ids: Tensor
    cell_count: Tensor
    cell_features: Tensor
    cell_target: Tensor
    gram: Tensor
    moment: Tensor
    square: Tensor
    target_center: Tensor
    target_scale: Tensor
    feature_center: Tensor
    feature_scale: Tensor
    residual_variance: Tensor
    ratios: Tensor
    basis: Tensor
    coefficients: Tensor
    level_effects: Tensor
    cell_effects: Tensor
    cell_share: Tensor
    inverse_matrix: Tensor

    def __init__(
        self,
        cardinalities: Mapping[str, int],
        *,
        cells: tuple[str, ...],
        shrink_features: bool,
        transform: TargetTransform,
    ) -> None:
        super().__init__()
        # Sorted, so that the same columns in another order make the same keys.
        self.cardinalities = dict(sorted(cardinalities.items()))
        self.cells = cells
        self.shrink_features = shrink_features
        self.transform = transform
        self._layout = EffectLayout(self.cardinalities, cells)
        for name in _STATE:
            dtype = torch.int64 if name in _INTEGERS else torch.float64
            self.register_buffer(name, torch.zeros((0,) * _DIMS[name], dtype=dtype))

    @property
    def is_fitted(self) -> bool:
        """Whether there are statistics: after a fit, or after loading those of one."""
        return len(self.cell_keys) > 0

    @property
    def out_features(self) -> int:
        """The number of target columns, D."""
        self._check_fitted()
        return len(self.target_scale)

    @property
    def in_features(self) -> int:
        """The number of features, 0 for a model with an intercept alone."""
        self._check_fitted()
        return len(self.feature_scale)

    def _check_fitted(self) -> None:
        if not self.is_fitted:
            raise RuntimeError(
                f"this {type(self).__name__} has no statistics yet; call fit(target, categories) on the training rows, "
                "or load a state_dict"
            )

    def extra_repr(self) -> str:
        """The options, and the sizes of what was fitted."""
        bounds = f", bounds={self.transform.bounds}" if self.transform.bounds is not None else ""
        fitted = "not fitted"
        if self.is_fitted:
            levels, cells = len(self.level_ids) - 1, len(self.cell_keys) - 1
            fitted = f"{self.in_features} features, {levels} levels, {cells} cells"
        return (
            f"{self.cardinalities}, cells={self.cells}, shrink_features={self.shrink_features}, "
            f"transform={self.transform.kind!r}{bounds}, {fitted}"
        )

    def _describe(self) -> dict[str, Any]:
        return {
            "cardinalities": self.cardinalities,
            "cells": list(self.cells),
            "shrink_features": self.shrink_features,
            "transform": self.transform.kind,
            "bounds": None if self.transform.bounds is None else list(self.transform.bounds),
        }

    @classmethod
    def _from_description(cls, description: Mapping[str, Any]) -> Self:
        names = ("cardinalities", "cells", "shrink_features", "transform", "bounds")
        if sorted(description) != sorted(names):
            raise ValueError(
                f"the description of a {cls.__name__} must have {', '.join(names)}, got {sorted(description)}"
            )
        return cls(**description)

    def _sums(self) -> MixedSums:
        return MixedSums(*(getattr(self, name).cpu() for name in _SUMS))

    def _accumulate(
        self, ids: list[Tensor], target: Tensor, weight: Tensor, features: Tensor, scaling: Scaling
    ) -> MixedSums:
        """The sums of rows on the CPU, whose target is standardised and whose features, shape ``(R, F)``, are not."""

        def standard(rows: slice) -> Tensor:
            return (features[rows] - scaling.feature_center) / scaling.feature_scale

        keys = self._layout.cell_keys(ids) if ids else torch.zeros(len(target), dtype=torch.int64)
        levels = self._layout.level_ids(ids)
        self._check_levels(torch.unique(torch.cat([keys.new_zeros(1), *levels])))  # before there are sums of them
        return MixedSums.from_rows(keys, levels, standard, target, weight)

    def _check_levels(self, level_ids: Tensor) -> None:
        if len(level_ids) - 1 > MAX_LEVELS:
            columns = ", ".join(map(repr, self._layout.columns))
            cells = " and their cells" if self._layout.factors > len(self._layout.columns) else ""
            raise ValueError(
                f"{type(self).__name__} estimates by exact REML up to {MAX_LEVELS:,} sampled levels of {columns}"
                f"{cells} together, got {len(level_ids) - 1:,}; a single column, and the combinations of all columns, "
                "may have any number, so leave one out, or join rare levels"
            )

    def _equations(self, sums: MixedSums, prior: Tensor | None) -> tuple[list[Equations], Tensor]:
        """The equations of each target column, and the bases of the features, given those of an earlier fit if any."""
        self._check_levels(sums.level_ids)
        size, width = len(sums.level_ids), 1 + sums.features.shape[2]
        levels = self._layout.level_ids_of_cells(sums.keys)
        levels = [torch.searchsorted(sums.level_ids, level) for level in levels]
        components = len(self._layout.columns) + 2
        owners = torch.full((width + size,), -1)
        owners[width + 1 :] = self._layout.owners(sums.level_ids[1:])
        bases, result = [], []
        for g, (count, means) in enumerate(zip(sums.count, sums.design_means, strict=True)):
            total = sums.gram[g, :width, :width] + means.T @ (count.unsqueeze(1) * means)
            if not self.shrink_features:
                bases.append(independent_basis(total))
            else:  # in units of the first fit for ever: they are a part of the prior
                bases.append(scaled_basis(total) if prior is None else prior[g % len(prior)])
        for d in range(len(sums.square)):
            g = d % len(bases)
            basis, own = bases[g], owners.clone()
            has_rank = basis.any(dim=0)
            if self.shrink_features:
                own[1:width] = torch.where(has_rank[1:], components - 1, -1)
            gram, moment = sums.gram[g].clone(), sums.moment[d].clone()
            gram[:width] = basis.T @ gram[:width]
            gram[:, :width] = gram[:, :width] @ basis
            moment[:width] = basis.T @ moment[:width]
            result.append(
                Equations(
                    gram=gram,
                    moment=moment,
                    square=sums.square[d],
                    count=sums.count[g],
                    features=sums.design_means[g] @ basis,
                    target=sums.target[d],
                    levels=tuple(levels),
                    owners=own,
                    components=components,
                    cells=components - 2,
                    fixed=int((has_rank & (own[:width] < 0)).sum()),
                )
            )
        return result, torch.stack(bases)

    def _adopt(self, sums: MixedSums, scaling: Scaling, variances: tuple[Tensor, Tensor, Tensor] | None = None) -> Self:
        """Take over ``sums`` and what follows from them, all of it or nothing; estimate the variances if not given."""
        systems, bases = self._equations(sums, None if variances is None else variances[2])
        for d, system in enumerate(systems):
            if system.free <= 0:
                raise ValueError(
                    f"fit needs more rows than fixed effects, intercept included, but the weights of column {d} sum to "
                    f"{float(sums.total[d]):g} for {system.fixed}; weights are frequencies, and features that are "
                    "shrunk are no fixed effects"
                )
        ratios = torch.stack([estimate_ratios(s) for s in systems]) if variances is None else variances[1]
        solutions = [solve(system, ratio) for system, ratio in zip(systems, ratios, strict=True)]
        if variances is None:
            constant = torch.stack([s.square + (s.count * s.target.square()).sum() for s in systems]) == 0
            residual = torch.where(constant, 1.0, torch.stack([s.variance for s in solutions]))
        else:
            residual = variances[0]
        width, cells = bases.shape[1], ratios[:, -2:-1]
        share = cells / (1 + cells * sums.count)
        share[:, 0] = 0.0
        state = (
            *sums.parts,
            *scaling,
            residual,
            ratios,
            bases,
            torch.stack([bases[d % len(bases)] @ s.effects[:width] for d, s in enumerate(solutions)]),
            torch.stack([s.effects[width:] for s in solutions], dim=1),
            torch.stack([s.cell_effects for s in solutions], dim=1),
            share,
            torch.stack([s.inverse for s in solutions]),
        )
        device = self.cell_keys.device
        for name, tensor in zip(_STATE, state, strict=True):
            setattr(self, name, tensor.to(device))
        return self

    def _ids(self, categories: Categories | None, lead: torch.Size, name: str) -> list[Tensor]:
        """The ids of each column, flat, one per row of the argument ``name``, whose leading dimensions are ``lead``."""
        if not self.cardinalities:
            return []
        columns = check_ids(categories, self.cardinalities, type(self).__name__)
        for column, ids in zip(self.cardinalities, columns, strict=True):
            if ids.ndim > len(lead):
                raise ValueError(
                    f"categories[{column!r}] has shape {tuple(ids.shape)}, but {name} has only the leading dimensions "
                    f"{tuple(lead)} before its columns; use {name}.unsqueeze(-1) if there is one"
                )
            check_prefix(f"categories[{column!r}]", ids, f"{name} without its columns", lead)
        return [
            ids.to(torch.int64)[(..., *(None,) * (len(lead) - ids.ndim))].expand(lead).reshape(-1) for ids in columns
        ]

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        """Take the sizes of what is loaded: those of the data are not known before a fit."""
        present = self._present(state_dict, prefix, _STATE)
        refuse_a_part(present, prefix, _STATE)
        if present:
            self._check_shapes(present)
            self._resize(present)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def _check_shapes(self, state: Mapping[str, Tensor]) -> None:
        for name, tensor in state.items():
            if tensor.ndim != _DIMS[name]:
                raise ValueError(f"the state_dict's {name} must have {_DIMS[name]} dimensions, got {tensor.ndim}")
        k, size, d, f = (len(state[name]) for name in ("cell_keys", "level_ids", "target_scale", "feature_scale"))
        g, p, c = len(state["gram"]), (f + 1) * min(k, 1), (len(self._layout.columns) + 2) * min(k, 1)
        expected = {
            "cell_features": (g, k, f),
            "cell_count": (g, k),
            **dict.fromkeys(("cell_target", "cell_share"), (d, k)),
            "gram": (g, p + size, p + size),
            "basis": (g, p, p),
            "moment": (d, p + size),
            "coefficients": (d, p),
            **dict.fromkeys(("square", "target_center", "residual_variance"), (d,)),
            "feature_center": (f,),
            "ratios": (d, c),
            "level_effects": (size, d),
            "cell_effects": (k, d),
            "inverse_matrix": (d, p + size, p + size),
        }
        for name, shape in expected.items():
            if tuple(state[name].shape) != shape:
                raise ValueError(
                    f"the state_dict's {name} must have shape {shape} to go with its other statistics, "
                    f"got {tuple(state[name].shape)}"
                )
