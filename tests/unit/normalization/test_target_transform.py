"""Target transforms: increasing, exactly invertible, and clear about their domain."""

import math

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from reghead.normalization import CategoryNormalizer, TargetTransform

F64 = torch.float64
PERCENT = TargetTransform("logit", bounds=(0.0, 100.0))
CASES = {
    "identity": (TargetTransform(), [-1e9, -1.0, 0.0, 1e-9, 1e9]),
    "log": (TargetTransform("log"), [1e-300, 1e-9, 1.0, 1e9, 1e300]),
    "log1p": (TargetTransform("log1p"), [-1 + 1e-9, -1e-12, 0.0, 1e-12, 1e9, 1e300]),
    "logit": (TargetTransform("logit"), [1e-300, 1e-12, 0.25, 0.5, 1 - 1e-12]),
    "percent": (PERCENT, [1e-300, 1e-12, 25.0, 100 - 1e-10]),
    "below zero": (TargetTransform("logit", bounds=(-1.0, 0.0)), [-1 + 1e-12, -0.5, -1e-12, -1e-300]),
    "softplus": (TargetTransform("softplus"), [1e-300, 1e-12, 1.0, 19.0, 25.0, 40.0, 1e4, 1e300]),
    "clamp": (TargetTransform("clamp"), [0.0, 1e-300, 1e9]),
}


@pytest.fixture(params=CASES.values(), ids=CASES)
def case(request: pytest.FixtureRequest) -> tuple[TargetTransform, Tensor]:
    transform, values = request.param
    return transform, torch.tensor(values, dtype=F64)


def test_the_inverse_is_exact_up_to_the_edges_of_the_domain(case: tuple[TargetTransform, Tensor]) -> None:
    transform, y = case
    u = transform.forward(y)
    assert u.isfinite().all()
    # The relative error of e^u is the absolute one of u, which is up to 700 here.
    assert_close(transform.inverse(u), y, rtol=700 * 2.3e-16, atol=0)


def test_it_increases_both_ways(case: tuple[TargetTransform, Tensor]) -> None:
    transform, y = case
    assert (transform.forward(y).diff() > 0).all()
    u = torch.linspace(-30, 30, 301, dtype=F64)
    assert (transform.inverse(u).diff() >= 0).all()
    assert (transform.inverse(u[140:160]).diff() > 0).all() or transform.kind == "clamp"


def test_small_values_by_hand() -> None:
    def inverse(kind: str, u: float) -> float:
        return float(TargetTransform(kind).inverse(torch.tensor(u, dtype=F64)))  # type: ignore[arg-type]

    assert_close(inverse("log", 0.0), 1.0)
    assert_close(inverse("log1p", 0.0), 0.0)  # the inverse of log1p is expm1: exp would give 1
    assert_close(inverse("log1p", math.log(3.0)), 2.0)
    assert_close(inverse("softplus", 0.0), math.log(2.0))
    assert_close(inverse("logit", math.log(3.0)), 0.75)
    assert inverse("clamp", -2.0) == 0.0
    assert inverse("clamp", 2.0) == 2.0


@pytest.mark.parametrize("bounds", [(0.0, 1.0), (0.1, 0.3), (-5.0, 1e6)])
def test_a_bounded_inverse_never_leaves_its_bounds(bounds: tuple[float, float]) -> None:
    transform = TargetTransform("logit", bounds=bounds)
    u = torch.tensor([-math.inf, -1e4, -40.0, 0.0, 40.0, 1e4, math.inf], dtype=F64)
    y = transform.inverse(u)
    assert y[0] == bounds[0]
    assert y[-1] == bounds[1]
    assert (y >= bounds[0]).all()
    assert (y <= bounds[1]).all()
    assert_close(y[3].item(), sum(bounds) / 2)


def test_quantiles_pass_through_and_the_mean_does_not() -> None:
    # Exact quantiles of a lognormal with sigma 1; its mean is exp(1/2).
    levels = (torch.arange(1, 100_000, dtype=F64)) / 100_000
    u = torch.special.ndtri(levels)
    y = TargetTransform("log").inverse(u)
    middle = len(u) // 2
    assert_close(y[middle], TargetTransform("log").inverse(u[middle]))
    assert y.median() == y[middle]
    assert_close(TargetTransform("log").inverse(u.mean()).item(), 1.0, atol=1e-9, rtol=0)
    assert_close(y.mean().item(), 1.6487, atol=2e-3, rtol=0)


def test_missing_targets_stay_missing(case: tuple[TargetTransform, Tensor]) -> None:
    transform, y = case
    y = torch.cat([y[:1], y.new_tensor([math.nan])])
    assert transform.forward(y).isnan().tolist() == [False, True]


def test_gradients_are_those_of_the_functions(case: tuple[TargetTransform, Tensor]) -> None:
    transform, _ = case
    u = torch.tensor([-2.0, 0.5, 3.0], dtype=F64, requires_grad=True)
    assert torch.autograd.gradcheck(transform.inverse, u)
    y = transform.inverse(u.detach().abs()).requires_grad_()
    assert torch.autograd.gradcheck(transform.forward, y)


OUTSIDE = [
    ("log", 0.0, r"transform='log' takes targets above 0, got 0; use transform='log1p', which takes 0"),
    ("log", -0.5, "use transform='log1p'"),
    ("log", -2.0, r"got -2; use transform='identity'"),
    ("log1p", -1.0, r"transform='log1p' takes targets above -1, got -1; use transform='identity'"),
    ("softplus", 0.0, r"takes targets above 0, got 0; use transform='clamp', which takes 0"),
    ("softplus", -1.0, r"got -1; use transform='identity'"),
    ("clamp", -1.0, r"takes targets at least 0, got -1; use transform='identity'"),
    ("logit", 0.0, r"takes targets strictly between 0 and 1, got 0; widen the bounds"),
    ("logit", 1.0, r"strictly between 0 and 1, got 1; widen the bounds"),
]


@pytest.mark.parametrize(("kind", "value", "message"), OUTSIDE)
def test_a_target_outside_the_domain_raises_and_changes_nothing(kind: str, value: float, message: str) -> None:
    normalizer = CategoryNormalizer(transform=kind).fit(torch.tensor([[0.2], [0.4]]))  # type: ignore[arg-type]
    before = {name: tensor.clone() for name, tensor in normalizer.state_dict().items()}
    wrong = torch.tensor([[0.5], [value]], requires_grad=True)
    for call in (normalizer.fit, normalizer.partial_fit, normalizer):
        with pytest.raises(ValueError, match=message):
            call(wrong)
    assert all(torch.equal(before[name], tensor) for name, tensor in normalizer.state_dict().items())


def test_wrong_options_are_refused() -> None:
    with pytest.raises(ValueError, match=r"transform must be one of 'identity', 'log', .*did you mean 'log1p'"):
        TargetTransform("logp1")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"bounds belong to transform='logit', got bounds=.* with 'log'"):
        TargetTransform("log", bounds=(0.0, 1.0))
    with pytest.raises(ValueError, match=r"bounds must be increasing, got \(1, 1\)"):
        TargetTransform("logit", bounds=(1.0, 1.0))
    with pytest.raises(TypeError, match="bounds must be a pair of numbers"):
        TargetTransform("logit", bounds=3.0)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"bounds\[1\] must be finite"):
        TargetTransform("logit", bounds=(0.0, math.inf))
