"""Sphinx configuration: a warning is an error, every reference resolves, every public name is documented."""

import importlib
import json
import sys
from importlib.metadata import version as installed_version
from pathlib import Path

from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.ext.napoleon import GoogleDocstring
from sphinx.pycode import ModuleAnalyzer
from sphinx.util import logging

project = "reghead"
author = "The reghead developers"
project_copyright = "The reghead developers"
release = installed_version("reghead")
version = ".".join(release.split(".")[:2])

sys.path.insert(0, str(Path(__file__).with_name("_ext")))

_LISTED = Path(__file__).parents[1].joinpath("tests", "api_surface.json").read_text(encoding="utf-8")
SURFACE: dict[str, list[str]] = {package: [*names] for package, names in json.loads(_LISTED).items()}

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.intersphinx",
    "sphinx.ext.mathjax",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
    "sphinx_design",
    "executed",
    "llms",
    "local_mathjax",
]
exclude_patterns = ["_build"]
executed_pages = ["index", "tutorials/*"]
html_theme = "furo"
pygments_dark_style = "github-dark"
html_title = f"reghead {release}"
html_static_path = ["_static"]
html_css_files = ["custom.css"]
nitpicky = True
# The script that local_mathjax brings along. Its menu would ask for more files, of languages and screen readers.
mathjax_path = "mathjax/tex-chtml.js"
mathjax3_config = {"options": {"enableMenu": False}}
copybutton_exclude = ".linenos, .gp, .go"  # of a console, the commands alone
copybutton_selector = "div:not(.printed) > div.highlight > pre"

public_names = SURFACE
llms_summary = (
    "Regression heads, losses and target normalizers for PyTorch, for data whose target shifts between categories: "
    "sites, seasons, instruments, batches, people."
)
llms_text = """
Install from a checkout: `pip install .`; extras: `sklearn` (HeadRegressor), `plots`, `safetensors`, `cli` (the
command, and these three), `aam`, `all`.
Python 3.11 or later, PyTorch 2.11 or later. Import a name from the package it stands under below.

Conventions: `categories` maps each categorical column to a tensor of ids, and id 0 is unknown or missing, everywhere.
Predictions have shape `(*, D)` for D targets, quantiles `(*, D, Q)`. Normalize the target, train on z, go back with
`inverse(..., output_dim=-2)` for quantiles. Metrics and intervals belong in the target's own units.
"""

autodoc_default_options = {"members": True, "inherited-members": "Module, BaseException, tuple"}
autodoc_inherit_docstrings = False
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 88
napoleon_custom_sections = ["Shape"]
napoleon_numpy_docstring = False
napoleon_use_ivar = True
# In the text of an attribute or a property napoleon takes the words before a colon for the type. Ours are annotated.
GoogleDocstring._consume_inline_attribute = lambda self: (
    "",
    type(self)(self._dedent(self._consume_to_end()), self._config).lines(),
)
napoleon_use_rtype = False
myst_enable_extensions = ["colon_fence", "deflist", "dollarmath"]
myst_heading_anchors = 3

# The documentation builds without a network. The names of other projects that ours refers to stand in text files, in
# the first version of Sphinx's inventory format: name, kind, page. A missing one is a warning; add its line.
INVENTORIES = Path(__file__).with_name("inventories")
intersphinx_mapping = {
    "python": ("https://docs.python.org/3/", str(INVENTORIES / "python.inv")),
    "torch": ("https://docs.pytorch.org/docs/stable/", str(INVENTORIES / "torch.inv")),
    "numpy": ("https://numpy.org/doc/stable/", str(INVENTORIES / "numpy.inv")),
    "sklearn": ("https://scikit-learn.org/stable/", str(INVENTORIES / "sklearn.inv")),
    "matplotlib": ("https://matplotlib.org/stable/", str(INVENTORIES / "matplotlib.inv")),
}


def bring_up_attribute_texts(app: Sphinx) -> None:
    """Give each package the texts below the constants and aliases that it re-exports.

    autodoc looks for them in the package's own file alone; they stand in the private file that defines the name.
    """
    for package, names in SURFACE.items():
        exports = ModuleAnalyzer.for_module(package)
        exports.analyze()
        importlib.import_module(package)
        for module in [module for module in sys.modules if module.startswith(f"{package}._")]:
            texts = ModuleAnalyzer.for_module(module).find_attr_docs()
            for name in {name for scope, name in texts if not scope}.intersection(names):
                exports.attr_docs["", name] = [*texts["", name], ":meta hide-value:", ""]


def skip_fields(app: Sphinx, what: str, name: str, obj: object, skip: bool, options: object) -> bool | None:
    """Leave out the fields of a named tuple, "Alias for field number 0": the docstring of the class describes them."""
    return True if type(obj).__name__ == "_tuplegetter" else None


def check_every_public_name(app: Sphinx, env: BuildEnvironment) -> None:
    """Warn of a public name that no page documents. That a name is documented twice Sphinx says itself."""
    documented = env.domains.python_domain.objects
    for package, names in SURFACE.items():
        # What the top module re-exports is documented in its package.
        homes = SURFACE if package == project else [package]
        for name in names:
            if not any(f"{home}.{name}" in documented for home in homes):
                logging.getLogger(__name__).warning(
                    "%s.%s is public, and no page documents it; give it a docstring, or a constant or an alias a text "
                    "on the line below it",
                    package,
                    name,
                )


def setup(app: Sphinx) -> dict[str, bool]:
    app.connect("builder-inited", bring_up_attribute_texts)
    app.connect("autodoc-skip-member", skip_fields)
    app.connect("env-check-consistency", check_every_public_name)
    return {"parallel_read_safe": True}
