"""Losses written as slope times height, so that one pass over the errors gives their sum and its gradient."""

import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad

from reghead._checks import check_choice, check_floating
from reghead._reduction import (
    check_weight,
    counted_cells,
    reduce,
    residual,
    shared_array,
    trailing,
    widen,
    without_autocast,
)
from reghead._typing import NanPolicy, Reduction

# Cells of a block for each thread, and for four of them at least, so that what a block needs stays in the cache from
# one operation to the next.
_BLOCK = 2**16  # pragma: no mutate
_INNER = 128  # cells in a row where columns differ: short rows cost more than their cells; pragma: no mutate


class Product(NamedTuple):
    r"""A loss as a product, :math:`\ell(e) = a \, s(e)\, h(e)`, of a slope for which :math:`\ell'(e) = b \, s(e)`.

    ``gain`` and ``rate`` are a and b. Slope and height have one sign, so that nothing cancels in a sum and an
    infinite error gives an infinite loss.
    """

    factors: Callable[[Tensor, Any], tuple[Tensor, Tensor]]
    """Slopes and heights of errors, by what differs between columns; all of it can be differentiated."""
    gain: float = 1.0
    rate: float = 1.0
    jumps: bool = False
    """Whether slopes are between -1 and 1, and not 0 where the error is."""

    def loss(self, error: Tensor, columns: Tensor | None = None) -> Tensor:
        """The loss of each error."""
        slope, height = self.factors(error, columns)
        return slope * height if self.gain == 1.0 else self.gain * slope * height


def reduce_product(
    product: Product,
    preds: Tensor,
    target: Tensor,
    columns: Tensor | None = None,
    *,
    weight: Tensor | None,
    mask: Tensor | None,
    nan_policy: NanPolicy,
    reduction: Reduction,
) -> Tensor:
    """The losses of ``target - preds``, reduced by the library's rule; the shapes are checked already.

    ``columns`` holds what differs along the last dimension of ``preds``, in a last dimension of that size.
    """
    check_choice("reduction", reduction, ("none", "mean", "sum"))
    check_floating("preds", preds)
    check_floating("target", target)
    if reduction == "none" or not in_one_pass(preds, target, weight, mask, columns):
        # Plain operations: a compiler fuses them by itself, and they reach the levels and weights as well.
        error, counted = residual(preds, target, weight, mask, nan_policy)
        return reduce(product.loss(error, columns), weight, counted, reduction)
    share, counted = shares_of(preds, target, weight, mask, nan_policy)
    denominator: Tensor | float = 1.0
    if reduction == "mean":
        denominator = _counted_in_all(preds, target, share, counted)
    return weighted_sum(product, preds, target, columns, share, counted, denominator)


def in_one_pass(preds: Tensor, target: Tensor, *others: Tensor | None) -> bool:
    """Whether :func:`weighted_sum` can be used: eager mode, plain tensors, and nothing learned but both of these."""
    return (
        not torch.compiler.is_compiling()
        and preds.ndim > 0
        and preds.numel() > 0
        and not torch.jit.is_tracing()  # type: ignore[attr-defined, no-untyped-call]
        and forward_ad._current_level < 0
        and not any(
            type(tensor) not in (Tensor, nn.Parameter) or torch._C._functorch.is_functorch_wrapped_tensor(tensor)
            for tensor in (preds, target, *others)
            if tensor is not None
        )
        and not any(tensor is not None and tensor.requires_grad for tensor in others)
    )


def shares_of(
    preds: Tensor, target: Tensor, weight: Tensor | None, mask: Tensor | None, nan_policy: NanPolicy
) -> tuple[Tensor | None, Tensor | None]:
    """What :func:`weighted_sum` takes: the weights, 0 where a cell does not count, and the cells that count."""
    counted = counted_cells(target, None, mask, nan_policy)
    if weight is None:
        return None, counted
    check_weight(weight, target)
    share = trailing(weight.to(wide_dtype(preds, target)), target.ndim)
    return share if counted is None else torch.where(counted, share, 0.0), counted


def weighted_sum(
    product: Product,
    preds: Tensor,
    target: Tensor,
    columns: Tensor | None,
    share: Tensor | None,
    counted: Tensor | None,
    denominator: Tensor | float,
) -> Tensor:
    """The sum of the losses of cells that count, times their shares, over ``denominator``.

    ``share`` is 0 where ``counted`` is False, and a cell whose share is 0 does not count. Shapes follow the prefix
    rule.
    """
    if counted is not None and share is None and product.jumps:
        share = floats(counted, wide_dtype(preds, target))
    if preds.ndim == 1 and columns is None:  # blocks are of rows, and this would be one
        preds, target = preds.unsqueeze(-1), target.unsqueeze(-1)
        share, counted = (None if t is None else t.unsqueeze(-1) for t in (share, counted))
    with without_autocast(preds.device.type):
        total: Tensor = _WeightedSum.apply(  # type: ignore[no-untyped-call]
            preds, target, product, columns, share, counted, denominator
        )
    return total


def wide_dtype(preds: Tensor, target: Tensor) -> torch.dtype:
    """The dtype of errors: float32 or wider."""
    return torch.promote_types(torch.float32, torch.promote_types(preds.dtype, target.dtype))


def _counted_in_all(preds: Tensor, target: Tensor, share: Tensor | None, counted: Tensor | None) -> Tensor | float:
    if share is None:
        if counted is None:
            return float(preds.numel())
        if counted.device.type == "cpu":  # exact, and in a third of the time of a sum
            return (int(np.count_nonzero(shared_array(counted))) or 1) * (preds.numel() / counted.numel())
        share = floats(counted, wide_dtype(preds, target))
    total = share.sum() * (preds.numel() / share.numel())
    return torch.where(total == 0, 1.0, total)


def floats(counted: Tensor, dtype: torch.dtype) -> Tensor:
    """1 where a cell counts, and 0 elsewhere."""
    return counted.view(torch.uint8).to(dtype)  # from bool it takes several times as long


class _WeightedSum(torch.autograd.Function):
    """Goes through the cells in blocks; of their size only the slopes wait for the backward pass, times the shares."""

    @staticmethod
    def forward(
        ctx: Any,
        preds: Tensor,
        target: Tensor,
        product: Product,
        columns: Tensor | None,
        share: Tensor | None,
        counted: Tensor | None,
        denominator: Tensor | float,
    ) -> Tensor:
        number, width = preds.numel() // preds.shape[-1], preds.shape[-1]
        # Half precision is wide enough for slopes up to 1 of predictions that are held so, but not times their weights.
        narrow = preds.dtype if product.jumps and preds.dtype != wide_dtype(preds, target) else None

        def over_blocks(counted: Tensor | None) -> tuple[Tensor, Tensor]:
            p, t, w, c = (None if r is None else _rows(r, preds.shape) for r in (preds, target, share, counted))
            slopes = torch.empty(0)
            totals = []
            for rows, repeats in _blocks(number, width, columns, preds.device):
                block = [None if r is None else r[rows] for r in (p, t, w, c)]
                total, kept = _of_block(product, *block, columns, repeats, narrow)  # type: ignore[arg-type, call-arg]
                totals.append(total)
                if len(kept) == number:
                    return total, kept
                slopes = slopes if rows.start else kept.new_empty((number, width))
                slopes[rows] = kept
            return torch.stack(totals).sum(), slopes

        if share is not None and preds.device.type != "cpu":
            counted = share.bool()
        total, slopes = over_blocks(counted)
        if share is not None and preds.device.type == "cpu" and not math.isfinite(total.item()):
            # Rare, and dear to rule out beforehand: what is not finite may be where a weight is 0.
            total, slopes = over_blocks(share.bool())
        # Where there are shares, they say what counts.
        ctx.save_for_backward(preds, target, columns, share, counted if share is None else None, slopes)
        ctx.product, ctx.factor, ctx.is_weighted = product, -product.rate / denominator, narrow is None
        return total * product.gain / denominator

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        preds, target, columns, share, counted, slopes = ctx.saved_tensors
        share = None if share is None else _rows(share, preds.shape)
        again = torch.is_grad_enabled()
        if again:  # a derivative of this gradient is wanted, so the slopes have to know where they come from
            error = widen(_rows(target, preds.shape)) - widen(_rows(preds, preds.shape))
            counted = _rows(counted, preds.shape) if share is None and counted is not None else share
            if counted is not None:
                error = torch.where(counted != 0, error, 0.0)
            with without_autocast(preds.device.type):
                slopes = ctx.product.factors(error, columns)[0]
        factor = grad * ctx.factor
        if share is not None and (again or not ctx.is_weighted):
            factor = factor * share
        change = widen(slopes) if ctx.needs_input_grad[1] else slopes
        change = change.mul_(factor) if not again and _is_last(grad) else change * factor
        to_preds = to_target = None
        if ctx.needs_input_grad[0]:
            to_preds = change.to(preds.dtype).view(preds.shape)
        if ctx.needs_input_grad[1]:
            to_target = (-change if target.ndim == preds.ndim else -change.sum(-1)).to(target.dtype)
            to_target = to_target.view(target.shape)
        return to_preds, to_target, None, None, None, None, None


def _is_last(grad: Tensor) -> bool:
    """Whether nobody goes back through the graph once more, so that what was saved can become the gradient.

    Half of the time of large losses went into pages of a second tensor of their size.
    """
    keeps = getattr(torch._C._autograd, "_get_current_graph_task_keep_graph", None)
    plain = type(grad) is Tensor and not torch._C._functorch.is_functorch_wrapped_tensor(grad)
    return plain and keeps is not None and not keeps()


def _of_block(
    product: Product,
    preds: Tensor,
    target: Tensor,
    share: Tensor | None,
    counted: Tensor | None,
    columns: Tensor | None,
    repeats: int,
    narrow: torch.dtype | None,
) -> tuple[Tensor, Tensor]:
    """The sum of a block of rows, and its slopes: times the shares, or ``narrow`` and without."""
    error = (widen(target) - widen(preds)).contiguous()
    if counted is not None:
        _zero_elsewhere(error, counted)
    if columns is not None and repeats > 1:
        error, columns = error.view(-1, repeats * error.shape[1]), torch.cat([columns] * repeats, -1)
    slope, height = product.factors(error, columns)
    del error
    own = slope is not height  # a square has one tensor as both
    slope, height = slope.view(preds.shape), height.view(preds.shape)
    kept = slope if narrow is None else slope.to(narrow)
    if share is not None:
        slope, own = slope.mul_(share) if own else slope * share, True
        kept = slope if narrow is None else kept
    # Not torch.dot, whose sum of so many float32 numbers is right to three digits only.
    return (height.mul_(slope) if own else slope * height).sum(), kept


def _rows(tensor: Tensor, shape: torch.Size) -> Tensor:
    """``tensor``, which leads or has ``shape``, with two dimensions: as many rows, and as many columns or one."""
    tensor = trailing(tensor, len(shape))
    return tensor.expand((*shape[:-1], tensor.shape[-1])).reshape(shape[:-1].numel(), tensor.shape[-1])


def _blocks(number: int, width: int, columns: Tensor | None, device: torch.device) -> Iterator[tuple[slice, int]]:
    """Where blocks of rows begin and end, and how many rows are to be taken as one, so that it is no short one."""
    if device.type != "cpu":
        yield slice(0, number), 1
        return
    # A power of two, as the number of rows often is: then there is no rest.
    repeats = 1 if columns is None else 2 ** int(math.log2(max(1, _INNER // width)))  # pragma: no mutate
    blocks = math.ceil(number * width / (_BLOCK * max(4, torch.get_num_threads())))  # pragma: no mutate
    size = math.ceil(number / (blocks * repeats)) * repeats
    whole = number - number % repeats
    edges = [*range(0, whole, size), whole, number]
    for start, stop in itertools.pairwise(edges):
        if start < stop:
            yield slice(start, stop), repeats if start < whole else 1


def _zero_elsewhere(error: Tensor, counted: Tensor) -> None:
    """Set ``error`` to 0 where a cell does not count, whatever it is there.

    As integers, since bits times 0 are 0 also where they say NaN; ``torch.where`` takes ten times as long on a CPU.
    """
    bits = error.view(torch.int64 if error.dtype == torch.float64 else torch.int32)
    bits.mul_(counted.to(bits.dtype))
