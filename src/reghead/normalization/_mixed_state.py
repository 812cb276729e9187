"""The sums and the solution of a mixed model as buffers: how they are adopted, moved, loaded and looked up."""

from collections.abc import Mapping, Sequence
from typing import Any, Self

import torch
from torch import Tensor

from reghead._checks import check_ids, check_prefix
from reghead._persistence import SelfDescribingStatistics, refuse_a_part
from reghead._typing import Categories
from reghead.normalization._mixed_fit import Fitted, Variances, fit_by_iteration, fit_exactly
from reghead.normalization._mixed_layout import EffectLayout
from reghead.normalization._mixed_rows import Scaling
from reghead.normalization._mixed_sums import MixedSums
from reghead.normalization._transform import TargetTransform

# Sampled levels of the factors that are not eliminated, up to which the equations have a dense matrix.
MAX_LEVELS = 2_000
_SUMS = ("cell_keys", "level_ids", "cell_count", "cell_features", "cell_target", "gram", "moment", "square")
_STATE = tuple(dict.fromkeys((*_SUMS, *Scaling._fields, *Fitted._fields)))
_INTEGERS = ("cell_keys", "level_ids")
_DIMS = dict.fromkeys(_STATE, 2) | {
    **dict.fromkeys(("cell_features", "gram", "basis", "inverse_matrix", "samples"), 3),
    **dict.fromkeys((*_INTEGERS, *Scaling._fields, "square", "residual_variance"), 1),
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
    samples: Tensor
    corrections: Tensor

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
            found = f"{cells} profiles, iterated" if self._iterates else f"{cells} cells"
            fitted = f"{self.in_features} features, {levels} levels, {found}"
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

    @property
    def _iterates(self) -> bool:
        """Whether the equations were too large for a dense matrix, and the sums are by profile."""
        return self.samples.shape[2] > 0

    def _sums(self) -> MixedSums:
        parts = {name: getattr(self, name).cpu() for name in _SUMS}
        if self._iterates:  # the levels of profiles have no sums of their own
            parts["level_ids"] = parts["level_ids"][:1]
        return MixedSums(**dict(zip(MixedSums.__dataclass_fields__, parts.values(), strict=True)))

    def _is_large(self, ids: list[Tensor]) -> bool:
        """Whether the rows have more levels than there is a dense matrix for."""
        levels = self._layout.level_ids(ids)
        return bool(levels) and _sampled(levels) > MAX_LEVELS

    def _check_levels(self, ids: list[Tensor]) -> None:
        """Raise if more rows bring a model with a dense matrix to more levels than there is one for."""
        found = _sampled([self.level_ids.cpu(), *self._layout.level_ids(ids)])
        if found > MAX_LEVELS:
            columns = ", ".join(map(repr, self._layout.columns))
            raise ValueError(
                f"update would bring the sampled levels of {columns} to {found:,}, but this {type(self).__name__} was "
                f"fitted with a dense matrix, which is for up to {MAX_LEVELS:,}; fit again on all rows"
            )

    def _accumulate(
        self,
        ids: list[Tensor],
        target: Tensor,
        weight: Tensor,
        features: Tensor,
        scaling: Scaling,
        *,
        iterate: bool,
    ) -> MixedSums:
        """The sums of rows on the CPU, whose target is standardised and whose features, shape ``(R, F)``, are not."""

        def standard(rows: slice) -> Tensor:
            return (features[rows] - scaling.feature_center) / scaling.feature_scale

        if iterate:
            return MixedSums.from_rows(self._layout.profile_keys(ids), [], standard, target, weight)
        keys = self._layout.cell_keys(ids) if ids else torch.zeros(len(target), dtype=torch.int64)
        return MixedSums.from_rows(keys, self._layout.level_ids(ids), standard, target, weight)

    def _adopt(self, sums: MixedSums, scaling: Scaling, *, iterate: bool, variances: Variances | None = None) -> Self:
        """Take over ``sums`` and what follows from them, all of it or nothing; estimate the variances if not given."""
        solve = fit_by_iteration if iterate else fit_exactly
        fitted = solve(self._layout, sums, self.shrink_features, variances)
        device = self.cell_keys.device
        state = dict(zip(_SUMS, sums.parts, strict=True)) | scaling._asdict() | fitted._asdict()
        for name, tensor in state.items():
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
        g, p, c = len(state["gram"]), (f + 1) * min(k, 1), self._layout.components * min(k, 1)
        probes = state["samples"].shape[2]
        # With samples the sums have no levels, and there is no matrix.
        sums, matrix, drawn, of = (p + 1, 0, p + size, k) if probes else (p + size, p + size, 0, 0)
        expected = {
            "cell_features": (g, k, f),
            "cell_count": (g, k),
            **dict.fromkeys(("cell_target", "cell_share"), (d, k)),
            "gram": (g, sums, sums),
            "basis": (g, p, p),
            "moment": (d, sums),
            "coefficients": (d, p),
            **dict.fromkeys(("square", "target_center", "residual_variance"), (d,)),
            "feature_center": (f,),
            "ratios": (d, c),
            "level_effects": (size, d),
            "cell_effects": (k, d),
            "inverse_matrix": (d, matrix, matrix),
            "samples": (d, drawn, probes),
            "corrections": (d, of),
        }
        for name, shape in expected.items():
            if tuple(state[name].shape) != shape:
                raise ValueError(
                    f"the state_dict's {name} must have shape {shape} to go with its other statistics, "
                    f"got {tuple(state[name].shape)}"
                )


def _sampled(levels: Sequence[Tensor]) -> int:
    """The number of different levels, without the unknown one."""
    return len(torch.unique(torch.cat([levels[0].new_zeros(1), *levels]))) - 1
