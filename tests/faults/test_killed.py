"""A training that is killed, at any moment and as often as may be, goes on, and ends as if nothing had been.

``REGHEAD_KILLS=50`` kills more of them.
"""

import json
import os
import shutil
import time
from pathlib import Path

import numpy as np
import pytest

from _command import flags, lakes, saved
from faults._victim import Ended, Victims
from reghead._persistence import decode_json
from reghead.cli._saved import load_run

pytestmark = [pytest.mark.long, pytest.mark.skipif(os.name == "nt", reason="processes of another kind")]
KILLS = int(os.environ.get("REGHEAD_KILLS", "5"))
MODELS = (
    ("--regressor-hidden-dims", 8, "--regressor-dropout", 0.3, "--batch-size", 20, "--max-epochs", 8),
    ("--validation-fraction", 0.3, "--patience", 3, "--loss-type", "quantile", "--max-epochs", 8),
    ("--moe-experts", 2, "--moe-routing", "lake", "--normalize-targets-by", "lake", "--max-epochs", 8),
)


def contents(folder: Path) -> dict[str, bytes]:
    """The files in ``folder``; the record without the SHA-256 of the sources, which somebody may be editing."""
    found = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    if "run.json" in found:
        found["run.json"] = json.dumps(json.loads(found["run.json"]) | {"library": None}).encode()
    return found


def epochs_in(checkpoint: Path) -> int:
    """Epochs of a checkpoint, which is whole; 0 where there is none."""
    if not checkpoint.exists():
        return 0
    from safetensors.torch import load

    return len(decode_json(load(checkpoint.read_bytes())["progress"])["history"]["train_loss"])


def differences(found: dict[str, bytes], wanted: dict[str, bytes]) -> list[str]:
    """Names of files that only one has, or that differ."""
    return sorted(name for name in {*found, *wanted} if found.get(name) != wanted.get(name))


class Training:
    """One that is to end as ``whole``, whatever happens to it on the way."""

    def __init__(self, victims: Victims, seed: int, *, replaces: bool) -> None:
        self.victims, self.rng = victims, np.random.default_rng(seed)
        here, more = victims.folder, (*MODELS[seed % len(MODELS)], "--seed", seed)
        table = saved(here, lakes(50, seed))
        self.out, self.partial = here / "out", here / "out.partial"
        self.arguments = flags(table, self.out, *more)
        begun = time.monotonic()
        whole = victims.run([a.replace(str(self.out), str(here / "whole")) for a in self.arguments])
        self.lasts = time.monotonic() - begun
        assert (whole.code, whole.err) == (0, "")
        self.changes, self.whole = whole.changes, contents(here / "whole")
        self.old: dict[str, bytes] | None = None
        if replaces:
            assert victims.run(flags(table, self.out, "--max-epochs", 1)).code == 0
            self.old = contents(self.out)
            self.arguments.append("--overwrite")

    def go(self, *, die: bool) -> Ended:
        """Start it, or let it go on where there is something to go on with."""
        arguments = [*self.arguments]
        if self.partial.is_dir() and any(self.partial.iterdir()):
            arguments.append("--resume")
        if not die:
            return self.victims.run(arguments)
        how = self.rng.choice(["killed", "cut", "moment"])
        if how == "moment":
            return self.victims.run(arguments, lasts=float(self.rng.uniform(0, self.lasts)))
        # From 100 bytes on, so that it is the files with results that are cut.
        longest = max(map(len, self.whole.values()))
        at = self.rng.integers(1, self.changes + 1) if how == "killed" else self.rng.integers(100, longest + 1)
        return self.victims.run(arguments, how, int(at))

    def check(self, epochs: int) -> int:
        """What is there after it was killed: old results, new ones, or none, all whole; and no epoch was lost."""
        aside = self.out.with_name(".out.reghead-replaced")
        if self.out.exists():
            found = contents(self.out)
            found.pop("checkpoint.safetensors", None)  # those that are the last to go
            found.pop("unfinished.txt", None)
            assert found in (self.old, self.whole), differences(found, self.whole)
        elif self.old is not None:
            assert contents(aside) == self.old
        if self.out.exists() and contents(self.out) != self.old:
            return epochs
        now = epochs_in(self.partial / "checkpoint.safetensors")
        assert now >= epochs
        return now

    def is_done(self) -> bool:
        return self.out.exists() and contents(self.out) == self.whole

    def finish(self, when: str) -> None:
        """Let it go on to its end, or say that it had ended; and nothing of any of the processes is left."""
        ended, left = self.go(die=False), {"lakes.csv", "out", "whole"}
        if ended.code == 2:
            assert "nothing to resume" in ended.line or "already has results" in ended.line, when
            left.add("out.lock")  # of a process that is gone: whoever next writes here takes it
        else:
            assert (ended.code, ended.err) == (0, ""), when
        assert self.is_done(), (when, ended, differences(contents(self.out), self.whole))
        assert {path.name for path in self.victims.folder.iterdir()} <= left, when


@pytest.mark.parametrize("seed", range(KILLS))
def test_what_is_killed_goes_on_to_the_same_end(victims: Victims, seed: int) -> None:
    training, epochs, died = Training(victims, seed, replaces=seed % 2 == 1), 0, []
    for _ in range(3):
        ended = training.go(die=True)
        died.append(ended.code)
        epochs = training.check(epochs)
        if training.is_done():
            break
        assert ended.code < 0, ended.err
    training.finish(str(died))
    load_run(training.out, "cpu")


@pytest.mark.parametrize("replaces", [False, True], ids=["new", "replaces"])
def test_a_training_is_killed_at_a_change_of_a_file(victims: Victims, replaces: bool) -> None:
    """At the first and the last changes, where its folders come and go, and at some between: all of them if asked."""
    training = Training(victims, 0, replaces=replaces)
    last = victims.run(training.arguments, "none").changes
    training.old = training.whole if replaces else None
    if not replaces:
        shutil.rmtree(training.out)
    every = range(1, last + 1)
    chosen = every if KILLS >= 50 else sorted({*every[:3], *every[4:-8:15], *every[-7:]})
    ends = set()
    for at in chosen:
        ended = victims.run(training.arguments, "killed", at)
        training.check(0)
        ends.add(ended.code)
        training.finish(f"change {at}")
        (training.out.parent / "out.lock").unlink(missing_ok=True)
        if not replaces:
            shutil.rmtree(training.out)
    assert ends == {-9}
