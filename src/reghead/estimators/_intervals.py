"""Calibrated intervals for rows of known categories, and for rows of new ones."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, Self

import torch
from torch import Tensor, nn

from reghead._persistence import SelfDescribing
from reghead._typing import Categories
from reghead.calibration import ConformalizedQuantiles, CrossConformal
from reghead.functional._lookup import joint_ids

ENVIRONMENT = "environment"
_FEW = 10


class CalibratedIntervals(SelfDescribing):
    """Conformalized quantiles with one offset for known rows, and one for each way of being new.

    Columns go from coarse to fine: of ``("location", "season")`` a row may be of a new location, or of a known location
    in a new combination with a season. The coarsest way of being new decides.

    Args:
        cardinalities: Column -> number of ids, from coarse to fine.
        quantiles: Levels of the predictions, in pairs around 0.5.
        environments: For each number of leading columns, how many combinations of them there are to calibrate on.
    """

    def __init__(
        self, cardinalities: Mapping[str, int], quantiles: Sequence[float], environments: Sequence[int]
    ) -> None:
        super().__init__()
        self.cardinalities, self.quantiles = dict(cardinalities), tuple(quantiles)
        self.environments = tuple(environments)
        self.known = ConformalizedQuantiles(quantiles)
        self.new = nn.ModuleList(
            CrossConformal(
                {ENVIRONMENT: count + 1},
                quantiles=quantiles,
                rule="hierarchical" if self.is_enough(count) else "pooled",
            )
            for count in self.environments
        )
        for depth in range(1, len(self.cardinalities) + 1):
            self.register_buffer(f"keys_{depth}", torch.zeros(0, dtype=torch.int64))

    @property
    def needed(self) -> int:
        """From how many environments on an interval is the guaranteed one: with fewer it is infinite, or very wide."""
        return max(math.ceil(1 / (1 - (self.quantiles[-1] - self.quantiles[0])) - 1e-9) - 1, _FEW)

    def is_enough(self, environments: int) -> bool:
        """Whether so many environments tell about a new one."""
        return environments >= self.needed

    def new_environments(self) -> list[CrossConformal]:
        """The calibrations of new environments, from coarse to fine."""
        return [module for module in self.new if isinstance(module, CrossConformal)]

    def observe(self, categories: Categories) -> None:
        """Take the combinations of the training rows as known."""
        for depth in range(1, len(self.cardinalities) + 1):
            keys, complete = self._keys(categories, depth)
            setattr(self, f"keys_{depth}", torch.unique(keys[complete]))

    def is_known(self, categories: Categories) -> Tensor:
        """Whether a row's combination of all columns was among those of :meth:`observe`. Shape ``(B,)``."""
        keys, complete = self._keys(categories, len(self.cardinalities))
        return complete & torch.isin(keys, self.get_buffer(f"keys_{len(self.cardinalities)}"))

    def forward(self, preds: Tensor, categories: Categories) -> Tensor:
        """The ends of L intervals in increasing order, shape ``(B, D, 2L)``."""
        ends: Tensor = self.known(preds)
        for depth in range(len(self.cardinalities), 0, -1):  # the coarsest last, which then stays
            keys, complete = self._keys(categories, depth)
            is_new = ~(complete & torch.isin(keys, self.get_buffer(f"keys_{depth}")))
            anywhere = {ENVIRONMENT: torch.zeros_like(keys)}
            ends = torch.where(is_new[:, None, None], self.new[depth - 1](preds, anywhere), ends)
        return ends

    def _sizes(self, depth: int) -> dict[str, int]:
        return dict(list(self.cardinalities.items())[:depth])

    def _keys(self, categories: Categories, depth: int) -> tuple[Tensor, Tensor]:
        """A key for each row's combination of the first columns, and whether it has one: no id is 0."""
        sizes = self._sizes(depth)
        ids = [categories[column] for column in sizes]
        return joint_ids(ids, tuple(sizes.values())), torch.stack([i > 0 for i in ids]).all(0)

    def _describe(self) -> dict[str, Any]:
        return {
            "cardinalities": self.cardinalities,
            "quantiles": list(self.quantiles),
            "environments": list(self.environments),
        }

    @classmethod
    def _from_description(cls, description: Mapping[str, Any]) -> Self:
        return cls(**description)

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        for depth in range(1, len(self.cardinalities) + 1):
            # How many combinations are known is not known before.
            if (keys := state_dict.get(f"{prefix}keys_{depth}")) is not None:
                setattr(self, f"keys_{depth}", torch.empty_like(keys))
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)
