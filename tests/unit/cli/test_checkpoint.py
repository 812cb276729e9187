"""The file of a training's state."""

from pathlib import Path

import pytest
import torch

from reghead.cli import _checkpoint
from reghead.cli._checkpoint import FileCheckpoint
from reghead.cli._errors import InputError


def state(value: float) -> dict[str, torch.Tensor]:
    return {"now.0": torch.tensor([value]), "empty": torch.zeros(0, 3), "step": torch.tensor(3, dtype=torch.int64)}


def test_what_is_kept_comes_back(tmp_path: Path) -> None:
    file = tmp_path / "c.safetensors"
    assert FileCheckpoint(file, {}).restore() is None
    checkpoint = FileCheckpoint(file, {"--lr": 0.1, "--dims": (4, 2), "--loss": None})
    assert not checkpoint.flush()
    checkpoint.keep(lambda: state(1.0))
    checkpoint.keep(lambda: state(2.0))
    assert not file.exists(), "not more often than every few seconds"
    assert checkpoint.flush()
    again = FileCheckpoint(file, {"--lr": 0.1, "--dims": (4, 2), "--loss": None}).restore()
    assert again is not None
    assert again.keys() == state(2.0).keys()
    assert all(torch.equal(again[name], value) for name, value in state(2.0).items())
    assert list(tmp_path.iterdir()) == [file]


def test_it_is_written_every_few_seconds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    monkeypatch.setattr(_checkpoint.time, "monotonic", lambda: now)
    checkpoint = FileCheckpoint(tmp_path / "c.safetensors", {}, seconds=5.0)
    for now, expected in ((4.9, None), (5.0, 5.0), (9.9, 5.0), (10.0, 10.0)):
        value = now
        checkpoint.keep(lambda value=value: state(value))
        found = FileCheckpoint(checkpoint.path, {}).restore()
        assert (None if found is None else found["now.0"].item()) == pytest.approx(expected)


def test_one_process_writes(tmp_path: Path) -> None:
    checkpoint = FileCheckpoint(tmp_path / "c.safetensors", {}, writes=False, seconds=0.0)
    checkpoint.keep(lambda: pytest.fail("made for nothing"))
    assert not checkpoint.flush()


@pytest.mark.parametrize(
    ("now", "message"),
    [
        ({"--lr": 0.2, "--dims": [4]}, "--lr was 0.1 there and is 0.2 now"),
        ({"--lr": None, "--dims": [4]}, "--lr was 0.1 there and is not given now"),
        ({"--lr": 0.1, "--dims": [4], "--seed": 1}, "--seed was not given there and is 1 now"),
    ],
)
def test_another_training_is_told_by_the_flag_and_both_values(
    tmp_path: Path, now: dict[str, object], message: str
) -> None:
    checkpoint = FileCheckpoint(tmp_path / "c.safetensors", {"--lr": 0.1, "--dims": (4,)}, seconds=0.0)
    checkpoint.keep(lambda: state(1.0))
    with pytest.raises(InputError) as told:
        FileCheckpoint(checkpoint.path, now).restore()
    assert message in str(told.value)
    assert "give the same, or start anew with --overwrite" in str(told.value)


@pytest.mark.parametrize("content", [b"", b"no tensors", b"cut"])
def test_a_file_that_is_not_whole(tmp_path: Path, content: bytes) -> None:
    checkpoint = FileCheckpoint(tmp_path / "c.safetensors", {}, seconds=0.0)
    checkpoint.keep(lambda: state(1.0))
    checkpoint.path.write_bytes(checkpoint.path.read_bytes()[:-4] if content == b"cut" else content)
    with pytest.raises(InputError, match=r"c\.safetensors is damaged \(.*\); --overwrite starts anew"):
        checkpoint.restore()


def test_a_write_that_fails_leaves_the_state_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint = FileCheckpoint(tmp_path / "c.safetensors", {}, seconds=0.0)
    checkpoint.keep(lambda: state(1.0))

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(_checkpoint.os, "replace", full)
        with pytest.raises(InputError, match=r"cannot write .*c\.safetensors: No space left on device"):
            checkpoint.keep(lambda: state(2.0))
    assert list(tmp_path.iterdir()) == [checkpoint.path]
    found = checkpoint.restore()
    assert found is not None
    assert found["now.0"].item() == 1.0
    assert checkpoint.flush(), "the last state is still there to be written"
    found = checkpoint.restore()
    assert found is not None
    assert found["now.0"].item() == 2.0
