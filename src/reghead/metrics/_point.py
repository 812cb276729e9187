"""How far predictions are from what was observed."""

import torch
from torch import Tensor

from reghead._checks import check_same_shape
from reghead._reduction import residual, trailing, widen
from reghead._typing import NanPolicy


def rmse(
    preds: Tensor,
    target: Tensor,
    *,
    weight: Tensor | None = None,
    mask: Tensor | None = None,
    nan_policy: NanPolicy = "propagate",
    per_output: bool = False,
) -> Tensor:
    r"""Root of the mean squared error, in the units of ``target``.

    .. math:: \sqrt{\sum_i w_i (\hat y_i - y_i)^2 / \sum_i w_i}

    Over all cells together, unless ``per_output``: the root is taken last, so this is not the mean of the outputs'.

    Args:
        preds: Predictions. Shape ``(*, D)``.
        target: Observed values. Shape ``(*, D)``.
        weight: Non-negative weights, shape ``(*,)`` per row or ``(*, D)``.
        mask: True where a target counts. Shape ``(*,)`` or ``(*, D)``.
        nan_policy: ``"omit"`` treats a NaN target as missing; ``"propagate"`` returns NaN.
        per_output: Whether to return one value for each output.

    Returns:
        A scalar, or shape ``(D,)``. NaN where nothing counts.

    Raises:
        ValueError: If ``preds`` and ``target`` differ in shape.

    Example:
        >>> import torch
        >>> rmse(torch.tensor([[3.0], [1.0]]), torch.tensor([[0.0], [5.0]]))  # sqrt((9 + 16) / 2)
        tensor(3.5355)
    """
    check_same_shape(preds, target)
    error, counted = residual(preds, target, weight, mask, nan_policy)
    return average(error.square(), weight, counted, per_output).sqrt()


def mae(
    preds: Tensor,
    target: Tensor,
    *,
    weight: Tensor | None = None,
    mask: Tensor | None = None,
    nan_policy: NanPolicy = "propagate",
    per_output: bool = False,
) -> Tensor:
    r"""Mean absolute error, in the units of ``target``.

    .. math:: \sum_i w_i |\hat y_i - y_i| / \sum_i w_i

    Args:
        preds: Predictions. Shape ``(*, D)``.
        target: Observed values. Shape ``(*, D)``.
        weight: Non-negative weights, shape ``(*,)`` per row or ``(*, D)``.
        mask: True where a target counts. Shape ``(*,)`` or ``(*, D)``.
        nan_policy: ``"omit"`` treats a NaN target as missing; ``"propagate"`` returns NaN.
        per_output: Whether to return one value for each output.

    Returns:
        A scalar, or shape ``(D,)``. NaN where nothing counts.

    Raises:
        ValueError: If ``preds`` and ``target`` differ in shape.

    Example:
        >>> import torch
        >>> mae(torch.tensor([[3.0], [1.0]]), torch.tensor([[0.0], [5.0]]))
        tensor(3.5000)
    """
    check_same_shape(preds, target)
    error, counted = residual(preds, target, weight, mask, nan_policy)
    return average(error.abs(), weight, counted, per_output)


def bias(
    preds: Tensor,
    target: Tensor,
    *,
    weight: Tensor | None = None,
    mask: Tensor | None = None,
    nan_policy: NanPolicy = "propagate",
    per_output: bool = False,
) -> Tensor:
    r"""Mean error, in the units of ``target``: positive where predictions are too high.

    .. math:: \sum_i w_i (\hat y_i - y_i) / \sum_i w_i

    Args:
        preds: Predictions. Shape ``(*, D)``.
        target: Observed values. Shape ``(*, D)``.
        weight: Non-negative weights, shape ``(*,)`` per row or ``(*, D)``.
        mask: True where a target counts. Shape ``(*,)`` or ``(*, D)``.
        nan_policy: ``"omit"`` treats a NaN target as missing; ``"propagate"`` returns NaN.
        per_output: Whether to return one value for each output.

    Returns:
        A scalar, or shape ``(D,)``. NaN where nothing counts.

    Raises:
        ValueError: If ``preds`` and ``target`` differ in shape.

    Example:
        >>> import torch
        >>> bias(torch.tensor([[3.0], [1.0]]), torch.tensor([[0.0], [5.0]]))
        tensor(-0.5000)
    """
    check_same_shape(preds, target)
    error, counted = residual(preds, target, weight, mask, nan_policy)
    return 0.0 - average(error, weight, counted, per_output)  # a plain minus makes -0.0 of 0


def r2(
    preds: Tensor,
    target: Tensor,
    *,
    weight: Tensor | None = None,
    mask: Tensor | None = None,
    nan_policy: NanPolicy = "propagate",
    per_output: bool = False,
) -> Tensor:
    r"""Share of the target's variance that the predictions explain.

    .. math:: 1 - \frac{\sum_i w_i (\hat y_i - y_i)^2}{\sum_i w_i (y_i - \bar y)^2}

    Each output has a mean :math:`\bar y` of its own; the overall value is the mean over outputs, which does not
    depend on their units. A constant target leaves it undefined, and it is NaN.

    Args:
        preds: Predictions. Shape ``(*, D)``.
        target: Observed values. Shape ``(*, D)``.
        weight: Non-negative weights, shape ``(*,)`` per row or ``(*, D)``.
        mask: True where a target counts. Shape ``(*,)`` or ``(*, D)``.
        nan_policy: ``"omit"`` treats a NaN target as missing; ``"propagate"`` returns NaN.
        per_output: Whether to return one value for each output.

    Returns:
        A scalar, or shape ``(D,)``. NaN where the targets that count are all equal, or there are none.

    Raises:
        ValueError: If ``preds`` and ``target`` differ in shape, or have no dimension of outputs.

    Example:
        >>> import torch
        >>> r2(torch.tensor([[1.0], [2.0], [4.0]]), torch.tensor([[1.0], [2.0], [3.0]]))  # 1 - 1 / 2
        tensor(0.5000)
    """
    check_same_shape(preds, target)
    error, counted = residual(preds, target, weight, mask, nan_policy)
    zero = error.new_zeros(()).expand_as(error)
    observed = residual(zero, target, weight, mask, nan_policy)[0]
    center = average(observed, weight, counted, per_output=True)
    deviation = observed - center
    # The first mean is off by its rounding; the mean deviation from it says by how much.
    deviation = deviation - average(deviation, weight, counted, per_output=True)
    total = average(deviation.square(), weight, counted, per_output=True)
    unexplained = average(error.square(), weight, counted, per_output=True)
    result = explained_share(unexplained, total, center)
    return result if per_output else result.mean()


def explained_share(unexplained: Tensor, variance: Tensor, center: Tensor) -> Tensor:
    """R squared from mean squares, NaN where the targets, which have their mean at ``center``, are all equal."""
    # Once centred twice, equal targets leave about eps**2 of their size, one that is a rounding apart about eps.
    constant = variance.sqrt() <= torch.finfo(variance.dtype).eps ** 1.5 * center.abs()
    return torch.where(constant, torch.nan, 1.0 - unexplained / variance)


def average(values: Tensor, weight: Tensor | None, counted: Tensor | None, per_output: bool) -> Tensor:
    """Weighted mean of ``values`` over the cells that count: of all, or for each place in the last dimension.

    Unlike a loss, which is 0 where nothing counts so that training goes on, a metric is NaN there.
    """
    values = widen(values)
    share = torch.ones((), dtype=values.dtype, device=values.device)
    if weight is not None:
        share = trailing(weight.to(values.dtype), values.ndim)
    if counted is not None:
        counted = trailing(counted, values.ndim)
        share, values = torch.where(counted, share, 0.0), torch.where(counted, values, 0.0)
    dims = _rows(values) if per_output else tuple(range(values.ndim))
    total = (values * share).sum(dims) if dims else values * share
    return total / (share.expand(values.shape).sum(dims) if dims else share.expand(values.shape))


def _rows(values: Tensor) -> tuple[int, ...]:
    if values.ndim < 2:
        raise ValueError(
            f"one value for each output needs shape (*, D), got {tuple(values.shape)}; use unsqueeze(-1) for one output"
        )
    return tuple(range(values.ndim - 1))
