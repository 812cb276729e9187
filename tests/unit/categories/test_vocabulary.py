"""Labels and their ids: typed, sorted, independent of the order of the rows."""

import copy
import enum
import json
import pickle
from datetime import date

import numpy as np
import pandas as pd
import pytest
import torch

from reghead.categories import Vocabulary


class Colour(enum.StrEnum):
    RED = "red"


def test_ids_are_sorted_with_numbers_before_strings_and_zero_for_unknown() -> None:
    vocabulary = Vocabulary.from_labels(["b", 10, "a", 2.5, None, 2])
    assert vocabulary.labels == (2, 2.5, 10, "a", "b")
    assert len(vocabulary) == vocabulary.cardinality == 6
    assert vocabulary.encode(["a", 10, None, "c"]).tolist() == [4, 3, 0, 0]


@pytest.mark.parametrize("one", [1, 1.0, True, np.int64(1), np.float32(1.0), np.bool_(True)])
def test_equal_numbers_are_one_label_and_a_digit_string_is_another(one: object) -> None:
    vocabulary = Vocabulary.from_labels([one, "1"])
    assert vocabulary.encode([1, 1.0, True, "1", np.int32(1), "1.0"]).tolist() == [1, 1, 1, 2, 1, 0]


def test_an_integral_float_is_stored_as_an_integer_and_a_fraction_is_kept() -> None:
    labels = Vocabulary.from_labels(np.array([3.0, 0.5, -0.0])).labels
    assert [(label, type(label)) for label in labels] == [(0, int), (0.5, float), (3, int)]


def test_equal_number_and_boolean_have_one_id_in_either_row_order() -> None:
    for values in ([True, 2, 1], [1, 2, True]):
        vocabulary = Vocabulary.from_labels(values)
        assert vocabulary == Vocabulary((1, 2))
        assert vocabulary.encode(values).tolist() == [1 if value == 1 else 2 for value in values]


def test_a_list_of_mixed_types_is_not_turned_into_strings() -> None:
    assert Vocabulary.from_labels([1, "1"]).labels == (1, "1")


MISSING = [None, float("nan"), np.nan, np.float32("nan"), pd.NA, pd.NaT, np.datetime64("NaT")]


@pytest.mark.parametrize("missing", MISSING, ids=repr)
def test_a_missing_value_is_id_zero_and_no_label(missing: object) -> None:
    vocabulary = Vocabulary.from_labels(["a", missing])
    assert vocabulary.labels == ("a",)
    assert vocabulary.encode([missing, "a"]).tolist() == [0, 1]


COLUMNS = {
    "list": ["b", "a", None, "b"],
    "tuple": ("b", "a", None, "b"),
    "object array": np.array(["b", "a", None, "b"], dtype=object),
    "pandas object": pd.Series(["b", "a", None, "b"], dtype=object),
    "pandas string": pd.Series(["b", "a", None, "b"], dtype="string"),
    "pandas categorical": pd.Series(["b", "a", None, "b"], dtype="category"),
    "pandas index": pd.Index(["b", "a", None, "b"]),
    "masked array": np.ma.array(["b", "a", "x", "b"], mask=[0, 0, 1, 0]),
}


@pytest.mark.parametrize("column", COLUMNS.values(), ids=COLUMNS)
def test_every_kind_of_string_column_gives_the_same_ids(column: object) -> None:
    vocabulary = Vocabulary.from_labels(column)
    assert vocabulary.labels == ("a", "b")
    ids = vocabulary.encode(column)
    assert ids.dtype == torch.int64
    assert ids.tolist() == [2, 1, 0, 2]


NUMBERS = {
    "list": [7, 5, 7],
    "int array": np.array([7, 5, 7], np.int32),
    "unsigned": np.array([7, 5, 7], np.uint8),
    "float array": np.array([7.0, 5.0, 7.0], np.float16),
    "tensor": torch.tensor([7, 5, 7]),
    "float tensor": torch.tensor([7.0, 5.0, 7.0]),
    "pandas": pd.Series([7, 5, 7]),
    "nullable": pd.Series([7, 5, 7], dtype="Int64"),
    "strided": np.array([7, 0, 5, 0, 7, 0])[::2],
}


@pytest.mark.parametrize("column", NUMBERS.values(), ids=NUMBERS)
def test_every_kind_of_number_column_gives_the_same_ids(column: object) -> None:
    vocabulary = Vocabulary.from_labels(column)
    assert vocabulary.labels == (5, 7)
    assert vocabulary.encode(column).tolist() == [2, 1, 2]


def test_large_integers_are_not_rounded_through_floats() -> None:
    near = 2**53
    assert Vocabulary.from_labels(np.array([near, near + 1])).labels == (near, near + 1)


def test_booleans_string_arrays_and_string_subclasses_become_plain_python() -> None:
    assert Vocabulary.from_labels(np.array([True, False])).labels == (False, True)
    assert Vocabulary.from_labels(np.array(["x", "y"])).encode(["y"]).tolist() == [2]
    vocabulary = Vocabulary.from_labels([Colour.RED, np.str_("blue")])
    assert [(label, type(label)) for label in vocabulary.labels] == [("blue", str), ("red", str)]


def test_an_empty_column_has_only_the_unknown() -> None:
    vocabulary = Vocabulary.from_labels([])
    assert len(vocabulary) == 1
    assert vocabulary.encode([]).shape == (0,)
    assert vocabulary.encode(["a"]).tolist() == [0]


def test_decode_inverts_encode_and_gives_none_for_unknown() -> None:
    vocabulary = Vocabulary.from_labels(["a", 1, 2.5])
    assert vocabulary.decode(vocabulary.encode([2.5, "a", "new", 1])) == [2.5, "a", None, 1]
    assert vocabulary.decode(torch.tensor([], dtype=torch.int64)) == []


def test_decode_refuses_ids_that_are_not_there() -> None:
    vocabulary = Vocabulary(("a",))
    with pytest.raises(ValueError, match=r"ids must lie in \[0, 2\), got 2"):
        vocabulary.decode(torch.tensor([0, 2]))
    with pytest.raises(ValueError, match=r"ids must lie in \[0, 2\), got -1"):
        vocabulary.decode(torch.tensor([-1]))
    with pytest.raises(ValueError, match=r"ids must have shape \(N,\), got \(1, 1\)"):
        vocabulary.decode(torch.tensor([[1]]))


def test_the_list_goes_through_json_with_types_and_order() -> None:
    vocabulary = Vocabulary.from_labels([True, 2, 0.1, "2", "é"])
    loaded = Vocabulary.from_list(json.loads(json.dumps(vocabulary.to_list())))
    assert loaded == vocabulary
    assert [type(label) for label in loaded.labels] == [type(label) for label in vocabulary.labels]
    assert Vocabulary.from_list(["b", "a"]).encode(["a", "b"]).tolist() == [2, 1]


def test_it_is_immutable_hashable_and_copies() -> None:
    vocabulary = Vocabulary.from_labels(["a", "b"])
    for twin in (copy.deepcopy(vocabulary), pickle.loads(pickle.dumps(vocabulary))):
        assert twin == vocabulary
        assert hash(twin) == hash(vocabulary)
    with pytest.raises(AttributeError):
        vocabulary.labels = ()  # type: ignore[misc]


@pytest.mark.parametrize("label", [b"a", date(2020, 1, 1), (1, 2), 1j, np.datetime64("2020-01-01", "ns")], ids=repr)
def test_other_kinds_of_labels_are_refused_with_advice(label: object) -> None:
    with pytest.raises(TypeError, match=r"hold labels of type str, int, float or bool, got .*astype\(str\)"):
        Vocabulary.from_labels([label])


def test_columns_of_times_are_refused_with_advice() -> None:
    times = pd.Series(pd.to_datetime(["2020-01-01", "2020-01-02"]))
    for column in (times, times.to_numpy()):
        with pytest.raises(TypeError, match=r"astype\(str\)"):
            Vocabulary.from_labels(column)


def test_what_is_no_column_is_refused() -> None:
    with pytest.raises(TypeError, match="must be a one-dimensional array or sequence of labels, got 'abc'"):
        Vocabulary.from_labels("abc")
    with pytest.raises(TypeError, match="must be a one-dimensional array or sequence of labels, got 3"):
        Vocabulary.from_labels(3)
    with pytest.raises(ValueError, match=r"labels must be one-dimensional, got shape \(1, 2\)"):
        Vocabulary.from_labels(np.array([[1, 2]]))
    for nested in ([["a"], ["b"]], pd.Series([["a"], ["b"]])):
        with pytest.raises(TypeError, match=r"got an unhashable value .*one-dimensional"):
            Vocabulary.from_labels(nested)


def test_direct_construction_is_validated() -> None:
    with pytest.raises(ValueError, match=r"must not hold a missing value \(None or NaN\)"):
        Vocabulary(("a", float("nan")))
    with pytest.raises(ValueError, match=r"labels must be finite.*astype\(str\)"):
        Vocabulary((float("inf"),))
    with pytest.raises(ValueError, match="labels must not repeat, got 1 twice"):
        Vocabulary((1, "a", 1.0))
    with pytest.raises(TypeError, match="labels must be a list of str, int, float or bool, got str"):
        Vocabulary.from_list("abc")


def test_an_infinite_value_is_refused_in_training_and_unknown_later() -> None:
    with pytest.raises(ValueError, match="labels must be finite"):
        Vocabulary.from_labels([1.0, float("inf")])
    assert Vocabulary((1,)).encode([float("inf")]).tolist() == [0]
