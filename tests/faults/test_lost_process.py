"""One of several processes is killed in the middle of a training: the others end, soon, and say why."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch.distributed as dist

from _command import environment, errors, flags, lakes, saved, start

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(not dist.is_available() or os.name == "nt", reason="needs gloo and signals"),
]
SOON = 60.0  # seconds


def free_port() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])


def await_checkpoint(folder: Path, *processes: "subprocess.Popen[str]") -> Path:
    checkpoint, until = folder / "out.partial" / "checkpoint.safetensors", time.monotonic() + 180
    while not checkpoint.exists():
        assert time.monotonic() < until, "no checkpoint"
        assert all(process.poll() is None for process in processes), "a process ended before there was a checkpoint"
        time.sleep(0.05)
    return checkpoint


@pytest.mark.parametrize("victim", [0, 1])
def test_without_anybody_who_watches_them(tmp_path: Path, victim: int) -> None:
    """Started one by one, as some schedulers do: no torchrun is there to end the other."""
    arguments = flags(saved(tmp_path, lakes()), tmp_path / "out", "--max-epochs", 10_000_000)
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    both = [
        start(arguments, env=environment(RANK=str(rank), LOCAL_RANK=str(rank), **shared), start_new_session=True)
        for rank in range(2)
    ]
    try:
        await_checkpoint(tmp_path, *both)
        both[victim].kill()
        begun = time.monotonic()
        _, err = both[1 - victim].communicate(timeout=180)
        took = time.monotonic() - begun
    finally:
        for process in both:
            process.kill()
            process.communicate()
    assert took < SOON
    assert both[1 - victim].returncode == 2, err
    assert "Traceback" not in err
    (line,) = errors(err)
    if victim == 0:
        assert "the first process of this training has ended" in line
    else:  # the first process lives, and knows what was kept
        assert "another process of this training has ended" in line
        assert f"what was trained so far is in {tmp_path / 'out.partial'}" in line
    assert (tmp_path / "out.partial" / "checkpoint.safetensors").exists()


def children(pid: int) -> list[int]:
    tasks = Path(f"/proc/{pid}/task/{pid}/children")
    return [int(child) for child in tasks.read_text().split()]


@pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="needs /proc")
@pytest.mark.parametrize("victim", [0, 1])
def test_under_torchrun(tmp_path: Path, victim: int) -> None:
    arguments = flags(saved(tmp_path, lakes()), tmp_path / "out", "--max-epochs", 10_000_000)
    launcher = (sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--master-addr=127.0.0.1")
    command = [*launcher, f"--master-port={free_port()}", "-m", "reghead", *arguments]
    process = subprocess.Popen(
        command, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        await_checkpoint(tmp_path, process)
        ranks = {rank_of(child): child for child in children(process.pid)}
        os.kill(ranks[victim], signal.SIGKILL)
        begun = time.monotonic()
        _, err = process.communicate(timeout=180)
        took = time.monotonic() - begun
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    assert took < SOON
    assert process.returncode != 0
    assert len(errors(err)) <= 1, err
    assert (tmp_path / "out.partial" / "checkpoint.safetensors").exists()


def rank_of(pid: int) -> int | None:
    for entry in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
        if entry.startswith(b"RANK="):
            return int(entry.removeprefix(b"RANK="))
    return None
