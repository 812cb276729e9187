"""From a table X of scikit-learn's kinds to numbers and labels."""

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any, TypeAlias

import numpy as np
from sklearn.utils.validation import check_array, validate_data

from reghead._checks import did_you_mean
from reghead.estimators._part import FloatArray

Column: TypeAlias = str | int
CHECKS: dict[str, Any] = {"dtype": (np.float64, np.float32), "ensure_all_finite": "allow-nan"}
"""What scikit-learn asks of numbers."""


def names_of(table: Any) -> list[str]:
    """The names of the columns of ``table``; ``x0``, ``x1``, ... where it has none."""
    names = getattr(table, "columns", None)
    if names is not None and all(isinstance(name, str) for name in names):
        return list(names)
    return [f"x{i}" for i in range(np.shape(table)[1])]


def resolve(option: str, columns: Any, names: Sequence[str]) -> tuple[str, ...]:
    """The names of ``columns``, which are names or positions of columns of X."""
    if columns is None:
        return ()
    if isinstance(columns, str | int):
        raise TypeError(f"{option} must be a sequence of columns of X, got {columns!r}; use [{columns!r}]")
    found = []
    for column in columns:
        if isinstance(column, int | np.integer) and not isinstance(column, bool):
            if not -len(names) <= column < len(names):
                raise ValueError(f"{option} names the column {column}, and X has {len(names)} columns")
            found.append(names[int(column)])
        elif column in names:
            found.append(str(column))
        else:
            raise ValueError(
                f"{option} names the column {column!r}, which is not in X ({', '.join(map(repr, names))})"
                f"{did_you_mean(column, names)}"
            )
    return tuple(found)


def split_columns(table: Any, names: Sequence[str], categories: Sequence[str]) -> tuple[FloatArray, dict[str, Any]]:
    """The numbers of ``table``, of shape (B, number of numeric columns), and its categorical columns."""
    if not categories:
        return np.asarray(table), {}
    numeric = [i for i, name in enumerate(names) if name not in set(categories)]
    if hasattr(table, "columns"):
        labels: dict[str, Any] = {c: table[table.columns[names.index(c)]] for c in categories}
        numbers = table[[table.columns[i] for i in numeric]] if numeric else None
    else:
        array = table if isinstance(table, np.ndarray) else np.array(table, dtype=object)
        labels = {c: array[:, names.index(c)] for c in categories}
        numbers = array[:, numeric] if numeric else None
    if numbers is None:
        return np.zeros((len(table), 0)), labels
    with naming_labels(numbers):
        return check_array(numbers, **CHECKS, input_name="the numbers of X"), labels


@contextlib.contextmanager
def naming_labels(table: Any) -> Iterator[None]:
    """Say which column of a DataFrame is no number, where that is why it cannot be read."""
    try:
        yield
    except (TypeError, ValueError) as error:
        for name in getattr(table, "columns", ()):
            try:
                check_array(table[[name]], dtype=CHECKS["dtype"], ensure_all_finite=False)
            except (TypeError, ValueError) as why:
                raise ValueError(
                    f"the column {name!r} of X does not hold numbers ({why}); name it in categories, or leave it out"
                ) from error
        raise


def validate_mixed(estimator: Any, X: Any, *, reset: bool) -> Any:  # noqa: N803
    """X itself, or an array of objects: strings and numbers side by side are checked column by column."""
    table = X if hasattr(X, "columns") or isinstance(X, np.ndarray) else np.array(X, dtype=object)
    if np.ndim(table) != 2:
        raise ValueError(f"X must have shape (rows, columns), got {np.ndim(table)} dimensions")
    validate_data(estimator, table, reset=reset, skip_check_array=True)
    return table


def target_names(y: Any, target: FloatArray) -> tuple[str, ...]:
    """Names of the targets: the columns of ``y``, or y0, y1, ..."""
    names = getattr(y, "columns", None)
    if names is not None:
        return tuple(map(str, names))
    if target.ndim == 1 and isinstance(getattr(y, "name", None), str) and y.name:
        return (y.name,)
    return tuple(f"y{d}" for d in range(1 if target.ndim == 1 else target.shape[1]))
