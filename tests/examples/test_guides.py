"""The commands of the guides run on the table that they describe, and pages name what there is."""

import importlib.util
import re
import shlex
import textwrap
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
CONSOLE = re.compile(r"^```console\n(.*?)^```$", re.MULTILINE | re.DOTALL)
GUIDES = sorted(page for page in (ROOT / "docs" / "howto").glob("*.md") if page.stem != "index")
NEEDED = ("matplotlib", "pandas", "pyarrow", "rich", "safetensors", "sklearn", "tqdm")
MISSING = [name for name in NEEDED if importlib.util.find_spec(name) is None]


def commands(page: Path) -> list[str]:
    """The command lines of a page, each on one line."""
    text = "".join(CONSOLE.findall(page.read_text(encoding="utf-8"))).replace("\\\n", " ")
    return [" ".join(line.removeprefix("$ ").split()) for line in text.splitlines() if line.startswith("$ ")]


def write_lakes(path: Path) -> None:
    """The table that the guides are about."""
    import pandas as pd

    rng = np.random.default_rng(0)
    table = pd.DataFrame({"site": rng.choice(["river", "lake", "sea"], 60), "season": rng.choice(["dry", "wet"], 60)})
    table["depth"], table["light"] = rng.normal(5, 1, 60), rng.normal(0, 1, 60)
    table["oxygen"] = 10 + table["depth"] + (table["site"] == "sea") * 5 + rng.normal(0, 1, 60)
    table["temperature"] = 20 + table["light"] + rng.normal(0, 1, 60)
    table["clarity"] = rng.uniform(0.01, 0.99, 60)
    table.to_csv(path, index=False)


@pytest.mark.skipif(bool(MISSING), reason=f"{', '.join(MISSING)} missing; pip install reghead[cli]")
@pytest.mark.parametrize("page", GUIDES, ids=lambda page: page.stem)
def test_the_commands_of_a_guide_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from reghead.cli import main

    write_lakes(tmp_path / "lakes.csv")
    monkeypatch.chdir(tmp_path)
    found = commands(page)
    assert found
    for command in found:
        words = shlex.split(command)
        assert words[:3] == ["reghead", "train", "lakes.csv"]
        assert main([*words[1:], "--max-epochs", "2", "--no-figures", "--quiet"]) == 0, command
        assert (tmp_path / words[words.index("--output-dir") + 1] / "metrics.json").is_file()


def test_there_is_a_guide_for_each_technique_and_none_is_long() -> None:
    text = " ".join(command for page in GUIDES for command in commands(page))
    flags = ("--regressor-hidden-dims", "--normalize-targets-by", "--conditional-output-scaling", "--film-conditioning")
    flags += ("--loss-type quantile", "--loss-type asymmetric", "--residual-regression-head", "--loss-config")
    for flag in (*flags, "--moe-experts"):
        assert flag in text, flag
    for page in GUIDES:
        assert len(page.read_text(encoding="utf-8").splitlines()) <= 70, page.name
        assert f"\n{page.stem}\n" in (page.parent / "index.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "page", [*GUIDES, *(ROOT / "docs" / f"{name}.md" for name in ("choosing", "faq", "migration", "stability"))]
)
def test_an_example_that_a_page_names_is_there(page: Path) -> None:
    for name in re.findall(r"`examples/(\w+\.py)`", page.read_text(encoding="utf-8")):
        assert (ROOT / "examples" / name).is_file(), name


def test_what_contributing_works_through_runs() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    found = re.findall(r"^   ```python\n(.*?)^   ```$", text, re.MULTILINE | re.DOTALL)
    assert len(found) == 7
    namespace: dict[str, object] = {}
    for block in found:
        exec(compile(textwrap.dedent(block), "CONTRIBUTING.md", "exec"), namespace)


def test_there_are_at_most_twenty_questions() -> None:
    questions = re.findall(r"^\*\*.*?\?", (ROOT / "docs" / "faq.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert 10 <= len(questions) <= 20


def test_the_stability_page_says_what_the_project_declares() -> None:
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    page = (ROOT / "docs" / "stability.md").read_text(encoding="utf-8")
    torch = next(r for r in project["dependencies"] if r.startswith("torch>="))
    assert f"| Python | {project['requires-python'].removeprefix('>=')} and later |" in page
    assert f"| PyTorch | {torch.removeprefix('torch>=')} and later |" in page
