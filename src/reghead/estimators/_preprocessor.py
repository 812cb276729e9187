"""From numbers and labels to what a head takes: standardised numbers, and ids."""

import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from reghead._checks import check_number
from reghead._warnings import UnseenCategoryWarning
from reghead.categories import CategoryEncoder, GroupStatistics
from reghead.estimators._part import FloatArray, Part
from reghead.estimators._processes import Processes

STATE = ("mean", "scale", "indicated", "low", "high", "target_scale")


class Preprocessor:
    r"""Numbers standardised by the mean and standard deviation of the training rows, and ids of the categories.

    A missing number becomes the mean, and a column that has missing numbers in training brings an indicator of them.
    With ``clip`` a number outside the range of the training rows is first set to the nearest end of it: nothing is
    known of what lies beyond, and a line that is followed there may lead anywhere. :class:`Features` has the rest of
    it.

    Args:
        names: All columns of the table, in their order.
        categories: The categorical ones among them.
        clip: About the largest standardised number that a head is to see; None leaves numbers as they are.

    Attributes:
        rows: Training rows so far.
        mean: Of each numeric column, float64.
        scale: Its standard deviation; 1 for a constant column.
        indicated: Whether it had missing numbers.
        low: Its smallest number.
        high: Its largest number.
        target_scale: Standard deviation of each target; 1 for a constant one.
    """

    def __init__(self, names: Sequence[str], categories: Sequence[str], clip: float | None = None) -> None:
        self.clip = None if clip is None else check_number("feature_clip", clip, above=0.0)
        self.names, self.categories = tuple(names), tuple(categories)
        self.numeric = [name for name in names if name not in set(categories)]
        self.encoder = CategoryEncoder(categories) if categories else None
        self.rows = 0
        self.mean: FloatArray = np.zeros(len(self.numeric))
        self.scale: FloatArray = np.ones(len(self.numeric))
        self.indicated: npt.NDArray[np.bool_] = np.zeros(len(self.numeric), bool)
        self.low: FloatArray = np.full(len(self.numeric), np.inf)
        self.high: FloatArray = np.full(len(self.numeric), -np.inf)
        self.target_scale: FloatArray = np.ones(0)
        self._moments: GroupStatistics | None = None

    @property
    def in_features(self) -> int:
        """Width of the features; a head wants at least one, and where there is none it gets one that is 0."""
        return max(len(self.numeric) + int(self.indicated.sum()), 1)

    @property
    def mean_weight(self) -> float:
        """Of a training row."""
        return 1.0 if self._moments is None else self._moments.count[0, -1].item() / self.rows

    def partial_fit(self, part: Part) -> None:
        """Add the training rows of ``part``, each as often as its weight says."""
        self.rows += len(part.target)
        with np.errstate(over="ignore", invalid="ignore"):  # the estimates are looked at
            moments = _moments(np.concatenate([part.numbers, part.target], axis=1, dtype=np.float64), part.weight)
        self._moments = moments if self._moments is None else self._moments.merge(moments)
        self.indicated |= np.isnan(part.numbers).any(axis=0)
        self.low = np.fmin(self.low, np.fmin.reduce(part.numbers, axis=0, initial=np.inf))
        self.high = np.fmax(self.high, np.fmax.reduce(part.numbers, axis=0, initial=-np.inf))
        if self.encoder is not None and len(part.target):
            self.encoder.partial_fit(part.labels)
        self._estimate()

    def all_reduce(self, processes: Processes) -> None:
        """Take the rows of all processes together."""
        if processes.size == 1:
            return
        assert self._moments is not None
        ends = (self.low, self.high)
        gathered = processes.gather((self.rows, self.indicated, ends, [part.numpy() for part in self._moments.parts]))
        self.rows = sum(rows for rows, _, _, _ in gathered)
        self.indicated = np.any([indicated for _, indicated, _, _ in gathered], axis=0)
        self.low = np.min([low for _, _, (low, _), _ in gathered], axis=0)
        self.high = np.max([high for _, _, (_, high), _ in gathered], axis=0)
        first, *others = (GroupStatistics(*map(torch.from_numpy, parts)) for _, _, _, parts in gathered)
        for other in others:
            first = first.merge(other)
        self._moments = first
        if self.encoder is not None:
            self.encoder.all_reduce()
        self._estimate()

    def transform(
        self, part: Part, dtype: torch.dtype, *, expect_unseen: bool = False
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Features, and ids; a label not seen in training is 0."""
        missing = np.isnan(part.numbers)
        numbers = part.numbers
        if self.clip is not None:  # within the ends, and a column of which nothing is known stays at its mean
            numbers = np.clip(numbers, np.fmin(self.low, self.mean), np.fmax(self.high, self.mean))
        standardized = np.where(missing, 0.0, (numbers - self.mean) / self.scale)
        blank = np.zeros((len(part.numbers), 0 if self.numeric else 1))
        features = np.concatenate([standardized, missing[:, self.indicated], blank], axis=1)
        if self.encoder is None:
            ids: dict[str, Tensor] = {}
        else:
            with warnings.catch_warnings():
                if expect_unseen:
                    warnings.simplefilter("ignore", UnseenCategoryWarning)
                ids = self.encoder.transform(part.labels)
        return torch.from_numpy(features).to(dtype), ids

    def state(self) -> dict[str, Any]:
        """What was learned from the numbers, as tensors."""
        return {name: torch.from_numpy(getattr(self, name).copy()) for name in STATE}

    def _estimate(self) -> None:
        assert self._moments is not None
        if not len(self._moments.keys):
            return
        count, mean, m2 = (part[0].numpy() for part in self._moments.parts[1:4])
        scale = np.sqrt(m2 / np.maximum(count, np.finfo(np.float64).tiny))
        # A constant column: what is left is the rounding of its mean.
        scale[scale <= 1e-12 * np.abs(mean)] = 1.0
        numeric = len(self.numeric)
        if not np.isfinite(scale).all():
            first = int(np.isfinite(scale).argmin())
            which = f"numbers of {self.numeric[first]!r}" if first < numeric else "targets"
            raise ValueError(
                f"the {which} are too large: their variance is no number in float64; give them in units "
                "in which they are below 1e150"
            )
        self.mean, self.scale, self.target_scale = mean[:numeric], scale[:numeric], scale[numeric:]


def _moments(values: FloatArray, weight: FloatArray | None) -> GroupStatistics:
    """Moments of all columns at once, as one group; NaN is missing.

    One group needs no scatter: GroupStatistics.from_values gives the same, column by column.
    """
    present = ~np.isnan(values)
    weights = present * (np.ones(len(values)) if weight is None else weight)[:, None]
    count = weights.sum(axis=0)
    divisor = np.where(count == 0, 1.0, count)
    values = np.where(present, values, 0.0)
    first = (weights * values).sum(axis=0) / divisor
    deviation = values - first
    correction = (weights * deviation).sum(axis=0) / divisor
    m2 = (weights * deviation**2).sum(axis=0) - count * correction**2
    mean, m2 = first + correction, np.maximum(m2, 0.0)
    count, mean, m2, tail = (torch.from_numpy(part[None]) for part in (count, mean, m2, (first - mean) + correction))
    return GroupStatistics(torch.zeros(1, dtype=torch.int64), count, mean, m2, tail)
