"""What each column of a table is for, and the rows as the training loop takes them."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from reghead._checks import did_you_mean
from reghead.cli._arrow import DataFrame, Series, listed, need
from reghead.cli._errors import InputError
from reghead.cli._tables import Table
from reghead.estimators._part import FloatArray, Part

_LARGEST = 1e150  # of which the squares of many rows can be added up in float64
_FEW = 10  # rows; below, categories that are all different are no sign of a mistake
_LABELS = ("string", "integer", "floating", "boolean", "mixed-integer", "mixed-integer-float", "empty")


@dataclasses.dataclass(frozen=True)
class Schema:
    """What each column is for.

    Args:
        targets: What is predicted.
        categories: The categorical columns; a missing label is the unknown category.
        features: The numbers, in the order the model takes them.
        id_column: What names a row in the predictions.
        weight_column: The weight of each row in training.
        impute: Whether features may be missing.
    """

    targets: tuple[str, ...]
    categories: tuple[str, ...] = ()
    features: tuple[str, ...] = ()
    id_column: str | None = None
    weight_column: str | None = None
    impute: bool = False

    @property
    def columns(self) -> tuple[str, ...]:
        """All columns that have a role."""
        single = (self.id_column, self.weight_column)
        return (*self.targets, *self.categories, *self.features, *(c for c in single if c is not None))

    def to_dict(self) -> dict[str, Any]:
        """The schema as plain JSON values."""
        return {
            field.name: list(value) if isinstance(value := getattr(self, field.name), tuple) else value
            for field in dataclasses.fields(self)
        }

    @classmethod
    def from_dict(cls, value: object) -> Self:
        """The inverse of :meth:`to_dict`.

        Raises:
            InputError: If ``value`` is not what :meth:`to_dict` returns.
        """
        fields = [field.name for field in dataclasses.fields(cls)]
        if not isinstance(value, Mapping) or value.keys() != set(fields):
            got = listed(list(value)) if isinstance(value, Mapping) else type(value).__name__
            raise InputError(f"a schema must have the keys {listed(fields)}, got {got}")
        for name in ("targets", "categories", "features"):
            if not isinstance(value[name], list) or not all(isinstance(column, str) for column in value[name]):
                raise InputError(f"{name} of a schema must be a list of columns, got {value[name]!r}")
        for name in ("id_column", "weight_column"):
            if not isinstance(value[name], str | None):
                raise InputError(f"{name} of a schema must be a column or null, got {value[name]!r}")
        if not isinstance(value["impute"], bool):
            raise InputError(f"impute of a schema must be true or false, got {value['impute']!r}")
        fixed: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in value.items()}
        return cls(**fixed)


def choose_schema(
    table: Table,
    *,
    targets: Sequence[str],
    categories: Sequence[str] = (),
    features: Sequence[str] | None = None,
    exclude: Sequence[str] = (),
    id_column: str | None = None,
    weight_column: str | None = None,
    impute: bool = False,
) -> Schema:
    """What each column of ``table`` is for.

    Args:
        table: Its columns and their types are looked at, not its rows.
        targets: What is predicted.
        categories: The categorical columns.
        features: The numbers; by default every column of numbers or booleans that has no other role.
        exclude: Columns that are not to be features.
        id_column: What names a row.
        weight_column: The weight of each row.
        impute: Whether features may be missing.

    Raises:
        InputError: If a column is not there, has two roles, or is text without a role.
    """
    roles = {
        "--target": tuple(targets),
        "--categorical-columns": tuple(categories),
        "--feature-columns": tuple(features or ()),
        "--exclude-columns": tuple(exclude),
        "--id-column": () if id_column is None else (id_column,),
        "--weight-column": () if weight_column is None else (weight_column,),
    }
    role_of: dict[str, str] = {}
    for flag, columns in roles.items():
        for column in columns:
            if column not in table.types:
                raise InputError(
                    f"{flag} names the column {column!r}, which is not in {table.paths[0]} ({listed(table.columns)})"
                    f"{did_you_mean(column, table.columns)}"
                )
            if column in role_of:
                other = role_of[column]
                twice = f"{flag} names the column {column!r} twice"
                raise InputError(
                    twice if other == flag else f"{flag} and {other} both name the column {column!r}; choose one"
                )
            role_of[column] = flag
    if not targets:
        raise InputError("--target must name at least one column")
    if features is None:
        features = _free_numbers(table, role_of)
    if not features and not categories:
        raise InputError(
            f"{table.paths[0]} has nothing to predict from: apart from the target no column holds numbers, "
            "and --categorical-columns names none"
        )
    return Schema(tuple(targets), tuple(categories), tuple(features), id_column, weight_column, impute)


def _free_numbers(table: Table, taken: Mapping[str, str]) -> list[str]:
    free = [column for column in table.columns if column not in taken]
    others = [column for column in free if column not in table.numeric]
    if others:
        held = ", ".join(f"{column!r} ({table.types[column]})" for column in others[:3])
        more = f" and {len(others) - 3} more" if len(others) > 3 else ""
        raise InputError(
            f"columns without a role that do not hold numbers: {held}{more}; name each in --categorical-columns, "
            "or leave it out with --exclude-columns"
        )
    return free


def check_training(table: Table, schema: Schema) -> None:
    """Refuse rows that nothing can be learned from; :func:`to_part` checks the values row by row.

    Raises:
        InputError: With the column and what to do.
    """
    if table.rows < 2:
        raise InputError(f"{table.paths[0]} has {table.rows} row, and training needs at least two")
    for column in schema.categories:
        _check_category(_labels(table.column(column), column), column)
    if schema.impute:
        for column in schema.features:
            if table.column(column).isna().all():
                raise InputError(f"feature {column!r} has no value in any row; leave it out with --exclude-columns")
    if schema.weight_column is not None:
        weight = numbers_of(table.column(schema.weight_column), f"weight {schema.weight_column!r}")
        _check_weight(weight, schema.weight_column, 0)
        if not weight.any():
            raise InputError(f"weight {schema.weight_column!r} is zero in every row; at least one must count")
    if schema.id_column is not None:
        _check_ids(table.column(schema.id_column), schema.id_column)


def _check_category(labels: Series, column: str) -> None:
    rows, distinct = len(labels), labels.nunique()
    leave_out = "leave it out of --categorical-columns"
    if distinct == 0:
        raise InputError(f"categorical column {column!r} has no value in any row; {leave_out}")
    if distinct == 1:
        only = labels.dropna().iloc[0]
        raise InputError(f"categorical column {column!r} has one category only, {_plain(only)!r}; {leave_out}")
    if distinct == rows > _FEW:
        raise InputError(
            f"categorical column {column!r} has another value in each of {rows} rows, so it identifies rows; "
            f"{leave_out}, or pass it as --id-column"
        )


def _check_ids(ids: Series, column: str) -> None:
    missing = ids.isna().to_numpy()
    if missing.any():
        raise InputError(f"--id-column {column!r} has no value in row {_first(missing, 0)}; each row needs an id")
    try:
        duplicated = ids.duplicated().to_numpy()
    except TypeError as error:  # lists, or objects with fields
        held = type(ids.iloc[0]).__name__
        raise InputError(
            f"--id-column {column!r} must hold text, numbers or dates, got values of type {held}"
        ) from error
    if duplicated.any():
        example, count = _plain(ids.iloc[int(duplicated.argmax())]), int(duplicated.sum())
        raise InputError(
            f"--id-column {column!r} must be unique, and {count} rows repeat an id, such as {example!r} "
            f"in row {_first(duplicated, 0)}"
        )


def to_part(frame: DataFrame, schema: Schema, *, first_row: int = 0, training: bool = True) -> Part:
    """Rows as the training loop takes them.

    Args:
        frame: The rows; columns without a role are not looked at.
        schema: What each column is for.
        first_row: Rows of the table before these; messages count rows from 1, without the header.
        training: Whether targets and weights are read. If not, they may be absent: the target is NaN, the weight
            ``None``.

    Raises:
        InputError: With the column, the first row at fault and its value.
    """
    rows = len(frame)
    features = np.empty((rows, len(schema.features)))
    for j, column in enumerate(schema.features):
        values = numbers_of(_get(frame, column), f"feature {column!r}", first_row)
        _check_feature(values, column, first_row, impute=schema.impute, training=training)
        features[:, j] = values
    labels = {column: _labels(_get(frame, column), column) for column in schema.categories}
    target: FloatArray = np.full((rows, len(schema.targets)), np.nan)
    weight: FloatArray | None = None
    if training:
        for d, column in enumerate(schema.targets):
            target[:, d] = numbers_of(_get(frame, column), f"target {column!r}", first_row)
            check_target(target[:, d], column, first_row)
        if schema.weight_column is not None:
            column = schema.weight_column
            weight = numbers_of(_get(frame, column), f"weight {column!r}", first_row)
            _check_weight(weight, column, first_row)
    return Part(features, labels, target, weight)


def numbers_of(values: Series, described: str, first_row: int = 0) -> FloatArray:
    """A column of numbers or booleans as float64, NaN where it is missing."""
    if values.dtype.kind not in "biuf":
        given, objects = values.notna().to_numpy(), values.astype(object)
        unreadable = given & need("pandas").to_numeric(objects, errors="coerce").isna().to_numpy()
        # Where each value reads as a number the column is still text, and its first value says so.
        wrong = unreadable if unreadable.any() else given
        if wrong.any():
            row = int(wrong.argmax())
            raise InputError(
                f"{described} must hold numbers, got {_plain(objects.iloc[row])!r} in row {row + 1 + first_row}"
            )
        return np.full(len(values), np.nan)
    result: FloatArray = values.to_numpy(dtype=np.float64, na_value=np.nan)
    return result


def _labels(values: Series, column: str) -> Series:
    categorical = hasattr(values, "cat")
    kind = need("pandas").api.types.infer_dtype(values.cat.categories if categorical else values, skipna=True)
    if kind not in _LABELS:
        raise InputError(
            f"categorical column {column!r} must hold text, numbers or booleans, got {kind}; write it as text"
        )
    return values


def _check_feature(values: FloatArray, column: str, first_row: int, *, impute: bool, training: bool) -> None:
    infinite = np.isinf(values)
    if infinite.any():
        raise InputError(f"feature {column!r} must be finite, got {_value(values, infinite, first_row)}")
    _check_size(values, f"feature {column!r}", first_row)
    missing = np.isnan(values)
    if not impute and missing.any():
        way_out = (
            "--impute-missing takes the mean of the training rows and adds an indicator"
            if training
            else "fill them, or train with --impute-missing"
        )
        raise InputError(
            f"feature {column!r} has no value in {missing.sum()} of {len(values)} rows, first in row "
            f"{_first(missing, first_row)}; {way_out}"
        )


def check_target(values: FloatArray, column: str, first_row: int) -> None:
    """Refuse a target that is missing, infinite, or too large to be computed with."""
    wrong = ~np.isfinite(values)
    if wrong.any():
        raise InputError(
            f"target {column!r} must be a finite number, got {_value(values, wrong, first_row)} "
            f"({wrong.sum()} such rows); leave those rows out"
        )
    _check_size(values, f"target {column!r}", first_row)


def _check_weight(values: FloatArray, column: str, first_row: int) -> None:
    wrong = ~np.isfinite(values) | (values < 0)
    if wrong.any():
        raise InputError(f"weight {column!r} must be finite and not negative, got {_value(values, wrong, first_row)}")
    _check_size(values, f"weight {column!r}", first_row)


def _check_size(values: FloatArray, described: str, first_row: int) -> None:
    wrong = np.abs(values) > _LARGEST
    if wrong.any():
        raise InputError(
            f"{described} must be at most {_LARGEST:g} in size, as its square is computed, got "
            f"{_value(values, wrong, first_row)}; divide the column by a power of ten"
        )


def _get(frame: DataFrame, column: str) -> Series:
    if column not in frame.columns:
        names = list(frame.columns)
        raise InputError(f"the table has no column {column!r}, but {listed(names)}{did_you_mean(column, names)}")
    return frame[column]


def _first(rows: npt.NDArray[np.bool_], first_row: int) -> int:
    return int(rows.argmax()) + 1 + first_row


def _value(values: FloatArray, rows: npt.NDArray[np.bool_], first_row: int) -> str:
    value = values[int(rows.argmax())]
    return f"{'no value' if np.isnan(value) else f'{value:g}'} in row {_first(rows, first_row)}"


def _plain(value: object) -> object:
    return value.item() if isinstance(value, np.generic) else value
