"""The mixed model as a module: what it keeps, copies, exports and loads."""

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from _mixed_effects import Whole
from reghead.normalization import MixedEffects, _mixed_state

F64 = torch.float64
SIZES = {"location": 5, "season": 4}


def inputs(n: int, seed: int = 0, dtype: torch.dtype = F64) -> tuple[Tensor, dict[str, Tensor], Tensor]:
    rng = torch.Generator().manual_seed(seed)
    ids = {column: torch.randint(0, size, (n,), generator=rng) for column, size in SIZES.items()}
    y, x = torch.randn(n, 2, generator=rng, dtype=F64), torch.randn(n, 3, generator=rng, dtype=F64)
    return (y + ids["location"].unsqueeze(1)).to(dtype), ids, x.to(dtype)


def fitted(**options: Any) -> MixedEffects:
    return MixedEffects(SIZES, **options).fit(*inputs(50))


def answers(model: MixedEffects, n: int = 9) -> list[Tensor]:
    y, ids, x = inputs(n, seed=1)
    quantiles = torch.stack([y - 1, y, y + 2], dim=-1)
    return [
        model(y, ids, x),
        model.inverse(y, ids, x),
        model.inverse(quantiles, ids, x, output_dim=-2),
        *model.predict(ids, x),
    ]


def test_state_dict_and_files_answer_bit_by_bit_as_the_module_did(tmp_path: Path) -> None:
    pytest.importorskip("safetensors")
    model = fitted(transform="identity")
    torch.save(model.state_dict(), tmp_path / "state.pt")
    model.save(tmp_path / "model.safetensors")
    state = torch.load(tmp_path / "state.pt", weights_only=True)
    fresh, filled = MixedEffects(SIZES), MixedEffects(SIZES).fit(*inputs(30, seed=4))
    fresh.load_state_dict(state, strict=True)
    filled.load_state_dict(state, strict=True)
    others = [fresh, filled, MixedEffects.from_state_dict(state), MixedEffects.load(tmp_path / "model.safetensors")]
    others += [copy.deepcopy(model), pickle.loads(pickle.dumps(model))]
    for other in others:
        for ours, theirs in zip(answers(other), answers(model), strict=True):
            assert torch.equal(ours, theirs)
        other.update(*inputs(5, seed=3))
    assert_close(answers(others[0]), answers(others[-1]), rtol=0, atol=0)


def test_an_unfitted_module_round_trips_too() -> None:
    other = MixedEffects(SIZES)
    other.load_state_dict(MixedEffects(SIZES).state_dict(), strict=True)
    assert not other.is_fitted


def test_a_dense_matrix_is_for_as_many_sampled_levels_as_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """The unknown one is none of them, nor are those without rows."""
    ids = {"location": torch.tensor([0, 1, 2, 2, 1, 1]), "season": torch.tensor([1, 1, 3, 3, 0, 3])}
    y = torch.tensor([[1.0], [2.0], [4.0], [5.0], [7.0], [1.0]], dtype=F64)
    for most, levels in ((4, 4), (3, 0)):
        monkeypatch.setattr(_mixed_state, "MAX_LEVELS", most)
        model = MixedEffects(SIZES, cells=False).fit(y, ids)
        assert model.inverse_matrix.shape[1] == (1 + 1 + levels if levels else 0)
        assert (model.samples.numel() == 0) == bool(levels)


@pytest.mark.parametrize("iterated", [False, True])
@pytest.mark.parametrize("groups", [1, 2])
def test_statistics_of_any_other_shape_are_refused(
    iterated: bool, groups: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever it is, longer or shorter by one in any dimension, or with another number of them."""
    monkeypatch.setattr(_mixed_state, "MAX_LEVELS", 0 if iterated else 2_000)
    y, ids, x = inputs(50)
    y[0, 0] = torch.nan if groups == 2 else 0.0
    model = MixedEffects(SIZES).fit(y, ids, x)
    state, before = model.state_dict(), answers(model)
    assert model.gram.shape[0] == groups
    for name, tensor in state.items():
        if name.endswith("extra_state"):
            continue
        with pytest.raises(
            ValueError, match=rf"state_dict's {name} must have {tensor.ndim} dimensions, got {tensor.ndim + 1}"
        ):
            model.load_state_dict(state | {name: tensor.unsqueeze(0)})
        for dim in range(tensor.ndim):
            if tensor.shape[dim] and (name, dim) != ("samples", 2):  # any number of samples will do
                for wrong in (tensor.narrow(dim, 0, tensor.shape[dim] - 1), torch.cat([tensor, tensor], dim=dim)):
                    with pytest.raises(ValueError, match=r"must have shape .* to go with its other statistics, got"):
                        model.load_state_dict(state | {name: wrong})
    for ours, theirs in zip(answers(model), before, strict=True):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_casts_keep_the_statistics(dtype: torch.dtype) -> None:
    model, cast = fitted(), fitted().to(dtype)
    for (name, ours), theirs in zip(cast.named_buffers(), model.buffers(), strict=True):
        assert ours.dtype == theirs.dtype, name
        assert torch.equal(ours, theirs), name
    y, ids, x = inputs(6, seed=1, dtype=dtype)
    assert cast(y, ids, x).dtype == dtype
    assert cast.inverse(y, ids, x).dtype == torch.promote_types(dtype, torch.float32)


@pytest.mark.parametrize("cells", [True, False])
def test_compile_and_export_of_forward_and_both_inverses(cells: bool) -> None:
    torch._dynamo.reset()
    whole = Whole(fitted(cells=cells)).eval()
    example = inputs(6, seed=1)
    assert_close(torch.compile(whole, fullgraph=True, backend="aot_eager")(*example), whole(*example))
    batch = torch.export.Dim("batch")
    shapes = ({0: batch}, {column: {0: batch} for column in SIZES}, {0: batch})
    program = torch.export.export(whole, example, dynamic_shapes=shapes).module()
    for n in (3, 400):
        assert_close(program(*inputs(n, seed=2)), whole(*inputs(n, seed=2)))


def test_rows_do_not_depend_on_each_other_under_vmap_and_one_by_one() -> None:
    whole, example = Whole(fitted()), inputs(6, seed=1)
    together = whole(*example)
    assert_close(torch.func.vmap(whole)(*example), together)
    one = [
        whole(example[0][i : i + 1], {k: v[i : i + 1] for k, v in example[1].items()}, example[2][i : i + 1])
        for i in range(6)
    ]
    assert_close(tuple(torch.cat(part) for part in zip(*one, strict=True)), together)
    for part in whole(*inputs(0)):
        assert len(part) == 0


def test_gradients_reach_target_and_features() -> None:
    whole, (y, ids, x) = Whole(fitted()), inputs(4, seed=1)
    leaves = (y.requires_grad_(), x.requires_grad_())
    assert torch.autograd.gradcheck(lambda y, x: whole(y, ids, x), leaves)


def test_autocast_and_non_contiguous_inputs_change_nothing() -> None:
    model, (y, ids, x) = fitted(), inputs(8, seed=1, dtype=torch.float32)
    expected = model(y, ids, x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert_close(model(y, ids, x).float(), expected, atol=1e-6, rtol=1e-6)
    strided = {column: i.repeat_interleave(2)[::2] for column, i in ids.items()}
    assert torch.equal(model(y.T.contiguous().T, strided, x.T.contiguous().T), expected)


def test_an_id_out_of_range_is_read_as_unknown_where_values_cannot_be_looked_at() -> None:
    torch._dynamo.reset()
    model, (y, ids, x) = fitted(), inputs(3, seed=1)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    wrong = {**ids, "location": torch.tensor([5, -1, 99])}
    assert_close(compiled(y, wrong, x), model(y, {**ids, "location": torch.zeros(3, dtype=torch.int64)}, x))


def test_repr_names_options_and_sizes() -> None:
    assert repr(MixedEffects(SIZES)).endswith("transform='identity', not fitted)")
    assert "cells=('location', 'season'), shrink_features=True, transform='identity', not" in repr(MixedEffects(SIZES))
    assert "'season': 4}, cells=(), shrink_features=True, transform='identity', 3 features, 7 levels, 0 cells)" in repr(
        fitted(cells=False)
    )
    known = [i for i in zip(*(i.tolist() for i in inputs(50)[1].values()), strict=True) if all(i)]
    assert f"3 features, 7 levels, {len(set(known))} cells)" in repr(fitted())
    assert "bounds=(0.0, 9.0)" in repr(MixedEffects(transform="logit", bounds=(0.0, 9.0)))


@pytest.mark.parametrize("others", [{"alpha": 1}, {"zeta": 1}])
def test_a_description_with_other_keys_is_refused(others: dict[str, int]) -> None:
    whole = MixedEffects(SIZES)._describe()
    with pytest.raises(ValueError, match=f"got .*'{next(iter(others))}'"):
        MixedEffects._from_description(whole | others)
    for name in whole:
        with pytest.raises(ValueError, match="must have"):
            MixedEffects._from_description({key: value for key, value in whole.items() if key != name})
