"""Scales and biases per category: the start, the unknown, one and two columns by hand, cells, quantiles."""

import itertools
import re

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from reghead.nn import ConditionalScaler, LearnableScale

F64 = torch.float64
FEW, MANY = {"a": 4, "b": 3}, {"a": 40, "b": 50}
OPTIONS = [
    {"compose": compose, "scale": scale, "cells": cells, "positive": positive}
    for compose, scale, cells, positive in itertools.product(("sequential", "additive"), *[(False, True)] * 3)
]


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def at(**ids: list[int]) -> dict[str, Tensor]:
    return {column: torch.tensor(i) for column, i in ids.items()}


def filled(*args: object, seed: int = 0, **options: object) -> ConditionalScaler:
    layer = ConditionalScaler(*args, dtype=F64, **options)  # type: ignore[arg-type]
    for i, parameter in enumerate(layer.parameters()):
        parameter.data = 0.3 * draw(seed + i, *parameter.shape)
    return layer


def put(layer: torch.nn.Module, **rows: list[float]) -> None:
    for name, values in rows.items():
        parameter = layer.get_parameter(name)
        parameter.data = torch.tensor(values, dtype=parameter.dtype).reshape(parameter.shape)


# The start, and the unknown


@pytest.mark.parametrize("options", OPTIONS)
def test_it_starts_as_the_identity_bit_for_bit(options: dict[str, object]) -> None:
    x = draw(0, 12, 2).float()
    ids = at(a=[0, 1, 2, 3] * 3, b=[0, 1, 2] * 4)
    assert torch.equal(ConditionalScaler(FEW, 2, **options)(x, ids), x)  # type: ignore[arg-type]
    assert torch.equal(LearnableScale(2)(x), x)
    assert torch.equal(LearnableScale(2, positive=True)(x), x)


@pytest.mark.parametrize("options", OPTIONS)
def test_rows_unknown_in_every_column_are_left_alone_whatever_the_parameters(options: dict[str, object]) -> None:
    x = draw(0, 3, 2)
    assert torch.equal(filled(FEW, 2, **options)(x, at(a=[0, 0, 0], b=[0, 0, 0])), x)


def test_the_unknown_never_moves_while_known_rows_do() -> None:
    layer = ConditionalScaler({"a": 3}, 1)
    optimizer = torch.optim.AdamW(layer.parameters(), lr=0.05, weight_decay=0.2)
    x, ids, target = draw(0, 9, 1).float(), at(a=[0, 1, 2] * 3), torch.full((9, 1), 5.0)
    for _ in range(500):
        optimizer.zero_grad()
        (layer(x, ids) - target).square().mean().backward()
        optimizer.step()
    got = layer(x, ids)
    assert torch.equal(got[0::3], x[0::3])
    assert ((got - x).reshape(3, 3)[:, 1:].abs() > 0.5).all()


def test_weight_decay_pulls_to_the_identity() -> None:
    layer = filled(FEW, 2)
    optimizer = torch.optim.AdamW(layer.parameters(), lr=0.1, weight_decay=1.0)
    for _ in range(300):
        optimizer.zero_grad()
        (layer(draw(0, 1, 2), at(a=[1], b=[2])) * 0).sum().backward()
        optimizer.step()
    assert_close(layer(draw(0, 1, 2), at(a=[1], b=[2])), draw(0, 1, 2))


@pytest.mark.parametrize("sizes", [FEW, MANY])
def test_an_id_without_training_rows_is_unknown_in_columns_and_cells(sizes: dict[str, int]) -> None:
    layer = filled(sizes, 2, cells=True)
    layer.observe(at(a=[1, 2], b=[1, 1]))
    x = draw(0, 4, 2)
    got = layer(x, at(a=[3, 1, 3, 1], b=[2, 2, 1, 1]))
    expected = layer(x, at(a=[0, 1, 0, 1], b=[0, 0, 1, 1]))
    assert torch.equal(got, expected)
    assert torch.equal(got[0], x[0])
    assert not torch.equal(got[3], x[3])


# By hand


def test_one_column_by_hand() -> None:
    layer = ConditionalScaler({"a": 3}, 2)
    put(layer, scale_a=[1, 0, -0.5, 2], bias_a=[0, 3, 10, -1])
    x = torch.tensor([[2.0, 4.0]] * 3)
    # Category 1 scales by (2, 1) and adds (0, 3); category 2 scales by (0.5, 3) and adds (10, -1).
    assert layer(x, at(a=[0, 1, 2])).tolist() == [[2, 4], [4, 7], [11, 11]]


@pytest.mark.parametrize(
    ("order", "compose", "expected"),
    [
        (("a", "b"), "sequential", (5 * 2 + 3) * 4 + 7),
        (("b", "a"), "sequential", (5 * 4 + 7) * 2 + 3),
        (("a", "b"), "additive", 5 * (1 + 1 + 3) + 3 + 7),
        (("b", "a"), "additive", 5 * (1 + 1 + 3) + 3 + 7),
    ],
)
def test_two_columns_by_hand(order: tuple[str, ...], compose: str, expected: float) -> None:
    layer = ConditionalScaler(dict.fromkeys(order, 2), 1, compose=compose)  # type: ignore[arg-type]
    put(layer, scale_a=[1], bias_a=[3], scale_b=[3], bias_b=[7])
    assert layer(torch.tensor([[5.0]]), at(a=[1], b=[1])).item() == expected
    assert layer(torch.tensor([[5.0]]), at(a=[1], b=[0])).item() == 13


def test_positive_scales_multiply_in_both_compositions() -> None:
    for compose in ("sequential", "additive"):
        layer = ConditionalScaler({"a": 2, "b": 2}, 1, positive=True, compose=compose)  # type: ignore[arg-type]
        put(layer, scale_a=[0.5], scale_b=[-2.0])
        assert_close(layer(torch.tensor([[5.0]]), at(a=[1], b=[1])), 5 * torch.tensor([[-1.5]]).exp())


def test_intercepts_per_column_and_cell_by_hand() -> None:
    layer = ConditionalScaler({"a": 3, "b": 3}, 1, scale=False, cells=True)
    put(layer, bias_a=[10, 20], bias_b=[1, 2], cell_bias=[100, 200, 300, 400])
    got = layer(torch.zeros(9, 1), at(a=[0, 0, 0, 1, 1, 1, 2, 2, 2], b=[0, 1, 2] * 3))
    assert got.flatten().tolist() == [0, 1, 2, 10, 111, 212, 20, 321, 422]
    assert sorted(name for name, _ in layer.named_parameters()) == ["bias_a", "bias_b", "cell_bias"]


@pytest.mark.parametrize("sizes", [{"a": 5}, FEW, MANY, {"a": 20, "b": 30, "c": 2}])
@pytest.mark.parametrize("positive", [False, True])
def test_sequential_is_a_loop_over_columns_and_rows(sizes: dict[str, int], positive: bool) -> None:
    layer, x = filled(sizes, 2, positive=positive), draw(9, 11, 2)
    ids = {column: torch.arange(11) * 3 % n for column, n in sizes.items()}
    got = layer(x, ids)
    for n, d in itertools.product(range(11), range(2)):
        value = x[n, d]
        for column in sizes:
            i = int(ids[column][n]) - 1
            if i >= 0:
                delta, bias = (layer.get_parameter(f"{kind}_{column}")[i, d] for kind in ("scale", "bias"))
                value = value * (delta.exp() if positive else 1 + delta) + bias
        assert_close(got[n, d], value)


@pytest.mark.parametrize("options", OPTIONS)
def test_few_and_many_combinations_agree_in_values_and_gradients(options: dict[str, object]) -> None:
    # The same rows, once in tables that are composed before the gather and once in tables too large for that.
    small, large = filled(FEW, 2, **options), filled(MANY, 2, **options)
    for name, parameter in small.named_parameters():
        index = tuple(slice(n) for n in parameter.shape)
        large.get_parameter(name).data[index] = parameter.data
    ids, x = at(a=[0, 1, 2, 3, 3, 1], b=[1, 2, 0, 1, 2, 2]), draw(5, 6, 2)
    outputs = [layer(x, ids) for layer in (small, large)]
    assert_close(*outputs)
    for layer, out in zip((small, large), outputs, strict=True):
        (out * draw(6, 6, 2)).sum().backward()
        assert all(p.grad is not None for p in layer.parameters())
    for name, parameter in small.named_parameters():
        grad = large.get_parameter(name).grad
        assert grad is not None
        index = tuple(slice(n) for n in parameter.shape)
        assert_close(grad[index], parameter.grad)
        assert_close(grad.abs().sum(), parameter.grad.abs().sum())  # type: ignore[union-attr]


# Quantiles, penalty, shapes


@pytest.mark.parametrize("compose", ["sequential", "additive"])
@pytest.mark.parametrize("sizes", [FEW, MANY])
def test_the_order_of_quantiles_survives_positive_scales(compose: str, sizes: dict[str, int]) -> None:
    layer = filled(sizes, 2, compose=compose, positive=True, output_dim=-2)
    for parameter in layer.parameters():
        parameter.data *= 10
    x = draw(0, 6, 2, 5).sort(-1).values
    got = layer(x, at(a=[0, 1, 2, 3, 3, 1], b=[1, 2, 0, 1, 2, 2]))
    assert (got.diff(dim=-1) >= 0).all()
    # Each level is moved as a point prediction would be.
    points = ConditionalScaler(sizes, 2, compose=compose, positive=True, dtype=F64)  # type: ignore[arg-type]
    points.load_state_dict(layer.state_dict())
    for level in range(5):
        assert_close(got[..., level], points(x[..., level], at(a=[0, 1, 2, 3, 3, 1], b=[1, 2, 0, 1, 2, 2])))


def test_outputs_and_quantiles_are_not_confused_where_sizes_coincide() -> None:
    layer = ConditionalScaler({"a": 2}, 2, output_dim=-2)
    put(layer, bias_a=[1, 10])
    assert layer(torch.zeros(2, 2, 2), at(a=[1, 0])).tolist() == [[[1, 1], [10, 10]], [[0, 0], [0, 0]]]
    scale = LearnableScale(2, output_dim=-2)
    put(scale, bias=[1, 10])
    assert scale(torch.zeros(1, 2, 2)).tolist() == [[[1, 1], [10, 10]]]


def test_the_penalty_is_the_sum_of_squares_and_zero_at_the_start() -> None:
    assert ConditionalScaler(FEW, 2, cells=True).penalty().item() == 0
    layer = filled(FEW, 2, cells=True)
    flat = [v for p in layer.parameters() for v in p.flatten().tolist()]
    assert len(flat) == 2 * 2 * (3 + 2 + 6)
    assert_close(layer.penalty().item(), sum(v * v for v in flat))
    layer.reset_parameters()
    assert layer.penalty().item() == 0
    assert ConditionalScaler({"a": 1}, 1).penalty().item() == 0


@pytest.mark.parametrize("sizes", [FEW, MANY])
def test_ids_of_rows_go_with_every_step_of_a_sequence(sizes: dict[str, int]) -> None:
    layer, x = filled(sizes, 2), draw(0, 3, 5, 2)
    ids = at(a=[1, 0, 3], b=[2, 1, 0])
    assert_close(layer(x, ids), torch.stack([layer(x[:, s], ids) for s in range(5)], dim=1))


@pytest.mark.parametrize("batch", [0, 1])
@pytest.mark.parametrize("options", OPTIONS)
def test_small_batches(batch: int, options: dict[str, object]) -> None:
    for sizes in (FEW, MANY, {"a": 1, "b": 3}):
        layer = ConditionalScaler(sizes, 2, **options)  # type: ignore[arg-type]
        ids = {c: torch.zeros(batch, dtype=torch.int64) for c in sizes}
        assert layer(torch.ones(batch, 2), ids).shape == (batch, 2)


def test_narrow_inputs_keep_their_dtype() -> None:
    x = torch.ones(2, 2, dtype=torch.bfloat16)
    assert ConditionalScaler(FEW, 2)(x, at(a=[1, 2], b=[1, 0])).dtype == torch.bfloat16
    assert LearnableScale(2)(x).dtype == torch.bfloat16


# The learnable scale


def test_the_learnable_scale_by_hand() -> None:
    for positive, factor in ((False, [2.0, 0.5]), (True, [torch.e, torch.tensor(-0.5).exp().item()])):
        layer = LearnableScale(2, positive=positive)
        put(layer, scale=[1.0, -0.5], bias=[3.0, 0.0])
        assert_close(layer(torch.tensor([[5.0, 8.0]])), torch.tensor([[5 * factor[0] + 3, 8 * factor[1]]]))


# Errors


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: ConditionalScaler({}, 1), "cardinalities must name at least one column"),
        (lambda: ConditionalScaler(FEW, 0), "out_features must be at least 1, got 0"),
        (
            lambda: ConditionalScaler(FEW, 1, compose="sum"),
            "compose must be one of 'sequential', 'additive'",
        ),  # type: ignore[arg-type]
        (lambda: ConditionalScaler(FEW, 1, output_dim=0), "output_dim must be one of -1, -2, got 0"),
        (lambda: ConditionalScaler({"a": 3}, 1, cells=True), r"cells needs at least two columns, got \['a'\]"),
        (
            lambda: ConditionalScaler({"a": 2000, "b": 2000}, 1, cells=True),
            "cells would need 4000000 rows, at most 1048576; use fewer columns",
        ),
        (lambda: ConditionalScaler({f"c{i}": 2 for i in range(21)}, 1, cells=True), "cells would need 2097152 rows"),
        (lambda: LearnableScale(0), "out_features must be at least 1, got 0"),
        (lambda: LearnableScale(1, output_dim=1), "output_dim must be one of -1, -2, got 1"),
    ],
)
def test_scalers_that_cannot_be_built(build: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()  # type: ignore[operator]


@pytest.mark.parametrize(
    ("x", "ids", "output_dim", "message"),
    [
        ((4, 3), (4,), -1, r"x must have shape \(\*, D\) with D = 2, got \(4, 3\)"),
        ((4, 1), (4,), -1, r"x must have shape \(\*, D\) with D = 2, got \(4, 1\)"),
        ((4, 3, 5), (4,), -2, r"x must have shape \(\*, D, Q\) with D = 2, got \(4, 3, 5\)"),
        ((2,), (), -2, r"x must have shape \(\*, D, Q\) with D = 2, got \(2,\)"),
        ((), (), -1, r"x must have shape \(\*, D\) with D = 2, got \(\)"),
        ((), (), -2, r"x must have shape \(\*, D, Q\) with D = 2, got \(\)"),
        ((4, 2), (5,), -1, r"categories must have the leading dimensions .*got ids of shape \(5,\)"),
        ((4, 2), (1,), -1, r"categories must have the leading dimensions .*got ids of shape \(1,\)"),
        ((4, 2), (4, 1), -1, r"categories must have the leading dimensions .*got ids of shape \(4, 1\)"),
        ((4, 2, 3), (4, 2), -2, r"categories must have the leading dimensions .*got ids of shape \(4, 2\)"),
    ],
)
@pytest.mark.parametrize("sizes", [FEW, MANY])
def test_shapes_that_do_not_fit(
    x: tuple[int, ...], ids: tuple[int, ...], output_dim: int, message: str, sizes: dict[str, int]
) -> None:
    layer = ConditionalScaler(sizes, 2, output_dim=output_dim)
    with pytest.raises(ValueError, match=message):
        layer(torch.ones(x), {c: torch.ones(ids, dtype=torch.int64) for c in sizes})


@pytest.mark.parametrize("sizes", [FEW, MANY])
def test_columns_with_ids_of_different_shapes_are_not_broadcast(sizes: dict[str, int]) -> None:
    ids = {"a": torch.ones(3, dtype=torch.int64), "b": torch.ones(3, 3, dtype=torch.int64)}
    with pytest.raises(ValueError, match="the ids of all columns must have one shape"):
        ConditionalScaler(sizes, 1)(torch.ones(3, 3, 1), ids)


@pytest.mark.parametrize("output_dim", [-1, -2])
@pytest.mark.parametrize("shape", [(), (2,), (4, 2), (2, 4), (4, 2, 3), (4, 3, 2), (0, 2), (2, 0)])
def test_the_learnable_scale_takes_what_has_its_outputs_where_they_belong(
    shape: tuple[int, ...], output_dim: int
) -> None:
    layer = LearnableScale(2, output_dim=output_dim)
    put(layer, scale=[1.0, 2.0], bias=[10.0, 20.0])
    x = torch.ones(shape)
    if shape[output_dim:][:1] == (2,) and len(shape) >= -output_dim:
        outputs = layer(x).movedim(output_dim, 0)
        assert layer(x).shape == shape
        assert (outputs[0] == 12.0).all()
        assert (outputs[1] == 23.0).all()
    else:
        message = f"x must have D = 2 in dimension {output_dim}, got {shape}"
        with pytest.raises(ValueError, match=re.escape(message)):
            layer(x)


def test_categories_are_needed() -> None:
    with pytest.raises(TypeError, match=r"ConditionalScaler needs categories: .* got None"):
        ConditionalScaler(FEW, 1)(torch.ones(1, 1), None)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="ConditionalScaler needs the column 'b'"):
        ConditionalScaler(FEW, 1)(torch.ones(1, 1), at(a=[1]))
    with pytest.raises(ValueError, match="x must have D = 2 in dimension -1, got"):
        LearnableScale(2)(torch.ones(4, 3))


def test_repr_names_what_is_not_the_default() -> None:
    assert repr(LearnableScale(3, positive=True)) == "LearnableScale(out_features=3, positive=True)"
    assert repr(ConditionalScaler({"a": 2}, 1)) == ("ConditionalScaler({'a': 2}, out_features=1, compose='sequential')")
    assert "scale=False, cells=True, positive=True" in repr(
        ConditionalScaler(FEW, 1, scale=False, cells=True, positive=True)
    )


def test_another_order_of_columns_reads_the_same_cells() -> None:
    first = ConditionalScaler({"b": 3, "a": 3}, 1, scale=False, cells=True)
    with torch.no_grad():
        first.cell_bias.copy_(torch.arange(4.0).reshape(2, 2, 1))
    second = ConditionalScaler({"a": 3, "b": 3}, 1, scale=False, cells=True)
    second.load_state_dict(first.state_dict())
    categories = {"a": torch.tensor([1, 2, 0]), "b": torch.tensor([2, 1, 1])}
    expected = torch.tensor([[1.0], [2.0], [0.0]])  # the axes of the table go by name: a, then b
    for scaler in (first, second):
        assert torch.equal(scaler(torch.zeros(3, 1), categories), expected)
