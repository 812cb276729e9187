"""The losses in exact fractions, or decimals of 200 digits, by other formulas than the code's."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from decimal import Context, Decimal
from fractions import Fraction
from typing import Any

import torch
from torch import Tensor

from reghead import functional as R

Number = Fraction
LEVELS = (0.1, 0.5, 0.9)
DELTA, OVER, UNDER, EXPECTILE, CONFIDENCE = 0.7, 2.5, 0.5, 0.3, 0.8
DIGITS = Context(prec=200, Emin=-(10**15), Emax=10**15)
DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


def wide(dtype: torch.dtype) -> torch.dtype:
    """The dtype that sums are taken in."""
    return torch.promote_types(dtype, torch.float32)


def rounding(dtype: torch.dtype) -> float:
    """Unit roundoff of the dtype that sums are taken in."""
    return torch.finfo(wide(dtype)).eps / 2


def decimal(value: Number) -> Decimal:
    return DIGITS.divide(Decimal(value.numerator), Decimal(value.denominator))


def logarithm(value: Number) -> Number:
    return Fraction(DIGITS.ln(decimal(value)))


def square(y: Number, p: Number) -> Number:
    return y * y - 2 * y * p + p * p


def absolute(y: Number, p: Number) -> Number:
    return max(y - p, p - y)


def huber_of(delta: float) -> Callable[[Number, Number], Number]:
    """The Moreau envelope: the best split of the error into a squared and an absolute part."""

    def huber(y: Number, p: Number) -> Number:
        knot = Fraction(delta)
        part = min(max(y - p, -knot), knot)
        return part * part / 2 + knot * abs(y - p - part)

    return huber


def log_cosh(y: Number, p: Number) -> Number:
    e = abs(y - p)
    if e < Fraction(1, 10**40):
        return e * e / 2  # the next term is smaller by 1e-80
    if e > 1000:
        return e - logarithm(Fraction(2))
    grown = DIGITS.exp(decimal(e))
    return logarithm(Fraction(DIGITS.add(grown, DIGITS.divide(Decimal(1), grown))) / 2)


def by_side(loss: Callable[[Number, Number], Number], over: float, under: float) -> Callable[[Number, Number], Number]:
    return lambda y, p: (Fraction(over) if p > y else Fraction(under)) * loss(y, p)


def expectile(y: Number, p: Number) -> Number:
    return abs(Fraction(EXPECTILE) - (p > y)) * square(y, p)


def pinball(y: Number, q: Number, tau: float) -> Number:
    return max(Fraction(tau) * (y - q), (Fraction(tau) - 1) * (y - q))


def interval(y: Number, lower: Number, upper: Number) -> Number:
    fine = 2 / (1 - Fraction(CONFIDENCE))
    return (upper - lower) + fine * max(lower - y, Fraction(0)) + fine * max(y - upper, Fraction(0))


def crps(y: Number, *q: Number) -> Number:
    taus = [Fraction(tau) for tau in LEVELS]
    edges = [Fraction(0), *((a + b) / 2 for a, b in itertools.pairwise(taus)), Fraction(1)]
    widths = [b - a for a, b in itertools.pairwise(edges)]
    return 2 * sum((w * pinball(y, x, tau) for w, x, tau in zip(widths, q, LEVELS, strict=True)), Fraction(0))


@dataclass(frozen=True)
class Loss:
    """A loss of one target and ``width`` predictions, and what it may lose to rounding.

    ``roundings`` times the unit roundoff of the dtype that sums are taken in bounds the relative error of a cell.
    """

    function: Callable[..., Tensor]
    exact: Callable[..., Number]
    roundings: float
    width: int = 1
    slope: Callable[[float], float] | None = None
    """Derivative by the prediction as a function of the error target - prediction."""

    def __call__(self, preds: Tensor, target: Tensor, **options: Any) -> Tensor:
        """``preds`` has shape ``(*, width)``."""
        if self.width == 1:
            preds = preds.squeeze(-1)
        return self.function(preds, target, **options)


def one_level(tau: float) -> Callable[..., Tensor]:
    return lambda p, y, **o: flat(R.pinball_loss(p.unsqueeze(-1), y, [tau], **o), o)


def flat(loss: Tensor, options: dict[str, Any]) -> Tensor:
    return loss.squeeze(-1) if options.get("reduction") == "none" else loss


def sign(e: float) -> float:
    return float((e > 0) - (e < 0))


def clamped(e: float) -> float:
    return max(-DELTA, min(DELTA, e))


def tanh(e: float) -> float:
    return torch.tensor(e, dtype=torch.float64).tanh().item()


LOSSES: dict[str, Loss] = {
    "mse": Loss(R.mse_loss, square, 4, slope=lambda e: -2 * e),
    "mae": Loss(R.mae_loss, absolute, 1, slope=lambda e: -sign(e)),
    "huber": Loss(lambda p, y, **o: R.huber_loss(p, y, DELTA, **o), huber_of(DELTA), 5, slope=lambda e: -clamped(e)),
    "log_cosh": Loss(R.log_cosh_loss, log_cosh, 8, slope=lambda e: -tanh(e)),
    "asymmetric mse": Loss(
        lambda p, y, **o: R.asymmetric_loss(p, y, OVER, UNDER, **o),
        by_side(square, OVER, UNDER),
        5,
        slope=lambda e: -2 * e * (OVER if e < 0 else UNDER),
    ),
    "asymmetric mae": Loss(
        lambda p, y, **o: R.asymmetric_loss(p, y, OVER, UNDER, "mae", **o),
        by_side(absolute, OVER, UNDER),
        2,
        slope=lambda e: OVER if e < 0 else -UNDER * sign(e),
    ),
    "asymmetric huber": Loss(
        lambda p, y, **o: R.asymmetric_loss(p, y, OVER, UNDER, "huber", DELTA, **o),
        by_side(huber_of(DELTA), OVER, UNDER),
        6,
        slope=lambda e: -clamped(e) * (OVER if e < 0 else UNDER),
    ),
    "expectile": Loss(
        lambda p, y, **o: R.expectile_loss(p, y, EXPECTILE, **o),
        expectile,
        6,
        slope=lambda e: -2 * e * (1 - EXPECTILE if e < 0 else EXPECTILE),
    ),
    **{
        f"pinball {tau}": Loss(
            one_level(tau),
            lambda y, q, tau=tau: pinball(y, q, tau),
            1 + 3 / min(tau, 1 - tau),
            slope=lambda e, tau=tau: 0.5 - tau if e == 0 else (e < 0) - tau,
        )
        for tau in (0.001, 0.3, 0.5, 0.999)
    },
    "huber pinball": Loss(
        lambda p, y, **o: flat(R.huber_pinball_loss(p.unsqueeze(-1), y, [0.9], DELTA, **o), o),
        lambda y, q: abs(Fraction(0.9) - (q > y)) * huber_of(DELTA)(y, q) / Fraction(DELTA),
        24,
        slope=lambda e: -clamped(e) / DELTA * (0.1 if e < 0 else 0.9),
    ),
    "interval": Loss(lambda p, y, **o: R.interval_score_loss(p, y, CONFIDENCE, **o), interval, 6, width=2),
    "crps": Loss(lambda p, y, **o: R.crps_loss(p, y, LEVELS, **o), crps, 36, width=3),
}


def representable(values: Sequence[float], dtype: torch.dtype) -> list[float]:
    """``values`` as the dtype rounds them, those that stay finite, each once."""
    cast = torch.tensor(values, dtype=torch.float64).to(dtype).double()
    return list(dict.fromkeys(v + 0.0 for v in cast.tolist() if abs(v) < float("inf")))


def extremes(dtype: torch.dtype) -> list[float]:
    """Nothing, subnormal, tiny, ordinary, far from 0 with neighbours, huge."""
    info = torch.finfo(dtype)
    neighbours = [1e9, 1e9 + 1e-2, 1e9 - 1e-2]
    values = [0.0, info.smallest_normal / 4, 1e-30, 3e-5, 0.7, 1.0, 1.0 + info.eps, 30.0, 1e4, *neighbours, 1e30]
    return representable([*values, *(-v for v in values)], dtype)


def rows(loss: Loss, dtype: torch.dtype) -> Iterator[tuple[float, ...]]:
    """Targets with predictions, of extremes: all pairs, or 400 combinations."""
    values = extremes(dtype)
    if loss.width == 1:
        yield from ((y, p) for y in values for p in values)
    else:
        rng = torch.Generator().manual_seed(0)
        for index in torch.randint(0, len(values), (400, loss.width + 1), generator=rng).tolist():
            yield tuple(values[i] for i in index)
