"""The round trip, and cells without training rows."""

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from reghead._warnings import UnseenCategoryWarning
from reghead.normalization import CategoryNormalizer

F64 = torch.float64


def column(*values: float) -> Tensor:
    return torch.tensor(values, dtype=F64).unsqueeze(-1)


def at(*ids: int) -> dict[str, Tensor]:
    return {"location": torch.tensor(ids, dtype=torch.int64)}


def by_location(n: int = 4, **options: object) -> CategoryNormalizer:
    return CategoryNormalizer({"location": n}, **options)  # type: ignore[arg-type]


# The round trip


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("shape", [(5,), (2, 3), (0,), (1,), ()])
def test_the_inverse_gives_the_targets_back_in_their_dtype(dtype: torch.dtype, shape: tuple[int, ...]) -> None:
    generator = torch.Generator().manual_seed(0)
    train = torch.randn(30, 2, generator=generator) + 100
    normalizer = by_location().fit(train, {"location": torch.arange(30) % 3 + 1})
    y = (torch.randn(*shape, 2, generator=generator) + 100).to(dtype)
    ids = {"location": torch.randint(0, 4, shape, generator=generator)}
    z = normalizer(y, ids)
    assert z.shape == y.shape
    assert z.dtype == dtype
    back = normalizer.inverse(z, ids)
    assert back.dtype == dtype
    assert_close(back, y, rtol=1e-6 if dtype == torch.float32 else 1e-14, atol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_predictions_come_back_in_float32(dtype: torch.dtype) -> None:
    normalizer = by_location().fit(column(1000, 1010, 1020), at(1, 1, 1))
    z = torch.tensor([[0.3]], dtype=dtype)
    y = normalizer.inverse(z, at(1))
    assert y.dtype == torch.float32
    assert_close(y.item(), 1010 + 10 * float(z), rtol=1e-6, atol=0)
    assert normalizer.inverse_scale(z, at(1)).dtype == torch.float32
    assert normalizer(torch.tensor([[1000.0]], dtype=dtype), at(1)).dtype == dtype


def test_ids_may_be_a_prefix_of_the_leading_dimensions() -> None:
    y = torch.arange(12.0, dtype=F64).reshape(2, 3, 2)
    normalizer = by_location().fit(y, at(1, 2))
    spread = {"location": torch.tensor([[1] * 3, [2] * 3])}
    assert torch.equal(normalizer(y, at(1, 2)), normalizer(y, spread))
    assert normalizer.fit(y, spread).statistics().count[1:].flatten().tolist() == [3, 3, 3, 3]
    everywhere = {"location": torch.tensor(1)}
    assert torch.equal(normalizer(y, everywhere)[0], normalizer(y[0], everywhere))


def test_quantiles_keep_their_order_and_widths_scale_without_a_shift() -> None:
    generator = torch.Generator().manual_seed(0)
    y = torch.randn(20, 2, generator=generator, dtype=F64) - 50
    ids = {"location": torch.arange(20) % 3 + 1}
    normalizer = by_location().fit(y, ids)
    quantiles = torch.randn(20, 2, 5, generator=generator, dtype=F64).sort(dim=-1).values
    restored = normalizer.inverse(quantiles, ids, output_dim=-2)
    assert (restored.diff(dim=-1) >= 0).all()
    assert torch.equal(restored[..., 2], normalizer.inverse(quantiles[..., 2], ids))
    width = quantiles[..., -1] - quantiles[..., 0]
    assert_close(normalizer.inverse_scale(width, ids), restored[..., -1] - restored[..., 0])
    widths = quantiles.diff(dim=-1)
    assert_close(normalizer.inverse_scale(widths, ids, output_dim=-2), restored.diff(dim=-1))
    assert (normalizer.inverse_scale(torch.zeros(20, 2), ids) == 0).all()


@pytest.mark.parametrize("transform", ["log", "log1p", "softplus", "logit", "clamp"])
def test_quantiles_keep_their_order_under_every_transform(transform: str) -> None:
    y = torch.tensor([[0.1], [0.5], [0.9]], dtype=F64)
    normalizer = by_location(transform=transform).fit(y, at(1, 1, 1))
    assert_close(normalizer.inverse(normalizer(y, at(1, 1, 1)), at(1, 1, 1)), y)
    levels = torch.linspace(-4, 4, 9, dtype=F64).reshape(1, 1, 9)
    assert (normalizer.inverse(levels, at(1), output_dim=-2).diff() >= 0).all()
    with pytest.raises(ValueError, match=f"no inverse under transform='{transform}'.*invert both ends"):
        normalizer.inverse_scale(y, at(1, 1, 1))


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_large_batches_equal_their_rows(dtype: torch.dtype) -> None:
    # 300,000 rows go in blocks, and keys made of int32 ids are beyond int32.
    rows = torch.arange(300_000)
    ids = {"a": (rows % 7).to(dtype), "b": (rows % 3).to(dtype)}
    y = torch.sin(rows.double()).unsqueeze(-1)
    normalizer = CategoryNormalizer({"a": 9 + 7, "b": 2**40})
    some = slice(150_000, 150_050)
    with pytest.warns(UnseenCategoryWarning):
        z = normalizer.fit(y[:40], {c: i[:40] for c, i in ids.items()})(y, {c: i.flip(0) + 9 for c, i in ids.items()})
    assert_close(z, (y - y[:40].mean()) / y[:40].std())
    z = normalizer.fit(y, ids)(y, ids)
    assert torch.equal(z[some], normalizer(y[some], {c: i[some] for c, i in ids.items()}))
    assert_close(normalizer.inverse(z.float(), ids), y.float(), atol=1e-6, rtol=0)
    twice = normalizer(y.expand(-1, 1), {c: torch.tensor(1, dtype=dtype) for c in ids})
    assert_close(twice[some], normalizer(y[some], {c: torch.ones(50, dtype=dtype) for c in ids}))


def test_a_single_row_of_very_many_quantiles_is_one_row() -> None:
    normalizer = by_location().fit(torch.tensor([[1.0, 10.0], [3.0, 30.0]], dtype=F64), at(1, 1))
    levels = torch.linspace(-3, 3, 100_000, dtype=F64).expand(2, -1)
    alone = normalizer.inverse(levels, {"location": torch.tensor(1)}, output_dim=-2)
    assert torch.equal(alone, normalizer.inverse(levels.unsqueeze(0), at(1), output_dim=-2).squeeze(0))


# Cells without training rows


@pytest.mark.parametrize("fallback", ["global", "additive"])
@pytest.mark.parametrize("shrinkage", ["none", "empirical_bayes"])
def test_without_any_cell_all_is_the_population(fallback: str, shrinkage: str) -> None:
    y = column(1, 2, 3)
    options = {"fallback": fallback, "shrinkage": shrinkage}
    everywhere = CategoryNormalizer({}, **options).fit(y)  # type: ignore[arg-type]
    assert_close(everywhere(y), column(-1, 0, 1))
    unknown = by_location(**options).fit(y, at(0, 0, 0))
    assert_close(unknown(y, at(0, 0, 0)), column(-1, 0, 1))
    with pytest.warns(UnseenCategoryWarning):
        assert_close(unknown(y, at(1, 2, 3)), column(-1, 0, 1))
    for normalizer in (everywhere, unknown):
        loaded = CategoryNormalizer.from_state_dict(normalizer.state_dict())
        assert torch.equal(loaded(y, at(0, 0, 0)), normalizer(y, at(0, 0, 0)))


def test_a_never_sampled_cell_takes_the_population_with_one_warning() -> None:
    y = column(1, 3, 10, 14)
    normalizer = by_location(5).fit(y, at(1, 1, 2, 2))
    with pytest.warns(UnseenCategoryWarning) as caught:
        z = normalizer(column(7, 7, 7), at(3, 4, 1))
    assert len(caught) == 1
    assert caught[0].filename == __file__
    text = str(caught[0].message)
    assert "2 rows are in 2 cells that had no training rows, such as (location=3), (location=4)" in text
    assert "fallback='global'" in text
    assert_close(z[:2], torch.zeros(2, 1, dtype=F64))
    normalizer(column(7), at(3))  # not again: warnings are errors here
    normalizer.fit(y, at(1, 1, 2, 2))
    with pytest.warns(UnseenCategoryWarning) as caught:
        normalizer.inverse(column(0), at(3))
    assert caught[0].filename == __file__


def test_an_unknown_id_is_the_population_without_a_warning() -> None:
    y = column(1, 3, 10, 14)
    normalizer = by_location().fit(y, at(1, 1, 2, 2))
    assert_close(normalizer.inverse(column(0, 1), at(0, 0)), torch.stack([y.mean(), y.mean() + y.std()]).unsqueeze(-1))


@pytest.mark.parametrize("fallback", ["global", "additive"])
def test_lookup_by_search_and_by_table_agree(fallback: str) -> None:
    generator = torch.Generator().manual_seed(0)
    ids = {c: torch.randint(0, 6, (40,), generator=generator) for c in ("a", "b")}
    y = torch.randn(40, 2, generator=generator, dtype=F64)
    table = CategoryNormalizer({"a": 7, "b": 7}, fallback=fallback).fit(y, ids)  # type: ignore[arg-type]
    search = CategoryNormalizer({"a": 7, "b": 2**17}, fallback=fallback).fit(y, ids)  # type: ignore[arg-type]
    assert table.dense_location is not None
    assert search.dense_location is None
    everything = dict(zip(ids, torch.cartesian_prod(torch.arange(7), torch.arange(7)).T, strict=True))
    with pytest.warns(UnseenCategoryWarning) as by_table:
        expected = table.inverse(torch.ones(49, 2, dtype=F64), everything)
    with pytest.warns(UnseenCategoryWarning) as by_search:
        assert_close(search.inverse(torch.ones(49, 2, dtype=F64), everything), expected, rtol=1e-12, atol=1e-12)
    assert str(by_table[0].message) == str(by_search[0].message)
