"""The adapter's loss in the place of MultiTaskLoss: AAM's values where they agree, weights, and what the head adds."""

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.testing import assert_close

from adapters._hosts import HAS_AAM, HOSTS, NEEDS_AAM, Host, host_named, tokens
from reghead.adapters.aam import attach, loss
from reghead.config import LossConfig
from reghead.losses import PinballLoss


@pytest.fixture(params=HOSTS)
def host(request: pytest.FixtureRequest) -> Host:
    return host_named(request.param)


def rows(columns: int = 2, levels: int | None = None, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    rng = torch.Generator().manual_seed(seed)
    shape = (6, columns) if levels is None else (6, columns, levels)
    preds = torch.randn(shape, generator=rng) * 2
    return preds.requires_grad_(), torch.randn(6, columns, generator=rng), torch.rand(6, generator=rng) + 0.5


def target_loss(module: nn.Module, preds: Tensor, target: Tensor, weight: Tensor | None = None) -> Tensor:
    outputs = {"target_prediction": preds}
    value: Tensor = module(outputs, {"target": target}, sample_weights=weight)["target_loss"]
    return value


REFERENCES: dict[str, Any] = {
    "mse": lambda e: e.square(),
    "mae": lambda e: e.abs(),
    "huber": lambda e: F.smooth_l1_loss(e, torch.zeros_like(e), reduction="none"),
}


@pytest.mark.parametrize("kind", list(REFERENCES))
def test_plain_losses_are_those_of_aam(host: Host, kind: str) -> None:
    preds, target, weight = rows()
    each = REFERENCES[kind](preds - target)
    assert_close(target_loss(host.loss(kind), preds, target), each.mean())
    # A weight multiplies its row, and the mean is over rows: not a mean by weight.
    assert_close(target_loss(host.loss(kind), preds, target, weight), (each.mean(-1) * weight).mean())


@pytest.mark.parametrize("levels", [(0.5,), (0.1, 0.5, 0.9)])
def test_pinball_is_that_of_aam(host: Host, levels: tuple[float, ...]) -> None:
    preds, target, weight = rows(levels=len(levels))
    error = target.unsqueeze(-1) - preds
    tau = torch.tensor(levels)
    each = torch.maximum(tau * error, (tau - 1) * error)
    module = host.loss({"type": "quantile", "quantiles": levels})
    assert_close(target_loss(module, preds, target), each.mean())
    assert_close(target_loss(module, preds, target, weight), (each.mean((-1, -2)) * weight).mean())


def test_the_absolute_asymmetric_loss_is_that_of_aam_and_the_default_is_squared(host: Host) -> None:
    preds, target, _ = rows()
    over, under = (preds - target).clamp(min=0), (target - preds).clamp(min=0)
    spec = {"type": "asymmetric", "over_penalty": 3.0, "under_penalty": 0.5}
    assert_close(target_loss(host.loss({**spec, "base": "mae"}), preds, target), (3 * over + 0.5 * under).mean())
    squared = (3 * over.square() + 0.5 * under.square()).mean()
    assert_close(target_loss(host.loss(spec), preds, target), squared)


def test_one_loss_per_column_is_kept_with_weights(host: Host) -> None:
    preds, target, weight = rows()
    module = host.loss({"type": "per_output", "losses": {"pH": "mse", "yield": "mae"}, "outputs": ["pH", "yield"]})
    error = preds - target
    columns = torch.stack([error[:, 0].square(), error[:, 1].abs()], dim=-1)
    assert_close(target_loss(module, preds, target), columns.mean())
    assert_close(target_loss(module, preds, target, weight), (columns.mean(-1) * weight).mean())


def test_weights_of_one_change_nothing_and_weights_of_zero_are_no_rows(host: Host) -> None:
    preds, target, _ = rows()
    module = host.loss("huber")
    assert_close(target_loss(module, preds, target, torch.ones(6)), target_loss(module, preds, target))
    target_loss(module, preds, target, torch.tensor([0.0, 1, 1, 1, 1, 1])).backward()
    assert preds.grad is not None
    assert not preds.grad[0].any()
    assert preds.grad[1:].any()


def test_shapes_that_would_broadcast_are_refused(host: Host) -> None:
    preds, target, _ = rows(1)
    for kind in ("mse", {"type": "asymmetric"}):
        with pytest.raises(ValueError, match="must have the same shape"):
            target_loss(host.loss(kind), preds, target.squeeze(-1))


def test_the_four_penalties_weigh_the_parts(host: Host) -> None:
    preds, target, _ = rows(1)
    counts = {"count_prediction": torch.full((6, 4, 1), 0.5)}, {"counts": torch.zeros(6, 4, 1), "tokens": tokens(6)}
    whole = host.loss("mse", target_penalty=2.0, count_penalty=3.0, penalty=0.0)(
        {"target_prediction": preds, **counts[0]}, {"target": target, **counts[1]}
    )
    assert_close(whole["total_loss"], 2 * whole["target_loss"] + 3 * whole["count_loss"])
    assert whole["count_loss"] > 0


def test_what_the_head_adds_joins_the_total_in_training_alone(host: Host) -> None:
    moe = {"num_experts": 3, "route_features": True, "load_balancing_weight": 0.5}
    model = attach(host.predictor(), {"hidden_dims": (4,), "moe": moe})
    module = host.loss("mse")
    target = torch.zeros(5, 1)
    trained = module(model.train()(tokens()), {"target": target})
    assert trained["head_load_balancing_loss"] >= 0.5  # the balance is at least 1
    parts = sum(trained[name] for name in ("target_loss", "head_load_balancing_loss"))
    assert_close(trained["total_loss"], parts)
    trained["total_loss"].backward()
    assert model.target_head.trunk.router_features.grad.any()
    assert "head_load_balancing_loss" not in module(model.eval()(tokens()), {"target": target})


def test_partial_pooling_joins_the_total(host: Host) -> None:
    model = attach(host.predictor(), {"wide": ("location",), "partial_pooling": 2.0, "cardinalities": {"location": 4}})
    head = model.target_head
    head.observe({"location": torch.tensor([1, 2, 3, 1])})
    with torch.no_grad():
        head.wide.bias_location.fill_(0.5)
    losses = host.loss("mse")(model.train()(tokens()), {"target": torch.zeros(5, 1)})
    assert_close(losses["head_partial_pooling_loss"], torch.tensor(2.0 / 4 * 3 * 0.25))


def test_members_of_an_ensemble_learn_from_losses_of_their_own(host: Host) -> None:
    model = attach(host.predictor(), {"hidden_dims": (8,), "ensemble": 3, "dropout": 0.0}).train()
    target, weight = torch.arange(5.0).unsqueeze(-1), torch.arange(1.0, 6.0)
    outputs = model(tokens())
    members = outputs["target_members"]
    assert members.shape == (5, 3, 1)
    assert_close(outputs["target_prediction"], members.mean(1))
    each = (members - target.unsqueeze(1)).square().mean((-1, -2))
    assert_close(target_loss_of(host, outputs, target), each.mean())
    assert_close(target_loss_of(host, outputs, target, weight), (each * weight).mean())


def target_loss_of(host: Host, outputs: Any, target: Tensor, weight: Tensor | None = None) -> Tensor:
    value: Tensor = host.loss("mse")(outputs, {"target": target}, sample_weights=weight)["target_loss"]
    return value


def test_classes_keep_the_loss_of_aam(host: Host) -> None:
    log_probabilities = torch.randn(4, 3, generator=torch.Generator().manual_seed(0)).log_softmax(-1)
    classes = torch.tensor([0, 2, 1, 0])
    losses = host.loss("mse")({"target_prediction": log_probabilities}, {"target": classes}, is_classifier=True)
    assert_close(losses["target_loss"], F.nll_loss(log_probabilities, classes))


def test_missing_targets_are_left_out_where_asked_for(host: Host) -> None:
    preds, target, _ = rows()
    target[0, 0] = torch.nan
    assert target_loss(host.loss("mse"), preds, target).isnan()
    kept = target_loss(host.loss({"type": "mse", "nan_policy": "omit"}), preds, target)
    assert_close(kept, (preds - target).square().nanmean())


def test_it_is_a_multi_task_loss_that_copies_and_pickles(host: Host) -> None:
    preds, target, _ = rows(levels=1)
    module = host.loss(LossConfig(type="quantile", quantiles=(0.3,)), nuc_penalty=0.25)
    assert isinstance(module, host.MultiTaskLoss)
    assert module.nuc_penalty == 0.25
    for again in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert type(again) is type(module)
        assert_close(target_loss(again, preds, target), target_loss(module, preds, target))
    same = host.loss(PinballLoss([0.3]))
    assert_close(target_loss(same, preds, target), target_loss(module, preds, target))


def test_an_unknown_loss_is_told(host: Host) -> None:
    with pytest.raises(ValueError, match="got 'hubert'; did you mean 'huber'"):
        host.loss("hubert")
    with pytest.raises(TypeError, match=r"spec must be a loss of reghead, which takes weights, .* got MSELoss\(\)"):
        host.loss(nn.MSELoss())
    for reduction in ("sum", "none"):
        with pytest.raises(ValueError, match=f"reduction='{reduction}'; use reduction='mean'"):
            host.loss(PinballLoss([0.3], reduction=reduction))


@pytest.mark.skipif(HAS_AAM, reason="AAM is installed")
def test_without_aam_the_loss_says_where_it_is_from() -> None:
    with pytest.raises(ImportError, match="install it from its repository, jbk708/aam at 6f65d20"):
        loss("mse")


@pytest.mark.parametrize(
    "kind", [pytest.param(k, marks=NEEDS_AAM) for k in ("mse", "mae", "huber", "quantile", "asymmetric")]
)
@pytest.mark.parametrize("weighted", [False, True])
def test_aam_itself_gives_the_same(kind: str, weighted: bool) -> None:
    host = host_named("aam")
    levels = (0.1, 0.5, 0.9) if kind == "quantile" else None
    preds, target, weight = rows(levels=None if levels is None else 3)
    options = {"quantiles": list(levels)} if levels else {}
    penalties = {"over_penalty": 2.0, "under_penalty": 0.5} if kind == "asymmetric" else {}
    theirs = host.MultiTaskLoss(nuc_penalty=0.0, target_loss_type=kind, **options, **penalties)
    spec = {"type": kind, **options, **penalties, **({"base": "mae"} if kind == "asymmetric" else {})}
    given = weight if weighted else None
    assert_close(target_loss(host.loss(spec), preds, target, given), target_loss(theirs, preds, target, given))
