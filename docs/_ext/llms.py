"""``llms.txt``: the library in one short page of plain text, made from the docstrings, for programs that read."""

import importlib
import inspect
import re
from pathlib import Path
from typing import Any

from sphinx.application import Sphinx
from sphinx.util.docstrings import prepare_docstring

ROLE = re.compile(r":[a-z:]+:`~?([^`<]*?)(?: <[^`]*>)?`")


def write_llms(app: Sphinx, error: Exception | None) -> None:
    """Write the file beside the home page."""
    if error is None and app.builder.format == "html":
        Path(app.outdir, "llms.txt").write_text(describe(app), encoding="utf-8")


def describe(app: Sphinx) -> str:
    """What the library is, how to install it, its pages, and one line for every public name."""
    # What the top module re-exports stands in its package.
    homes = {package: names for package, names in app.config.public_names.items() if package != app.config.project}
    elsewhere = {name for names in homes.values() for name in names}
    homes |= {app.config.project: [n for n in app.config.public_names[app.config.project] if n not in elsewhere]}
    parts = [f"# {app.config.project}", f"> {app.config.llms_summary}", app.config.llms_text.strip(), "## Pages"]
    links = [f"- [{app.env.titles[page].astext()}]({app.builder.get_target_uri(page)})" for page in _pages(app)]
    parts.append("\n".join(links))
    for package, names in homes.items():
        if names:
            parts.append(f"## {package}")
            module = importlib.import_module(package)
            parts.append("\n".join(f"- {_signature(name, getattr(module, name))}" for name in names))
    return "\n\n".join(parts) + "\n"


def _pages(app: Sphinx) -> list[str]:
    """All pages, in the order in which the site has them."""
    pages = [app.config.root_doc]
    for page in pages:
        pages += [child for child in app.env.toctree_includes.get(page, []) if child not in pages]
    return pages


def _signature(name: str, value: Any) -> str:
    arguments = ""
    if inspect.isclass(value) or inspect.isroutine(value):
        try:
            arguments = "(" + ", ".join(inspect.signature(value).parameters) + ")"
        except ValueError:  # of a class without a constructor of its own
            arguments = ""
    first = (inspect.isclass(value) or inspect.isroutine(value)) and prepare_docstring(value.__doc__ or "")
    return f"`{name}{arguments}`" + (f": {_plain(first)}" if first else "")


def _plain(lines: list[str]) -> str:
    """The first paragraph on one line, roles as the names they stand for."""
    paragraph = " ".join(lines[: lines.index("")] if "" in lines else lines)
    return ROLE.sub(lambda match: match[1].rpartition(".")[2], paragraph).replace("``", "`")


def setup(app: Sphinx) -> dict[str, bool]:
    """Tell Sphinx what to call."""
    app.add_config_value("public_names", {}, "", types=frozenset({dict}))
    app.add_config_value("llms_summary", "", "", types=frozenset({str}))
    app.add_config_value("llms_text", "", "", types=frozenset({str}))
    app.connect("build-finished", write_llms)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
