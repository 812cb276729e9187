"""Offsets per category as buffers: how they are adopted, loaded and looked up, and what an interval is made of."""

import math
from collections.abc import Mapping
from typing import Any, Literal, Self, TypeAlias

import torch
from torch import Tensor

from reghead._checks import (
    check_cardinalities,
    check_choice,
    check_floating,
    check_ids,
    check_int,
    check_number,
    check_prefix,
    check_shape,
    reads_values,
)
from reghead._persistence import SelfDescribingStatistics
from reghead._reduction import trailing
from reghead._typing import Categories
from reghead.calibration._pooling import pooled_quantiles
from reghead.calibration._quantile import exact_level
from reghead.calibration._scores import Score
from reghead.categories._statistics import distinct
from reghead.functional._lookup import joint_ids

Unseen: TypeAlias = Literal["parent", "infinite"]
"""The interval of a category without calibration rows: that of all rows, or an infinite one."""


class ConformalTable(SelfDescribingStatistics):
    """Conformal quantiles of scores, one row per category; row 0 is for rows of no known category.

    Buffers: ``group_keys`` ``(K,)``, sorted, 0 first; ``count``, the calibration rows behind each, ``(K, D)``; and
    ``offsets``, what is added to the ends, ``(K, D, S)``.
    """

    group_keys: Tensor
    count: Tensor
    offsets: Tensor
    _STATE: tuple[str, ...] = ("group_keys", "count", "offsets")

    def __init__(
        self,
        score: Score,
        groups: Mapping[str, int] | None,
        *,
        scaled: bool,
        pooling: float | None,
        min_count: int,
        unseen: Unseen,
    ) -> None:
        super().__init__()
        self._score = score
        # Sorted, so that the same columns in another order make the same keys.
        self.groups = dict(sorted(check_cardinalities("groups", {} if groups is None else groups).items()))
        if math.prod(self.groups.values()) >= 2**62:
            raise ValueError(
                f"the combinations of groups do not fit into 64 bits, got {self.groups}; use fewer columns"
            )
        self.scaled = scaled
        self.pooling = None if pooling is None else check_number("pooling", pooling, at_least=0.0)
        self.min_count = check_int("min_count", min_count)
        check_choice("unseen", unseen, ("parent", "infinite"))
        self.unseen = unseen
        self.register_buffer("group_keys", torch.zeros(0, dtype=torch.int64))
        self.register_buffer("count", torch.zeros(0, 0, dtype=torch.int64))
        self.register_buffer("offsets", torch.zeros(0, 0, len(score.levels), dtype=torch.float64))

    @property
    def confidence_levels(self) -> tuple[float, ...]:
        """The confidence levels of the intervals, the widest first."""
        return tuple(float(level) for level in self._score.confidence_levels)

    @property
    def is_conformalized(self) -> bool:
        """Whether there are offsets: after :meth:`conformalize`, or after loading those of one."""
        return len(self.group_keys) > 0

    def forward(self, preds: Tensor, categories: Categories | None = None, scale: Tensor | None = None) -> Tensor:
        """Intervals around ``preds``, as quantiles: ``lower, upper = module(preds, ...).unbind(-1)`` with one level.

        ``lower <= upper`` always. Differentiable in ``preds`` and ``scale``.

        Args:
            preds: Predictions of the kind and on the scale of :meth:`conformalize`.
            categories: Column -> ids of the ``groups``, with the leading dimensions of ``preds``. An id 0, or one
                without calibration rows, is not known.
            scale: The predicted spread, if ``scaled``. Shape ``(*, D)``.

        Returns:
            The ends of L intervals in increasing order: L lower ends, the widest first, and L upper ends, the widest
            last. Shape ``(*, D, 2L)``, in the dtype of ``preds``, float32 for half precision.

        Raises:
            RuntimeError: Before :meth:`conformalize`.
        """
        self._check_ready()
        lead = self._check_preds(preds, scale)
        if not lead or lead[-1] != self.offsets.shape[1]:
            raise ValueError(
                f"preds must have D = {self.offsets.shape[1]} target columns as at conformalize, got preds of shape "
                f"{tuple(preds.shape)}"
            )
        offsets = self.offsets[0]
        if self.groups:
            rows = self._rows(self._keys(categories, lead[:-1]))
            offsets = self.offsets.index_select(0, rows.reshape(-1)).reshape(*rows.shape, *self.offsets.shape[1:])
            offsets = offsets.reshape(*rows.shape, *(1,) * (len(lead) - 1 - rows.ndim), *self.offsets.shape[1:])
        if scale is not None:
            offsets = offsets * scale.unsqueeze(-1)
        lower, upper = self._score.ends(preds.to(torch.float64), offsets)
        return torch.cat([lower, upper.flip(-1)], dim=-1).to(torch.promote_types(preds.dtype, torch.float32))

    def interval(
        self,
        preds: Tensor,
        categories: Categories | None = None,
        scale: Tensor | None = None,
        *,
        confidence_level: float | None = None,
    ) -> tuple[Tensor, Tensor]:
        """``(lower, upper)`` of one confidence level, each ``(*, D)``; arguments as in the call of the module.

        Args:
            preds: Predictions.
            categories: Column -> ids.
            scale: The predicted spread, if ``scaled``.
            confidence_level: One of :attr:`confidence_levels`; may be left out if there is one.

        Raises:
            ValueError: If ``confidence_level`` is not one of those that were calibrated.
        """
        levels = self._score.confidence_levels
        if confidence_level is None:
            if len(levels) > 1:
                raise ValueError(f"confidence_level must be one of {self.confidence_levels}, got None")
            at = 0
        else:
            wanted = exact_level("confidence_level", confidence_level)
            if wanted not in levels:
                raise ValueError(f"confidence_level must be one of {self.confidence_levels}, got {confidence_level!r}")
            at = levels.index(wanted)
        ends = self(preds, categories, scale)
        return ends[..., at], ends[..., -1 - at]

    @torch.no_grad()
    def _measure(
        self, preds: Tensor, target: Tensor, categories: Categories | None, scale: Tensor | None, mask: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Scores ``(N, D, S)`` in float64, which of them count ``(N, D)``, and the key of each row ``(N,)``."""
        lead = self._check_preds(preds, scale)
        if len(lead) < 2:
            raise ValueError(
                f"conformalize needs preds with at least one leading dimension before the D target columns, "
                f"got {tuple(preds.shape)}"
            )
        if not math.prod(lead):
            raise ValueError(f"conformalize needs at least one row and one target column, got {tuple(preds.shape)}")
        check_floating("target", target)
        check_shape("target", target, lead, "(*, D)", "nothing is broadcast")
        counted = torch.ones(lead, dtype=torch.bool, device=target.device)
        if mask is not None:
            check_prefix("mask", mask, "target", target.shape)
            if mask.dtype != torch.bool:
                raise TypeError(f"mask must be a tensor of torch.bool, True where a target counts, got {mask.dtype}")
            counted = trailing(mask, target.ndim).expand(lead)
        scores = self._score.scores(preds.detach().to(torch.float64), target.detach().to(torch.float64))
        if scale is not None:
            scores = scores / scale.detach().unsqueeze(-1)
        if (scores.isnan().any(-1) & counted).any():
            bad = (scores.isnan().any(-1) & counted).reshape(-1, lead[-1]).sum(0).tolist()
            raise ValueError(
                f"scores must not be NaN, but by target column {bad} rows have a NaN in preds, target or scale; "
                "leave them out with mask"
            )
        keys = self._keys(categories, lead[:-1]) if self.groups else counted.new_zeros((), dtype=torch.int64)
        keys = trailing(keys, len(lead) - 1).expand(lead[:-1]).reshape(-1)
        return scores.reshape(-1, *scores.shape[-2:]), counted.reshape(-1, lead[-1]), keys

    def _conformalize(
        self, preds: Tensor, target: Tensor, categories: Categories | None, scale: Tensor | None, mask: Tensor | None
    ) -> Self:
        scores, counted, keys = self._measure(preds, target, categories, scale, mask)
        self._score.warn_crossing(preds, stacklevel=4)
        group_keys, count, offsets = self._quantiles(scores, counted, keys)
        parent = offsets[0] if self.unseen == "parent" else torch.full_like(offsets[0], torch.inf)
        return self._adopt(group_keys=group_keys, count=count, offsets=self._replace_unseen(count, offsets, parent))

    def _quantiles(self, scores: Tensor, counted: Tensor, keys: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Keys, counts and offsets; entry 0 is all rows'."""
        group_keys, rows = distinct(keys)
        if group_keys[0] != 0:  # 0 is there whether a row has it or not
            group_keys, rows = torch.cat([group_keys.new_zeros(1), group_keys]), rows + 1
        size = len(group_keys)
        counts, offsets = [], []
        for d in range(scores.shape[1]):
            here = slice(None) if counted[:, d].all() else counted[:, d]
            own_rows, own = rows[here], scores[here, d]
            counts.append(torch.bincount(own_rows, minlength=size))
            counts[-1][0] = len(own_rows)
            offsets.append(
                torch.stack(
                    [
                        pooled_quantiles(own[:, s], own_rows, size, level, self.pooling, self.min_count)
                        for s, level in enumerate(self._score.levels)
                    ],
                    dim=-1,
                )
            )
        return group_keys, torch.stack(counts, dim=1), torch.stack(offsets, dim=1)

    def _replace_unseen(self, count: Tensor, offsets: Tensor, unseen: Tensor) -> Tensor:
        """``offsets`` with ``unseen`` in row 0, and where a category has no counted row in a target column."""
        without = count == 0
        without[0] = True
        return torch.where(without.unsqueeze(-1), unseen, offsets)

    def _adopt(self, **state: Tensor) -> Self:
        device = self.group_keys.device
        for name, tensor in state.items():
            setattr(self, name, tensor.to(device))
        return self

    def _keys(self, categories: Categories | None, lead: torch.Size) -> Tensor:
        """The key of each row's category; 0 where an id is 0."""
        columns = check_ids(categories, self.groups, type(self).__name__)
        ids = [i.to(torch.int64) for i in columns]
        key, known = joint_ids(ids, tuple(self.groups.values())), ids[0] > 0
        for i in ids[1:]:
            known = known & (i > 0)
        check_prefix("categories", key, "preds without its columns", lead)
        return torch.where(known, key, 0)

    def _rows(self, keys: Tensor) -> Tensor:
        """The row of each key in the table; 0 where it has none."""
        rows = torch.searchsorted(self.group_keys, keys.contiguous()).clamp(max=len(self.group_keys) - 1)
        found = self.group_keys.index_select(0, rows.reshape(-1)).reshape(rows.shape)
        return torch.where(found == keys, rows, 0)

    def _check_preds(self, preds: Tensor, scale: Tensor | None) -> torch.Size:
        check_floating("preds", preds)
        lead = self._score.lead(preds)
        if (scale is not None) != self.scaled:
            expected = "a scale, the predicted spread" if self.scaled else "no scale; build it with scaled=True"
            raise ValueError(f"this {type(self).__name__} takes {expected}, got {'None' if scale is None else 'one'}")
        if scale is not None:
            check_floating("scale", scale)
            check_shape("scale", scale, lead, "(*, D)")
            if reads_values(scale) and bool((scale <= 0).any()):
                raise ValueError(f"scale must be positive, got {scale.min().item():g}")
        return lead

    def _check_ready(self) -> None:
        if not self.is_conformalized:
            raise RuntimeError(
                f"this {type(self).__name__} has no offsets yet; call conformalize with rows that the model was not "
                "trained on, or load a state_dict"
            )

    def _options(self) -> dict[str, Any]:
        return {
            "groups": self.groups,
            "scaled": self.scaled,
            "pooling": self.pooling,
            "min_count": self.min_count,
            "unseen": self.unseen,
        }

    def _describe(self) -> dict[str, Any]:
        return self._options()

    @classmethod
    def _from_description(cls, description: Mapping[str, Any]) -> Self:
        try:
            return cls(**description)
        except TypeError as error:
            raise ValueError(f"the description of a {cls.__name__} does not build one: {error}") from error

    def extra_repr(self) -> str:
        """The options, and what was calibrated."""
        state = f"{len(self.group_keys) - 1} categories" if self.is_conformalized else "not conformalized"
        return ", ".join([*(f"{name}={value!r}" for name, value in self._describe().items()), state])

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        """Take the sizes of what is loaded: D and the number of categories are not known before."""
        present = self._present(state_dict, prefix, self._STATE)
        if len(present) == len(self._STATE):  # else torch says which are missing
            self._check_state(present)
            self._resize(present)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def _check_state(self, state: Mapping[str, Tensor]) -> None:
        shape = state["offsets"].shape
        expected = {"group_keys": shape[:1], "count": shape[:2], "offsets": (*shape[:2], len(self._score.levels))}
        for name, wanted in expected.items():
            check_shape(f"the state_dict's {name}", state[name], tuple(wanted), "to go with its offsets")
