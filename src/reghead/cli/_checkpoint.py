"""The state of a training in a file, written again every few seconds."""

import contextlib
import hashlib
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from reghead._optional import import_optional
from reghead._persistence import decode_json, encode_json
from reghead.cli._errors import InputError

_IDENTITY, _DIGEST = "identity", "sha256"


class FileCheckpoint:
    """Keeps the state of a training in ``path``, a safetensors file that is replaced in one step.

    Args:
        path: Of the file.
        identity: What must be the same for a training to go on: name -> value, in JSON.
        writes: Whether this process is the one that writes.
        seconds: Between writes, at least; the last state is in memory and written by :meth:`flush`.
    """

    def __init__(self, path: Path, identity: Mapping[str, Any], *, writes: bool = True, seconds: float = 5.0) -> None:
        self.path, self.identity, self.writes, self.seconds = path, dict(identity), writes, seconds
        self._latest: dict[str, Tensor] | None = None
        self._written_at = time.monotonic()

    def restore(self) -> dict[str, Tensor] | None:
        """The state in the file, or None where there is none.

        Raises:
            InputError: If it is not whole, or the state of another training.
        """
        if not self.path.exists():
            return None
        try:
            state = dict(import_optional("safetensors.torch", extra="cli").load(self.path.read_bytes()))
            if decode_json(state.pop(_DIGEST)) != _digest(state):
                raise ValueError("its SHA-256 is not the one that was written")
            theirs = decode_json(state.pop(_IDENTITY))
            if not isinstance(theirs, dict):
                raise ValueError("it does not say of which training")
        except Exception as error:
            raise InputError(f"the checkpoint {self.path} is damaged ({error}); --overwrite starts anew") from error
        for name, value in self.identity.items():
            if theirs.get(name) != decode_json(encode_json(value)):
                raise InputError(
                    f"--resume goes on with the same training, and {name} was {_shown(theirs.get(name))} there and is "
                    f"{_shown(value)} now; give the same, or start anew with --overwrite"
                )
        return state

    def keep(self, state: Callable[[], dict[str, Tensor]]) -> None:
        """Take a copy, and write it where the last was written some seconds ago."""
        if not self.writes:
            return
        self._latest = state()
        if time.monotonic() - self._written_at >= self.seconds:
            self.flush()

    def flush(self) -> bool:
        """Write the last state; whether there is one in the file."""
        if self._latest is not None:
            state = {**self._latest, _IDENTITY: encode_json(self.identity)}
            state[_DIGEST] = encode_json(_digest(state))
            content = import_optional("safetensors.torch", extra="cli").save(state)
            partial = self.path.with_name(self.path.name + ".partial")
            try:
                partial.write_bytes(content)
                os.replace(partial, self.path)
            except OSError as error:
                raise InputError(f"cannot write {self.path}: {error.strerror or error}") from error
            finally:
                with contextlib.suppress(OSError):
                    partial.unlink()
            self._latest, self._written_at = None, time.monotonic()
        return self.path.exists()


def _digest(state: Mapping[str, Tensor]) -> str:
    """SHA-256 of names, types, shapes and numbers: a bit that the disk has lost would train on unnoticed."""
    digest = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def _shown(value: object) -> str:
    return "not given" if value is None else repr(value)
