"""What training has seen of a row's categories, beside sets of tuples."""

import re
from typing import Any

import pytest
import torch

from reghead.metrics import NOVELTIES, distinct_combinations, novelty

TRAINING = {"location": torch.tensor([1, 1, 2, 0, 5]), "season": torch.tensor([1, 2, 1, 3, 0])}


def kinds(location: list[int], season: list[int], **more: list[int]) -> list[str]:
    rows = {"location": torch.tensor(location), "season": torch.tensor(season)}
    rows |= {column: torch.tensor(ids) for column, ids in more.items()}
    return [NOVELTIES[i] for i in novelty(rows, TRAINING).tolist()]


def test_a_combination_is_seen_only_where_it_stood_in_training() -> None:
    assert kinds([1, 1, 2], [1, 2, 1]) == ["seen"] * 3
    assert kinds([2], [2]) == ["unseen combination"]


def test_an_id_without_a_training_row_is_an_unseen_category_whatever_the_others_are() -> None:
    """Known means seen in training: an id may be in the vocabulary and have no rows."""
    assert kinds([3, 1, 4], [1, 4, 9]) == ["unseen category"] * 3


def test_id_0_is_an_unseen_category_even_where_training_had_it_missing() -> None:
    assert kinds([0, 5, 0], [3, 0, 0]) == ["unseen category"] * 3
    assert kinds([1, 5], [3, 1]) == ["unseen combination"] * 2  # each id was seen beside a missing one


def test_only_the_columns_of_training_count() -> None:
    assert kinds([1], [1], soil=[99]) == ["seen"]
    with pytest.raises(ValueError, match="novelty needs the column 'season' in categories, got 'location'"):
        novelty({"location": torch.tensor([1])}, TRAINING)


def test_one_column_has_no_combinations() -> None:
    training = {"location": torch.tensor([2, 2, 7])}
    assert novelty({"location": torch.tensor([2, 7, 1, 0])}, training).tolist() == [0, 0, 2, 2]


def test_ids_have_any_shape_and_the_result_has_it_too() -> None:
    rows = {"location": torch.tensor([[1, 2], [3, 1]]), "season": torch.tensor([[2, 2], [1, 1]])}
    assert novelty(rows, TRAINING).tolist() == [[0, 1], [2, 0]]
    one = {column: torch.tensor(1, dtype=torch.int32) for column in TRAINING}
    assert novelty(one, TRAINING).shape == ()


def test_no_rows_and_no_training() -> None:
    nothing = {column: torch.zeros(0, dtype=torch.int64) for column in TRAINING}
    assert novelty(nothing, TRAINING).shape == (0,)
    assert novelty(TRAINING, nothing).tolist() == [2] * 5


def test_many_columns_of_large_ids_do_not_overflow() -> None:
    """One number for each combination would need 40 * 40 bits."""
    training = {f"c{i}": torch.tensor([2**40, 1, 3]) for i in range(40)}
    rows = {column: ids.clone() for column, ids in training.items()}
    rows["c39"][1] = 3
    rows["c0"][2] = 2
    assert novelty(rows, training).tolist() == [0, 1, 2]


def test_distinct_combinations_are_each_there_once_in_order_and_say_as_much_as_all_rows() -> None:
    rows = {"b": torch.tensor([[2, 1, 2], [2, 1, 0]]), "a": torch.tensor([[1, 9, 1], [4, 9, 1]], dtype=torch.int32)}
    found = distinct_combinations(rows)
    assert list(found) == ["b", "a"]
    assert torch.stack(list(found.values()), -1).tolist() == [[0, 1], [1, 9], [2, 1], [2, 4]]
    assert novelty(TRAINING, distinct_combinations(TRAINING)).equal(novelty(TRAINING, TRAINING))


@pytest.mark.parametrize(
    ("rows", "training", "error", "message"),
    [
        (TRAINING, {}, ValueError, "training must have at least one column of ids, got none"),
        (None, TRAINING, TypeError, "novelty needs categories: a mapping from column to ids with 'location', 'season'"),
        ({**TRAINING, "season": ["dry"] * 5}, TRAINING, TypeError, "categories['season'] must be a tensor of integer"),
        ({**TRAINING, "season": torch.ones(4, dtype=torch.int64)}, TRAINING, ValueError, "the ids of all columns must"),
        ({"x": torch.tensor([-1])}, {"x": torch.tensor([1])}, ValueError, "categories['x'] must hold ids in [0, "),
    ],
)
def test_refusals(rows: Any, training: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=re.escape(message)):
        novelty(rows, training)
