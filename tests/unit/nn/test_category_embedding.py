"""Embeddings of categories: the unknown, what training has seen, and names and ids of every kind."""

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.testing import assert_close

from _ranks import all_reduce
from reghead.nn import CategoryEmbedding, ConditionalScaler

COLUMNS = {"location": 4, "season": 3}


def at(**ids: list[int]) -> dict[str, Tensor]:
    return {column: torch.tensor(i) for column, i in ids.items()}


def test_the_unknown_embeds_to_exactly_zero_and_has_no_parameter() -> None:
    embedding = CategoryEmbedding(COLUMNS, 5)
    assert embedding(at(location=[0], season=[0])).tolist() == [[0.0] * 10]
    assert embedding(at(location=[0, 2], season=[1, 0]))[0, :5].tolist() == [0.0] * 5
    assert sorted(tuple(p.shape) for p in embedding.parameters()) == [(2, 5), (3, 5)]


def test_known_rows_start_standard_normal_and_distinct() -> None:
    torch.manual_seed(0)
    table = CategoryEmbedding({"a": 1001}, 50)({"a": torch.arange(1, 1001)})
    assert abs(table.mean().item()) < 0.02
    assert abs(table.std().item() - 1) < 0.02
    assert (torch.pdist(table[:100]) > 1).all()


def test_the_output_is_the_columns_side_by_side_sorted_by_name() -> None:
    embedding = CategoryEmbedding({"season": 3, "location": 4}, 2)
    got = embedding(at(season=[1, 2], location=[3, 1]))
    location, season = embedding.get_parameter("weight_location"), embedding.get_parameter("weight_season")
    assert_close(got, torch.cat([location[[2, 0]], season[[0, 1]]], dim=-1))
    assert embedding.embedding_features == 4


def test_the_order_of_the_columns_does_not_matter() -> None:
    one, other = CategoryEmbedding({"a": 3, "b": 4}, 2), CategoryEmbedding({"b": 4, "a": 3}, 2)
    other.load_state_dict(one.state_dict())
    assert torch.equal(one(at(a=[1, 2], b=[3, 0])), other(at(b=[3, 0], a=[1, 2])))


def test_a_context_of_some_columns() -> None:
    embedding, ids = CategoryEmbedding({"a": 3, "b": 4, "c": 5}, 2), at(a=[1, 2], b=[3, 1], c=[4, 2])
    whole = embedding(ids)
    assert torch.equal(embedding.context(ids, ["c", "a"]).dense(), whole[:, [0, 1, 4, 5]])
    assert torch.equal(embedding.context({"b": ids["b"]}, ["b"]).dense(), whole[:, 2:4])
    with pytest.raises(ValueError, match=r"names the column 'd', which is not among the categorical columns"):
        embedding.context(ids, ["d"])


@pytest.mark.parametrize("shape", [(), (0,), (1,), (3,), (2, 3)])
def test_ids_of_any_shape(shape: tuple[int, ...]) -> None:
    ids = {c: torch.ones(shape, dtype=torch.int64) for c in COLUMNS}
    assert CategoryEmbedding(COLUMNS, 2)(ids).shape == (*shape, 4)


# What training has seen


def test_every_id_is_known_until_training_rows_are_told() -> None:
    assert (CategoryEmbedding({"a": 4}, 3)({"a": torch.arange(1, 4)}).abs().sum(-1) > 0).all()


def test_an_id_without_training_rows_is_unknown_and_counts_accumulate() -> None:
    embedding = CategoryEmbedding({"a": 5}, 3)
    before = embedding({"a": torch.arange(5)})
    embedding.observe(at(a=[1, 1, 0]))
    embedding.observe(at(a=[3, 1]))
    assert embedding.get_buffer("counts_a").tolist() == [1, 3, 0, 1, 0]
    after = embedding({"a": torch.arange(5)})
    assert torch.equal(after[[1, 3]], before[[1, 3]])
    assert after[[0, 2, 4]].tolist() == [[0.0] * 3] * 3


def test_an_unseen_id_is_given_no_gradient() -> None:
    embedding = CategoryEmbedding({"a": 3}, 2)
    embedding.observe(at(a=[1]))
    embedding({"a": torch.arange(3)}).sum().backward()
    grad = embedding.get_parameter("weight_a").grad
    assert grad is not None
    assert grad.tolist() == [[1, 1], [0, 0]]


def test_counts_travel_with_the_state_and_survive_casts() -> None:
    embedding, other = CategoryEmbedding({"a": 3}, 2), CategoryEmbedding({"a": 3}, 2)
    embedding.observe({"a": torch.ones(300, dtype=torch.int64)})
    other.load_state_dict(embedding.state_dict())
    other.bfloat16()
    assert other.get_buffer("counts_a").tolist() == [0, 300, 0]


def test_observing_a_missing_column_changes_nothing() -> None:
    embedding = CategoryEmbedding(COLUMNS, 2)
    with pytest.raises(ValueError, match="needs the column 'season' in categories"):
        embedding.observe(at(location=[1]))
    assert embedding.get_buffer("counts_location").tolist() == [-1] * 4


def test_observing_takes_ids_of_any_shape_and_none_at_all() -> None:
    embedding = CategoryEmbedding({"a": 3}, 2)
    embedding.observe({"a": torch.zeros(0, dtype=torch.int64)})
    assert embedding.get_buffer("counts_a").tolist() == [0, 0, 0]
    embedding.observe({"a": torch.tensor([[1, 2], [2, 2]], dtype=torch.int32)})
    assert embedding.get_buffer("counts_a").tolist() == [0, 1, 3]


# Several processes


@pytest.mark.skipif(not dist.is_available(), reason="torch was built without distributed")
@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([[1, 1, 3], [3]], [0, 2, 0, 2]),
        ([[0], [1], [2, 0]], [2, 1, 1, 0]),
        ([[], [2]], [0, 0, 1, 0]),
        ([[], []], [0, 0, 0, 0]),
        ([None, [2, 2]], [0, 0, 2, 0]),
        ([None, []], [0, 0, 0, 0]),
        ([None, None], [-1, -1, -1, -1]),
        ([None], [-1, -1, -1, -1]),
        ([[1]], [0, 1, 0, 0]),
    ],
)
def test_what_any_process_has_seen_is_known_to_all(
    rows: list[list[int] | None], expected: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """None is a process that was told nothing; where none was told, every id stays known."""
    parts = [CategoryEmbedding({"a": 4, "b": 2}, 2) for _ in rows]
    for part, seen in zip(parts, rows, strict=True):
        if seen is not None:
            part.observe({"a": torch.tensor(seen, dtype=torch.int64), "b": torch.ones(len(seen), dtype=torch.int64)})
    results = all_reduce(parts, monkeypatch)
    assert all(result is part for result, part in zip(results, parts, strict=True))
    told = sum(map(len, filter(None, rows)))
    for part in parts:
        assert part.get_buffer("counts_a").tolist() == expected
        assert part.get_buffer("counts_b").tolist() == ([-1, -1] if expected[0] < 0 else [0, told])


@pytest.mark.skipif(not dist.is_available(), reason="torch was built without distributed")
@pytest.mark.parametrize("other", [{"a": 5}, {"b": 4}, {"a": 4, "b": 2}])
def test_other_columns_on_another_process_are_refused_on_both(
    other: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = [CategoryEmbedding({"a": 4}, 2), CategoryEmbedding(other, 2)]
    message = "all_reduce needs the same CategoryEmbedding on every rank, but their columns or cardinalities differ"
    assert [str(error) for error in all_reduce(parts, monkeypatch)] == [message] * 2
    assert parts[0].get_buffer("counts_a").tolist() == [-1] * 4


def test_counts_are_summed_over_processes_alone() -> None:
    with pytest.raises(RuntimeError, match=r"all_reduce needs a process group; call torch\.distributed\.init_process"):
        CategoryEmbedding(COLUMNS, 2).all_reduce()


# Names


@pytest.mark.parametrize(
    "names",
    [
        ("type", "keys", "training", "weight"),
        ("a.b", "a%2Eb", "a%b", "a_b"),
        ("cardinalities", "embedding_dim", "forward", "parameters"),
        ("counts", "counts_x", "weight_x", "x"),
        ("Höhe über NN", "site id", "__class__", "_"),
    ],
)
def test_column_names_of_every_kind_stay_apart(names: tuple[str, ...]) -> None:
    cardinalities = {name: 2 + i for i, name in enumerate(names)}
    for layer in (CategoryEmbedding(cardinalities, 2), ConditionalScaler(cardinalities, 1)):
        clone = type(layer)(cardinalities, 2 if isinstance(layer, CategoryEmbedding) else 1)
        clone.load_state_dict(layer.state_dict())
        layer.observe({name: torch.full((i + 1,), 1) for i, name in enumerate(names)})
        assert sorted(b[1].item() for b in layer.buffers()) == list(range(1, len(names) + 1))
    embedding = CategoryEmbedding(cardinalities, 2)
    for position, name in enumerate(sorted(names)):
        ids = {n: torch.tensor([int(n == name)]) for n in names}
        used = embedding(ids)[0].nonzero().flatten().tolist()
        assert used == [2 * position, 2 * position + 1]


# Ids


def test_a_column_with_the_unknown_alone_embeds_to_zero() -> None:
    embedding = CategoryEmbedding({"a": 1, "b": 3}, 2)
    assert embedding(at(a=[0, 0], b=[1, 2]))[:, :2].tolist() == [[0, 0], [0, 0]]
    embedding(at(a=[0, 0], b=[1, 2])).sum().backward()
    with pytest.raises(ValueError, match=r"must hold ids in \[0, 1\), got 1"):
        embedding(at(a=[1], b=[1]))


@pytest.mark.parametrize("wrong", [4, -1, 10**12])
def test_an_id_out_of_range_raises_in_eager_mode_on_the_cpu(wrong: int) -> None:
    with pytest.raises(ValueError, match=rf"categories\['a'\] must hold ids in \[0, 4\), got {wrong}; an unseen label"):
        CategoryEmbedding({"a": 4}, 2)(at(a=[1, wrong]))


def test_an_id_out_of_range_is_read_as_unknown_where_values_are_not_looked_at() -> None:
    embedding = CategoryEmbedding({"a": 4}, 2)
    compiled = torch.compile(embedding, fullgraph=True, backend="eager")
    got = compiled(at(a=[1, 4, -1, 10**12]))
    assert torch.equal(got[0], embedding(at(a=[1]))[0])
    assert got[1:].tolist() == [[0, 0]] * 3
    vmapped = torch.func.vmap(lambda i: embedding({"a": i}))(torch.tensor([1, 4, -1]))
    assert torch.equal(vmapped, got[:3])


@pytest.mark.parametrize("columns", [{"a": 5}, {"a": 4, "b": 3}, {"a": 40, "b": 50}, {"a": 40, "b": 50, "c": 2}])
@pytest.mark.parametrize("shape", [(), (6,), (2, 3), (3, 1, 2), (2, 0, 3)])
def test_ids_of_any_shape_are_embedded_one_by_one(columns: dict[str, int], shape: tuple[int, ...]) -> None:
    embedding, rng = CategoryEmbedding(columns, 2), torch.Generator().manual_seed(0)
    weight, offset = torch.randn(3, 2 * len(columns), generator=rng), torch.tensor([1.0, 2.0, 3.0])
    ids = {column: torch.randint(0, n, shape, generator=rng) for column, n in columns.items()}
    padded = [torch.cat([torch.zeros(1, 2), embedding.get_parameter(f"weight_{column}")]) for column in columns]
    expected = torch.cat([table[ids[column]] for table, column in zip(padded, columns, strict=True)], dim=-1)
    assert_close(embedding(ids), expected)
    context = embedding.context(ids)
    assert_close(context.dense(), expected)
    assert_close(context.project(weight), expected @ weight.t())
    assert_close(context.project(weight, offset), expected @ weight.t() + offset)


def test_int32_ids_are_ids_too() -> None:
    embedding = CategoryEmbedding(COLUMNS, 2)
    ids = at(location=[1, 3], season=[2, 0])
    assert torch.equal(embedding({c: i.int() for c, i in ids.items()}), embedding(ids))


@pytest.mark.parametrize(
    ("categories", "error", "message"),
    [
        (
            {"a": torch.tensor([1.0])},
            TypeError,
            r"categories\['a'\] must be a tensor of integer ids .*got torch.float32",
        ),
        ({"a": torch.tensor([True])}, TypeError, "must be a tensor of integer ids .*got torch.bool"),
        ({"a": [1, 2]}, TypeError, "must be a tensor of integer ids .*got list; CategoryEncoder makes them"),
        ({"a": None}, TypeError, "must be a tensor of integer ids .*got NoneType"),
        ({"b": torch.tensor([1])}, ValueError, "needs the column 'a' in categories, got 'b'.*pass zeros for unknown"),
        ({}, ValueError, "needs the column 'a' in categories, got none"),
        (None, TypeError, "CategoryEmbedding needs categories: .*got None; pass id 0 for unknown rows"),
        (torch.tensor([1]), TypeError, "CategoryEmbedding needs categories: .*got Tensor"),
    ],
)
def test_categories_that_cannot_be_read(categories: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        CategoryEmbedding({"a": 4}, 2)(categories)


def test_columns_that_are_not_asked_for_are_ignored() -> None:
    embedding = CategoryEmbedding({"a": 4}, 2)
    ids = at(a=[1, 2])
    assert torch.equal(embedding({**ids, "other": torch.tensor([99.0])}), embedding(ids))


@pytest.mark.parametrize("columns", [{"a": 3, "b": 3}, {"a": 40, "b": 50}])
def test_columns_with_ids_of_different_shapes_are_not_broadcast(columns: dict[str, int]) -> None:
    context = CategoryEmbedding(columns, 2).context({"a": torch.tensor([1, 1]), "b": torch.ones(2, 2).long()})
    for use in (context.dense, lambda: context.project(torch.ones(3, 4))):
        with pytest.raises(ValueError, match=r"the ids of all columns must have one shape, got \[\(2,\), \(2, 2\)\]"):
            use()


@pytest.mark.parametrize(
    ("cardinalities", "error", "message"),
    [
        ({}, ValueError, "cardinalities must name at least one column"),
        ({"a": 0}, ValueError, r"cardinalities\['a'\] must be at least 1, got 0"),
        ({"a": 2.0}, TypeError, r"cardinalities\['a'\] must be an integer, got 2.0"),
        ({"": 2}, TypeError, "must have column names"),
        (["a"], TypeError, "cardinalities must map each column to its number of ids, id 0 included"),
    ],
)
def test_cardinalities_that_cannot_be(cardinalities: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        CategoryEmbedding(cardinalities, 2)  # type: ignore[arg-type]


def test_its_width_must_be_positive() -> None:
    with pytest.raises(ValueError, match="embedding_dim must be at least 1, got 0"):
        CategoryEmbedding(COLUMNS, 0)


def test_repr_names_columns_and_width() -> None:
    assert repr(CategoryEmbedding({"b": 3, "a": 2}, 4)) == "CategoryEmbedding({'a': 2, 'b': 3}, embedding_dim=4)"
