"""The page on numerics states the bounds that are tested."""

import re
from pathlib import Path

from numerics._exact import LOSSES

PAGE = (Path(__file__).parents[2] / "docs" / "numerics.md").read_text(encoding="utf-8")
ROW = re.compile(r"^\| `([a-z_ ]+)` \| (\d+) \| (?:exact|zero) \|$", re.MULTILINE)


def test_the_bounds_of_losses_are_those_of_the_tests() -> None:
    stated = {name: float(bound) for name, bound in ROW.findall(PAGE)}
    tested = {name: loss.roundings for name, loss in LOSSES.items() if not name.startswith("pinball")}
    assert stated == tested
    for name, loss in LOSSES.items():
        if name.startswith("pinball"):
            tau = float(name.split()[1])
            assert loss.roundings == 1 + 3 / min(tau, 1 - tau)
