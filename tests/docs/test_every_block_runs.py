"""Every block of code in README, CONTRIBUTING and documentation is run, or stands here with the reason why not.

``RUN`` and ``NOT_RUN`` are patterns of command lines; a line is matched by exactly one, and each matches some line.
"""

import re
from pathlib import Path

import pytest

from reghead.config import FLAGS

ROOT = Path(__file__).parents[2]
DOCS = sorted(page for page in (ROOT / "docs").rglob("*.md") if "_build" not in page.parts)
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *DOCS]
FENCE = re.compile(r"^( *)```(\S*).*\n((?:.*\n)*?)\1```$", re.MULTILINE)
EXAMPLES = sorted(path for path in (ROOT / "examples").glob("*.py") if not path.stem.startswith("_"))
TECHNIQUES = "tests/examples/test_examples_by_technique.py"

RUN = {
    r"README\.md: reghead (train|evaluate|predict) ": "tests/examples/test_command_line.py",
    r"docs/command_line\.md: (reghead|torchrun|python examples/)": "tests/examples/test_command_line.py",
    r"docs/howto/\w+\.md: reghead train lakes\.csv ": "tests/examples/test_guides.py",
    r"docs/tutorials/scikit_learn_and_command\.md: reghead ": "docs/tutorials/scikit_learn_and_command.md",
    r"docs/tutorials/several_processes\.md: OMP_NUM_THREADS=1 torchrun ": "docs/tutorials/several_processes.md",
    r"README\.md: .*/nox$": ".ci/run",
    r"CONTRIBUTING\.md: .*python -m benchmarks\.accuracy --quick$": "tests/benchmarks/test_accuracy_smoke.py",
    r"docs/benchmarks\.md: python -m benchmarks\.accuracy ": "tests/benchmarks/test_accuracy_smoke.py",
}
"""Pattern -> the file that runs such a line, or the same with fewer epochs or rows."""

NOT_RUN = {
    r": (\.venv/bin/)?(pip|pre-commit) install\b": "installs",
    r": (source|cd \w+$)": "goes somewhere",
    r"CONTRIBUTING\.md: python3 -m venv \.venv$": "makes an environment",
    r"README\.md: .*nox -s quickstart$": "installs; what it runs is tests/examples/test_command_line.py",
    r"(migration_aam|sequence_model)\.md: reghead-aam ": "needs AAM and its tables; its flags are compared below",
    r"CONTRIBUTING\.md: .*REGHEAD_(FUZZ|KILLS)=": "the long form of tests that run",
    r"CONTRIBUTING\.md: .*(\.\./aam|\.venv-aam)": "needs AAM, which is on no package index",
    r"docs/benchmarks\.md: python -m benchmarks( --quick)?$": "takes minutes to hours, and writes into the checkout",
}


def blocks(language: str) -> list[tuple[str, str]]:
    """Name of the page and text of each block in ``language``."""
    return [
        (page.relative_to(ROOT).as_posix(), match[3])
        for page in PAGES
        for match in FENCE.finditer(page.read_text(encoding="utf-8"))
        if match[2] == language
    ]


def command_lines() -> list[str]:
    """``page: command``, each on one line, without comments."""
    found = []
    for page, text in blocks("console"):
        for line in text.replace("\\\n", " ").splitlines():
            assert line.strip().startswith("$ "), f"{page}: {line!r} in a console block; a command begins with '$ '"
            found.append(f"{page}: {' '.join(line.strip()[2:].partition('   #')[0].split())}")
    return found


@pytest.mark.parametrize("line", command_lines())
def test_a_command_is_run_or_has_a_reason(line: str) -> None:
    matched = [pattern for pattern in (*RUN, *NOT_RUN) if re.search(pattern, line)]
    assert len(matched) == 1, f"{line} is matched by {matched}; add a test that runs it to RUN, or a reason to NOT_RUN"


@pytest.mark.parametrize("pattern", [*RUN, *NOT_RUN])
def test_no_entry_is_left_over(pattern: str) -> None:
    assert any(re.search(pattern, line) for line in command_lines())
    if pattern in RUN:
        assert (ROOT / RUN[pattern]).is_file()


def test_what_a_page_runs_in_python_is_what_it_shows_for_a_shell() -> None:
    name = "docs/tutorials/scikit_learn_and_command.md"
    shown = [line.partition(": reghead ")[2] for line in command_lines() if line.startswith(f"{name}: reghead ")]
    (program,) = [text for page, text in blocks("python") if page == name and 'commands = """' in text]
    ran = program.split('"""')[1].strip().replace("\n    ", " ").splitlines()
    assert shown == ran


def test_the_flags_shown_of_the_command_of_aam_are_there() -> None:
    theirs = {"table", "unifrac-matrix", "metadata", "metadata-column", "output-dir", "output", "model"}
    ours = {flag.name.removeprefix("--") for flag in FLAGS}
    shown = {flag for line in command_lines() if ": reghead-aam " in line for flag in re.findall(r"--([\w-]+)", line)}
    assert len(shown) >= 15
    assert shown <= theirs | ours


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_a_block_is_in_a_language_that_something_checks(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for match in FENCE.finditer(text):
        indent, language, content = match.groups()
        assert language in {"python", "console", "text", "toml"} or language.startswith("{"), match[0][:80]
        if language == "python":  # tests/docs/test_code_blocks.py finds those that aren't indented
            assert not indent or page.name == "CONTRIBUTING.md", match[0][:80]
        if language == "text":  # output, which nothing runs; code does not hide in it
            assert not re.search(r"^(import|from|def|class|\$ )\b", content, re.MULTILINE), match[0][:80]
    assert len(re.findall(r"^ *```", text, re.MULTILINE)) == 2 * len(FENCE.findall(text)), "a fence is left open"


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_every_example_is_named_by_the_documentation_and_run_by_a_test(example: Path) -> None:
    assert any(f"`examples/{example.name}`" in page.read_text(encoding="utf-8") for page in DOCS)
    tests = [*(ROOT / "tests" / "examples").glob("*.py"), ROOT / "tests" / "distributed" / "test_all_reduce.py"]
    assert any(f'"{example.stem}"' in text or example.name in text for text in map(Path.read_text, tests))


@pytest.mark.parametrize(
    "page",
    [page for page in DOCS if page.parent.name == "api" and page.stem != "index"],
    ids=lambda page: page.stem,
)
def test_a_page_of_the_reference_leads_to_theory_and_to_a_guide(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert re.search(r"theory/\w+|architecture", text)
    assert re.search(r"(howto|tutorials)/\w+|/estimator`|command_line", text)
