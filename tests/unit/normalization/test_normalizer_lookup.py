"""The table of all keys and the search among the sampled ones are one lookup."""

import warnings

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

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
