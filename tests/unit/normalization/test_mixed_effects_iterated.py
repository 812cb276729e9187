"""The mixed model with too many levels for a matrix: limits, what stays the same, what it keeps, and what it says."""

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

from _mixed_effects import Whole
from reghead._warnings import RegheadWarning
from reghead.normalization import MixedEffects, _mixed_iterate, _mixed_state, _reml_sampled

F64 = torch.float64
SIZES = {"location": 30, "season": 12}
seeds = st.integers(0, 2**32 - 1)


def iterated(*arguments: Any, sizes: dict[str, int] = SIZES, weight: Tensor | None = None, **options: Any) -> Any:
    """A model fitted by iteration, whatever the number of levels."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_mixed_state, "MAX_LEVELS", 0)
        return MixedEffects(sizes, **options).fit(*arguments, weight=weight)


def rows(seed: int, n: int = 300, targets: int = 2) -> tuple[Tensor, dict[str, Tensor], Tensor]:
    """Location 29 has no rows; some rows have an unknown location or season."""
    rng = torch.Generator().manual_seed(seed)
    ids = {"location": torch.randint(0, 29, (n,), generator=rng), "season": torch.randint(0, 12, (n,), generator=rng)}
    x = torch.randn(n, 2, generator=rng, dtype=F64)
    effects = 2 * torch.randn(30, targets, generator=rng, dtype=F64)[ids["location"]]
    y = 5 + x @ torch.ones(2, targets, dtype=F64) + effects * (ids["location"] > 0).unsqueeze(1)
    return y + torch.randn(n, targets, generator=rng, dtype=F64), ids, x


def take(ids: dict[str, Tensor], order: Tensor) -> dict[str, Tensor]:
    return {name: i[order] for name, i in ids.items()}


# Which solution


def test_more_than_2000_levels_are_solved_by_iteration() -> None:
    n = 2100
    ids = {"a": torch.arange(n) // 2 + 1, "b": torch.arange(n) % 1000 + 1}
    y = torch.randn(n, 1, generator=torch.Generator().manual_seed(0))
    sizes = {"a": 2101, "b": 1001}
    assert repr(MixedEffects(sizes).fit(y, ids)).endswith("0 features, 2050 levels, 2100 profiles, iterated)")
    few = {"a": ids["a"] // 2 + 1, "b": ids["b"]}
    assert repr(MixedEffects(sizes, cells=False).fit(y, few)).endswith("0 features, 1526 levels, 0 cells)")


def test_a_single_column_is_never_iterated() -> None:
    model = iterated(torch.tensor([[-1.0], [1.0], [9.0], [11.0]]), {"a": torch.tensor([1, 1, 2, 2])}, sizes={"a": 3})
    assert model.statistics().effects["a"][1:].flatten().tolist() == pytest.approx([-4.9, 4.9])
    assert model.samples.numel() == 0


def test_an_update_beyond_the_size_of_a_matrix_asks_for_a_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    y, ids, x = rows(0)
    model = MixedEffects(SIZES).fit(y, ids, x)
    before = copy.deepcopy(model.state_dict())
    monkeypatch.setattr(_mixed_state, "MAX_LEVELS", 39)
    model.update(y[:1], take(ids, torch.tensor([0])), x[:1])
    model.load_state_dict(before)
    with pytest.raises(
        ValueError, match=r"levels of 'location', 'season' to 40, but this MixedEffects was .* up to 39; fit again on"
    ):
        model.update(y[:1], {"location": torch.tensor([29]), "season": torch.tensor([1])}, x[:1])
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())


def test_columns_too_large_for_common_keys() -> None:
    sizes = dict.fromkeys("abcd", 10**5)
    ids = dict.fromkeys("abcd", torch.arange(1, 5))
    with pytest.raises(ValueError, match=r"product of at most 2\*\*62 .*; use fewer columns"):
        iterated(torch.arange(4.0).unsqueeze(1), ids, sizes=sizes, cells=False)


def test_equations_that_are_not_solved_in_time_are_warned_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_mixed_iterate, "MAX_ITERATIONS", 2)
    solved = r"mixed model are solved to a relative error of .* join rare levels"
    with pytest.warns(RegheadWarning, match=solved), pytest.warns(RegheadWarning, match="search for the variance"):
        iterated(*rows(0, targets=1))


def test_a_search_that_does_not_end_is_warned_of(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_reml_sampled, "_MAX_STEPS", 1)
    with pytest.warns(
        RegheadWarning, match=r"search for the variance components ended at about \d.* of their standard"
    ):
        iterated(*rows(0, targets=1))


# Limits


def test_zero_components_are_exactly_zero() -> None:
    """Category means that agree better than noise would let them, and features without any bearing."""
    rng = torch.Generator().manual_seed(0)
    ids = {"location": torch.arange(200) % 20 + 1, "season": torch.arange(200) // 20 + 1}
    y = torch.randn(20, 10, generator=rng, dtype=F64)
    y = (y - y.mean(0, keepdim=True) - y.mean(1, keepdim=True)).T.reshape(-1, 1)
    x = torch.randn(200, 2, generator=rng, dtype=F64)
    x = x - y * (y.T @ x) / y.square().sum() - (x - y * (y.T @ x) / y.square().sum()).mean(0)
    table = iterated(y, ids, x).statistics()
    for value in (*table.variances.values(), table.cell_variance, table.feature_variance):
        assert value.item() == 0
    assert not table.effects["location"].any()
    assert_close(table.residual_variance, y.var(dim=0))
    # With nothing between categories, an unknown one is as certain as the others: a row, and the mean of 200.
    std = iterated(y, ids).predict({"location": torch.tensor([0, 1]), "season": torch.tensor([0, 3])}).std
    assert_close(std.square(), (table.residual_variance * (1 + 1 / 200)).expand(2, 1), rtol=0.005, atol=0)


def test_what_the_data_cannot_tell_is_zero() -> None:
    """A column of a single level, one with a row per level, and cells of one row each."""
    rng = torch.Generator().manual_seed(0)
    y = torch.randn(40, 1, generator=rng, dtype=F64)
    ids = {"a": torch.arange(1, 41), "b": torch.ones(40, dtype=torch.int64), "c": torch.arange(40) % 8 + 1}
    table = iterated(y + 3 * ids["c"].unsqueeze(1), ids, sizes={"a": 41, "b": 2, "c": 9}).statistics()
    assert (table.variances["a"].item(), table.variances["b"].item(), table.cell_variance.item()) == (0, 0, 0)
    assert table.variances["c"].item() > 10


def test_unknown_levels_add_their_components() -> None:
    model = iterated(*rows(1))
    table = model.statistics()
    ids = {"location": torch.tensor([0, 29, 0, 5]), "season": torch.tensor([0, 1, 1, 1])}
    known = model._uncertainty(model._rows(list(ids.values()), torch.zeros(4, 2), 4))[0] * table.residual_variance
    extra = model.predict(ids, torch.zeros(4, 2)).std.square() - table.residual_variance - known
    location, season, cell = table.variances["location"], table.variances["season"], table.cell_variance
    assert_close(extra[0], location + season + cell)
    assert_close(extra[1], location + cell)
    assert_close(extra[2], location + cell)
    seen = bool(((rows(1)[1]["location"] == 5) & (rows(1)[1]["season"] == 1)).any())
    assert_close(extra[3], torch.zeros(2, dtype=F64) if seen else cell)


@pytest.mark.parametrize("value", [0.0, 7e8])
def test_a_constant_target(value: float) -> None:
    _, ids, x = rows(2)
    y = torch.full((300, 1), value, dtype=F64)
    model = iterated(y, ids, x)
    assert model(y, ids, x).abs().max() <= 1e-6
    assert_close(model.inverse(torch.zeros(300, 1, dtype=F64), ids, x), y)


def test_a_target_without_noise_stays_finite_and_comes_back() -> None:
    _, ids, x = rows(3)
    y = (ids["location"] * 2.0 + ids["season"]).to(F64).unsqueeze(1)
    model = iterated(y, ids, x, cells=False)
    assert model.leave_one_out(y, ids, x).isfinite().all()
    assert_close(model.predict(ids, x).mean, y, atol=1e-2, rtol=0)
    assert_close(model.inverse(model(y, ids, x), ids, x), y)


def test_leave_one_out_residuals_have_unit_variance_also_in_rare_categories() -> None:
    rng = torch.Generator().manual_seed(0)
    ids = {c: torch.randint(1, 401, (900,), generator=rng) for c in "ab"}
    y = torch.randn(900, 1, generator=rng, dtype=F64)
    y = y + sum(2 * torch.randn(401, 1, generator=rng, dtype=F64)[i] for i in ids.values())
    model = iterated(y, ids, sizes=dict.fromkeys("ab", 401))
    assert model.leave_one_out(y, ids).square().mean().item() == pytest.approx(1, abs=0.15)
    assert model(y, ids).square().mean().item() < 0.75  # in-sample residuals are too narrow


def test_a_row_that_alone_determines_a_coefficient_says_nothing_of_itself() -> None:
    """Its estimated leverage may come out above 1; what is left of it is then bounded, and its error is 0."""
    y, ids, _ = rows(5, targets=1)
    x = torch.zeros(300, 1, dtype=F64)
    x[0] = 1
    y, ids, x = torch.cat([y, y[:1] + 3]), {c: torch.cat([i, i[:1]]) for c, i in ids.items()}, torch.cat([x, 0 * x[:1]])
    y[0] = 50
    z = iterated(y, ids, x, shrink_features=False).leave_one_out(y, ids, x)
    assert z[0].abs() < 1e-4
    assert z[1:].square().mean().item() == pytest.approx(1, abs=0.2)


# Invariances


@settings(max_examples=3)
@given(seed=seeds)
def test_order_of_rows_and_columns_and_units_do_not_matter(seed: int) -> None:
    y, ids, x = rows(seed)
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(seed))
    model = iterated(y, ids, x)
    other = iterated(-1e6 * y[order] + 3, take(ids, order), 1e-3 * x[order] - 7, sizes=dict(reversed(SIZES.items())))
    assert_close(
        other.leave_one_out(-1e6 * y + 3, ids, 1e-3 * x - 7), -model.leave_one_out(y, ids, x), atol=1e-3, rtol=0
    )
    left, right = other.predict(ids, 1e-3 * x - 7), model.predict(ids, x)
    assert_close(left.mean, -1e6 * right.mean + 3, atol=1e3, rtol=0)
    assert_close(left.std, 1e6 * right.std, atol=0, rtol=1e-3)


@settings(max_examples=3)
@given(seed=seeds)
def test_integer_weights_equal_repeated_rows_and_weight_zero_no_row(seed: int) -> None:
    y, ids, x = rows(seed)
    weight = torch.randint(0, 4, (len(y),), generator=torch.Generator().manual_seed(seed))
    repeated = torch.arange(len(y)).repeat_interleave(weight)
    weighted = iterated(y, ids, x, weight=weight.to(F64))
    twice = iterated(y[repeated], take(ids, repeated), x[repeated])
    assert_close(weighted.predict(ids, x), twice.predict(ids, x), atol=1e-3, rtol=1e-3)


@settings(max_examples=3)
@given(seed=seeds)
def test_a_fit_is_a_function_of_its_data_and_leaves_the_global_generator_alone(seed: int) -> None:
    torch.manual_seed(seed % 1000)
    before = torch.get_rng_state()
    first = iterated(*rows(seed))
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(seed % 1000 + 1)
    second = iterated(*rows(seed))
    for ours, theirs in zip(first.buffers(), second.buffers(), strict=True):
        assert torch.equal(ours, theirs)


def test_each_target_column_has_a_model_of_its_own_and_its_own_missing_rows() -> None:
    """Variances differ by the error of their estimation; effects given them do not."""
    y, ids, x = rows(4)
    y[::3, 0] = torch.nan
    both = iterated(y, ids, x)
    assert torch.equal(both.leave_one_out(y, ids, x).isnan(), y.isnan())
    for d in range(2):
        kept = torch.arange(len(y))[~y[:, d].isnan()]
        alone = iterated(y[kept, d : d + 1], take(ids, kept), x[kept])
        ours, theirs = both.predict(ids, x), alone.predict(ids, x)
        assert_close(ours.mean[:, d], theirs.mean[:, 0], atol=0.1, rtol=0)
        assert_close(ours.std[:, d], theirs.std[:, 0], atol=0, rtol=0.1)


def test_rows_without_any_known_id_count_for_the_population() -> None:
    y, ids, x = rows(5, targets=1)
    unknown = {c: torch.zeros(300, dtype=torch.int64) for c in SIZES}
    more = {c: torch.cat([ids[c], unknown[c]]) for c in SIZES}
    both = iterated(torch.cat([y, y + 4]), more, torch.cat([x, x]))
    exact = MixedEffects(SIZES).fit(torch.cat([y, y + 4]), more, torch.cat([x, x]))
    assert_close(both.predict(unknown, x), exact.predict(unknown, x), atol=0.05, rtol=0.05)
    assert_close(both.statistics().intercept, exact.statistics().intercept, atol=0.05, rtol=0)


# The module


@pytest.mark.parametrize("cells", [True, False])
def test_state_dict_and_files_answer_bit_by_bit_as_the_module_did(tmp_path: Path, cells: bool) -> None:
    model = iterated(*rows(6), cells=cells)
    torch.save(model.state_dict(), tmp_path / "state.pt")
    model.save(tmp_path / "model.safetensors")
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    fresh, exact = MixedEffects(SIZES, cells=cells), MixedEffects(SIZES, cells=cells).fit(*rows(7))
    fresh.load_state_dict(state, strict=True)
    exact.load_state_dict(state, strict=True)
    others = [fresh, exact, MixedEffects.from_state_dict(state), MixedEffects.load(tmp_path / "model.safetensors")]
    others += [copy.deepcopy(model), pickle.loads(pickle.dumps(model))]
    whole, example = Whole(model), rows(8, 20)
    answers = whole(*example)
    for other in others:
        assert all(torch.equal(a, b) for a, b in zip(Whole(other)(*example), answers, strict=True))
    model.update(*example)
    for other in others:
        other.update(*example)
        assert all(torch.equal(a, b) for a, b in zip(other.buffers(), model.buffers(), strict=True))


def test_a_state_dict_whose_samples_do_not_fit() -> None:
    state = iterated(*rows(6)).state_dict()
    for name, size in (("samples", r"\(2, 43, 64\)"), ("corrections", r"\(2, \d+\)"), ("gram", r"\(1, 4, 4\)")):
        wrong = state | {name: state[name][..., :1]} if name != "samples" else state | {name: state[name][:, :5]}
        with pytest.raises(ValueError, match=f"state_dict's {name} must have shape {size} to go with"):
            MixedEffects(SIZES).load_state_dict(wrong)


@pytest.mark.parametrize("cells", [True, False])
def test_compile_and_export_of_forward_and_both_inverses(cells: bool) -> None:
    torch._dynamo.reset()
    whole = Whole(iterated(*rows(6), cells=cells)).eval()
    example = rows(8, 6)
    assert_close(torch.compile(whole, fullgraph=True, backend="aot_eager")(*example), whole(*example))
    batch = torch.export.Dim("batch")
    shapes = ({0: batch}, {column: {0: batch} for column in SIZES}, {0: batch})
    program = torch.export.export(whole, example, dynamic_shapes=shapes).module()
    for n in (3, 400):
        assert_close(program(*rows(9, n)), whole(*rows(9, n)))


def test_vmap_one_by_one_empty_batches_gradients_and_autocast() -> None:
    whole, (y, ids, x) = Whole(iterated(*rows(6))), rows(8, 5)
    together = whole(y, ids, x)
    assert_close(torch.func.vmap(whole)(y, ids, x), together)
    one = [whole(y[i : i + 1], {k: v[i : i + 1] for k, v in ids.items()}, x[i : i + 1]) for i in range(5)]
    assert_close(tuple(torch.cat(part) for part in zip(*one, strict=True)), together)
    assert all(len(part) == 0 for part in whole(*rows(8, 0)))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert_close(whole(y, ids, x), together)
    assert torch.autograd.gradcheck(lambda y, x: whole(y, ids, x), (y.requires_grad_(), x.requires_grad_()))


def test_casts_keep_the_statistics() -> None:
    model = iterated(*rows(6))
    for ours, theirs in zip(copy.deepcopy(model).half().buffers(), model.buffers(), strict=True):
        assert ours.dtype == theirs.dtype
        assert torch.equal(ours, theirs)


@pytest.mark.slow
def test_two_columns_of_10000_levels_in_100000_rows() -> None:
    """Simulated: the variances come out within four of their standard errors, sqrt(2 / levels) and a little more."""
    rng = torch.Generator().manual_seed(0)
    ids = {c: torch.randint(1, 10_001, (100_000,), generator=rng) for c in "ab"}
    x = torch.randn(100_000, 3, generator=rng, dtype=F64)
    y = x.sum(dim=1, keepdim=True) + torch.randn(100_000, 1, generator=rng, dtype=F64)
    for c, scale in (("a", 1.0), ("b", 0.5)):
        y = y + scale * torch.randn(10_001, 1, generator=rng, dtype=F64)[ids[c]]
    model = MixedEffects(dict.fromkeys("ab", 10_001)).fit(y, ids, x)
    table = model.statistics()
    assert table.variances["a"].item() == pytest.approx(1, rel=0.08)
    assert table.variances["b"].item() == pytest.approx(0.25, rel=0.1)
    # Hardly any combination has two rows that would tell its effect from the residual.
    assert (table.cell_variance + table.residual_variance).item() == pytest.approx(1, rel=0.03)
    assert_close(table.coefficients, torch.ones(1, 3, dtype=F64), atol=0.02, rtol=0)
    assert model.leave_one_out(y, ids, x).square().mean().item() == pytest.approx(1, abs=0.03)
