"""Which loss is minimised, for all outputs or for each one."""

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal, TypeAlias

from reghead._checks import check_choice, check_columns, check_number, check_quantiles, did_you_mean
from reghead.config._base import Config, OptionError

LossType: TypeAlias = Literal[
    "mse", "mae", "huber", "quantile", "asymmetric", "expectile", "log_cosh", "huber_quantile"
]
Base: TypeAlias = Literal["mse", "mae", "huber"]

PARAMETERS: dict[str, tuple[str, ...]] = {
    "mse": (),
    "mae": (),
    "huber": ("delta",),
    "quantile": ("quantiles",),
    "asymmetric": ("over_penalty", "under_penalty", "base", "delta"),
    "expectile": ("expectile",),
    "log_cosh": (),
    "huber_quantile": ("quantiles", "delta"),
}
"""The parameters of each loss type."""
LOSS_TYPES = tuple(PARAMETERS)
BASES = ("mse", "mae", "huber")
DEFAULT_QUANTILES = (0.1, 0.5, 0.9)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LossConfig(Config):
    """The loss as plain data; :attr:`spec` is what ``reghead.losses.make_loss`` takes.

    Args:
        type: The loss of every output that ``per_output`` does not name.
        quantiles: Levels of the quantile losses, strictly between 0 and 1; (0.1, 0.5, 0.9) if left out.
        delta: Where the Huber losses turn linear, in the units of the loss.
        over_penalty: Factor on the asymmetric loss of a prediction above the target.
        under_penalty: Factor on the asymmetric loss of a prediction below the target.
        base: What the asymmetric loss multiplies.
        expectile: Level of the expectile loss, strictly between 0 and 1.
        per_output: Output (by name or index) to a loss type, or to a mapping with ``"type"``, any parameters of
            that type, and ``"weight"``. A parameter that an entry leaves out is the one given above.
        outputs: Names of the outputs, in their order. Once known, ``per_output`` must name no others.

    Raises:
        TypeError: If a value has the wrong type.
        ValueError: If a value is out of range, or a parameter is given that no chosen loss type has.

    Example:
        >>> config = LossConfig(per_output={"yield": "quantile", "pH": {"type": "mse", "weight": 2.0}})
        >>> config.levels
        (0.1, 0.5, 0.9)
        >>> LossConfig(type="asymmetric", over_penalty=2.0).spec
        {'type': 'asymmetric', 'over_penalty': 2.0, 'under_penalty': 1.0, 'base': 'mse'}
    """

    type: LossType = "huber"
    quantiles: tuple[float, ...] | None = None
    delta: float = 1.0
    over_penalty: float = 1.0
    under_penalty: float = 1.0
    base: Base = "mse"
    expectile: float = 0.5
    per_output: dict[str, dict[str, Any]] | None = None
    outputs: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_choice("type", self.type, LOSS_TYPES)
        self._set("outputs", check_columns("outputs", self.outputs))
        if self.per_output is not None:
            self._set("per_output", self._entries(self.per_output) or None)
        for field in dataclasses.fields(self):
            if field.name in _CHECKS and getattr(self, field.name) is not None:
                self._set(field.name, _check_parameter(field.name, field.name, getattr(self, field.name)))
                if getattr(self, field.name) != field.default:
                    self.refuse_unused(field.name)
        if self.quantiles is None and self.uses("quantiles"):
            self._set("quantiles", DEFAULT_QUANTILES)

    @property
    def levels(self) -> tuple[float, ...] | None:
        """The levels of all quantile losses together, increasing; ``None`` if every output is a point."""
        specs = [self._expand(entry) for entry in (self.per_output or {}).values()]
        if not (self.outputs and self.per_output and len(self.per_output) == len(self.outputs)):
            specs.append(self._expand({"type": self.type}))
        union = {level for spec in specs for level in spec.get("quantiles", ())}
        return tuple(sorted(union)) or None

    @property
    def spec(self) -> dict[str, Any]:
        """The loss with all its parameters, as JSON data that ``reghead.losses.make_loss`` takes."""
        default = self._expand({"type": self.type})
        if self.per_output is None:
            return default
        losses = {output: self._expand(entry) for output, entry in self.per_output.items()}
        return {"type": "per_output", "losses": losses, "outputs": list(self.outputs) or None, "default": default}

    def with_data(self, *, outputs: tuple[str, ...]) -> "LossConfig":
        """This configuration with the names of the outputs filled in."""
        return dataclasses.replace(self, outputs=outputs)

    def uses(self, parameter: str) -> bool:
        """Whether any output takes ``parameter`` from this configuration, and not from an entry of its own."""
        entries: list[dict[str, Any]] = [{"type": self.type}, *(self.per_output or {}).values()]
        return any(parameter in self._parameters(entry) and parameter not in entry for entry in entries)

    def refuse_unused(self, parameter: str) -> None:
        """Raise unless some output takes ``parameter`` from this configuration."""
        if self.uses(parameter):
            return
        takers = " or ".join(kind for kind, names in PARAMETERS.items() if parameter in names)
        if parameter == "delta":
            takers = takers.replace("asymmetric", "asymmetric (with {base} huber)")
        raise OptionError(
            f"{{{parameter}}} is for {{type}} {takers}, and no output takes it from here ({{type}} is {self.type}); "
            f"choose {{type}} {takers}, or leave {{{parameter}}} out"
        )

    def _parameters(self, entry: Mapping[str, Any]) -> tuple[str, ...]:
        names = PARAMETERS[entry["type"]]
        if entry["type"] == "asymmetric" and entry.get("base", self.base) != "huber":
            return tuple(name for name in names if name != "delta")
        return names

    def _expand(self, entry: Mapping[str, Any]) -> dict[str, Any]:
        inherited = {name: getattr(self, name) for name in self._parameters(entry)}
        spec = {"type": entry["type"], **inherited, **entry}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in spec.items()}

    def _entries(self, given: object) -> dict[str, dict[str, Any]]:
        if not isinstance(given, Mapping):
            raise TypeError(f"per_output must map outputs to losses, such as {{'pH': 'mse'}}, got {given!r}")
        entries: dict[str, dict[str, Any]] = {}
        for key, entry in given.items():
            name = self._output(key)
            if name in entries:
                raise OptionError("{per_output} names the output {name} twice", {"name": repr(name)})
            entries[name] = check_entry(f"per_output[{name!r}]", entry)
            if "delta" in entries[name] and "delta" not in self._parameters(entries[name]):
                raise OptionError(
                    "{per_output}[{name}] has a 'delta', which the loss 'asymmetric' takes with the base 'huber' only",
                    {"name": repr(name)},
                )
        return entries

    def _output(self, key: object) -> str:
        """The name of an output; while names are unknown, an index is kept as the text that JSON makes of it."""
        is_index = isinstance(key, int) and not isinstance(key, bool)
        if not is_index and not isinstance(key, str):
            raise TypeError(f"per_output must have names or indices of outputs as keys, got {key!r}")
        name = str(key)
        if not self.outputs or (name in self.outputs and not is_index):
            return name
        if name.isdecimal() and int(name) < len(self.outputs):
            return self.outputs[int(name)]
        raise OptionError(
            "{per_output} names the output {key}, which is not among the outputs ({known}){hint}",
            {
                "key": repr(key),
                "known": ", ".join(map(repr, self.outputs)),
                "hint": did_you_mean(key, self.outputs),
            },
        )


def check_entry(name: str, entry: object) -> dict[str, Any]:
    """Return one output's loss as ``{"type": ..., **parameters}``, with the parameters that ``entry`` gives."""
    if isinstance(entry, str):
        entry = {"type": entry}
    if not isinstance(entry, Mapping) or "type" not in entry:
        raise TypeError(
            f"{name} must be a loss type or a mapping with 'type', such as {{'type': 'huber', 'delta': 2.0}}, "
            f"got {entry!r}"
        )
    check_choice(f"{name}['type']", entry["type"], LOSS_TYPES)
    takes = (*PARAMETERS[entry["type"]], "weight")
    checked: dict[str, Any] = {"type": entry["type"]}
    for parameter, value in entry.items():
        if parameter == "type":
            continue
        if parameter not in takes:
            raise ValueError(
                f"{name} has the parameter {parameter!r}, which the loss {entry['type']!r} does not take; "
                f"it takes {', '.join(takes)}{did_you_mean(parameter, takes)}"
            )
        checked[parameter] = _check_parameter(f"{name}[{parameter!r}]", parameter, value)
    return checked


def _check_base(name: str, value: object) -> object:
    check_choice(name, value, BASES)
    return value


_CHECKS: dict[str, Any] = {
    "quantiles": check_quantiles,
    "delta": lambda name, value: check_number(name, value, above=0.0),
    "over_penalty": lambda name, value: check_number(name, value, above=0.0),
    "under_penalty": lambda name, value: check_number(name, value, above=0.0),
    "base": _check_base,
    "expectile": lambda name, value: check_number(name, value, above=0.0, below=1.0),
    "weight": lambda name, value: check_number(name, value, at_least=0.0),
}


def _check_parameter(name: str, parameter: str, value: object) -> Any:
    return _CHECKS[parameter](name, value)
