"""Numbers standardised by the training rows, in one part or many."""

import itertools

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from reghead._warnings import UnseenCategoryWarning
from reghead.estimators._part import Part
from reghead.estimators._preprocessor import Preprocessor


def part(seed: int, rows: int, missing: float = 0.2, weighted: bool = True) -> Part:
    rng = np.random.default_rng(seed)
    numbers = 1e3 + rng.normal(size=(rows, 2)) * [1.0, 50.0]
    numbers[rng.random((rows, 2)) < missing] = np.nan
    labels = {"lake": rng.choice(np.array(["Como", "Erie", None], object), rows)}
    weight = rng.choice([0.5, 1.0, 3.0], rows) if weighted else None
    return Part(numbers, labels, rng.normal(size=(rows, 1)) * 7.0, weight)


def new() -> Preprocessor:
    return Preprocessor(["depth", "lake", "light"], ["lake"])


def fitted(*parts: Part) -> Preprocessor:
    preprocessor = new()
    for each in parts:
        preprocessor.partial_fit(each)
    return preprocessor


def expected(values: np.ndarray, weight: np.ndarray) -> tuple[float, float]:
    """Mean and standard deviation by the textbook, weights as repetitions."""
    there = ~np.isnan(values)
    mean = np.average(values[there], weights=weight[there])
    return mean, np.sqrt(np.average((values[there] - mean) ** 2, weights=weight[there]))


@given(sizes=st.lists(st.integers(0, 6), min_size=1, max_size=4), seed=st.integers(0, 2**32 - 1))
def test_parts_are_one_fit_and_that_of_the_textbook(sizes: list[int], seed: int) -> None:
    rows = sum(sizes) + 3
    whole = part(seed, rows)
    whole.numbers[:2] = [[1.0, 2.0], [3.0, 5.0]]  # each column has two values
    edges = np.cumsum([0, *sizes, 3])
    pieces = [whole.take(slice(a, b)) for a, b in itertools.pairwise(edges)]
    one, many = fitted(whole), fitted(*pieces)
    for name in ("mean", "scale", "target_scale"):
        np.testing.assert_allclose(getattr(many, name), getattr(one, name), rtol=1e-12)
    for ends in (one, many):
        np.testing.assert_array_equal(ends.low, np.nanmin(whole.numbers, axis=0))
        np.testing.assert_array_equal(ends.high, np.nanmax(whole.numbers, axis=0))
    assert np.array_equal(many.indicated, one.indicated)
    assert many.rows == one.rows == rows
    assert many.encoder is not None
    assert one.encoder is not None
    assert many.encoder.to_dict() == one.encoder.to_dict()
    assert whole.weight is not None
    for j in range(2):
        mean, scale = expected(whole.numbers[:, j], whole.weight)
        np.testing.assert_allclose((one.mean[j], one.scale[j]), (mean, scale), rtol=1e-9)


def test_a_small_spread_far_from_zero_is_not_lost() -> None:
    numbers = np.array([[1e9 - 1e-2, 0.0], [1e9 + 1e-2, 0.0]])
    p = Part(numbers, {"lake": ["Como", "Erie"]}, np.zeros((2, 1)), None)
    assert fitted(p).scale[0] == pytest.approx(1e-2, rel=1e-5)


def test_a_constant_column_stays_finite_and_becomes_zero() -> None:
    p = Part(np.full((3, 2), 0.1), {"lake": ["Como"] * 3}, np.full((3, 1), 5.0), np.array([0.3, 1.1, 2.0]))
    x, _ = fitted(p).transform(p, torch.float64)
    assert fitted(p).scale.tolist() == [1.0, 1.0]
    assert fitted(p).target_scale.tolist() == [1.0]
    torch.testing.assert_close(x, torch.zeros(3, 2, dtype=torch.float64))


def test_a_missing_number_is_the_mean_beside_an_indicator_of_training() -> None:
    p = Part(np.array([[1.0, np.nan], [3.0, 4.0]]), {"lake": ["Como", "Erie"]}, np.zeros((2, 1)), None)
    preprocessor = fitted(p)
    x, ids = preprocessor.transform(p, torch.float64)
    assert preprocessor.in_features == 3
    assert x.tolist() == [[-1.0, 0.0, 1.0], [1.0, 0.0, 0.0]]
    assert ids["lake"].tolist() == [1, 2]
    # A column that training knew in full has no indicator to say so.
    x, _ = preprocessor.transform(p._replace(numbers=np.array([[np.nan, 4.0]] * 2)), torch.float64)
    assert x.tolist() == [[0.0, 0.0, 0.0]] * 2


def test_a_number_beyond_those_of_training_is_the_nearest_of_them_where_asked() -> None:
    numbers = np.array([[1.0, np.nan], [3.0, np.nan], [8.0, np.nan]])
    p = Part(numbers, {"lake": ["Como", "Erie", "Erie"]}, np.zeros((3, 1)), None)
    beyond = p._replace(numbers=np.array([[-1e300, 5.0], [4.0, -5.0], [np.inf, np.nan]]))
    nearest = p._replace(numbers=np.array([[1.0, np.nan], [4.0, np.nan], [8.0, np.nan]]))
    for clip in (3.0, None):
        preprocessor = Preprocessor(["depth", "lake", "light"], ["lake"], clip)
        preprocessor.partial_fit(p)
        assert preprocessor.in_features == 3  # the second column has no number, and an indicator
        found, expected = (preprocessor.transform(each, torch.float64)[0] for each in (beyond, nearest))
        # Of a column without a number nothing is known: it stays at its mean.
        assert torch.equal(found[:, :2], expected[:, :2]) is (clip is not None)
        assert found[:, 2].tolist() == [0.0, 0.0, 1.0]
    with pytest.raises(ValueError, match="feature_clip must be"):
        Preprocessor(["a"], [], -1.0)


def test_a_label_of_no_training_row_is_unknown_and_told_unless_it_is_expected() -> None:
    p = part(0, 20)
    other = Part(p.numbers[:1], {"lake": ["Huron"]}, p.target[:1], None)
    with pytest.warns(UnseenCategoryWarning, match="1 unseen labels: 'Huron'"):
        _, ids = fitted(p).transform(other, torch.float32)
    assert ids["lake"].tolist() == [0]
    fitted(p).transform(other, torch.float32, expect_unseen=True)


def test_without_numbers_there_is_one_feature_that_is_zero() -> None:
    preprocessor = Preprocessor(["lake"], ["lake"])
    p = Part(np.zeros((2, 0)), {"lake": ["Como", "Erie"]}, np.zeros((2, 1)), None)
    preprocessor.partial_fit(p)
    x, ids = preprocessor.transform(p, torch.float32)
    assert preprocessor.in_features == 1
    assert x.tolist() == [[0.0], [0.0]]
    assert ids["lake"].tolist() == [1, 2]
    x, ids = Preprocessor(["a"], []).transform(Part(np.ones((2, 1)), {}, np.zeros((2, 1)), None), torch.float64)
    assert (x.tolist(), ids) == ([[1.0], [1.0]], {})


@pytest.mark.parametrize(("column", "told"), [(0, "numbers of 'depth'"), (1, "numbers of 'light'"), (2, "targets")])
@pytest.mark.parametrize("size", [1e200, 1.7e308])
def test_numbers_whose_variance_overflows_are_refused_by_name(column: int, told: str, size: float) -> None:
    """Otherwise they are NaN from here on, also as predictions."""
    given = part(0, 20)
    (given.numbers if column < 2 else given.target)[::2, column % 2] = size
    (given.numbers if column < 2 else given.target)[1::2, column % 2] = -size
    with pytest.raises(ValueError, match=f"the {told} are too large: their variance is no number in float64"):
        fitted(given)
