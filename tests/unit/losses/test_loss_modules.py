"""Every loss module is its function with the parameters kept: same names, same order, same values."""

import copy
import inspect
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from reghead import functional, losses

LEVELS = (0.1, 0.5, 0.9)
CASES: dict[str, tuple[dict[str, Any], tuple[int, ...]]] = {
    "MSELoss": ({}, ()),
    "MAELoss": ({}, ()),
    "HuberLoss": ({"delta": 0.5}, ()),
    "LogCoshLoss": ({}, ()),
    "AsymmetricLoss": ({"over_penalty": 2.0, "under_penalty": 0.5, "base": "huber", "delta": 0.5}, ()),
    "ExpectileLoss": ({"expectile": 0.3}, ()),
    "PinballLoss": ({"quantiles": LEVELS}, (3,)),
    "HuberPinballLoss": ({"quantiles": LEVELS, "delta": 0.5}, (3,)),
    "CRPSLoss": ({"quantiles": LEVELS}, (3,)),
    "IntervalScoreLoss": ({"confidence_level": 0.8}, (2,)),
    "GaussianNLLLoss": ({}, ()),
    "PerOutputLoss": ({"losses": {"a": "mse", "b": "quantile"}, "outputs": ("a", "b"), "default": "mae"}, (3,)),
}
NOT_LOSSES = {"make_loss"}


def function_of(name: str) -> Any:
    (match,) = [f for f in functional.__all__ if f.replace("_", "") == name.lower()]
    return getattr(functional, match)


def build(name: str, **kwargs: Any) -> torch.nn.Module:
    return getattr(losses, name)(**CASES[name][0], **kwargs)


def data(name: str, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    rng = torch.Generator().manual_seed(0)
    preds = torch.randn(5, 2, *CASES[name][1], generator=rng, dtype=torch.float64).to(dtype).requires_grad_()
    tensors = [preds, torch.randn(5, 2, generator=rng, dtype=torch.float64).to(dtype)]
    if name == "GaussianNLLLoss":
        tensors.append(torch.rand(5, 2, generator=rng, dtype=torch.float64).to(dtype) + 0.5)
    return tensors


def test_every_public_loss_is_here() -> None:
    assert set(losses.__all__) - NOT_LOSSES == set(CASES)


@pytest.mark.parametrize("name", CASES)
def test_the_arguments_are_those_of_the_function_in_its_order(name: str) -> None:
    of_function = list(inspect.signature(function_of(name)).parameters.values())
    of_class = inspect.signature(getattr(losses, name)).parameters.values()
    of_forward = inspect.signature(getattr(losses, name).forward).parameters.values()
    own = {"uncertainty", "device", "dtype"}  # the module holds log_variance as a parameter
    tensors = {"preds", "target", "scale", "weight", "mask", "log_variance"}
    assert [(p.name, p.kind, p.default) for p in of_class if p.name not in own] == [
        (p.name, p.kind, p.default) for p in of_function if p.name not in tensors
    ]
    assert [(p.name, p.kind, p.default) for p in of_forward if p.name != "self"] == [
        (p.name, p.kind, p.default) for p in of_function if p.name in tensors - {"log_variance"}
    ]


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("name", CASES)
def test_the_value_is_that_of_the_function(name: str, reduction: str) -> None:
    tensors = data(name)
    tensors[1][0, 0] = float("nan")
    common = {"nan_policy": "omit", "reduction": reduction}
    given = {"weight": torch.rand(5, generator=torch.Generator().manual_seed(1)), "mask": torch.arange(5) > 0}
    loss = build(name, **common)(*tensors, **given)
    assert_close(loss, function_of(name)(*tensors, **CASES[name][0], **common, **given))
    assert loss.isfinite().all()


@pytest.mark.parametrize("name", CASES)
def test_a_module_is_copied_pickled_and_loaded(name: str) -> None:
    module, tensors = build(name), data(name)
    expected = module(*tensors)
    for twin in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert_close(twin(*tensors), expected)
    assert module.load_state_dict(module.state_dict(), strict=True).missing_keys == []
    assert not module.state_dict(), "a loss has nothing to learn and nothing to store"


@pytest.mark.parametrize("name", CASES)
def test_the_repr_names_every_argument(name: str) -> None:
    text = repr(build(name, reduction="sum"))
    assert text.startswith(f"{name}(")
    for argument, value in CASES[name][0].items():
        assert f"{argument}={value!r}" in text
    assert "nan_policy='propagate', reduction='sum'" in text


@pytest.mark.parametrize("name", CASES)
def test_casting_a_module_bends_nothing(name: str) -> None:
    tensors = data(name)
    assert_close(build(name).to(torch.bfloat16)(*tensors), build(name)(*tensors), rtol=0.0, atol=0.0)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", CASES)
def test_a_forward_changes_no_mode_and_stores_nothing(name: str, training: bool) -> None:
    parent = torch.nn.Sequential(build(name)).train(training)
    before = dict(vars(parent[0]))
    parent[0](*data(name))
    assert parent.training is training
    assert parent[0].training is training
    assert vars(parent[0]) == before


@pytest.mark.parametrize("name", CASES)
def test_compiles_in_one_graph(name: str) -> None:
    module, tensors = build(name), data(name)
    torch._dynamo.reset()
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    expected, found = module(*tensors), compiled(*tensors)
    assert_close(found, expected)
    assert_close(torch.autograd.grad(found, tensors[0]), torch.autograd.grad(expected, tensors[0]))


@pytest.mark.parametrize("name", CASES)
def test_exports_with_a_dynamic_batch(name: str) -> None:
    module, tensors = build(name), [t.detach() for t in data(name)]
    batch = torch.export.Dim("batch")
    program = torch.export.export(module, tuple(tensors), dynamic_shapes=tuple({0: batch} for _ in tensors))
    for rows in (2, 5):
        part = [t[:rows] for t in tensors]
        assert_close(program.module()(*part), module(*part))


@pytest.mark.parametrize("name", CASES)
def test_autocast_leaves_the_loss_in_float32(name: str) -> None:
    module, tensors = build(name), data(name, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        loss = module(*tensors)
    assert loss.dtype == torch.float32
    assert_close(loss, module(*tensors), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("name", CASES)
def test_per_sample_gradients(name: str) -> None:
    module, tensors = build(name), [t.detach() for t in data(name)]
    if name == "GaussianNLLLoss":
        tensors[2] = tensors[2].abs()
    together = torch.func.vmap(torch.func.grad(module))(*tensors)
    one_by_one = torch.stack([torch.func.grad(module)(*row) for row in zip(*tensors, strict=True)])
    assert_close(together, one_by_one)


@pytest.mark.parametrize("batch", [0, 1])
@pytest.mark.parametrize("name", CASES)
def test_small_batches(name: str, batch: int) -> None:
    tensors = [t[:batch].detach() for t in data(name)]
    tensors[0].requires_grad_()
    loss = build(name)(*tensors)
    loss.backward()
    assert loss.isfinite()
    assert (loss.item() == 0.0) == (batch == 0)
    assert tensors[0].grad is not None
    assert tensors[0].grad.shape == tensors[0].shape


@pytest.mark.parametrize(
    ("name", "argument", "value", "message"),
    [
        ("HuberLoss", "delta", 0.0, "delta must be finite and > 0"),
        ("AsymmetricLoss", "over_penalty", -1.0, "over_penalty must be finite and > 0"),
        ("AsymmetricLoss", "under_penalty", float("nan"), "under_penalty must be finite and > 0"),
        ("AsymmetricLoss", "base", "l1", "base must be one of 'mse', 'mae', 'huber', got 'l1'"),
        ("ExpectileLoss", "expectile", 0.0, "expectile must be finite and > 0 and < 1"),
        ("PinballLoss", "quantiles", (0.9, 0.1), "quantiles must be strictly increasing"),
        ("PinballLoss", "quantiles", (), "quantiles must hold at least one level"),
        ("HuberPinballLoss", "quantiles", (0.0,), r"quantiles\[0\] must be finite and > 0 and < 1"),
        ("HuberPinballLoss", "delta", -1.0, "delta must be finite and > 0"),
        ("CRPSLoss", "quantiles", (0.5, 0.5), "quantiles must be strictly increasing"),
        ("IntervalScoreLoss", "confidence_level", 95.0, "confidence_level must be finite and > 0 and < 1"),
        ("MSELoss", "reduction", "avg", "reduction must be one of 'none', 'mean', 'sum', got 'avg'"),
        ("MSELoss", "nan_policy", "omitt", "nan_policy must be .* did you mean 'omit'"),
    ],
)
def test_a_constructor_refuses(name: str, argument: str, value: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        getattr(losses, name)(**{**CASES[name][0], argument: value})
