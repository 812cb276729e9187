"""Training ``HeadRegressor``: one epoch against a loop written by hand, and what comes before the first."""

import dataclasses
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks._data import Table, available, is_number
from benchmarks.speed._measure import Comparison, Figure, Reach
from benchmarks.speed._subject import main
from reghead.estimators import HeadRegressor
from reghead.estimators._data import Data, Rows
from reghead.estimators._training import TrainingOptions, train
from reghead.losses import MSELoss

TITLE = "Training a regressor"
_ONE_NETWORK: dict[str, Any] = {"normalize": "moments", "numeric_embeddings": False, "ensemble": 1}
_ONE_NETWORK |= {"unknown_dropout": 0.0, "early_stopping": False, "feature_clip": None}


class _Network(nn.Module):
    """The same network as people write it: a table for each column, and three linear maps."""

    def __init__(self, numbers: int, cardinalities: dict[str, int]) -> None:
        super().__init__()
        self.tables = nn.ModuleDict({name: nn.Embedding(size, 16) for name, size in cardinalities.items()})
        width = numbers + 16 * len(cardinalities)
        self.layers = nn.Sequential(nn.Linear(width, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 1))

    def forward(self, x: Tensor, categories: dict[str, Tensor]) -> Tensor:
        embedded = [table(categories[name]) for name, table in self.tables.items()]
        preds: Tensor = self.layers(torch.cat([x, *embedded], dim=1))
        return preds


def _by_hand(net: nn.Module, rows: Rows, options: TrainingOptions) -> Callable[[], None]:
    """The same epochs, batches, loss and optimiser, and nothing beside."""

    def call() -> None:
        optimizer = torch.optim.AdamW(net.parameters(), lr=options.lr, weight_decay=options.weight_decay, fused=True)
        net.train()
        for _ in range(options.max_epochs):
            for index in torch.randperm(len(rows.x)).split(options.batch_size):
                categories = {name: ids[index] for name, ids in rows.categories.items()}
                loss = nn.functional.mse_loss(net(rows.x[index], categories), rows.target[index])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()

    return call


def _columns(table: Table) -> list[str]:
    return [name for name in table.features if not is_number(table.features[name])]


def _float32(table: Table) -> Any:
    """Numbers in float32, which is what a network of it is trained in."""
    return table.features.astype({n: np.float32 for n in table.features if is_number(table.features[n])})


def _epochs(name: str, table: Table, epochs: int) -> Comparison:
    features = _float32(table)
    estimator = HeadRegressor(_columns(table), max_epochs=1, random_state=0, **_ONE_NETWORK)
    estimator.fit(features, table.target)
    model = estimator._model  # what fit has made before its first epoch
    x, ids = model.preprocessor.transform(estimator._read(features), torch.float32)
    target = torch.tensor(table.target).unsqueeze(1)
    rows = model.to_z(Rows(x, ids, target))
    network = _Network(x.shape[1], model.preprocessor.encoder.cardinalities)
    options = dataclasses.replace(model.options, max_epochs=epochs)
    return Comparison(
        f"{epochs} epoch{'s' * (epochs > 1)}, {name}, {len(x):,} rows in batches of {options.batch_size}",
        {
            "reghead": lambda: train(model.network, MSELoss(), Data.of(rows), options),
            "the same head in a loop by hand": _by_hand(model.head, rows, options),
            "a network in a loop by hand": _by_hand(network, rows, options),
        },
        [Reach(1.15, ("the same head in a loop by hand",)), Reach(1.15, ("a network in a loop by hand",))],
        seconds=12.0,
        rounds=5,
        why="With few rows in a step, what a head checks and returns in every call costs as much as the arithmetic.",
    )


def _before_training(name: str, table: Table) -> Figure:
    features, columns = _float32(table), _columns(table)

    def fit(epochs: int) -> float:
        start = time.perf_counter()
        HeadRegressor(columns, max_epochs=epochs, batch_size=len(features), random_state=0, **_ONE_NETWORK).fit(
            features, table.target
        )
        return time.perf_counter() - start

    fit(1)
    value = statistics.median(2 * fit(1) - fit(2) for _ in range(5))
    how = "a fit of one epoch less an epoch, median of 5: reading the table, labels, means and deviations"
    return Figure(f"before the first epoch, {name}", value, "s", how=how)


def _to_the_best(table: Table) -> Figure:
    start = time.perf_counter()
    estimator = HeadRegressor(_columns(table), patience=3, random_state=0).fit(_float32(table), table.target)
    seconds = time.perf_counter() - start
    how = f"the whole fit with defaults but patience=3: {estimator.n_iter_} epochs, the last three of them no better"
    return Figure("nycflights13 to its best validation score", seconds, "s", at_most=180, how=how)


def measure() -> Iterator[Comparison | Figure]:
    tables = available()
    for name, epochs in {"ames": 10, "nycflights": 1}.items():
        table = tables[name]()
        yield _before_training(name, table)
        yield _epochs(name, table, epochs)
    if torch.get_num_threads() == 2:
        yield _to_the_best(table)


if __name__ == "__main__":
    main("regressor", TITLE, measure)
