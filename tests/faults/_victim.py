"""The command in processes of its own whose end, or whose disk, is chosen: at any change of a file, or at any moment.

They are forked off one that has imported everything, so that hundreds of them take seconds.
"""

import errno
import multiprocessing
import os
import re
import resource
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

Fate = Literal["none", "killed", "full", "cut"]
PATIENCE = 240.0  # seconds; a process that is not done by then hangs
_PRELOADED = (
    *("reghead.cli._train", "reghead.cli._predict", "reghead.cli._evaluate", "reghead.estimators._fit"),
    *("pandas", "pyarrow.csv", "pyarrow.parquet", "safetensors.torch", "torch.optim.adamw"),
)
_CHANGES = ("os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.link", "os.symlink")


@dataclass(frozen=True)
class Ended:
    """How a process ended.

    Args:
        code: Its exit code; minus the signal's number if one ended it.
        out: What it wrote to the standard output.
        err: What it wrote to the standard error.
        changes: Changes of files that it made, or began, under the folder that was watched.
    """

    code: int
    out: str
    err: str
    changes: int

    @property
    def line(self) -> str:
        """The one line of an error."""
        (line,) = [line for line in self.err.splitlines() if line.startswith("reghead: error: ")]
        return line


class Victims:
    """Starts processes whose files are under ``folder``."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._context = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload([*_PRELOADED])
        self._started = 0

    def run(self, arguments: Sequence[str], fate: Fate = "none", at: int = 0, *, lasts: float | None = None) -> Ended:
        """Run the command to its end.

        Args:
            arguments: Those of ``reghead``.
            fate: ``"killed"`` by SIGKILL just before a change of a file; the disk is ``"full"`` from a change on;
                ``"cut"``: killed in the middle of the first file that grows too long.
            at: Which change, from 1; for ``"cut"`` the length in bytes.
            lasts: Seconds after which it is killed at the latest.
        """
        self._started += 1
        log = self.folder.parent / f"{self.folder.name}-log-{self._started}"
        log.mkdir()
        process = self._context.Process(target=_live, args=([*arguments], str(self.folder), str(log), fate, at))
        process.start()
        try:
            process.join(PATIENCE if lasts is None else lasts)
            if process.is_alive() and lasts is None:
                raise AssertionError(f"the process hangs: {arguments}\n{(log / 'err').read_text()}")
        finally:
            process.kill()
            process.join()
        changes = log / "changes"
        said = [(log / name).read_text() if (log / name).exists() else "" for name in ("out", "err")]
        code = process.exitcode
        assert code is not None
        return Ended(code, *said, changes.stat().st_size if changes.exists() else 0)


def _live(arguments: list[str], folder: str, log: str, fate: Fate, at: int) -> None:
    for descriptor, name in ((1, "out"), (2, "err")):
        os.dup2(os.open(os.path.join(log, name), os.O_CREAT | os.O_WRONLY | os.O_APPEND), descriptor)
    from reghead.cli import main
    from reghead.cli._checkpoint import FileCheckpoint

    keywords: Any = FileCheckpoint.__init__.__kwdefaults__
    keywords["seconds"] = 0.0  # every epoch is written
    if fate == "cut":
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        resource.setrlimit(resource.RLIMIT_FSIZE, (at, at))
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    else:
        sys.addaudithook(_watch(folder, os.open(os.path.join(log, "changes"), os.O_CREAT | os.O_WRONLY), fate, at))
    code = main(arguments)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def _watch(folder: str, record: int, fate: Fate, at: int) -> Callable[[str, tuple[Any, ...]], None]:
    """Notes each change of a file under ``folder``, and lets fate have its way at number ``at``."""
    seen = 0

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal seen
        if not _changes(event, arguments) or not _inside(arguments[0], folder):
            return
        seen += 1
        os.write(record, b".")
        if fate == "killed" and seen == at:
            os.kill(os.getpid(), signal.SIGKILL)
        if fate == "full" and seen >= at and event in ("open", "os.rename", "os.mkdir"):
            raise OSError(errno.ENOSPC, "No space left on device", os.fsdecode(arguments[0]))

    return hook


def _changes(event: str, arguments: tuple[Any, ...]) -> bool:
    if event != "open":
        return event in _CHANGES
    _, _, flags = arguments
    return bool(flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT))


def _inside(path: object, folder: str) -> bool:
    return isinstance(path, str | bytes | os.PathLike) and os.fsdecode(path).startswith(folder + os.sep)


def plain(text: str) -> str:
    """Without the random names of temporary files."""
    return re.sub(r"\.[0-9a-f]{8}\.partial", ".partial", text)
