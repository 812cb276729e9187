"""prepare_trainer: normalized targets in training, scores in the target's own units, and the use of experts."""

import csv
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from adapters._hosts import HOSTS, Host, host_named, shaken, tokens
from reghead.adapters.aam import attach, prepare_trainer
from reghead.categories import CategoryEncoder
from reghead.normalization import CategoryNormalizer

PLACES = ["A", "B", "C"]
LOCATION = {"location": torch.tensor([1, 1, 2, 2, 3, 3, 1, 2])}
CENTRE = {"A": 10.0, "B": 100.0, "C": 1000.0}


@pytest.fixture(params=HOSTS)
def host(request: pytest.FixtureRequest) -> Host:
    return host_named(request.param)


def labels() -> list[str]:
    return [PLACES[i - 1] for i in LOCATION["location"].tolist()]


def targets(columns: int = 1) -> Tensor:
    noise = torch.randn(8, columns, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    centre = torch.tensor([CENTRE[label] for label in labels()], dtype=torch.float64).unsqueeze(-1)
    return centre * torch.tensor([1.0, 0.01])[:columns] + noise


def encoder() -> CategoryEncoder:
    return CategoryEncoder(["location"]).fit({"location": PLACES})


def normalizer(columns: int = 1) -> CategoryNormalizer:
    return CategoryNormalizer({"location": 4}).fit(targets(columns), LOCATION)


def batches(columns: int = 1, *, with_ids: bool = True, named: bool = True) -> list[dict[str, Any]]:
    made = []
    for start in (0, 4):
        rows = slice(start, start + 4)
        batch: dict[str, Any] = {"tokens": tokens(8)[rows], "y_target": targets(columns)[rows]}
        if with_ids:
            batch["categorical_ids"] = {"location": LOCATION["location"][rows]}
        if named:
            batch["sample_ids"] = [f"s{i}" for i in range(8)][rows]
        made.append(batch)
    return made


def trainer_of(host: Host, model: nn.Module, spec: Any = "huber", **options: Any) -> Any:
    return host.Trainer(model, host.loss(spec), **options)


def own_scores(model: Any, columns: int = 1, level: int | None = None) -> tuple[Tensor, Tensor]:
    """Predictions in the target's units by hand, and the targets."""
    with torch.no_grad():
        z = model.eval()(tokens(8), categorical_ids=LOCATION)["target_prediction"]
    z = z if level is None else z[..., level]
    return normalizer(columns).inverse(z.double(), LOCATION), targets(columns)


def test_scores_are_in_the_units_of_the_target(host: Host) -> None:
    model = attach(host.predictor(categorical_cardinalities={"location": 4}), {"scaler": ("location",)})
    trainer = prepare_trainer(trainer_of(host, model), normalizer())
    scores = trainer.validate_epoch(batches(), collect_all_predictions=True)
    predicted, actual = own_scores(model)
    assert scores[0]["mae"] == pytest.approx((predicted - actual).abs().mean().item(), rel=1e-4)
    assert_close(scores[3]["predictions"].double(), predicted)
    assert_close(scores[3]["actuals"].double(), actual)
    # The loss is that of z.
    z = normalizer()(actual, LOCATION)
    with torch.no_grad():
        preds = model(tokens(8), categorical_ids=LOCATION)["target_prediction"]
    expected = torch.nn.functional.huber_loss(preds.double(), z)
    assert scores[0]["target_loss"] == pytest.approx(expected.item(), rel=1e-4)


def test_training_sees_normalized_targets(host: Host) -> None:
    model = attach(host.predictor(categorical_cardinalities={"location": 4}), {})
    trainer = prepare_trainer(trainer_of(host, model), normalizer())
    _, prepared, ids, _ = trainer._prepare_batch(batches()[0])
    first = {"location": LOCATION["location"][:4]}
    assert prepared["target"].dtype == torch.float32
    assert_close(prepared["target"].double(), normalizer()(targets()[:4], first), atol=1e-5, rtol=1e-5)
    assert set(ids) == {"location"}
    losses = trainer.train_epoch(batches())
    assert 0 < losses["target_loss"] < 5


def test_columns_that_the_model_does_not_take_are_found_by_sample(host: Host) -> None:
    model = attach(host.predictor(), {}, encoder=encoder())
    table = {"sample_id": [f"s{i}" for i in range(7, -1, -1)], "location": labels()[::-1]}
    trainer = prepare_trainer(trainer_of(host, model), normalizer(), metadata=table)
    scores = trainer.validate_epoch(batches(with_ids=False), collect_all_predictions=True)
    with torch.no_grad():
        z = model.eval()(tokens(8))["target_prediction"]
    assert_close(scores[3]["predictions"].double(), normalizer().inverse(z.double(), LOCATION))
    assert_close(scores[3]["actuals"].double(), targets())
    trainer.train_epoch(batches(with_ids=False))
    absent = [{**batch, "sample_ids": ["s0", "s1", "s2", "new"]} for batch in batches(with_ids=False)]
    with pytest.raises(ValueError, match="metadata has no row for the sample 'new' of a batch"):
        trainer.train_epoch(absent)


def test_columns_that_nobody_tells_are_an_error_and_not_a_score(host: Host) -> None:
    trainer = prepare_trainer(trainer_of(host, attach(host.predictor(), {})), normalizer())
    with pytest.raises(ValueError, match="needs the column 'location', which the batches do not have; pass metadata="):
        trainer.validate_epoch(batches(with_ids=False))


def test_ids_that_are_no_integers_are_refused(host: Host) -> None:
    model = attach(host.predictor(), {"scaler": ("location",), "cardinalities": {"location": 4}})
    with pytest.raises(TypeError, match=r"categorical_ids\['location'\] must be a tensor of integer ids .*, got list"):
        model(tokens(4), categorical_ids={"location": [1, 2, 3, 1]})
    trainer = prepare_trainer(trainer_of(host, model), normalizer())
    floats = [{**batch, "categorical_ids": {"location": torch.ones(4)}} for batch in batches()]
    with pytest.raises(TypeError, match=r"must be a tensor of integer ids \(torch.int64\), got torch.float32; use"):
        trainer._prepare_batch(floats[0])


def test_several_targets_have_scores_and_columns_of_their_own(host: Host, tmp_path: Path) -> None:
    model = attach(host.predictor(out_dim=2), {}, encoder=encoder(), outputs=["yield", "pH"])
    table = {"sample_id": [f"s{i}" for i in range(8)], "location": labels()}
    trainer = prepare_trainer(trainer_of(host, model), normalizer(2), metadata=table)
    trainer.train(batches(2), batches(2), num_epochs=1, checkpoint_dir=str(tmp_path / "checkpoints"))
    with torch.no_grad():
        z = model.eval()(tokens(8))["target_prediction"]
    predicted = normalizer(2).inverse(z.double(), LOCATION)
    error = predicted - targets(2)
    scores = trainer.validate_epoch(batches(2))
    for i, name in enumerate(("yield", "pH")):
        spread = (targets(2)[:, i] - targets(2)[:, i].mean()).square().sum()
        assert scores[f"mae_{name}"] == pytest.approx(error[:, i].abs().mean().item(), rel=1e-5)
        assert scores[f"r2_{name}"] == pytest.approx((1 - error[:, i].square().sum() / spread).item(), rel=1e-5)
    with open(tmp_path / "val_predictions.tsv", newline="") as file:
        written = list(csv.DictReader(file, delimiter="\t"))
    assert [row["sample_id"] for row in written] == [f"s{i}" for i in range(8)]
    for i, name in enumerate(("yield", "pH")):
        assert_close(torch.tensor([float(row[f"prediction_{name}"]) for row in written]).double(), predicted[:, i])
        assert_close(torch.tensor([float(row[f"actual_{name}"]) for row in written]).double(), targets(2)[:, i])


def test_scores_without_names_are_counted(host: Host) -> None:
    trainer = prepare_trainer(trainer_of(host, attach(host.predictor(out_dim=2), {})))
    scores, drawn, _ = trainer.validate_epoch(batches(2), return_predictions=True)
    assert {"mae_0", "mae_1", "r2_0", "r2_1"} <= scores.keys()
    assert drawn["target"].numel() == 16
    unnamed = trainer.validate_epoch(batches(2), compute_metrics=False)
    assert "mae_0" not in unnamed


@pytest.mark.parametrize(("levels", "nearest"), [((0.5, 0.9, 0.95), 0), ((0.1, 0.4), 1), ((0.3,), 0)])
def test_the_quantile_nearest_the_median_is_scored(host: Host, levels: tuple[float, ...], nearest: int) -> None:
    model = attach(host.predictor(categorical_cardinalities={"location": 4}), {"quantiles": levels})
    spec = {"type": "quantile", "quantiles": levels}
    trainer = prepare_trainer(trainer_of(host, model, spec), normalizer())
    scores = trainer.validate_epoch(batches(), collect_all_predictions=True)
    predicted, actual = own_scores(model, level=nearest)
    assert_close(scores[3]["predictions"].double(), predicted)
    assert scores[0]["mae"] == pytest.approx((predicted - actual).abs().mean().item(), rel=1e-4)


def test_scores_over_several_passes_are_in_the_units_of_the_target(host: Host) -> None:
    if host.name != "aam":
        pytest.skip("the stand-in has one pass")
    model = attach(host.predictor(), {"scaler": ("location",), "cardinalities": {"location": 4}})
    trainer = prepare_trainer(trainer_of(host, model), normalizer())
    scores = trainer.validate_epoch(batches(), val_prediction_passes=2)
    predicted, actual = own_scores(model)
    assert scores["mae"] == pytest.approx((predicted - actual).abs().mean().item(), rel=1e-4)


class Wrapper(nn.Module):
    """What DDP and DataParallel look like from outside: the attributes of the model are hidden."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *args: Any, **options: Any) -> Any:
        return self.module(*args, **options)


def test_a_wrapped_model_is_validated_with_its_categories(host: Host) -> None:
    model = attach(host.predictor(categorical_cardinalities={"location": 4}), {"scaler": ("location",)})
    with torch.no_grad():
        model.target_head.scaler.bias_location.copy_(torch.tensor([[1.0], [2.0], [3.0]]))
    trainer = prepare_trainer(trainer_of(host, Wrapper(model)), normalizer())
    scores = trainer.validate_epoch(batches(), collect_all_predictions=True)
    assert_close(scores[3]["predictions"].double(), own_scores(model)[0])
    trainer.train_epoch(batches())


class Writer:
    """A TensorBoard writer that remembers its scalars."""

    def __init__(self) -> None:
        self.scalars: dict[str, list[float]] = {}

    def add_scalar(self, tag: str, value: float, step: int) -> None:
        self.scalars.setdefault(tag, []).append(float(value))

    def add_histogram(self, *args: Any) -> None: ...


def test_the_use_of_experts_is_logged_by_epoch(host: Host) -> None:
    moe = {"num_experts": 3, "routing": ("location",), "load_balancing_weight": 0.1}
    model = attach(host.predictor(), {"moe": moe, "cardinalities": {"location": 4}})
    with shaken(model.target_head):
        _, aux = model.target_head(torch.zeros(8, 16), LOCATION, return_aux=True)
    shares = aux.routing.routing_weights.mean(dim=0).tolist()
    assert max(shares) - min(shares) > 0.01
    still = torch.optim.SGD(model.parameters(), lr=0.0)
    trainer = prepare_trainer(trainer_of(host, model, optimizer=still), normalizer())
    trainer.writer = Writer()
    for epoch in range(2):
        losses = trainer.train_epoch(batches())
        trainer.validate_epoch(batches()[:1])  # does not count
        trainer._log_to_tensorboard(epoch, losses, {})
    for expert, share in enumerate(shares):
        assert trainer.writer.scalars[f"experts/{expert}"] == pytest.approx([share] * 2, abs=1e-5)
    assert trainer.writer.scalars["train/head_load_balancing_loss"][0] >= 0.1


def test_scales_and_biases_are_logged_as_by_aam(host: Host) -> None:
    model = attach(host.predictor(), {"scaler": ("location",), "cardinalities": {"location": 4}})
    with torch.no_grad():
        model.target_head.scaler.scale_location.copy_(torch.tensor([[0.0], [1.0], [2.0]]))
    trainer = prepare_trainer(trainer_of(host, model), normalizer())
    trainer._log_to_tensorboard(0, {}, {})  # without a writer it is nothing
    trainer.writer = Writer()
    trainer._log_to_tensorboard(1, {}, {})
    logged = {name: values for name, values in trainer.writer.scalars.items() if name.startswith("conditional")}
    assert logged == {
        "conditional_scaling/location_scale_mean": [2.0],
        "conditional_scaling/location_scale_std": [1.0],
        "conditional_scaling/location_bias_mean": [0.0],
        "conditional_scaling/location_bias_std": [0.0],
    }


def test_scales_of_quantiles_and_of_one_category_are_logged(host: Host) -> None:
    asked = {"quantiles": (0.1, 0.9), "scaler": ("location",), "cardinalities": {"location": 2}}
    model = attach(host.predictor(), asked)
    with torch.no_grad():
        model.target_head.scaler.scale_location.fill_(1.0)
    trainer = prepare_trainer(trainer_of(host, model, {"type": "quantile", "quantiles": (0.1, 0.9)}))
    trainer.writer = Writer()
    trainer._log_to_tensorboard(0, {}, {})
    # Those of quantiles are positive, exp(1); one category has no spread.
    assert trainer.writer.scalars["conditional_scaling/location_scale_mean"] == [pytest.approx(math.e)]
    assert trainer.writer.scalars["conditional_scaling/location_scale_std"] == [0.0]


@pytest.mark.parametrize("known", [[1, 2, 3], ["1.0", "2.0", "3.0"], ["1", "2", "3"]])
@pytest.mark.parametrize("kind", [str, int, float])
def test_metadata_is_read_as_the_encoder_has_its_labels(host: Host, known: list[Any], kind: Any) -> None:
    table = {"sample_id": [f"s{i}" for i in range(8)], "location": [kind(i) for i in LOCATION["location"].tolist()]}
    model = attach(host.predictor(), {}, encoder=CategoryEncoder(["location"]).fit({"location": known}))
    trainer = prepare_trainer(trainer_of(host, model), normalizer(), metadata=table)
    scores = trainer.validate_epoch(batches(with_ids=False), collect_all_predictions=True)
    assert_close(scores[3]["predictions"].double(), own_scores(model)[0])


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"location": ["A"]}, "the metadata needs the column 'sample_id', and has location"),
        ({"sample_id": ["s0"]}, "the metadata needs the column 'location', and has sample_id"),
        ({"sample_id": ["s0", "s0"], "location": ["A", "B"]}, "the metadata has the sample 's0' twice"),
    ],
)
def test_metadata_that_cannot_tell_is_refused_and_changes_nothing(host: Host, table: Any, message: str) -> None:
    model = attach(host.predictor(), {}, encoder=encoder())
    with pytest.raises(ValueError, match=message):
        prepare_trainer(trainer_of(host, model), normalizer(), metadata=table)
    assert model.target_head.normalizer is None


def test_an_encoder_without_the_columns_of_the_normalizer_is_told(host: Host) -> None:
    model = attach(host.predictor(), {}, encoder=CategoryEncoder(["season"]).fit({"season": ["dry"]}))
    table = {"sample_id": ["s0"], "season": ["dry"]}
    with pytest.raises(ValueError, match="needs the column 'location', and the head's encoder has season; give attach"):
        prepare_trainer(trainer_of(host, model), normalizer(), metadata=table)


def test_refitting_the_callers_normalizer_moves_nothing(host: Host) -> None:
    model = attach(host.predictor(categorical_cardinalities={"location": 4}), {})
    own = normalizer()
    trainer = prepare_trainer(trainer_of(host, model), own)
    before = trainer.validate_epoch(batches())["mae"]
    own.fit(targets() * 100.0, LOCATION)
    assert trainer.validate_epoch(batches())["mae"] == before


def test_a_trainer_is_prepared_once_and_only_with_a_head(host: Host) -> None:
    trainer = prepare_trainer(trainer_of(host, attach(host.predictor(), {})))
    with pytest.raises(ValueError, match="the trainer is prepared already; make a new one"):
        prepare_trainer(trainer)
    with pytest.raises(TypeError, match=r"trainer\.model must be one that attach returned, got SequencePredictor"):
        prepare_trainer(trainer_of(host, host.predictor()))
    with pytest.raises(TypeError, match=r"the Linear is not the one .* it lacks model, loss_fn, evaluator"):
        prepare_trainer(nn.Linear(1, 1))


def test_two_normalizations_are_refused_and_so_is_none(host: Host) -> None:
    model = attach(host.predictor(), {})
    scaled = trainer_of(host, model, target_normalization_params={"target_min": 0.0, "target_scale": 2.0})
    with pytest.raises(ValueError, match="was made with target_normalization_params, and would normalize"):
        prepare_trainer(scaled, normalizer())
    assert model.target_head.normalizer is None
    for wrong in (CategoryNormalizer({"location": 4}), normalizer(2)):
        with pytest.raises(
            ValueError, match="the normalizer must be fitted on the 1 targets of the head, got Category"
        ):
            prepare_trainer(trainer_of(host, model), wrong)
        assert model.target_head.normalizer is None
    with pytest.raises(ValueError, match="the head has no encoder to read them; pass encoder= to attach"):
        prepare_trainer(trainer_of(host, model), normalizer(), metadata={"sample_id": ["s0"], "location": ["A"]})
