"""Losses of points and the Huber pinball loss against torch's Huber loss; masks and weights against none."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.speed._measure import Comparison, Reach
from benchmarks.speed._subject import main
from reghead import functional

TITLE = "Asymmetric, expectile and Huber losses, masks and weights, forward and backward"
ROWS, COLUMNS = 4096, 64
PASSES = (
    "torch has one kernel forward and one backward for its Huber loss; here each operation of the loss is a pass "
    "of its own over the errors."
)


def gradient(loss: Callable[[], Tensor], preds: Tensor) -> Callable[[], object]:
    return lambda: torch.autograd.grad(loss(), preds)


def clamped(preds: Tensor, target: Tensor, over: float, under: float) -> Tensor:
    """As AAM's ``compute_asymmetric_loss``."""
    error = preds - target
    return (over * torch.clamp(error, min=0) + under * torch.clamp(-error, min=0)).mean()


def chosen(preds: Tensor, target: Tensor, over: float, under: float) -> Tensor:
    """As an asymmetric square is mostly written."""
    error = preds - target
    return torch.where(error > 0, over * error.square(), under * error.square()).mean()


def measure() -> Iterator[Comparison]:
    rng = torch.Generator().manual_seed(0)
    preds = torch.randn(ROWS, COLUMNS, generator=rng).requires_grad_()
    target = torch.randn(ROWS, COLUMNS, generator=rng)
    size = f"B={ROWS:,}, D={COLUMNS}"
    huber = gradient(lambda: F.huber_loss(preds, target), preds)

    def against_huber(name: str, ours: Callable[[], Tensor], **others: Callable[[], Tensor]) -> Comparison:
        contenders = {"reghead": gradient(ours, preds), "torch huber_loss": huber}
        contenders |= {other.replace("_", " "): gradient(loss, preds) for other, loss in others.items()}
        return Comparison(f"{name}, {size}", contenders, [Reach(1.3, ("torch huber_loss",))], seconds=4, why=PASSES)

    yield against_huber(
        "asymmetric, squared",
        lambda: functional.asymmetric_loss(preds, target, 2.0),
        where=lambda: chosen(preds, target, 2.0, 1.0),
    )
    yield against_huber(
        "asymmetric, absolute",
        lambda: functional.asymmetric_loss(preds, target, 2.0, base="mae"),
        AAM=lambda: clamped(preds, target, 2.0, 1.0),
    )
    yield against_huber(
        "expectile",
        lambda: functional.expectile_loss(preds, target, 0.8),
        where=lambda: chosen(preds, target, 0.2, 0.8),
    )
    quantiles, wide = preds.detach()[:, None, :].clone().requires_grad_(), target[:, None, :]
    levels = [(k + 1) / (COLUMNS + 1) for k in range(COLUMNS)]
    yield Comparison(
        f"Huber pinball, B={ROWS:,}, Q={COLUMNS}",
        {
            "reghead": gradient(
                lambda: functional.huber_pinball_loss(quantiles, target[:, :1], levels, 1.0), quantiles
            ),
            "torch huber_loss": gradient(lambda: F.huber_loss(quantiles, wide), quantiles),
        },
        [Reach(1.3, ("torch huber_loss",))],
        seconds=4,
        why=PASSES,
    )
    yield from _masked_and_weighted(preds, target, rng, size)


def _masked_and_weighted(preds: Tensor, target: Tensor, rng: torch.Generator, size: str) -> Iterator[Comparison]:
    nine = preds.detach().reshape(-1, 1)[:, :, None].repeat(1, 1, 9)[: 2**15].clone().requires_grad_()
    levels = [(k + 1) / 10 for k in range(9)]
    losses = {
        "mse": (functional.mse_loss, preds, target, ()),
        "huber": (functional.huber_loss, preds, target, (1.0,)),
        "asymmetric": (functional.asymmetric_loss, preds, target, (2.0,)),
        "pinball": (functional.pinball_loss, nine, target.reshape(-1, 1)[: 2**15], (levels,)),
    }
    for name, (function, p, t, more) in losses.items():
        mask, weight = torch.rand(t.shape, generator=rng) < 0.7, torch.rand(t.shape, generator=rng)

        def call(
            p: Tensor = p, t: Tensor = t, f: Callable[..., Tensor] = function, more: object = more, **kwargs: object
        ):
            return gradient(lambda: f(p, t, *more, **kwargs), p)  # type: ignore[misc]

        missing = torch.where(mask, t, torch.nan)
        for way, ours in {
            "masked": call(mask=mask),
            "NaN targets masked": call(t=missing, mask=mask),
            "weighted by cell": call(weight=weight),
            "weighted by row": call(weight=weight[:, 0]),
        }.items():
            yield Comparison(
                f"{name}, {way}, {size if name != 'pinball' else 'B=32,768, Q=9'}",
                {"reghead": ours, "the same, plain": call()},
                [Reach(1.6, ("the same, plain",))],
                seconds=2,
                why="To set cells to zero, or to multiply them, is a pass over all of them, of the few that there are.",
            )


if __name__ == "__main__":
    main("pointwise", TITLE, measure)
