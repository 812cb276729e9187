"""Each extra brings what the code asks for under its name, and ``all`` brings what users of any part need."""

import ast
import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]
DISTRIBUTIONS = {"sklearn": "scikit-learn"}


def packages(extra: str) -> set[str]:
    """The distributions that ``extra`` brings, those of extras within it included."""
    found: set[str] = set()
    for requirement in EXTRAS[extra]:
        name = re.match(r"[\w.-]+", requirement)
        assert name is not None
        if name[0] == PROJECT["name"]:
            found |= {p for inner in re.findall(r"\w+", requirement.partition("[")[2]) for p in packages(inner)}
        else:
            found.add(name[0])
    return found


def asked_for() -> set[tuple[str, str]]:
    """Module and extra of each ``import_optional`` that has both as text."""
    found = set()
    for path in (ROOT / "src").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "import_optional":
                given = [*node.args, *(keyword.value for keyword in node.keywords)]
                words = [value.value for value in given if isinstance(value, ast.Constant)]
                if len(words) == 2:
                    found.add((str(words[0]), str(words[1])))
    return found


def test_the_code_asks_for_several() -> None:
    assert {extra for _, extra in asked_for()} >= {"aam", "cli", "plots", "safetensors", "sklearn"}


@pytest.mark.parametrize(("module", "extra"), sorted(asked_for()))
def test_an_extra_brings_what_it_is_named_for(module: str, extra: str) -> None:
    package = module.partition(".")[0]
    assert DISTRIBUTIONS.get(package, package) in packages(extra)


def test_the_estimators_have_their_progress_and_their_embeddings() -> None:
    assert packages("sklearn") >= {"scikit-learn", "tqdm", "rtdl_num_embeddings"}


def test_the_command_has_the_estimators_figures_files_and_parquet() -> None:
    both = packages("sklearn") | packages("plots") | packages("safetensors")
    assert packages("cli") >= both | {"pandas", "pyarrow", "rich"}


def test_all_is_every_extra_but_that_of_the_examples() -> None:
    assert packages("all") == {p for extra in EXTRAS if extra not in ("all", "examples") for p in packages(extra)}


def test_every_extra_is_explained() -> None:
    page = (ROOT / "docs" / "quickstart.md").read_text(encoding="utf-8")
    for extra in EXTRAS:
        assert f"| `{extra}` |" in page
