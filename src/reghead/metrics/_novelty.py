"""How much of a row's categories training has seen: its scores are those of another task where it has not."""

from typing import Literal, TypeAlias

import torch
from torch import Tensor

from reghead._checks import check_ids
from reghead._typing import Categories
from reghead.functional._lookup import check_one_shape

Novelty: TypeAlias = Literal["seen", "unseen combination", "unseen category"]
"""What training knows of a row: its combination of categories, each of them, or not even that."""
NOVELTIES: tuple[Novelty, ...] = ("seen", "unseen combination", "unseen category")
"""By the number that :func:`novelty` gives."""
_SEEN, _UNSEEN_COMBINATION, _UNSEEN_CATEGORY = range(3)
_ANY = torch.iinfo(torch.int64).max


def novelty(categories: Categories, training: Categories) -> Tensor:
    """Which rows are of a combination of categories that training had, of a new one, or of a new category.

    The columns are those of ``training``. A row is of an *unseen category* where one of its ids is 0, unknown or
    missing, or stands in no training row; of an *unseen combination* where each id stands in some training row, but
    all of them together in none; and otherwise *seen*.

    Args:
        categories: Column -> ids, of any one shape; columns that ``training`` lacks are ignored.
        training: Column -> ids of the training rows, or of their :func:`distinct_combinations`, which are fewer.

    Returns:
        Positions in :data:`NOVELTIES` as int64, in the shape of the ids.

    Raises:
        TypeError: If ids are not integer tensors.
        ValueError: If a column is lacking, an id is negative, or the columns differ in shape.

    Example:
        >>> import torch
        >>> training = {"location": torch.tensor([1, 1, 2]), "season": torch.tensor([1, 2, 1])}
        >>> rows = {"location": torch.tensor([1, 2, 3, 1]), "season": torch.tensor([2, 2, 1, 0])}
        >>> novelty(rows, training)
        tensor([0, 1, 2, 2])
        >>> [NOVELTIES[i] for i in novelty(rows, training)[:2]]
        ['seen', 'unseen combination']
    """
    known, ids = _ids("training", training, training), _ids("novelty", categories, training)
    rows = ids[0].numel()
    is_new_category = torch.zeros(rows, dtype=torch.bool, device=ids[0].device)
    cells = torch.zeros(rows + known[0].numel(), dtype=torch.int64, device=ids[0].device)
    for seen, given in zip(known, ids, strict=True):
        seen, given = seen.reshape(-1).to(given.device), given.reshape(-1)
        is_new_category |= (given == 0) | ~torch.isin(given, seen)
        _, code = torch.unique(torch.cat([given, seen]), return_inverse=True)
        # Numbered anew after each column: the product of many cardinalities does not fit into 64 bits.
        _, cells = torch.unique(cells * len(code) + code, return_inverse=True)
    is_new_cell = ~torch.isin(cells[:rows], cells[rows:])
    result = torch.where(is_new_cell, _UNSEEN_COMBINATION, _SEEN).masked_fill(is_new_category, _UNSEEN_CATEGORY)
    return result.reshape(ids[0].shape)


def distinct_combinations(categories: Categories) -> dict[str, Tensor]:
    """The combinations of ids that occur, each once, in increasing order: what :func:`novelty` needs of training.

    Those of two parts of the data are the distinct ones of both, one after the other.

    Args:
        categories: Column -> ids, of any one shape.

    Returns:
        Column -> ids of shape ``(K,)``, with K combinations.

    Raises:
        TypeError: If ids are not integer tensors.
        ValueError: If there is no column, an id is negative, or the columns differ in shape.

    Example:
        >>> import torch
        >>> distinct_combinations({"location": torch.tensor([2, 1, 2]), "season": torch.tensor([1, 3, 1])})
        {'location': tensor([1, 2]), 'season': tensor([3, 1])}
    """
    ids = _ids("distinct_combinations", categories, categories)
    cells = torch.unique(torch.stack([i.reshape(-1) for i in ids], dim=-1), dim=0)
    return dict(zip(categories, cells.unbind(-1), strict=True))


def _ids(used_by: str, categories: Categories, columns: Categories) -> list[Tensor]:
    found = [ids.to(torch.int64) for ids in check_ids(categories, dict.fromkeys(columns, _ANY), used_by)]
    if not found:
        raise ValueError(f"{used_by} must have at least one column of ids, got none")
    check_one_shape(found)
    return found
