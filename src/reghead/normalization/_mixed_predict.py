"""What a fitted mixed model says of new rows: the mean, and how much of it is not known."""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from reghead._checks import check_choice, check_floating
from reghead._typing import Categories
from reghead.normalization._mixed_rows import flat_features
from reghead.normalization._mixed_solve import quadratic_form
from reghead.normalization._mixed_state import MixedState

_BLOCK = 1 << 15  # pragma: no mutate
# A row with no more than this of its own variance left determines its own prediction.
_ALONE = 1e-9
# What is gathered for a row at a time.
_SAMPLES_AT_ONCE = 16  # pragma: no mutate


class Rows(NamedTuple):
    """Rows of a call, flat: the level of each factor and the eliminated cell, 0 for unknown, and the design."""

    levels: list[Tensor]
    cell: Tensor
    design: Tensor


class MixedPrediction(NamedTuple):
    """What a mixed model expects, and the standard deviation of a new row around it, on the transform's scale."""

    mean: Tensor
    std: Tensor


@dataclass(frozen=True)
class MixedStatistics:
    """What a mixed model estimated, on the scale of the target transform.

    Args:
        intercept: The mean at features of 0 and unknown categories. Shape ``(D,)``.
        coefficients: Per unit of each feature. Shape ``(D, F)``.
        effects: Column -> effect of each id, 0 for ids without training rows. Shape ``(cardinality, D)``.
        variances: Column -> variance of its effects. Shape ``(D,)``.
        feature_variance: Of the coefficients of features in units of their standard deviation; infinite for those that
            are not shrunk. Shape ``(D,)``.
        cell_variance: Of the effects of combinations of columns. Shape ``(D,)``.
        residual_variance: Shape ``(D,)``.
    """

    intercept: Tensor
    coefficients: Tensor
    effects: dict[str, Tensor]
    variances: dict[str, Tensor]
    feature_variance: Tensor
    cell_variance: Tensor
    residual_variance: Tensor


class MixedPredictor(MixedState):
    """The look-up of rows, and the predictions of the model itself."""

    def predict(self, categories: Categories | None = None, features: Tensor | None = None) -> MixedPrediction:
        """The model's own prediction, without a network: mean and standard deviation of u = g(y) for new rows.

        Args:
            categories: Column -> ids. Shape ``(*,)``, or a prefix of it.
            features: Shape ``(*, F)``, if the model was fitted with features.

        Returns:
            In float64, shape ``(*, D)``. The target's own units under ``transform="identity"``.
        """
        self._check_fitted()
        shapes = [] if features is None else [features.shape[:-1]]
        if not shapes and categories is not None:
            shapes = [categories[column].shape for column in self.cardinalities if column in categories]
        lead = max(shapes, key=len, default=torch.Size())
        name = "the rows" if features is None else "features"
        flat = self._features(features, lead, name)
        ids = self._ids(categories, lead, name)
        rows = self._rows(ids, flat, math.prod(lead))
        mean, sigma = self._location(rows)
        std = sigma * self._ratio(rows)
        return MixedPrediction(mean.reshape(*lead, -1), std.reshape(*lead, -1))

    def statistics(self) -> MixedStatistics:
        """A copy of what was estimated, for reports."""
        self._check_fitted()
        scale, variance = self.target_scale, self.target_scale.square() * self.residual_variance
        coefficients = scale.unsqueeze(1) * self.coefficients[:, 1:] / self.feature_scale
        components = self.ratios * variance.unsqueeze(1)
        effects, variances, cell_variance = {}, {}, components[:, -2].clone()
        several = self._layout.columns
        for f, (column, cardinality) in enumerate(self.cardinalities.items()):
            ids = [torch.zeros(cardinality, dtype=torch.int64, device=scale.device)] * len(self.cardinalities)
            ids[f] = torch.arange(cardinality, device=scale.device)
            rows = self._rows(ids, None, cardinality)
            table = self.level_effects[rows.levels[f]] if several else self.cell_effects[rows.cell]
            effects[column] = scale * table
            variances[column] = components[:, f].clone() if several else cell_variance
        if not several and self.cardinalities:
            cell_variance = torch.zeros_like(cell_variance)
        return MixedStatistics(
            intercept=self.target_center + scale * self.coefficients[:, 0] - coefficients @ self.feature_center,
            coefficients=coefficients,
            effects=effects,
            variances=variances,
            feature_variance=components[:, -1].clone() if self.shrink_features else torch.full_like(scale, torch.inf),
            cell_variance=cell_variance,
            residual_variance=variance.clone(),
        )

    def _location(self, rows: Rows) -> tuple[Tensor, Tensor]:
        """The mean of each row, and the residual standard deviation, on the scale of the transform."""
        mean = self.target_center + self.target_scale * self._mean(rows)
        return mean, self.target_scale * self.residual_variance.sqrt()

    def _ratio(self, rows: Rows) -> Tensor:
        """The standard deviation of a new row over the residual one."""
        estimated, unknown = self._uncertainty(rows)
        return (1 + estimated + unknown).sqrt()

    def _prepare(
        self, name: str, tensor: Tensor, categories: Categories | None, features: Tensor | None, output_dim: int
    ) -> tuple[list[Tensor], Tensor | None]:
        """Check the arguments of a call, and return the ids and the features of its rows, flat."""
        self._check_fitted()
        check_floating(name, tensor)
        check_choice("output_dim", output_dim, (-1, -2))
        columns = len(self.target_scale)
        if tensor.ndim < -output_dim or tensor.shape[output_dim] != columns:
            shape = "(*, D)" if output_dim == -1 else "(*, D, Q)"
            hint = f"; use {name}.unsqueeze(-1)" if tensor.ndim == 1 and columns == 1 and output_dim == -1 else ""
            raise ValueError(f"{name} must have shape {shape} with D = {columns}, got {tuple(tensor.shape)}{hint}")
        lead = tensor.shape[:output_dim]
        return self._ids(categories, lead, name), self._features(features, lead, name)

    def _look_up(
        self, name: str, tensor: Tensor, categories: Categories | None, features: Tensor | None, output_dim: int
    ) -> Rows:
        ids, flat = self._prepare(name, tensor, categories, features, output_dim)
        return self._rows(ids, flat, math.prod(tensor.shape[:output_dim]))

    def _features(self, features: Tensor | None, lead: torch.Size, of: str) -> Tensor | None:
        expected = len(self.feature_scale)
        if features is None:
            if expected:
                raise ValueError(f"this {type(self).__name__} was fitted with {expected} features; pass features")
            return None
        flat = flat_features(features, lead, of)
        if flat.shape[1] != expected:
            raise ValueError(f"features must have F = {expected} columns, as in fit, got {tuple(features.shape)}")
        return flat

    def _rows(self, ids: list[Tensor], features: Tensor | None, rows: int) -> Rows:
        """Look up the levels and the cells of the rows; ``features`` are flat."""
        ones = self.target_center.new_ones(rows, 1)
        design = ones
        if features is not None:
            standard = (features.to(torch.float64) - self.feature_center) / self.feature_scale
            design = torch.cat([ones, standard], dim=1)
        if not ids:
            return Rows([], torch.zeros_like(ones[:, 0], dtype=torch.int64), design)
        levels = [_position(self.level_ids, level) for level in self._layout.level_ids(ids)]
        keys = self._layout.profile_keys(ids) if self._iterates else self._layout.cell_keys(ids)
        return Rows(levels, _position(self.cell_keys, keys), design)

    def _mean(self, rows: Rows) -> Tensor:
        """What the model expects of the standardised target. Shape ``(R, D)``."""
        mean = rows.design @ self.coefficients.T + self.cell_effects.index_select(0, rows.cell)
        for level in rows.levels:
            mean = mean + self.level_effects.index_select(0, level)
        return mean

    def _without_each(self, values: Tensor, weights: Tensor, ids: list[Tensor], features: Tensor | None) -> Tensor:
        """Errors of the predictions of flat rows from all others, over their standard deviations. Shape ``(R, D)``."""
        result = torch.empty_like(values)
        # The larger the ratios, the fewer digits there are of what is left of 1.
        alone = (1e4 * torch.finfo(torch.float64).eps * self.ratios.amax(1)).clamp(min=_ALONE)
        for start in range(0, len(values), _BLOCK):
            at = slice(start, start + _BLOCK)
            part = [i[at] for i in ids]
            rows = self._rows(part, None if features is None else features[at], len(values[at]))
            estimated, unknown = self._uncertainty(rows)
            error = (values[at] - self.target_center) / self.target_scale - self._mean(rows)
            left = 1 - weights[at].clamp(max=1.0) * estimated
            if self._iterates:
                # Corrected, what is left of a row that is a whole profile is right to digits; of others it may come out
                # as less than nothing.
                whole = weights[at] == self.cell_count.index_select(1, rows.cell).T
                left = torch.where(whole, left, left.clamp(min=1 / self.samples.shape[2]))
            error, left = torch.where(left > alone, error, 0.0), torch.where(left > alone, left, 1.0)
            spread = self.residual_variance * (1 + estimated / left + unknown)
            result[at] = error / left / spread.sqrt()
        return result

    def _uncertainty(self, rows: Rows) -> tuple[Tensor, Tensor]:
        r"""The variance of the model's mean by what was estimated and by what is unknown, in units of :math:`\sigma^2`.

        The first is :math:`t^\top M^{-1} t` of the effects that the row has, the second the variance components of
        those that it lacks. Both of shape ``(R, D)``.
        """
        estimated, unknown, ones = [], [], torch.ones_like(rows.design[:, :1])
        for d in range(len(self.target_scale)):
            g, roots = d % len(self.basis), self.ratios[d].sqrt()
            share = self.cell_share[d].index_select(0, rows.cell)
            # What the effect of the cell takes of the mean of its rows.
            taken = share * self.cell_count[g].index_select(0, rows.cell)
            means = torch.cat([ones, self.cell_features[g].index_select(0, rows.cell)], dim=1)
            design = rows.design - taken.unsqueeze(1) * means
            if self._iterates:
                form = self._sampled_form(d, rows, design, 1 - taken)
            else:
                fixed = design @ self.basis[g]
                if self.shrink_features:
                    fixed = torch.cat([fixed[:, :1], roots[-1] * fixed[:, 1:]], dim=1)
                pairs = zip(rows.levels, roots, strict=False)  # there are more components than factors
                factors = [torch.where(level > 0, root, 0.0) * (1 - taken) for level, root in pairs]
                form = quadratic_form(self.inverse_matrix[d], fixed, rows.levels, factors)
            lacking = torch.zeros_like(share)
            for level, ratio in zip(rows.levels, self.ratios[d], strict=False):
                lacking = lacking + torch.where(level > 0, 0.0, ratio)
            if self._layout.eliminates:
                # A profile may lack a cell; a known cell without a share has no component either.
                known = share > 0 if self._iterates else rows.cell > 0
                lacking = lacking + torch.where(known, 0.0, self.ratios[d, -2])
            estimated.append(share + form)
            unknown.append(lacking)
        return torch.stack(estimated, dim=1), torch.stack(unknown, dim=1)

    def _sampled_form(self, d: int, rows: Rows, design: Tensor, factor: Tensor) -> Tensor:
        """The variance of a row's effects, each level's times ``factor``, by the samples. Shape ``(R,)``."""
        width, total = design.shape[1], torch.zeros_like(factor)
        for part in torch.split(self.samples[d], _SAMPLES_AT_ONCE, dim=1):
            error = design @ part[:width]
            for level in rows.levels:
                error = error + factor.unsqueeze(1) * part[width:].index_select(0, level)
            total = total + error.square().sum(dim=1)
        return self.corrections[d].index_select(0, rows.cell) * total


def _position(known: Tensor, wanted: Tensor) -> Tensor:
    """Where each integer is among ``known``, which is sorted and starts with 0; 0 for those that are not there."""
    at = torch.searchsorted(known, wanted).clamp(max=len(known) - 1)
    return torch.where(known.index_select(0, at) == wanted, at, 0)
