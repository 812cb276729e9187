"""The examples in the docstrings print what they say they print, and every public part has one."""

import doctest
import importlib
import inspect
import json
import re
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
MODULES = sorted(
    ".".join(path.relative_to(ROOT / "src").with_suffix("").parts).removesuffix(".__init__")
    for path in (ROOT / "src" / "reghead").rglob("*.py")
)
PUBLIC = [
    (package, name)
    for package, names in json.loads((ROOT / "tests" / "api_surface.json").read_text()).items()
    for name in names
]


def examples(name: str, value: object, namespace: dict[str, object]) -> list[doctest.DocTest]:
    return [test for test in doctest.DocTestFinder().find(value, name, globs=namespace) if test.examples]


def check(tests: list[doctest.DocTest]) -> None:
    """Run the examples, and fail with doctest's own report."""
    report: list[str] = []
    runner = doctest.DocTestRunner(verbose=False, optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    for test in tests:
        runner.run(test, out=report.append)
    if report:
        pytest.fail("".join(report), pytrace=False)


@pytest.mark.parametrize(("package", "name"), PUBLIC)
def test_a_public_example_needs_torch_and_its_package_only(package: str, name: str) -> None:
    module = importlib.import_module(package)
    namespace = {"torch": torch, **{public: getattr(module, public) for public in module.__all__}}
    value = getattr(module, name)
    tests = examples(f"{package}.{name}", value, namespace)
    check(tests)
    if inspect.isroutine(value) or (inspect.isclass(value) and issubclass(value, torch.nn.Module)):
        assert tests, f"{package}.{name} has no example in its docstring"


@pytest.mark.parametrize("name", MODULES)
def test_the_other_examples_pass(name: str) -> None:
    module = importlib.import_module(name)
    public = {f"{name}.{attribute}" for package, attribute in PUBLIC if name.startswith(package)}
    tests = examples(name, module, {"torch": torch, **vars(module)})
    check([test for test in tests if not any(f"{test.name}.".startswith(f"{p}.") for p in public)])


@pytest.mark.parametrize("name", MODULES)
def test_no_formula_shows_a_backslash(name: str) -> None:
    r"""MathJax shows what is in ``\text`` as it stands, so that ``\_`` is two characters; ``\mathtt`` is for names."""
    source = inspect.getsource(importlib.import_module(name))
    assert re.findall(r"\\text\{[^}]*\\[_%#&]", source) == []
