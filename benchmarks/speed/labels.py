"""Columns of strings to ids."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.speed._measure import Comparison, Reach
from benchmarks.speed._subject import main
from reghead.categories import CategoryEncoder

TITLE = "Two columns of strings to ids"
_SIZES = {"site": 1_000, "season": 4}


def columns(rows: int) -> dict[str, npt.NDArray[np.object_]]:
    """Strings of 1,000 sites and 4 seasons, as arrays of Python strings."""
    rng = np.random.default_rng(0)
    return {
        name: np.array([f"{name}-{i:04d}" for i in range(size)], dtype=object)[rng.integers(0, size, rows)]
        for name, size in _SIZES.items()
    }


def _aam(table: Mapping[str, Any]) -> dict[str, npt.NDArray[np.int64]]:
    """As AAM has it: sorted strings in a dict, and a loop over the rows."""
    import pandas as pd

    encoded = {}
    for name, values in table.items():
        mapping = {label: i + 1 for i, label in enumerate(sorted(str(v) for v in values.dropna().unique()))}
        ids = [mapping.get(str(value), 0) if pd.notna(value) else 0 for value in values]
        encoded[name] = np.array(ids, dtype=np.int64)
    return encoded


def _map(table: Any) -> dict[str, Any]:
    """As people write it: the unique values in a dict, and ``Series.map``."""
    encoded = {}
    for name in table:
        mapping = {label: i + 1 for i, label in enumerate(sorted(table[name].dropna().unique()))}
        encoded[name] = table[name].map(mapping).fillna(0).astype(np.int64)
    return encoded


def _ours(table: Any) -> Callable[[], object]:
    return lambda: CategoryEncoder(list(_SIZES)).fit_transform(table)


def measure() -> Iterator[Comparison]:
    import pandas as pd

    arrays = columns(10_000_000)
    for dtype in ("str", object):
        frame = pd.DataFrame({name: pd.Series(values, dtype=dtype) for name, values in arrays.items()})
        contenders = {
            "reghead": _ours(frame),
            "pandas factorize (limit)": lambda frame=frame: [pd.factorize(frame[name]) for name in frame],
            "pandas map": lambda frame=frame: _map(frame),
        }
        yield Comparison(
            f"fit and transform, 1e7 rows, pandas, dtype {dtype if dtype == 'str' else 'object'}",
            contenders,
            [Reach(1.2, ("pandas factorize (limit)",)), Reach(1.0, ("pandas map",))],
            seconds=3.0,
            rounds=7,
        )
    del frame, contenders
    yield Comparison(
        "fit and transform, 1e7 rows, arrays of Python strings",
        {
            "reghead": _ours(arrays),
            "pandas factorize (limit)": lambda: [pd.factorize(values) for values in arrays.values()],
        },
        [Reach(4.0, ("pandas factorize (limit)",))],
        seconds=3.0,
        rounds=5,
    )
    arrays = {name: values[:1_000_000] for name, values in arrays.items()}
    yield _slow_peers(pd.DataFrame(arrays), arrays)


def _slow_peers(frame: Any, arrays: Mapping[str, npt.NDArray[np.object_]]) -> Comparison:
    """Those that take many seconds are measured with a tenth of the rows."""
    contenders: dict[str, Callable[[], object]] = {"reghead": _ours(arrays), "AAM": lambda: _aam(frame)}
    try:
        from sklearn.preprocessing import OrdinalEncoder

        contenders["scikit-learn OrdinalEncoder"] = lambda: OrdinalEncoder().fit_transform(frame)
    except ImportError:
        pass
    try:
        import polars as pl

        table = pl.DataFrame({name: pl.Series(values.tolist()) for name, values in arrays.items()})
        contenders["reghead, from polars"] = _ours(table)
    except ImportError:
        pass
    others = ("AAM", "scikit-learn OrdinalEncoder")
    return Comparison(
        "fit and transform, 1e6 rows, arrays of Python strings",
        contenders,
        [Reach(1.0, others)],
        seconds=3.0,
        rounds=5,
    )


if __name__ == "__main__":
    main("labels", TITLE, measure)
