"""Which targets the flags can be met for, found out before training."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from reghead.cli._errors import InputError
from reghead.cli._schema import check_target, numbers_of
from reghead.cli._tables import Table
from reghead.config import RegressionConfig


class _Domain(NamedTuple):
    """What a flag takes."""

    low: float
    high: float
    is_open: bool
    otherwise: str = ""  # what takes the limits themselves

    def __str__(self) -> str:
        if math.isfinite(self.high):
            return f"{'strictly ' if self.is_open else ''}between {self.low:g} and {self.high:g}"
        return f"{'above' if self.is_open else 'at or above'} {self.low:g}"


_TRANSFORMS = {
    "log": _Domain(0.0, math.inf, True, "--target-transform log1p takes 0 too"),
    "log1p": _Domain(-1.0, math.inf, True),
    "logit": _Domain(0.0, 1.0, True, "--bounded-targets in its place takes 0 and 1 too"),
    "softplus": _Domain(0.0, math.inf, True, "--target-transform clamp takes 0 too"),
    "clamp": _Domain(0.0, math.inf, False),
}


def check_targets(table: Table, targets: Sequence[str], config: RegressionConfig) -> None:
    """Refuse targets that are no numbers, that predictions could not reach, or that have no transform.

    Args:
        table: With the targets.
        targets: Their columns.
        config: As the flags say, before it is moved to the target's own scale.

    Raises:
        InputError: With the flag, the first row at fault and its value.
    """
    asked = _asked(config)
    for column in targets:
        values = numbers_of(table.column(column), f"target {column!r}")
        check_target(values, column, 0)
        if asked is None:
            continue
        flag, domain = asked
        wrong = (values < domain.low) | (values > domain.high)
        way_out = f"leave {flag.split()[0]} out"
        if domain.is_open and not wrong.any():
            wrong = (values == domain.low) | (values == domain.high)
            way_out = domain.otherwise or way_out
        if wrong.any():
            row = int(wrong.argmax())
            raise InputError(
                f"{flag} takes targets {domain}, and {column!r} is {values[row]:g} in row {row + 1} of "
                f"{table.paths[0]} ({wrong.sum()} such rows); {way_out}"
            )


def _asked(config: RegressionConfig) -> tuple[str, _Domain] | None:
    """The flag that shapes the predictions, as it was given, and what it takes."""
    head, normalizer = config.head, config.normalizer
    # Without a transform a network comes as close to the limit as it needs to, and targets may be there.
    transformed = normalizer is not None
    if head.bounds is not None:
        alone = "--bounded-targets without a normalized target takes 0 and 1 too"
        return "--bounded-targets", _Domain(*head.bounds, transformed, alone)
    if head.output_activation is not None:
        activation = head.output_activation
        is_open = transformed and activation != "relu"
        domain = _Domain(0.0, math.inf, is_open, "--output-activation relu takes 0 too")
        return f"--output-activation {activation}", domain
    if normalizer is not None and normalizer.transform != "identity":
        return f"--target-transform {normalizer.transform}", _TRANSFORMS[normalizer.transform]
    return None
