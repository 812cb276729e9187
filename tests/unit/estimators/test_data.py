"""Batches: every row once an epoch, in an order that no process can change."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from reghead.estimators._data import Data, Lazy, Rows
from reghead.estimators._processes import ALONE, Processes

SIZES = st.lists(st.integers(0, 9), min_size=1, max_size=4)


def chunks(sizes: list[int], processes: Processes = ALONE) -> list[Rows]:
    """Rows numbered through all chunks; what is beside them says the number, too."""
    numbers = torch.arange(sum(sizes)).split(sizes)
    mine = [chunk[processes.share] for chunk in numbers]
    return [Rows(n[:, None].double(), {"id": n}, 10.0 * n[:, None], n + 1.0) for n in mine]


def epoch(data: Data, batch_size: int, processes: Processes, seed: int) -> list[list[int]]:
    batches = []
    for rows in data.batches(batch_size, processes, torch.Generator().manual_seed(seed)):
        n = rows.categories["id"]
        assert torch.equal(rows.x[:, 0], n.double())
        assert torch.equal(rows.target[:, 0], 10.0 * n)
        assert rows.weight is not None
        assert torch.equal(rows.weight, n + 1.0)
        batches.append(n.tolist())
    return batches


@given(sizes=SIZES, batch_size=st.integers(1, 12), seed=st.integers(0, 2**32 - 1))
def test_every_row_is_in_one_batch_of_a_chunk_of_its_own(sizes: list[int], batch_size: int, seed: int) -> None:
    batches = epoch(Data(chunks(sizes), sizes), batch_size, ALONE, seed)
    assert sorted(n for batch in batches for n in batch) == list(range(sum(sizes)))
    assert all(0 < len(batch) <= batch_size for batch in batches)
    assert len(batches) == sum(-(-size // batch_size) for size in sizes)


@given(sizes=SIZES, batch_size=st.integers(1, 12), size=st.integers(1, 4), seed=st.integers(0, 2**32 - 1))
def test_processes_share_the_batches_of_one(sizes: list[int], batch_size: int, size: int, seed: int) -> None:
    """Also where a chunk, or the rest of one, has fewer rows than there are processes."""
    alone = epoch(Data(chunks(sizes), sizes), batch_size, ALONE, seed)
    shares = []
    for rank in range(size):
        processes = Processes(rank, size)
        shares.append(epoch(Data(chunks(sizes, processes), sizes), batch_size, processes, seed))
    assert {len(share) for share in shares} == {len(alone)}
    for together, *parts in zip(alone, *shares, strict=True):
        assert sorted(together) == sorted(n for part in parts for n in part)


def test_the_order_is_that_of_the_generator() -> None:
    data = Data(chunks([9, 9]), [9, 9])
    assert epoch(data, 2, ALONE, 1) == epoch(data, 2, ALONE, 1)
    assert epoch(data, 2, ALONE, 1) != epoch(data, 2, ALONE, 2)
    assert epoch(data, 9, ALONE, 1)[0] in ([*range(9)], [*range(9, 18)]), "a chunk that fits is not shuffled"


def test_lazy_chunks_are_made_when_they_are_wanted_one_at_a_time() -> None:
    made: list[int] = []

    def make(index: int) -> Rows:
        made.append(index)
        return chunks([4, 4, 4])[index]

    lazy = Lazy(3, make)
    data = Data(lazy, [4, 4, 4])
    iterator = data.batches(2, ALONE, torch.Generator().manual_seed(0))
    next(iterator)
    assert len(made) == 1
    list(iterator)
    assert sorted(made) == [0, 1, 2]
    list(lazy)
    assert len(made) == 6, "anew in every pass"


def test_rows_in_memory_are_all_of_this_process() -> None:
    data = Data.of(*chunks([2, 3]))
    assert list(data.sizes) == [2, 3]
    assert data.chunks[1].take(slice(1, None)).categories["id"].tolist() == [3, 4]
    assert Rows(torch.zeros(3, 1), {}, torch.zeros(3, 1)).take(torch.tensor([2])).weight is None
