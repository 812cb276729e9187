"""Three kinds of split of a table's rows, the same on every machine.

``random``: a fifth of the rows of each environment. ``combo``: a fifth of the combinations of location and season,
whose location and season both stay in training. ``loc``: a quarter of the locations. 15 % of the other rows are for
validation.
"""

import numpy as np
import numpy.typing as npt
import pandas as pd

FOLDS = 3

Labels = npt.NDArray[np.str_]
IntArray = npt.NDArray[np.intp]


def cells(features: pd.DataFrame, location: str, season: str | None) -> Labels:
    """The environment of each row: its location, and its season if there is one."""
    place = features[location].to_numpy(str)
    return place if season is None else np.char.add(np.char.add(place, " / "), features[season].to_numpy(str))


def make(features: pd.DataFrame, location: str, season: str | None) -> pd.DataFrame:
    """A column per kind and fold: 0 train, 1 validation, 2 test."""
    place, environments = features[location].to_numpy(str), cells(features, location, season)
    splits = {}
    for fold in range(FOLDS):
        rng = np.random.RandomState(fold)  # the one whose draws NumPy never changes
        splits[f"random{fold}"] = _with_validation(_rows_of_each(environments, 0.2, rng), rng)
        if season is not None:
            test = _combinations(place, features[season].to_numpy(str), environments, 0.2, rng)
            splits[f"combo{fold}"] = _with_validation(test, rng)
        places = np.unique(place)
        held = rng.choice(places, max(round(0.25 * len(places)), 1), replace=False)
        splits[f"loc{fold}"] = _with_validation(np.isin(place, held), rng)
    return pd.DataFrame(splits, dtype=np.int8)


def first_rows(rows: IntArray, labels: Labels, count: int, rng: np.random.RandomState) -> tuple[IntArray, IntArray]:
    """``count`` rows of each label, and the rows to test on.

    The test rows and the order are those of any ``count`` up to 8, so that results for several are paired; a label
    of 8 rows or fewer is left out of both.
    """
    order = rng.permutation(len(rows))
    rank = pd.Series(labels[order]).groupby(labels[order]).cumcount().to_numpy()
    size = pd.Series(labels[order]).groupby(labels[order]).transform("size").to_numpy()
    shuffled = rows[order]
    return np.sort(shuffled[(rank < count) & (size > 8)]), np.sort(shuffled[rank >= 8])


def _rows_of_each(labels: Labels, share: float, rng: np.random.RandomState) -> npt.NDArray[np.bool_]:
    chosen = np.zeros(len(labels), dtype=bool)
    for rows in pd.Series(labels).groupby(labels).indices.values():
        chosen[rng.permutation(rows)[: round(share * len(rows))]] = True
    return chosen


def _combinations(
    place: Labels, season: Labels, environments: Labels, share: float, rng: np.random.RandomState
) -> npt.NDArray[np.bool_]:
    kept = pd.DataFrame({"place": place, "season": season}).groupby(environments).first()
    wanted = round(share * len(kept))
    held: list[str] = []
    for cell in rng.permutation(kept.index.to_numpy(str)):
        row = kept.loc[cell]
        if (
            len(held) < wanted
            and (kept["place"] == row["place"]).sum() > 1
            and (kept["season"] == row["season"]).sum() > 1
        ):
            held.append(cell)
            kept = kept.drop(cell)
    return np.isin(environments, held)


def _with_validation(test: npt.NDArray[np.bool_], rng: np.random.RandomState) -> npt.NDArray[np.int8]:
    role = np.where(test, 2, 0).astype(np.int8)
    rest = np.flatnonzero(~test)
    role[rng.choice(rest, round(0.15 * len(rest)), replace=False)] = 1
    return role
