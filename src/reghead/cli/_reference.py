"""The training rows in brief: which combinations of categories they had, and what is known without any model."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from reghead._persistence import SelfDescribingStatistics
from reghead._typing import Categories
from reghead.cli._errors import InputError
from reghead.metrics import distinct_combinations, novelty

REFERENCE = "reference.safetensors"
MEAN, MEDIAN, QUANTILES = "mean", "median", "quantiles"


class Reference(SelfDescribingStatistics):
    """What scores are compared with, and told apart by.

    Args:
        cardinalities: Categorical column -> number of ids.
        levels: Levels of the quantiles of the training target.
        outputs: How many targets there are.
    """

    combinations: Tensor
    mean: Tensor
    quantiles: Tensor

    def __init__(self, cardinalities: Mapping[str, int], levels: Sequence[float], outputs: int) -> None:
        super().__init__()
        self.cardinalities, self.levels, self.outputs = dict(cardinalities), tuple(levels), outputs
        self.register_buffer("combinations", torch.zeros(0, len(self.cardinalities), dtype=torch.int64))
        self.register_buffer("mean", torch.zeros(outputs, dtype=torch.float64))
        self.register_buffer("quantiles", torch.zeros(outputs, len(self.levels), dtype=torch.float64))
        for i, size in enumerate(self.cardinalities.values()):
            self.register_buffer(f"means_{i}", torch.zeros(size, outputs, dtype=torch.float64))

    @classmethod
    def of(
        cls,
        target: Tensor,
        ids: Categories,
        cardinalities: Mapping[str, int],
        quantiles: Sequence[float],
        weight: Tensor | None = None,
    ) -> Self:
        """That of training rows: targets of shape ``(N, D)``, ids and weights of shape ``(N,)``."""
        weight = torch.ones(len(target), dtype=torch.float64) if weight is None else weight.double()
        kept = weight > 0
        target, weight, ids = target.double()[kept], weight[kept], {column: i[kept] for column, i in ids.items()}
        reference = cls(cardinalities, sorted({0.5, *quantiles}), target.shape[1])
        if ids:
            reference.combinations = torch.stack(list(distinct_combinations(ids).values()), dim=-1)
        share = weight[:, None] / weight.sum()
        center = (share * target).sum(0)
        reference.mean = center + (share * (target - center)).sum(0)  # the first is off by its rounding
        for i, (column, size) in enumerate(cardinalities.items()):
            total = share.new_zeros(size, 1).index_add_(0, ids[column], share)
            deviation = target.new_zeros(size, target.shape[1])
            deviation.index_add_(0, ids[column], share * (target - reference.mean))
            deviation[0] = 0.0  # rows without a label are no category
            setattr(reference, f"means_{i}", reference.mean + deviation / torch.where(total == 0.0, 1.0, total))
        for d in range(target.shape[1]):
            order = target[:, d].argsort()
            below = share[order, 0].cumsum(0)
            # The lowest value with this share at or below it; a share that is met but for rounding is met.
            at = torch.searchsorted(below, torch.tensor(reference.levels, dtype=torch.float64) - 1e-12)
            reference.quantiles[d] = target[order, d][at.clamp(max=len(order) - 1)]
        return reference

    def novelty(self, ids: Categories, columns: Sequence[str]) -> Tensor:
        """What training has seen of the combination of ``columns`` of each row."""
        known = dict(zip(self.cardinalities, self.combinations.unbind(-1), strict=True))
        return novelty(ids, {column: known[column] for column in columns})

    def baselines(self, ids: Categories, rows: int, levels: Sequence[float] | None) -> dict[str, Tensor]:
        """Predictions without a model: points of shape ``(N, D)``, and with ``levels`` quantiles, ``(N, D, Q)``.

        The mean of the training rows; their mean in a row's category of each column, or of all where it was not seen;
        their median, the best constant for the mean absolute error; their quantiles.
        """
        found = {MEAN: self.mean.expand(rows, -1)}
        for i, column in enumerate(self.cardinalities):
            found[f"{MEAN} by {column}"] = self.get_buffer(f"means_{i}").index_select(0, ids[column])
        found[MEDIAN] = self.quantiles[:, self.levels.index(0.5)].expand(rows, -1)
        if levels is not None:
            slots = [self.levels.index(level) for level in levels]
            found[QUANTILES] = self.quantiles[:, slots].expand(rows, -1, -1)
        return found

    def _describe(self) -> dict[str, Any]:
        return {"cardinalities": self.cardinalities, "levels": list(self.levels), "outputs": self.outputs}

    @classmethod
    def _from_description(cls, description: Mapping[str, Any]) -> Self:
        return cls(**description)

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        self._resize(self._present(state_dict, prefix, ["combinations"]))  # how many is not known before
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


def load_reference(
    folder: Path, cardinalities: Mapping[str, int], levels: Sequence[float] | None, outputs: int
) -> Reference | None:
    """What training left in ``folder`` beside a model of these sizes; None where it left nothing.

    Raises:
        InputError: If the file is damaged, or belongs to another model.
    """
    file = folder / REFERENCE
    if not file.is_file():
        return None
    try:
        reference = Reference.load(file)
    except (ValueError, RuntimeError, TypeError) as error:
        raise InputError(f"{file} cannot be loaded: {error}; copy it again whole, or train again") from error
    expected = Reference(cardinalities, sorted({0.5, *(levels or ())}), outputs)
    if reference._describe() != expected._describe() or reference.combinations.shape[1:] != (len(cardinalities),):
        raise InputError(f"{file} belongs to another model; copy the whole folder again, or train again")
    return reference
