"""What counts as a label, and how a column of values becomes codes into a short list of labels."""

from collections.abc import Hashable, Iterable, Mapping, Set
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from torch import Tensor

Label: TypeAlias = str | int | float | bool
"""One category's name. Equality is Python's: ``1 == 1.0 == True``, while ``"1"`` is another label."""

Codes: TypeAlias = npt.NDArray[np.int64]

# pandas.NA and pandas.NaT, recognised by name so that pandas need not be installed.
_MISSING_TYPES = ("NAType", "NaTType")


def as_label(name: str, value: object) -> Label | None:
    """The plain Python scalar that ``value`` stands for, or ``None`` where it is missing."""
    if value is None or type(value).__name__ in _MISSING_TYPES:
        return None
    if isinstance(value, np.generic) and not isinstance(value, np.datetime64 | np.timedelta64):
        value = value.item()
    if isinstance(value, bool):
        return value
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        if value != value:
            return None
        return int(value) if value.is_integer() else float(value)
    if isinstance(value, np.datetime64 | np.timedelta64) and np.isnat(value):
        return None
    raise TypeError(
        f"{name} must hold labels of type str, int, float or bool, got {value!r} of type {type(value).__name__}; "
        "convert the column with astype(str)"
    )


def factorize(name: str, values: Any) -> tuple[Codes, list[Label | None]]:
    """Codes and labels such that row ``i`` has ``labels[codes[i]]``, ``None`` where it is missing.

    A label may occur twice in the list: callers map the labels, which are few, and then gather by code.

    Args:
        name: What the values are called in an error message.
        values: One column: a Series, an array, a tensor or a sequence.
    """
    if isinstance(values, Tensor):
        values = values.detach().cpu().numpy()
    if hasattr(values, "factorize"):  # pandas; its codes are -1 where a value is missing
        try:
            codes, uniques = values.factorize()
        except TypeError as error:
            raise _unhashable(name, error) from error
        # The -1 of a missing row reads the last entry. A copy, as whoever is not pandas may keep the codes.
        codes = np.array(codes, np.int64, copy=None if type(values).__module__.startswith("pandas.") else True)
        return codes, [*(as_label(name, value) for value in uniques), None]
    if isinstance(values, np.ndarray):
        if values.ndim != 1:
            raise ValueError(f"{name} must be one-dimensional, got shape {values.shape}")
        if values.dtype.kind in "biuf" and not isinstance(values, np.ma.MaskedArray):
            uniques, codes = np.unique(values, return_inverse=True)
            return codes.astype(np.int64, copy=False), [as_label(name, value) for value in uniques]
        values = values.tolist() if values.dtype.kind not in "mM" else list(values)
    if hasattr(values, "columns"):
        raise ValueError(f"{name} must be one column, got a table of {list(values.columns)}; is the name there twice?")
    if isinstance(values, str | bytes | Mapping | Set) or not isinstance(values, Iterable):
        raise TypeError(f"{name} must be a one-dimensional array or sequence of labels, got {values!r}")
    return _factorize_objects(name, list(values))


def gather(lookup: Codes, codes: Codes) -> Codes:
    """``lookup[codes]`` in the memory of ``codes``, which are lost: memory that is not new is half of the time.

    Args:
        lookup: One number for each code, the last for the code -1. Shape ``(K,)``.
        codes: Codes in ``[-1, K)``, as :func:`factorize` makes them. Shape ``(N,)``.
    """
    return lookup.take(codes, out=codes if codes.flags.writeable else None, mode="wrap")


def _factorize_objects(name: str, values: list[Any]) -> tuple[Codes, list[Label | None]]:
    # A dict loop over the objects themselves: np.asarray would turn [1, "1"] into ["1", "1"].
    table: dict[Hashable, int] = {}
    try:
        codes = np.fromiter((table.setdefault(value, len(table)) for value in values), np.int64, count=len(values))
    except TypeError as error:
        raise _unhashable(name, error) from error
    return codes, [as_label(name, value) for value in table]


def _unhashable(name: str, error: TypeError) -> TypeError:
    return TypeError(
        f"{name} must hold labels of type str, int, float or bool, got an unhashable value ({error}); "
        "a column must be one-dimensional"
    )
