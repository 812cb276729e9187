"""The page on numerics states the bounds that are tested."""

import re
from pathlib import Path

import reghead.functional as R
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


def test_the_docstrings_state_the_same_bounds() -> None:
    """Those of a function with several bases or levels: the largest, or that of a formula."""
    tested: dict[str, float] = {}
    for name, loss in LOSSES.items():
        function = {"interval": "interval_score_loss"}.get(
            name, f"{name.replace('huber pinball', 'huber_pinball').split()[0]}_loss"
        )
        tested[function] = max(tested.get(function, 0.0), loss.roundings)
    for name, bound in tested.items():
        stated = re.search(r"Right to :math:`(.*?) ?u`", getattr(R, name).__doc__ or "")
        assert stated is not None, name
        if name == "pinball_loss":
            assert stated[1] == r"(1 + 3 / \min(\tau, 1 - \tau))"
        else:
            assert float(stated[1] or 1) == bound, name
