"""First and second derivatives of everything that has them, against difference quotients in float64."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import gradcheck, gradgradcheck

from _cases import CASES, Case, D
from numerics._exact import LOSSES
from reghead import functional as R
from reghead.normalization import TargetTransform

F64 = torch.float64
# Second derivatives that are zero, and said to be zero; a difference quotient agrees away from the kinks.
PIECEWISE_LINEAR = [name for name in LOSSES if "pinball" in name and "huber" not in name]
PIECEWISE_LINEAR += ["mae", "asymmetric mae", "interval", "crps"]
# A hard choice has the gradient of a surrogate.
SURROGATE = {"MixtureOfExperts-hard", "RegressionHead-moe-hard"}
each_loss = pytest.mark.parametrize("name", LOSSES)


def away_from_kinks(name: str) -> tuple[Tensor, Tensor]:
    """Errors at least 0.05 from 0 and from the knots at 0.7 and 1."""
    rng = torch.Generator().manual_seed(5)
    target = torch.randn(4, 2, generator=rng, dtype=F64)
    size = torch.tensor([0.25, 0.4, 0.85, 1.9], dtype=F64)
    pick = torch.randint(0, 4, (4, 2, LOSSES[name].width), generator=rng)
    side = torch.randint(0, 2, pick.shape, generator=rng) * 2.0 - 1.0
    preds = target.unsqueeze(-1) + side * size[pick]
    return preds.requires_grad_(), target.requires_grad_()


@each_loss
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_second_derivatives_of_losses(name: str, reduction: str) -> None:
    preds, target = away_from_kinks(name)

    def loss(p: Tensor, y: Tensor) -> Tensor:
        return LOSSES[name](p, y, reduction=reduction)

    assert gradcheck(loss, (preds, target), fast_mode=True)
    assert gradgradcheck(loss, (preds, target), fast_mode=True)


@pytest.mark.parametrize("name", PIECEWISE_LINEAR)
def test_a_piecewise_linear_loss_has_a_second_derivative_of_zero_and_no_error(name: str) -> None:
    preds, target = away_from_kinks(name)
    first = torch.autograd.grad(LOSSES[name](preds, target), preds, create_graph=True)[0]
    # Through a graph or without one: what has no second derivative has nothing to add.
    total = (first * first.detach()).sum() + 0.0 * preds.sum()
    assert not torch.autograd.grad(total, preds)[0].any()


def gaussian(p: Tensor, y: Tensor, s: Tensor) -> Tensor:
    return R.gaussian_nll_loss(p, y, s)


def per_output(p: Tensor, y: Tensor, s: Tensor) -> Tensor:
    losses: dict[str | int, Any] = {0: "mse", 1: "log_cosh"}
    return R.per_output_loss(p, y, losses, log_variance=s[0])


def utilization(p: Tensor, y: Tensor, s: Tensor) -> Tensor:
    return R.expert_utilization(p.softmax(-1), torch.tensor([0, 1, 0, 1]), 2)


FUNCTIONS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "gaussian_nll_loss": gaussian,
    "per_output_loss with uncertainty": per_output,
    "film": lambda p, y, s: R.film(p, y, s),
    "lookup": lambda p, y, s: R.lookup(p, torch.tensor([0, 2, 2, 1])),
    "routing_weights soft": lambda p, y, s: R.routing_weights(p, temperature=0.7),
    "routing_weights top_k": lambda p, y, s: R.routing_weights(torch.cat([p, y], -1), "top_k", top_k=2),
    "routing_entropy": lambda p, y, s: R.routing_entropy(p.softmax(-1)),
    "expert_utilization": utilization,
    "non_crossing_quantiles": lambda p, y, s: R.non_crossing_quantiles(torch.cat([p, y], -1), [0.1, 0.3, 0.5, 0.9]),
    "sort_quantiles": lambda p, y, s: R.sort_quantiles(torch.cat([p, y], -1)),
    **{
        f"transform {kind}": lambda p, y, s, kind=kind: TargetTransform(kind).forward(p.sigmoid() * 0.9 + 0.05)
        for kind in ("identity", "log", "log1p", "logit", "softplus", "clamp")
    },
    **{
        f"inverse {kind}": lambda p, y, s, kind=kind: TargetTransform(kind).inverse(p)
        for kind in ("identity", "log", "log1p", "logit", "softplus", "clamp")
    },
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_first_and_second_derivatives_of_functions(name: str) -> None:
    rng = torch.Generator().manual_seed(6)
    inputs = [torch.randn(4, 2, generator=rng, dtype=F64).requires_grad_() for _ in range(2)]
    inputs.append((torch.rand(4, 2, generator=rng, dtype=F64) + 0.5).requires_grad_())
    probe = FUNCTIONS[name](*inputs)
    used = [
        x for x in inputs if torch.autograd.grad(probe.sum(), x, retain_graph=True, allow_unused=True)[0] is not None
    ]

    def function(*given: Tensor) -> Tensor:
        values = iter(given)
        return FUNCTIONS[name](*(next(values) if any(x is u for u in used) else x for x in inputs))

    assert used
    assert gradcheck(function, used, fast_mode=True)
    assert gradgradcheck(function, used, fast_mode=True)


def test_the_gradient_of_the_balance_goes_through_the_probabilities_alone() -> None:
    """Who is chosen is no function that can be derived: the derivative is that with the shares held fast."""
    rng = torch.Generator().manual_seed(7)
    logits = torch.randn(5, 3, generator=rng, dtype=F64).requires_grad_()
    for gate in ("soft", "top_k", "hard"):
        fixed = R.routing_weights(logits).detach()
        if gate != "soft":
            k = 2 if gate == "top_k" else 1
            fixed = torch.zeros_like(fixed).scatter(-1, fixed.topk(k).indices, 1.0 / k)

        def held(x: Tensor, share: Tensor = fixed) -> Tensor:
            return 3 * (share.mean(0) * R.routing_weights(x).mean(0)).sum()

        assert gradcheck(held, logits, fast_mode=True)
        expected = torch.autograd.grad(held(logits), logits)[0]
        got = torch.autograd.grad(R.load_balancing_loss(logits, gate), logits)[0]  # type: ignore[arg-type]
        torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("case", [c for c in CASES if c.name not in SURROGATE], ids=lambda case: case.name)
def test_second_derivatives_of_modules(case: Case) -> None:
    module, inputs = case.module(F64), case.batch(2, F64)
    names = [name for name, _ in module.named_parameters()]
    leaves = [t.detach().requires_grad_() for t in [*inputs, *module.parameters()] if isinstance(t, Tensor)]
    given = sum(isinstance(t, Tensor) for t in inputs)
    rest = [t for t in inputs if not isinstance(t, Tensor)]

    def function(*leaves: Tensor) -> Any:
        own = dict(zip(names, leaves[given:], strict=True))
        out = torch.func.functional_call(module, own, (*leaves[:given], *rest))
        return out.square().sum()  # so that a linear module has one too

    assert gradgradcheck(function, leaves, fast_mode=True, atol=1e-4)


@pytest.mark.parametrize("module", [nn.Linear(2, D)])
def test_the_check_of_second_derivatives_can_fail(module: nn.Module) -> None:
    class Wrong(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            ctx.save_for_backward(x)
            return x**3

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> Tensor:
            (x,) = ctx.saved_tensors
            return grad * 3 * x.detach() ** 2  # cuts the second derivative

    x = torch.ones(2, dtype=F64, requires_grad=True)
    assert gradcheck(Wrong.apply, x)
    with pytest.raises(RuntimeError, match=r"does not require grad|Jacobian mismatch"):
        gradgradcheck(Wrong.apply, x)
