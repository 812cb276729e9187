"""Conformal intervals from out-of-fold predictions: one for known environments, one for new ones."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, Self, TypeAlias

import torch
from torch import Tensor

from reghead._checks import check_choice
from reghead._typing import Categories, Quantiles
from reghead.calibration._quantile import conformal_quantile
from reghead.calibration._scores import AbsoluteScore, QuantileScore, Score
from reghead.calibration._table import ConformalTable

EnvironmentRule: TypeAlias = Literal["hierarchical", "pooled"]
"""What counts as one draw for a new environment: an environment, or each of its rows."""
LeftOut: TypeAlias = Literal["rows", "environments"]
"""What the models behind out-of-fold predictions had not seen: the row, or its whole environment."""


class CrossConformal(ConformalTable):
    r"""Intervals from out-of-fold predictions, with an offset for known environments and another for new ones.

    An environment is a category, such as a location, or a combination of several columns'. Predictions with the row
    left out tell how wrong a model is in environments that it knows, those with the whole environment left out how
    wrong it is in a new one. A row gets the first kind of interval if its environment was calibrated with
    ``left_out="rows"``, and the second if it was not, or has id 0. A kind that was not calibrated is never made up:
    without ``"environments"`` a new environment's interval is infinite, without ``"rows"`` every environment counts as
    new. Whoever fits the models (K folds, or one environment at a time) calls :meth:`conformalize`.

    For new environments the ``rule`` says what is exchangeable. ``"hierarchical"``: the environments. Each weighs the
    same, however many rows :math:`n_k` it has, and the new one is a draw like them (Lee, Barber and Willett,
    "Distribution-Free Inference with Hierarchical Data", 2023, HCP; Dunn, Wasserman and Ramdas 2023 pool alike):

    .. math::
        \hat q = \inf \Big\{ s : \frac{1}{K + 1} \sum_{k=1}^K \frac{1}{n_k} \#\{i \in k : s_i \le s\} \ge 1 - \alpha
        \Big\}

    **Guarantee**: a row of a new environment is covered with a probability of at least :math:`1 - \alpha`, if the new
    environment and the K are exchangeable, and so are the rows within each, and one model that had seen none of them
    made all predictions. It holds on average over environments, not in each: all rows of one may miss together. With
    :math:`K < 1/\alpha - 1` the interval is infinite: so few environments tell nothing about the next at that level.

    ``"pooled"`` counts every row once, as if all rows were exchangeable: a finite interval from few environments,
    without a guarantee if environments differ, and dominated by the large ones.

    Out-of-fold predictions come from several models, and the predictions to calibrate from one more, fitted on all
    rows: the guarantee is then an approximation that leans on models that change little with a fold, and are not worse
    with more rows (compare the cross-validation+ of Barber et al. 2021).

    For known environments it is that of :class:`SplitConformal`, with one quantile for all of them at
    ``pooling=None``, and one per environment, moved toward that of all rows, at a finite ``pooling``.

    Args:
        environments: Column -> number of ids, id 0 included, of the columns whose combinations are the environments.
        confidence_level: For point predictions: the level, or several different ones.
        quantiles: For quantile predictions: their levels, in pairs around 0.5, see :class:`ConformalizedQuantiles`.
            Exactly one of the two.
        asymmetric: Whether each end has its own offset; with ``quantiles`` only.
        scaled: Whether a predicted spread goes with the predictions, as ``scale``.
        rule: The rule for new environments.
        pooling: How strongly a known environment with few rows leans on all rows, in rows. None: infinitely.
        min_count: A known environment with fewer calibration rows takes the quantile of all rows.

    Raises:
        ValueError: If an option is unknown, or both or none of ``confidence_level`` and ``quantiles`` are given.

    Example:
        >>> import torch
        >>> from reghead.calibration import CrossConformal
        >>> target, preds = torch.tensor([[1.0], [2.0], [3.0], [4.0]]), torch.zeros(4, 1)
        >>> site = {"site": torch.tensor([1, 1, 2, 3])}
        >>> conformal = CrossConformal({"site": 5}, 0.6)
        >>> conformal = conformal.conformalize(preds, target, site, left_out="rows")
        >>> conformal = conformal.conformalize(preds, 2 * target, site, left_out="environments")
        >>> conformal(torch.zeros(2, 1), {"site": torch.tensor([1, 4])})  # ranks 3 of 4 rows, and of 3 sites
        tensor([[[-3.,  3.]],
        <BLANKLINE>
                [[-8.,  8.]]])
    """

    def __init__(
        self,
        environments: Mapping[str, int],
        confidence_level: float | Sequence[float] | None = None,
        *,
        quantiles: Quantiles | None = None,
        asymmetric: bool = False,
        scaled: bool = False,
        rule: EnvironmentRule = "hierarchical",
        pooling: float | None = None,
        min_count: int = 1,
    ) -> None:
        check_choice("rule", rule, ("hierarchical", "pooled"))
        if not environments:
            raise ValueError("environments must name at least one column, got none; use SplitConformal")
        if (confidence_level is None) == (quantiles is None):
            raise ValueError(
                "exactly one of confidence_level (for point predictions) and quantiles (for quantile predictions) must "
                f"be given, got {confidence_level!r} and {quantiles!r}"
            )
        if asymmetric and quantiles is None:
            raise ValueError("asymmetric=True needs quantiles: the score of point predictions has one side")
        score: Score
        if quantiles is not None:
            score = QuantileScore(quantiles, asymmetric)
        elif confidence_level is not None:
            score = AbsoluteScore(confidence_level)
        super().__init__(score, environments, scaled=scaled, pooling=pooling, min_count=min_count, unseen="infinite")
        self.quantiles = score.quantiles if isinstance(score, QuantileScore) else None
        self.asymmetric, self.rule = asymmetric, rule

    def conformalize(
        self,
        preds: Tensor,
        target: Tensor,
        categories: Categories,
        scale: Tensor | None = None,
        *,
        left_out: LeftOut,
        mask: Tensor | None = None,
    ) -> Self:
        """Take the quantiles of the scores of one kind, forgetting earlier ones of that kind only.

        Args:
            preds: Out-of-fold predictions. Shape ``(*, D)``, or ``(*, D, Q)`` for quantiles. The intervals will be on
                the scale of ``preds`` and ``target``: the target's own or that of its transform.
            target: Observed values. Shape ``(*, D)``.
            categories: Column -> ids of the environments, shape ``(*,)`` or a prefix of it.
            scale: The positive predicted spread, if ``scaled``. Shape ``(*, D)``.
            left_out: What the model behind each prediction had not seen: ``"rows"``, the row itself, for known
                environments; ``"environments"``, the row's whole environment, for new ones.
            mask: True where a target counts; False leaves it out. Shape ``(*,)`` or ``(*, D)``.

        Raises:
            ValueError: If there are no rows, a score that counts is NaN, or a row of ``left_out="environments"`` has
                an id 0; nothing has changed then.
        """
        check_choice("left_out", left_out, ("rows", "environments"))
        scores, counted, keys = self._measure(preds, target, categories, scale, mask)
        if self.is_conformalized and scores.shape[1] != self.offsets.shape[1]:
            raise ValueError(
                f"preds must have D = {self.offsets.shape[1]} target columns as in the first call of conformalize, "
                f"got {scores.shape[1]}"
            )
        if left_out == "rows":
            new = self.offsets[0] if self.is_conformalized else scores.new_full(scores.shape[1:], torch.inf)
            environments = self.count[0] if self.is_conformalized else keys.new_zeros(scores.shape[1])
            group_keys, count, offsets = self._quantiles(scores, counted, keys)
            count[0] = environments
        else:
            if (unknown := (keys == 0) & counted.any(-1)).any():
                raise ValueError(
                    f'left_out="environments" needs the environment of every row, got id 0 in {int(unknown.sum())} '
                    "rows; leave them out with mask"
                )
            new, environments = self._new_environment(scores, counted, keys)
            if self.is_conformalized:
                group_keys, count, offsets = self.group_keys, self.count.clone(), self.offsets
                count[0] = environments
            else:
                group_keys, count, offsets = keys.new_zeros(1), environments.unsqueeze(0), new.unsqueeze(0)
        self._score.warn_crossing(preds, stacklevel=3)
        return self._adopt(group_keys=group_keys, count=count, offsets=self._replace_unseen(count, offsets, new))

    def _new_environment(self, scores: Tensor, counted: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
        """Offsets for a row of a new environment ``(D, S)``, and how many environments are behind them ``(D,)``."""
        offsets, environments = [], []
        for d in range(scores.shape[1]):
            here = counted[:, d]
            _, rows, size = torch.unique(keys[here], return_inverse=True, return_counts=True)
            weight = None if self.rule == "pooled" else 1 / size.to(torch.float64)[rows]
            offsets.append(
                torch.stack(
                    [
                        conformal_quantile(scores[here, d, s], level, weight=weight)
                        for s, level in enumerate(self._score.levels)
                    ]
                )
            )
            environments.append(size.new_tensor(len(size)))
        return torch.stack(offsets), torch.stack(environments)

    def _describe(self) -> dict[str, Any]:
        return {
            "environments": self.groups,
            "confidence_level": None if self.quantiles is not None else list(self.confidence_levels),
            "quantiles": None if self.quantiles is None else list(self.quantiles),
            "asymmetric": self.asymmetric,
            "scaled": self.scaled,
            "rule": self.rule,
            "pooling": self.pooling,
            "min_count": self.min_count,
        }
