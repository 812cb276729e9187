"""Formulas without a network: MathJax from an installed package, one script and its fonts, beside the pages."""

from importlib.metadata import files
from pathlib import Path
from shutil import copyfile

from sphinx.application import Sphinx

PACKAGE = "sphinx-mathjax-offline"  # MathJax 3.2.2 as it was released; of its 24 MB these two parts are needed
PARTS = ("mathjax/tex-chtml.js", "mathjax/output/chtml/fonts/woff-v2/")


def copy_mathjax(app: Sphinx) -> None:
    """Put the parts of MathJax where the pages look for them."""
    if app.builder.format != "html":
        return
    for file in files(PACKAGE) or ():
        _, found, part = file.as_posix().partition("/static/")
        if found and part.startswith(PARTS):
            target = Path(app.outdir, "_static", part)
            target.parent.mkdir(parents=True, exist_ok=True)
            copyfile(str(file.locate()), target)


def setup(app: Sphinx) -> dict[str, bool]:
    """Tell Sphinx what to call."""
    # Before the pages are written: the address of a script has a checksum of its content.
    app.connect("builder-inited", copy_mathjax)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
