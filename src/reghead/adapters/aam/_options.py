"""Flags of reghead as options of click, beside those that AAM's own command has."""

import copy
from collections.abc import Sequence
from typing import Any

from reghead.adapters.aam._plan import OURS
from reghead.config import Flag


def with_our_options(params: Sequence[Any]) -> list[Any]:
    """The parameters of ``aam train``, where reghead's flags take the place of those of the same name."""
    ours = {flag.dest: flag for flag in OURS}
    kept = [copy.copy(parameter) for parameter in params if parameter.name not in ours]
    for parameter in kept:
        if parameter.name == "metadata_column":
            parameter.help = "Column of the metadata to predict, or several separated by commas"
    return [*kept, *(_option(flag) for flag in ours.values())]


def _option(flag: Flag) -> Any:
    from click import Option

    described = f"{flag.help} (default: {flag.default})"
    if flag.kind.action == "switch":
        return Option([flag.name, flag.dest], is_flag=True, default=None, help=described)
    return Option([flag.name, flag.dest], default=None, metavar=flag.kind.metavar, help=described)
