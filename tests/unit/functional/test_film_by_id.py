"""FiLM from tables of categories: rows are never made, and nothing else changes."""

import io
import warnings

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from reghead.functional import _film as module
from reghead.functional import film, lookup
from reghead.functional._film import film_by_id
from reghead.functional._lookup import BAG_ROWS, sum_by_id


@pytest.fixture
def always(monkeypatch: pytest.MonkeyPatch) -> None:
    """The function of our own for every size, and several chunks of rows."""
    monkeypatch.setattr(module, "WIDE", 1)
    monkeypatch.setattr(module, "CHUNK", 8)


def draw(seed: int, rows: int, cells: int, width: int, dtype: torch.dtype = torch.float64) -> tuple[Tensor, ...]:
    rng = torch.Generator().manual_seed(seed)
    x, gamma, beta = (torch.randn(n, width, generator=rng, dtype=dtype) for n in (rows, cells, cells))
    return x, gamma, beta, torch.randint(cells, (rows,), generator=rng)


def both(x: Tensor, gamma: Tensor, beta: Tensor, ids: Tensor) -> list[list[Tensor]]:
    """Value and gradients of the function of our own, and of plain operations."""
    results = []
    for call in (film_by_id, lambda x, g, b, i: film(x, lookup(g, i), lookup(b, i))):
        inputs = [t.clone().requires_grad_() for t in (x, gamma, beta)]
        out = call(*inputs, ids)
        results.append([out.detach(), *torch.autograd.grad((out * torch.cos(out.detach())).sum(), inputs)])
    return results


@given(seed=st.integers(0, 2**32 - 1), rows=st.integers(1, 12), cells=st.integers(1, 5), width=st.integers(2, 4))
def test_values_and_gradients_are_those_of_gathered_factors(seed: int, rows: int, cells: int, width: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "WIDE", 1)
        patch.setattr(module, "CHUNK", 8)
        ours, plain = both(*draw(seed, rows, cells, width))
    assert_close(ours, plain)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("cells", [3, 2**15 + 1])
def test_so_they_are_for_many_rows(dtype: torch.dtype, cells: int) -> None:
    x, gamma, beta, ids = draw(0, 2 * BAG_ROWS, cells, 33, dtype)
    ours, plain = both(x, gamma, beta, ids)
    assert x.numel() >= module.WIDE
    assert_close(ours, plain, rtol=1e-4, atol=1e-4)


@pytest.mark.usefixtures("always")
@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")  # of torch's own forward mode
def test_second_derivatives_forward_mode_and_no_gradient_asked() -> None:
    x, gamma, beta, ids = draw(0, 5, 3, 2)
    inputs = [t.requires_grad_() for t in (x, gamma, beta)]
    call = lambda x, g, b: film_by_id(x, g, b, ids)  # noqa: E731
    assert torch.autograd.gradcheck(call, inputs, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(call, inputs)
    alone = film_by_id(x.detach(), gamma, beta.detach(), ids)
    (got,) = torch.autograd.grad(alone.sum(), gamma)
    assert_close(got, torch.zeros_like(gamma).index_add(0, ids, x.detach()))


@pytest.mark.usefixtures("always")
def test_transforms_go_round_it() -> None:
    x, gamma, beta, ids = draw(0, 6, 3, 2)
    each = torch.vmap(lambda row, i: film_by_id(row[None], gamma, beta, i[None])[0])(x, ids)
    assert_close(each, film_by_id(x, gamma, beta, ids))
    by_transform = torch.func.grad(lambda g: film_by_id(x, g, beta, ids).sum())(gamma)
    assert_close(by_transform, torch.zeros_like(gamma).index_add(0, ids, x))


@pytest.mark.usefixtures("always")
def test_rows_that_are_not_contiguous_and_sequences() -> None:
    x, gamma, beta, ids = draw(0, 12, 3, 4)
    assert_close(film_by_id(x.t().contiguous().t(), gamma, beta, ids), film_by_id(x, gamma, beta, ids))
    sequences = film_by_id(x.reshape(4, 3, 4), gamma, beta, ids.reshape(4, 3))
    assert_close(sequences.reshape(12, 4), film_by_id(x, gamma, beta, ids))
    one_a_sequence = film_by_id(x.reshape(4, 3, 4), gamma, beta, ids[:4])
    assert_close(one_a_sequence, film_by_id(x.reshape(4, 3, 4), gamma, beta, ids[:4, None].expand(4, 3)))


@given(seed=st.integers(0, 2**32 - 1), number=st.integers(1, 40))
def test_sums_by_id_are_those_of_a_loop(seed: int, number: int) -> None:
    rows, _, _, ids = draw(seed, BAG_ROWS, number, 2)
    expected = torch.stack([rows[ids == i].sum(0) for i in range(number)])
    with torch.no_grad():
        sorted_first = sum_by_id([rows, 2 * rows], ids, number)
        (alone,) = sum_by_id([rows], ids, number)
    assert_close(sorted_first, [expected, 2 * expected])
    assert_close(alone, expected)
    assert_close(sum_by_id([rows], ids, number), [expected])
    assert_close(sum_by_id([rows[:7]], ids[:7], number)[0].sum(0), rows[:7].sum(0))


def test_one_number_a_row_is_looked_up_like_more() -> None:
    table, ids = torch.arange(6.0).reshape(6, 1), torch.tensor([[1, 5], [0, 1]])
    assert lookup(table, ids).tolist() == [[[1.0], [5.0]], [[0.0], [1.0]]]
    assert torch.equal(lookup(table.expand(6, 2), ids)[..., :1], lookup(table, ids))
    assert lookup(table[:, 0], ids).tolist() == [[1.0, 5.0], [0.0, 1.0]]


def test_several_gradients_at_once(always: None) -> None:
    x, gamma, beta, ids = draw(0, 5000, 3, 4)
    inputs = [t.requires_grad_() for t in (x, gamma, beta)]
    out = film_by_id(*inputs, ids)
    sums = torch.stack([out.sum(), out.square().sum()])
    at_once = torch.autograd.grad(
        sums, inputs, torch.eye(2, dtype=sums.dtype), is_grads_batched=True, retain_graph=True
    )
    one_by_one = [torch.autograd.grad(each, inputs, retain_graph=True) for each in sums]
    for found, *expected in zip(at_once, *one_by_one, strict=True):
        assert_close(found, torch.stack(expected))


def test_a_trace_holds_for_other_ids_and_can_be_saved(always: None) -> None:
    x, gamma, beta, ids = draw(0, 12, 3, 4)
    others = draw(1, 20, 3, 4)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a trace is deprecated, and warns of every look at a shape
        traced = torch.jit.trace(film_by_id, (x, gamma, beta, ids))
        torch.jit.save(traced, io.BytesIO())
    assert_close(traced(*others), film_by_id(*others))


def waiting(out: Tensor, *owned: Tensor) -> int:
    """How many numbers wait for the backward pass of ``out``, beside the caller's own tensors."""
    mine, seen, todo = {t.untyped_storage().data_ptr() for t in owned}, {}, [out.grad_fn]
    while todo:
        node = todo.pop()
        if node is not None:
            kept = [getattr(node, name) for name in dir(node) if name.startswith("_saved_") and name[7:8] != "_"]
            kept += getattr(node, "saved_tensors", ())
            for tensor in kept:
                if isinstance(tensor, Tensor) and tensor.untyped_storage().data_ptr() not in mine:
                    seen[tensor.data_ptr()] = tensor.numel()
            todo += [parent for parent, _ in node.next_functions]
    return sum(seen.values())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", [(2**12,), (2**6, 2**6)])
def test_no_factor_of_a_row_waits_for_the_backward_pass(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    drawn = draw(0, 2**12, 3, 16, dtype)
    x, ids = drawn[0].reshape(*shape, 16), drawn[3].reshape(shape)
    x, gamma, beta = (t.requires_grad_() for t in (x, drawn[1], drawn[2]))
    assert x.numel() >= module.WIDE
    assert waiting(film_by_id(x, gamma, beta, ids), x, gamma, beta, ids) == 0
    assert waiting(film(x, lookup(gamma, ids), lookup(beta, ids)), x, gamma, beta, ids) >= x.numel()


@pytest.mark.usefixtures("always")
@pytest.mark.parametrize("of_x", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("of_gamma", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("of_beta", [torch.bfloat16, torch.float32, torch.float64])
def test_dtypes_may_differ(of_x: torch.dtype, of_gamma: torch.dtype, of_beta: torch.dtype) -> None:
    x, gamma, beta, ids = draw(0, 12, 3, 4)
    x, gamma, beta = x.to(of_x), gamma.to(of_gamma), beta.to(of_beta)
    found = film_by_id(x, gamma, beta, ids)
    assert found.dtype == of_x
    assert_close(found, film(x, lookup(gamma, ids), lookup(beta, ids)))


@pytest.mark.parametrize(("rows", "width"), [(10, 3), (5, 8), (5, 9), (7, 1), (1, 20), (16, 2)])
def test_rows_are_gathered_in_pieces_of_a_size(rows: int, width: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHUNK", 8)
    x, ids = torch.arange(float(rows * width)).reshape(rows, width), torch.arange(rows)
    pieces = list(module._chunks(x, ids))
    most = max(1, 8 // width)
    assert [len(part) for part, _ in pieces] == [most] * (rows // most) + [rows % most] * (rows % most > 0)
    assert torch.equal(torch.cat([part for part, _ in pieces]), x)
    assert torch.equal(torch.cat([of_ids for _, of_ids in pieces]), ids)


@pytest.mark.parametrize("number", [1, 3, 2**15 - 1, 2**15, 2**15 + 1, 2**16, 2**16 + 1])
def test_ids_up_to_the_last_are_summed_in_the_order_of_the_rows(number: int) -> None:
    """Around the largest numbers of 16 bits; 2**24 + 1 + 1 is another number than 1 + 1 + 2**24 in float32."""
    ends = torch.tensor([0, 0, number // 2, number - 1, number - 1])
    ids = ends.repeat(BAG_ROWS)
    rows = torch.tensor([1.0, 2.0**24, 2.0**25])[torch.arange(len(ids)) % 3].unsqueeze(-1)
    with torch.no_grad():
        (sums,) = sum_by_id([rows], ids, number)
    expected = torch.zeros(number, 1)
    for i in ends.unique():
        total = torch.zeros(())
        for row in rows[ids == i, 0]:
            total = total + row
        expected[i] = total
    assert torch.equal(sums, expected)
