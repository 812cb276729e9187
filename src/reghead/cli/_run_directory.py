"""The output folder of a training or an evaluation: its results appear all at once, or not at all."""

import contextlib
import errno
import json
import os
import shutil
from pathlib import Path
from types import TracebackType
from typing import Literal, Self, TypeAlias

from reghead.cli._errors import InputError
from reghead.cli._lock import FolderLock
from reghead.config._base import read_small

RESULT = "run.json"
MARK = "unfinished.txt"
CHECKPOINT = "checkpoint.safetensors"
Content: TypeAlias = Literal["model", "evaluation"]
"""What is in a folder, as its ``run.json`` and its mark say."""
_WORK: dict[Content, str] = {"model": "training", "evaluation": "evaluation"}
_MARK_TEXTS: dict[Content, str] = {
    "model": "This training has not finished. The same command goes on with it with --resume.\n",
    "evaluation": "This evaluation has not finished. The same command starts it anew.\n",
}


class RunDirectory:
    """The folder that a training or an evaluation writes into, and its move to where the results belong.

    While it runs, everything is in the sibling ``<output_dir>.partial``; :meth:`commit` moves that to ``output_dir``.
    Results that are there already are first moved aside, to the hidden sibling ``.<name>.reghead-replaced``, and
    deleted last. A crash leaves, at every moment, the old results, the new ones, or both; the next start with the
    same ``output_dir`` tells by what is there:

    * aside and partial, no output: the new results were complete; they are moved in;
    * aside and output: the new results are in; the old ones are deleted;
    * aside alone: the old results are moved back;
    * an output with a mark: the new results are in; the mark goes, and before it the checkpoint.

    Whatever is to be deleted is renamed first, to ``.<name>.reghead-discarded``, so that no folder is ever half of
    itself under its own name.

    ``<output_dir>.lock`` keeps other processes away meanwhile.

    Args:
        output_dir: Where the results are to be.
        kind: What they are. Results of the other kind are never replaced: they may be the model that is evaluated.
            An unfinished evaluation is started anew, unasked.
        overwrite: Replace the results that are there, and start anew where an unfinished training is.
        resume: Go on with the unfinished training; with ``overwrite`` too, its results then replace those there.

    Raises:
        InputError: If this folder cannot be written, or would have to be overwritten without being asked for.
            Nothing has been changed then.
    """

    def __init__(
        self, output_dir: Path | str, *, kind: Content = "model", overwrite: bool = False, resume: bool = False
    ) -> None:
        self.shown = str(output_dir) or "."
        # A link stays: what it points to is replaced, beside itself.
        self.output_dir = Path(self.shown).resolve()
        self.kind, self.overwrite, self.resume = kind, overwrite, resume
        self._is_open = False
        self._check_place()
        parent, name = self.output_dir.parent, self.output_dir.name
        self.path = parent / f"{name}.partial"
        self.lock = FolderLock(parent / f"{name}.lock", self.shown)
        self._aside = parent / f".{name}.reghead-replaced"
        self._discarded = parent / f".{name}.reghead-discarded"
        self._new = parent / f".{name}.reghead-new"
        if self._aside.exists() or self._has_marked_results():
            with self.lock:
                self._finish_commit()
        self._check_contents()

    def open(self) -> Self:
        """Lock the folder, and make ``path``: new and empty, or with ``resume`` as it was left."""
        self.output_dir.parent.mkdir(parents=True, exist_ok=True)
        self.lock.acquire()
        try:
            shutil.rmtree(self._discarded, ignore_errors=True)
            self._check_contents()  # again: only now no other process can change it
            if not self.resume and self.path.exists():
                self._delete(self.path)
            if not _has_entries(self.path):
                self._make_marked()
            elif not (self.path / MARK).exists():
                (self.path / MARK).write_text(_MARK_TEXTS[self.kind], encoding="utf-8")
        except BaseException:
            shutil.rmtree(self._new, ignore_errors=True)
            self.lock.release()
            raise
        self._is_open = True
        return self

    def _make_marked(self) -> None:
        """Make ``path`` with its mark inside, at once: without one, nobody would know whose folder it is."""
        shutil.rmtree(self._new, ignore_errors=True)
        self._new.mkdir()
        (self._new / MARK).write_text(_MARK_TEXTS[self.kind], encoding="utf-8")
        if self.path.exists():
            self.path.rmdir()
        self._new.rename(self.path)

    def commit(self) -> Path:
        """Move the results to ``output_dir``, and return it.

        Raises:
            InputError: If other results have come there since the training started; the new ones stay in ``path``.
        """
        self._require_open()
        replaces = _has_entries(self.output_dir)
        if replaces and not (self.overwrite and _kind_of(self.output_dir) == self.kind):
            raise InputError(
                f"{self.shown} was written by somebody else during the {_WORK[self.kind]}; the results are in "
                f"{self.path}: move them to another place"
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
        self._unmark()
        if replaces:
            self._delete(self._aside)
        self.close()
        return self.output_dir

    def discard(self) -> None:
        """Delete what was written so far; the results that were there stay."""
        self._require_open()
        self._delete(self.path)
        self.close()

    def close(self) -> None:
        """Let other processes at the folder again; an unfinished training stays in ``path``, to be resumed."""
        if self._is_open:
            self._is_open = False
            self.lock.release()

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
        self.lock.check()
        has_results, has_partial = _has_entries(self.output_dir), _has_entries(self.path)
        if self.path.exists() and not self.path.is_dir():
            work = _WORK[self.kind]
            raise InputError(f"{self.path} is a file, where the {work} would write its folder; move it away")
        if self.resume and not has_partial:
            if has_results:
                raise InputError(f"nothing to resume: the training in {self.shown} is complete")
            raise InputError(f"nothing to resume: there is no unfinished training in {self.path}; leave --resume out")
        if has_partial:
            self._check_partial()
        if has_results:
            self._check_results()

    def _check_partial(self) -> None:
        """Refuse to delete what is no unfinished work of this kind, or what nobody said to delete."""
        found = _kind_of(self.path)
        if found is None:
            raise InputError(f"{self.path} is not a folder that reghead wrote (it has no whole {MARK}); move it away")
        if found != self.kind:
            raise InputError(
                f"an unfinished {_WORK[found]} is in {self.path}, and the {_WORK[self.kind]} would replace it; choose "
                "another --output-dir, or delete that folder"
            )
        if self.kind == "model" and not (self.resume or self.overwrite):
            raise InputError(
                f"an unfinished training is in {self.path}; --resume goes on with it, --overwrite starts anew"
            )

    def _check_results(self) -> None:
        """Refuse to replace what is no result of this kind, or what nobody said to replace."""
        found = _kind_of(self.output_dir)
        if found is not None and found != self.kind:
            raise InputError(
                f"{self.shown} holds {_a(found)}, which {_a(self.kind)} does not replace; choose another --output-dir"
            )
        if not self.overwrite:
            if self.resume:
                raise InputError(
                    f"{self.shown} already has results; give --overwrite beside --resume to replace them when the "
                    "resumed training is done"
                )
            if found is None:
                raise InputError(
                    f"{self.shown} already has results, which are not reghead's; choose another --output-dir"
                )
            raise InputError(f"{self.shown} already has results; choose another --output-dir, or give --overwrite")
        if found is None:
            raise InputError(
                f"{self.shown} is not a folder that reghead wrote (it has no whole {RESULT}), and is not "
                "overwritten; choose another --output-dir"
            )

    def _finish_commit(self) -> None:
        """Do the rest of a commit that a crash cut short, unless another process has done it."""
        if self._aside.exists() and not _has_entries(self.output_dir):
            if self.output_dir.exists():
                self.output_dir.rmdir()
            if not self.path.exists():
                self._aside.rename(self.output_dir)
                return
            self.path.rename(self.output_dir)
        if self._has_marked_results():
            self._unmark()
        if self._aside.exists():
            self._delete(self._aside)

    def _has_marked_results(self) -> bool:
        """Whether results were moved in that still say that they are unfinished; ``run.json`` was the last written."""
        return all(os.path.isfile(self.output_dir / name) for name in (MARK, RESULT))

    def _unmark(self) -> None:
        for name in (CHECKPOINT, MARK):  # the mark goes last: it says that there is something to do
            (self.output_dir / name).unlink(missing_ok=True)

    def _delete(self, folder: Path) -> None:
        """Delete ``folder``; what cannot be deleted now is, at the next time, with nobody waiting for it."""
        if folder.is_symlink():  # what it leads to is not ours
            folder.unlink()
            return
        shutil.rmtree(self._discarded, ignore_errors=True)
        try:
            folder.rename(self._discarded)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            shutil.rmtree(folder, ignore_errors=True)  # no room for another name, but to delete there is no need of any
            return
        shutil.rmtree(self._discarded, ignore_errors=True)


def _has_entries(folder: Path) -> bool:
    try:
        return os.path.isdir(folder) and bool(os.listdir(folder))
    except PermissionError:
        return True  # nobody closes an empty folder


def _kind_of(folder: Path) -> Content | None:
    """What ``folder`` holds or, by its mark, was to hold; None where reghead did not write it."""
    try:
        record = json.loads(read_small(folder / RESULT))
        said = record.get("kind") if isinstance(record, dict) else None
    except (OSError, ValueError, RecursionError):
        said = None
    with contextlib.suppress(OSError, UnicodeDecodeError):
        mark = (folder / MARK).read_text(encoding="utf-8")
        said = next((kind for kind, text in _MARK_TEXTS.items() if text == mark), said)
    return said if said in (*_WORK,) else None


def _a(kind: Content) -> str:
    return "a model" if kind == "model" else "an evaluation"
