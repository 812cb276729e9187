"""A head of several members: its prediction is their mean, and each learns from its own loss."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.testing import assert_close

from reghead.heads import RegressionHead
from reghead.losses import HuberLoss, PinballLoss

SIZES = {"location": 4, "season": 3}
K = 3
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "residual": {"residual": True, "norm": "rms"},
    "film": {"film": ["season", "location"]},
    "fusion": {"fusion": "concat"},
    "scaler": {"scaler": ["location"], "wide": ["location", "season"], "learnable_scale": False},
    "quantiles": {"quantiles": (0.1, 0.5, 0.9), "scaler": ["season"]},
    "exp": {"output_activation": "exp"},
    "bounds": {"bounds": (-1.0, 2.0), "learnable_scale": True},
}


def head(name: str, **more: Any) -> RegressionHead:
    made = RegressionHead(3, 2, (5, 4), cardinalities=SIZES, embedding_dim=2, ensemble=K, **OPTIONS[name], **more)
    rng = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(0.5 * torch.randn(parameter.shape, generator=rng))
    return made


def batch(*shape: int) -> tuple[Tensor, dict[str, Tensor]]:
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(*shape, 3, generator=rng)
    return x, {c: torch.randint(0, n, shape, generator=rng) for c, n in SIZES.items()}


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("shape", [(6,), (1,), (0,), (2, 3)])
def test_the_prediction_is_the_mean_of_the_members(name: str, shape: tuple[int, ...]) -> None:
    made = head(name)
    x, categories = batch(*shape)
    out, aux = made(x, categories, return_aux=True)
    levels = (3,) if name == "quantiles" else ()
    assert out.shape == (*shape, 2, *levels)
    assert aux.members.shape == (K, *out.shape)
    assert_close(out, aux.members.mean(0))
    assert torch.equal(made(x, categories), out)
    if out.numel():
        assert (aux.members[0] - aux.members[1]).abs().max() > 1e-3


@pytest.mark.parametrize("name", OPTIONS)
def test_members_differ_at_the_start(name: str) -> None:
    made = RegressionHead(3, 2, (16,), cardinalities=SIZES, ensemble=K, **OPTIONS[name])
    members = made(*batch(6), return_aux=True)[1].members
    spread = members.std(0).amax()
    assert spread > 1e-3


def test_every_member_starts_with_the_spread_of_a_normal_distribution() -> None:
    made = RegressionHead(3, 2, (16,), quantiles=(0.1, 0.5, 0.9), ensemble=K)
    members = made(batch(6)[0], return_aux=True)[1].members
    assert_close(members.diff(dim=-1), torch.full((K, 6, 2, 2), 1.2815516), atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["plain", "scaler", "quantiles"])
def test_a_member_computes_what_a_head_of_its_own_parameters_computes(name: str) -> None:
    """Scales put into the weights make a member an ordinary head, through every part that follows the trunk."""
    made = head(name).double()
    x, categories = batch(7)
    members = made(x.double(), categories, return_aux=True)[1].members
    state = made.state_dict()
    for m in range(K):
        alone = RegressionHead(3, 2, (5, 4), cardinalities=SIZES, embedding_dim=2, **OPTIONS[name]).double()
        own = {}
        for key, value in state.items():
            if key.endswith(("_scale", "_extra_state")):
                continue
            if key.endswith("linear.weight"):
                prefix = key.removesuffix("weight")
                value = state[f"{prefix}output_scale"][m][:, None] * value * state[f"{prefix}input_scale"][m]
            elif key.startswith("trunk.") and key.endswith(("linear.bias", "output.weight", "output.bias")):
                value = value[m]
            own[key] = value
        own["_extra_state"] = alone.state_dict()["_extra_state"]
        alone.load_state_dict(own)
        assert_close(members[m], alone(x.double(), categories), atol=1e-12, rtol=1e-12)


def test_the_mean_comes_after_the_activation() -> None:
    """Each member predicts by itself: the mean before a nonlinear last step would be a model nobody trained."""
    made = head("exp")
    _, aux = made(*batch(6), return_aux=True)
    out = made(*batch(6))
    assert_close(out, aux.members.mean(0))
    assert not torch.allclose(out, aux.members.log().mean(0).exp(), rtol=1e-3)


@pytest.mark.parametrize("member", range(K))
def test_the_loss_of_a_member_reaches_its_own_parameters_and_the_shared_ones(member: int) -> None:
    made = head("film", scaler=["location"])
    _, aux = made(*batch(6), return_aux=True)
    aux.members[member].square().sum().backward()
    own = ("linear.bias", "input_scale", "output_scale", "output.weight", "output.bias")
    for name, parameter in made.named_parameters():
        assert parameter.grad is not None, name
        if name.startswith("trunk.") and name.endswith(own):
            touched = parameter.grad.flatten(1).abs().amax(1) > 0
            assert touched.tolist() == [m == member for m in range(K)], name
        else:
            assert parameter.grad.abs().max() > 0, name


def test_one_member_is_the_head_without_an_ensemble() -> None:
    options = {**OPTIONS["film"], **OPTIONS["quantiles"]}
    torch.manual_seed(0)
    one = RegressionHead(3, 2, (5, 4), cardinalities=SIZES, ensemble=1, **options)
    torch.manual_seed(0)
    plain = RegressionHead(3, 2, (5, 4), cardinalities=SIZES, **options)
    out, aux = one(*batch(6), return_aux=True)
    assert torch.equal(out, plain(*batch(6)))
    assert aux.members is None
    plain.load_state_dict(one.state_dict())


@pytest.mark.parametrize("name", OPTIONS)
def test_a_state_dict_rebuilds_all_members(name: str) -> None:
    made = head(name).eval()
    rebuilt = RegressionHead.from_state_dict(made.state_dict()).eval()
    assert rebuilt.config.ensemble == K
    expected, given = (h(*batch(5), return_aux=True)[1].members for h in (made, rebuilt))
    assert torch.equal(given, expected)


@pytest.mark.parametrize("k", [2, 3, 7, 10])
def test_rounding_in_the_mean_breaks_neither_bounds_nor_order(k: int) -> None:
    """Saturated members all predict the bound, and their mean does not pass it; equal quantiles stay equal."""
    low, high = 0.57, 1.18
    bounded = RegressionHead(1, 3, (4,), bounds=(low, high), ensemble=k)
    with torch.no_grad():
        bounded.trunk.output.weight.zero_()
        for sign, bound in ((1, high), (-1, low)):
            bounded.trunk.output.bias.fill_(sign * 1e9)
            out = bounded(torch.zeros(5, 1))
            assert_close(out, torch.full_like(out, bound), rtol=1e-6, atol=0)
            assert (torch.tensor(low) <= out).all()
            assert (out <= torch.tensor(high)).all()
    levels = [0.1 * i for i in range(1, 10)]
    flat = RegressionHead(1, 5, (4,), quantiles=levels, non_crossing=False, ensemble=k)
    nn.init.zeros_(flat.trunk.output.weight)
    for seed in range(10):
        values = torch.randn(k, 1, generator=torch.Generator().manual_seed(seed))
        flat.trunk.output.bias.data.copy_(values.expand(k, 45))
        out = flat(torch.zeros(5, 1))
        assert (out == out[..., :1]).all()


def test_members_trained_by_their_own_losses_beat_the_average_member() -> None:
    """The squared error of a mean of predictions is below the mean of their squared errors, by their spread."""
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(200, 3, generator=rng)
    y = (x[:, :1] * x[:, 1:2]).sin() + 0.3 * torch.randn(200, 1, generator=rng)
    torch.manual_seed(0)
    made = RegressionHead(3, 1, (32,), ensemble=8)
    optimizer = torch.optim.Adam(made.parameters(), lr=0.01)
    start = F.mse_loss(made(x), y).item()
    for _ in range(150):
        optimizer.zero_grad()
        members = made(x, return_aux=True)[1].members
        F.mse_loss(members, y.expand_as(members)).backward()
        optimizer.step()
    out, aux = made(x, return_aux=True)
    single = F.mse_loss(aux.members, y.expand_as(aux.members))
    assert F.mse_loss(out, y) < 0.6 * start
    spread = (aux.members - out).square().mean()
    assert spread > 1e-4
    assert_close(F.mse_loss(out, y), single - spread)


@pytest.mark.parametrize("quantiles", [None, (0.1, 0.5, 0.9)])
def test_one_call_of_a_loss_is_the_mean_of_the_losses_of_the_members(quantiles: tuple[float, ...] | None) -> None:
    """Also with weights and missing targets, as members have the rows in common."""
    made = RegressionHead(3, 2, (5,), quantiles=quantiles, ensemble=K)
    loss = HuberLoss(nan_policy="omit") if quantiles is None else PinballLoss(quantiles, nan_policy="omit")
    rng = torch.Generator().manual_seed(0)
    y, weight = torch.randn(6, 2, generator=rng), torch.rand(6, generator=rng)
    y[1, 0] = y[4] = torch.nan
    members = made(batch(6)[0], return_aux=True)[1].members
    at_once = loss(members, y.expand(K, 6, 2), weight=weight.expand(K, 6))
    assert_close(at_once, torch.stack([loss(member, y, weight=weight) for member in members]).mean())


def test_scales_and_biases_of_members_are_not_decayed() -> None:
    made = head("film")
    groups = {group["name"]: {id(p) for p in group["params"]} for group in made.param_groups(0.1, weight_decay=0.1)}
    for name, parameter in made.trunk.named_parameters():
        decayed = name.endswith(("weight", "weight_gamma", "weight_beta")) and "norm" not in name
        assert (id(parameter) in groups["weights"]) == decayed, name


def test_hidden_categories_are_hidden_from_all_members() -> None:
    made = RegressionHead(3, 1, (4,), cardinalities=SIZES, wide=["season"], unknown_dropout=0.5, ensemble=K).train()
    with torch.no_grad():
        made.wide.bias_season.fill_(100.0)
    x = torch.zeros(200, 3)
    members = made(x, {"season": torch.ones(200, dtype=torch.int64)}, return_aux=True)[1].members
    shown = members.squeeze(-1) > 50
    assert 0 < shown[0].float().mean() < 1
    assert (shown == shown[0]).all()
