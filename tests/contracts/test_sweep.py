"""The contract of every public module, swept over ``tests/_cases.py``: what torch itself does with a module."""

import copy
import inspect
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors
from torch import Tensor, nn
from torch.testing import assert_close
from torch.utils._pytree import tree_leaves, tree_map

import reghead.calibration
import reghead.heads
import reghead.losses
import reghead.nn
import reghead.normalization
from _cases import CASES, Case


def sweep(check: str, *, only: Callable[[Case], bool] = lambda case: True) -> pytest.MarkDecorator:
    chosen = [
        pytest.param(case, id=case.name, marks=[pytest.mark.skip(case.skip[check])] if check in case.skip else [])
        for case in CASES
        if only(case)
    ]
    return pytest.mark.parametrize("case", chosen)


def takes_factory(case: Case) -> bool:
    return case.factory


def tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def strided(tensor: Tensor) -> Tensor:
    """The same numbers, every second place of a larger tensor."""
    larger = torch.zeros(*tensor.shape[:-1], 2 * tensor.shape[-1], dtype=tensor.dtype)
    larger[..., ::2] = tensor
    return larger[..., ::2]


def test_every_public_module_has_a_case() -> None:
    public = {
        value
        for package in (reghead.nn, reghead.losses, reghead.heads, reghead.normalization, reghead.calibration)
        for value in (getattr(package, name) for name in package.__all__)
        if inspect.isclass(value) and issubclass(value, nn.Module)
    }
    assert {case.kind for case in CASES} == public


def test_a_skip_names_a_check_and_gives_a_reason() -> None:
    for case in CASES:
        for check, reason in case.skip.items():
            assert f"test_{check}" in globals(), f"{case.name} skips {check}, which is no check"
            assert len(reason.split()) > 3


@sweep("shape_and_dtype")
@pytest.mark.parametrize("rows", [0, 1, 4])
def test_shape_and_dtype(case: Case, rows: int) -> None:
    for training in (False, True):
        out = case.module().train(training)(*case.batch(rows))
        assert out.shape == case.shape(rows)
        assert out.dtype == torch.float32
        assert out.isfinite().all()


@sweep("float64")
def test_float64(case: Case) -> None:
    inputs = case.batch(4, torch.float64)
    out = case.module(torch.float64)(*inputs)
    assert out.dtype == (
        torch.float32 if not any(t.is_floating_point() for t in tensors(inputs)) else torch.float64
    ) or (out.dtype == torch.float64)
    assert_close(out.float(), case.module()(*case.batch(4)), atol=1e-4, rtol=1e-4)


@sweep("rows_do_not_depend_on_each_other", only=lambda case: case.shape(4) != ())
def test_rows_do_not_depend_on_each_other(case: Case) -> None:
    module, inputs = case.module(), case.batch(5)
    alone = [module(*tree_map(lambda t, i=i: t[i : i + 1], inputs)) for i in range(5)]
    assert_close(module(*inputs), torch.cat(alone))


@sweep("non_contiguous")
def test_non_contiguous(case: Case) -> None:
    module, inputs = case.module(), case.batch(4)
    other = tree_map(strided, inputs)
    assert not any(t.is_contiguous() for t in tensors(other))
    assert torch.equal(module(*other), module(*inputs))


@sweep("gradcheck")
def test_gradcheck(case: Case) -> None:
    module, inputs = case.module(torch.float64), case.batch(3, torch.float64)
    names = [name for name, _ in module.named_parameters()]
    leaves = [t.detach().requires_grad_() for t in [*inputs, *module.parameters()] if isinstance(t, Tensor)]
    given = sum(isinstance(t, Tensor) for t in inputs)
    rest = [t for t in inputs if not isinstance(t, Tensor)]

    def fn(*leaves: Tensor) -> Any:
        own = dict(zip(names, leaves[given:], strict=True))
        return torch.func.functional_call(module, own, (*leaves[:given], *rest))

    assert torch.autograd.gradcheck(fn, leaves, fast_mode=True)


@sweep("compile")
def test_compile(case: Case) -> None:
    torch._dynamo.reset()
    module, inputs = case.module(), case.batch(4)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    assert_close(compiled(*inputs), module(*inputs))


@sweep("export")
def test_export(case: Case) -> None:
    module, inputs = case.module(), case.batch(4)
    batch = torch.export.Dim("batch")
    program = torch.export.export(module, inputs, dynamic_shapes=tree_map(lambda t: {0: batch}, inputs))
    for rows in (7, 1000):
        other = case.batch(rows, seed=3)
        assert_close(program.module()(*other), module(*other), atol=1e-5, rtol=1e-4)


@pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight")  # RMSNorm says it is not fused
@sweep("autocast")
def test_autocast(case: Case) -> None:
    module, inputs = case.module(), case.batch(16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = module(*inputs)
    exact = module(*inputs)
    assert out.is_floating_point()
    assert (out.float() - exact).abs().max() <= 0.04 * exact.abs().max() + 1e-3


@sweep("vmap")
def test_vmap(case: Case) -> None:
    module, inputs = case.module(), case.batch(4)
    mapped = torch.func.vmap(module)(*inputs)
    assert_close(mapped, torch.stack([module(*tree_map(lambda t, i=i: t[i], inputs)) for i in range(4)]))


@sweep("stacked_modules", only=lambda case: any(True for _ in case.build().parameters()))
@pytest.mark.parametrize("rows", [3, 5000])
def test_stacked_modules(case: Case, rows: int) -> None:
    """An ensemble: parameters of several modules side by side, mapped over one batch for all."""
    modules, inputs = [case.module(seed=seed) for seed in (0, 5)], case.batch(rows)
    stacked = torch.func.stack_module_state(modules)
    mapped = torch.func.vmap(lambda *own: torch.func.functional_call(modules[0], own, inputs))(*stacked)
    assert_close(mapped, torch.stack([module(*inputs) for module in modules]), atol=1e-5, rtol=1e-4)


@sweep("per_sample_gradients", only=lambda case: any(True for _ in case.build().parameters()))
def test_per_sample_gradients(case: Case) -> None:
    module, inputs = case.module(), case.batch(3)
    parameters = {name: p.detach() for name, p in module.named_parameters()}

    def objective(own: dict[str, Tensor], *row: Any) -> Tensor:
        out: Tensor = torch.func.functional_call(module, own, row)
        return out.square().sum()

    mapped = torch.func.vmap(torch.func.grad(objective), in_dims=(None, *(0,) * len(inputs)))(parameters, *inputs)
    for i in range(3):
        module.zero_grad()
        module(*tree_map(lambda t, i=i: t[i], inputs)).square().sum().backward()
        for name, p in module.named_parameters():
            assert_close(mapped[name][i], p.grad, msg=lambda text, name=name: f"{name}: {text}")


@sweep("copies")
def test_copies(case: Case) -> None:
    module, inputs = case.module(), case.batch(4)
    expected = module(*inputs)
    for copied in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert torch.equal(copied(*inputs), expected)
        with torch.no_grad():
            for parameter in copied.parameters():
                parameter.add_(1.0)
        assert torch.equal(module(*inputs), expected)


@sweep("state_dict")
def test_state_dict(case: Case, tmp_path: Path) -> None:
    module, inputs = case.module(), case.batch(4)
    torch.save(module.state_dict(), tmp_path / "state.pt")
    saved = torch.load(tmp_path / "state.pt", weights_only=True)
    through_safetensors = load_safetensors(save_safetensors({k: t.contiguous() for k, t in saved.items()}))
    for state in (saved, through_safetensors):
        fresh = case.build().eval()
        fresh.load_state_dict(state, strict=True)
        assert torch.equal(fresh(*inputs), module(*inputs))


@sweep("repr")
def test_repr(case: Case) -> None:
    text = repr(case.build())
    assert text.startswith(f"{case.kind.__name__}(")
    for size in case.sizes:
        assert size in text


@sweep("forward_stores_nothing")
@pytest.mark.parametrize("training", [False, True])
def test_forward_stores_nothing(case: Case, training: bool) -> None:
    module = case.module().train(training)
    modes = {name: part.training for name, part in module.named_modules()}
    before = {name: dict(vars(part)) for name, part in module.named_modules()}
    state = {name: t.clone() for name, t in module.state_dict().items()}
    module(*case.batch(4))
    assert {name: part.training for name, part in module.named_modules()} == modes
    for name, part in module.named_modules():
        assert vars(part).keys() == before[name].keys()
        for key, value in vars(part).items():
            assert value is before[name][key] or value == before[name][key], f"{name}.{key} changed in forward"
    assert state.keys() == module.state_dict().keys()
    for name, tensor in module.state_dict().items():
        assert_close(tensor, state[name], rtol=0, atol=0, equal_nan=True)


@sweep("reset_parameters", only=lambda case: any(True for _ in case.build().parameters()))
def test_reset_parameters(case: Case) -> None:
    torch.manual_seed(5)
    module = case.build()
    start = {name: t.clone() for name, t in module.state_dict().items()}
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.fill_(torch.nan)
    torch.manual_seed(5)
    module.reset_parameters()
    for name, tensor in module.state_dict().items():
        assert torch.equal(tensor, start[name]), f"{name} does not start again as it started"


@sweep("meta_device", only=takes_factory)
def test_meta_device(case: Case) -> None:
    module = case.build(device="meta")
    assert {t.device.type for t in [*module.parameters(), *module.buffers()]} == {"meta"}
    module = module.to_empty(device="cpu").eval()
    for tensor in [*module.parameters(), *module.buffers()]:
        tensor.data.fill_(0)
    torch.manual_seed(5)
    module.reset_parameters()
    torch.manual_seed(5)
    usual = case.build().eval()
    inputs = case.batch(4)
    assert torch.equal(module(*inputs), usual(*inputs))


@sweep("factory_dtype", only=takes_factory)
def test_factory_dtype(case: Case) -> None:
    module = case.build(dtype=torch.float64).eval()
    assert {p.dtype for p in module.parameters()} == {torch.float64}
    assert module(*case.batch(4, torch.float64)).dtype == torch.float64


@sweep("casts_bend_no_constants")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_casts_bend_no_constants(case: Case, dtype: torch.dtype) -> None:
    module = case.module()
    constants = {
        (name, key): copy.copy(value)
        for name, part in module.named_modules()
        for key, value in vars(part).items()
        if isinstance(value, (tuple, float, str, int)) and key != "training"
    }
    buffers = {name: t.clone() for name, t in module.named_buffers()}
    module.to(dtype)
    for (name, key), value in constants.items():
        assert getattr(module.get_submodule(name), key) == value
    for name, tensor in module.named_buffers():
        assert tensor.dtype == buffers[name].dtype
        assert_close(tensor, buffers[name], rtol=0, atol=0, equal_nan=True)
    assert {p.dtype for p in module.parameters()} <= {dtype}
    out = module(*case.batch(4, dtype))
    assert out.isfinite().all()


@sweep("every_parameter_gets_a_gradient", only=lambda case: any(True for _ in case.build().parameters()))
def test_every_parameter_gets_a_gradient(case: Case) -> None:
    """What distributed training needs: no parameter is left out of a backward, whatever the batch holds."""
    for rows in (1, 6):
        module = case.module().train()
        module(*case.batch(rows)).sum().backward()
        assert [name for name, p in module.named_parameters() if p.grad is None] == []
