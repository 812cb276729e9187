"""What is run in which way: every public module and function, and the reasons where one is not."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from _cases import CASES, LEVELS, Case, draw, levels, means_and_scales, points, to
from reghead import functional as R


class Call(nn.Module):
    """A function as a module, for what takes modules alone."""

    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *tensors: Tensor) -> Tensor:
        return self.function(*tensors)


def one(*shape: int) -> Callable[[int, torch.Generator, torch.dtype], tuple[Tensor, ...]]:
    return lambda rows, rng, dtype: (draw(rng, dtype, rows, *shape),)


def modulated(rows: int, rng: torch.Generator, dtype: torch.dtype) -> tuple[Tensor, ...]:
    return tuple(draw(rng, dtype, rows, 3) for _ in range(3))


def intervals(rows: int, rng: torch.Generator, dtype: torch.dtype) -> tuple[Tensor, ...]:
    return draw(rng, dtype, rows, 2, 2).sort(-1).values, draw(rng, dtype, rows, 2)


def ids_of_rows(rows: int, rng: torch.Generator, dtype: torch.dtype) -> tuple[Tensor, ...]:
    return (torch.randint(0, 5, (rows,), generator=rng),)


def weighted(rows: int, rng: torch.Generator, dtype: torch.dtype) -> tuple[Tensor, ...]:
    return draw(rng, dtype, rows, 3).softmax(-1), torch.randint(0, 4, (rows,), generator=rng)


def quantile_loss(preds: Tensor, target: Tensor) -> Tensor:
    losses: dict[str | int, Any] = {0: "mse", 1: {"type": "quantile", "quantiles": LEVELS}}
    return R.per_output_loss(preds, target, losses)


TABLE = torch.arange(10.0).reshape(5, 2)
FUNCTIONS: dict[str, tuple[Callable[..., Tensor], Any]] = {
    "asymmetric_loss": (lambda p, y: R.asymmetric_loss(p, y, 2.0, 0.5, "huber"), points),
    "crps_loss": (lambda p, y: R.crps_loss(p, y, LEVELS), levels(3)),
    "expectile_loss": (lambda p, y: R.expectile_loss(p, y, 0.3), points),
    "expert_utilization": (lambda w, i: R.expert_utilization(w, i, 4).nan_to_num(), weighted),
    "film": (R.film, modulated),
    "gaussian_nll_loss": (R.gaussian_nll_loss, means_and_scales),
    "huber_loss": (R.huber_loss, points),
    "huber_pinball_loss": (lambda p, y: R.huber_pinball_loss(p, y, LEVELS), levels(3)),
    "interval_score_loss": (lambda p, y: R.interval_score_loss(p, y, 0.8), intervals),
    "load_balancing_loss": (lambda x: R.load_balancing_loss(x, "top_k"), one(3)),
    "log_cosh_loss": (R.log_cosh_loss, points),
    "lookup": (lambda i: R.lookup(TABLE, i), ids_of_rows),
    "mae_loss": (R.mae_loss, points),
    "mse_loss": (R.mse_loss, points),
    "non_crossing_quantiles": (lambda x: R.non_crossing_quantiles(x, LEVELS), one(2, 3)),
    "per_output_loss": (quantile_loss, levels(3)),
    "pinball_loss": (lambda p, y: R.pinball_loss(p, y, LEVELS), levels(3)),
    "routing_entropy": (lambda x: R.routing_entropy(x.softmax(-1)), one(3)),
    "routing_weights": (lambda x: R.routing_weights(x, "top_k"), one(3)),
    "sort_quantiles": (R.sort_quantiles, one(2, 3)),
}
NOT_OF_TENSORS = {"nearest_level": "a function of Python numbers"}
FUNCTION_CASES = [
    Case(name, lambda function=function: Call(function), inputs, to(), factory=False)
    for name, (function, inputs) in FUNCTIONS.items()
]
EVERYTHING = [*CASES, *FUNCTION_CASES]


WAYS: dict[str, dict[str, list[str]]] = {
    "eager": {
        "interop/test_runtimes.py": ["test_eager_with_one_row_and_none"],
        "contracts/test_sweep.py": ["test_shape_and_dtype"],
    },
    "compile": {
        "interop/test_runtimes.py": ["test_compile_dynamic", "test_a_compiled_training_step", "test_inductor"],
        "contracts/test_sweep.py": ["test_compile"],
    },
    "export": {"interop/test_runtimes.py": ["test_export"], "contracts/test_sweep.py": ["test_export"]},
    "ONNX": {"interop/test_runtimes.py": ["test_onnx", "test_what_the_table_says_onnx_cannot_do_it_cannot"]},
    "autocast": {"interop/test_runtimes.py": ["test_autocast"], "contracts/test_sweep.py": ["test_autocast"]},
    "vmap": {
        "interop/test_runtimes.py": ["test_vmap", "test_gradients_of_each_sample"],
        "contracts/test_sweep.py": ["test_vmap", "test_stacked_modules", "test_per_sample_gradients"],
    },
    "functional_call": {"interop/test_runtimes.py": ["test_functional_call"]},
    "DDP, FSDP2": {"interop/test_processes.py": ["test_two_processes_train_as_one"]},
    "copies": {
        "interop/test_runtimes.py": ["test_a_module_survives_a_file"],
        "interop/test_processes.py": ["test_spawn"],
        "contracts/test_sweep.py": ["test_copies"],
    },
    "state_dict": {"contracts/test_sweep.py": ["test_state_dict"]},
}
"""The columns of the table, and the tests behind each."""
OF_MODULES = ("functional_call", "DDP, FSDP2", "copies", "state_dict")
SEARCH = "ONNX has no sorted search, by which a category is looked up; `torch.export` has"
UNSUPPORTED: dict[tuple[str, str], str] = {
    (name, "ONNX"): SEARCH for name in ("MixedEffects", "SplitConformal", "ConformalizedQuantiles", "CrossConformal")
}
UNSUPPORTED["non_crossing_quantiles", "ONNX"] = (
    "ONNX has no quantile function of the normal distribution; `QuantileOutput` holds what it needs of it"
)
"""(case, way) -> why not."""


def reason(case: Case, way: str) -> str | None:
    """Why the case does not go that way; None if it does."""
    return UNSUPPORTED.get((case.name, way))


def table() -> str:
    """What is run, for the documentation: a line for every class and function, and the reasons below."""
    notes: dict[str, int] = {}

    def cell(cases: Sequence[Case], way: str) -> str:
        if way in OF_MODULES and cases[0].name in FUNCTIONS:
            return ""
        if way == "DDP, FSDP2" and not any(True for case in cases for _ in case.build().parameters()):
            return ""
        reasons = {reason(case, way) for case in cases} - {None}
        marks = [f"[{notes.setdefault(why, len(notes) + 1)}]" for why in sorted(map(str, reasons))]
        return "yes" + "".join(f" {mark}" for mark in marks) if len(reasons) < len(cases) else " ".join(marks)

    rows: dict[str, list[Case]] = {}
    for case in EVERYTHING:
        rows.setdefault(case.name if case.name in FUNCTIONS else case.kind.__name__, []).append(case)
    lines = [f"| | {' | '.join(WAYS)} |", "| --- |" + " --- |" * len(WAYS)]
    for name in sorted(rows, key=lambda name: (name in FUNCTIONS, name.lower())):
        lines.append(f"| `{name}` | {' | '.join(cell(rows[name], way) for way in WAYS)} |")
    lines += ["", *(f"{number}. {why}." for why, number in notes.items())] if notes else []
    return "\n".join(lines)
