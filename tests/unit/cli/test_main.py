"""The entry point: exit codes, one line for each kind of error, and signals as they were before."""

import errno
import os
import signal
import sys
import threading
import time
import warnings
from typing import Any, NoReturn

import pytest

from reghead._warnings import RegheadWarning, UnseenCategoryWarning
from reghead.cli import _main, main
from reghead.cli._errors import InputError, ToldElsewhereError

Capture = pytest.CaptureFixture[str]
pytestmark = pytest.mark.usefixtures("heard")


def runs(monkeypatch: pytest.MonkeyPatch, run: Any) -> None:
    monkeypatch.setattr(_main, "_command", lambda name: run)


def raising(error: BaseException) -> Any:
    def run(args: object) -> NoReturn:
        raise error

    return run


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (InputError("a\nb  c"), "a b c"),
        (ValueError("wrong"), "wrong"),
        (RuntimeError(), "RuntimeError"),
        (MemoryError(), "out of memory"),
        (MemoryError("8 GiB"), "out of memory: 8 GiB"),
        (OSError(errno.EACCES, "Permission denied", "/f"), "/f: Permission denied"),
        (OSError(errno.ENOSPC, "No space left on device"), "No space left on device"),
        (ImportError("pandas needs pip install 'reghead[cli]'"), "pandas needs pip install 'reghead[cli]'"),
        (KeyboardInterrupt(), "interrupted; nothing was written"),
        (KeyboardInterrupt("interrupted; kept"), "interrupted; kept"),
    ],
)
def test_an_error_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: Capture, error: Any, line: str) -> None:
    runs(monkeypatch, raising(error))
    assert main(["predict", "a", "b"]) == 2
    assert capsys.readouterr() == ("", f"reghead: error: {line}\n")


def test_a_fault_of_ours_is_not_dressed_up(monkeypatch: pytest.MonkeyPatch) -> None:
    runs(monkeypatch, raising(KeyError("x")))
    with pytest.raises(KeyError):
        main(["predict", "a", "b"])


def test_success_is_zero_and_arguments_are_those_of_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    runs(monkeypatch, seen.append)
    monkeypatch.setattr(sys, "argv", ["reghead", "predict", "a", "b"])
    assert main() == 0
    assert (seen[0].model, seen[0].table) == ("a", "b")


def test_help_and_version_leave_with_zero(capsys: Capture) -> None:
    for argument in ("--help", "--version"):
        with pytest.raises(SystemExit) as left:
            main([argument])
        assert left.value.code == 0
    assert "reghead 0" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("rank", "local_rank", "error", "tells"),
    [
        ("0", "0", InputError("x"), True),
        ("1", "1", ToldElsewhereError(), False),
        ("8", "0", InputError("x"), True),
        ("1", "1", KeyboardInterrupt(), False),
        ("8", "0", KeyboardInterrupt(), False),
        ("0", "0", KeyboardInterrupt(), True),
    ],
)
def test_of_many_processes_one_on_each_machine_tells(
    monkeypatch: pytest.MonkeyPatch, capsys: Capture, rank: str, local_rank: str, error: BaseException, tells: bool
) -> None:
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setenv("LOCAL_RANK", local_rank)
    monkeypatch.setattr("reghead.cli._main._PATIENCE", 0.0)
    runs(monkeypatch, raising(error))
    assert main(["predict", "a", "b"]) == 2
    assert bool(capsys.readouterr().err) == tells


@pytest.mark.parametrize("impatient", [False, True])
def test_a_process_that_nobody_stops_was_the_only_one_to_fail(
    monkeypatch: pytest.MonkeyPatch, capsys: Capture, impatient: bool
) -> None:
    """The first of its machine, which tells what all have, would have left and torchrun stopped the others."""
    silent = []

    def wait(seconds: float) -> None:
        silent.append((seconds > 10, capsys.readouterr().err))
        if impatient:
            raise KeyboardInterrupt

    monkeypatch.setenv("RANK", "5")
    monkeypatch.setenv("LOCAL_RANK", "1")
    monkeypatch.setattr(time, "sleep", wait)
    runs(monkeypatch, raising(InputError("out of luck")))
    assert main(["predict", "a", "b"]) == 2
    assert silent == [(True, "")]
    assert capsys.readouterr().err == "reghead: error: out of luck (process 5)\n"


def test_a_process_that_failed_first_tells_and_says_which_it_is(
    monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    error = InputError("out of luck")
    error.add_note("(process 1)")
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("LOCAL_RANK", "1")
    runs(monkeypatch, raising(error))
    assert main(["predict", "a", "b"]) == 2
    assert capsys.readouterr().err == "reghead: error: out of luck (process 1)\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_interrupts_and_later_ones_wait(
    monkeypatch: pytest.MonkeyPatch, capsys: Capture, number: signal.Signals
) -> None:
    before = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)]
    cleaned = []

    def run(args: object) -> None:
        try:
            signal.raise_signal(number)
        finally:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGTERM)
            cleaned.append(True)

    runs(monkeypatch, run)
    assert main(["predict", "a", "b"]) == 2
    assert cleaned == [True]
    assert "interrupted" in capsys.readouterr().err
    assert [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)] == before


def test_a_signal_that_was_ignored_stays_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """As Ctrl-C is for what a shell script runs in its background."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        runs(monkeypatch, lambda args: signal.raise_signal(signal.SIGINT))
        assert main(["predict", "a", "b"]) == 0
        assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGINT, before)


def test_a_thread_has_no_signals_and_runs_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    runs(monkeypatch, lambda args: None)
    codes: list[int] = []
    thread = threading.Thread(target=lambda: codes.append(main(["predict", "a", "b"])))
    thread.start()
    thread.join()
    assert codes == [0]


def test_a_pipe_that_is_closed_is_no_error(monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    closed = []
    monkeypatch.setattr(os, "dup2", lambda new, old: closed.append(os.close(new)))
    monkeypatch.setattr(sys, "stdout", open(os.devnull, "w"))  # noqa: SIM115
    try:
        runs(monkeypatch, raising(BrokenPipeError()))
        assert main(["predict", "a", "b"]) == 0
    finally:
        sys.stdout.close()
        monkeypatch.undo()
    assert closed == [None]
    assert capsys.readouterr().err == ""


def test_warnings_are_lines_and_those_that_commands_count_are_not_told(
    monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    def run(args: object) -> None:
        warnings.warn("a\nb", RegheadWarning, stacklevel=1)
        warnings.warn("counted elsewhere", UnseenCategoryWarning, stacklevel=1)

    runs(monkeypatch, run)
    assert main(["predict", "a", "b"]) == 0
    assert capsys.readouterr().err == "reghead: warning: a b\n"
    monkeypatch.setenv("RANK", "1")
    assert main(["predict", "a", "b"]) == 0
    assert capsys.readouterr().err == ""
