"""One rule of persistence: numbers are buffers and parameters, everything else is JSON in a uint8 tensor.

The JSON rides in the ``state_dict`` as extra state. A uint8 tensor is what ``torch.load(weights_only=True)`` and
safetensors both accept, so nothing is ever unpickled, and a ``state_dict`` alone is enough to rebuild its module.
"""

import json
import math
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from reghead._optional import import_optional

FORMAT = 1
EXTRA_STATE = "_extra_state"


def encode_json(value: object) -> Tensor:
    """JSON text of ``value`` as a uint8 tensor."""
    return torch.tensor(list(json.dumps(value, allow_nan=False).encode()), dtype=torch.uint8)


def decode_json(tensor: object) -> Any:
    """The value that :func:`encode_json` wrote."""
    if not isinstance(tensor, Tensor) or tensor.dtype != torch.uint8 or tensor.ndim != 1:
        raise ValueError(f"extra state must be JSON in a one-dimensional uint8 tensor, got {describe_kind(tensor)}")
    try:
        return json.loads(tensor.detach().cpu().numpy().tobytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"extra state must be JSON in a uint8 tensor, but the bytes do not parse: {error}") from error


def describe_kind(value: object) -> str:
    """Kind of a value for an error message."""
    return (
        f"a tensor of {value.dtype} with shape {tuple(value.shape)}"
        if isinstance(value, Tensor)
        else type(value).__name__
    )


class SelfDescribing(nn.Module, ABC):
    """A module whose ``state_dict`` says how to build it.

    A subclass implements :meth:`_describe` and :meth:`_from_description`, inverses of each other in JSON.
    """

    @abstractmethod
    def _describe(self) -> dict[str, Any]: ...

    @classmethod
    @abstractmethod
    def _from_description(cls, description: Mapping[str, Any]) -> Self: ...

    def get_extra_state(self) -> Tensor:
        """The description of this module as JSON in a uint8 tensor."""
        return encode_json({"format": FORMAT, "type": self._kind(), **self._describe()})

    def set_extra_state(self, state: object) -> None:
        """Refuse a ``state_dict`` that describes another module than this one."""
        theirs, ours = self._read_description(state), self._describe()
        different = sorted(key for key in {*theirs, *ours} if theirs.get(key) != json.loads(json.dumps(ours.get(key))))
        if different:
            name = self._kind()
            raise ValueError(
                f"the state_dict was written by another {name}: {_differences(theirs, ours, different)}; "
                f"use {name}.from_state_dict(state_dict) to build the one it describes"
            )

    @classmethod
    def _read_description(cls, state: object) -> dict[str, Any]:
        description = decode_json(state)
        if not isinstance(description, dict):
            raise ValueError(
                f"extra state must describe a {cls.__name__} in a JSON object, got {type(description).__name__}"
            )
        written, kind = description.pop("format", None), description.pop("type", None)
        if written != FORMAT:
            raise ValueError(f"the state_dict has format {written!r}, this version of reghead reads format {FORMAT}")
        if kind != cls._kind():
            raise ValueError(f"the state_dict describes a {kind}, not a {cls._kind()}")
        return description

    @classmethod
    def _kind(cls) -> str:
        """Name of the class, and not of the one that FSDP2 or a parametrization makes of it, which has no module."""
        return next(kind.__name__ for kind in cls.__mro__ if kind.__module__.partition(".")[0] not in ("abc", "torch"))

    @classmethod
    def from_state_dict(cls, state_dict: Mapping[str, Any], prefix: str = "") -> Self:
        """Build the module that ``state_dict`` describes, with its parameters and buffers.

        Args:
            state_dict: The :meth:`~torch.nn.Module.state_dict` of this class, or of a model that holds it.
            prefix: Where the module lives in ``state_dict``, such as ``"head."``.

        Raises:
            ValueError: If there is no description under ``prefix``, or it is that of another class.
        """
        own = {key[len(prefix) :]: value for key, value in state_dict.items() if key.startswith(prefix)}
        if EXTRA_STATE not in own:
            raise ValueError(
                f"state_dict has no key {prefix + EXTRA_STATE!r}, so nothing in it describes a {cls.__name__}; "
                f"pass prefix= if the module is part of a model"
            )
        description = cls._read_description(own[EXTRA_STATE])
        with _NoLarger(sum(value.numel() for value in own.values() if isinstance(value, Tensor)), cls._kind()):
            module = cls._from_description(description)
        for name, mine in module.state_dict().items():
            theirs = own.get(name)
            if isinstance(theirs, Tensor) and isinstance(mine, Tensor) and _sort_of(theirs) != _sort_of(mine):
                raise ValueError(f"the state_dict's {prefix}{name} must be of {mine.dtype}, got {theirs.dtype}")
        try:
            module.load_state_dict(own)
        except RuntimeError as error:
            raise ValueError(
                f"the state_dict does not fit the {cls._kind()} that it describes: {' '.join(str(error).split())}"
            ) from error
        return module

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the ``state_dict`` to ``path`` (safetensors), and its description beside it as readable JSON.

        The description goes to the same name with ``.json`` added. Each file is replaced in one step, so a crash
        leaves the old one or the new one. Needs the extra ``safetensors``.
        """
        # Bytes first, and not safetensors' own writing, whose errors name neither the file nor the disk.
        content = import_optional("safetensors.torch", extra="safetensors").save(
            {key: value.detach().contiguous() for key, value in self.state_dict().items()}
        )
        path = Path(path)
        text = json.dumps(decode_json(self.get_extra_state()), indent=2) + "\n"
        readable = path.with_name(path.name + ".json")
        partial = {file: file.with_name(file.name + ".partial") for file in (path, readable)}
        try:
            partial[path].write_bytes(content)
            partial[readable].write_text(text, encoding="utf-8")
            for file, written in partial.items():
                os.replace(written, file)
        finally:
            for written in partial.values():
                written.unlink(missing_ok=True)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Build the module that :meth:`save` wrote to ``path``. Needs the extra ``safetensors``.

        Raises:
            ValueError: If the file is not a whole safetensors file, or describes another class.
        """
        load = import_optional("safetensors.torch", extra="safetensors").load
        content = Path(path).read_bytes()
        try:
            state_dict = load(content)
        except Exception as error:  # safetensors raises a class of its own, which is no ValueError
            raise ValueError(f"{path} is not a whole safetensors file: {error}") from error
        return cls.from_state_dict(state_dict)


class SelfDescribingStatistics(SelfDescribing):
    """A self-describing module of buffers whose digits count and whose sizes the data decide."""

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        # float32 counts stop at 16,777,216, and an offset that a cast rounds down no longer covers: follow the device,
        # not the dtype.
        def move(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            return moved if moved.dtype == tensor.dtype else tensor.to(moved.device)

        super()._apply(move, recurse)  # type: ignore[no-untyped-call]
        return self

    def _present(self, state_dict: Mapping[str, Any], prefix: str, names: Sequence[str]) -> dict[str, Tensor]:
        """Those of the buffers ``names`` that ``state_dict`` has, once it was found to be that of such a module."""
        if prefix + EXTRA_STATE in state_dict:
            self.set_extra_state(state_dict[prefix + EXTRA_STATE])  # refuse before anything is overwritten
        return {name: state_dict[prefix + name] for name in names if prefix + name in state_dict}

    def _resize(self, state: Mapping[str, Tensor]) -> None:
        """Give buffers the sizes of what is to be loaded into them."""
        for name, tensor in state.items():
            setattr(self, name, getattr(self, name).new_empty(tensor.shape))


class _NoLarger(TorchFunctionMode):
    """Refuses to make tensors that are much larger than those of the ``state_dict`` that asks for them.

    A description of a few bytes could ask for more than there is memory for.
    """

    def __init__(self, held: int, kind: str) -> None:
        super().__init__()
        self._held, self._kind, self._made = held, kind, 0

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in _FACTORIES:
            size = kwargs.get("size", args)
            self._made += math.prod(size[0] if len(size) and isinstance(size[0], Sequence) else size)
            if self._made > 2 * self._held + _SLACK:
                raise ValueError(
                    f"the state_dict describes a {self._kind} of at least {self._made} numbers, and holds {self._held}"
                )
        return func(*args, **kwargs)


_FACTORIES = (torch.empty, torch.zeros, torch.ones, torch.full)
_SLACK = 1 << 24  # numbers that are made for other reasons, such as to look rows up


def _sort_of(tensor: Tensor) -> str:
    """What a cast would change more than the digits of."""
    kinds = {tensor.is_floating_point(): "float", tensor.is_complex(): "complex", tensor.dtype == torch.bool: "bool"}
    return kinds.get(True, "integer")


def refuse_a_part(present: Mapping[str, Tensor], prefix: str, names: Sequence[str]) -> None:
    """Raise if only some of the buffers ``names`` are present: statistics belong together."""
    if 0 < len(present) < len(names):
        lacking = ", ".join(prefix + name for name in names if name not in present)
        raise ValueError(
            f"the state_dict has only a part of the statistics, and nothing was loaded; it lacks {lacking}"
        )


def _differences(theirs: Mapping[str, Any], ours: Mapping[str, Any], keys: list[str]) -> str:
    parts = []
    for key in keys:
        left, right = theirs.get(key), ours.get(key)
        if isinstance(left, dict) and isinstance(right, dict):
            inner = sorted(k for k in {*left, *right} if left.get(k) != json.loads(json.dumps(right.get(k))))
            parts += [f"{k} is {left.get(k)!r} there and {right.get(k)!r} here" for k in inner]
        else:
            parts.append(f"{key} differs")
    return ", ".join(parts)
