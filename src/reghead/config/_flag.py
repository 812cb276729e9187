"""One flag, and the kinds of values that flags take."""

import dataclasses
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, TypeAlias

from reghead._checks import check_choice, check_columns, check_hidden_dims, check_int, check_number, check_quantiles
from reghead.config._base import check_bool, parse_json, read_small
from reghead.config._loss import check_entry

Numeric: TypeAlias = type[int] | type[float]


@dataclasses.dataclass(frozen=True)
class Kind:
    """What a flag's text becomes.

    Args:
        parse: From the flag's name and its text, or a value that is parsed already, to the field's value.
        metavar: What stands for the text in the help.
        action: Whether the flag takes text, stands alone (``"switch"``), or has a ``--no-`` form (``"boolean"``).
    """

    parse: Callable[[str, object], Any]
    metavar: str = ""
    action: Literal["text", "switch", "boolean"] = "text"


@dataclasses.dataclass(frozen=True)
class Flag:
    """One command-line flag.

    Args:
        name: Its spelling, with the dashes.
        field: The field it fills, as a path from :class:`RegressionConfig`.
        group: Title of the group of flags it is listed in.
        kind: How it is parsed.
        help: What it does, without the default.
        default: What leaving it out means, in words.
        needs: The flag without which this one would do nothing.

    Example:
        >>> from reghead.config import FLAGS
        >>> flag = FLAGS[0]
        >>> flag.name, flag.field, flag.kind.parse(flag.name, "64,32")
        ('--regressor-hidden-dims', 'head.hidden_dims', (64, 32))
    """

    name: str
    field: str
    group: str
    kind: Kind
    help: str
    default: str
    needs: str | None = None

    @property
    def dest(self) -> str:
        """The attribute of the parsed arguments."""
        return self.name.removeprefix("--").replace("-", "_")


def integer(metavar: str) -> Kind:
    """A positive integer."""
    return Kind(lambda name, value: check_int(name, _convert(name, value, int, "an integer")), metavar)


def number(metavar: str, **bounds: float) -> Kind:
    """A finite number inside ``bounds``."""
    return Kind(lambda name, value: check_number(name, _convert(name, value, float, "a number"), **bounds), metavar)


def choice(choices: Sequence[str | None]) -> Kind:
    """One of ``choices``, where ``none`` is the word for None."""
    words = ["none" if word is None else word for word in choices]

    def parse(name: str, value: object) -> object:
        check_choice(name, value, words)
        return None if value == "none" and None in choices else value

    return Kind(parse, "|".join(words))


def switch(value_when_given: object) -> Kind:
    """A flag that stands alone, for one value."""

    def parse(name: str, value: object) -> object:
        check_bool(name, value)
        return value_when_given

    return Kind(parse, action="switch")


def _columns(name: str, value: object) -> tuple[str, ...]:
    items = [item.strip() for item in value.split(",")] if isinstance(value, str) else value
    if isinstance(items, list) and "" in items:
        raise ValueError(f"{name} must be column names separated by commas, such as location,season, got {value!r}")
    return check_columns(name, items)


def _hidden_dims(name: str, value: object) -> tuple[int, ...]:
    return check_hidden_dims(name, _split(name, value, int, "integers separated by commas, such as 64,32"))


def _levels(name: str, value: object) -> tuple[float, ...]:
    levels = _split(name, value, float, "numbers separated by commas, such as 0.1,0.5,0.9")
    if isinstance(levels, list) and all(isinstance(level, int | float) and 0.0 < level < 1.0 for level in levels):
        ordered = sorted(set(levels))
        if levels != ordered:
            wanted = ",".join(map(repr, ordered))
            raise ValueError(
                f"{name} must be strictly increasing, without repeats, got {tuple(levels)}; write {wanted}"
            )
    return check_quantiles(name, levels)


def _loss_config(name: str, value: object) -> dict[str, dict[str, Any]]:
    data, source = value, name
    if isinstance(value, str):
        text = value.strip()
        if not text.startswith("{"):
            source, text = f"{name} {value}", _read(name, text)
        data = parse_json(text, source)
    if not isinstance(data, Mapping):
        raise TypeError(f'{source} must map outputs to losses, such as {{"pH": "mse"}}, got {data!r}')
    return {output: check_entry(f"{name}[{output!r}]", entry) for output, entry in data.items()}


COLUMNS = Kind(_columns, "COLUMN[,...]")
HIDDEN_DIMS = Kind(_hidden_dims, "N[,N...]")
LEVELS = Kind(_levels, "Q[,Q...]")
LOSS_CONFIG = Kind(_loss_config, "FILE|JSON")
BOOLEAN = Kind(check_bool, action="boolean")


def _read(name: str, path: str) -> str:
    if not os.path.exists(path):
        which = "the file does not exist" if path.endswith(".json") else "it is neither"
        raise ValueError(
            f"{name} must be inline JSON that starts with {{, or the path of a JSON file; {which}: {path!r}"
        )
    try:
        return read_small(path)
    except (OSError, ValueError) as error:
        raise ValueError(f"{name} cannot read {path!r}: {error}") from error


def _split(name: str, value: object, kind: Numeric, described: str) -> object:
    if not isinstance(value, str):
        return value
    return [_convert(name, item, kind, described, whole=value) for item in value.split(",")]


def _convert(name: str, value: object, kind: Numeric, described: str, *, whole: str | None = None) -> object:
    if not isinstance(value, str):
        return value
    try:
        return kind(value)
    except ValueError:
        raise ValueError(f"{name} must be {described}, got {whole or value!r}") from None
