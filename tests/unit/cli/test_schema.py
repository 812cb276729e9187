"""Roles of columns, and rows for training: each fault is told with its column, row and remedy."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reghead.categories import CategoryEncoder
from reghead.cli._errors import InputError
from reghead.cli._schema import Schema, check_training, choose_schema, to_part
from reghead.cli._tables import Table, open_table

LAKES = pd.DataFrame(
    {
        "id": ["a", "b", "c", "d"],
        "pH": [7.0, 7.5, 8.0, 7.0],
        "lake": ["x", "y", "x", "y"],
        "depth": [1.0, 2.0, 3.0, 4.0],
        "ice": [True, False, False, True],
        "count": [1.0, 2.0, 0.0, 1.0],
    }
)
WHOLE = Schema(("pH",), ("lake",), ("depth", "ice"), "id", "count")


@pytest.fixture
def lakes(tmp_path: Path) -> Table:
    return table_of(tmp_path, LAKES)


def table_of(folder: Path, frame: pd.DataFrame) -> Table:
    frame.to_parquet(folder / "t.parquet")
    return open_table(folder / "t.parquet")


def changed(**columns: Any) -> pd.DataFrame:
    return LAKES.assign(**columns)


# Choosing.


def test_features_are_the_numbers_without_another_role(lakes: Table) -> None:
    roles = {"targets": ["pH"], "categories": ["lake"], "id_column": "id", "weight_column": "count"}
    assert choose_schema(lakes, **roles) == WHOLE
    assert choose_schema(lakes, **roles, exclude=["ice"]).features == ("depth",)
    assert choose_schema(lakes, **roles, features=["ice", "depth"]).features == ("ice", "depth")
    assert choose_schema(lakes, **roles, features=[]).features == ()
    assert choose_schema(lakes, **roles, impute=True).impute


def test_text_that_is_not_used_needs_no_exclusion_where_features_are_named(lakes: Table) -> None:
    assert choose_schema(lakes, targets=["pH"], features=["depth"]).columns == ("pH", "depth")


@pytest.mark.parametrize(
    ("roles", "message"),
    [
        ({"targets": ["pHs"]}, "--target names the column 'pHs', which is not in .*t.parquet.*; did you mean 'pH'"),
        ({"categories": ["lakes"]}, "--categorical-columns names the column 'lakes', .*; did you mean 'lake'"),
        ({"features": ["deep"]}, "--feature-columns names the column 'deep', which is not in"),
        ({"exclude": ["idd"]}, "--exclude-columns names the column 'idd', which is not in"),
        ({"id_column": "ids"}, "--id-column names the column 'ids', which is not in"),
        ({"weight_column": "counts"}, "--weight-column names the column 'counts', .*; did you mean 'count'"),
        ({"features": ["pH"]}, "--feature-columns and --target both name the column 'pH'; choose one"),
        ({"exclude": ["pH"]}, "--exclude-columns and --target both name the column 'pH'"),
        ({"categories": ["lake"], "id_column": "lake"}, "--id-column and --categorical-columns both name"),
        ({"targets": ["pH", "pH"]}, "--target names the column 'pH' twice"),
        ({"targets": []}, "--target must name at least one column"),
        ({"categories": ["lake"]}, r"without a role that do not hold numbers: 'id' \(.*string\); name each in --cat"),
        ({}, r"'id' \(.*string\), 'lake' \(.*string\); .* or leave it out with --exclude-columns"),
        ({"features": []}, "has nothing to predict from: .* --categorical-columns names none"),
    ],
)
def test_roles_that_cannot_be_are_told(lakes: Table, roles: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as raised:
        choose_schema(lakes, **{"targets": ["pH"], **roles})
    assert "\n" not in str(raised.value)


def test_many_columns_of_text_are_counted(tmp_path: Path) -> None:
    table = table_of(tmp_path, pd.DataFrame({"y": [1.0], **{f"t{i}": ["x"] for i in range(5)}}))
    with pytest.raises(InputError, match=r"'t2' \(.*string\) and 2 more; name each"):
        choose_schema(table, targets=["y"])


def test_a_date_is_no_number(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("y,day\n1,2020-01-01\n")
    with pytest.raises(InputError, match=r"do not hold numbers: 'day' \(date32"):
        choose_schema(open_table(tmp_path / "t.csv"), targets=["y"])


# As JSON.


@given(st.booleans(), st.sampled_from([None, "id"]), st.lists(st.text(max_size=3), max_size=3))
def test_a_schema_survives_json(impute: bool, id_column: str | None, features: list[str]) -> None:
    schema = Schema(("y",), ("site",), tuple(features), id_column, None, impute)
    assert Schema.from_dict(json.loads(json.dumps(schema.to_dict()))) == schema


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"more": 1}, "a schema must have the keys 'targets', .*'impute', got .*'more'"),
        ({"targets": "pH"}, "targets of a schema must be a list of columns, got 'pH'"),
        ({"features": [1]}, r"features of a schema must be a list of columns, got \[1\]"),
        ({"id_column": 3}, "id_column of a schema must be a column or null, got 3"),
        ({"impute": 1}, "impute of a schema must be true or false, got 1"),
    ],
)
def test_json_that_is_no_schema_is_told(change: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        Schema.from_dict({**WHOLE.to_dict(), **change})


def test_a_schema_is_an_object() -> None:
    with pytest.raises(InputError, match=r"a schema must have the keys .*, got list"):
        Schema.from_dict([])


# Rows.


def test_a_part_holds_the_columns_by_their_roles() -> None:
    part = to_part(LAKES, WHOLE)
    np.testing.assert_array_equal(part.numbers, [[1, 1], [2, 0], [3, 0], [4, 1]])
    np.testing.assert_array_equal(part.target, [[7.0], [7.5], [8.0], [7.0]])
    np.testing.assert_array_equal(part.weight, [1, 2, 0, 1])
    assert {column: list(values) for column, values in part.labels.items()} == {"lake": ["x", "y", "x", "y"]}
    assert part.numbers.dtype == part.target.dtype == part.weight.dtype == np.float64


def test_several_targets_and_no_feature() -> None:
    part = to_part(LAKES, Schema(("depth", "pH"), ("lake",)))
    np.testing.assert_array_equal(part.target, LAKES[["depth", "pH"]])
    assert part.numbers.shape == (4, 0)
    assert part.weight is None


def test_no_rows_give_an_empty_part() -> None:
    part = to_part(LAKES[:0], WHOLE)
    assert (part.numbers.shape, part.target.shape, part.weight.shape) == ((0, 2), (0, 1), (0,))


def test_a_part_is_a_copy_that_can_be_written_to(lakes: Table) -> None:
    """torch.from_numpy warns of an array that is not writable."""
    part = to_part(lakes[0], WHOLE)
    for array in (part.numbers, part.target):
        assert array.flags.writeable
        array[:] = 0
    assert lakes.column("depth").tolist() == [1.0, 2.0, 3.0, 4.0]


@given(st.integers(0, 2**32 - 1), st.integers(1, 30), st.data())
def test_rows_in_pieces_are_the_rows(seed: int, rows: int, data: st.DataObject) -> None:
    rng = np.random.default_rng(seed)
    frame = pd.DataFrame({"y": rng.normal(size=rows), "x": rng.normal(size=rows).astype(np.float32)})
    frame["site"] = rng.choice(["a", "b"], rows)
    schema, cut = Schema(("y",), ("site",), ("x",)), data.draw(st.integers(0, rows))
    whole = to_part(frame, schema)
    parts = [to_part(frame[:cut], schema), to_part(frame[cut:].reset_index(drop=True), schema, first_row=cut)]
    np.testing.assert_array_equal(np.concatenate([part.numbers for part in parts]), whole.numbers)
    np.testing.assert_array_equal(np.concatenate([part.target for part in parts]), whole.target)
    taken = whole.take(np.arange(cut))
    np.testing.assert_array_equal(taken.labels["site"], parts[0].labels["site"])


def test_prediction_needs_neither_target_nor_weight() -> None:
    part = to_part(LAKES.drop(columns=["pH", "count", "id"]), WHOLE, training=False)
    assert part.target.shape == (4, 1)
    assert np.isnan(part.target).all()
    assert part.weight is None
    broken = to_part(changed(pH=["?"] * 4, count=-1.0), WHOLE, training=False)
    np.testing.assert_array_equal(broken.numbers, part.numbers)


@pytest.mark.parametrize(
    "labels",
    [["x", None, "y", "x"], [1.0, np.nan, 2.0, 1.0], pd.Categorical(["x", None, "y", "x"]), [True, None, False, True]],
)
def test_a_missing_label_is_the_unknown_category(labels: Any) -> None:
    part = to_part(changed(lake=pd.Series(labels)), WHOLE)
    ids = CategoryEncoder(["lake"]).fit_transform(part.labels)["lake"]
    assert ids[1] == 0
    assert (ids[[0, 2, 3]] > 0).all()
    taken = CategoryEncoder(["lake"]).fit_transform(part.take(slice(None)).labels)["lake"]
    assert taken.tolist() == ids.tolist()


def test_an_integer_label_is_the_same_beside_a_missing_one(tmp_path: Path) -> None:
    """A column of integers with a missing value is read as floats; chunks of a file may differ in that."""
    column = pa.array([1, 2, None, 1])
    pq.write_table(pa.table({"lake": column, "y": [0.0] * 4}), tmp_path / "t.parquet", row_group_size=2)
    first, second = (
        to_part(chunk, Schema(("y",), ("lake",))) for chunk in open_table(tmp_path / "t.parquet", rows_in_memory=2)
    )
    encoder = CategoryEncoder(["lake"]).fit(first.labels)
    assert encoder.transform(second.labels)["lake"].tolist() == [0, 1]


def test_missing_features_are_kept_where_they_are_imputed() -> None:
    part = to_part(changed(depth=[1.0, np.nan, 3.0, np.nan]), Schema(("pH",), (), ("depth",), impute=True))
    np.testing.assert_array_equal(part.numbers[:, 0], [1.0, np.nan, 3.0, np.nan])
    empty = to_part(changed(depth=pd.Series([None] * 4, dtype=object)), Schema(("pH",), (), ("depth",), impute=True))
    assert np.isnan(empty.numbers).all()


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"pH": ["7", "8.5", "ca. 7", "?"]}, "target 'pH' must hold numbers, got 'ca. 7' in row 13"),
        ({"pH": ["7", "8", "9", "7"]}, "target 'pH' must hold numbers, got '7' in row 11"),
        ({"pH": [7.0, np.nan, np.nan, 7.0]}, r"target 'pH' must be a finite number, got no value in row 12 \(2 such"),
        ({"pH": [7.0, 7.0, -np.inf, 7.0]}, "target 'pH' must be a finite number, got -inf in row 13"),
        ({"depth": [None, "deep", "2", "3"]}, "feature 'depth' must hold numbers, got 'deep' in row 12"),
        ({"depth": pd.Timestamp("2020-01-01")}, "feature 'depth' must hold numbers, got Timestamp"),
        ({"depth": pd.Categorical(["a", "b", "a", "b"])}, "feature 'depth' must hold numbers, got 'a' in row 11"),
        ({"depth": [1.0, 2.0, 3.0, np.inf]}, "feature 'depth' must be finite, got inf in row 14"),
        (
            {"depth": [1.0, np.nan, 3.0, np.nan]},
            "feature 'depth' has no value in 2 of 4 rows, first in row 12; --impute-missing takes the mean of the "
            "training rows and adds an indicator",
        ),
        ({"count": [1.0, 1.0, -0.5, 1.0]}, "weight 'count' must be finite and not negative, got -0.5 in row 13"),
        ({"count": [1.0, np.nan, 1.0, 1.0]}, "weight 'count' must be .*, got no value in row 12"),
        ({"count": [np.inf, 1.0, 1.0, 1.0]}, "weight 'count' must be .*, got inf in row 11"),
        ({"count": ["a", "b", "c", "d"]}, "weight 'count' must hold numbers, got 'a' in row 11"),
        ({"lake": pd.Timestamp("2020-01-01")}, "categorical column 'lake' must hold text, .*, got datetime64; write"),
        ({"lake": [[1], [2], [3], [4]]}, "categorical column 'lake' must hold text, numbers or booleans, got mixed"),
    ],
)
def test_values_that_cannot_be_are_told_with_their_row(columns: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as raised:
        to_part(changed(**columns), WHOLE, first_row=10)
    assert "\n" not in str(raised.value)


def test_rows_are_counted_as_in_the_file(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("y,x\n1,1\n2,\n3,3\n")
    with pytest.raises(InputError, match="first in row 2;"):
        to_part(open_table(tmp_path / "t.csv")[0], Schema(("y",), (), ("x",)))


@pytest.mark.parametrize("column", ["lake", "depth", "pH", "count"])
def test_a_column_that_is_gone_is_told(column: str) -> None:
    with pytest.raises(InputError, match=f"the table has no column '{column}', but 'id', .*; did you mean '{column}s'"):
        to_part(LAKES.rename(columns={column: column + "s"}), WHOLE)


# The whole table.


def test_a_sound_table_is_trained_on(lakes: Table) -> None:
    check_training(lakes, WHOLE)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"count": 0.0}, "weight 'count' is zero in every row; at least one must count"),
        ({"count": [1.0, 1.0, 1.0, -2.0]}, "weight 'count' must be finite and not negative, got -2 in row 4"),
        ({"id": ["a", "b", "a", "b"]}, "'id' must be unique, and 2 rows repeat an id, such as 'a' in row 3"),
        ({"id": ["a", None, "c", "d"]}, "--id-column 'id' has no value in row 2; each row needs an id"),
        ({"id": [1, 2, 3, 3]}, "such as 3 in row 4"),
        ({"lake": ["x", None, "x", "x"]}, "'lake' has one category only, 'x'; leave it out of --categorical-columns"),
        ({"lake": pd.Series([None] * 4, dtype="str")}, "categorical column 'lake' has no value in any row; leave"),
        ({"depth": np.nan}, "feature 'depth' has no value in any row; leave it out with --exclude-columns"),
    ],
)
def test_rows_that_teach_nothing_are_told(tmp_path: Path, columns: dict[str, Any], message: str) -> None:
    schema = Schema(("pH",), ("lake",), ("depth", "ice"), "id", "count", impute=True)
    with pytest.raises(InputError, match=message):
        check_training(table_of(tmp_path, changed(**columns)), schema)


def test_one_row_is_too_few(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"t.parquet has 1 row, and training needs at least two"):
        check_training(table_of(tmp_path, LAKES[:1]), WHOLE)


@pytest.mark.parametrize("rows", [10, 11])
def test_a_category_for_each_row_identifies_rows(tmp_path: Path, rows: int) -> None:
    frame = pd.DataFrame({"y": np.arange(float(rows)), "sample": [f"s{i}" for i in range(rows)]})
    table, schema = table_of(tmp_path, frame), Schema(("y",), ("sample",))
    if rows == 10:  # few rows may well have a category each
        check_training(table, schema)
        return
    with pytest.raises(
        InputError, match=r"'sample' has another value in each of 11 rows, so it identifies rows; .*--id"
    ):
        check_training(table, schema)


def test_checks_of_the_whole_look_across_chunks(tmp_path: Path) -> None:
    """Ids that repeat in another chunk repeat; a chunk of one category or of zero weights is no fault."""
    frame = pd.DataFrame({"y": np.arange(4.0), "site": list("aabb"), "w": [0.0, 0.0, 1.0, 1.0], "id": [1, 2, 3, 1]})
    frame.to_parquet(tmp_path / "t.parquet", row_group_size=2)
    table = open_table(tmp_path / "t.parquet", rows_in_memory=2)
    check_training(table, Schema(("y",), ("site",), (), None, "w"))
    with pytest.raises(InputError, match="such as 1 in row 4"):
        check_training(table, Schema(("y",), ("site",), (), "id"))


def test_a_constant_target_is_no_fault(tmp_path: Path) -> None:
    check_training(table_of(tmp_path, changed(pH=7.0)), WHOLE)
    np.testing.assert_array_equal(to_part(changed(pH=7.0), WHOLE).target, np.full((4, 1), 7.0))
