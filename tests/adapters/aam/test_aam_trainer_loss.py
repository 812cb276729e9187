"""prepare_trainer and the loss of the Trainer: that it fits the head, and that it stays as it was."""

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from adapters._hosts import HOSTS, NEEDS_AAM, Host, host_named, tokens
from reghead.adapters.aam import attach, prepare_trainer
from reghead.normalization import MixedEffects

LEVELS = (0.1, 0.5, 0.9)
MOE = {"num_experts": 2, "routing": ("location",)}


@pytest.fixture(params=HOSTS)
def host(request: pytest.FixtureRequest) -> Host:
    return host_named(request.param)


def batch() -> dict[str, Any]:
    return {
        "tokens": tokens(4),
        "y_target": torch.arange(4.0).unsqueeze(-1),
        "categorical_ids": {"location": torch.tensor([1, 1, 2, 2])},
    }


def favouring(host: Host, expert: int) -> Any:
    """A model that sends all rows to one expert, in a Trainer's way to take it."""
    model = attach(host.predictor(), {"moe": MOE, "cardinalities": {"location": 3}})
    trunk = model.target_head.trunk
    with torch.no_grad():
        trunk.router_bias.zero_()[expert] = 50.0
    return model


class Writer:
    """A TensorBoard writer that remembers its scalars, and cannot be pickled."""

    def __init__(self) -> None:
        self.scalars: dict[str, float] = {}
        self.open = (number for number in range(1))

    def add_scalar(self, tag: str, value: float, step: int) -> None:
        self.scalars[tag] = float(value)

    def add_histogram(self, *args: Any) -> None: ...


def test_trainers_that_share_a_loss_count_their_own_experts_and_leave_it_as_it_was(host: Host) -> None:
    shared = host.loss("huber")
    before = len(pickle.dumps(shared))
    trainers = []
    for expert in (0, 1, 0):
        model = favouring(host, expert)
        still = torch.optim.SGD(model.parameters(), lr=0.0)
        trainer = prepare_trainer(host.Trainer(model, shared, optimizer=still))
        trainer.writer = Writer()
        trainers.append(trainer)
    for trainer in trainers:
        trainer.train_epoch([batch()])
        # A copy or a file of the loss is that of the loss alone.
        assert len(pickle.dumps(shared)) == before
        assert not copy.deepcopy(shared)._forward_hooks
    for trainer, expert in zip(trainers, (0, 1, 0), strict=True):
        trainer._log_to_tensorboard(0, {}, {})
        assert trainer.writer.scalars["experts/0"] == pytest.approx(1.0 - expert)
        assert trainer.writer.scalars["experts/1"] == pytest.approx(float(expert))


def test_an_epoch_that_fails_leaves_the_loss_as_it_was(host: Host) -> None:
    shared = host.loss("huber")
    trainer = prepare_trainer(host.Trainer(favouring(host, 0), shared))
    with pytest.raises(ValueError, match="must have the same shape"):
        trainer.train_epoch([{**batch(), "y_target": torch.ones(4, 3)}])
    assert not shared._forward_hooks


@pytest.mark.parametrize(
    ("head", "spec", "message"),
    [
        (
            LEVELS,
            "huber",
            r"is of points, and the head predicts the quantiles \(0\.1, 0\.5, 0\.9\); give both the same",
        ),
        (
            LEVELS,
            {"type": "per_output", "losses": {"pH": "mse"}, "outputs": ["pH"]},
            "is of points, and the head predicts the quantiles",
        ),
        (
            None,
            {"type": "quantile", "quantiles": LEVELS},
            r"is of the quantiles \(0\.1, 0\.5, 0\.9\), and the head predicts points; give both the same",
        ),
        (
            LEVELS,
            {"type": "quantile", "quantiles": (0.2, 0.5, 0.8)},
            r"is of the quantiles \(0.2, 0.5, 0.8\), and the head predicts the quantiles \(0.1, 0.5, 0.9\)",
        ),
    ],
)
def test_a_loss_of_other_predictions_than_the_heads_is_refused(host: Host, head: Any, spec: Any, message: str) -> None:
    trainer = host.Trainer(attach(host.predictor(), {"quantiles": head}), host.loss(spec))
    with pytest.raises(ValueError, match=message):
        prepare_trainer(trainer)


@pytest.mark.parametrize("host", [pytest.param("aam", marks=NEEDS_AAM)], indirect=True)
def test_aams_own_loss_is_held_to_the_same(host: Host) -> None:
    points, quantiles = (attach(host.predictor(), {"quantiles": levels}) for levels in (None, LEVELS))
    huber = host.MultiTaskLoss(nuc_penalty=0.0)
    pinball = host.MultiTaskLoss(nuc_penalty=0.0, target_loss_type="quantile", quantiles=list(LEVELS))
    for model, loss_fn in ((points, huber), (quantiles, pinball)):
        prepare_trainer(host.Trainer(model, loss_fn)).train_epoch([batch()])
    with pytest.raises(ValueError, match="the loss is of points, and the head predicts the quantiles"):
        prepare_trainer(host.Trainer(quantiles, huber))
    with pytest.raises(
        ValueError, match=r"the loss is of the quantiles \(0.1, 0.5, 0.9\), and the head predicts points"
    ):
        prepare_trainer(host.Trainer(points, pinball))


def test_a_loss_that_leaves_out_what_the_head_adds_is_refused(host: Host) -> None:
    moe = {"num_experts": 2, "route_features": True, "load_balancing_weight": 0.1}
    balanced = attach(host.predictor(), {"moe": moe})
    with pytest.raises(ValueError, match=r"which AAM's own loss leaves out; use reghead\.adapters\.aam\.loss"):
        prepare_trainer(host.Trainer(balanced, host.MultiTaskLoss()))
    members = attach(host.predictor(), {"hidden_dims": (4,), "ensemble": 2})
    with pytest.raises(ValueError, match="or members of its own to the training loss, which AAM's own loss leaves out"):
        prepare_trainer(host.Trainer(members, host.MultiTaskLoss()))


class Own(nn.Module):
    """A loss of which nothing is known."""

    def forward(self, outputs: dict[str, Tensor], targets: dict[str, Tensor], **_: Any) -> dict[str, Tensor]:
        return {"total_loss": outputs["target_prediction"].square().mean()}


def test_a_loss_of_ones_own_is_trusted(host: Host) -> None:
    trainer = host.Trainer(attach(host.predictor(), {"quantiles": LEVELS}), Own())
    assert prepare_trainer(trainer) is trainer


def test_mixed_effects_are_refused_with_what_to_use_instead(host: Host) -> None:
    message = (
        "must be a CategoryNormalizer, got MixedEffects, which .* use .*shrinkage='empirical_bayes', fallback='addit"
    )
    mixed: Any = MixedEffects({"location": 3})
    with pytest.raises(TypeError, match=message):
        attach(host.predictor(), {}, normalizer=mixed)
    with pytest.raises(TypeError, match=message):
        prepare_trainer(host.Trainer(attach(host.predictor(), {}), host.loss("huber")), mixed)
