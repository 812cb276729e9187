"""Rows are worked on block by block, for speed and memory: where the blocks end decides nothing."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from reghead.normalization import (
    CategoryNormalizer,
    MixedEffects,
    _blocks,
    _mixed_predict,
    _mixed_profiles,
    _mixed_solve,
    _mixed_state,
    _mixed_sums,
)

F64 = torch.float64
SIZES = {"location": 9, "season": 5}


def rows(seed: int, n: int = 200) -> tuple[Tensor, dict[str, Tensor], Tensor]:
    """Unknown ids in both columns; location 8 has no rows."""
    rng = torch.Generator().manual_seed(seed)
    ids = {"location": torch.randint(0, 8, (n,), generator=rng), "season": torch.randint(0, 5, (n,), generator=rng)}
    x = torch.randn(n, 2, generator=rng, dtype=F64)
    effects = torch.randn(8, 2, generator=rng, dtype=F64)[ids["location"]]
    return effects + x.sum(dim=1, keepdim=True) + torch.randn(n, 2, generator=rng, dtype=F64), ids, x


@pytest.mark.parametrize("block", [7, 64, 150])
@pytest.mark.parametrize("missing", [False, True])
def test_sums_and_leave_one_out_of_a_mixed_model(block: int, missing: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    y, ids, x = rows(0)
    if missing:  # each column then has sums of its own
        y[::3, 0] = torch.nan
    whole = MixedEffects(SIZES).fit(y, ids, x)
    expected = whole.leave_one_out(y, ids, x)
    monkeypatch.setattr(_mixed_sums, "_BLOCK", block)
    monkeypatch.setattr(_mixed_predict, "_BLOCK", block)
    parts = MixedEffects(SIZES).fit(y, ids, x)
    for name in ("gram", "moment", "square", "cell_count", "cell_features", "cell_target"):
        assert_close(getattr(parts, name), getattr(whole, name), rtol=1e-10, atol=1e-10)
    assert_close(parts.leave_one_out(y, ids, x), expected, rtol=1e-5, atol=1e-5, equal_nan=True)
    assert_close(whole.leave_one_out(y, ids, x), expected, rtol=1e-12, atol=1e-12, equal_nan=True)


@pytest.mark.parametrize("block", [640, 1300])
@pytest.mark.parametrize("cells", [True, False])
def test_an_iterated_mixed_model(block: int, cells: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten or twenty profiles at a time of those with 64 samples."""
    monkeypatch.setattr(_mixed_state, "MAX_LEVELS", 0)
    whole = MixedEffects(SIZES, cells=cells).fit(*rows(0))
    monkeypatch.setattr(_mixed_profiles, "_BLOCK", block)
    parts = MixedEffects(SIZES, cells=cells).fit(*rows(0))
    _, ids, x = rows(1)
    for ours, theirs in zip(parts.predict(ids, x), whole.predict(ids, x), strict=True):
        assert_close(ours, theirs, rtol=0.02, atol=0.02)
    assert_close(parts.leave_one_out(*rows(0)), whole.leave_one_out(*rows(0)), rtol=0, atol=0.05)


@pytest.mark.parametrize("at_once", [1, 5, 64, 100])
def test_samples_of_a_prediction(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_mixed_state, "MAX_LEVELS", 0)
    model = MixedEffects(SIZES).fit(*rows(0))
    _, ids, x = rows(1)
    expected = model.predict(ids, x).std
    monkeypatch.setattr(_mixed_predict, "_SAMPLES_AT_ONCE", at_once)
    assert_close(model.predict(ids, x).std, expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("repeat", [1, 4])
def test_products_pooled_by_count(repeat: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where many cells have one count their products are summed first."""
    y, ids, x = (rows(0, 60)[0], *rows(0, 60)[1:])
    y, x, ids = y.repeat(repeat, 1), x.repeat(repeat, 1), {c: i.repeat(repeat) for c, i in ids.items()}
    y = y + torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=F64)
    pooled = MixedEffects(SIZES).fit(y, ids, x)
    monkeypatch.setattr(_mixed_solve, "_POOL_LIMIT", 0)
    plain = MixedEffects(SIZES).fit(y, ids, x)
    for ours, theirs in zip(pooled.predict(ids, x), plain.predict(ids, x), strict=True):
        assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("block", [1, 10, 47, 100, 10**6])
@pytest.mark.parametrize("transform", ["identity", "softplus"])
def test_calls_of_a_normalizer(block: int, transform: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    y, ids, _ = rows(0)
    normalizer = CategoryNormalizer(SIZES, transform=transform).fit(y.exp(), ids)
    shapes: list[tuple[Tensor, dict[str, Tensor]]] = [
        (y, ids),
        (y.unsqueeze(0), {c: i[:1] for c, i in ids.items()}),
        (y.reshape(20, 10, 2), {"location": ids["location"].reshape(20, 10), "season": ids["season"][:20]}),
        (y[0], {c: i[0] for c, i in ids.items()}),
        (y[:0], {c: i[:0] for c, i in ids.items()}),
    ]
    expected = []
    for patched in (10**9, block):
        monkeypatch.setattr(_blocks, "_BLOCK", patched)
        results = []
        for z, at in shapes:
            target = z.exp().to(torch.float32)
            results += [normalizer(target, at), normalizer.inverse(z, at), normalizer.inverse(z.half(), at)]
            results.append(normalizer.inverse(torch.stack([z - 1, z, z + 1], dim=-1), at, output_dim=-2))
            if transform == "identity":
                results.append(normalizer.inverse_scale(z.abs(), at))
        expected = expected or results
        for ours, theirs in zip(results, expected, strict=True):
            assert_close(ours, theirs, rtol=1e-6, atol=1e-9)
