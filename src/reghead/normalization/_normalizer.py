"""Normalization of targets by category, and its inverse."""

import zlib
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Self

import torch
import torch.distributed as dist
from torch import Tensor

from reghead._checks import (
    check_cardinalities,
    check_choice,
    check_columns,
    check_floating,
    check_last_dim,
    check_prefix,
    reads_values,
)
from reghead._reduction import trailing
from reghead._typing import Categories
from reghead.categories import GroupStatistics
from reghead.config import NormalizerConfig
from reghead.normalization._blocks import by_blocks
from reghead.normalization._gather import gather_statistics
from reghead.normalization._state import CellStatistics, refuse_empty_column
from reghead.normalization._transform import TargetTransform, TransformKind


class CategoryNormalizer(CellStatistics):
    r"""Normalizes targets by the mean and standard deviation of their cell, a combination of categories.

    .. math:: z = \frac{g(y) - \mu_k}{\sigma_k}, \qquad y = g^{-1}(\mu_k + \sigma_k z)

    Statistics are those of the training rows after the transform :math:`g`, per target column, in float64; a NaN
    target is missing in its column alone. Variances divide by :math:`n - 1`. A cell with one row, or without
    spread, takes the standard deviation pooled within cells; if that is zero the population's; if that is zero 1.
    Nothing is added to it, so the units of the target do not matter.

    A row with id 0 in any column counts for the population but forms no cell. A cell without training rows gets the
    ``fallback``, with a warning once after a fit or load.

    The module holds no parameters; its statistics are float64 and int64 buffers, which follow the module to a device
    and keep their dtype through ``half()`` and the like.

    Args:
        cardinalities: Column -> number of ids, id 0 included, of the columns whose combinations are the cells; order
            does not matter. None or empty: one mean and standard deviation for all rows.
        shrinkage: ``"none"``, or ``"empirical_bayes"``: the mean of a cell with n rows moves toward the prior, the
            population mean or the additive fit, by the weight :math:`\tau^2 / (\tau^2 + \sigma^2 / n)` with between
            and within variance by the method of moments (DerSimonian and Laird 1986), and its variance toward the
            pooled one by degrees of freedom (linear credibility, as Smyth 2004).
        fallback: For a cell without training rows. ``"global"``: the population's mean and standard deviation.
            ``"additive"``: main effects of the columns, by least squares over the cells weighted by their counts, and
            the pooled standard deviation; an unknown level counts as its column's average, and a row without any
            known level as the population.
        transform: The transform :math:`g`, see :class:`TargetTransform`.
        bounds: The bounds of ``transform="logit"``, in the target's units.

    Raises:
        ValueError: If an option is unknown, or the product of the cardinalities exceeds :math:`2^{62}`.

    Example:
        >>> import torch
        >>> from reghead.normalization import CategoryNormalizer
        >>> target = torch.tensor([[1.0], [3.0], [10.0], [14.0]])
        >>> categories = {"location": torch.tensor([1, 1, 2, 2])}
        >>> normalizer = CategoryNormalizer({"location": 3}).fit(target, categories)
        >>> normalizer.statistics().location.flatten()
        tensor([ 7.,  2., 12.], dtype=torch.float64)
        >>> z = normalizer(target, categories)
        >>> z.flatten()
        tensor([-0.7071,  0.7071, -0.7071,  0.7071])
        >>> normalizer.inverse(z, categories).flatten()
        tensor([ 1.,  3., 10., 14.])
    """

    def __init__(
        self,
        cardinalities: Mapping[str, int] | None = None,
        *,
        shrinkage: Literal["none", "empirical_bayes"] = "none",
        fallback: Literal["global", "additive"] = "global",
        transform: TransformKind = "identity",
        bounds: tuple[float, float] | None = None,
    ) -> None:
        check_choice("shrinkage", shrinkage, ("none", "empirical_bayes"))
        check_choice("fallback", fallback, ("global", "additive"))
        sizes = check_cardinalities("cardinalities", {} if cardinalities is None else cardinalities)
        super().__init__(sizes, shrinkage, fallback)
        self.transform = TargetTransform(transform, bounds)

    def extra_repr(self) -> str:
        """The options, and how many cells the statistics are of."""
        bounds = f", bounds={self.transform.bounds}" if self.transform.bounds is not None else ""
        fitted = f"{len(self.cell_keys) - 1} cells" if self.is_fitted else "not fitted"
        return (
            f"{self.cardinalities}, shrinkage={self.shrinkage!r}, fallback={self.fallback!r}, "
            f"transform={self.transform.kind!r}{bounds}, {fitted}"
        )

    def fit(self, target: Tensor, categories: Categories | None = None, *, weight: Tensor | None = None) -> Self:
        """Compute the statistics of the training rows, forgetting those of an earlier fit.

        Args:
            target: Targets in their own units; NaN is missing. Shape ``(*, D)`` with at least one leading dimension.
            categories: Column -> ids, shape ``(*,)`` or a prefix of it.
            weight: Frequency weights, where 2 means the row twice. Shape ``(*,)`` per row or ``(*, D)``.

        Raises:
            ValueError: If there are no rows, a column has no value, a value is infinite or outside the domain of the
                transform; nothing has changed then.
        """
        statistics = self._measure(target, categories, weight)
        if not target.numel():
            raise ValueError(
                f"fit needs at least one row, got target of shape {tuple(target.shape)}; "
                "partial_fit takes an empty shard"
            )
        if not len(statistics.keys):
            refuse_empty_column(0)
        return self._adopt(statistics, complete=True)

    def partial_fit(
        self, target: Tensor, categories: Categories | None = None, *, weight: Tensor | None = None
    ) -> Self:
        """Add rows to the statistics, as if they had been in the first fit; arguments as in :meth:`fit`.

        A shard without rows changes nothing. A target column that is NaN in all rows so far normalizes to NaN.
        """
        statistics = self._measure(target, categories, weight)
        if not len(statistics.keys):
            return self
        if self.is_fitted:
            check_last_dim("target", target, self.out_features, "D")
            statistics = self._moments().merge(statistics)
        return self._adopt(statistics)

    def merge(self, other: "CategoryNormalizer") -> Self:
        """Add the rows that ``other`` was fitted on, as if this module had seen them too.

        Raises:
            ValueError: If ``other`` has other options or another number of target columns.
        """
        if not isinstance(other, CategoryNormalizer):
            raise TypeError(f"merge needs a CategoryNormalizer, got {type(other).__name__}")
        if self._describe() != other._describe():
            raise ValueError(
                f"merge needs normalizers with the same options, got {self.extra_repr()} and {other.extra_repr()}"
            )
        if not other.is_fitted:
            return self
        return self._adopt(self._moments().merge(other._moments()) if self.is_fitted else other._moments())

    def all_reduce(self, group: "dist.ProcessGroup | None" = None) -> Self:
        """Merge the statistics of all processes, in the order of their ranks; the result is identical on all.

        Each process calls :meth:`partial_fit` with its own rows, which may be none, and then this once: a second call
        would count every row again. The buffers must be on a device that the group's backend serves.
        """
        fingerprint = zlib.crc32(repr(self._describe()).encode())
        moments = self._moments() if self.is_fitted else GroupStatistics.empty(0)
        return self._adopt(gather_statistics(moments, fingerprint, self.cell_keys.device, group), complete=True)

    def forward(self, target: Tensor, categories: Categories | None = None) -> Tensor:
        """Normalize ``target``.

        Args:
            target: Targets in their own units. Shape ``(*, D)``.
            categories: Column -> ids, shape ``(*,)`` or a prefix of it.

        Returns:
            z, in the shape and dtype of ``target``; the computation is in float64.
        """
        ids = self._prepare("target", target, categories, -1, stacklevel=6)

        def normalize(rows: Tensor, ids: Sequence[Tensor]) -> Tensor:
            location, scale = self._cells_of(ids)
            return (self.transform.forward(rows.to(torch.float64)) - location) / scale

        return by_blocks(normalize, target, ids, output_dim=-1, dtype=target.dtype)

    def inverse(
        self, preds: Tensor, categories: Categories | None = None, *, output_dim: Literal[-1, -2] = -1
    ) -> Tensor:
        """Predictions of z, points or quantiles, back in the target's own units.

        Quantiles stay quantiles and keep their order, as scales are positive and the transform increases. The mean is
        kept under ``transform="identity"`` alone.

        Args:
            preds: Shape ``(*, D)``, or ``(*, D, Q)`` with ``output_dim=-2``.
            categories: Column -> ids, shape ``(*,)`` or a prefix of it.
            output_dim: The dimension of the target columns.

        Returns:
            In the shape and dtype of ``preds``, float32 for half precision; the computation is in float64.
        """
        ids = self._prepare("preds", preds, categories, output_dim, stacklevel=4)

        def invert(rows: Tensor, ids: Sequence[Tensor]) -> Tensor:
            location, scale = (_spread(t, output_dim) for t in self._cells_of(ids))
            return self.transform.inverse(rows.to(torch.float64) * scale + location)

        return by_blocks(invert, preds, ids, output_dim=output_dim, dtype=_at_least_float32(preds))

    def inverse_scale(
        self, std_or_width: Tensor, categories: Categories | None = None, *, output_dim: Literal[-1, -2] = -1
    ) -> Tensor:
        """A standard deviation or an interval's width in z, back in the target's own units: scaled, not shifted.

        Arguments and result as in :meth:`inverse`. A variance scales by the square: pass its root.

        Raises:
            ValueError: Under a transform other than ``"identity"``, where a width depends on where it is.
        """
        if self.transform.kind != "identity":
            raise ValueError(
                f"a width has no inverse under transform={self.transform.kind!r}, where it depends on the location; "
                "invert both ends of the interval with inverse and subtract"
            )
        ids = self._prepare("std_or_width", std_or_width, categories, output_dim, stacklevel=4)

        def rescale(rows: Tensor, ids: Sequence[Tensor]) -> Tensor:
            return rows.to(torch.float64) * _spread(self._cells_of(ids)[1], output_dim)

        return by_blocks(rescale, std_or_width, ids, output_dim=output_dim, dtype=_at_least_float32(std_or_width))

    def _prepare(
        self, name: str, tensor: Tensor, categories: Categories | None, output_dim: int, stacklevel: int
    ) -> list[Tensor]:
        """Check the arguments of a call, warn of never-sampled cells, and return the ids of the rows."""
        self._check_fitted()
        check_floating(name, tensor)
        check_choice("output_dim", output_dim, (-1, -2))
        columns = self.location.shape[1]
        if tensor.ndim < -output_dim or tensor.shape[output_dim] != columns:
            shape = "(*, D)" if output_dim == -1 else "(*, D, Q)"
            hint = ""
            if tensor.ndim == 1 and columns == 1 and output_dim == -1:
                hint = f"; use {name}.unsqueeze(-1)"
            elif tensor.ndim > 2 and tensor.shape[-2] == columns and name != "target":
                hint = "; give output_dim=-2 with quantiles"
            raise ValueError(f"{name} must have shape {shape} with D = {columns}, got {tuple(tensor.shape)}{hint}")
        ids = self._ids(categories, tensor.shape[:output_dim], name)
        self._warn_never_sampled(ids, stacklevel)
        return ids

    @torch.no_grad()
    def _measure(self, target: Tensor, categories: Categories | None, weight: Tensor | None) -> GroupStatistics:
        check_floating("target", target)
        if target.ndim < 2:
            raise ValueError(f"target must have shape (*, D), got {tuple(target.shape)}; use target.unsqueeze(-1)")
        if target.shape[-1] == 0:
            raise ValueError(f"target must have at least one column, got shape {tuple(target.shape)}")
        lead, columns = target.shape[:-1], target.shape[-1]
        values = target.detach().to(torch.float64)
        if weight is not None:
            check_prefix("weight", weight, "target", target.shape)
            # A weight of 0 is no row, whatever the target there is.
            values = torch.where(trailing(weight, target.ndim) == 0, torch.nan, values)
        # A finite sum has finite terms; NaN is let through, so look closer only then.
        if not values.sum().isfinite() and values.isinf().any():
            d = int(values.isinf().reshape(-1, columns).any(dim=0).nonzero()[0])
            raise ValueError(f"target must be finite, or NaN where it is missing, got an infinite value in column {d}")
        if not reads_values(values):
            self.transform.check(values)  # forward does it otherwise
        values = self.transform.forward(values).reshape(-1, columns)
        ids = self._ids(categories, lead, "target")
        if ids:
            keys = self._layout.cell_keys(ids).expand(lead).reshape(-1)
        else:
            keys = torch.zeros(len(values), dtype=torch.int64, device=target.device)
        if weight is not None:
            if weight.ndim < target.ndim:
                weight = weight[(..., *(None,) * (len(lead) - weight.ndim))].expand(lead).reshape(-1)
            else:
                weight = weight.reshape(-1, columns)
        return GroupStatistics.from_values(keys, values, weight)

    @classmethod
    def from_config(cls, config: NormalizerConfig, cardinalities: Mapping[str, int] | None = None) -> Self:
        """Build the normalizer that ``config`` describes.

        Args:
            config: Its ``by`` names the columns.
            cardinalities: Column -> number of ids; others than those of ``by`` are ignored.

        Raises:
            ValueError: If ``cardinalities`` lack a column of ``by``, or ``config`` asks for a mixed model.
        """
        sizes = {} if cardinalities is None else dict(cardinalities)
        by = check_columns("by", config.by, sizes)
        if config.method != "moments":
            raise ValueError(f"a {cls.__name__} is for method 'moments', got {config.method!r}; build a MixedEffects")
        options = {name: value for name, value in vars(config).items() if name not in ("by", "method")}
        return cls({column: sizes[column] for column in by}, **options)

    def _describe(self) -> dict[str, Any]:
        return {
            "cardinalities": self.cardinalities,
            "shrinkage": self.shrinkage,
            "fallback": self.fallback,
            "transform": self.transform.kind,
            "bounds": None if self.transform.bounds is None else list(self.transform.bounds),
        }

    @classmethod
    def _from_description(cls, description: Mapping[str, Any]) -> Self:
        names = ("cardinalities", "shrinkage", "fallback", "transform", "bounds")
        if sorted(description) != sorted(names):
            raise ValueError(
                f"the description of a {cls.__name__} must have {', '.join(names)}, got {sorted(description)}"
            )
        return cls(**description)


def _at_least_float32(tensor: Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)


def _spread(per_column: Tensor, output_dim: int) -> Tensor:
    return per_column if output_dim == -1 else per_column.unsqueeze(-1)
