"""Each flag has a test that shows what it does, and the command is there under both of its names."""

import re
import subprocess
import sys
from importlib import metadata
from pathlib import Path

from reghead.cli._flags import EVALUATE_FLAGS, PREDICT_FLAGS, TRAIN_FLAGS
from reghead.config import FLAGS


def test_every_flag_has_a_test_that_shows_what_it_does() -> None:
    """What ``@shows`` names; it fails where the test does not give the flag to the command."""
    flags = {"train": (*TRAIN_FLAGS, *FLAGS), "predict": PREDICT_FLAGS, "evaluate": EVALUATE_FLAGS}
    expected = {f"{command} {flag.name}" for command, those in flags.items() for flag in those}
    expected |= {f"train --no-{flag.name[2:]}" for flag in FLAGS if flag.kind.action == "boolean"}
    shown: set[str] = set()
    for file in Path(__file__).parent.glob("test_cli_*_flags.py"):
        for arguments in re.findall(r"^@shows\((.*?)\)$", file.read_text(), re.MULTILINE | re.DOTALL):
            shown |= set(re.findall(r'"([^"]+)"', arguments))
    assert shown == expected


def test_the_module_is_the_command() -> None:
    done = subprocess.run([sys.executable, "-m", "reghead", "--version"], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"reghead {metadata.version('reghead')}\n", "")
