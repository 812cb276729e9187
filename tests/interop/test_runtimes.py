"""Every public module and function in every way that PyTorch can run it; ``tests/contracts`` has the rest."""

import io
import re
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map, tree_unflatten

import reghead.functional
from _cases import CASES, Case
from interop._matrix import EVERYTHING, FUNCTION_CASES, FUNCTIONS, NOT_OF_TENSORS, UNSUPPORTED, WAYS, reason, table

ROOT = Path(__file__).parents[2]
# In the gate, one of each kind of work; the others are slow.
QUICK = {"RegressionHead-everything", "CategoryNormalizer-additive", "SplitConformal", "PerOutputLoss", "lookup"}
QUICK |= {"routing_weights", "huber_loss"}
COMPILED = {"RegressionHead-everything", "RegressionHead-plain", "PinballLoss", "CategoryNormalizer-additive"}
INDUCTOR = {"RegressionHead-quantile", "RegressionHead-fusion-add", "PinballLoss", "CategoryNormalizer-additive"}
STEPS = COMPILED | {"RegressionHead-fusion-add", "RegressionHead-moe-top-k", "RegressionHead-ensemble", "PerOutputLoss"}
STEPS |= {"mse_loss", "huber_pinball_loss", "interval_score_loss", "load_balancing_loss", "SplitConformal"}


def over(cases: Sequence[Case], way: str = "", quick: Callable[[Case], bool] = lambda case: True) -> Any:
    """Those of ``cases`` that go that way; the others have their reason in the table."""
    marks = {case.name: [] if quick(case) else [pytest.mark.slow] for case in cases}
    chosen = [pytest.param(case, id=case.name, marks=marks[case.name]) for case in cases if reason(case, way) is None]
    return pytest.mark.parametrize("case", chosen)


def tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def test_every_public_function_has_a_case() -> None:
    assert {*FUNCTIONS, *NOT_OF_TENSORS} == set(reghead.functional.__all__)


# Compilation


@over(EVERYTHING, "compile", lambda case: case.name in QUICK)
def test_compile_dynamic(case: Case) -> None:
    """One graph for all batch sizes, also where every Python number is taken for a variable."""
    torch._dynamo.reset()
    module = case.module()
    graphs: list[Any] = []

    def backend(graph: Any, example: Any) -> Any:
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(module, fullgraph=True, dynamic=True, backend=backend)
    for rows in (6, 9, 33):
        inputs = case.batch(rows, seed=rows)
        assert_close(compiled(*inputs), module(*inputs))
    assert len(graphs) == 1


def gradients(module: nn.Module, out: Tensor, inputs: Any) -> list[Tensor]:
    leaves = [t for t in [*module.parameters(), *tensors(inputs)] if t.requires_grad]
    return list(torch.autograd.grad(out.square().sum(), leaves, allow_unused=True)) if leaves else []


def with_gradients(inputs: Any) -> Any:
    return tree_map(lambda t: t.detach().requires_grad_() if t.is_floating_point() else t, inputs)


def compare_training(case: Case, backend: str) -> None:
    torch._dynamo.reset()
    module, inputs = case.module(), with_gradients(case.batch(6))
    compiled, eager = torch.compile(module, fullgraph=True, backend=backend)(*inputs), module(*inputs)
    assert_close(compiled, eager, rtol=1e-4, atol=1e-5)
    if eager.requires_grad:
        for got, expected in zip(gradients(module, compiled, inputs), gradients(module, eager, inputs), strict=True):
            # A compiler may put zeros where eager mode knows of no path.
            assert_close(got if got is not None else torch.zeros(()), expected if expected is not None else got * 0)


@over(
    [case for case in EVERYTHING if case.name in STEPS],
    "compile",
    lambda case: case.name in ("RegressionHead-fusion-add", "mse_loss"),
)
def test_a_compiled_training_step(case: Case) -> None:
    compare_training(case, "aot_eager")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own, when it imports the compiler
@over([case for case in EVERYTHING if case.name in INDUCTOR], "compile")
def test_inductor(case: Case) -> None:
    compare_training(case, "inductor")


# Export


@over(FUNCTION_CASES, "export")
def test_export(case: Case) -> None:
    module, inputs = case.module(), case.batch(4)
    batch = torch.export.Dim("batch")
    program = torch.export.export(module, inputs, dynamic_shapes=(tree_map(lambda t: {0: batch}, inputs),))
    for rows in (7, 100):
        other = case.batch(rows, seed=3)
        assert_close(program.module()(*other), module(*other))


class Together(nn.Module):
    """Many modules as one, whose tensors come one by one: an export costs seconds, whatever is in it."""

    def __init__(self, cases: Sequence[Case]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(case.module() for case in cases)
        self.specs = [tree_flatten(case.batch(2))[1] for case in cases]

    def forward(self, *leaves: Tensor) -> tuple[Tensor, ...]:
        outputs, start = [], 0
        for part, spec in zip(self.parts, self.specs, strict=True):
            outputs.append(part(*tree_unflatten(leaves[start : start + spec.num_leaves], spec)))
            start += spec.num_leaves
        return tuple(outputs)


def run_in_onnx_runtime(cases: Sequence[Case]) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    module, batch = Together(cases).eval(), torch.export.Dim("batch", min=1)
    leaves = tuple(tree_leaves([case.batch(4) for case in cases]))
    shapes: Any = (tuple({0: batch} for _ in leaves),)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own
        program = torch.onnx.export(module, leaves, dynamic_shapes=shapes, dynamo=True, verbose=False)
    assert program is not None
    session = onnxruntime.InferenceSession(program.model_proto.SerializeToString())
    names = [i.name for i in session.get_inputs()]
    for rows in (4, 7):
        given = tree_leaves([case.batch(rows, seed=3) for case in cases])
        with torch.no_grad():
            expected = module(*given)
        outputs = session.run(None, {name: t.numpy() for name, t in zip(names, given, strict=True)})
        for case, got, wanted in zip(cases, map(torch.from_numpy, outputs), expected, strict=True):
            assert got.shape == wanted.shape, case.name
            assert_close(got, wanted, rtol=1e-4, atol=1e-4, msg=lambda text, case=case: f"{case.name}: {text}")


def exported(*kinds: str) -> list[Case]:
    return [case for case in EVERYTHING if reason(case, "ONNX") is None and case.kind.__module__.startswith(kinds)]


@pytest.mark.parametrize(
    "kinds",
    [
        ("reghead.normalization",),
        *(
            pytest.param(kinds, marks=pytest.mark.slow)
            for kinds in (("reghead.nn",), ("reghead.losses",), ("reghead.heads",), ("interop",))
        ),
    ],
    ids=lambda kinds: "-".join(kinds),
)
def test_onnx(kinds: tuple[str, ...]) -> None:
    run_in_onnx_runtime(exported(*kinds))


def test_onnx_leaves_nothing_out() -> None:
    tried = exported("reghead.normalization", "reghead.nn", "reghead.losses", "reghead.heads", "interop")
    assert {c.name for c in tried} | {name for name, way in UNSUPPORTED if way == "ONNX"} == {
        c.name for c in EVERYTHING
    }


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name, way in UNSUPPORTED if way == "ONNX"])
def test_what_the_table_says_onnx_cannot_do_it_cannot(name: str) -> None:
    """When one of these passes, its line in the table is to go."""
    case = next(case for case in EVERYTHING if case.name == name)
    with pytest.raises(Exception, match=r"searchsorted|ndtri"):
        run_in_onnx_runtime([case])


# Transforms of functions


@over(FUNCTION_CASES, "vmap")
def test_vmap(case: Case) -> None:
    module = case.module()
    stacks = [case.batch(4, seed=seed) for seed in range(3)]
    inputs = tuple(torch.stack(parts) for parts in zip(*stacks, strict=True))
    assert_close(torch.func.vmap(module)(*inputs), torch.stack([module(*stack) for stack in stacks]))


@over(FUNCTION_CASES, "vmap")
def test_gradients_of_each_sample(case: Case) -> None:
    module = case.module()
    stacks = [case.batch(4, seed=seed) for seed in range(3)]
    if not stacks[0][0].is_floating_point():
        pytest.skip("nothing to derive by: the inputs are ids")
    inputs = tuple(torch.stack(parts) for parts in zip(*stacks, strict=True))
    mapped = torch.func.vmap(torch.func.grad(lambda *x: module(*x).square().sum()))(*inputs)
    for got, stack in zip(mapped, stacks, strict=True):
        first = stack[0].clone().requires_grad_()
        expected = torch.autograd.grad(module(first, *stack[1:]).square().sum(), first)[0]
        assert_close(got, expected)


@over(FUNCTION_CASES, "autocast")
def test_autocast(case: Case) -> None:
    """Functions compute in the dtype they are given, or wider: autocast changes nothing."""
    module, inputs = case.module(), case.batch(16)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        out = module(*inputs)
    assert out.dtype == module(*inputs).dtype
    assert_close(out, module(*inputs))


@over(CASES, "functional_call")
def test_functional_call(case: Case) -> None:
    """With parameters from outside, and those of the module untouched."""
    module, inputs = case.module(), case.batch(5)
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    other = {name: p.detach() + 0.1 for name, p in module.named_parameters()}
    got = torch.func.functional_call(module, other, inputs)
    for name, tensor in module.state_dict().items():
        assert_close(tensor, before[name], rtol=0, atol=0, equal_nan=True)
    with torch.no_grad():
        for name, p in module.named_parameters():
            p.copy_(other[name])
    assert_close(got, module(*inputs))


@over(EVERYTHING, "eager")
def test_eager_with_one_row_and_none(case: Case) -> None:
    module = case.module()
    for rows in (0, 1):
        assert not module(*case.batch(rows)).isnan().any()


@over(CASES, "copies")
def test_a_module_survives_a_file(case: Case) -> None:
    """All of it, by ``torch.save``: what checkpoints of other programs do."""
    module, inputs = case.module(), case.batch(5)
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    assert torch.equal(torch.load(file, weights_only=False)(*inputs), module(*inputs))


# The table of the documentation


def test_the_table_of_the_documentation_is_what_is_run() -> None:
    page = (ROOT / "docs" / "interop.md").read_text(encoding="utf-8")
    assert table() in page, f"docs/interop.md must end with this table:\n\n{table()}"


def test_every_way_of_the_table_is_a_test() -> None:
    sources = {
        path: (ROOT / "tests" / path).read_text(encoding="utf-8") for path in {p for ps in WAYS.values() for p in ps}
    }
    for way, paths in WAYS.items():
        for path, names in paths.items():
            for name in names:
                assert re.search(rf"^def {name}\(", sources[path], re.MULTILINE), f"{way}: {path} has no {name}"


def test_what_is_not_supported_is_a_case_with_a_reason() -> None:
    names = {case.name for case in EVERYTHING}
    for (name, way), why in UNSUPPORTED.items():
        assert name in names
        assert way in WAYS
        assert len(why.split()) > 3
