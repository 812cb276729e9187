"""Which rows a process holds."""

import torch
from hypothesis import given
from hypothesis import strategies as st

from reghead.estimators._processes import ALONE, Processes


@given(rows=st.integers(0, 50), size=st.integers(1, 6), seed=st.integers(0, 2**32 - 1))
def test_every_row_belongs_to_one_process_in_any_batch(rows: int, size: int, seed: int) -> None:
    """What a process holds of a batch is that batch, whoever holds which part of it."""
    values = torch.arange(rows) * 10
    index = torch.randperm(rows, generator=torch.Generator().manual_seed(seed))
    found = []
    for rank in range(size):
        processes = Processes(rank, size)
        mine = values[processes.share][processes.mine(index)]
        assert mine.tolist() == [value for value in values[index].tolist() if value // 10 % size == rank]
        found += mine.tolist()
    assert sorted(found) == values.tolist()


def test_one_process_needs_no_group() -> None:
    total = torch.tensor([1.0, 2.0])
    assert ALONE.sum(total) is total
    assert ALONE.gather("x") == ["x"]
    assert ALONE.mine(total) is total
