"""Which categories a figure shows, in which order, and under which name."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from reghead._checks import check_int
from reghead.categories import Vocabulary
from reghead.plots._axes import drawable


class Shown(NamedTuple):
    """The categories a figure shows, and those it pools; positions in the list they came from."""

    kept: list[int]
    pooled: list[int]


def choose(counts: Sequence[float], max_categories: int) -> Shown:
    """All by falling count, ties in the order given; beyond ``max_categories`` the last is the pool of the rest."""
    check_int("max_categories", max_categories, minimum=2)
    order = sorted(range(len(counts)), key=lambda i: -counts[i])
    cut = len(order) if len(order) <= max_categories else max_categories - 1
    return Shown(order[:cut], order[cut:])


def group(categories: Tensor | Sequence[object], rows: int) -> tuple[Tensor, list[str]]:
    """The position of each row's category among those that occur, and their names."""
    if isinstance(categories, Tensor) and categories.ndim == 2 and categories.shape[1] == 1:
        categories = categories[:, 0]
    vocabulary = Vocabulary.from_labels(categories)
    code = vocabulary.encode(categories)
    if tuple(code.shape) != (rows,):
        raise ValueError(f"categories must hold one label or id for each of the {rows} rows, got {len(code)}")
    names = ["missing", *map(str, vocabulary.labels)]
    if isinstance(categories, Tensor):  # ids, where 0 is the unknown everywhere
        names = ["unknown" if name == "0" else name for name in names]
    present, position = torch.unique(code, return_inverse=True)
    return position, [names[i] for i in present.tolist()]


def names_of_ids(labels: Sequence[object] | None, cardinality: int) -> list[str]:
    """The names of ids 0 to ``cardinality - 1``: id 0 is the unknown, which a vocabulary's labels leave out."""
    if labels is None:
        labels = range(1, cardinality)
    if len(labels) != cardinality - 1:
        raise ValueError(
            f"labels must name ids 1 to {cardinality - 1}, as vocabulary.labels does (id 0 is the unknown), "
            f"got {len(labels)} labels"
        )
    return ["unknown", *map(str, labels)]


def with_count(name: object, count: float) -> str:
    """The name of a row and how many targets it stands for."""
    return f"{drawable(name)} ({count:,.0f})"


def counts_of_ids(counts: Tensor | Sequence[float] | None, cardinality: int) -> list[float]:
    """Rows per id; without ``counts`` all weigh the same."""
    values = [1.0] * cardinality if counts is None else [float(n) for n in counts]
    if len(values) != cardinality:
        raise ValueError(f"counts must hold {cardinality} numbers, one for each id with id 0, got {len(values)}")
    return values
