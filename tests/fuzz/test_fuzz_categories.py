"""Encoders through any sequence of fits, merges, savings and transformations, of labels that nobody expects."""

import copy
import unicodedata
import warnings
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis.stateful import Bundle, RuleBasedStateMachine, invariant, rule

from fuzz._oracle import HUGE, JSON, TEXTS, examples, mutated, tried
from reghead import UnseenCategoryWarning
from reghead.categories import CategoryEncoder, Vocabulary

PLAIN = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 3),
    st.sampled_from([2**53, 2**53 + 1, 2**63, -(2**64), HUGE, 0.5, -0.0, 1.0, float("nan"), 1e300]),
    TEXTS,
)
ODD = st.sampled_from(
    [b"bytes", float("inf"), (1,), [1], {}, object(), 1j, np.float32(0.1), np.datetime64("NaT"), pd.NaT, pd.NA]
)
COLUMN = st.lists(PLAIN, max_size=6) | st.lists(PLAIN | ODD, max_size=4)
TABLE = st.integers(0, 5).flatmap(
    lambda rows: st.fixed_dictionaries({c: st.lists(PLAIN, min_size=rows, max_size=rows) for c in ("lake", "season")})
)
ANY_TABLE = TABLE | st.fixed_dictionaries({"lake": COLUMN, "season": COLUMN}) | st.dictionaries(TEXTS, COLUMN) | JSON


def containers(column: list[Any]) -> list[Any]:
    series = pd.Series(column, dtype=object)
    array = np.empty(len(column), object)
    array[:] = column
    return [column, tuple(column), array, series]


class Encoding(RuleBasedStateMachine):
    """Whatever is done, known labels keep their meaning, and a call that fails changes nothing."""

    encoders = Bundle("encoders")

    def __init__(self) -> None:
        super().__init__()
        self.made: list[tuple[CategoryEncoder, dict[str, Any] | None]] = []

    def _keep(self, encoder: CategoryEncoder) -> CategoryEncoder:
        self.made.append((encoder, state_of(encoder)))
        return encoder

    def _attempt(self, encoder: CategoryEncoder, call: Any) -> bool:
        before = state_of(encoder)
        done = tried(call)
        self.made = [(e, state_of(e) if e is encoder else s) for e, s in self.made]
        if done is None:
            assert state_of(encoder) == before
        return done is not None

    @rule(target=encoders)
    def new(self) -> CategoryEncoder:
        return self._keep(CategoryEncoder(["lake", "season"]))

    @rule(encoder=encoders, table=ANY_TABLE, how=st.sampled_from(["fit", "partial_fit"]))
    def learn(self, encoder: CategoryEncoder, table: Any, how: str) -> None:
        rows = before = 0
        if how == "partial_fit" and state_of(encoder) is not None:
            before = int(encoder.counts["lake"].sum())
        if self._attempt(encoder, lambda: getattr(encoder, how)(table)):
            rows = len(table["lake"])
            assert int(encoder.counts["lake"].sum()) == before + rows

    @rule(encoder=encoders, other=encoders)
    def merge(self, encoder: CategoryEncoder, other: CategoryEncoder) -> None:
        known = [] if state_of(other) is None else other.vocabularies["lake"].labels
        if self._attempt(encoder, lambda: encoder.merge(copy.deepcopy(other))) and known:
            assert (encoder.vocabularies["lake"].encode(list(known)) > 0).all()

    @rule(encoder=encoders, other=JSON)
    def merge_something_else(self, encoder: CategoryEncoder, other: Any) -> None:
        assert not self._attempt(encoder, lambda: encoder.merge(other))

    @rule(target=encoders, encoder=encoders)
    def save_and_load(self, encoder: CategoryEncoder) -> CategoryEncoder:
        text = tried(encoder.to_json)
        if text is None:
            return self._keep(CategoryEncoder(["lake", "season"]))
        again = CategoryEncoder.from_json(text)
        assert state_of(again) == state_of(encoder)
        assert "\ud800" not in text  # as JSON escapes it: the text can be written to any file
        return self._keep(again)

    @rule(encoder=encoders, table=ANY_TABLE)
    def transform(self, encoder: CategoryEncoder, table: Any) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UnseenCategoryWarning)
            ids = tried(lambda: encoder.transform(table))
        if ids is None:
            return
        for column, cardinality in encoder.cardinalities.items():
            assert ids[column].dtype == torch.int64
            assert ids[column].shape == (len(table[column]),)
            assert not len(ids[column]) or 0 <= int(ids[column].min()) <= int(ids[column].max()) < cardinality
        labels = encoder.inverse_transform(ids)
        for column, column_labels in labels.items():
            for given_, label in zip(table[column], column_labels, strict=True):
                # As Python compares, or unknown: never another category.
                assert label is None or given_ == label

    @invariant()
    def all_are_whole(self) -> None:
        for encoder, state in self.made:
            assert state_of(encoder) == state
            if state is not None:
                for column, vocabulary in encoder.vocabularies.items():
                    assert len(encoder.counts[column]) == len(vocabulary)
                    assert vocabulary.encode(list(vocabulary.labels)).tolist() == list(range(1, len(vocabulary)))


def state_of(encoder: CategoryEncoder) -> dict[str, Any] | None:
    """What an encoder knows; None before the first fit."""
    try:
        return encoder.to_dict()
    except RuntimeError:
        return None


Encoding.TestCase.settings = examples(15)
TestEncoding = Encoding.TestCase


@examples(40)
@given(column=COLUMN)
def test_a_column_in_any_container(column: list[Any]) -> None:
    """The same labels, or the same refusal, from a list, an array and a Series."""
    found = [tried(lambda values=values: Vocabulary.from_labels(values)) for values in containers(column)]  # type: ignore[misc]
    assert all(type(each) is type(found[0]) for each in found)
    if found[0] is not None:
        assert len({each.labels for each in found if each is not None}) == 1
        for values in containers(column):
            ids = found[0].encode(values)
            assert (ids > 0).tolist() == [not _is_missing(value) for value in column]


def _is_missing(value: Any) -> bool:
    return value is None or value is pd.NA or bool(value != value)


def test_texts_that_look_alike_are_told_apart() -> None:
    """Unicode has two ways to write é; which is meant is for whoever wrote the table."""
    composed, decomposed = "é", unicodedata.normalize("NFD", "é")
    vocabulary = Vocabulary.from_labels([composed, decomposed, " a", "a", ""])
    assert len(vocabulary.labels) == 5


@examples(40)
@given(value=JSON | st.dictionaries(st.sampled_from(["format", "type", "columns"]), JSON))
def test_an_encoder_from_any_data(value: Any) -> None:
    encoder = tried(lambda: CategoryEncoder.from_dict(value))
    if encoder is not None:
        assert CategoryEncoder.from_dict(encoder.to_dict()).to_dict() == encoder.to_dict()


WHOLE = CategoryEncoder(["lake", "season"]).fit({"lake": ["é", "a", None], "season": [1, 2.5, True]}).to_json()


@examples(60)
@given(content=mutated(WHOLE.encode()))
def test_an_encoder_from_json_with_some_bytes_changed(content: bytes) -> None:
    text = content.decode(errors="surrogateescape")
    encoder = tried(lambda: CategoryEncoder.from_json(text))
    if encoder is not None:
        assert CategoryEncoder.from_json(encoder.to_json()).to_dict() == encoder.to_dict()


@pytest.mark.parametrize("count", [2**63, -1, 1.0, True, None, "1", HUGE])
def test_a_count_that_is_none(count: Any) -> None:
    column = {"name": "lake", "labels": ["a"], "counts": [0, count]}
    with pytest.raises(ValueError, match="counts of the column 'lake' must be a list of 2 non-negative integers"):
        CategoryEncoder.from_dict({"format": 1, "type": "CategoryEncoder", "columns": [column]})
