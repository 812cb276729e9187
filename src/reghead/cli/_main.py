"""The entry point: what can go wrong is told in one line, with exit code 2."""

import contextlib
import os
import signal
import sys
import warnings
from collections.abc import Iterator, Sequence
from types import FrameType
from typing import Any, NoReturn

from reghead._warnings import RegheadWarning, UnseenCategoryWarning
from reghead.cli._errors import InputError
from reghead.cli._parser import make_parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``reghead`` with ``argv``, those of the process by default.

    Returns:
        The exit code: 0, or 2 after an error, which is told in one line on standard error.
    """
    traceback = "--traceback" in (sys.argv[1:] if argv is None else argv)
    rank = int(os.environ.get("RANK", "0"))
    try:
        with _plain_warnings(), _terminated_is_interrupted():
            args = make_parser().parse_args(argv)
            _command(args.command)(args)
        return 0
    except KeyboardInterrupt as error:
        message = str(error) or "interrupted; nothing was written"
    except BrokenPipeError:
        # The reader of a pipe, such as head, has what it wants. Python would complain when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (InputError, ValueError, TypeError, RuntimeError, OSError, ImportError, MemoryError) as error:
        if traceback:
            raise
        message = _describe(error)
    if rank == 0 or "interrupted" not in message:
        print(f"reghead: error: {' '.join(message.split())}" + (f" (process {rank})" if rank else ""), file=sys.stderr)
    return 2


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
        yield


@contextlib.contextmanager
def _terminated_is_interrupted() -> Iterator[None]:
    """A scheduler's SIGTERM is as Ctrl-C: what was trained so far is kept."""

    def interrupt(signum: int, frame: FrameType | None) -> NoReturn:
        raise KeyboardInterrupt

    try:
        before = signal.signal(signal.SIGTERM, interrupt)
    except ValueError:  # not the main thread, which alone has signals
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
