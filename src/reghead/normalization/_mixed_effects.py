"""Normalization of targets by what a linear mixed model of features and categories leaves unexplained."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, Self

import torch
from torch import Tensor

from reghead._checks import check_cardinalities, check_columns
from reghead._typing import Categories
from reghead.normalization._mixed_fit import Variances
from reghead.normalization._mixed_predict import MixedPredictor
from reghead.normalization._mixed_rows import Scaling, check_finite, flat_features, measure
from reghead.normalization._state import refuse_empty_column
from reghead.normalization._transform import TargetTransform, TransformKind


class MixedEffects(MixedPredictor):
    r"""Normalizes targets by a linear mixed model: effects of features, and random effects of categories.

    .. math::
        g(y) = u = \mu + x^\top \beta + \sum_f b_f[\mathrm{id}_f] + b[\mathrm{cell}] + e, \qquad
        \beta \sim N(0, \sigma_x^2), \quad b_f \sim N(0, \sigma_f^2), \quad e \sim N(0, \sigma^2), \qquad
        z = \frac{u - \hat u}{\hat\sigma}

    The effects of the columns and of their combinations, the cells, are estimated together with those of the features,
    so that a category is not credited with what its features explain. The variance components are those of restricted
    maximum likelihood (Patterson and Thompson 1971), the effects best linear unbiased predictions (Henderson 1975):
    a category with few rows is shrunk most, and one without rows has effect 0, while its variance component widens the
    quantiles of :meth:`inverse`. The coefficients of the standardised features share a variance, so that they are
    shrunk as the data say: hardly with many rows per feature, and much where there are as many features as categories
    between which they vary. Each target column has a model of its own; a NaN target is missing in its column.

    The residuals of the training rows are narrower than those of new rows, most for rare categories. Train on those
    of :meth:`fit_transform`, each predicted from all other rows.

    Id 0 and an id without training rows are unknown. A training row with id 0 in a column has no effect of that
    column. A component that the data cannot tell from another, as with one level or one row per level, is 0.

    The module holds no parameters; its statistics are float64 and int64 buffers, which follow the module to a device
    and keep their dtype through ``half()`` and the like. Their size grows with the square of the number of features and
    levels, and with the number of categories of a single column, or of cells of all columns, times that of features.

    Up to 2,000 levels the equations have a dense matrix, and all of this is exact; those of a single column, and the
    cells of all columns, are eliminated and do not count. With more, they are solved by preconditioned conjugate
    gradients (Hestenes and Stiefel 1952) to a relative error of :math:`10^{-8}`, and what needs the inverse comes from
    N = 64 perturbations (Papandreou and Yuille 2010), the same in every fit: the variance components, off by about
    0.13 of their standard errors, and the variance that known effects bring to a prediction, with a relative standard
    error of 0.18. Sizes grow with the combinations of ids in the rows times the features, and with the levels times N.

    Args:
        cardinalities: Column -> number of ids, id 0 included; order does not matter. None or empty: features alone.
        cells: Whether combinations of all columns have effects beside the columns', or the columns whose combinations
            do. Those of many columns have too few rows each to tell anything.
        shrink_features: Whether coefficients are shrunk; otherwise they are fixed effects, as in least squares, and
            need more rows than features.
        transform: The transform :math:`g`, see :class:`TargetTransform`.
        bounds: The bounds of ``transform="logit"``, in the target's units.

    Raises:
        TypeError: If ``cells`` is neither a bool nor a sequence of names, or ``shrink_features`` not a bool.
        ValueError: If an option is unknown, ``cells`` names a single or an unknown column, or the product of the
            cardinalities of its columns exceeds :math:`2^{62}`.

    Example:
        Two categories of two rows, means 0 and 10, within-category variance 2: the between-category component is
        :math:`(10 - 0)^2 / 2 - 2 / 2 = 49`, and the means are shrunk toward 5 by :math:`49 / (49 + 2 / 2)`.

        >>> import torch
        >>> from reghead.normalization import MixedEffects
        >>> target = torch.tensor([[-1.0], [1.0], [9.0], [11.0]])
        >>> categories = {"location": torch.tensor([1, 1, 2, 2])}
        >>> model = MixedEffects({"location": 3}).fit(target, categories)
        >>> mean, std = model.predict({"location": torch.tensor([0, 1, 2])})
        >>> mean.flatten()
        tensor([5.0000, 0.1000, 9.9000], dtype=torch.float64)
        >>> std.square()[0]  # 2 of a row, 49 of an unknown location, and 25 of the mean of two locations
        tensor([76.0000], dtype=torch.float64)
    """

    def __init__(
        self,
        cardinalities: Mapping[str, int] | None = None,
        *,
        cells: bool | Sequence[str] = True,
        shrink_features: bool = True,
        transform: TransformKind = "identity",
        bounds: tuple[float, float] | None = None,
    ) -> None:
        sizes = check_cardinalities("cardinalities", {} if cardinalities is None else cardinalities)
        if isinstance(cells, bool):
            columns = tuple(sizes) if cells and len(sizes) > 1 else ()
        elif isinstance(cells, str) or not isinstance(cells, Iterable):
            raise TypeError(f"cells must be True, False or a sequence of column names, got {cells!r}")
        else:
            columns = check_columns("cells", cells, sizes)
            if len(columns) == 1:
                raise ValueError(
                    f"cells must name at least two columns, got {columns}; a column by itself has an effect anyway"
                )
        if not isinstance(shrink_features, bool):
            raise TypeError(f"shrink_features must be True or False, got {shrink_features!r}")
        super().__init__(
            sizes,
            cells=tuple(sorted(columns)),
            shrink_features=shrink_features,
            transform=TargetTransform(transform, bounds),
        )

    @torch.no_grad()
    def fit(
        self,
        target: Tensor,
        categories: Categories | None = None,
        features: Tensor | None = None,
        *,
        weight: Tensor | None = None,
    ) -> Self:
        """Estimate the model on the training rows, forgetting an earlier fit.

        Args:
            target: Targets in their own units; NaN is missing. Shape ``(*, D)`` with at least one leading dimension.
            categories: Column -> ids, shape ``(*,)`` or a prefix of it.
            features: In any units; constant and redundant ones do no harm. Shape ``(*, F)``.
            weight: Frequency weights, where 2 means the row twice. Shape ``(*,)`` per row or ``(*, D)``.

        Raises:
            ValueError: If a column has no value, a value is infinite or outside the domain of the transform, there
                are no more rows than fixed effects, or the cardinalities of columns with more than 2,000 levels have
                a product beyond :math:`2^{62}`; nothing has changed then.

        Warns:
            RegheadWarning: If the equations are too large for a matrix, and 1,000 iterations do not solve them.
        """
        values, weights = (part.cpu() for part in measure(self.transform, target, weight))
        for d in range(values.shape[1]):
            if not weights[:, d % weights.shape[1]].any():
                refuse_empty_column(d)
        lead, kept = target.shape[:-1], weights.any(dim=1)
        values, weights = values[kept], weights[kept]
        ids = [i.cpu()[kept] for i in self._ids(categories, lead, "target")]
        flat = values.new_empty(len(values), 0)
        if features is not None:
            flat = flat_features(features, lead, "target").detach().cpu()[kept].to(torch.float64)
            check_finite(flat)
        scaling = Scaling.of(values, weights, flat)
        # What is left of a constant is rounding.
        constant = scaling.target_scale == 0
        scaling = scaling._replace(target_scale=torch.where(constant, 1.0, scaling.target_scale))
        values = torch.where(constant, 0.0, (values - scaling.target_center) / scaling.target_scale)
        large = self._is_large(ids)
        return self._adopt(self._accumulate(ids, values, weights, flat, scaling, iterate=large), scaling, iterate=large)

    def fit_transform(
        self,
        target: Tensor,
        categories: Categories | None = None,
        features: Tensor | None = None,
        *,
        weight: Tensor | None = None,
    ) -> Tensor:
        """:meth:`fit`, then :meth:`leave_one_out`: what to train on."""
        return self.fit(target, categories, features, weight=weight).leave_one_out(
            target, categories, features, weight=weight
        )

    @torch.no_grad()
    def leave_one_out(
        self,
        target: Tensor,
        categories: Categories | None = None,
        features: Tensor | None = None,
        *,
        weight: Tensor | None = None,
    ) -> Tensor:
        r"""Residuals of the training rows, each from a model without that row, in units of their standard deviation.

        .. math:: z_i = \frac{u_i - \hat u_i}{1 - v_i a_i} \Big/ \sigma \sqrt{1 + \frac{a_i}{1 - v_i a_i}}, \qquad
            v_i = \min(w_i, 1)

        with the leverage :math:`w_i a_i` on the diagonal of the hat matrix: nothing is refitted, and the variances
        stay those of all rows. Of a row that counts several times one leaves, as of a row repeated. A row that alone
        determines an effect of the features cannot be predicted without itself, and has 0.

        Args:
            target: The rows that the model was fitted on, and so the other arguments.
            categories: As in :meth:`fit`.
            features: As in :meth:`fit`.
            weight: As in :meth:`fit`.

        Returns:
            z, of variance 1 if the model holds, in the shape and dtype of ``target``; NaN for a row of weight 0.
        """
        ids, flat = self._prepare("target", target, categories, features, -1)
        values, weights = measure(self.transform, target, weight)
        result = self._without_each(values, weights, ids, flat)
        return torch.where(weights > 0, result, torch.nan).reshape(target.shape).to(target.dtype)

    @torch.no_grad()
    def update(
        self,
        target: Tensor,
        categories: Categories | None = None,
        features: Tensor | None = None,
        *,
        weight: Tensor | None = None,
    ) -> Self:
        """Add rows, of known categories or of ones that were not in training, without estimating variances again.

        The effects become those given all rows, the conjugate posterior under the variances of the fit; the effects
        of other categories move no more than the new rows bear on them. Arguments as in :meth:`fit`; an id must be
        below its column's cardinality, so leave room for categories to come.

        Raises:
            ValueError: If a model with up to 2,000 levels would have more, which takes another kind of solution.
        """
        ids, flat = self._prepare("target", target, categories, features, -1)
        values, weights = (part.cpu() for part in measure(self.transform, target, weight))
        kept = weights.any(dim=1)
        if not kept.any():
            return self
        scaling = Scaling(*(getattr(self, name).cpu() for name in Scaling._fields))
        flat = values.new_empty(len(values), 0) if flat is None else flat.detach().cpu().to(torch.float64)
        check_finite(flat[kept])
        standard = (values[kept] - scaling.target_center) / scaling.target_scale
        new, iterate = [i.cpu()[kept] for i in ids], self._iterates
        if not iterate:
            self._check_levels(new)
        more = self._accumulate(new, standard, weights[kept], flat[kept], scaling, iterate=iterate)
        variances = Variances(*(getattr(self, name).cpu() for name in Variances._fields))
        return self._adopt(self._sums().merge(more), scaling, iterate=iterate, variances=variances)

    def forward(self, target: Tensor, categories: Categories | None = None, features: Tensor | None = None) -> Tensor:
        """Normalize ``target``; for the rows of the fit see :meth:`leave_one_out`.

        Args:
            target: Targets in their own units. Shape ``(*, D)``.
            categories: Column -> ids, shape ``(*,)`` or a prefix of it.
            features: Shape ``(*, F)``, if the model was fitted with features.

        Returns:
            z, the residual in units of the residual standard deviation, in the shape and dtype of ``target``; the
            computation is in float64.
        """
        rows = self._look_up("target", target, categories, features, -1)
        mean, sigma = self._location(rows)
        value = self.transform.forward(target.to(torch.float64))
        return ((value - mean.reshape(target.shape)) / sigma).to(target.dtype)

    def inverse(
        self,
        preds: Tensor,
        categories: Categories | None = None,
        features: Tensor | None = None,
        *,
        output_dim: Literal[-1, -2] = -1,
        center: Tensor | None = None,
    ) -> Tensor:
        r"""Predictions of z, points or quantiles, back in the target's own units.

        Points are the exact inverse of :meth:`forward`. Quantiles are spread around their center by the row's standard
        deviation over the residual one,

        .. math:: u_\tau = \hat u + \hat\sigma \big(c + r (z_\tau - c)\big), \qquad
            r^2 = \operatorname{Var}(u - \hat u) / \hat\sigma^2 ,

        which counts what is not known of :math:`\beta` and the effects, and a whole variance component for what has
        no training rows. Their order is kept. The center itself is not spread: what a network predicts of the residual
        does not grow with what is unknown of a category.

        Args:
            preds: Shape ``(*, D)``, or ``(*, D, Q)`` with ``output_dim=-2``.
            categories: Column -> ids, shape ``(*,)`` or a prefix of it.
            features: Shape ``(*, F)``, if the model was fitted with features.
            output_dim: The dimension of the target columns.
            center: What quantiles are spread around, in z: shape ``(*, D)``. By default the middle one, or the mean
                of the two in the middle; a single quantile other than the median needs it.

        Returns:
            In the shape and dtype of ``preds``, float32 for half precision; the computation is in float64.

        Raises:
            ValueError: If ``center`` comes with ``output_dim=-1``, or in another shape.
        """
        rows = self._look_up("preds", preds, categories, features, output_dim)
        mean, sigma = self._location(rows)
        z = preds.to(torch.float64)
        if output_dim == -1:
            if center is not None:
                raise ValueError("center is what quantiles are spread around; pass output_dim=-2, or leave it out")
            value = mean.reshape(preds.shape) + sigma * z
        else:
            lead = preds.shape[:-1]
            if center is None:
                last = preds.shape[-1]
                middle = 0.5 * (z[..., (last - 1) // 2] + z[..., last // 2])
            elif center.shape == lead:
                middle = center.to(torch.float64)
            else:
                raise ValueError(f"center must have shape (*, D) = {tuple(lead)}, got {tuple(center.shape)}")
            middle, ratio = middle.unsqueeze(-1), self._ratio(rows).reshape(*lead, 1)
            value = mean.reshape(*lead, 1) + sigma.unsqueeze(-1) * (middle + ratio * (z - middle))
        return self.transform.inverse(value).to(torch.promote_types(preds.dtype, torch.float32))

    def inverse_scale(
        self,
        std_or_width: Tensor,
        categories: Categories | None = None,
        features: Tensor | None = None,
        *,
        output_dim: Literal[-1, -2] = -1,
    ) -> Tensor:
        """A standard deviation or an interval's width in z, back in the target's own units, spread as quantiles are.

        Arguments and result as in :meth:`inverse`. A variance scales by the square: pass its root.

        Raises:
            ValueError: Under a transform other than ``"identity"``, where a width depends on where it is.
        """
        if self.transform.kind != "identity":
            raise ValueError(
                f"a width has no inverse under transform={self.transform.kind!r}, where it depends on the location; "
                "invert both ends of the interval with inverse and subtract"
            )
        rows = self._look_up("std_or_width", std_or_width, categories, features, output_dim)
        _, sigma = self._location(rows)
        spread = (sigma * self._ratio(rows)).reshape(*std_or_width.shape[:output_dim], -1)
        spread = spread if output_dim == -1 else spread.unsqueeze(-1)
        result = std_or_width.to(torch.float64) * spread
        return result.to(torch.promote_types(std_or_width.dtype, torch.float32))
