"""What every configuration shares: plain data in and out, and errors that can be said in other words."""

import dataclasses
import json
import os
import re
from collections.abc import Callable, Mapping
from typing import Any, NoReturn, Self, TypeVar

from reghead._checks import did_you_mean

C = TypeVar("C", bound="Config")
_LARGEST = 16 << 20  # bytes


class OptionError(ValueError):
    """A combination of options that is refused.

    The names of options stand in braces in ``template``, so that a command line can say the same in its flags.
    """

    def __init__(self, template: str, values: Mapping[str, object] | None = None) -> None:
        super().__init__(template, values)
        self.template, self.values = template, values or {}

    def __str__(self) -> str:
        return self.spelled(lambda field: field)

    def spelled(self, spell: Callable[[str], str]) -> str:
        """The message, with every option's name put through ``spell``."""

        def fill(match: re.Match[str]) -> str:
            name = match[1]
            return str(self.values[name]) if name in self.values else spell(name)

        return re.sub(r"\{([\w.]+)\}", fill, self.template)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Base of the frozen dataclasses of :mod:`reghead.config`: plain data in and out."""

    def to_dict(self) -> dict[str, Any]:
        """All fields as plain JSON data: lists for tuples, dictionaries for nested configurations."""
        return {field.name: _plain(getattr(self, field.name)) for field in dataclasses.fields(self)}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """The configuration that :meth:`to_dict` describes; fields left out take their defaults.

        Raises:
            TypeError: If ``data`` is not a mapping, or a value has the wrong type; the message names the field.
            ValueError: If a key is unknown, a required one is missing, or a value or a combination is refused.
        """
        if not isinstance(data, Mapping):
            raise TypeError(f"{cls.__name__} must be a mapping from field to value, got {data!r}")
        fields = {field.name: field for field in dataclasses.fields(cls)}
        for key in data:
            if key not in fields:
                raise ValueError(
                    f"{cls.__name__} has no field {key!r}{did_you_mean(key, fields)}; it has {', '.join(fields)}"
                )
        for name, field in fields.items():
            missing = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
            if missing and name not in data:
                raise ValueError(f"{cls.__name__} needs the field {name!r}")
        return cls(**data)

    def to_json(self, *, indent: int | None = None) -> str:
        """:meth:`to_dict` as JSON text."""
        return json.dumps(self.to_dict(), indent=indent, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Self:
        """The configuration that :meth:`to_json` wrote.

        Raises:
            ValueError: If ``text`` is not JSON, with the line and the column, or as in :meth:`from_dict`.
        """
        return cls.from_dict(parse_json(text, cls.__name__))

    def _set(self, name: str, value: object) -> None:
        object.__setattr__(self, name, value)


def read_small(path: str | os.PathLike[str]) -> str:
    """The text of a file of options or results, which is never large, where a mistaken one may be without end.

    Raises:
        OSError: If it cannot be read.
        ValueError: If it has more than 16 MiB, or is not UTF-8.
    """
    with open(path, "rb") as file:
        content = file.read(_LARGEST + 1)
    if len(content) > _LARGEST:
        raise ValueError(f"it has more than {_LARGEST >> 20} MiB, which no file of this kind has")
    return content.decode("utf-8")


def parse_json(text: str, what: str) -> Any:
    """``text`` as JSON data, without the two laxities of the standard library: NaN and repeated keys."""
    try:
        return json.loads(text, object_pairs_hook=_without_repeats, parse_constant=_refuse_constant)
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{what} is not valid JSON at line {error.lineno}, column {error.colno}: {error.msg}"
        ) from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{what} is not valid JSON: {error}") from error


def nested(name: str, value: object, kind: type[C]) -> C:
    """``value`` as a ``kind``: it is one already, or a mapping that describes one."""
    if isinstance(value, kind):
        return value
    if not isinstance(value, Mapping):
        raise TypeError(f"{name} must be a {kind.__name__} or a mapping, got {value!r} of type {type(value).__name__}")
    return kind.from_dict(value)


def check_bool(name: str, value: object) -> bool:
    """Return ``value`` if it is a boolean; 0, 1 and ``"no"`` are not."""
    if type(value).__name__ not in ("bool", "bool_"):
        raise TypeError(f"{name} must be True or False, got {value!r} of type {type(value).__name__}")
    return bool(value)


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    result = dict(pairs)
    if len(result) != len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {next(key for key in keys if keys.count(key) > 1)!r} appears twice in one object")
    return result


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number in JSON")


def _plain(value: object) -> Any:
    if isinstance(value, Config):
        return value.to_dict()
    if isinstance(value, (tuple, list)):
        return [_plain(item) for item in value]
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    return value
