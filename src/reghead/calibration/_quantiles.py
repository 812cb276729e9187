"""Conformalized quantile regression."""

from collections.abc import Mapping
from typing import Any, Self

from torch import Tensor

from reghead._typing import Categories, Quantiles
from reghead.calibration._scores import QuantileScore
from reghead.calibration._table import ConformalTable, Unseen


class ConformalizedQuantiles(ConformalTable):
    r"""Intervals from predicted quantiles, moved out or in until they cover (CQR).

    .. math:: [\hat q_{\alpha/2} - \hat e, \; \hat q_{1 - \alpha/2} + \hat e]

    with the conformal quantile :math:`\hat e` at level :math:`1 - \alpha` of the scores
    :math:`\max\{\hat q_{\alpha/2} - y, \; y - \hat q_{1-\alpha/2}\}` of the calibration rows (Romano, Patterson and
    Candès, "Conformalized Quantile Regression", 2019, theorem 1). The offset may be negative: intervals
    that were too wide shrink. ``asymmetric`` moves each end by its own offset at level :math:`1 - \alpha/2` (theorem
    2), so that each side misses with at most :math:`\alpha/2`; it needs :math:`2/\alpha - 1` rows, else the end is
    infinite, and is wider where both sides are alike.

    Every pair of levels around 0.5 is an interval, calibrated by itself: 0.05 and 0.95 the one at 0.9. Where the
    intervals of a row would not be nested, the wider takes in the narrower; where one would be empty, its middle stands
    for it. Both can only cover more.

    **Guarantee**, **groups**, ``pooling``, ``min_count`` and ``unseen`` are those of :class:`SplitConformal`.

    Predictions that cross (the lower quantile above the upper) are used as they come, which costs width and no
    coverage, and :meth:`conformalize` warns of them; :func:`reghead.functional.sort_quantiles` puts them in order.

    Args:
        quantiles: The Q levels of the predictions, strictly increasing, in pairs around 0.5; 0.5 may be among them.
        asymmetric: Whether each end has its own offset.
        groups: Column -> number of ids, id 0 included.
        scaled: Whether a predicted spread goes with the predictions, as ``scale``: scores are in units of it.
        pooling: How strongly categories with few rows lean on all rows, in rows; None: infinitely.
        min_count: A category with fewer calibration rows takes the quantile of all rows.
        unseen: ``"parent"`` or ``"infinite"``.

    Raises:
        ValueError: If the levels are no pairs around 0.5, or an option is unknown.

    Example:
        >>> import torch
        >>> from reghead.calibration import ConformalizedQuantiles
        >>> preds = torch.tensor([[[-1.0, 1.0]]]).expand(4, 1, 2)
        >>> target = torch.tensor([[0.0], [1.5], [-2.0], [4.0]])
        >>> conformal = ConformalizedQuantiles([0.2, 0.8]).conformalize(preds, target)
        >>> conformal(preds[:1])  # scores -1, 0.5, 1 and 3; rank ceil(5 * 0.6) = 3
        tensor([[[-2.,  2.]]])
    """

    def __init__(
        self,
        quantiles: Quantiles,
        *,
        asymmetric: bool = False,
        groups: Mapping[str, int] | None = None,
        scaled: bool = False,
        pooling: float | None = 20.0,
        min_count: int = 1,
        unseen: Unseen = "parent",
    ) -> None:
        score = QuantileScore(quantiles, asymmetric)
        super().__init__(score, groups, scaled=scaled, pooling=pooling, min_count=min_count, unseen=unseen)
        self.quantiles, self.asymmetric = score.quantiles, asymmetric

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
            preds: Predicted quantiles for rows that the model was not trained on. Shape ``(*, D, Q)``. The intervals
                will be on the scale of ``preds`` and ``target``: the target's own or that of its transform.
            target: Observed values. Shape ``(*, D)``.
            categories: Column -> ids of the ``groups``, shape ``(*,)`` or a prefix of it.
            scale: The positive predicted spread, if ``scaled``. Shape ``(*, D)``.
            mask: True where a target counts; False leaves it out. Shape ``(*,)`` or ``(*, D)``.

        Raises:
            ValueError: If there are no rows, or a score that counts is NaN; nothing has changed then.
        """
        return self._conformalize(preds, target, categories, scale, mask)

    def _describe(self) -> dict[str, Any]:
        return {"quantiles": list(self.quantiles), "asymmetric": self.asymmetric, **self._options()}
