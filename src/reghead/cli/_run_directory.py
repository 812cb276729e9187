"""The output folder of a training: its results appear all at once, or not at all."""

import contextlib
import os
import shutil
import socket
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Self

from reghead.cli._errors import InputError

RESULT = "run.json"
MARK = "unfinished.txt"
MARK_TEXT = "This training has not finished. The same command goes on with it with --resume.\n"


class RunDirectory:
    """The folder that a training writes into, and its move to where the results belong.

    While it runs, everything is in the sibling ``<output_dir>.partial``; :meth:`commit` moves that to ``output_dir``.
    Results that are there already are first moved aside, to the hidden sibling ``.<name>.reghead-replaced``, and
    deleted last. A crash leaves, at every moment, the old results, the new ones, or both; the next start with the
    same ``output_dir`` tells by what is there:

    * aside and partial, no output: the new results were complete; they are moved in;
    * aside and output: the new results are in; the old ones are deleted;
    * aside alone: the old results are moved back.

    Whatever is to be deleted is renamed first, to ``.<name>.reghead-discarded``, so that no folder is ever half of
    itself under its own name.

    ``<output_dir>.lock`` holds the process id and the host of the process that is at work here. That of a process
    that no longer runs is taken over; one of another host, which cannot be asked, is not.

    Args:
        output_dir: Where the results are to be.
        overwrite: Replace the results that are there, and start anew where an unfinished training is.
        resume: Go on with the unfinished training; with ``overwrite`` too, its results then replace those there.

    Raises:
        InputError: If this folder cannot be written, or would have to be overwritten without being asked for.
            Nothing has been changed then.
    """

    def __init__(self, output_dir: Path | str, *, overwrite: bool = False, resume: bool = False) -> None:
        self.shown = str(output_dir) or "."
        # A link stays: what it points to is replaced, beside itself.
        self.output_dir = Path(self.shown).resolve()
        self.overwrite, self.resume = overwrite, resume
        self._is_open = False
        self._check_place()
        parent, name = self.output_dir.parent, self.output_dir.name
        self.path = parent / f"{name}.partial"
        self.lock = parent / f"{name}.lock"
        self._aside = parent / f".{name}.reghead-replaced"
        self._discarded = parent / f".{name}.reghead-discarded"
        if self._aside.exists():
            with self._locked():
                self._finish_commit()
        self._check_contents()

    def open(self) -> Self:
        """Lock the folder, and make ``path``: new and empty, or with ``resume`` as it was left."""
        self.output_dir.parent.mkdir(parents=True, exist_ok=True)
        self._acquire()
        try:
            shutil.rmtree(self._discarded, ignore_errors=True)
            self._check_contents()  # again: only now no other process can change it
            if not self.resume and self.path.exists():
                self._delete(self.path)
            self.path.mkdir(exist_ok=True)
            (self.path / MARK).write_text(MARK_TEXT, encoding="utf-8")
        except BaseException:
            self._release()
            raise
        self._is_open = True
        return self

    def commit(self) -> Path:
        """Move the results to ``output_dir``, and return it.

        Raises:
            InputError: If other results have come there since the training started; the new ones stay in ``path``.
        """
        self._require_open()
        replaces = _has_entries(self.output_dir)
        if replaces and not (self.overwrite and _is_result(self.output_dir)):
            raise InputError(
                f"{self.shown} was written by somebody else during the training; the results are in {self.path}: "
                "move them to another place"
            )
        if replaces:
            self.output_dir.rename(self._aside)
        elif self.output_dir.exists():
            self.output_dir.rmdir()
        try:
            self.path.rename(self.output_dir)
        except OSError:
            if replaces:
                self._aside.rename(self.output_dir)
            raise
        (self.output_dir / MARK).unlink(missing_ok=True)
        if replaces:
            self._delete(self._aside)
        self.close()
        return self.output_dir

    def discard(self) -> None:
        """Delete what the training has written so far; the results that were there stay."""
        self._require_open()
        self._delete(self.path)
        self.close()

    def close(self) -> None:
        """Let other processes at the folder again; an unfinished training stays in ``path``, to be resumed."""
        if self._is_open:
            self._is_open = False
            self._release()

    def __enter__(self) -> Self:
        return self if self._is_open else self.open()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _require_open(self) -> None:
        if not self._is_open:
            raise RuntimeError("the folder is not open; call open() first")

    def _check_place(self) -> None:
        """Refuse a place that could not be renamed, or not be written, whatever is in it."""
        out, here = self.output_dir, Path.cwd().resolve()
        kind = None
        if out == Path(out.anchor):
            kind = "the root of the file system"
        elif out == here:
            kind = "the current directory"
        elif out in here.parents:
            kind = "a folder that holds the current directory"
        elif os.path.ismount(out):
            kind = "a mount point"
        if kind is not None:
            raise InputError(
                f"{self.shown} is {kind}, which cannot be replaced as a whole; choose a folder inside it, "
                f"such as --output-dir {os.path.join(self.shown, 'run')}"
            )
        if os.path.exists(out) and not os.path.isdir(out):
            raise InputError(f"{self.shown} is a file, not a folder; choose another --output-dir")
        nearest = next(folder for folder in out.parents if os.path.exists(folder))
        if not os.path.isdir(nearest):
            raise InputError(f"{self.shown} cannot be made: {nearest} is a file, not a folder")
        if not os.access(nearest, os.W_OK | os.X_OK):
            raise InputError(f"{self.shown} cannot be made: {nearest} is not writable; choose another --output-dir")

    def _check_contents(self) -> None:
        """Refuse to resume what is not there, and to replace what nobody said to replace."""
        holder = self._holder()
        if holder is not None and not self._is_own(holder) and _runs(holder):
            raise self._in_use(holder)
        has_results, has_partial = _has_entries(self.output_dir), _has_entries(self.path)
        if self.path.exists() and not self.path.is_dir():
            raise InputError(f"{self.path} is a file, where the training would write its folder; move it away")
        if self.resume and not has_partial:
            if has_results:
                raise InputError(f"nothing to resume: the training in {self.shown} is complete")
            raise InputError(f"nothing to resume: there is no unfinished training in {self.path}; leave --resume out")
        if has_partial and not (self.resume or self.overwrite):
            raise InputError(
                f"an unfinished training is in {self.path}; --resume goes on with it, --overwrite starts anew"
            )
        if has_results and not self.overwrite:
            if self.resume:
                raise InputError(
                    f"{self.shown} already has results; give --overwrite beside --resume to replace them when the "
                    "resumed training is done"
                )
            raise InputError(f"{self.shown} already has results; choose another --output-dir, or give --overwrite")
        if has_results and not _is_result(self.output_dir):
            raise InputError(
                f"{self.shown} is not a folder that reghead wrote (it has no {RESULT}), and is not overwritten; "
                "choose another --output-dir"
            )
        if has_partial and not ((self.path / MARK).is_file() or _is_result(self.path)):
            raise InputError(f"{self.path} is not a folder that reghead wrote (it has no {MARK}); move it away")

    def _finish_commit(self) -> None:
        """Do the rest of a commit that a crash cut short."""
        if not self._aside.exists():
            return  # another process has done it
        if _has_entries(self.output_dir):
            self._delete(self._aside)
            return
        if self.output_dir.exists():
            self.output_dir.rmdir()
        if self.path.exists():
            self.path.rename(self.output_dir)
            (self.output_dir / MARK).unlink(missing_ok=True)
            self._delete(self._aside)
        else:
            self._aside.rename(self.output_dir)

    def _delete(self, folder: Path) -> None:
        """Delete ``folder``; what cannot be deleted now is, at the next time, with nobody waiting for it."""
        shutil.rmtree(self._discarded, ignore_errors=True)
        folder.rename(self._discarded)
        shutil.rmtree(self._discarded, ignore_errors=True)

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        self._acquire()
        try:
            yield
        finally:
            self._release()

    def _acquire(self) -> None:
        for _ in range(3):
            try:
                # O_EXCL: of two processes that come at once, one makes the file.
                handle = os.open(self.lock, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
            except FileExistsError:
                holder = self._holder()
                if holder is None:
                    continue  # released in between
                if not self._is_own(holder) and _runs(holder):
                    raise self._in_use(holder) from None
                self._take_over(holder)
            else:
                with os.fdopen(handle, "w", encoding="utf-8") as file:
                    file.write(_me())
                return
        raise self._in_use(self._holder() or "")

    def _take_over(self, holder: str) -> None:
        """Remove the lock of a process that no longer runs, unless another process has done so first."""
        taken = self.lock.with_name(f"{self.lock.name}.{os.getpid()}")
        try:
            self.lock.rename(taken)
        except FileNotFoundError:
            return
        if taken.read_text(encoding="utf-8", errors="replace") != holder:
            taken.rename(self.lock)  # the lock of the one that was first
            return
        taken.unlink()

    def _release(self) -> None:
        holder = self._holder()
        if holder is not None and self._is_own(holder):
            self.lock.unlink(missing_ok=True)

    def _holder(self) -> str | None:
        """What the lock says, or None where there is none."""
        try:
            return self.lock.read_text(encoding="utf-8", errors="replace")
        except FileNotFoundError:
            return None

    def _is_own(self, holder: str) -> bool:
        # Its number came round again, as in a container, or this process did not get to let go: nobody else runs.
        return holder == _me()

    def _in_use(self, holder: str) -> InputError:
        process = " on ".join(holder.split()[:2]) or "unknown"
        return InputError(
            f"{self.shown} is being written by another process ({process}); wait for it or choose another "
            f"--output-dir. If no training runs there, delete {self.lock}"
        )


def _me() -> str:
    return f"{os.getpid()} {socket.gethostname()}\n"


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


def _has_entries(folder: Path) -> bool:
    try:
        return os.path.isdir(folder) and bool(os.listdir(folder))
    except PermissionError:
        return True  # nobody closes an empty folder


def _is_result(folder: Path) -> bool:
    return os.path.isfile(folder / RESULT)
