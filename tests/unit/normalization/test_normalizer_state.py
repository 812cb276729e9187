"""The statistics as state: casts, devices, loading, and what torch compiles and exports."""

import copy
import io
import json
import pickle
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close
from torch.utils._pytree import tree_map

from reghead._warnings import UnseenCategoryWarning
from reghead.normalization import CategoryNormalizer

CARDINALITIES = {"location": 7, "season": 4}
OPTIONS = {
    "plain": ({"location": 7, "season": 4}, {}),
    "population": ({}, {}),
    "both": (CARDINALITIES, {"fallback": "additive", "shrinkage": "empirical_bayes"}),
    "bounded": (CARDINALITIES, {"transform": "logit", "bounds": (0.0, 100.0)}),
    "softplus": (CARDINALITIES, {"transform": "softplus"}),
    "sparse": ({"location": 2**25, "season": 2**25}, {}),
}


def data(n: int = 64) -> tuple[Tensor, dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    ids = {c: torch.randint(0, 4, (n,), generator=generator) for c in CARDINALITIES}
    return 50 + 3 * torch.randn(n, 3, generator=generator), ids


@pytest.fixture(params=OPTIONS.values(), ids=OPTIONS)
def fitted(request: pytest.FixtureRequest) -> CategoryNormalizer:
    cardinalities, options = request.param
    y, ids = data()
    return CategoryNormalizer(cardinalities, **options).fit(y, ids)


def empty_like(normalizer: CategoryNormalizer) -> CategoryNormalizer:
    return CategoryNormalizer._from_description(normalizer._describe())


def assert_same_answers(one: nn.Module, other: nn.Module) -> None:
    y, ids = data()
    assert torch.equal(one(y, ids), other(y, ids))


def test_the_state_dict_goes_through_a_safe_load_into_an_unfitted_module(fitted: CategoryNormalizer) -> None:
    buffer = io.BytesIO()
    torch.save(fitted.state_dict(), buffer)
    buffer.seek(0)
    state = torch.load(buffer, weights_only=True)
    loaded = empty_like(fitted)
    loaded.load_state_dict(state, strict=True)
    assert_same_answers(loaded, fitted)
    assert_same_answers(CategoryNormalizer.from_state_dict(state), fitted)
    y, ids = data()
    assert_same_answers(loaded.partial_fit(0.9 * y, ids), copy.deepcopy(fitted).partial_fit(0.9 * y, ids))


def test_a_module_fitted_on_other_cells_adopts_what_it_loads(fitted: CategoryNormalizer) -> None:
    other = empty_like(fitted).fit(torch.ones(2, 1), {c: torch.ones(2, dtype=torch.int64) for c in CARDINALITIES})
    other.load_state_dict(fitted.state_dict())
    assert other.out_features == 3
    assert_same_answers(other, fitted)
    assert list(other.parameters()) == []


def test_an_unfitted_module_loads_as_unfitted(fitted: CategoryNormalizer) -> None:
    fitted.load_state_dict(empty_like(fitted).state_dict())
    assert not fitted.is_fitted


def test_it_saves_to_one_file_with_readable_options(fitted: CategoryNormalizer, tmp_path: Path) -> None:
    pytest.importorskip("safetensors")
    fitted.save(tmp_path / "normalizer.safetensors")
    assert_same_answers(CategoryNormalizer.load(tmp_path / "normalizer.safetensors"), fitted)
    description = json.loads((tmp_path / "normalizer.safetensors.json").read_text())
    assert description["type"] == "CategoryNormalizer"
    assert description["cardinalities"] == fitted.cardinalities


def test_as_part_of_a_model_it_loads_under_its_prefix(fitted: CategoryNormalizer) -> None:
    model = nn.ModuleDict({"head": nn.Linear(2, 1), "normalizer": fitted})
    twin = nn.ModuleDict({"head": nn.Linear(2, 1), "normalizer": empty_like(fitted)})
    twin.load_state_dict(model.state_dict(), assign=True)
    assert_same_answers(twin["normalizer"], fitted)
    assert_same_answers(CategoryNormalizer.from_state_dict(model.state_dict(), prefix="normalizer."), fitted)


@pytest.mark.parametrize("cast", [nn.Module.half, nn.Module.bfloat16, nn.Module.float, nn.Module.double])
def test_dtype_casts_of_a_model_leave_the_statistics_alone(cast: object, fitted: CategoryNormalizer) -> None:
    model = nn.Sequential(nn.Linear(2, 2), copy.deepcopy(fitted))
    cast(model)  # type: ignore[operator]
    model.to(torch.bfloat16)
    assert model[0].weight.dtype == torch.bfloat16
    assert_same_answers(model[1], fitted)
    assert {b.dtype for b in model[1].buffers()} <= {torch.float64, torch.int64, torch.bool}


def test_device_moves_take_the_statistics_along(fitted: CategoryNormalizer) -> None:
    moved = copy.deepcopy(fitted).to("meta", torch.float16)
    assert {b.device.type for b in moved.buffers()} == {"meta"}
    assert moved.location.dtype == torch.float64
    y, ids = (tree_map(lambda t: t.to("meta"), part) for part in data())
    z = moved(y, ids)  # which fails for a table that was left behind
    assert (z.device.type, z.shape) == ("meta", y.shape)
    assert moved.inverse(z, ids).device.type == "meta"


def test_copies_and_pickles_answer_the_same(fitted: CategoryNormalizer) -> None:
    for twin in (copy.deepcopy(fitted), pickle.loads(pickle.dumps(fitted))):
        assert_same_answers(twin, fitted)
    detached = copy.deepcopy(fitted).partial_fit(*data())
    assert not torch.equal(detached.cell_count, fitted.cell_count)


@pytest.mark.parametrize("change", [{"shrinkage": "empirical_bayes"}, {"transform": "log"}, {"fallback": "additive"}])
def test_a_state_dict_of_other_options_is_refused_and_changes_nothing(change: dict[str, str]) -> None:
    y, ids = data()
    normalizer = CategoryNormalizer(CARDINALITIES).fit(y, ids)
    before = normalizer(y, ids)
    with pytest.raises(ValueError, match=f"written by another CategoryNormalizer: {next(iter(change))} differs"):
        normalizer.load_state_dict(CategoryNormalizer(CARDINALITIES, **change).fit(y + 1, ids).state_dict())  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="location is 9 there and 7 here"):
        normalizer.load_state_dict(CategoryNormalizer(CARDINALITIES | {"location": 9}).state_dict())
    assert torch.equal(normalizer(y, ids), before)


def test_a_state_dict_whose_parts_disagree_is_refused_and_changes_nothing() -> None:
    y, ids = data()
    normalizer = CategoryNormalizer(CARDINALITIES, fallback="additive").fit(y, ids)
    before = normalizer(y, ids)
    for name in ("scale", "effects", "cell_keys", "effect_scale"):
        state = normalizer.state_dict()
        state[name] = state[name][:-1]
        with pytest.raises(ValueError, match=rf"state_dict's {name} must have shape .* to go with cell_mean"):
            normalizer.load_state_dict(state)
    state = normalizer.state_dict()
    del state["scale"]
    for strict in (True, False):
        with pytest.raises(ValueError, match=r"a part of the statistics, and nothing was loaded; it lacks scale"):
            normalizer.load_state_dict(state, strict=strict)
    assert torch.equal(normalizer(y, ids), before)


@pytest.mark.parametrize("sparse", [False, True])
def test_statistics_that_were_changed_are_refused_and_change_nothing(sparse: bool) -> None:
    """Keys are searched in and say where to look in tables; a scale is divided by."""
    size = 2**25 if sparse else 7
    y, ids = data()
    normalizer = CategoryNormalizer({"location": size, "season": size}).fit(y, ids)
    before, state = normalizer(y, ids), normalizer.state_dict()
    keys = state["cell_keys"]
    for at, key in ((0, -1), (0, 1), (1, 0), (2, int(keys[1])), (3, int(keys[1])), (-1, size**2), (-1, -5)):
        changed = keys.clone()
        changed[at] = key
        with pytest.raises(ValueError, match=rf"cell_keys must be 0 and increasing numbers below {size**2}, the numb"):
            normalizer.load_state_dict(state | {"cell_keys": changed})
    for place in ((0, 0), (-1, 2)):
        for value in (0.0, -0.5):
            scale = state["scale"].clone()
            scale[place] = value
            with pytest.raises(ValueError, match=f"state_dict's scale must be positive, got {value:g}"):
                normalizer.load_state_dict(state | {"scale": scale})
    assert torch.equal(normalizer(y, ids), before)
    last = keys.clone()
    last[-1] = size**2 - 1
    normalizer.load_state_dict(state | {"cell_keys": last})


def test_statistics_of_any_other_shape_are_refused() -> None:
    """Whichever it is, longer or shorter by one in any dimension, or with one more of them."""
    y, ids = data()
    for fallback in ("global", "additive"):
        normalizer = CategoryNormalizer(CARDINALITIES, fallback=fallback).fit(y, ids)  # type: ignore[arg-type]
        state, before = normalizer.state_dict(), normalizer(y, ids)
        for name, tensor in state.items():
            if name.endswith("extra_state"):
                continue
            for dim in range(tensor.ndim):
                size = tensor.shape[dim]
                wrongs = [torch.cat([tensor, tensor], dim=dim)] if size else []
                wrongs += [tensor.narrow(dim, 0, size - 1)] if size else []
                for wrong in (*wrongs, tensor.unsqueeze(-1)):
                    with pytest.raises(ValueError, match=r"must have shape .* to go with cell_mean, got \("):
                        normalizer.load_state_dict(state | {name: wrong})
        assert torch.equal(normalizer(y, ids), before)


def test_a_state_dict_on_the_meta_device_has_shapes_alone() -> None:
    y, ids = data()
    state = CategoryNormalizer(CARDINALITIES).fit(y, ids).state_dict()
    on_meta = CategoryNormalizer(CARDINALITIES).to("meta")
    on_meta.load_state_dict({name: t if name.endswith("extra_state") else t.to("meta") for name, t in state.items()})
    assert on_meta.location.shape == state["location"].shape


@pytest.mark.parametrize("others", [{"alpha": 1}, {"zeta": 1}])
def test_a_description_with_other_keys_is_refused(others: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=r"must have cardinalities, shrinkage, .*, got \['cardinalities'\]"):
        CategoryNormalizer._from_description({"cardinalities": {}})
    whole = CategoryNormalizer(CARDINALITIES)._describe()
    with pytest.raises(ValueError, match=f"got .*'{next(iter(others))}'"):
        CategoryNormalizer._from_description(whole | others)


def test_loading_makes_the_warning_due_again() -> None:
    y, ids = data()
    normalizer = CategoryNormalizer(CARDINALITIES).fit(y, ids)
    new = {"location": torch.tensor([6]), "season": torch.tensor([1])}
    for _ in range(2):
        with pytest.warns(UnseenCategoryWarning, match=r"\(location=6, season=1\)"):
            normalizer(y[:1], new)
        normalizer(y[:1], new)
        normalizer.load_state_dict(normalizer.state_dict())


def test_it_compiles_as_one_graph(fitted: CategoryNormalizer) -> None:
    y, ids = data()
    z = fitted(y, ids)
    assert_close(torch.compile(fitted, fullgraph=True, backend="aot_eager")(y, ids), z)
    assert_close(torch.compile(fitted.inverse, fullgraph=True, backend="aot_eager")(z, ids), fitted.inverse(z, ids))


def test_under_compile_it_neither_warns_nor_raises_and_reads_a_wrong_id_as_unknown() -> None:
    y, ids = data()
    normalizer = CategoryNormalizer(CARDINALITIES).fit(y, ids)
    compiled = torch.compile(normalizer, fullgraph=True, backend="aot_eager")
    z = compiled(y[:2], {"location": torch.tensor([6, 99]), "season": torch.tensor([1, 1])})
    assert_close(z, normalizer(y[:2], {c: torch.zeros(2, dtype=torch.int64) for c in CARDINALITIES}))


def test_it_exports_with_a_dynamic_batch(fitted: CategoryNormalizer) -> None:
    y, ids = data()
    batch = torch.export.Dim("batch")
    shapes = ({0: batch}, {column: {0: batch} for column in ids})
    exported = torch.export.export(fitted, (y, ids), dynamic_shapes=shapes).module()
    few = {column: i[:5] for column, i in ids.items()}
    assert_close(exported(y[:5], few), fitted(y[:5], few))


def test_it_maps_over_rows_and_has_the_gradients_of_its_formula(fitted: CategoryNormalizer) -> None:
    y, ids = data(8)
    z = fitted(y, ids)

    def one(row: Tensor, location: Tensor, season: Tensor) -> Tensor:
        return fitted(row, {"location": location, "season": season})

    def total(row: Tensor, location: Tensor, season: Tensor) -> Tensor:
        return fitted.inverse(row, {"location": location, "season": season}).sum()

    assert_close(torch.func.vmap(one)(y, ids["location"], ids["season"]), z)
    slope = torch.func.vmap(torch.func.grad(total))(z, ids["location"], ids["season"])
    leaf = z.clone().requires_grad_()
    fitted.inverse(leaf, ids).sum().backward()
    assert_close(slope, leaf.grad)
    assert torch.autograd.gradcheck(lambda t: fitted.inverse(t, ids), z.double().requires_grad_())
    assert torch.autograd.gradcheck(lambda t: fitted(t, ids), y.double().requires_grad_())


def test_large_batches_have_gradients_too() -> None:
    y, ids = data()
    normalizer = CategoryNormalizer(CARDINALITIES).fit(y, ids)
    z = torch.zeros(64 * 1000, 3, requires_grad=True)
    many = {column: i.repeat(1000) for column, i in ids.items()}
    normalizer.inverse(z, many).sum().backward()
    assert_close(z.grad, normalizer.inverse_scale(torch.ones_like(z), many))


def test_bfloat16_autocast_changes_nothing(fitted: CategoryNormalizer) -> None:
    y, ids = data()
    z = fitted(y, ids)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(fitted(y, ids), z)
        assert fitted.inverse(z, ids).dtype == torch.float32


def test_strided_input_is_read_as_it_is(fitted: CategoryNormalizer) -> None:
    y, ids = data()
    strided = y.T.contiguous().T
    spread = {column: torch.stack([i, i], dim=1)[:, 0] for column, i in ids.items()}
    assert not strided.is_contiguous()
    assert torch.equal(fitted(strided, spread), fitted(y, ids))
    assert_same_answers(empty_like(fitted).fit(strided, spread), fitted)
