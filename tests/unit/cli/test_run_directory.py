"""The output folder: results appear all at once, nothing is lost in a crash, nothing of others is deleted."""

import json
import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from reghead.cli._errors import InputError
from reghead.cli._run_directory import RunDirectory


class Crash(BaseException):
    """The process ends here: not an error that code may catch and mend."""


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "results"


@pytest.fixture
def stranger() -> Iterator[int]:
    """The id of another process that runs."""
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    yield process.pid
    process.communicate(b"\n", timeout=30)


def partial(out: Path) -> Path:
    return out.with_name(out.name + ".partial")


def record(text: str, kind: str = "model") -> str:
    return json.dumps({"kind": kind, "text": text})


def results(folder: Path, text: str = "old", kind: str = "model") -> Path:
    folder.mkdir(parents=True)
    (folder / "run.json").write_text(record(text, kind))
    (folder / "extra").mkdir()
    (folder / "extra" / "file").write_text(text)
    return folder


def train(out: Path, text: str = "new", **options: bool) -> RunDirectory:
    run = RunDirectory(out, **options).open()
    (run.path / "run.json").write_text(record(text))
    return run


def evaluate(out: Path, text: str = "new", **options: bool) -> RunDirectory:
    run = RunDirectory(out, kind="evaluation", **options).open()
    (run.path / "run.json").write_text(record(text, "evaluation"))
    return run


def read(path: Path) -> str:
    """The text of a file, of a record that of :func:`record`."""
    text = path.read_text()
    return str(json.loads(text)["text"]) if path.name == "run.json" else text


def tree(folder: Path) -> dict[str, str | None]:
    return {str(path.relative_to(folder)): read(path) if path.is_file() else None for path in sorted(folder.rglob("*"))}


def refused(message: str) -> "pytest.RaisesExc[InputError]":
    return pytest.raises(InputError, match=re.escape(message))


def test_results_appear_all_at_once_and_nothing_else_stays(out: Path) -> None:
    run = train(out)
    assert not out.exists()
    assert run.path == partial(out)
    assert run.commit() == out
    assert tree(out.parent) == {"results": None, "results/run.json": "new"}


def test_the_constructor_changes_nothing(tmp_path: Path) -> None:
    RunDirectory(tmp_path / "a" / "b" / "results")
    assert tree(tmp_path) == {}
    RunDirectory(tmp_path / "a" / "b" / "results").open().close()
    assert (tmp_path / "a" / "b" / "results.partial").is_dir()


def test_an_unfinished_training_is_marked_and_can_be_resumed_with_its_files(out: Path) -> None:
    def interrupted() -> None:
        with RunDirectory(out) as run:
            (run.path / "checkpoint").write_text("epoch 3")
            raise Crash

    with pytest.raises(Crash):
        interrupted()
    assert set(tree(out.parent)) == {"results.partial", "results.partial/checkpoint", "results.partial/unfinished.txt"}
    assert "--resume" in (partial(out) / "unfinished.txt").read_text()
    with RunDirectory(out, resume=True) as run:
        assert (run.path / "checkpoint").read_text() == "epoch 3"
        run.commit()
    assert tree(out) == {"checkpoint": "epoch 3"}


def test_overwrite_starts_an_unfinished_training_anew(out: Path) -> None:
    train(out).close()
    run = RunDirectory(out, overwrite=True).open()
    assert set(tree(run.path)) == {"unfinished.txt"}
    run.close()


def test_overwrite_replaces_all_of_the_old_results(out: Path) -> None:
    results(out)
    run = train(out, overwrite=True)
    assert tree(out) == {"extra": None, "extra/file": "old", "run.json": "old"}
    run.commit()
    assert tree(out.parent) == {"results": None, "results/run.json": "new"}


def test_an_empty_folder_is_filled_without_overwrite(out: Path) -> None:
    out.mkdir()
    train(out).commit()
    assert tree(out) == {"run.json": "new"}


def test_a_resumed_training_may_replace_results_too(out: Path) -> None:
    results(out)
    train(out, overwrite=True).close()
    with refused(f"{out} already has results; give --overwrite beside --resume to replace them when the resumed"):
        RunDirectory(out, resume=True)
    RunDirectory(out, resume=True, overwrite=True).open().commit()
    assert tree(out) == {"run.json": "new"}


def test_discarding_leaves_what_was_there(out: Path) -> None:
    before = tree(results(out).parent)
    train(out, overwrite=True).discard()
    assert tree(out.parent) == before


def test_a_link_stays_and_what_it_points_to_is_replaced(tmp_path: Path) -> None:
    real, link = results(tmp_path / "disk" / "real"), tmp_path / "link"
    link.symlink_to(real, target_is_directory=True)
    train(link, overwrite=True).commit()
    assert link.is_symlink()
    assert tree(real) == {"run.json": "new"}


@pytest.mark.parametrize("moves", range(4))
def test_a_crash_at_any_move_leaves_the_old_or_the_new_and_the_next_start_mends_it(
    out: Path, monkeypatch: pytest.MonkeyPatch, moves: int
) -> None:
    """Three renames make a commit: old aside, new in, old away. The process ends before each, and after the last."""
    results(out)
    run = train(out, overwrite=True)
    rename, done = Path.rename, []

    def limited(self: Path, target: Path) -> Path:
        if len(done) == moves:
            raise Crash
        done.append(target)
        return rename(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", limited)
        patch.setattr("shutil.rmtree", lambda *_, **__: None)  # nor does anything get deleted
        if moves < 3:
            with pytest.raises(Crash):
                run.commit()
        else:
            run.commit()
    texts = {read(path) for path in out.parent.rglob("run.json")}
    assert "new" in texts
    if moves == 0:
        assert tree(out)["run.json"] == "old"  # as before, and the new ones can be resumed
        RunDirectory(out, resume=True, overwrite=True).open().commit()
    with refused("already has results"):
        RunDirectory(out)
    assert tree(out) == {"run.json": "new"}
    train(out, "newer", overwrite=True).commit()
    assert tree(out.parent) == {"results": None, "results/run.json": "newer"}


@pytest.mark.parametrize("goes", ["checkpoint.safetensors", "unfinished.txt"])
@pytest.mark.parametrize("replaces", [False, True], ids=["new", "replaces"])
def test_a_crash_before_the_mark_is_gone_is_mended_by_the_next_start(
    out: Path, monkeypatch: pytest.MonkeyPatch, goes: str, replaces: bool
) -> None:
    """Whoever resumes is told that there is nothing to resume, and the results do not say "unfinished" for ever."""
    if replaces:
        results(out)
    run = train(out, overwrite=replaces)
    (run.path / "checkpoint.safetensors").touch()
    unlink = Path.unlink

    def limited(self: Path, *, missing_ok: bool = False) -> None:
        if self.name == goes:
            raise Crash
        unlink(self, missing_ok=missing_ok)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", limited)
        with pytest.raises(Crash):
            run.commit()
    assert (out / "unfinished.txt").exists()
    run.close()
    with refused("nothing to resume: the training in"):
        RunDirectory(out, resume=True)
    assert tree(out.parent) == {"results": None, "results/run.json": "new"}


def test_old_results_come_back_where_the_new_ones_are_gone(out: Path) -> None:
    results(out.parent / ".results.reghead-replaced")
    out.mkdir()  # by hand, after the crash
    with refused("already has results"):
        RunDirectory(out)
    assert set(tree(out.parent)) == {"results", "results/extra", "results/extra/file", "results/run.json"}


def test_a_move_that_fails_puts_the_old_results_back(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    results(out)
    run, rename = train(out, overwrite=True), Path.rename

    def failing(self: Path, target: Path) -> Path:
        if self == run.path:
            raise PermissionError("a file in it is open")
        return rename(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", failing)
        with pytest.raises(PermissionError):
            run.commit()
    assert tree(out)["run.json"] == "old"
    run.commit()
    assert tree(out) == {"run.json": "new"}


def test_results_that_came_during_the_training_are_not_replaced(out: Path) -> None:
    run = train(out)
    results(out, "somebody's")
    with refused(f"{out} was written by somebody else during the training; the results are in {run.path}: move them"):
        run.commit()
    assert tree(out)["run.json"] == "somebody's"
    assert read(run.path / "run.json") == "new"
    run.close()


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_folder_of_somebody_else_is_never_touched(out: Path, overwrite: bool) -> None:
    out.mkdir()
    (out / "thesis.tex").write_text("years of work")
    message = (
        "is not a folder that reghead wrote (it has no whole run.json), and is not overwritten"
        if overwrite
        else "already has results, which are not reghead's; choose another --output-dir"
    )
    with refused(f"{out} {message}"):
        RunDirectory(out, overwrite=overwrite)
    assert tree(out) == {"thesis.tex": "years of work"}


def test_an_evaluation_never_replaces_a_model_nor_a_model_an_evaluation(out: Path) -> None:
    results(out / "model")
    results(out / "scores", kind="evaluation")
    before = tree(out)
    for overwrite in (False, True):
        with refused(
            f"{out / 'model'} holds a model, which an evaluation does not replace; choose another --output-dir"
        ):
            RunDirectory(out / "model", kind="evaluation", overwrite=overwrite)
        with refused(f"{out / 'scores'} holds an evaluation, which a model does not replace; choose another"):
            RunDirectory(out / "scores", overwrite=overwrite)
    assert tree(out) == before
    evaluate(out / "scores", overwrite=True).commit()
    assert tree(out / "scores") == {"run.json": "new"}


@pytest.mark.parametrize("content", ["{", "[1]", "{}", '{"kind": "mixture"}', '{"kind": ["model"]}', b"\xff"])
def test_a_record_that_cannot_be_read_is_nobodys(out: Path, content: str | bytes) -> None:
    out.mkdir()
    (out / "run.json").write_bytes(content.encode() if isinstance(content, str) else content)
    with refused("is not a folder that reghead wrote"):
        RunDirectory(out, overwrite=True)


def test_a_model_that_came_during_an_evaluation_is_not_replaced(out: Path) -> None:
    run = evaluate(out, overwrite=True)
    results(out, "a model")
    with refused(f"{out} was written by somebody else during the evaluation; the results are in {run.path}"):
        run.commit()
    assert tree(out)["run.json"] == "a model"
    run.close()


def test_an_unfinished_evaluation_is_started_anew_and_an_unfinished_training_is_left_alone(out: Path) -> None:
    """An evaluation has no --resume, and nothing in it that is worth keeping."""
    for written in ("run.json", "metrics.json"):  # interrupted late, and early
        run = RunDirectory(out, kind="evaluation").open()
        (run.path / written).write_text(record("cut", "evaluation"))
        run.close()
    assert "--resume" not in (partial(out) / "unfinished.txt").read_text()
    again = RunDirectory(out, kind="evaluation").open()
    assert set(tree(again.path)) == {"unfinished.txt"}
    again.close()
    for options in ({}, {"overwrite": True}, {"resume": True}):
        with refused(f"an unfinished evaluation is in {partial(out)}, and the training would replace it; choose"):
            RunDirectory(out, **options)
    (partial(out) / "unfinished.txt").unlink()
    partial(out).rmdir()
    train(out).close()
    for overwrite in (False, True):
        with refused(f"an unfinished training is in {partial(out)}, and the evaluation would replace it; choose"):
            RunDirectory(out, kind="evaluation", overwrite=overwrite)
    assert tree(partial(out))["run.json"] == "new"


@pytest.mark.parametrize("options", [{"overwrite": True}, {"resume": True}])
def test_nor_is_a_partial_folder_of_somebody_else(out: Path, options: dict[str, bool]) -> None:
    partial(out).mkdir()
    (partial(out) / "thesis.tex").write_text("years of work")
    with refused(f"{partial(out)} is not a folder that reghead wrote (it has no whole unfinished.txt); move it away"):
        RunDirectory(out, **options)
    assert tree(partial(out)) == {"thesis.tex": "years of work"}


@pytest.mark.parametrize(
    ("given", "kind"),
    [
        (".", ". is the current directory"),
        ("", ". is the current directory"),
        ("..", ".. is a folder that holds the current directory"),
        ("/", "/ is the root of the file system"),
    ],
)
@pytest.mark.parametrize("overwrite", [False, True])
def test_places_that_cannot_be_renamed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str, kind: str, overwrite: bool
) -> None:
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    with refused(f"{kind}, which cannot be replaced as a whole; choose a folder inside it, such as --output-dir "):
        RunDirectory(given, overwrite=overwrite)


def test_a_mount_point(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out.mkdir()
    monkeypatch.setattr(os.path, "ismount", lambda path: Path(path) == out)
    inside = out / "run"
    with refused(f"{out} is a mount point, which cannot be replaced as a whole; choose a folder inside it, such as"):
        RunDirectory(out)
    train(inside).commit()
    assert tree(out) == {"run": None, "run/run.json": "new"}


def test_files_in_the_way(out: Path) -> None:
    out.write_text("")
    with refused(f"{out} is a file, not a folder; choose another --output-dir"):
        RunDirectory(out)
    with refused(f"{out / 'a' / 'b'} cannot be made: {out} is a file, not a folder"):
        RunDirectory(out / "a" / "b")
    out.unlink()
    partial(out).write_text("")
    with refused(f"{partial(out)} is a file, where the training would write its folder; move it away"):
        RunDirectory(out)


def test_a_parent_that_is_not_writable(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != out.parent)
    with refused(f"{out / 'a'} cannot be made: {out.parent} is not writable; choose another --output-dir"):
        RunDirectory(out / "a")


def test_a_folder_that_cannot_be_looked_into_counts_as_full(out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out.mkdir()

    def closed(path: Path) -> list[str]:
        raise PermissionError

    monkeypatch.setattr(os, "listdir", closed)
    with refused("is not a folder that reghead wrote"):
        RunDirectory(out, overwrite=True)


def test_resuming_and_not_resuming(out: Path) -> None:
    with refused(f"nothing to resume: there is no unfinished training in {partial(out)}; leave --resume out"):
        RunDirectory(out, resume=True)
    train(out).close()
    with refused(f"an unfinished training is in {partial(out)}; --resume goes on with it, --overwrite starts anew"):
        RunDirectory(out)
    RunDirectory(out, resume=True).open().commit()
    for overwrite in (False, True):
        with refused(f"nothing to resume: the training in {out} is complete"):
            RunDirectory(out, resume=True, overwrite=overwrite)


def test_messages_name_the_folder_as_it_was_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    results(Path("results"))
    with pytest.raises(InputError) as error:
        RunDirectory("results")
    assert str(error.value) == "results already has results; choose another --output-dir, or give --overwrite"


def test_two_processes_do_not_write_one_folder(out: Path, stranger: int) -> None:
    run = RunDirectory(out, overwrite=True)
    lock = Path(f"{out}.lock")
    lock.write_text(f"{stranger} {socket.gethostname()}\n")
    message = f"{out} is being written by another process ({stranger} on {socket.gethostname()}); wait for it or"
    with refused(message):
        run.open()
    with refused(message):
        RunDirectory(out)
    assert set(tree(out.parent)) == {"results.lock"}


def test_a_commit_of_another_process_is_not_finished_for_it(out: Path, stranger: int) -> None:
    """Between its two moves the output is not there; who comes then must keep away."""
    results(out.parent / ".results.reghead-replaced")
    results(partial(out))
    Path(f"{out}.lock").write_text(f"{stranger} {socket.gethostname()}\n")
    before = tree(out.parent)
    with refused("is being written by another process"):
        RunDirectory(out, overwrite=True)
    assert tree(out.parent) == before


def test_the_lock_of_a_process_that_ended_is_taken_over(out: Path) -> None:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait(timeout=30)
    for text in (f"{process.pid} {socket.gethostname()}\n", f"{os.getpid()} {socket.gethostname()}\n"):
        lock = Path(f"{out}.lock")
        lock.write_text(text)
        run = RunDirectory(out, overwrite=True).open()
        assert lock.read_text() == f"{os.getpid()} {socket.gethostname()}\n"
        run.close()
        assert not lock.exists()


@pytest.mark.parametrize(
    "text", ["", "garbage", f"-1 {socket.gethostname()}", "999999999 another-host", "9" * 40 + " here"]
)
def test_a_lock_that_cannot_be_asked_is_respected_and_the_message_says_how_to_mend_it(out: Path, text: str) -> None:
    lock = Path(f"{out}.lock")
    lock.write_text(text)
    with refused(f"If nothing runs there, delete {lock}"):
        RunDirectory(out)
    lock.unlink()
    train(out).commit()


def test_a_lock_that_nobody_wrote_into_for_a_while_is_taken_over(out: Path) -> None:
    """Its process was killed after it had made the file, and before it had said who it is."""
    lock = Path(f"{out}.lock")
    lock.touch()
    os.utime(lock, (time.time() - 60, time.time() - 60))
    train(out).commit()
    assert not lock.exists()


def test_what_a_killed_process_left_of_a_lock_is_tidied_away(out: Path) -> None:
    """It had moved the lock aside, to take it over; that of a process which runs is left to it."""
    lock = Path(f"{out}.lock")
    ours, others = Path(f"{lock}.{os.getpid()}"), (Path(f"{lock}.999999999"), Path(f"{lock}.notes"), Path(f"{lock}.1x"))
    for path in (ours, *others):
        path.touch()
    train(out).commit()
    assert set(tree(out.parent)) == {"results", "results/run.json", ours.name, "results.lock.notes", "results.lock.1x"}


def test_of_two_that_find_the_same_stale_lock_one_gets_it(out: Path, stranger: int) -> None:
    """The other has taken it over between our look at it and our move."""
    run = RunDirectory(out)
    run.lock.path.write_text(f"{stranger} {socket.gethostname()}\n")
    run.lock._take_over(f"999999999 {socket.gethostname()}\n")
    assert run.lock.path.read_text() == f"{stranger} {socket.gethostname()}\n"
    with refused("is being written by another process"):
        run.open()


def test_the_lock_is_let_go_where_opening_fails(out: Path) -> None:
    run = RunDirectory(out)
    results(out)
    with refused("already has results"):
        run.open()
    assert not run.lock.path.exists()


def test_open_comes_first(out: Path) -> None:
    run = RunDirectory(out)
    for method in (run.commit, run.discard):
        with pytest.raises(RuntimeError, match=re.escape("the folder is not open; call open() first")):
            method()
