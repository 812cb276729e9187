"""What a head and a mixed model see of numbers: bounded smoothly, and embedded by functions with bends."""

import copy

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from reghead.config import HeadConfig
from reghead.estimators._features import _MAX_BINS, _WIDTH, Bins, Features, make_bins
from reghead.estimators._network import Network
from reghead.estimators._training import predict
from reghead.heads import RegressionHead

SEEDS = st.integers(0, 2**32 - 1)
CLIPS = st.floats(0.1, 100.0)
EDGES = ((-1.0, 0.0, 0.5, 2.0), (-2.0, 0.3, 1.0))


def bound(z: Tensor, clip: float) -> Tensor:
    return Features(1, 0, clip=clip, dtype=z.dtype)(z.unsqueeze(-1)).squeeze(-1)


def embedded(bins: Bins, others: int = 0, clip: float | None = None, seed: int = 0) -> Features:
    """As trained: nothing of the embedding is zero."""
    features = Features(len(bins), others, clip=clip, bins=bins, dtype=torch.float64)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in features.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return features


@given(seed=SEEDS, clip=CLIPS)
def test_bounded_numbers_are_odd_increasing_and_below_the_bound(seed: int, clip: float) -> None:
    z = torch.randn(50, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).mul(clip).sort().values
    bounded = bound(z, clip)
    assert (bounded.abs() < clip).all()
    assert (bounded.abs() <= z.abs()).all()
    assert (bounded.diff() > 0).all()
    torch.testing.assert_close(bound(-z, clip), -bounded)


@given(seed=SEEDS, clip=CLIPS)
def test_small_numbers_are_almost_what_they_were(seed: int, clip: float) -> None:
    """The error is of third order: z - z / sqrt(1 + (z / c)^2) <= z^3 / (2 c^2)."""
    z = torch.rand(50, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * clip
    assert (z - bound(z, clip) <= z**3 / (2 * clip**2) + 1e-15 * clip).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_largest_numbers_reach_the_bound_and_do_not_fall_to_zero(dtype: torch.dtype) -> None:
    """The square of a large number overflows."""
    z = torch.tensor([3.0, 1e4, 1e30, torch.finfo(dtype).max], dtype=dtype)
    expected = torch.tensor([3 / 2**0.5, 3.0, 3.0, 3.0], dtype=dtype)
    torch.testing.assert_close(bound(z, 3.0), expected, rtol=1e-6, atol=0.0)


def test_numbers_alone_are_bounded() -> None:
    x = torch.tensor([[9.0, -9.0, 9.0]], dtype=torch.float64)
    features = Features(2, 1, clip=1.0, dtype=torch.float64)
    torch.testing.assert_close(features(x), torch.tensor([[9.0, -9.0, 9.0 * 82**0.5]], dtype=torch.float64) / 82**0.5)
    plain = Features(2, 1, dtype=torch.float64)
    assert torch.equal(plain(x), x)
    assert torch.equal(plain.linear(x), x)


def test_a_linear_model_sees_bounded_and_plain_numbers() -> None:
    x = torch.tensor([[9.0, 0.5, 1.0]], dtype=torch.float64)
    features = embedded(EDGES, others=1, clip=1.0)
    seen = features.linear(x)
    assert torch.equal(seen[:, 3:], x[:, :2])
    assert torch.equal(seen[:, :3], Features(2, 1, clip=1.0, dtype=torch.float64)(x))


@given(seed=SEEDS, share=st.floats(0.0, 1.0))
def test_embeddings_are_linear_between_edges(seed: int, share: float) -> None:
    features = embedded(EDGES[:1], seed=seed)
    left, right = torch.tensor(EDGES[0]).double().unfold(0, 2, 1).unbind(1)
    between = torch.lerp(left, right, share)
    expected = torch.lerp(features(left[:, None]), features(right[:, None]), share)
    torch.testing.assert_close(features(between[:, None]), expected, rtol=1e-5, atol=1e-5)


@given(seed=SEEDS)
def test_embeddings_are_continuous_and_bend_at_inner_edges_alone(seed: int) -> None:
    features = embedded(EDGES[:1], seed=seed)
    step = 1e-3
    points = torch.tensor([[-5.0], [-1.0], [0.0], [0.5], [2.0], [5.0]]).double()
    before, at, after = features(points - step), features(points), features(points + step)
    assert (torch.stack([at - before, after - at]).abs() < 1.0).all()
    bends = ((after - at) - (at - before)).norm(dim=1) / step
    assert (bends[[2, 3]] > 1e-2).all()
    assert (bends[[0, 1, 4, 5]] < 1e-2).all()


def test_embeddings_start_linear_and_numbers_do_not_mix() -> None:
    features = Features(2, 0, bins=EDGES, dtype=torch.float64)
    x = torch.linspace(-4, 4, 9, dtype=torch.float64)[:, None].expand(9, 2)
    torch.testing.assert_close(features(x).diff(n=2, dim=0), torch.zeros(7, 2 * _WIDTH, dtype=torch.float64))
    features = embedded(EDGES)
    moved = features(x) != features(x + torch.tensor([0.1, 0.0]))
    assert moved[:, :_WIDTH].all()
    assert not moved[:, _WIDTH:].any()


def test_a_number_without_edges_and_others_pass_beside_the_embeddings() -> None:
    x = torch.randn(4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    features = embedded((EDGES[0], (), EDGES[1]), others=1)
    out = features(x)
    assert out.shape == (4, features.out_features) == (4, 2 + 2 * _WIDTH)
    assert torch.equal(out[:, :2], x[:, [1, 3]])
    assert torch.equal(out[:, 2:], embedded(EDGES)(x[:, [0, 2]]))
    assert Features(1, 0, bins=((),), dtype=torch.float64).embedding is None
    with pytest.raises(ValueError, match="bins must have edges for each of 2 numbers, got 1"):
        Features(2, 0, bins=EDGES[:1], dtype=torch.float64)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_no_rows_and_rows_that_are_not_contiguous(dtype: torch.dtype) -> None:
    features = Features(2, 1, clip=3.0, bins=EDGES, dtype=dtype)
    assert features(torch.zeros(0, 3, dtype=dtype)).shape == (0, 1 + 2 * _WIDTH)
    assert features.linear(torch.zeros(0, 3, dtype=dtype)).shape == (0, 5)
    x = torch.randn(3, 5, dtype=dtype, generator=torch.Generator().manual_seed(0))
    assert features(x).dtype == dtype
    assert torch.equal(features(x.T.contiguous().T), features(x))


def test_a_state_is_that_of_the_same_bins() -> None:
    features, other = embedded(EDGES, seed=1), Features(2, 0, bins=EDGES, dtype=torch.float64)
    x = torch.randn(5, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    other.load_state_dict(features.state_dict())
    assert torch.equal(other(x), features(x))
    assert torch.equal(copy.deepcopy(features)(x), features(x))
    with pytest.raises(RuntimeError, match="size mismatch"):
        Features(2, 0, bins=(EDGES[0], (*EDGES[0], 3.0)), dtype=torch.float64).load_state_dict(features.state_dict())


@given(count=st.lists(st.integers(0, 5), min_size=1, max_size=60), seed=SEEDS)
def test_integer_weights_of_bins_are_repetitions(count: list[int], seed: int) -> None:
    count[0] += 1
    x = np.random.default_rng(seed).normal(size=(len(count), 2)).round(1)
    kept = np.array(count) > 0
    weighted = make_bins(x[kept], np.array(count, dtype=np.float64)[kept])
    assert weighted == make_bins(np.repeat(x, count, axis=0), None)
    assert weighted == make_bins(x[kept][::-1], np.array(count, dtype=np.float64)[kept][::-1]), "whatever the order"


def test_bins_hold_equally_many_rows_between_the_smallest_and_the_largest() -> None:
    x = np.random.default_rng(0).lognormal(size=(100 * _MAX_BINS + 1, 1))
    (edges,) = make_bins(x, None)
    assert len(edges) == _MAX_BINS + 1
    assert (edges[0], edges[-1]) == (x.min(), x.max())
    assert set(np.histogram(x, edges)[0]) <= {99, 100, 101}


def test_a_number_with_fewer_than_three_edges_has_none() -> None:
    """A line between two edges is the number itself."""
    rows = np.arange(40)
    x = np.stack([np.full(40, 3.0), rows % 2, rows % 3, 1 + 1e-9 * rows], axis=1)
    assert make_bins(x, None) == [[], [], [0.0, 1.0, 2.0], []]
    assert make_bins(np.zeros((3, 0)), None) == []


def test_bins_of_few_rows_hold_twenty_each() -> None:
    x = np.arange(100.0)[:, None]
    (edges,) = make_bins(x, None)
    assert len(edges) == 6
    assert set(np.histogram(x, edges)[0]) <= {19, 20, 21}
    assert make_bins(x[:39], None) == [[]]


def test_edges_keep_apart_what_float32_cannot_tell() -> None:
    x = np.repeat([0.0, 1.0, 1.0 + 1e-9, 2.0], 25)[:, None]
    assert make_bins(x, None) == [[0.0, 1.0, 2.0]]
    features = Features(1, 0, bins=make_bins(x, None), dtype=torch.float32)
    assert features(torch.from_numpy(x).float()).isfinite().all()


def test_edges_are_those_of_the_rows_whatever_the_unit() -> None:
    """One wild number makes all others small and close: they are to be told apart as before."""
    x = np.random.default_rng(0).normal(size=(500, 1))
    (edges,) = make_bins(x, None)
    for unit in (1e-20, 1e-6, 1e6):
        np.testing.assert_allclose(make_bins(unit * x, None)[0], unit * np.array(edges), rtol=1e-12)


def test_edges_that_are_close_in_a_chain_are_thinned_and_not_dropped() -> None:
    x = np.repeat(1.0 + 4e-6 * np.arange(20), 25)[:, None]
    (edges,) = make_bins(x, None)
    np.testing.assert_allclose(edges, 1.0 + 1.2e-5 * np.arange(7), rtol=0, atol=1e-12)


def network(dtype: torch.dtype = torch.float64) -> Network:
    torch.manual_seed(0)
    features = Features(2, 1, clip=3.0, bins=EDGES, dtype=dtype)
    head = RegressionHead(features.out_features, 1, (6,), cardinalities={"a": 3}, film=["a"], ensemble=2, dtype=dtype)
    return Network(features, head)


def test_a_network_is_its_head_on_its_features() -> None:
    model = network().eval()
    x = torch.randn(4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    ids = {"a": torch.tensor([0, 1, 2, 1])}
    assert torch.equal(model(x, ids), model.head(model.features(x), ids))
    preds, aux = model(x, ids, return_aux=True)
    assert torch.equal(aux.members.mean(0), preds)
    assert isinstance(model.config, HeadConfig)


@pytest.mark.parametrize("training", [True, False])
def test_a_network_is_in_the_mode_of_its_head(training: bool) -> None:
    """It is made anew for every use, and predicting with it gives the mode back that it had."""
    parts = network().train(training)
    again = Network(parts.features, parts.head)
    assert again.training is training
    x, ids = torch.zeros(2, 3, dtype=torch.float64), {"a": torch.tensor([0, 1])}
    predict(again, x, ids)
    assert {module.training for module in again.modules()} == {training}


def test_every_parameter_of_a_network_is_trained_once() -> None:
    model = network()
    groups = model.param_groups(0.1, categorical_lr=0.2, weight_decay=0.3)
    trained = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(trained) == sorted(map(id, model.parameters()))
    weights = next(group for group in groups if group["name"] == "weights")
    assert {id(p) for p in model.features.parameters()} <= {id(p) for p in weights["params"]}
    assert (weights["lr"], weights["weight_decay"]) == (0.1, 0.3)
