"""Conformal intervals per category, from many scores."""

from collections.abc import Iterator

import numpy as np
import torch

from benchmarks.speed._measure import Comparison, Reach
from benchmarks.speed._subject import main
from reghead.calibration import SplitConformal

TITLE = "Conformal calibration"
_ROWS, _CATEGORIES = 20_000_000, 10_000
_WHY = (
    "Where the processor has AVX-512, NumPy sorts a number in 7 ns, about what it takes to read and check a row's "
    "prediction, target and id and to take its score; and a quantile per category needs the rows of each together, "
    "which costs more than the sort, as memory is read in no order."
)


def measure() -> Iterator[Comparison]:
    generator = torch.Generator().manual_seed(0)
    target = torch.randn(_ROWS, 1, generator=generator, dtype=torch.float64)
    preds = torch.zeros_like(target)
    groups = {"site": _CATEGORIES + 1}
    ids = {"site": torch.randint(1, _CATEGORIES + 1, (_ROWS,), generator=generator)}
    scores = (target - preds).abs().flatten()
    ways = {
        "one quantile for all": lambda: SplitConformal(0.9).conformalize(preds, target),
        "one per category": lambda: SplitConformal(0.9, groups=groups, pooling=0.0).conformalize(preds, target, ids),
        "one per category, pooled": lambda: SplitConformal(0.9, groups=groups).conformalize(preds, target, ids),
    }
    for name, call in ways.items():
        yield Comparison(
            f"{name}, 2e7 scores, 10,000 categories" if "per" in name else f"{name}, 2e7 scores",
            {
                "reghead": call,
                "numpy.sort of the scores": lambda: np.sort(scores.numpy()),
                "torch.sort of the scores": lambda: scores.sort(),
            },
            [Reach(1.5, ("numpy.sort of the scores",)), Reach(1.5, ("torch.sort of the scores",))],
            seconds=3.0,
            rounds=5,
            why=_WHY,
        )


if __name__ == "__main__":
    main("calibration", TITLE, measure)
