"""The table of all keys and the search among the sampled ones are one lookup."""

import warnings
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from reghead._warnings import UnseenCategoryWarning
from reghead.normalization import CategoryNormalizer


@given(seed=st.integers(0, 2**32 - 1), gaps=st.booleans())
def test_rows_are_found_in_the_table_as_by_search(seed: int, gaps: bool) -> None:
    generator = torch.Generator().manual_seed(seed)
    ids = {name: torch.randint(0, 4, (30,), generator=generator) for name in ("site", "season")}
    target = torch.randn(30, 2, generator=generator, dtype=torch.float64)
    if not gaps:  # every cell has rows
        every = torch.cartesian_prod(torch.arange(4), torch.arange(4))
        ids = {name: torch.cat([i, every[:, c]]) for c, (name, i) in enumerate(ids.items())}
        target = torch.cat([target, torch.randn(16, 2, generator=generator, dtype=torch.float64)])
    normalizer = CategoryNormalizer({"site": 4, "season": 4}, fallback="additive").fit(target, ids)
    assert normalizer.dense_location is not None
    asked = torch.cartesian_prod(torch.arange(4), torch.arange(4))
    columns = {"season": asked[:, 0], "site": asked[:, 1]}
    new = torch.randn(16, 2, generator=generator, dtype=torch.float64)
    sampled = {tuple(pair) for pair in zip(ids["season"].tolist(), ids["site"].tolist(), strict=True)}
    missing = [pair for pair in asked.tolist() if 0 not in pair and tuple(pair) not in sampled]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = normalizer(new, columns)
    assert len(caught) == bool(missing)
    normalizer.dense_location = normalizer.dense_scale = normalizer.dense_sampled = None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert_close(normalizer(new, columns), found, rtol=0, atol=0)


def factorial(size: int, levels: int = 3) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Two rows in each combination of two columns but those of ids that add up to 4, and ids of many leading dims."""
    ids = torch.cartesian_prod(torch.arange(1, levels + 1), torch.arange(1, levels + 1)).repeat(2, 1)
    ids = ids[ids.sum(dim=1) != 4]
    y = torch.randn(len(ids), size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return y, {"season": ids[:, 0], "site": ids[:, 1]}


@pytest.mark.filterwarnings("ignore::reghead._warnings.UnseenCategoryWarning")
@pytest.mark.parametrize("fallback", ["global", "additive"])
@pytest.mark.parametrize("cardinality", [5, 2**20])
@pytest.mark.parametrize("columns", [1, 2])
def test_rows_of_any_leading_dimensions_are_looked_up_one_by_one(fallback: Any, cardinality: int, columns: int) -> None:
    """In a table of all cells and, where there are too many, by search; sampled cells, other ones and unknown ids."""
    y, ids = factorial(columns)
    normalizer = CategoryNormalizer({"season": 5, "site": cardinality}, fallback=fallback).fit(y, ids)
    assert (normalizer.dense_location is None) == (cardinality > 5)
    generator = torch.Generator().manual_seed(1)
    asked = {c: torch.randint(0, 5, (2, 3, 7), generator=generator) for c in ids}
    z = torch.randn(2, 3, 7, columns, generator=generator, dtype=torch.float64)
    flat = {c: i.reshape(-1) for c, i in asked.items()}
    expected = normalizer.inverse(z.reshape(-1, columns), flat).reshape(z.shape)
    assert_close(normalizer.inverse(z, asked), expected, rtol=0, atol=0)
    assert_close(normalizer(expected, asked), z)
    quantiles = torch.stack([z - 1, z], dim=-1)
    assert_close(normalizer.inverse(quantiles, asked, output_dim=-2)[..., 1], expected, rtol=0, atol=0)
    prefix = {"season": asked["season"][:, 0, 0], "site": asked["site"]}
    repeated = prefix | {"season": prefix["season"][:, None, None].expand(2, 3, 7)}
    assert_close(normalizer.inverse(z, prefix), normalizer.inverse(z, repeated), rtol=0, atol=0)
    one = {c: i[0, 0, 0] for c, i in asked.items()}
    assert_close(normalizer.inverse(z[0, 0, 0], one), expected[0, 0, 0], rtol=0, atol=0)


def test_a_table_of_all_cells_takes_no_more_than_a_million_numbers_and_no_search() -> None:
    ids = torch.arange(10)
    for cardinality, columns, has_table in ((2**19, 2, True), (2**19 + 1, 2, False), (2**19, 3, False)):
        y = torch.arange(10.0 * columns).reshape(10, columns)
        normalizer = CategoryNormalizer({"site": cardinality}).fit(y, {"site": ids})
        assert (normalizer.dense_location is not None) == has_table
        graph = torch.export.export(normalizer, (y, {"site": ids})).graph
        assert any("searchsorted" in str(node.target) for node in graph.nodes) != has_table


@pytest.mark.parametrize("cardinality", [9, 2**20])
def test_the_warning_counts_rows_and_cells_and_names_three(cardinality: int) -> None:
    normalizer = CategoryNormalizer({"season": 9, "site": cardinality}).fit(
        torch.tensor([[1.0], [2.0]]), {"season": torch.tensor([1, 1]), "site": torch.tensor([1, 1])}
    )
    new = {"season": torch.tensor([1, 8, 2, 2, 3, 8, 0, 1, 4]), "site": torch.tensor([1, 8, 2, 2, 1, 1, 3, 0, 5])}
    text = (
        r"^6 rows are in 5 cells that had no training rows, such as \(season=2, site=2\), \(season=3, site=1\), "
        r"\(season=4, site=5\); they are normalized by fallback='global' \(said once\)$"
    )
    with pytest.warns(UnseenCategoryWarning, match=text):
        normalizer(torch.ones(9, 1), new)
    normalizer(torch.ones(9, 1), new)


@pytest.mark.parametrize("rows", [70_000, 200_001])
def test_large_batches_are_those_of_their_rows(rows: int) -> None:
    """With ids for each row, for each of a prefix, and for all."""
    y, ids = factorial(3)
    normalizer = CategoryNormalizer({"season": 4, "site": 4}).fit(y, ids)
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(rows, 3, generator=generator)
    asked = {"season": torch.randint(0, 2, (rows,), generator=generator), "site": torch.full((rows,), 2)}
    whole = normalizer.inverse(z, asked)
    parts = [
        normalizer.inverse(z[at], {c: i[at] for c, i in asked.items()}) for at in torch.arange(rows).split(rows // 7)
    ]
    assert torch.equal(whole, torch.cat(parts))
    assert torch.equal(
        normalizer(whole, asked),
        torch.cat(
            [
                normalizer(w, {c: i[at] for c, i in asked.items()})
                for w, at in zip(parts, torch.arange(rows).split(rows // 7), strict=True)
            ]
        ),
    )
    one = {c: i[:1] for c, i in asked.items()}
    many = normalizer.inverse(z.unsqueeze(0), one)
    assert torch.equal(many[0], normalizer.inverse(z, {c: i.expand(rows) for c, i in one.items()}))
