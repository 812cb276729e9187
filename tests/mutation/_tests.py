"""Runs pytest again and again, each time in a copy of a process that has imported what takes seconds to import.

Reads lines of JSON: ``{"arguments": [...], "seconds": 60}``. Answers each with a line: the exit code of pytest, or null
where it was stopped after that time.
"""

import json
import os
import signal
import sys
import time
from collections import defaultdict

import hypothesis
import numpy
import pytest
import scipy.stats
import sklearn.base
import torch
import torch._dynamo

_IMPORTED = (numpy, scipy.stats, sklearn.base, torch._dynamo)


class Durations:
    """Notes how long each test took, in a file that is written at the end."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.seconds: defaultdict[str, float] = defaultdict(float)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.seconds[report.nodeid] += report.duration

    def pytest_sessionfinish(self) -> None:
        with open(self.path, "w", encoding="utf-8") as file:
            json.dump(self.seconds, file)


def run(arguments: list[str], seconds: float) -> int | None:
    child = os.fork()
    if child == 0:
        os.setsid()
        silence = os.open(os.devnull, os.O_WRONLY)
        os.dup2(silence, 1)
        os.dup2(silence, 2)
        os._exit(int(pytest.main(arguments)))
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.02)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None


def main() -> None:
    torch.set_num_threads(1)
    # A failure is enough: the smallest example that fails is nobody's to read.
    phases = (hypothesis.Phase.explicit, hypothesis.Phase.generate)
    hypothesis.settings.register_profile("noticing", deadline=None, derandomize=True, phases=phases)
    for line in sys.stdin:
        order = json.loads(line)
        print(json.dumps(run(order["arguments"], order["seconds"])), flush=True)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        sys.exit(pytest.main(sys.argv[2:], plugins=[Durations(sys.argv[1])]))
    main()
