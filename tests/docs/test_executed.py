"""The extension that runs the blocks of a page while the site is built."""

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("sphinx", reason="the documentation is built with the dependency group docs")
pytest.importorskip("myst_parser", reason="the documentation is built with the dependency group docs")

EXTENSIONS = Path(__file__).parents[2] / "docs" / "_ext"
CONF = f"""
import sys
sys.path.insert(0, {str(EXTENSIONS)!r})
project, extensions = "test", ["myst_parser", "executed"]
exclude_patterns, executed_pages = ["_build"], ["index", "bad*"]
"""
TOC = "```{toctree}\nplain\nbad_code\nbad_figure\n```\n"
FIGURE = 'plt.figure("A parabola, seen from the side").gca().plot([x, 1])'
PAGES = {
    "index": "# Good\n\n```python\nx = 6\nprint(7 * x)\n```\n\nThen\n\n"
    f"```python\nfrom matplotlib import pyplot as plt\n{FIGURE}\nprint(__file__)\n```\n\n{TOC}",
    "plain": "# Not asked for\n\n```python\nprint('never' + ' run')\n```\n",
    "bad_code": "# Bad\n\n```python\nimport warnings\n\nwarnings.warn('this counts')\n```\n",
    "bad_figure": "# Nameless\n\n```python\nfrom matplotlib import pyplot as plt\nplt.figure()\n```\n",
}


def test_a_page_shows_what_its_blocks_made(tmp_path: Path) -> None:
    (tmp_path / "conf.py").write_text(CONF)
    for name, text in PAGES.items():
        (tmp_path / f"{name}.md").write_text(text)
    command = [sys.executable, "-m", "sphinx", "-q", str(tmp_path), str(tmp_path / "_build" / "html")]
    run = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    html = {name: (tmp_path / "_build" / "html" / f"{name}.html").read_text() for name in PAGES}

    assert "<pre><span></span>42\n</pre>" in html["index"]
    assert str(tmp_path / "index.md") in html["index"]
    assert 'alt="A parabola, seen from the side"' in html["index"]
    assert list((tmp_path / "_build" / "html" / "_images").glob("index-1-*.svg"))
    assert "never run" not in html["plain"]

    # A failure is a warning, which fails the build of the site, and names the line of the page.
    failures = run.stderr.split("a block of this page fails")
    assert len(failures) == 3, run.stderr
    assert 'bad_code.md", line 6' in run.stderr
    assert "UserWarning: this counts" in run.stderr
    assert "a figure needs its text in words" in run.stderr
