"""How much a compressed table may unpack to: a few bytes of an archive can stand for more than any memory holds."""

import math
import os
from pathlib import Path
from typing import Any

from reghead.cli._errors import InputError

VARIABLE = "REGHEAD_UNPACKED_GIB"
_DEFAULT = 4.0  # GiB
_FACTOR = 50  # as often as that its packed size a file may always unpack to; text that people write stays below 30


def check_unpacked(path: Path, size: int) -> None:
    """Refuse what unpacks to ``size`` bytes where that is more than 4 GiB, and more than 50 times the file.

    ``REGHEAD_UNPACKED_GIB`` is read in the place of the 4.

    Raises:
        InputError: With the limit, and how to lift it.
    """
    limit = _limit()
    if size > max(limit * 2**30, _FACTOR * path.stat().st_size):
        raise InputError(
            f"{path} unpacks to more than {limit:g} GiB, and to more than {_FACTOR} times its size, as a file that is "
            f"made to fill the memory does; if it is what it should be, set {VARIABLE} to the GiB it may have"
        )


class Counted:
    """A stream that is unpacked while it is read, up to the limit.

    Args:
        path: Of the packed file.
        stream: The unpacked bytes.
    """

    closed = False

    def __init__(self, path: Path, stream: Any) -> None:
        self._path, self._stream, self._size = path, stream, 0

    def read(self, size: int = -1) -> bytes:
        """At most ``size`` bytes."""
        content: bytes = self._stream.read(size)
        self._size += len(content)
        check_unpacked(self._path, self._size)
        return content

    def close(self) -> None:
        """Close the file."""
        self.closed = True
        self._stream.close()


def _limit() -> float:
    text = os.environ.get(VARIABLE, str(_DEFAULT))
    try:
        limit = float(text)
    except ValueError:
        limit = math.nan
    if not limit > 0:
        raise InputError(f"the environment variable {VARIABLE} must be a positive number of GiB, got {text!r}")
    return limit
