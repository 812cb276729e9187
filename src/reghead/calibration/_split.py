"""Split conformal intervals around point predictions."""

from collections.abc import Mapping, Sequence
from typing import Any, Self

from torch import Tensor

from reghead._typing import Categories
from reghead.calibration._scores import AbsoluteScore
from reghead.calibration._table import ConformalTable, Unseen


class SplitConformal(ConformalTable):
    r"""Intervals around point predictions, wide enough for the residuals of rows that were held out.

    .. math:: [\hat y - \hat q \, \hat\sigma, \; \hat y + \hat q \, \hat\sigma]

    with the conformal quantile :math:`\hat q` of the scores :math:`|y_i - \hat y_i| / \hat\sigma_i` of the calibration
    rows, see :func:`conformal_quantile`; :math:`\hat\sigma = 1` unless ``scaled`` (Papadopoulos et al. 2002; Lei et
    al., "Distribution-Free Predictive Inference for Regression", 2018, theorem 2.2 and section 5.2).

    **Guarantee**: the target of a new row lies inside with a probability of at least the confidence level, for any
    model, if the new row and the calibration rows are exchangeable and the model has seen none of them. For each target
    column on its own. On a new environment rows are not exchangeable: see :class:`CrossConformal`.

    **With groups** each category has its own quantile, and the guarantee holds for each (Mondrian; Vovk et al. 2005) at
    ``pooling=0``, at the price of infinite intervals below :math:`1 / \alpha - 1` rows. ``pooling`` m moves the
    quantile of a category of n rows toward that of all rows: it is taken from a mixture of both distributions with the
    share :math:`n / (n + m)` for its own. The guarantee per category then becomes an approximation, better with n; if
    the category's scores are distributed as everyone's, at least :math:`1 - 2 \alpha` remains (Vovk and Wang,
    "Combining p-Values via Averaging", 2020: twice a mean of p-values is one).

    Args:
        confidence_level: The level, or several different ones, between 0 and 1.
        groups: Column -> number of ids, id 0 included, of the columns whose combinations are the categories. None: one
            quantile for all rows.
        scaled: Whether a predicted spread goes with the predictions, as ``scale``.
        pooling: The strength m, in rows. 0: none. None: infinite, one quantile for all rows.
        min_count: A category with fewer calibration rows takes the quantile of all rows.
        unseen: For a category without calibration rows, and id 0: ``"parent"`` is the quantile of all rows, honest
            only if the new category is like the others; ``"infinite"`` makes no claim.

    Raises:
        ValueError: If a level is not between 0 and 1, or an option is unknown.

    Example:
        >>> import torch
        >>> from reghead.calibration import SplitConformal
        >>> target = torch.tensor([[1.0], [-2.0], [3.0], [-4.0]])
        >>> conformal = SplitConformal(0.6).conformalize(torch.zeros(4, 1), target)
        >>> conformal(torch.tensor([[10.0]]))  # the residual of rank ceil(5 * 0.6) = 3
        tensor([[[ 7., 13.]]])
        >>> lower, upper = conformal.interval(torch.tensor([[10.0]]))
        >>> upper
        tensor([[13.]])
    """

    def __init__(
        self,
        confidence_level: float | Sequence[float],
        *,
        groups: Mapping[str, int] | None = None,
        scaled: bool = False,
        pooling: float | None = 20.0,
        min_count: int = 1,
        unseen: Unseen = "parent",
    ) -> None:
        score = AbsoluteScore(confidence_level)
        super().__init__(score, groups, scaled=scaled, pooling=pooling, min_count=min_count, unseen=unseen)

    def conformalize(
        self,
        preds: Tensor,
        target: Tensor,
        categories: Categories | None = None,
        scale: Tensor | None = None,
        *,
        mask: Tensor | None = None,
    ) -> Self:
        """Take the quantiles of the scores of the calibration rows, forgetting earlier ones.

        Args:
            preds: Predictions for rows that the model was not trained on. Shape ``(*, D)``. The intervals will be on
                the scale of ``preds`` and ``target``: the target's own or that of its transform.
            target: Observed values. Shape ``(*, D)``.
            categories: Column -> ids of the ``groups``, shape ``(*,)`` or a prefix of it.
            scale: The positive predicted spread, if ``scaled``. Shape ``(*, D)``.
            mask: True where a target counts; False leaves it out. Shape ``(*,)`` or ``(*, D)``.

        Raises:
            ValueError: If there are no rows, or a score that counts is NaN; nothing has changed then.
        """
        return self._conformalize(preds, target, categories, scale, mask)

    def _describe(self) -> dict[str, Any]:
        return {"confidence_level": list(self.confidence_levels), **self._options()}
