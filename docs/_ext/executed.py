"""Pages whose Python blocks run while the documentation is built.

The blocks of a page run in order in one namespace, with warnings as errors. What a block prints stands below it, and so
does every figure that it leaves open: the page shows what this run made. The page itself stays plain Markdown, which
``tests/docs`` runs too. The label of a figure, ``plt.figure("...")``, is its text for who cannot see it.
"""

import contextlib
import fnmatch
import io
import os
import sys
import tempfile
import traceback
import warnings
from pathlib import Path
from typing import Any

import torch
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util import logging

logger = logging.getLogger(__name__)


def run_blocks(app: Sphinx, doctree: nodes.document) -> None:
    """Run the blocks of the page just read, if it is one of ``executed_pages``, and put below each what it made."""
    page = app.env.docname
    if not any(fnmatch.fnmatch(page, pattern) for pattern in app.config.executed_pages):
        return
    source = app.env.doc2path(page)
    namespace: dict[str, Any] = {"__name__": "__main__", "__file__": str(source)}
    home, path, threads = os.getcwd(), list(sys.path), torch.get_num_threads()
    # A page may write files; they go where nobody keeps them.
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("error")
        os.chdir(folder)
        torch.set_num_threads(1)  # the same numbers on every machine, and small networks are faster so
        try:
            for number, block in enumerate(list(doctree.findall(_is_python))):
                printed = io.StringIO()
                code = "\n" * (block.line or 0) + block.astext()  # a traceback names the line of the page
                with contextlib.redirect_stdout(printed):
                    exec(compile(code, source, "exec"), namespace)
                _show(app, block, printed.getvalue(), f"{page.replace('/', '-')}-{number}")
        except Exception:
            logger.warning("a block of this page fails:\n%s", traceback.format_exc(), location=page)
        finally:
            os.chdir(home)
            sys.path[:] = path
            torch.set_num_threads(threads)
            _close_figures()


def _is_python(node: nodes.Node) -> bool:
    # A file that is shown, by literalinclude, is not a block of the page.
    return isinstance(node, nodes.literal_block) and node.get("language") == "python" and "source" not in node


def _show(app: Sphinx, block: nodes.Element, printed: str, name: str) -> None:
    made: list[nodes.Node] = []
    if text := printed.rstrip():
        made.append(nodes.literal_block(text, text, language="text", classes=["printed"]))
    made += [
        nodes.image(uri=f"/{path.relative_to(app.srcdir).as_posix()}", alt=alt, classes=["figure"])
        for path, alt in _save_figures(Path(app.srcdir) / "_build" / "figures", name)
    ]
    # The code of a figure may be folded away; the figure is not.
    while block.parent.get("design_component") or block.parent.parent.get("design_component"):
        block = block.parent
    block.parent.insert(block.parent.index(block) + 1, made)


def _save_figures(folder: Path, name: str) -> list[tuple[Path, str]]:
    """Write and close the open figures; where they are, and what they show in words."""
    from matplotlib import pyplot as plt

    saved = []
    for number in plt.get_fignums():
        figure = plt.figure(number)
        if not figure.get_label():
            raise ValueError('a figure needs its text in words; name it: plt.subplots(num="Coverage of each site")')
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{name}-{number}.svg"
        with plt.rc_context({"svg.hashsalt": name}):
            figure.savefig(path, metadata={"Date": None})
        saved.append((path, str(figure.get_label())))
    _close_figures()
    return saved


def _close_figures() -> None:
    from matplotlib import pyplot as plt

    plt.close("all")


def setup(app: Sphinx) -> dict[str, bool]:
    """Tell Sphinx what to call."""
    app.add_config_value("executed_pages", [], "env", types=frozenset({list}))
    # Before Sphinx collects the images of the page.
    app.connect("doctree-read", run_blocks, priority=400)
    os.environ.setdefault("MPLBACKEND", "agg")
    return {"parallel_read_safe": True, "parallel_write_safe": True}
