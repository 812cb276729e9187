"""Intervals per location from a model of sequences: a head of reghead in AAM's SequencePredictor.

Samples are made up: each has a few sequences, one kind of which raises the target, and comes from one of four
locations, whose levels are far apart and of which one has few samples. The model gets a head with FiLM and conditional
scaling that predicts quantiles; the targets are normalized by location. After a short training it is scored in the
target's own units, written as AAM writes its best model, rebuilt from that file alone, and asked for intervals,
location by location.

With AAM installed it is AAM's own model, loss and Trainer; else the small ones beside this file, which are alike.

    python examples/aam_sequence_predictor.py
    python examples/aam_sequence_predictor.py --epochs 2 --output-dir build/aam
"""

import argparse
import importlib.util
import sys
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from reghead.adapters.aam import attach, load_predictor, loss, prepare_trainer
from reghead.categories import CategoryEncoder
from reghead.metrics import coverage, mean_width
from reghead.normalization import CategoryNormalizer

LOCATIONS = {"bay": (10.0, 1.0, 160), "delta": (40.0, 4.0, 120), "lake": (100.0, 2.0, 100), "spring": (70.0, 8.0, 20)}
"""Location -> level, effect of the sequences, number of samples."""
LEVELS = (0.05, 0.5, 0.95)


def load_host() -> tuple[Any, Any, Any, str]:
    """SequencePredictor, MultiTaskLoss and Trainer of AAM, or of the small model beside this file."""
    if importlib.util.find_spec("aam") is not None:
        from aam.models.sequence_predictor import SequencePredictor
        from aam.training.losses import MultiTaskLoss
        from aam.training.trainer import Trainer

        return SequencePredictor, MultiTaskLoss, Trainer, "AAM"
    sys.path.insert(0, str(Path(__file__).parent))
    from _sequence_predictor import MultiTaskLoss, SequencePredictor
    from _sequence_trainer import Trainer

    return SequencePredictor, MultiTaskLoss, Trainer, "a small model in the shape of AAM's"


def make_samples(seed: int = 0) -> tuple[Tensor, list[str], Tensor]:
    """Tokens of shape (N, S, L), the location of each sample, and targets of shape (N, 1)."""
    rng = torch.Generator().manual_seed(seed)
    names = [name for name, (_, _, number) in LOCATIONS.items() for _ in range(number)]
    order = torch.randperm(len(names), generator=rng).tolist()
    names = [names[i] for i in order]
    share = torch.rand(len(names), generator=rng)
    # Sequences of adenine in a share of the places, and of guanine in the others; 5 starts each.
    kind = torch.where(torch.rand(len(names), 6, generator=rng) < share.unsqueeze(-1), 1, 3)
    noise = torch.randint(1, 5, (len(names), 6, 8), generator=rng)
    tokens = torch.where(torch.rand(len(names), 6, 8, generator=rng) < 0.8, kind.unsqueeze(-1), noise)
    tokens = torch.cat([torch.full((len(names), 6, 1), 5), tokens], dim=-1)
    level, effect = (torch.tensor([LOCATIONS[name][i] for name in names], dtype=torch.float64) for i in (0, 1))
    signal = (tokens == 1).sum((-1, -2)) / 12.0 - 2.0
    target = level + effect * (signal + 0.5 * torch.randn(len(names), generator=rng))
    return tokens, names, target.unsqueeze(-1)


def make_batches(tokens: Tensor, ids: Tensor, target: Tensor, size: int = 32) -> list[dict[str, Any]]:
    """Batches as AAM's DataLoader gives them, with targets in their own units."""
    return [
        {
            "tokens": tokens[start : start + size],
            "y_target": target[start : start + size],
            "categorical_ids": {"location": ids[start : start + size]},
            "sample_ids": [f"sample {i}" for i in range(start, min(start + size, len(tokens)))],
        }
        for start in range(0, len(tokens), size)
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, validate, and predict intervals."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--output-dir", default="build/aam_sequence_predictor")
    options = parser.parse_args(arguments)
    warnings.filterwarnings("ignore", "enable_nested_tensor")  # AAM's layers say it of themselves
    SequencePredictor, MultiTaskLoss, Trainer, what = load_host()  # noqa: N806  # classes
    print(f"The model is {what}.")
    torch.manual_seed(0)
    tokens, names, target = make_samples()
    known = len(tokens) * 3 // 4
    best = Path(options.output_dir) / "checkpoints" / "best_model.pt"

    # The adapter
    encoder = CategoryEncoder(["location"]).fit({"location": names[:known]})
    ids = encoder.transform({"location": names})["location"]
    normalizer = CategoryNormalizer(encoder.cardinalities).fit(target[:known], {"location": ids[:known]})

    layers = {f"{part}_num_layers": 1 for part in ("asv", "sample", "encoder", "count", "target")}
    model = SequencePredictor(
        **layers,
        embedding_dim=16,
        max_bp=8,
        token_limit=6,
        count_prediction=False,
        categorical_cardinalities=encoder.cardinalities,
    )
    head = {"hidden_dims": (32,), "film": ("location",), "scaler": ("location",), "quantiles": LEVELS}
    attach(model, head, encoder=encoder, normalizer=normalizer, outputs=["yield"])

    tasks = loss({"type": "quantile", "quantiles": LEVELS}, nuc_penalty=0.0, base=MultiTaskLoss)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)  # after attach: it holds on to what it sees
    trainer = prepare_trainer(Trainer(model, tasks, optimizer=optimizer))
    training = make_batches(tokens[:known], ids[:known], target[:known])
    validation = make_batches(tokens[known:], ids[known:], target[known:])
    trainer.train(training, validation, num_epochs=options.epochs, checkpoint_dir=str(best.parent))

    model = load_predictor(best, base=SequencePredictor)  # the file alone: model, head, labels, scale
    scores = prepare_trainer(Trainer(model, tasks)).validate_epoch(validation)
    # The end of the adapter

    print(f"Validation, in the target's units: MAE {scores['mae']:.2f}, R squared {scores['r2']:.3f}")
    with torch.no_grad():
        place = {"location": ids[known:]}
        z = model.eval()(tokens[known:], categorical_ids=place)["target_prediction"]
    quantiles = model.target_head.normalizer.inverse(z.double(), place, output_dim=-2)
    lower, upper = quantiles[..., 0], quantiles[..., 2]
    print(f"\n{'location':10}{'samples':>8}{'level':>8}{'width':>8}{'coverage':>10}   of the 90 % intervals")
    for i, name in enumerate(encoder.vocabularies["location"].labels, 1):
        rows = ids[known:] == i
        covered = coverage(lower[rows], upper[rows], target[known:][rows])
        width = mean_width(lower[rows], upper[rows])
        print(f"{name:10}{int(rows.sum()):8}{quantiles[rows, 0, 1].mean():8.1f}{width:8.1f}{covered:10.0%}")


if __name__ == "__main__":
    main()
