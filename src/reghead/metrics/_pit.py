"""Where targets fall in their predicted distributions, which quantiles describe."""

from typing import NamedTuple

import torch
from torch import Tensor

from reghead._checks import check_floating, check_quantiles, check_shape
from reghead._reduction import counted_cells, trailing, widen
from reghead._typing import NanPolicy, Quantiles
from reghead.metrics._binomial import binomial_band


class PitHistogram(NamedTuple):
    """What :func:`pit_histogram` returns: Q + 1 bins, the outer ones below and above all quantiles.

    Attributes:
        edges: Levels between which the bins lie, from 0 to 1. Shape ``(Q + 2,)``.
        counts: Targets in each bin; not whole where targets equal a quantile. Shape ``(Q + 1,)``.
        expected: How many there would be of calibrated predictions: the bin's width times all. Shape ``(Q + 1,)``.
        low: From where a bin's count is with 95 %, by chance alone. Shape ``(Q + 1,)``.
        high: Up to where. Shape ``(Q + 1,)``.
    """

    edges: Tensor
    counts: Tensor
    expected: Tensor
    low: Tensor
    high: Tensor


def pit(preds: Tensor, target: Tensor, quantiles: Quantiles, *, generator: torch.Generator | None = None) -> Tensor:
    r"""Probability integral transform of each target, :math:`\hat F(y)`, by a distribution given by its quantiles.

    Between two quantiles :math:`\hat F` is linear. Below the lowest only :math:`0 \le \hat F \le \tau_1` is known, and
    above the highest :math:`\tau_Q \le \hat F \le 1`; at equal quantiles, and beside an infinite one, it is known
    between their levels too. There the result is the middle of what is known, or, with a ``generator``, drawn
    uniformly from it: then calibrated predictions of a continuous target have a uniform transform, but for the
    straight lines. :func:`pit_histogram` needs neither the lines nor the draws. Dawid, "Statistical Theory: The
    Prequential Approach", 1984; Czado, Gneiting and Held, "Predictive Model Assessment for Count Data", 2009, for the
    draws.

    Quantiles that cross are put in order, see :func:`crossing_rate`.

    Args:
        preds: Predicted quantiles, in the units of ``target``. Shape ``(*, D, Q)``.
        target: Observed values. Shape ``(*, D)``.
        quantiles: The Q levels :math:`\tau`, strictly increasing.
        generator: Draws what is not known, on the device of ``preds``.

    Returns:
        Values in [0, 1], shape ``(*, D)``. NaN where the target or a prediction is.

    Raises:
        ValueError: If ``preds`` does not have the shape of ``target`` followed by Q.

    Example:
        >>> import torch
        >>> preds, target = torch.tensor([[0.0, 10.0]]).expand(3, 2), torch.tensor([-5.0, 5.0, 7.5])
        >>> pit(preds, target, [0.2, 0.6])  # 0.2 / 2, then half and three quarters of the way from 0.2 to 0.6
        tensor([0.1000, 0.4000, 0.5000])
    """
    q, y, levels = _sorted(preds, target, quantiles)
    edges = q.new_tensor([0.0, *levels, 1.0])
    first, last = _touched(q, y)
    # An edge of level 0 or 1 has no quantile: an infinite one says as much.
    ends = torch.cat([torch.full_like(q[..., :1], -torch.inf), q, torch.full_like(q[..., :1], torch.inf)], dim=-1)
    lower, upper = (ends.gather(-1, i.unsqueeze(-1)).squeeze(-1) for i in (first, last + 1))
    is_tie = last > first
    low, high = edges[torch.where(is_tie, first + 1, first)], edges[torch.where(is_tie, last, last + 1)]
    between = ~is_tie & lower.isfinite() & upper.isfinite() & y.isfinite()
    drawn = torch.rand(y.shape, generator=generator, dtype=q.dtype, device=q.device) if generator is not None else 0.5
    place = torch.where(between, (y - lower) / (upper - lower), drawn)
    unknown = y.isnan() | q.isnan().any(-1)
    return torch.where(unknown, torch.nan, low + place * (high - low))


def pit_histogram(
    preds: Tensor,
    target: Tensor,
    quantiles: Quantiles,
    *,
    mask: Tensor | None = None,
    nan_policy: NanPolicy = "propagate",
) -> PitHistogram:
    """Counts of targets between neighbouring predicted quantiles, beside those expected.

    The histogram of the probability integral transform with the levels for its edges: all that quantiles say, with
    nothing interpolated. Of calibrated predictions each count is close to the bin's width times the number of targets;
    high outer bins mean intervals too narrow, low ones too wide, a slope means biased predictions. Gneiting, Balabdaoui
    and Raftery, "Probabilistic Forecasts, Calibration and Sharpness", 2007.

    The band of a bin holds 95 % of the counts that independent targets have (exact, each bin's count is binomial): of
    20 bins one is expected outside. A target that equals quantiles is spread over the bins they bound in proportion to
    their widths, as a random choice among them has it on average (Hamill, "Interpretation of Rank Histograms for
    Verifying Ensemble Forecasts", 2001). Quantiles that cross are put in order, see :func:`crossing_rate`. All outputs
    are counted together; they share rows, so pass one where the band matters.

    Args:
        preds: Predicted quantiles, in the units of ``target``. Shape ``(*, D, Q)``.
        target: Observed values. Shape ``(*, D)``.
        quantiles: The Q levels, strictly increasing.
        mask: True where a target counts. Shape ``(*,)`` or ``(*, D)``.
        nan_policy: ``"omit"`` treats a NaN target as missing; ``"propagate"`` returns NaN.

    Returns:
        Tensors of float64 on the CPU; ``counts`` are NaN where a target or prediction that counts is.

    Raises:
        ValueError: If ``preds`` does not have the shape of ``target`` followed by Q.

    Example:
        >>> import torch
        >>> preds, target = torch.tensor([[1.0, 3.0]]).expand(4, 2), torch.tensor([0.0, 2.0, 2.5, 4.0])
        >>> histogram = pit_histogram(preds, target, [0.25, 0.75])
        >>> histogram.counts.tolist(), histogram.expected.tolist()
        ([1.0, 2.0, 1.0], [1.0, 2.0, 1.0])
    """
    q, y, levels = _sorted(preds.detach(), target.detach(), quantiles)
    counted = counted_cells(target, None, mask, nan_policy)
    if counted is not None:
        q, y = q[counted], y[counted]
    q, y = q.reshape(-1, len(levels)).cpu(), y.reshape(-1).cpu()
    edges = torch.tensor([0.0, *levels, 1.0], dtype=torch.float64)
    width, bins = edges.diff(), torch.arange(len(levels) + 1)
    first, last = (trailing(i, 2) for i in _touched(q, y))
    share = torch.where((first <= bins) & (bins <= last), width, 0.0) / (edges[last + 1] - edges[first])
    counts = share.sum(0)
    if (y.isnan() | q.isnan().any(-1)).any():
        counts = torch.full_like(counts, torch.nan)
    number = len(y)
    bands = [binomial_band(number, p) if number else (0.0, 0.0) for p in width.tolist()]
    low, high = (number * torch.tensor(bands, dtype=torch.float64)).round().unbind(-1)
    return PitHistogram(edges, counts, number * width, low, high)


def _sorted(preds: Tensor, target: Tensor, quantiles: Quantiles) -> tuple[Tensor, Tensor, tuple[float, ...]]:
    levels = check_quantiles("quantiles", quantiles)
    check_floating("preds", preds)
    check_floating("target", target)
    check_shape("preds", preds, (*target.shape, len(levels)), "(*target.shape, Q)")
    return widen(preds).sort(dim=-1).values, widen(target), levels


def _touched(q: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """The first and the last bin that a target lies in or on the edge of; between two quantiles it is one bin."""
    return (q < y.unsqueeze(-1)).sum(-1), (q <= y.unsqueeze(-1)).sum(-1)
