"""What torch does with a calibrated module: compile, export, vmap, copies, state, dtype and gradient."""

import copy
import io
import pickle
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from reghead.calibration import ConformalizedQuantiles, CrossConformal, SplitConformal

SIZES = {"location": 4, "season": 3}
LEVELS = (0.1, 0.25, 0.5, 0.75, 0.9)
F64 = torch.float64


def draw(rows: int, seed: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Points, quantiles and ids; unknown ids too."""
    rng = torch.Generator().manual_seed(seed)
    points = torch.randn(rows, 2, generator=rng, dtype=F64).to(dtype)
    quantiles = torch.randn(rows, 2, len(LEVELS), generator=rng, dtype=F64).to(dtype).sort(-1).values
    return points, quantiles, {c: torch.randint(0, n, (rows,), generator=rng) for c, n in SIZES.items()}


def build(kind: str):
    if kind == "split":
        return SplitConformal([0.5, 0.8], groups=SIZES)
    if kind == "split-ungrouped":
        return SplitConformal(0.8)
    if kind == "quantiles":
        return ConformalizedQuantiles(LEVELS, asymmetric=True, groups=SIZES, pooling=5.0)
    return CrossConformal(SIZES, quantiles=LEVELS, rule="pooled", pooling=7.0)


def inputs(kind: str, rows: int, seed: int = 5, dtype: torch.dtype = torch.float32) -> tuple[Tensor, dict[str, Tensor]]:
    points, quantiles, ids = draw(rows, seed, dtype)
    return (points if kind.startswith("split") else quantiles), ids


def conformalized(kind: str):
    points, quantiles, ids = draw(300, 0)
    preds, target = (points if kind.startswith("split") else quantiles), draw(300, 1)[0]
    if kind != "cross":
        return build(kind).conformalize(preds, target, ids)
    known = (ids["location"] > 0) & (ids["season"] > 0)
    return (
        build(kind)
        .conformalize(preds, target, ids, left_out="rows")
        .conformalize(preds * 2, target, ids, left_out="environments", mask=known)
    )


every = pytest.mark.parametrize("kind", ["split", "split-ungrouped", "quantiles", "cross"])


@every
@pytest.mark.parametrize("rows", [0, 1, 4])
def test_batch_sizes_and_dtypes(kind: str, rows: int) -> None:
    module = conformalized(kind)
    for dtype, expected in (
        (torch.float32, torch.float32),
        (F64, F64),
        (torch.bfloat16, torch.float32),
        (torch.float16, torch.float32),
    ):
        out = module(*inputs(kind, rows, dtype=dtype))
        assert out.dtype == expected
        assert out.shape == (rows, 2, 2 * len(module.confidence_levels))
        assert out.isfinite().all()


@every
def test_compile_and_export_with_a_dynamic_batch(kind: str) -> None:
    module = conformalized(kind)
    preds, ids = inputs(kind, 4)
    compiled = torch.compile(module, fullgraph=True, backend="eager")
    assert torch.equal(compiled(preds, ids), module(preds, ids))
    batch = torch.export.Dim("batch", min=1)
    shapes = ({0: batch}, {c: {0: batch} for c in ids} if "ungrouped" not in kind else None)
    arguments = (preds, ids) if "ungrouped" not in kind else (preds, None)
    program = torch.export.export(module, arguments, dynamic_shapes=shapes)
    other = inputs(kind, 7, seed=6)
    arguments = other if "ungrouped" not in kind else (other[0], None)
    assert torch.equal(program.module()(*arguments), module(*other))


@every
def test_vmap_non_contiguous_and_autocast(kind: str) -> None:
    module = conformalized(kind)
    preds, ids = inputs(kind, 8)
    expected = module(preds, ids)
    assert torch.equal(torch.func.vmap(module)(preds, ids), expected)
    assert torch.equal(module(preds[::2], {c: i[::2] for c, i in ids.items()}), expected[::2])
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(module(preds, ids), expected)


@every
def test_conformalize_keeps_no_graph_and_forward_lets_the_gradient_of_the_predictions_through(kind: str) -> None:
    module = conformalized(kind)
    preds, ids = inputs(kind, 3, dtype=F64)
    preds.requires_grad_()
    assert torch.autograd.gradcheck(lambda p: module(p, ids), preds)
    fresh = build(kind)
    known = {c: i.clamp(min=1) for c, i in ids.items()}
    options = {"left_out": "environments"} if kind == "cross" else {}
    fresh.conformalize(preds, torch.zeros(3, 2, dtype=F64, requires_grad=True), known, **options)
    assert not any(t.requires_grad for t in fresh.buffers())


@every
def test_copies_and_state(kind: str, tmp_path: Path) -> None:
    pytest.importorskip("safetensors")
    module = conformalized(kind)
    args = inputs(kind, 6)
    expected = module(*args)
    for copied in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert torch.equal(copied(*args), expected)
    buffer = io.BytesIO()
    torch.save(module.state_dict(), buffer)
    buffer.seek(0)
    state = torch.load(buffer, weights_only=True)
    fresh = build(kind)
    assert not fresh.is_conformalized
    fresh.load_state_dict(state, strict=True)
    module.save(tmp_path / "calibration.safetensors")
    for other in (
        fresh,
        type(module).from_state_dict(state),
        type(module).load(tmp_path / "calibration.safetensors"),
        type(module).from_state_dict({f"a.{k}": v for k, v in state.items()}, prefix="a."),
    ):
        assert torch.equal(other(*args), expected)
        assert repr(other) == repr(module)
        assert {name: t.dtype for name, t in other.named_buffers()} == {
            "group_keys": torch.int64,
            "count": torch.int64,
            "offsets": F64,
        }
    blank = type(module).from_state_dict(build(kind).state_dict())
    assert not blank.is_conformalized


@every
def test_a_cast_bends_no_offset_and_forward_changes_nothing(kind: str) -> None:
    module = conformalized(kind)
    before = {name: t.clone() for name, t in module.state_dict().items()}
    module.to(torch.bfloat16).half()
    module(*inputs(kind, 4))
    for name, tensor in module.state_dict().items():
        assert tensor.dtype == before[name].dtype
        assert torch.equal(tensor, before[name])


def test_repr() -> None:
    assert repr(SplitConformal(0.9)) == (
        "SplitConformal(confidence_level=[0.9], groups={}, scaled=False, pooling=20.0, min_count=1, unseen='parent', "
        "not conformalized)"
    )
    assert "6 categories" in repr(conformalized("quantiles"))
    only = SplitConformal([0.5, 0.8]).conformalize(torch.zeros(9, 1), torch.ones(9, 1))
    assert repr(only).startswith("SplitConformal(confidence_level=[0.8, 0.5], groups={}, ")
    assert repr(only).endswith("unseen='parent', 0 categories)")


def test_the_order_of_the_columns_does_not_matter() -> None:
    points, _, ids = draw(300, 0)
    module = SplitConformal(0.8, groups={"season": 3, "location": 4}, pooling=20.0)
    other = SplitConformal(0.8, groups=SIZES, pooling=20.0)
    for m in (module, other):
        m.conformalize(points, draw(300, 1)[0], ids)
    assert_close(module.offsets, other.offsets, rtol=0, atol=0)


def test_another_modules_state_is_refused_before_anything_changes() -> None:
    module = conformalized("split")
    before = module.offsets.clone()
    with pytest.raises(ValueError, match="the state_dict was written by another SplitConformal: confidence_level dif"):
        module.load_state_dict(conformalized("split-ungrouped").state_dict())
    with pytest.raises(ValueError, match="the state_dict describes a SplitConformal, not a CrossConformal"):
        CrossConformal.from_state_dict(module.state_dict())
    broken = module.state_dict()
    broken["count"] = broken["count"][:2]
    with pytest.raises(ValueError, match=r"the state_dict's count must have shape to go with its offsets = \(7, 2\)"):
        module.load_state_dict(broken)
    lacking = {k: v for k, v in module.state_dict().items() if k != "offsets"}
    with pytest.raises(RuntimeError, match=r'Missing key.*"offsets"'):
        module.load_state_dict(lacking)
    assert torch.equal(module.offsets, before)


def test_a_description_that_builds_nothing_says_so() -> None:
    with pytest.raises(ValueError, match="the description of a SplitConformal does not build one"):
        SplitConformal._from_description({"level": 0.9})
