"""Many features, features that say the same as the categories, and many columns of categories."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from reghead.normalization import MixedEffects, _reml
from reghead.normalization._mixed_solve import factorize

F64 = torch.float64
seeds = st.integers(0, 2**32 - 1)


def normal(*shape: int, rng: torch.Generator) -> Tensor:
    return torch.randn(*shape, generator=rng, dtype=F64)


def environments(seed: int, features: int = 38) -> tuple[Tensor, dict[str, Tensor], Tensor, Tensor]:
    """Trials at 10 sites in 5 years, with weather that is one for a site and a year and says nothing of the target."""
    rng = torch.Generator().manual_seed(seed)
    ids = torch.cartesian_prod(torch.arange(1, 11), torch.arange(1, 6)).repeat_interleave(8, dim=0)
    environment = (ids[:, 0] - 1) * 5 + ids[:, 1] - 1
    target = normal(50, 1, rng=rng)[environment] + normal(400, 1, rng=rng)
    return target, {"site": ids[:, 0], "year": ids[:, 1]}, normal(50, features, rng=rng)[environment], environment


SITES = {"site": 11, "year": 6}


def take(ids: dict[str, Tensor], rows: Tensor) -> dict[str, Tensor]:
    return {column: i[rows] for column, i in ids.items()}


# Shrinkage


@pytest.mark.parametrize("seed", range(3))
def test_features_that_only_tell_environments_apart_do_not_overfit_them(seed: int) -> None:
    """38 useless features and 40 environments in training: least squares is far worse than the mean, shrinkage is not.

    And the spread tells how far predictions for the 10 new environments are off.
    """
    y, ids, x, environment = environments(seed)
    new = environment % 5 == torch.arange(10).repeat_interleave(40) % 5  # another year at each site
    errors, z = {}, {}
    for shrink in (True, False):
        model = MixedEffects(SITES, shrink_features=shrink).fit(y[~new], take(ids, ~new), x[~new])
        mean, std = model.predict(take(ids, new), x[new])
        errors[shrink] = (y[new] - mean).square().mean() / (y[new] - y[~new].mean()).square().mean()
        z[shrink] = ((y[new] - mean) / std).square().mean()
    assert errors[True] < 1.3
    assert errors[False] > 2
    assert 0.4 < z[True] < 2.5


def test_with_many_rows_per_feature_shrunk_and_fixed_coefficients_agree() -> None:
    rng = torch.Generator().manual_seed(0)
    x, ids = normal(20_000, 5, rng=rng), {"site": torch.randint(1, 21, (20_000,), generator=rng)}
    effect = 2 * normal(21, 1, rng=rng)[ids["site"]]
    y = x @ torch.tensor([[1.0], [-1.0], [0.5], [2.0], [-0.3]], dtype=F64) + effect + normal(20_000, 1, rng=rng)
    shrunk, fixed = (MixedEffects({"site": 21}, shrink_features=s).fit(y, ids, x) for s in (True, False))
    assert_close(shrunk.statistics().coefficients, fixed.statistics().coefficients, atol=2e-4, rtol=0)
    assert_close(shrunk(y, ids, x), fixed(y, ids, x), atol=1e-3, rtol=0)
    assert fixed.statistics().feature_variance.item() == torch.inf


def test_features_without_any_bearing_have_coefficients_of_zero() -> None:
    """Their sample correlation with the target is exactly 0, less than chance would give."""
    rng = torch.Generator().manual_seed(0)
    x = normal(30, 3, rng=rng)
    basis = torch.linalg.qr(torch.cat([torch.ones(30, 1, dtype=F64), x, normal(30, 1, rng=rng)], dim=1)).Q
    model = MixedEffects().fit(basis[:, -1:], features=x)
    assert model.statistics().feature_variance.item() == 0
    assert not model.statistics().coefficients.any()


@settings(max_examples=5)
@given(seed=seeds)
def test_shrinkage_does_not_depend_on_the_units_and_the_order_of_features(seed: int) -> None:
    y, ids, x, _ = environments(seed, 6)
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    units = torch.tensor([1e-6, 1e6, -3.0, 1.0, 20.0, 1e-3], dtype=F64)
    model, other = MixedEffects(SITES).fit(y, ids, x), MixedEffects(SITES).fit(y, ids, (units * x + 7)[:, order])
    assert_close(other(y, ids, (units * x + 7)[:, order]), model(y, ids, x), atol=1e-5, rtol=1e-5)


def test_more_features_than_rows() -> None:
    rng = torch.Generator().manual_seed(0)
    x = normal(30, 200, rng=rng)
    y = x[:, :1] + 0.1 * normal(30, 1, rng=rng)
    z = MixedEffects().fit_transform(y, features=x)
    assert z.isfinite().all()
    assert z.square().mean() == pytest.approx(1, abs=0.5)


def test_an_update_does_not_change_what_the_coefficients_are_shrunk_by() -> None:
    """New rows spread ten times as far say more of a coefficient, but its prior stays that of the fit."""
    rng = torch.Generator().manual_seed(0)
    x = normal(20, 1, rng=rng)
    y = x + normal(20, 1, rng=rng)
    model = MixedEffects().fit(y, features=x)
    before = model.statistics()
    wide = 10 * normal(5, 1, rng=rng)
    model.update(wide, features=wide)
    all_x, all_y = torch.cat([x, wide]), torch.cat([y, wide])
    penalty = before.residual_variance / (before.feature_variance / x.var(correction=0))
    centered = all_x - all_x.mean()
    assert_close(
        model.statistics().coefficients.squeeze(0),
        (centered.T @ all_y).squeeze(0) / (centered.square().sum() + penalty),
    )


# Features that depend on each other and on the categories


@settings(max_examples=25)
@given(
    seed=seeds,
    shrink=st.booleans(),
    cells=st.booleans(),
    rounding=st.sampled_from([0.0, 1e-14, 1e-9, 1e-5]),
    noise=st.sampled_from([0.0, 1e-10, 1e-5, 1.0]),
    effect=st.sampled_from([0.0, 1.0]),
)
def test_functions_of_the_categories_up_to_rounding_are_features_like_any_others(
    seed: int, shrink: bool, cells: bool, rounding: float, noise: float, effect: float
) -> None:
    """More features than environments, each a function of them, with any noise: predictions are finite, and honest."""
    y, ids, x, environment = environments(seed, 60)
    rng = torch.Generator().manual_seed(seed)
    x = x + rounding * normal(*x.shape, rng=rng)
    y = effect * normal(50, 1, rng=rng)[environment] + noise * y
    model = MixedEffects(SITES, cells=cells, shrink_features=shrink)
    z = model.fit_transform(y, ids, x)
    assert z.isfinite().all()
    mean, std = model.predict({"site": torch.arange(11), "year": torch.arange(11) % 6}, x[:11] * 2)
    assert mean.isfinite().all()
    assert std.isfinite().all()
    assert (std > 0).all()
    assert_close(model.inverse(model(y, ids, x), ids, x), y, atol=1e-9, rtol=1e-9)


@settings(max_examples=20)
@given(seed=seeds, size=st.integers(1, 40), rank=st.integers(0, 40), power=st.integers(-100, 100))
def test_a_factor_of_any_semi_definite_matrix(seed: int, size: int, rank: int, power: int) -> None:
    """Also of matrices without full rank, which rounding makes indefinite."""
    rng = torch.Generator().manual_seed(seed)
    half = normal(size, min(rank, size), rng=rng) * 10.0 ** normal(size, 1, rng=rng)
    matrix = 10.0**power * half @ half.T
    if not matrix.any():
        matrix = 10.0**power * torch.eye(size, dtype=F64)
    triangle = factorize(matrix)
    scale = matrix.diagonal().sqrt()
    assert_close(
        triangle @ triangle.T / scale / scale.unsqueeze(1), matrix / scale / scale.unsqueeze(1), atol=1e-10, rtol=0
    )


# Many columns


def many(seed: int, n: int = 500) -> tuple[Tensor, dict[str, Tensor], dict[str, int]]:
    """Eight columns: hardly two rows have all categories in common."""
    rng = torch.Generator().manual_seed(seed)
    ids = {c: torch.randint(0, 6, (n,), generator=rng) for c in "abcdefgh"}
    y = sum(normal(6, 1, rng=rng)[i] for i in ids.values()) + normal(n, 1, rng=rng)
    assert isinstance(y, Tensor)
    return y + 2 * normal(36, 1, rng=rng)[6 * ids["c"] + ids["g"]], ids, dict.fromkeys("abcdefgh", 6)


def test_without_cells_of_all_columns_the_size_does_not_grow_with_the_rows() -> None:
    for cells in (False, ["g", "c"]):
        few, more = (MixedEffects(many(0)[2], cells=cells).fit(*many(0, n)[:2]) for n in (300, 3000))
        assert sum(b.numel() for b in few.buffers()) == sum(b.numel() for b in more.buffers())


def test_cells_of_the_columns_that_interact_beat_those_of_all_or_none() -> None:
    y, ids, sizes = many(1)
    first, rest = torch.arange(350), torch.arange(350, 500)
    errors = {}
    for name, cells in {"two": ("c", "g"), "all": True, "none": False, "others": ("a", "b")}.items():
        model = MixedEffects(sizes, cells=cells).fit(y[first], take(ids, first))
        errors[name] = (y[rest] - model.predict(take(ids, rest)).mean).square().mean().item()
        assert (model.statistics().cell_variance.item() > 1) == (name == "two")
    assert all(errors["two"] < 0.6 * errors[name] for name in ("all", "none", "others"))


def test_naming_all_columns_is_the_same_as_true_in_any_order() -> None:
    y, ids, x, _ = environments(0, 3)
    models = [MixedEffects(SITES, cells=cells).fit(y, ids, x) for cells in (True, ("year", "site"), ["site", "year"])]
    assert len({repr(model) for model in models}) == 1
    assert all(torch.equal(model(y, ids, x), models[0](y, ids, x)) for model in models)


@pytest.mark.parametrize("cells", [False, ("c", "g"), True])
def test_updates_with_new_levels_and_cells_equal_one_of_all(cells: Any) -> None:
    y, ids, sizes = many(2, 200)
    model, other = (MixedEffects(sizes, cells=cells).fit(y[:50], take(ids, torch.arange(50))) for _ in range(2))
    model.update(y[50:], take(ids, torch.arange(50, 200)))
    for rows in torch.arange(50, 200).split(37):
        other.update(y[rows], take(ids, rows))
    for ours, theirs in zip(model.predict(ids), other.predict(ids), strict=True):
        assert_close(ours, theirs, atol=1e-9, rtol=1e-9)


def test_the_search_needs_few_solutions(monkeypatch: pytest.MonkeyPatch) -> None:
    """With 8 variances: scoring converges in a few steps, where a search by coordinates takes hundreds."""
    count, solve = [0], _reml.solve

    def counted(*arguments: Any) -> Any:
        count[0] += 1
        return solve(*arguments)

    monkeypatch.setattr(_reml, "solve", counted)
    y, ids, sizes = many(3)
    MixedEffects(sizes, cells=False).fit(y, ids)
    assert 5 < count[0] < 40
