"""Argument checks: what was expected, what came, what to do.

Constructors call the checks of values; ``forward`` calls the checks of shapes, and those that look inside a
tensor only where :func:`reads_values` says that looking is free of side effects.
"""

import difflib
import itertools
import math
import numbers
from collections.abc import Collection, Iterable, Mapping, Sequence

import torch
from torch import Tensor

from reghead._typing import Categories


def check_choice(name: str, value: object, choices: Collection[object]) -> None:
    """Raise unless ``value`` is one of ``choices``."""
    if value not in choices:
        raise ValueError(
            f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}{did_you_mean(value, choices)}"
        )


def did_you_mean(value: object, choices: Iterable[object]) -> str:
    """``"; did you mean 'x'?"`` when a choice is close to ``value``, else the empty string."""
    names = {str(choice).casefold(): str(choice) for choice in choices if choice is not None}
    close = difflib.get_close_matches(str(value).casefold(), names, n=1)
    return f"; did you mean {names[close[0]]!r}?" if close else ""


def check_int(name: str, value: object, minimum: int = 1) -> int:
    """Return ``value`` as an ``int``; NumPy integers are welcome, booleans and floats are not."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise TypeError(f"{name} must be an integer, got {value!r} of type {type(value).__name__}")
    if value < minimum:
        raise ValueError(f"{name} must be at least {minimum}, got {value}")
    return int(value)


def check_number(
    name: str, value: object, *, above: float | None = None, at_least: float | None = None, below: float | None = None
) -> float:
    """Return ``value`` as a finite ``float`` inside the stated bounds."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f"{name} must be a number, got {value!r} of type {type(value).__name__}")
    number = float(value)
    bounds = [
        f"> {above:g}" if above is not None else "",
        f">= {at_least:g}" if at_least is not None else "",
        f"< {below:g}" if below is not None else "",
    ]
    if (
        not -math.inf < number < math.inf  # as a comparison, which torch.compile(dynamic=True) traces
        or (above is not None and number <= above)
        or (at_least is not None and number < at_least)
        or (below is not None and number >= below)
    ):
        expected = " and ".join(filter(None, bounds))
        raise ValueError(f"{name} must be finite{' and ' + expected if expected else ''}, got {number!r}")
    return number


def check_hidden_dims(name: str, dims: object) -> tuple[int, ...]:
    """Return the widths of the hidden layers as a tuple of positive ints."""
    if isinstance(dims, str) or not isinstance(dims, Sequence):
        raise TypeError(f"{name} must be a sequence of integers such as (64, 32), got {dims!r}")
    return tuple(check_int(f"{name}[{i}]", dim) for i, dim in enumerate(dims))


def check_quantiles(name: str, quantiles: object) -> tuple[float, ...]:
    """Return quantile levels as floats: at least one, strictly between 0 and 1, strictly increasing."""
    if isinstance(quantiles, Tensor):
        # Through the shortest text that gives the same float32: 0.1 in a float32 tensor means 0.1.
        quantiles = [float(str(level)) for level in quantiles.detach().cpu().numpy().ravel()]
    if isinstance(quantiles, str) or not isinstance(quantiles, Iterable):
        raise TypeError(f"{name} must be a sequence of levels such as (0.1, 0.5, 0.9), got {quantiles!r}")
    levels = tuple(check_number(f"{name}[{i}]", q, above=0.0, below=1.0) for i, q in enumerate(quantiles))
    if not levels:
        raise ValueError(f"{name} must hold at least one level, got none; use (0.5,) for the median alone")
    if any(a >= b for a, b in itertools.pairwise(levels)):
        raise ValueError(f"{name} must be strictly increasing, without repeats, got {levels}; use sorted(set(levels))")
    return levels


def check_cardinalities(name: str, cardinalities: object) -> dict[str, int]:
    """Return ``{column: number of ids}``, where the number counts id 0, the unknown."""
    if not isinstance(cardinalities, Mapping):
        hint = "; use its cardinalities" if hasattr(cardinalities, "cardinalities") else ""
        raise TypeError(f"{name} must map each column to its number of ids, id 0 included, got {cardinalities!r}{hint}")
    for column in cardinalities:
        if not isinstance(column, str) or not column:
            raise TypeError(f"{name} must have column names (non-empty strings) as keys, got {column!r}")
    return {column: check_int(f"{name}[{column!r}]", n) for column, n in cardinalities.items()}


def check_columns(name: str, columns: object, available: Collection[str] | None = None) -> tuple[str, ...]:
    """Return column names as a tuple, without repeats and all among ``available`` if that is given."""
    if isinstance(columns, str) or not isinstance(columns, Iterable):
        raise TypeError(f"{name} must be a sequence of column names such as ('location',), got {columns!r}")
    result = tuple(columns)
    for column in result:
        if not isinstance(column, str) or not column:
            raise TypeError(f"{name} must hold column names (non-empty strings), got {column!r}")
        if available is not None and column not in available:
            known = ", ".join(map(repr, available)) or "none"
            raise ValueError(
                f"{name} names the column {column!r}, which is not among the categorical columns ({known})"
                f"{did_you_mean(column, available)}"
            )
    if len(set(result)) != len(result):
        raise ValueError(f"{name} must not repeat a column, got {result}")
    return result


def check_tensor(name: str, tensor: object) -> None:
    """Raise unless ``tensor`` is a tensor."""
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(tensor).__name__}; use torch.as_tensor")


def check_floating(name: str, tensor: Tensor) -> None:
    """Raise unless ``tensor`` is a floating-point tensor."""
    check_tensor(name, tensor)
    if not tensor.is_floating_point():
        raise TypeError(f"{name} must be of a floating-point dtype, got {tensor.dtype}; use {name}.float()")


def check_shape(name: str, tensor: Tensor, shape: Sequence[int], described: str, hint: str = "") -> None:
    """Raise unless ``tensor`` has exactly ``shape``, which ``described`` puts into words."""
    if tensor.shape != torch.Size(shape):
        raise ValueError(
            f"{name} must have shape {described} = {tuple(shape)}, got {tuple(tensor.shape)}"
            f"{'; ' + hint if hint else ''}"
        )


def check_same_shape(preds: Tensor, target: Tensor) -> None:
    """Raise unless ``preds`` and ``target`` have one shape: nothing is broadcast in a loss."""
    if preds.shape != target.shape:
        hint = ""
        if preds.shape[:-1] == target.shape and preds.ndim and preds.shape[-1] == 1:
            hint = "; use target.unsqueeze(-1)"
        elif target.shape[:-1] == preds.shape and target.ndim and target.shape[-1] == 1:
            hint = "; use preds.unsqueeze(-1)"
        raise ValueError(
            f"preds and target must have the same shape, got {tuple(preds.shape)} and {tuple(target.shape)}"
            f"{hint} (nothing is broadcast)"
        )


def check_last_dim(name: str, tensor: Tensor, size: int, meaning: str) -> None:
    """Raise unless ``tensor`` holds floats, and ``size`` of them in its last dimension."""
    check_floating(name, tensor)
    if tensor.ndim == 0 or tensor.shape[-1] != size:
        raise ValueError(f"{name} must have shape (*, {meaning}) with {meaning} = {size}, got {tuple(tensor.shape)}")


def check_prefix(name: str, tensor: Tensor, of: str, shape: Sequence[int]) -> None:
    """Raise unless the shape of ``tensor`` is a prefix of ``shape``, the shape of the argument named ``of``."""
    check_tensor(name, tensor)
    if tuple(tensor.shape) != tuple(shape[: tensor.ndim]):
        raise ValueError(
            f"{name} must have the leading dimensions of {of}, which has shape {tuple(shape)}, "
            f"got {tuple(tensor.shape)}"
        )


def reads_values(tensor: Tensor) -> bool:
    """Whether looking at the numbers in ``tensor`` is cheap and allowed: eager mode, on the CPU, real data.

    Under ``torch.compile`` and ``torch.export`` a look breaks the graph, a trace would take what it sees for all
    batches, on an accelerator it waits for the device, and under ``torch.vmap`` there is no single answer.
    """
    return (
        not torch.compiler.is_compiling()
        and not torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
        and tensor.device.type == "cpu"
        and not torch._C._functorch.is_functorch_wrapped_tensor(tensor)
        and not torch._C._functorch.is_legacy_batchedtensor(tensor)  # of several gradients at once
    )


def check_ids(categories: Categories | None, cardinalities: Mapping[str, int], used_by: str) -> tuple[Tensor, ...]:
    """Return the ids of the columns of ``cardinalities``, in that order, each safe to index a table with.

    In eager mode on the CPU an id outside ``[0, cardinality)`` raises; elsewhere it is read as 0, the unknown.
    """
    if not isinstance(categories, Mapping):
        raise TypeError(
            f"{used_by} needs categories: a mapping from column to ids with {', '.join(map(repr, cardinalities))}, "
            f"got {'None' if categories is None else type(categories).__name__}; pass id 0 for unknown rows"
        )
    resolved = []
    for column, cardinality in cardinalities.items():
        if column not in categories:
            got = ", ".join(map(repr, categories)) or "none"
            raise ValueError(
                f"{used_by} needs the column {column!r} in categories, got {got}{did_you_mean(column, categories)}; "
                "pass zeros for unknown"
            )
        ids = categories[column]
        if not isinstance(ids, Tensor) or ids.dtype not in (torch.int64, torch.int32):
            got = str(ids.dtype) if isinstance(ids, Tensor) else type(ids).__name__
            raise TypeError(
                f"categories[{column!r}] must be a tensor of integer ids (torch.int64), got {got}; "
                "CategoryEncoder makes them from labels"
            )
        if reads_values(ids):
            if ids.numel():
                low, high = (int(v) for v in torch.aminmax(ids))
                if low < 0 or high >= cardinality:
                    raise ValueError(
                        f"categories[{column!r}] must hold ids in [0, {cardinality}), got {low if low < 0 else high}; "
                        "an unseen label is id 0, and cardinalities count it"
                    )
        else:
            ids = torch.where((ids >= 0) & (ids < cardinality), ids, 0)
        resolved.append(ids)
    return tuple(resolved)
