"""Labels learned in parts: the same as those learned at once, whatever the order."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from reghead.categories import CategoryEncoder

LABELS = st.one_of(st.none(), st.integers(0, 3), st.sampled_from(["0", "a", "b"]), st.sampled_from([True, 1.5]))
ROWS = st.lists(st.tuples(LABELS, LABELS), max_size=12)


def table(rows: list[tuple[object, object]]) -> dict[str, list[object]]:
    return {"location": [row[0] for row in rows], "season": [row[1] for row in rows]}


def new() -> CategoryEncoder:
    return CategoryEncoder(["location", "season"])


def fitted(rows: list[tuple[object, object]]) -> CategoryEncoder:
    return new().fit(table(rows))


@given(parts=st.lists(ROWS, min_size=1, max_size=4), data=st.data())
def test_parts_in_any_order_are_one_fit(parts: list[list[tuple[object, object]]], data: st.DataObject) -> None:
    whole = fitted([row for part in parts for row in part])
    encoder = new()
    for part in data.draw(st.permutations(parts)):
        encoder.partial_fit(table(part))
    # Equal labels such as 1 and True count as one, and which of them names it may be that which came first.
    assert encoder.cardinalities == whole.cardinalities
    for column in whole.columns:
        assert encoder.vocabularies[column].labels == whole.vocabularies[column].labels
        assert torch.equal(encoder.counts[column], whole.counts[column])


@given(left=ROWS, right=ROWS)
def test_merging_is_symmetric_and_leaves_the_other_as_it_was(
    left: list[tuple[object, object]], right: list[tuple[object, object]]
) -> None:
    other = fitted(right)
    before = other.to_dict()
    merged, turned = fitted(left).merge(other), fitted(right).merge(fitted(left))
    assert merged.cardinalities == turned.cardinalities
    assert all(torch.equal(merged.counts[column], turned.counts[column]) for column in merged.columns)
    assert other.to_dict() == before


def test_ids_are_those_of_all_labels_sorted_and_a_label_that_comes_later_moves_others() -> None:
    encoder = fitted([("B", 1), ("D", 1)])
    assert encoder.transform(table([("B", 1), ("D", 1)]))["location"].tolist() == [1, 2]
    encoder.partial_fit(table([("A", 2), ("C", 1), (None, 1)]))
    assert encoder.transform(table([("B", 1), ("D", 1)]))["location"].tolist() == [2, 4]
    assert encoder.counts["location"].tolist() == [1, 1, 1, 1, 1]
    assert encoder.counts["season"].tolist() == [0, 4, 1]


def test_an_encoder_that_has_seen_nothing_changes_nothing() -> None:
    assert fitted([("A", 1)]).merge(new()).to_dict() == fitted([("A", 1)]).to_dict()
    assert new().merge(fitted([("A", 1)])).to_dict() == fitted([("A", 1)]).to_dict()
    with pytest.raises(RuntimeError, match="has no labels yet; call fit"):
        _ = new().merge(new()).cardinalities


def test_a_column_that_is_missing_throughout_has_no_label_until_one_comes() -> None:
    encoder = new().partial_fit(table([(None, 1), (None, 2)]))
    assert encoder.cardinalities == {"location": 1, "season": 3}
    encoder.partial_fit(table([("A", 2)]))
    assert encoder.counts["location"].tolist() == [2, 1]


def test_what_cannot_be_merged_is_told_and_changes_nothing() -> None:
    encoder = fitted([("A", 1)])
    with pytest.raises(TypeError, match="merge needs a CategoryEncoder, got dict"):
        encoder.merge({})  # type: ignore[arg-type]
    with pytest.raises(
        ValueError, match=r"encoders of the same columns, got \['location', 'season'\] and \['season'\]"
    ):
        encoder.merge(CategoryEncoder(["season"]).fit({"season": [1]}))
    with pytest.raises(ValueError, match="table needs the column 'season'"):
        encoder.partial_fit({"location": ["A"]})
    assert encoder.to_dict() == fitted([("A", 1)]).to_dict()


def test_without_a_process_group_the_encoder_says_what_to_do() -> None:
    with pytest.raises(RuntimeError, match=r"all_reduce needs a process group; call torch\.distributed\.init_process"):
        fitted([("A", 1)]).all_reduce()
