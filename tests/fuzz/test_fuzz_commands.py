"""The command with flags and values in any combination: a result, or one line and exit code 2, and nothing left."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given

from _command import errors, lakes, saved, train
from fuzz._oracle import CORPUS, TEXTS, examples, mutated
from reghead.cli import main
from reghead.cli._flags import EVALUATE_FLAGS, MODEL_FLAGS, PREDICT_FLAGS, TRAIN_FLAGS
from reghead.config import Flag

ALL = {"train": (*TRAIN_FLAGS, *MODEL_FLAGS), "predict": PREDICT_FLAGS, "evaluate": EVALUATE_FLAGS}
LEFT_ALONE = ("--output-dir", "--output", "--traceback", "--max-epochs", "--overwrite", "--resume")
COLUMNS = st.lists(
    st.sampled_from(["lake", "season", "depth", "light", "pH", "id", "none", ""]), min_size=1, max_size=3
)
GOOD = [
    *(
        "8",
        "4,4",
        "0.5",
        "0.1,0.5,0.9",
        "huber",
        "quantile",
        "mse",
        "asymmetric",
        "relu",
        "exp",
        "softplus",
        "concat",
        "add",
    ),
    *(
        "log",
        "log1p",
        "mixed_effects",
        "empirical_bayes",
        "additive",
        "float64",
        "cpu",
        "top_k",
        "hard",
        "parameters",
        "0",
    ),
    *('{"pH": "mae"}', '{"pH": {"type": "quantile"}}', "none", "1", "2"),
]
BAD = [
    "-1",
    "1e999",
    "nan",
    "inf",
    "9" * 5000,
    "0x10",
    "{",
    "{}",
    "[]",
    "cuda:99",
    "meta",
    "/",
    "/dev/null",
    "..",
    "\ud800",
    "--",
    "a\nb",
]
VALUE = st.one_of(
    st.sampled_from(GOOD), st.sampled_from(BAD), COLUMNS.map(",".join), TEXTS.filter(lambda text: "\x00" not in text)
)


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table, and a model trained on it."""
    folder = tmp_path_factory.mktemp("command")
    assert train(saved(folder, lakes(40)), folder / "model", "--max-epochs", 1) == 0
    return folder


def words_of(flags: tuple[Flag, ...]) -> st.SearchStrategy[list[str]]:
    chosen = [flag for flag in flags if flag.name not in LEFT_ALONE]
    one = st.sampled_from(chosen).flatmap(
        lambda flag: VALUE.map(lambda value: [flag.name, value]) if flag.kind.action == "text" else st.just([flag.name])
    )
    return st.lists(one, max_size=5).map(lambda pairs: [word for pair in pairs for word in pair])


def run(argv: list[str], here: Path, capsys: pytest.CaptureFixture[str]) -> int:
    """Run the command; what it wrote is taken away."""
    before = {path: path.stat().st_mtime_ns for path in here.rglob("*")}
    capsys.readouterr()
    code = main(argv)
    err = capsys.readouterr().err
    new = {path for path in here.iterdir() if path not in before}
    assert code in (0, 2), (argv, err)
    if code == 2:
        assert len(errors(err)) == 1, err
        assert "Traceback" not in err
        assert not new, (argv, new)
        for foreign in (
            "GLHF",
            "Error(s) in loading",
            "site-packages",
            "Expected all tensors",
            "mat1 and mat2",
            "Arrow",
        ):
            assert foreign not in err
    for path in new:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    assert {path: path.stat().st_mtime_ns for path in here.rglob("*") if path != here} == {
        path: time for path, time in before.items() if path != here
    }
    return code


@pytest.mark.filterwarnings("ignore")
@examples(12)
@given(words=words_of(ALL["train"]))
def test_train(here: Path, capsys: pytest.CaptureFixture[str], words: list[str]) -> None:
    roles = [] if "--categorical-columns" in words else ["--categorical-columns", "lake,season"]
    roles += [] if "--target" in words else ["--target", "pH"]
    required = ["--max-epochs", "1", "--output-dir", str(here / "out"), "--no-figures", "--quiet"]
    run(["train", str(here / "lakes.csv"), *roles, *words, *required], here, capsys)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("command", ["predict", "evaluate"])
@examples(8)
@given(data=st.data())
def test_predict_and_evaluate(
    here: Path, capsys: pytest.CaptureFixture[str], command: str, data: st.DataObject
) -> None:
    words = data.draw(words_of(ALL[command]))
    output = (
        ["--output", str(here / "p.csv")] if command == "predict" else ["--output-dir", str(here / "e"), "--no-figures"]
    )
    places = data.draw(
        st.sampled_from([("model", "lakes.csv")] * 5 + [("lakes.csv", "model"), ("", ""), ("..", "/dev/null")])
    )
    run([command, *(str(here / place) for place in places), *words, *output], here, capsys)


@pytest.mark.filterwarnings("ignore")
@examples(20)
@given(
    words=st.lists(
        VALUE | st.sampled_from(["train", "predict", "--target", "--overwrit", "-x", "--seed=3"]), max_size=4
    )
)
def test_words_in_any_order(here: Path, capsys: pytest.CaptureFixture[str], words: list[str]) -> None:
    run(words, here, capsys)


FILE = {
    "target": ["pH"],
    "categorical-columns": ["lake", "season"],
    "max-epochs": 1,
    "exclude_columns": ["id"],
    "quiet": True,
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("suffix", [".json", ".toml"])
@examples(12)
@given(data=st.data())
def test_a_file_of_flags_with_some_bytes_changed(
    here: Path,
    capsys: pytest.CaptureFixture[str],
    tmp_path_factory: pytest.TempPathFactory,
    suffix: str,
    data: st.DataObject,
) -> None:
    lines = [f"{key} = {json.dumps(value)}" for key, value in FILE.items()]
    whole = json.dumps(FILE) if suffix == ".json" else "\n".join(lines)
    file = tmp_path_factory.getbasetemp() / f"flags{suffix}"
    file.write_bytes(data.draw(mutated(whole.encode())))
    required = ["--output-dir", str(here / "out"), "--no-figures", "--max-epochs", "1"]
    run(["train", str(here / "lakes.csv"), "--config", str(file), *required], here, capsys)


@pytest.mark.filterwarnings("ignore")
@examples(12)
@given(data=st.data())
def test_a_record_with_some_bytes_changed(here: Path, capsys: pytest.CaptureFixture[str], data: st.DataObject) -> None:
    whole = (here / "model" / "run.json").read_bytes()
    folder = shutil.copytree(here / "model", here.parent / "changed", dirs_exist_ok=True)
    (folder / "run.json").write_bytes(data.draw(mutated(whole)))
    run(["predict", str(folder), str(here / "lakes.csv"), "--output", str(here / "p.csv")], here, capsys)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("file", sorted((CORPUS / "commands").glob("*.json")), ids=lambda file: file.stem)
def test_what_once_failed(here: Path, capsys: pytest.CaptureFixture[str], file: Path) -> None:
    words: list[Any] = json.loads(file.read_text())
    run([word.replace("HERE", str(here)) for word in words], here, capsys)


@pytest.mark.filterwarnings("ignore")
@examples(12)
@given(words=st.lists(st.sampled_from([flag.name for flag in MODEL_FLAGS]) | VALUE, max_size=5))
def test_the_command_on_aam(words: list[str]) -> None:
    """AAM need not be there: an exit code, and no traceback."""
    pytest.importorskip("click")
    if any(word in ("--help", "--version") for word in words):
        return
    from reghead.adapters.aam import main as aam

    assert aam(words) in (0, 1, 2)
    assert "aam.cli" not in sys.modules or "aam" in sys.modules
