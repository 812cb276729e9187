"""A small table and the command on it, for the tests of the command."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from reghead.cli import main

QUIET = ("--quiet", "--no-figures")


def lakes(rows: int = 60, seed: int = 0) -> pd.DataFrame:
    """pH by depth, light, and a shift of its own for each lake."""
    rng = np.random.default_rng(seed)
    lake, season = rng.choice(["Erie", "Huron", "Como"], rows), rng.choice(["summer", "winter"], rows)
    depth, light = rng.normal(size=rows), rng.normal(size=rows)
    shift = pd.Series(lake).map({"Erie": -3.0, "Huron": 0.0, "Como": 5.0}).to_numpy()
    ph = 7 + shift + 0.5 * depth * light + rng.normal(scale=0.1, size=rows)
    columns = {"depth": depth, "light": light, "lake": lake, "season": season, "pH": ph, "id": np.arange(rows)}
    return pd.DataFrame(columns)


def saved(folder: Path, frame: pd.DataFrame, name: str = "lakes.csv") -> Path:
    path = folder / name
    frame.to_parquet(path) if path.suffix == ".parquet" else frame.to_csv(path, index=False)
    return path


def flags(table: Path, out: Path, *more: Any) -> list[str]:
    """Those of a short training; a flag given again takes the place of the one here."""
    columns = ("--target", "pH", "--categorical-columns", "lake,season", "--id-column", "id")
    return [str(a) for a in ("train", table, *columns, *QUIET, "--max-epochs", 2, "--output-dir", out, *more)]


def train(table: Path, out: Path, *more: Any) -> int:
    return main(flags(table, out, *more))


def environment(**more: str) -> dict[str, str]:
    return os.environ | {"GLOO_SOCKET_IFNAME": "lo", "OMP_NUM_THREADS": "1"} | more


def start(arguments: list[str], *before: str, **options: Any) -> "subprocess.Popen[str]":
    command = [sys.executable, *before, "-m", "reghead", *arguments]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, **{"env": environment(), **pipes, **options})


def errors(text: str) -> list[str]:
    """The lines that the command itself wrote."""
    return [line for line in text.splitlines() if "reghead: error:" in line]
