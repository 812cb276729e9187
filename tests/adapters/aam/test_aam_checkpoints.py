"""Checkpoints that AAM's Trainer writes of an attached model, read by weights alone."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.testing import assert_close

from adapters._hosts import CARDINALITIES, HOSTS, NEEDS_AAM, Host, host_named, ids, predict, shaken, tokens
from reghead.adapters.aam import TargetHead, attach, encoder_from_aam, load_predictor, prepare_trainer
from reghead.categories import CategoryEncoder
from reghead.normalization import CategoryNormalizer

LOCATION = {"location": torch.tensor([1, 1, 2, 2, 3, 3])}
QUANTILES = {"type": "quantile", "quantiles": [0.1, 0.5, 0.9]}
ASKED: dict[str, Any] = {
    "hidden_dims": (8,),
    "film": ("location",),
    "scaler": ("location", "season"),
    "moe": {"num_experts": 2, "routing": ("location",), "load_balancing_weight": 0.1},
    "quantiles": (0.1, 0.5, 0.9),
}


@pytest.fixture(params=HOSTS)
def host(request: pytest.FixtureRequest) -> Host:
    return host_named(request.param)


def encoder() -> CategoryEncoder:
    table = {"location": ["A", "A", "B", "B", "C", "C"], "season": ["dry", "wet", "wet", "dry", "dry", "wet"]}
    return CategoryEncoder(["location", "season"]).fit(table)


def normalizer() -> CategoryNormalizer:
    target = torch.tensor([[1.0], [3.0], [10.0], [14.0], [100.0], [120.0]])
    return CategoryNormalizer({"location": 4}).fit(target, LOCATION)


def attached(host: Host, seed: int = 0, **options: Any) -> Any:
    model = host.predictor(seed=seed, categorical_cardinalities=CARDINALITIES, **options)
    return attach(model, ASKED, encoder=encoder(), normalizer=normalizer(), outputs=["yield"])


def batches() -> list[dict[str, Any]]:
    target = torch.tensor([[1.0], [3.0], [10.0], [14.0], [100.0]], dtype=torch.float64)
    given = {"location": LOCATION["location"][:5], "season": ids()["season"]}
    names = [f"s{i}" for i in range(5)]
    return [{"tokens": tokens(), "y_target": target, "categorical_ids": given, "sample_ids": names}]


def trained(host: Host, folder: Path) -> Any:
    trainer = prepare_trainer(host.Trainer(attached(host), host.loss(QUANTILES)))
    trainer.train(batches(), batches(), num_epochs=1, checkpoint_dir=str(folder))
    return trainer


def test_the_best_model_is_rebuilt_from_its_file_alone(host: Host, tmp_path: Path) -> None:
    trainer = trained(host, tmp_path / "checkpoints")
    path = tmp_path / "checkpoints" / "best_model.pt"
    assert torch.load(path, weights_only=True)["config"] == {}
    again = load_predictor(path, base=host.SequencePredictor)
    assert not again.training
    assert torch.equal(predict(again, ids()), predict(trainer.model, ids()))
    head = again.target_head
    assert isinstance(head, TargetHead)
    assert head.outputs == ("yield",)
    assert head.encoder is not None
    assert head.encoder.to_dict() == encoder().to_dict()
    z = predict(again, ids()).double()
    known = {"location": ids()["location"]}
    inverse = head.normalizer.inverse(z, known, output_dim=-2)
    assert_close(inverse, normalizer().inverse(z, known, output_dim=-2))


def test_training_goes_on_from_a_checkpoint(host: Host, tmp_path: Path) -> None:
    trainer = trained(host, tmp_path / "checkpoints")
    other = prepare_trainer(host.Trainer(attached(host, seed=1, gradient_checkpointing=True), host.loss(QUANTILES)))
    other.load_checkpoint(str(tmp_path / "checkpoints" / "best_model.pt"))
    for name, value in trainer.model.state_dict().items():
        if name != "target_head._extra_state":
            assert torch.equal(other.model.state_dict()[name], value), name
    other.train_epoch(batches())


def test_a_checkpoint_of_another_head_is_refused(host: Host, tmp_path: Path) -> None:
    trained(host, tmp_path / "checkpoints")
    model = attach(host.predictor(categorical_cardinalities=CARDINALITIES), {**ASKED, "hidden_dims": (6,)})
    trainer = host.Trainer(model, host.loss(QUANTILES))
    with pytest.raises(ValueError, match=r"hidden_dims is \[8\] there and \[6\] here"):
        trainer.load_checkpoint(str(tmp_path / "checkpoints" / "best_model.pt"))


@pytest.mark.parametrize("prefix", ["_orig_mod.", "module.", "_orig_mod.module.", "module._orig_mod."])
def test_prefixes_of_wrappers_are_taken_off(host: Host, prefix: str, tmp_path: Path) -> None:
    model = attached(host)
    with shaken(model.target_head):
        state = {prefix + name: value for name, value in model.state_dict().items()}
    torch.save({"model_state_dict": state}, tmp_path / "model.pt")
    again = load_predictor(tmp_path / "model.pt", base=host.SequencePredictor)
    assert torch.equal(predict(again, ids()), predict(model, ids()))


@pytest.mark.parametrize(
    "options",
    [
        {"target_layer_norm": False, "count_prediction": False},
        {"categorical_fusion": "add", "categorical_embed_dim": 5, "categorical_dropout": 0.3},
        {"asv_num_layers": 2, "sample_num_heads": 4, "target_intermediate_size": 24, "encoder_activation": "relu"},
        *(
            pytest.param(options, marks=NEEDS_AAM)
            for options in (
                {"encoder_type": "faith_pd", "predict_nucleotides": True, "mask_ratio": 0.1, "base_output_dim": 1},
                {"categorical_fusion": "perceiver", "perceiver_num_latents": 4, "perceiver_num_layers": 1},
                {"categorical_fusion": "cross-attention", "cross_attn_heads": 2, "asv_chunk_size": 2},
                {"count_embedding": True, "count_embedding_method": "film", "attn_implementation": "math"},
                {"encoder_type": "combined", "count_num_layers": 2, "gradient_checkpointing": True},
            )
        ),
    ],
)
def test_every_way_to_build_the_model_is_described(
    host: Host, options: Any, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    if host.name != "aam" and request.node.get_closest_marker("aam") is not None:
        pytest.skip("the stand-in has no such option")
    model = attached(host, **options).eval()
    torch.save(model.state_dict(), tmp_path / "model.pt")
    again = load_predictor(tmp_path / "model.pt", base=host.SequencePredictor)
    given = {"counts": torch.ones(5, 4, 1)} if options.get("count_embedding") else {}
    with torch.no_grad():
        expected = model(tokens(), categorical_ids=ids(), **given)
        got = again(tokens(), categorical_ids=ids(), **given)
    assert got.keys() == expected.keys()
    for name in expected:
        assert torch.equal(got[name], expected[name]), name


def test_a_model_of_other_parts_is_given(host: Host, tmp_path: Path) -> None:
    model = attached(host)
    model.target_head.host = {}
    torch.save(model.state_dict(), tmp_path / "model.pt")
    with pytest.raises(ValueError, match=r"does not say how its model is built, .* pass model=, built alike"):
        load_predictor(tmp_path / "model.pt", base=host.SequencePredictor)
    built = host.predictor(seed=3, categorical_cardinalities=CARDINALITIES, learnable_output_scale=True)
    again = load_predictor(tmp_path / "model.pt", model=built)
    assert torch.equal(predict(again, ids()), predict(model, ids()))


def test_a_model_that_is_built_otherwise_is_told_and_stays_plain(host: Host, tmp_path: Path) -> None:
    torch.save(attached(host).state_dict(), tmp_path / "model.pt")
    for options in ({"embedding_dim": 32}, {"count_prediction": False}, {"asv_num_layers": 2}):
        other = host.predictor(categorical_cardinalities=CARDINALITIES, **options)
        with pytest.raises(ValueError, match="the model is built otherwise than that of the checkpoint: "):
            load_predictor(tmp_path / "model.pt", model=other)
        assert type(other) is host.SequencePredictor
    with pytest.raises(ValueError, match=r"has a head of reghead already; detach\(model\) first"):
        load_predictor(tmp_path / "model.pt", model=attached(host))


def test_a_file_without_a_head_of_reghead_is_told(host: Host, tmp_path: Path) -> None:
    torch.save({"model_state_dict": host.predictor().state_dict()}, tmp_path / "plain.pt")
    with pytest.raises(ValueError, match=r"plain\.pt has no head of reghead; it reads checkpoints of models that"):
        load_predictor(tmp_path / "plain.pt", base=host.SequencePredictor)
    (tmp_path / "text.pt").write_text("no weights")
    with pytest.raises(ValueError, match=r"text\.pt is no checkpoint that can be read by its weights alone"):
        load_predictor(tmp_path / "text.pt")
    with pytest.raises(FileNotFoundError):
        load_predictor(tmp_path / "none.pt")


class CategoricalEncoder:
    """AAM's encoder, as far as its labels go."""

    column_names = ("location",)

    def __init__(self, mapping: dict[str, int]) -> None:
        self.mapping = mapping

    def get_mappings(self) -> dict[str, dict[str, int]]:
        return {"location": self.mapping}


def test_labels_of_aam_keep_their_ids() -> None:
    made = encoder_from_aam(CategoricalEncoder({"10": 2, "9": 1, "A": 3}))
    assert made.transform({"location": ["A", "9", None, "10"]})["location"].tolist() == [3, 1, 0, 2]
    assert made.cardinalities == {"location": 4}
    with pytest.raises(ValueError, match=r"ids of the column 'location' must be 1 to their number, got \[1, 3\]"):
        encoder_from_aam(CategoricalEncoder({"A": 1, "B": 3}))


@pytest.mark.parametrize("numbered", [pytest.param(n, marks=NEEDS_AAM) for n in (False, True)])
def test_ids_are_those_of_aams_encoder(numbered: bool) -> None:
    import pandas
    from aam.data.categorical import CategoricalEncoder as Real

    values = [10, 9, 2, 10] if numbered else ["b", "a", "c", "a"]
    frame = pandas.DataFrame({"plot": values})
    real = Real().fit(frame, ["plot"])
    made = encoder_from_aam(real)
    texts = {"plot": [str(value) for value in values]}
    assert made.transform(texts)["plot"].tolist() == real.transform(frame)["plot"].tolist()


@pytest.mark.parametrize("prefix", [pytest.param(p, marks=NEEDS_AAM) for p in ("", "module.", "_orig_mod.")])
def test_a_pretrained_encoder_loads_below_an_attached_head(prefix: str, tmp_path: Path) -> None:
    from aam.training.trainer import load_pretrained_encoder

    host = host_named("aam")
    source = host.predictor(seed=7).base_model
    state = {prefix + name: value for name, value in source.state_dict().items()}
    torch.save({"model_state_dict": state}, tmp_path / "encoder.pt")
    model = attached(host)
    loaded = load_pretrained_encoder(str(tmp_path / "encoder.pt"), model, strict=True)
    assert loaded["loaded_keys"] == loaded["total_model_keys"] == len(state)
    for name, value in source.state_dict().items():
        assert torch.equal(model.base_model.state_dict()[name], value)
