"""Statistics of several ranks, merged: the ranks are threads here."""

import itertools
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.testing import assert_close

from _ranks import all_reduce
from reghead.normalization import CategoryNormalizer

CARDINALITIES = {"a": 5, "b": 3}
pytestmark = pytest.mark.skipif(not dist.is_available(), reason="torch was built without distributed")


def data() -> tuple[Tensor, dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    ids = {c: torch.randint(0, k, (101,), generator=generator) for c, k in CARDINALITIES.items()}
    y = 1e6 + torch.randn(101, 2, generator=generator, dtype=torch.float64)
    y[::7, 1] = torch.nan
    return y, ids


def new(**options: Any) -> CategoryNormalizer:
    return CategoryNormalizer(CARDINALITIES, shrinkage="empirical_bayes", fallback="additive", **options)


def part(rows: slice) -> CategoryNormalizer:
    y, ids = data()
    return new().partial_fit(y[rows], {c: i[rows] for c, i in ids.items()})


@pytest.mark.parametrize("edges", [(0, 101), (0, 40, 101), (0, 0, 3, 101), (0, 97, 101, 101), (0, 1, 2, 50, 101)])
def test_all_ranks_have_the_statistics_of_all_rows(edges: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """Also ranks without rows, and those with fewer cells than others."""
    shards = [part(slice(start, end)) for start, end in itertools.pairwise(edges)]
    expected = new().fit(*data())
    results = all_reduce(shards, monkeypatch)
    for shard, result in zip(shards, results, strict=True):
        assert result is shard
        for name, tensor in result.state_dict().items():
            assert torch.equal(tensor.nan_to_num(), results[0].state_dict()[name].nan_to_num()), name
        assert torch.equal(shard.cell_keys, expected.cell_keys)
        assert torch.equal(shard.cell_count, expected.cell_count)
        for name in ("location", "scale", "effects", "effect_scale"):
            assert_close(getattr(shard, name), getattr(expected, name), rtol=1e-9, atol=1e-9, equal_nan=True)


def test_every_rank_says_what_does_not_go_together_and_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def told(*ranks: CategoryNormalizer) -> str:
        before = [{name: t.clone() for name, t in rank.state_dict().items()} for rank in ranks]
        messages = [str(error) for error in all_reduce(ranks, monkeypatch)]
        for rank, state in zip(ranks, before, strict=True):
            assert all(torch.equal(t.nan_to_num(), state[name].nan_to_num()) for name, t in rank.state_dict().items())
        assert len(set(messages)) == 1
        return messages[0]

    def fit(d: int) -> CategoryNormalizer:
        return new().fit(torch.ones(2, d), {c: torch.ones(2, dtype=torch.int64) for c in CARDINALITIES})

    options = "all_reduce needs the same CategoryNormalizer on every rank, but their options differ"
    assert told(fit(1), CategoryNormalizer(CARDINALITIES)) == options
    assert told(new(), fit(1), new(transform="log")) == options
    assert told(fit(1), fit(2)) == "all_reduce needs one number of target columns, got [1, 2] by rank"
    assert told(fit(3), new(), fit(2)) == "all_reduce needs one number of target columns, got [3, 0, 2] by rank"
    assert told(new(), new()) == "all_reduce needs at least one fitted rank, but no rank has seen a row"


def test_a_column_without_a_value_on_any_rank_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    ids = {c: torch.ones(2, dtype=torch.int64) for c in CARDINALITIES}
    y = torch.tensor([[1.0, torch.nan], [2.0, torch.nan]])
    first, second = new().partial_fit(y, ids), new().partial_fit(y + 1, ids)
    errors = all_reduce([first, second], monkeypatch)
    assert ["but column 1 has none" in str(error) for error in errors] == [True, True]


def test_without_a_group_it_says_so_and_in_a_group_of_one_nothing_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    normalizer = part(slice(0, 101))
    before = {name: tensor.clone() for name, tensor in normalizer.state_dict().items()}
    with pytest.raises(RuntimeError, match=r"all_reduce needs a process group; call torch\.distributed\.init_proc"):
        normalizer.all_reduce()
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        assert normalizer.all_reduce() is normalizer
        assert new().fit(*data()).all_reduce(dist.new_group([0])).is_fitted
    finally:
        dist.destroy_process_group()
    for name, tensor in normalizer.state_dict().items():
        assert torch.equal(tensor.nan_to_num(), before[name].nan_to_num()), name
