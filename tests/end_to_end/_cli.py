"""A small table whose target shifts between locations, and the command ``reghead`` run on it in this process."""

import functools
import json
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from reghead.cli import main
from reghead.estimators import HeadRegressor

LOCATIONS, SEASONS = ("hill", "lake", "sea"), ("dry", "mild", "wet")
NEVER = ("sea", "wet")  # the combination without a row
LEVEL = {"hill": 20.0, "lake": 60.0, "sea": 200.0}
SLOPE = {"hill": 3.0, "lake": -6.0, "sea": 20.0}
SPREAD = {"hill": 0.5, "lake": 1.5, "sea": 5.0}
SEASON = {"dry": 0.0, "mild": 4.0, "wet": 8.0}

# One step per epoch with all rows, and none held back, so that what is trained can be computed by hand.
PLAIN = {
    "--target": "copper",
    "--feature-columns": "x0,x1",
    "--max-epochs": "40",
    "--batch-size": "256",
    "--lr": "0.05",
    "--weight-decay": "0",
    "--validation-fraction": "0",
    "--dtype": "float64",
}

given: set[str] = set()
"""The flags that the command was given since the last test began, such as ``train --lr``."""


def make_table() -> pd.DataFrame:
    """240 rows: 30 of each of the 8 combinations of location and season that occur."""
    rng = np.random.default_rng(0)
    cells = [(a, b) for a in LOCATIONS for b in SEASONS if (a, b) != NEVER] * 30
    table = pd.DataFrame(cells, columns=["location", "season"])
    n = len(table)
    table.insert(0, "sample", [f"s{i:03}" for i in range(n)])
    table["x0"], table["x1"] = rng.normal(size=n), rng.normal(size=n)
    place = table["location"].map
    table["copper"] = (
        place(LEVEL) + table["season"].map(SEASON) + place(SLOPE) * table["x0"] + place(SPREAD) * rng.normal(size=n)
    )
    table["share"] = 1 / (1 + np.exp(-table["x1"] - 0.2 * rng.normal(size=n)))
    table["skewed"] = table["x0"] + 5 * rng.exponential(size=n) ** 1.5
    table["bent"] = 5 + 10 * table["x0"].abs()
    table["plane"] = 3 + 2 * table["x0"] - 5 * table["x1"]
    table["times"] = rng.integers(0, 4, size=n)
    return table


@dataclass(frozen=True)
class Trained:
    """What a training left."""

    folder: Path
    table: pd.DataFrame

    @functools.cached_property
    def model(self) -> HeadRegressor:
        return HeadRegressor.load(self.folder / "model.safetensors")

    @functools.cached_property
    def history(self) -> pd.DataFrame:
        return pd.read_csv(self.folder / "history.csv", index_col="epoch")

    @functools.cached_property
    def metrics(self) -> dict[str, Any]:
        return dict(json.loads((self.folder / "metrics.json").read_text()))

    @property
    def head(self) -> Any:
        return self.model.head_

    def rows(self, **values: Any) -> pd.DataFrame:
        """The rows of the table as the model takes them, with some columns replaced."""
        return self.table.assign(**values)[list(self.model.feature_names_in_)]

    def predict(self, **values: Any) -> Any:
        return self.model.predict(self.rows(**values))

    def inputs(self, **values: Any) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """The rows as the head takes them, where training had all rows and the features ``x0,x1``."""
        features, rows, encoder = self.table[["x0", "x1"]], self.rows(**values), self.model.encoder_
        x = (rows[["x0", "x1"]] - features.mean()) / features.std(ddof=0)
        ids = {} if encoder is None else encoder.transform({c: rows[c].tolist() for c in encoder.cardinalities})
        return torch.from_numpy(x.to_numpy(np.float64)), ids

    def aux(self, **values: Any) -> Any:
        """What the head returns beside its predictions."""
        with torch.no_grad():
            return self.head(*self.inputs(**values), return_aux=True)[1]

    def z(self, target: str) -> torch.Tensor:
        """A column of the table, standardised as in training."""
        values = torch.tensor(self.table[[target]].to_numpy(np.float64))
        return self.model.normalizer_(values).squeeze(-1)

    def preds_z(self, **values: Any) -> torch.Tensor:
        """Predictions of the head itself, before they are given their units."""
        with torch.no_grad():
            return self.head(*self.inputs(**values)).squeeze(-1)


class Cli:
    """Runs the command; a training with the same flags runs once.

    Args:
        folder: An empty folder to work in.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.table = folder, make_table()
        self.file = folder / "table.csv"
        self.table.to_csv(self.file, index=False)
        self._trained: dict[str, Trained] = {}

    def run(self, command: str, *words: str | Path) -> int:
        """Run the command and return its exit code."""
        argv = [command, *map(str, words)]
        given.update(f"{command} {word}" for word in argv if word.startswith("--"))
        return main(argv)

    def path(self, name: str) -> Path:
        """A path that nobody has used."""
        return next(p for i in range(10**6) if not (p := self.folder / f"{i}-{name}").exists())

    def train(self, line: str = "", *, file: Path | None = None, figures: bool = False) -> Trained:
        """Train with the flags of ``line``, and those of ``PLAIN`` that it leaves out."""
        words = shlex.split(line)
        given.update(f"train {word}" for word in words if word.startswith("--"))
        key = f"{file} {line} {figures}"
        if key not in self._trained:
            out = self.path("trained")
            assert self.run("train", file or self.file, *self.complete(words), "--output-dir", out) == 0
            self._trained[key] = Trained(out, self.table)
        return self._trained[key]

    def complete(self, words: Sequence[str]) -> list[str]:
        """``words``, and the flags of ``PLAIN`` that are not among them."""
        plain = {flag: value for flag, value in PLAIN.items() if flag not in words}
        if "--validation-by" in words or "--validation-table" in words:
            plain.pop("--validation-fraction", None)
        quiet = [flag for flag in ("--quiet", "--no-figures") if flag not in words]
        return [*words, *(word for pair in plain.items() for word in pair), *quiet]

    def predict(self, trained: Trained, file: Path | None = None, *words: str | Path) -> pd.DataFrame:
        """The predictions that the command writes."""
        out = self.path("preds.csv")
        assert self.run("predict", trained.folder, file or self.file, "--output", out, "--quiet", *words) == 0
        return pd.read_csv(out)

    def write(self, name: str, table: pd.DataFrame, **options: Any) -> Path:
        """``table`` in a new file."""
        path = self.path(name)
        table.to_parquet(path, **options) if path.suffix == ".parquet" else table.to_csv(path, index=False)
        return path


def shows(*flags: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """The test shows what ``flags`` do, each with its command: ``train --lr``. One it does not give is an error."""

    def decorate(test: Callable[..., None]) -> Callable[..., None]:
        @functools.wraps(test)
        def run(*args: Any, **kwargs: Any) -> None:
            given.clear()
            test(*args, **kwargs)
            assert set(flags) <= given, f"the command was not given {sorted(set(flags) - given)}"

        return run

    return decorate
