"""The Python blocks of the README and of the documentation run, in order, page by page."""

import re
import sys
from pathlib import Path

import matplotlib as mpl
import pytest
import torch
from matplotlib import pyplot

mpl.use("agg")
ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(page: Path) -> list[str]:
    """The blocks of ``page``, each moved down to the line where it stands, so that a traceback names that line."""
    text = page.read_text(encoding="utf-8")
    return ["\n" * text[: match.start(1)].count("\n") + match[1] for match in BLOCK.finditer(text)]


@pytest.mark.parametrize("page", [p for p in PAGES if blocks(p)], ids=lambda page: str(page.relative_to(ROOT)))
def test_code_blocks_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    namespace: dict[str, object] = {"__name__": "__main__", "__file__": str(page)}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as the site is built: the same numbers, and small networks are faster so
    try:
        for block in blocks(page):
            exec(compile(block, str(page), "exec"), namespace)
    finally:
        torch.set_num_threads(threads)
        pyplot.close("all")


def test_the_gate_runs_the_readme_command() -> None:
    command = (ROOT / ".ci" / "run").read_text().splitlines()[-1]
    assert command.startswith("python3 -m venv .venv && ")
    assert command in (ROOT / "README.md").read_text()
