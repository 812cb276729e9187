"""The entry point: what can go wrong is told in one line, with exit code 2."""

import contextlib
import os
import signal
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from types import FrameType
from typing import Any, NoReturn

from reghead import RedundantOptionWarning, RegheadWarning, UnseenCategoryWarning
from reghead.cli._errors import InputError, ToldElsewhereError
from reghead.cli._parser import make_parser

_PATIENCE = 30.0  # seconds that one process may be behind another when it fails as that one did


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``reghead`` with ``argv``, those of the process by default.

    Returns:
        The exit code: 0, or 2 after an error, which is told in one line on standard error.

    Example:
        >>> main(["evaluate", "no-such-folder", "table.csv"])
        2
    """
    traceback = "--traceback" in (sys.argv[1:] if argv is None else argv)
    try:
        with _plain_warnings(), _interrupted_once():
            args = make_parser().parse_args(argv)
            _command(args.command)(args)
        return 0
    except KeyboardInterrupt as error:
        if os.environ.get("RANK", "0") != "0":  # the first knows what was kept
            return 2
        message = str(error) or "interrupted; nothing was written"
    except BrokenPipeError:
        # The reader of a pipe, such as head, has what it wants. Python would complain when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except ToldElsewhereError:
        _await_the_end()
        return 2
    except (InputError, ValueError, TypeError, RuntimeError, OSError, ImportError, MemoryError) as error:
        if traceback:
            raise
        notes = getattr(error, "__notes__", [])
        if not notes and os.environ.get("LOCAL_RANK", "0") != "0":
            # Processes that have not met yet all fail alike, and the first of each machine tells. It may be slower, and
            # torchrun, which stops all when one has left, would stop it before it has told.
            _await_the_end()
            notes = [f"(process {os.environ.get('RANK')})"]
        message = " ".join([_describe(error), *notes])
    print(f"reghead: error: {' '.join(message.split())}", file=sys.stderr)
    return 2


def _await_the_end() -> None:
    """Leave the process that tells the time to do so: torchrun stops this one as soon as that one has left."""
    with contextlib.suppress(KeyboardInterrupt):
        time.sleep(_PATIENCE)


def _command(name: str) -> Any:
    # Imported late: --help and wrong flags need not wait for torch and pandas.
    if name == "train":
        from reghead.cli._train import run
    elif name == "predict":
        from reghead.cli._predict import run
    else:
        from reghead.cli._evaluate import run
    return run


def _describe(error: BaseException) -> str:
    if isinstance(error, MemoryError):
        return f"out of memory: {error}".rstrip(": ")
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return str(error) or type(error).__name__


@contextlib.contextmanager
def _plain_warnings() -> Iterator[None]:
    def show(message: Warning | str, category: type[Warning], *_: Any, **__: Any) -> None:
        if os.environ.get("RANK", "0") == "0":  # the others would say the same
            print(f"reghead: warning: {' '.join(str(message).split())}", file=sys.stderr)

    with warnings.catch_warnings():
        warnings.showwarning = show
        warnings.simplefilter("always", RegheadWarning)
        warnings.simplefilter("ignore", UnseenCategoryWarning)  # the commands count them over the whole table
        warnings.simplefilter("ignore", RedundantOptionWarning)  # of the head's arguments; training names the flags
        yield


@contextlib.contextmanager
def _interrupted_once() -> Iterator[None]:
    """A scheduler's SIGTERM is as Ctrl-C, and neither comes twice: what was trained is then being kept."""
    before: dict[signal.Signals, Any] = {}

    def interrupt(signum: int, frame: FrameType | None) -> NoReturn:
        for number in before:
            signal.signal(number, signal.SIG_IGN)
        raise KeyboardInterrupt

    for number in (signal.SIGINT, signal.SIGTERM):
        handler = signal.getsignal(number)
        if handler in (None, signal.SIG_IGN):  # as in the background of a shell script
            continue
        try:
            before[number] = signal.signal(number, interrupt)
        except ValueError:  # not the main thread, which alone has signals
            break
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
