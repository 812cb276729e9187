"""Tables of labels to ids."""

import warnings
from collections.abc import Iterator

import numpy as np
import pandas as pd
import pytest
import torch

from reghead._warnings import UnseenCategoryWarning
from reghead.categories import CategoryEncoder, Vocabulary

TABLE = {"location": ["B", "A", "B", None], "season": [1, 2, 2, 2], "ignored": [object()] * 4}


class Column:
    """A column that can only be iterated, as those of a frame library that reghead does not know."""

    def __init__(self, values: list[object]) -> None:
        self.values = values

    def __iter__(self) -> Iterator[object]:
        return iter(self.values)


class Frame:
    """A frame by duck typing: ``columns`` and ``[]``, as in polars."""

    def __init__(self, table: dict[str, list[object]]) -> None:
        self.table = table

    @property
    def columns(self) -> list[str]:
        return list(self.table)

    def __getitem__(self, name: str) -> Column:
        return Column(self.table[name])


@pytest.fixture
def encoder() -> CategoryEncoder:
    return CategoryEncoder(["location", "season"]).fit(TABLE)


def as_lists(categories: dict[str, torch.Tensor]) -> dict[str, list[int]]:
    return {column: ids.tolist() for column, ids in categories.items()}


def test_fit_learns_cardinalities_counts_and_vocabularies(encoder: CategoryEncoder) -> None:
    assert encoder.columns == ("location", "season")
    assert encoder.cardinalities == {"location": 3, "season": 3}
    assert {c: n.tolist() for c, n in encoder.counts.items()} == {"location": [1, 1, 2], "season": [0, 1, 3]}
    assert encoder.vocabularies["location"] == Vocabulary(("A", "B"))
    assert "cardinalities={'location': 3, 'season': 3}" in repr(encoder)


@pytest.mark.parametrize("make", [dict, pd.DataFrame, Frame, lambda t: {c: np.array(v) for c, v in t.items()}])
def test_every_kind_of_table_gives_the_same_ids(make: object, encoder: CategoryEncoder) -> None:
    expected = {"location": [2, 1, 2, 0], "season": [1, 2, 2, 2]}
    table = make(TABLE)  # type: ignore[operator]
    assert as_lists(encoder.transform(table)) == expected
    assert as_lists(CategoryEncoder(["location", "season"]).fit_transform(table)) == expected


def test_an_index_that_is_not_a_range_changes_nothing(encoder: CategoryEncoder) -> None:
    frame = pd.DataFrame(TABLE).iloc[[3, 0]]
    assert as_lists(encoder.transform(frame)) == {"location": [0, 2], "season": [2, 1]}


def test_unseen_labels_become_unknown_with_one_warning_per_call(encoder: CategoryEncoder) -> None:
    table = {"location": ["D", "A", "C", "D", None], "season": [9, 1, 1, 1, 1]}
    with pytest.warns(UnseenCategoryWarning) as caught:
        ids = encoder.transform(table)
    assert as_lists(ids) == {"location": [0, 1, 0, 0, 0], "season": [0, 1, 1, 1, 1]}
    assert len(caught) == 1
    text = str(caught[0].message)
    assert "3 rows of column 'location' with 2 unseen labels: 'D', 'C'" in text
    assert "1 rows of column 'season' with 1 unseen labels: 9" in text
    assert caught[0].filename == __file__


def test_the_warning_shows_three_examples_and_the_type_that_differs(encoder: CategoryEncoder) -> None:
    with pytest.warns(UnseenCategoryWarning, match=r"unseen labels: 'a', 'b', 'c', \.\.\."):
        encoder.transform({"location": list("abcde"), "season": [1] * 5})
    with pytest.warns(UnseenCategoryWarning, match=r"'1' \('1' was seen in training as another type\)"):
        encoder.transform({"location": ["A"], "season": ["1"]})


def test_missing_values_and_empty_tables_do_not_warn(encoder: CategoryEncoder) -> None:
    assert as_lists(encoder.transform({"location": [None], "season": [float("nan")]})) == {
        "location": [0],
        "season": [0],
    }
    assert encoder.transform({"location": [], "season": []})["location"].shape == (0,)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        CategoryEncoder(["location"]).fit_transform(TABLE)


def test_pairs_that_would_collide_as_joined_strings_stay_apart() -> None:
    table = {"a": ["1,b=2", "1"], "b": ["3", "2,b=3"]}
    ids = CategoryEncoder(["a", "b"]).fit_transform(table)
    assert ids["a"][0] != ids["a"][1]
    assert ids["b"][0] != ids["b"][1]


def test_inverse_transform_gives_the_labels_back(encoder: CategoryEncoder) -> None:
    labels = encoder.inverse_transform(encoder.transform(TABLE))
    assert labels == {"location": ["B", "A", "B", None], "season": [1, 2, 2, 2]}


def test_a_second_fit_forgets_the_first(encoder: CategoryEncoder) -> None:
    encoder.fit({"location": ["Z"], "season": [5]})
    assert encoder.cardinalities == {"location": 2, "season": 2}
    assert encoder.counts["location"].tolist() == [0, 1]


def test_a_failed_fit_changes_nothing(encoder: CategoryEncoder) -> None:
    with pytest.raises(TypeError, match="column 'season' must hold labels"):
        encoder.fit({"location": ["Z"], "season": [b"x"]})
    assert encoder.cardinalities == {"location": 3, "season": 3}


def test_returned_state_is_a_copy(encoder: CategoryEncoder) -> None:
    encoder.counts["location"][:] = 7
    encoder.vocabularies.clear()
    assert encoder.counts["location"].tolist() == [1, 1, 2]
    assert encoder.cardinalities["location"] == 3


def test_json_round_trip_keeps_everything(encoder: CategoryEncoder) -> None:
    loaded = CategoryEncoder.from_json(encoder.to_json())
    assert loaded.to_dict() == encoder.to_dict()
    assert loaded.columns == encoder.columns
    assert as_lists(loaded.transform(TABLE)) == as_lists(encoder.transform(TABLE))
    assert loaded.counts["location"].dtype == torch.int64


@pytest.mark.parametrize("use", ["transform", "to_dict", "cardinalities", "counts", "vocabularies"])
def test_use_before_fit_is_refused(use: str) -> None:
    encoder = CategoryEncoder(["location"])
    with pytest.raises(RuntimeError, match=r"no labels yet; call fit\(table\)"):
        encoder.transform(TABLE) if use == "transform" else getattr(encoder, use)() if use == "to_dict" else getattr(
            encoder, use
        )
    assert repr(encoder) == "CategoryEncoder(columns=['location'])"


def test_wrong_columns_and_tables_are_refused(encoder: CategoryEncoder) -> None:
    with pytest.raises(ValueError, match="columns must name at least one categorical column"):
        CategoryEncoder([])
    with pytest.raises(TypeError, match="columns must be a sequence of column names"):
        CategoryEncoder("location")
    with pytest.raises(ValueError, match=r"needs the column 'location', got 'locations'; did you mean 'locations'"):
        encoder.transform({"locations": ["A"]})
    with pytest.raises(ValueError, match="table needs the column 'season'"):
        encoder.fit(pd.DataFrame({"location": ["A"]}))
    with pytest.raises(TypeError, match="table must be a DataFrame or map columns to values, got list"):
        encoder.transform(["A"])
    with pytest.raises(ValueError, match=r"same number of rows, got \{'location': 2, 'season': 1\}"):
        encoder.transform({"location": ["A", "B"], "season": [1]})
    with pytest.raises(ValueError, match="categories needs the column 'season'"):
        encoder.inverse_transform({"location": torch.tensor([1])})


COLUMN = {"name": "a", "labels": ["x"], "counts": [0, 1]}
MALFORMED = {
    "not json": ("{", "JSON does not parse"),
    "not an object": ("[]", "expected an object with type 'CategoryEncoder', got \\[\\]"),
    "another type": ('{"type": "MLP"}', "expected an object with type 'CategoryEncoder'"),
    "another format": ('{"type": "CategoryEncoder", "format": 99}', "has format 99, this version of reghead reads"),
    "no columns": ('{"type": "CategoryEncoder", "format": 1}', "columns must be a list of objects"),
}


@pytest.mark.parametrize(("text", "message"), MALFORMED.values(), ids=MALFORMED)
def test_malformed_json_is_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CategoryEncoder.from_json(text)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": 3}, "columns must hold column names"),
        ({"labels": "xyz"}, "labels must be a list"),
        ({"labels": [None]}, "missing value"),
        ({"labels": [["x"]]}, "must hold labels of type"),
        ({"labels": ["x", "x"], "counts": [0, 1, 1]}, "must not repeat"),
        ({"counts": [1]}, "counts of the column 'a' must be a list of 2 non-negative integers"),
        ({"counts": [0, -1]}, "non-negative integers"),
        ({"counts": [0, 1.5]}, "non-negative integers"),
        ({"counts": [0, True]}, "non-negative integers"),
        ({"counts": None}, "non-negative integers"),
    ],
)
def test_malformed_columns_are_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CategoryEncoder.from_dict({"type": "CategoryEncoder", "format": 1, "columns": [COLUMN | change]})


def test_a_column_that_is_there_twice_or_is_a_mapping_is_refused() -> None:
    """Read as an iterable, such a table would give its column names for labels."""
    table = pd.DataFrame([["x", "y"], ["z", "w"]], columns=["a", "a"])
    with pytest.raises(ValueError, match=r"must be one column, got a table of \['a', 'a'\]; is the name there twice"):
        CategoryEncoder(["a"]).fit(table)
    for column in ({"x": 1}, {"x", "y"}):
        with pytest.raises(TypeError, match="must be a one-dimensional array or sequence of labels"):
            CategoryEncoder(["a"]).fit({"a": column})
