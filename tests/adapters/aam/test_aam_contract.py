"""What the adapter relies on in AAM. If one of these fails, AAM has changed, and the adapter has to follow."""

import inspect
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from adapters._hosts import CARDINALITIES, HAS_AAM, HOSTS, NEEDS_AAM, SIZES, Host, host_named, ids, tokens
from reghead.adapters.aam._contract import ATTRIBUTES, EVALUATOR_METHODS, FORWARD, TRAINER, TRAINER_METHODS
from reghead.adapters.aam._head import NAMES
from reghead.adapters.aam._host import describe_host
from reghead.adapters.aam._plan import NEUTRAL, OURS

FORWARD_OF_THE_LOSS = (
    "outputs",
    "targets",
    "is_classifier",
    "encoder_type",
    "gather_for_distributed",
    "sample_weights",
)


@pytest.fixture(params=HOSTS)
def host(request: pytest.FixtureRequest) -> Host:
    return host_named(request.param)


def parameters(function: Any) -> tuple[str, ...]:
    return tuple(inspect.signature(function).parameters)


class Watched(nn.Module):
    """A head that tells what it was called with."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.outputs, self.calls = outputs, []  # type: ignore[var-annotated]

    def forward(self, *args: Any, **options: Any) -> Tensor:
        self.calls.append((args, options))
        return torch.arange(args[0].shape[0] * self.outputs).float().reshape(-1, self.outputs)


def test_the_model_has_the_attributes_and_the_signature(host: Host) -> None:
    model = host.predictor(categorical_cardinalities=CARDINALITIES, learnable_output_scale=True)
    assert [name for name in ATTRIBUTES if not hasattr(model, name)] == []
    assert parameters(model.forward) == FORWARD
    assert sorted(model.categorical_embedder.column_names) == sorted(CARDINALITIES)
    embeddings = model.categorical_embedder.embeddings
    assert {column: embeddings[column].num_embeddings for column in embeddings} == CARDINALITIES


def test_the_head_is_called_once_with_the_pooled_embedding_alone(host: Host) -> None:
    model = host.predictor(categorical_cardinalities=CARDINALITIES).eval()
    model.target_head = Watched(1)
    out = model(tokens(), categorical_ids=ids())["target_prediction"]
    (((pooled,), options),) = model.target_head.calls
    assert pooled.shape == (5, 16)
    assert options == {}
    assert torch.equal(out, torch.arange(5.0).unsqueeze(-1))


def test_quantiles_are_a_view_targets_slow_and_levels_fast(host: Host) -> None:
    model = host.predictor(out_dim=2, num_quantiles=3, bounded_targets=True).eval()
    model.target_head = Watched(6)
    out = model(tokens())["target_prediction"]
    assert torch.equal(out, torch.arange(30.0).reshape(5, 2, 3))


def test_points_are_scaled_by_category_then_for_all_then_shaped(host: Host) -> None:
    model = host.predictor(
        categorical_cardinalities=CARDINALITIES,
        conditional_scaling_columns=["location"],
        learnable_output_scale=True,
        output_activation="relu",
    ).eval()
    model.target_head = Watched(1)
    with torch.no_grad():
        model.output_scales["location"].weight.fill_(2.0)
        model.output_biases["location"].weight.fill_(1.0)
        model.output_scale.fill_(3.0)
        model.output_bias.fill_(-10.0)
    out = model(tokens(), categorical_ids=ids())["target_prediction"]
    assert torch.equal(out, ((torch.arange(5.0) * 2 + 1) * 3 - 10).relu().unsqueeze(-1))
    unscaled = model(tokens())["target_prediction"]
    assert torch.equal(unscaled, (torch.arange(5.0) * 3 - 10).relu().unsqueeze(-1))


def test_an_embedder_without_columns_and_the_gated_fusion_change_nothing(host: Host) -> None:
    plain, other = host.predictor().eval(), host.predictor().eval()
    other.categorical_embedder, other.categorical_fusion = nn.Identity(), "gmu"
    with torch.no_grad():
        expected = plain(tokens(), categorical_ids=ids())["target_prediction"]
        assert torch.equal(other(tokens(), categorical_ids=ids())["target_prediction"], expected)


def test_the_model_can_be_described_and_built_again(host: Host) -> None:
    arguments = describe_host(host.predictor(categorical_cardinalities=CARDINALITIES))
    assert arguments
    assert set(SIZES) <= set(arguments)
    again = host.SequencePredictor(**arguments)
    assert describe_host(again) == arguments


def test_the_trainer_has_what_is_replaced(host: Host) -> None:
    trainer = host.Trainer(host.predictor(), host.MultiTaskLoss(nuc_penalty=0.0))
    assert [name for name in (*TRAINER, *TRAINER_METHODS) if not hasattr(trainer, name)] == []
    assert [name for name in EVALUATOR_METHODS if not hasattr(trainer.evaluator, name)] == []
    batch = {"tokens": tokens(), "y_target": torch.ones(5, 1), "categorical_ids": ids()}
    given, targets, categories, weights = trainer._prepare_batch(batch)
    assert torch.equal(given, batch["tokens"])
    assert torch.equal(targets["target"], batch["y_target"])
    assert categories is not None
    assert weights is None
    assert len(trainer.evaluator._prepare_batch(batch)) == 3
    assert parameters(trainer.evaluator._denormalize_targets) == ("values", "categorical_ids")
    assert parameters(trainer._save_val_predictions) == ("full_predictions", "checkpoint_dir")


def test_the_loss_has_one_place_for_targets(host: Host) -> None:
    loss = host.MultiTaskLoss(nuc_penalty=0.0)
    assert parameters(loss.forward) == FORWARD_OF_THE_LOSS
    assert parameters(loss.compute_target_loss) == ("target_pred", "target_true", "is_classifier", "sample_weights")
    loss.compute_target_loss = lambda *_, **__: torch.tensor(7.0)
    losses = loss({"target_prediction": torch.ones(2, 1)}, {"target": torch.ones(2, 1)})
    assert losses["target_loss"].item() == losses["total_loss"].item() == 7.0


def test_the_optimizer_knows_the_names_of_tables(host: Host) -> None:
    model = nn.Module()
    model.target_head = nn.ModuleDict({name: nn.Linear(1, 1) for name in (*NAMES.values(), "trunk")})
    slow, fast = host.create_optimizer(model, lr=1.0, categorical_lr=2.0).param_groups
    assert len(fast["params"]) == 2 * len(NAMES)
    assert len(slow["params"]) == 2


@pytest.mark.parametrize("part", [pytest.param(p, marks=NEEDS_AAM) for p in ("model", "loss", "trainer", "evaluator")])
def test_the_stand_in_has_nothing_that_aam_has_not(part: str) -> None:
    pairs = []
    for host in (host_named("stand-in"), host_named("aam")):
        model = host.predictor(categorical_cardinalities=CARDINALITIES, learnable_output_scale=True)
        loss = host.MultiTaskLoss(nuc_penalty=0.0)
        trainer = host.Trainer(model, loss)
        pairs.append({"model": model, "loss": loss, "trainer": trainer, "evaluator": trainer.evaluator}[part])
    stand_in, real = pairs
    invented = [name for name in vars(type(stand_in)) if not name.startswith("__") and not hasattr(real, name)]
    invented += [name for name in vars(stand_in) if not name.startswith("__") and not hasattr(real, name)]
    assert [name for name in invented if name != "_shape"] == []


@pytest.mark.skipif(not HAS_AAM, reason="AAM is not installed")
@pytest.mark.aam
@pytest.mark.filterwarnings("ignore")
def test_the_command_has_the_flags_and_names_that_are_replaced() -> None:
    import sys

    import aam.cli

    names = {parameter.name for parameter in aam.cli.train.params}
    assert set(NEUTRAL) <= names
    assert {"metadata_column", "out_dim", "categorical_columns", "categorical_embed_dim", "resume_from"} <= names
    module = sys.modules["aam.cli.train"]
    for name in ("CategoricalEncoder", "ASVDataset", "SequencePredictor", "MultiTaskLoss", "Trainer"):
        assert hasattr(module, name)
    here = {flag.dest for flag in OURS} & names
    assert {"loss_type", "quantiles", "regressor_hidden_dims", "conditional_output_scaling"} <= here
    predict = {parameter.name for parameter in aam.cli.predict.params}
    assert predict == set(
        inspect.signature(__import__("reghead.adapters.aam._predict", fromlist=["x"]).predict).parameters
    )
