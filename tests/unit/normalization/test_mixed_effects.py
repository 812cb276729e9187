"""The mixed model as a normalizer: limits, invariances, missing values, and the way back to the target."""

import itertools
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from reghead.normalization import MixedEffects

F64 = torch.float64
SIZES = {"location": 7, "season": 4}
seeds = st.integers(0, 2**32 - 1)


def column(*values: float) -> Tensor:
    return torch.tensor(values, dtype=F64).unsqueeze(-1)


def at(*ids: int) -> dict[str, Tensor]:
    return {"location": torch.tensor(ids, dtype=torch.int64)}


def rows(seed: int, n: int = 60, targets: int = 2) -> tuple[Tensor, dict[str, Tensor], Tensor]:
    """Location 6 has no rows; some rows have an unknown season."""
    rng = torch.Generator().manual_seed(seed)
    ids = {"location": torch.randint(1, 6, (n,), generator=rng), "season": torch.randint(0, 4, (n,), generator=rng)}
    x = torch.randn(n, 2, generator=rng, dtype=F64)
    effects = 2 * torch.randn(7, targets, generator=rng, dtype=F64)[ids["location"]]
    return (
        5 + x @ torch.ones(2, targets, dtype=F64) + effects + torch.randn(n, targets, generator=rng, dtype=F64),
        ids,
        x,
    )


def fitted(seed: int, **options: Any) -> tuple[MixedEffects, Tensor, dict[str, Tensor], Tensor]:
    y, ids, x = rows(seed)
    return MixedEffects(SIZES, **options).fit(y, ids, x), y, ids, x


def take(ids: dict[str, Tensor], order: Tensor) -> dict[str, Tensor]:
    return {name: i[order] for name, i in ids.items()}


# Limits


def test_zero_between_variance_pools_completely() -> None:
    """Category means that agree more than noise would let them: every category has the mean of all."""
    y = column(-1, 1, -3, 3, -2, 2)
    model = MixedEffects({"location": 5}).fit(y + 10, at(1, 1, 2, 2, 3, 3))
    assert model.statistics().variances["location"].item() == 0
    mean, std = model.predict(at(0, 1, 2, 3, 4))
    assert_close(mean, torch.full((5, 1), 10.0, dtype=F64))
    # With nothing between categories, an unseen one is as certain as the others: 28/5 of a row, and 1/6 of the mean.
    assert_close(std, torch.full((5, 1), (28 / 5 * (1 + 1 / 6)) ** 0.5, dtype=F64))


def test_an_effect_tends_to_the_category_mean_with_its_rows_and_a_singleton_is_shrunk_most() -> None:
    rng = torch.Generator().manual_seed(1)
    counts = torch.tensor([1, 3, 10, 100, 3000])
    ids = torch.arange(1, 6).repeat_interleave(counts)
    deviation = torch.tensor([-3.0, 3.0, -3.0, 3.0, 0.5], dtype=F64)
    noise = torch.randn(len(ids), 1, generator=rng, dtype=F64)
    for i in range(1, 6):  # the sample means are exact
        noise[ids == i] -= noise[ids == i].mean(dim=0)
    model = MixedEffects({"location": 6}).fit(deviation[ids - 1].unsqueeze(1) + noise, {"location": ids})
    table = model.statistics()
    share = table.effects["location"][1:, 0] / (deviation - table.intercept)
    ratio = table.residual_variance / table.variances["location"]
    assert_close(share, counts / (counts + ratio))
    assert share.diff().gt(0).all()
    assert share[-1] > 0.9995


def test_an_unseen_level_adds_its_component_to_the_residual_and_the_uncertainty_of_the_mean() -> None:
    y = column(-1, 1, 9, 11)
    model = MixedEffects({"location": 4}).fit(y, at(1, 1, 2, 2))
    table = model.statistics()
    assert_close(table.variances["location"], torch.tensor([49.0], dtype=F64))
    assert_close(table.residual_variance, torch.tensor([2.0], dtype=F64))
    # The mean of two means, each of variance 49 + 2/2.
    variance = model.predict(at(0, 3)).std.square()
    assert_close(variance, torch.full((2, 1), 2.0 + 49 + 50 / 2, dtype=F64))


def test_the_spread_falls_from_unknown_column_to_unknown_cell_to_known_cell() -> None:
    model, _, _, _ = fitted(3)
    ids = {"location": torch.tensor([0, 6, 1, 1]), "season": torch.tensor([0, 1, 0, 1])}
    std = model.predict(ids, torch.zeros(4, 2)).std
    table = model.statistics()
    assert (table.variances["location"] > 0).all()
    assert (std[0] >= std[1]).all()
    assert (std[1] > std[2]).all()
    assert (std[2] >= std[3]).all()
    assert (std.square() > table.residual_variance).all()


def test_offsets_are_not_confounded_with_a_feature_that_differs_between_categories() -> None:
    """All of the difference between the category means is the feature's."""
    rng = torch.Generator().manual_seed(0)
    ids = torch.arange(1, 9).repeat_interleave(20)
    x = ids.unsqueeze(1).to(F64) + torch.randn(160, 1, generator=rng, dtype=F64)
    y = 3 * x + 0.1 * torch.randn(160, 1, generator=rng, dtype=F64)
    table = MixedEffects({"location": 9}).fit(y, {"location": ids}, x).statistics()
    assert_close(table.coefficients, torch.tensor([[3.0]], dtype=F64), atol=0.02, rtol=0)
    assert table.effects["location"].abs().max() < 0.05


# Invariances


@settings(max_examples=5)
@given(seed=seeds, factor=st.sampled_from([1e-9, 1e-3, -2.0, 1e9]), shift=st.sampled_from([0.0, -7.0]))
def test_units_of_target_and_features_do_not_matter(seed: int, factor: float, shift: float) -> None:
    model, y, ids, x = fitted(seed)
    other = MixedEffects(SIZES).fit(factor * (y + shift), ids, 1e-6 * x - 3.0)
    assert_close(
        other(factor * (y + shift), ids, 1e-6 * x - 3.0),
        (1 if factor > 0 else -1) * model(y, ids, x),
        atol=1e-5,
        rtol=1e-5,
    )
    new = {"location": torch.tensor([0, 1, 6]), "season": torch.tensor([1, 0, 2])}
    assert_close(
        other.predict(new, 1e-6 * x[:3] - 3.0).std, abs(factor) * model.predict(new, x[:3]).std, rtol=1e-5, atol=0
    )


def test_a_small_spread_on_a_large_mean() -> None:
    y, ids, x = rows(0)
    model = MixedEffects(SIZES).fit(1e-2 * y + 1e9, ids, x)
    assert_close(model(1e-2 * y + 1e9, ids, x), MixedEffects(SIZES).fit(y, ids, x)(y, ids, x), atol=1e-3, rtol=1e-3)


@settings(max_examples=5)
@given(seed=seeds)
def test_the_order_of_rows_and_columns_does_not_matter(seed: int) -> None:
    model, y, ids, x = fitted(seed)
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(seed))
    other = MixedEffects(dict(reversed(SIZES.items())))
    z = other.fit_transform(y[order], take(ids, order), x[order])
    assert_close(z, model.leave_one_out(y, ids, x)[order], atol=1e-5, rtol=1e-5)


@settings(max_examples=5)
@given(seed=seeds)
def test_relabelling_the_categories_does_not_matter(seed: int) -> None:
    model, y, ids, x = fitted(seed)
    names = torch.tensor([0, 4, 6, 1, 3, 2, 5])
    renamed = {**ids, "location": names[ids["location"]]}
    assert_close(MixedEffects(SIZES).fit(y, renamed, x)(y, renamed, x), model(y, ids, x), atol=1e-5, rtol=1e-5)


@settings(max_examples=5)
@given(seed=seeds)
def test_integer_weights_equal_repeated_rows_and_weight_zero_no_row(seed: int) -> None:
    y, ids, x = rows(seed)
    weight = torch.randint(0, 4, (len(y),), generator=torch.Generator().manual_seed(seed))
    repeated = torch.arange(len(y)).repeat_interleave(weight)
    weighted = MixedEffects(SIZES).fit(y, ids, x, weight=weight.to(F64))
    twice = MixedEffects(SIZES).fit(y[repeated], take(ids, repeated), x[repeated])
    assert_close(weighted(y, ids, x), twice(y, ids, x), atol=1e-5, rtol=1e-5)
    assert_close(weighted.predict(ids, x).std, twice.predict(ids, x).std, atol=1e-5, rtol=1e-5)


@settings(max_examples=5)
@given(seed=seeds)
def test_each_target_column_has_a_model_of_its_own_and_its_own_missing_rows(seed: int) -> None:
    _, y, ids, x = fitted(seed)
    y = y.clone()
    y[::3, 0] = torch.nan
    both = MixedEffects(SIZES).fit(y, ids, x)
    z = both.leave_one_out(y, ids, x)
    assert torch.equal(z.isnan(), y.isnan())
    for d in range(2):
        kept = torch.arange(len(y))[~y[:, d].isnan()]
        alone = MixedEffects(SIZES).fit(y[kept, d : d + 1], take(ids, kept), x[kept])
        assert_close(both.predict(ids, x).mean[:, d], alone.predict(ids, x).mean[:, 0], atol=1e-5, rtol=1e-5)
        assert_close(both.predict(ids, x).std[:, d], alone.predict(ids, x).std[:, 0], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("shrink", [True, False])
def test_constant_features_change_nothing_and_for_fixed_ones_repeated_and_combined_ones(shrink: bool) -> None:
    y, ids, x = rows(2)
    model, other = (MixedEffects(SIZES, shrink_features=shrink) for _ in range(2))

    def more(x: Tensor) -> Tensor:
        redundant = [] if shrink else [x[:, :1], 1e6 * (x[:, :1] - x[:, 1:])]
        return torch.cat([x, *redundant, torch.full_like(x[:, :1], 1e5)], dim=1)

    model.fit(y, ids, x)
    other.fit(y, ids, more(x))
    new = x.flip(0) * 3
    for ours, theirs in zip(other.predict(ids, more(new)), model.predict(ids, new), strict=True):
        assert_close(ours, theirs, atol=1e-6, rtol=1e-6)


def test_more_leading_dimensions_and_ids_of_a_prefix() -> None:
    model, _, _, _ = fitted(4)
    y, x = torch.randn(3, 5, 2, generator=torch.Generator().manual_seed(0)), torch.zeros(3, 5, 2)
    ids = {"location": torch.tensor([1, 2, 6]), "season": torch.tensor([[1], [2], [3]]).expand(3, 5)}
    flat = {"location": ids["location"].repeat_interleave(5), "season": ids["season"].reshape(-1)}
    assert_close(model(y, ids, x), model(y.reshape(15, 2), flat, x.reshape(15, 2)).reshape(3, 5, 2))


# Rows that say little


def test_a_constant_target_is_zero_in_z_and_comes_back() -> None:
    for value in (0.0, 0.1, 7e8):
        y = torch.full((4, 1), value, dtype=F64)
        model = MixedEffects({"location": 3}).fit(y, at(1, 1, 2, 2))
        assert model(y, at(1, 2, 0, 1)).abs().max() <= 1e-6
        assert_close(model.inverse(torch.zeros(4, 1, dtype=F64), at(1, 2, 0, 1)), y)


def test_a_target_that_the_categories_explain_without_noise_stays_finite_and_comes_back() -> None:
    y, ids = column(1, 1, 5, 5, 7, 7), at(1, 1, 2, 2, 3, 3)
    model = MixedEffects({"location": 4})
    z = model.fit_transform(y, ids)
    assert z.isfinite().all()
    assert_close(model.predict(ids).mean, y, atol=1e-3, rtol=0)
    assert_close(model.inverse(model(y, ids), ids), y)
    assert model.predict(at(0)).std.item() == pytest.approx((28 / 3 * (1 + 1 / 3)) ** 0.5, rel=1e-3)


def test_singletons_alone_are_one_population_with_bounded_z() -> None:
    y = column(7.0, 7.1, 9.0, 4.0)
    model = MixedEffects({"location": 5}).fit(y, at(1, 2, 3, 4))
    assert model.statistics().variances["location"].item() == 0
    assert_close(model(y, at(1, 2, 3, 4)), (y - y.mean()) / y.std())


def test_a_row_that_alone_determines_a_coefficient_has_zero() -> None:
    x = column(0, 0, 0, 0, 1)
    z = MixedEffects(shrink_features=False).fit_transform(column(1, 2, 3, 4, 50), features=x)
    assert z[-1].item() == 0
    # The others are left out of a mean of three: (1 - 3) / sqrt(variance 5/3 * (1 + 1/3)).
    assert z[0].item() == pytest.approx(-2 / (5 / 3 * 4 / 3) ** 0.5)


def test_leave_one_out_residuals_have_unit_variance_also_in_rare_categories() -> None:
    rng = torch.Generator().manual_seed(0)
    ids = {"location": torch.arange(1, 401).repeat_interleave(2)}
    noise = torch.randn(800, 1, generator=rng, dtype=F64)
    y = 2 * torch.randn(401, 1, generator=rng, dtype=F64)[ids["location"]] + noise
    model = MixedEffects({"location": 401})
    z = model.fit_transform(y, ids)
    assert z.square().mean().item() == pytest.approx(1, abs=0.1)
    assert model(y, ids).square().mean().item() < 0.75  # in-sample residuals are too narrow


# The way back


@settings(max_examples=8)
@given(seed=seeds, transform=st.sampled_from(["identity", "log", "log1p", "softplus", "logit"]))
def test_inverse_undoes_forward_for_known_and_unknown_categories(seed: int, transform: Any) -> None:
    y, ids, x = rows(seed)
    y = torch.sigmoid(y - 5)
    model = MixedEffects(SIZES, transform=transform).fit(y, ids, x)
    other = {"location": torch.arange(60) % 7, "season": torch.arange(60) % 4}
    for categories in (ids, other):
        z = model(y, categories, x)
        assert_close(model.inverse(z, categories, x), y, atol=1e-9, rtol=1e-9)
        # Quantiles that agree are a point, and come back as it does.
        same = z.unsqueeze(-1).expand(-1, -1, 3)
        assert_close(model.inverse(same, categories, x, output_dim=-2), y.unsqueeze(-1).expand(-1, -1, 3))


@settings(max_examples=8)
@given(seed=seeds, q=st.integers(1, 6))
def test_quantiles_keep_their_order_and_are_widened_around_the_middle(seed: int, q: int) -> None:
    model, _, _, _ = fitted(seed)
    z = torch.randn(6, 2, q, generator=torch.Generator().manual_seed(seed), dtype=F64).sort(-1).values
    ids, x = {"location": torch.tensor([0, 1, 2, 3, 5, 6]), "season": torch.arange(6) % 4}, torch.zeros(6, 2)
    out = model.inverse(z, ids, x, output_dim=-2)
    assert out.diff(dim=-1).ge(0).all()
    middle = 0.5 * (z[..., (q - 1) // 2] + z[..., q // 2])
    center = 0.5 * (out[..., (q - 1) // 2] + out[..., q // 2])
    assert_close(center, model.inverse(middle, ids, x))
    # Their distances are those of the row's own standard deviation, that of a prediction.
    std = model.predict(ids, x).std
    assert_close(out - center.unsqueeze(-1), std.unsqueeze(-1) * (z - middle.unsqueeze(-1)))
    assert_close(model.inverse_scale(z - z[..., :1], ids, x, output_dim=-2), out - out[..., :1])
    assert_close(model.inverse_scale(torch.ones(6, 2, dtype=F64), ids, x), std)


def test_a_single_quantile_is_widened_around_a_center_that_is_given() -> None:
    model = MixedEffects({"location": 3}).fit(column(-1, 1, 9, 11), at(1, 1, 2, 2))
    z, zero = torch.full((2, 1, 1), 2.0, dtype=F64), torch.zeros(2, 1, dtype=F64)
    mean, std = model.predict(at(0, 1))
    assert_close(model.inverse(z, at(0, 1), output_dim=-2, center=zero)[..., 0], mean + 2 * std)
    assert_close(model.inverse(z, at(0, 1), output_dim=-2)[..., 0], mean + 2 * 2**0.5)


def test_normal_quantiles_cover_new_categories_at_their_level() -> None:
    """The interval of 80 % for rows of categories that were not in training."""
    rng = torch.Generator().manual_seed(5)
    effects = 2 * torch.randn(2001, 1, generator=rng, dtype=F64)
    ids = torch.arange(1, 201).repeat_interleave(5)
    y = effects[ids] + torch.randn(1000, 1, generator=rng, dtype=F64)
    model = MixedEffects({"location": 2001}).fit(y, {"location": ids})
    new = torch.arange(201, 2001)
    truth = effects[new] + torch.randn(1800, 1, generator=rng, dtype=F64)
    z = torch.tensor([-1.2816, 0.0, 1.2816], dtype=F64).expand(1800, 1, 3)
    low, _, high = model.inverse(z, {"location": new}, output_dim=-2).unbind(-1)
    covered = ((low <= truth) & (truth <= high)).double().mean().item()
    assert abs(covered - 0.8) < 0.05  # five standard errors, and the error of the variance from 200 categories


def test_an_update_without_rows_changes_nothing_and_a_new_category_is_known_afterwards() -> None:
    model, y, ids, x = fitted(1)
    before = {name: t.clone() for name, t in model.state_dict().items()}
    empty = {name: i[:0] for name, i in ids.items()}
    model.update(y[:0], empty, x[:0]).update(torch.full((1, 2), torch.nan), take(ids, torch.tensor([0])), x[:1])
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    new = {"location": torch.tensor([6, 6]), "season": torch.tensor([1, 2])}
    wide = model.predict(new, x[:2]).std
    model.update(torch.full((2, 2), 30.0), new, x[:2])
    assert (model.predict(new, x[:2]).std < wide).all()
    assert (model.statistics().effects["location"][6] > 1).all()


def test_cells_are_effects_beside_the_columns_and_can_be_left_out() -> None:
    ids = torch.cartesian_prod(torch.arange(1, 6), torch.arange(1, 5)).repeat(4, 1)
    rng = torch.Generator().manual_seed(0)
    cell = torch.randn(6, 5, generator=rng, dtype=F64)[ids[:, 0], ids[:, 1]]
    y = (3 * cell + 0.3 * torch.randn(80, generator=rng, dtype=F64)).unsqueeze(1)
    categories = {"location": ids[:, 0], "season": ids[:, 1]}
    sizes = {"location": 6, "season": 5}
    with_cells, without = (MixedEffects(sizes, cells=c).fit(y, categories) for c in (True, False))
    assert with_cells.statistics().cell_variance.item() > 1
    assert without.statistics().cell_variance.item() == 0
    assert with_cells(y, categories).mul(with_cells.statistics().residual_variance.sqrt()).square().mean() < 0.1
    assert without(y, categories).mul(without.statistics().residual_variance.sqrt()).square().mean() > 1


@pytest.mark.parametrize(("missing", "shared"), list(itertools.product([True, False], repeat=2)))
def test_an_update_with_other_missing_rows_than_the_fit(missing: bool, shared: bool) -> None:
    """Sums shared by the target columns come apart when a column misses rows, and all stays as if fitted at once."""
    y, ids, x = rows(9)
    y = y.clone()
    if missing:
        y[3, 0] = torch.nan
    if not shared:
        y[50, 1] = torch.nan
    first, second = torch.arange(45), torch.arange(45, 60)
    model = (
        MixedEffects(SIZES).fit(y[first], take(ids, first), x[first]).update(y[second], take(ids, second), x[second])
    )
    reverse = MixedEffects(SIZES).fit(y[first], take(ids, first), x[first])
    for row in reversed(second.tolist()):
        one = torch.tensor([row])
        reverse.update(y[one], take(ids, one), x[one])
    for ours, theirs in zip(model.predict(ids, x), reverse.predict(ids, x), strict=True):
        assert_close(ours, theirs, atol=1e-9, rtol=1e-9)
