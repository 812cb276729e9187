"""Disks that are full, at any change of a file, or that may only be read: one line, and nothing half of itself."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from _command import errors, flags, lakes, saved, start
from faults._victim import Victims
from reghead.cli._saved import load_run

pytestmark = [pytest.mark.long, pytest.mark.skipif(os.name == "nt", reason="processes and mounts of another kind")]
EVERY = bool(os.environ.get("REGHEAD_KILLS"))


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def test_a_disk_that_is_full_from_any_change_on(victims: Victims) -> None:
    """The training ends with one line, and with room again it goes on, or starts anew, to the same end."""
    here = victims.folder
    table = saved(here, lakes(40))
    arguments = flags(table, here / "out", "--max-epochs", 3)
    whole = victims.run([a.replace(str(here / "out"), str(here / "whole")) for a in arguments])
    assert whole.code == 0
    wanted = {
        name: (here / "whole" / name).read_bytes() for name in ("model.safetensors", "history.csv", "metrics.json")
    }
    every = range(1, whole.changes + 1)
    for at in every if EVERY else sorted({*every[:4], *every[5::8], *every[-4:]}):
        ended = victims.run(arguments, "full", at)
        if ended.code == 0:  # nothing but what is deleted was left to do
            assert (here / "out" / "run.json").is_file(), at
        else:
            assert (ended.code, ended.out) == (2, ""), (at, ended.err)
            assert "o space left on" in ended.line, at
            assert "Traceback" not in ended.err
            partial = here / "out.partial"
            resumable = (partial / "checkpoint.safetensors").exists()
            assert ("--resume goes on with it" in ended.line) == resumable, (at, ended.line)
            assert not (here / "out").exists()
            left = {name for name in files(here) if "partial" in name or "reghead" in name}
            assert left <= {"out.partial", *(f"out.partial/{name}" for name in files(partial))}, at
            assert resumable or not partial.exists(), (at, left)
            again = victims.run([*arguments, *(["--resume"] if resumable else [])])
            assert (again.code, again.err) == (0, ""), at
        assert {name: (here / "out" / name).read_bytes() for name in wanted} == wanted, at
        assert {path.name for path in here.iterdir()} == {"lakes.csv", "out", "whole"}, at
        shutil.rmtree(here / "out")


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = shutil.which("mount")
    command = [mount or "mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)]
    if mount is None or subprocess.run(command, capture_output=True, timeout=60).returncode:
        pytest.skip("needs the right to mount a file system")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True, capture_output=True, timeout=60)


def command(arguments: list[str]) -> tuple[int, str, str]:
    process = start(arguments)
    try:
        out, err = process.communicate(timeout=240)
    finally:
        process.kill()
        process.wait()
    return process.returncode, out, err


@pytest.mark.parametrize("free", [1_000, 40_000])
def test_a_disk_that_is_really_full(tmp_path: Path, mounted: Path, free: int) -> None:
    (mounted / "mine").write_bytes(b"")
    space = os.statvfs(mounted)
    (mounted / "mine").write_bytes(bytes(space.f_bavail * space.f_frsize - max(free, space.f_frsize)))
    arguments = flags(saved(tmp_path, lakes()), mounted / "out", "--regressor-hidden-dims", "32,32")
    code, out, err = command(arguments)
    assert (code, out) == (2, ""), err
    (line,) = errors(err)
    assert "o space left on" in line
    assert "Traceback" not in err
    kept = (mounted / "out.partial" / "checkpoint.safetensors").exists()
    assert {path.name for path in mounted.iterdir()} == ({"mine", "out.partial"} if kept else {"mine"})
    (mounted / "mine").unlink()
    code, _, err = command([*arguments, *(["--resume"] if kept else [])])
    assert (code, err) == (0, "")
    load_run(mounted / "out", "cpu")


def test_a_file_system_that_may_only_be_read(tmp_path: Path, mounted: Path) -> None:
    """Also for the administrator, whom no mode of a folder stops."""
    table = saved(mounted, lakes())
    subprocess.run(["mount", "-o", "remount,ro", str(mounted)], check=True, capture_output=True, timeout=60)
    code, out, err = command(flags(table, mounted / "out"))
    assert (code, out) == (2, "")
    (line,) = errors(err)
    assert "not writable" in line or "ead-only file system" in line
    assert files(mounted) == {"lakes.csv"}
    # What is there can be read, and written about elsewhere.
    assert command(flags(table, tmp_path / "out"))[0] == 0
    code, _, err = command(["predict", str(tmp_path / "out"), str(table), "--output", str(mounted / "p.csv")])
    assert code == 2
    assert "ead-only" in errors(err)[0] or "not writable" in errors(err)[0]
    assert "Traceback" not in err
