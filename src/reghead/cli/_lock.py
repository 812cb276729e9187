"""A file that keeps other processes away from a folder."""

import contextlib
import glob
import os
import socket
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from reghead.cli._errors import InputError

_WRITTEN_WITHIN = 10.0  # seconds


class FolderLock:
    """Holds the process id and the host of the process that is at work in a folder.

    That of a process that no longer runs is taken over; one of another host, which cannot be asked, is not.

    Args:
        path: Of the file.
        shown: The folder, as the user wrote it.
    """

    def __init__(self, path: Path, shown: str) -> None:
        self.path, self.shown = path, shown

    def __enter__(self) -> Self:
        self.acquire()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.release()

    def check(self) -> None:
        """Refuse to go on where another process is at work.

        Raises:
            InputError: With the process, and what to do.
        """
        holder = self._holder()
        if holder is not None and self._is_held(holder):
            raise self._in_use(holder)

    def acquire(self) -> None:
        """Take the lock.

        Raises:
            InputError: If another process has it.
        """
        for _ in range(3):
            try:
                # O_EXCL: of two processes that come at once, one makes the file.
                handle = os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
            except FileExistsError:
                holder = self._holder()
                if holder is None:
                    continue  # released in between
                if self._is_held(holder):
                    raise self._in_use(holder) from None
                self._take_over(holder)
            else:
                with os.fdopen(handle, "w", encoding="utf-8") as file:
                    file.write(_me())
                self._tidy()
                return
        raise self._in_use(self._holder() or "")

    def release(self) -> None:
        """Let go of the lock, if it is this process's."""
        holder = self._holder()
        if holder is not None and _is_own(holder):
            self.path.unlink(missing_ok=True)

    def _take_over(self, holder: str) -> None:
        """Remove the lock of a process that no longer runs, unless another process has done so first."""
        taken = self.path.with_name(f"{self.path.name}.{os.getpid()}")
        with contextlib.suppress(FileNotFoundError):
            self.path.rename(taken)
            if taken.read_text(encoding="utf-8", errors="replace") != holder:
                taken.rename(self.path)  # the lock of the one that was first
            else:
                taken.unlink()

    def _tidy(self) -> None:
        """Remove what is left of processes that were killed while they took a lock over."""
        for left in self.path.parent.glob(f"{glob.escape(self.path.name)}.*"):
            number = left.name.rpartition(".")[2]
            if number.isdecimal() and not _runs(f"{number} {socket.gethostname()}"):
                left.unlink(missing_ok=True)

    def _holder(self) -> str | None:
        """What the lock says, or None where there is none."""
        try:
            return self.path.read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            return None

    def _is_held(self, holder: str) -> bool:
        """Whether the process that a lock names is another, and may run."""
        if holder:
            return not _is_own(holder) and _runs(holder)
        # Made, and nothing written yet: by a process that is just doing so, or was killed before.
        with contextlib.suppress(FileNotFoundError):
            return time.time() - self.path.stat().st_mtime < _WRITTEN_WITHIN
        return False

    def _in_use(self, holder: str) -> InputError:
        process = " on ".join(holder.split()[:2]) or "unknown"
        return InputError(
            f"{self.shown} is being written by another process ({process}); wait for it or choose another "
            f"--output-dir. If nothing runs there, delete {self.path}"
        )


def _me() -> str:
    return f"{os.getpid()} {socket.gethostname()}\n"


def _is_own(holder: str) -> bool:
    # Its number came round again, as in a container, or this process did not get to let go: nobody else runs.
    return holder == _me()


def _runs(holder: str) -> bool:
    """Whether the process that a lock names still runs; where that cannot be found out it may."""
    pid, _, host = holder.strip().partition(" ")
    if host != socket.gethostname() or not pid.isdecimal() or os.name == "nt":  # on Windows signal 0 is Ctrl+C
        return True
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True
