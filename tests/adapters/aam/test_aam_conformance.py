"""Behaviour that AAM's own tests pin, under the names they have there, with a head of reghead in the model."""

from typing import Any

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from adapters._hosts import CARDINALITIES, HOSTS, Host, host_named, ids, predict, shaken, tokens
from reghead import UnseenCategoryWarning
from reghead.adapters.aam import attach
from reghead.normalization import CategoryNormalizer


@pytest.fixture(params=HOSTS)
def host(request: pytest.FixtureRequest) -> Host:
    return host_named(request.param)


def with_categories(host: Host, asked: Any, **options: Any) -> Any:
    return attach(host.predictor(categorical_cardinalities=CARDINALITIES, **options), asked)


def linear_shapes(model: nn.Module) -> list[tuple[int, int]]:
    return [(m.in_features, m.out_features) for m in model.target_head.modules() if isinstance(m, nn.Linear)]  # type: ignore[union-attr]


def test_mlp_single_hidden_layer(host: Host) -> None:
    assert linear_shapes(attach(host.predictor(), {"hidden_dims": (8,)})) == [(16, 8), (8, 1)]


def test_mlp_two_hidden_layers(host: Host) -> None:
    model = attach(host.predictor(), {"hidden_dims": (8, 4)})
    assert linear_shapes(model) == [(16, 8), (8, 4), (4, 1)]
    assert predict(model).shape == (5, 1)


def test_mlp_with_dropout(host: Host) -> None:
    model = attach(host.predictor(), {"hidden_dims": (8,), "dropout": 0.5})
    assert [m.p for m in model.target_head.modules() if isinstance(m, nn.Dropout)] == [0.5]
    assert torch.equal(predict(model), predict(model))


@pytest.mark.parametrize("dims", [(0,), (8, -1)])
def test_mlp_invalid_dims_raise(host: Host, dims: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="must be at least 1"):
        attach(host.predictor(), {"hidden_dims": dims})


def test_residual_requires_hidden_dims(host: Host) -> None:
    with pytest.raises(ValueError, match="residual acts on hidden layers"):
        attach(host.predictor(), {"residual": True})


def test_residual_effect(host: Host) -> None:
    model = attach(host.predictor(), {"hidden_dims": (8,), "residual": True})
    whole = predict(model)
    with torch.no_grad():
        model.target_head.trunk.output.weight.zero_()
    skip = predict(model)
    assert not torch.allclose(whole, skip)
    with torch.no_grad():
        model.target_head.trunk.skip.weight.zero_()
    assert_close(predict(model), torch.zeros(5, 1))


def test_identity_transform_at_init(host: Host) -> None:
    plain, scaled = with_categories(host, {}), with_categories(host, {"scaler": ("location", "season")})
    with torch.no_grad():
        scaled.target_head.weight.copy_(plain.target_head.weight)
    assert torch.equal(predict(scaled, ids()), predict(plain, ids()))


def test_scaling_differs_per_category(host: Host) -> None:
    model = attach(host.predictor(), {"scaler": ("location",), "cardinalities": CARDINALITIES})
    with torch.no_grad():
        model.target_head.scaler.bias_location.copy_(torch.tensor([[1.0], [2.0], [3.0]]))
    base = predict(model)
    for place in range(4):
        assert_close(predict(model, {"location": torch.full((5,), place)}) - base, torch.full((5, 1), float(place)))


def test_multiple_columns_applied_sequentially(host: Host) -> None:
    model = with_categories(host, {"scaler": ("location", "season")})
    scaler = model.target_head.scaler
    with torch.no_grad():
        for column, scale, bias in (("location", 2.0, 1.0), ("season", 3.0, 5.0)):
            getattr(scaler, f"scale_{column}").fill_(scale - 1.0)
            getattr(scaler, f"bias_{column}").fill_(bias)
    known = {column: torch.ones(5, dtype=torch.int64) for column in CARDINALITIES}
    unknown = {column: torch.zeros(5, dtype=torch.int64) for column in CARDINALITIES}
    pooled: list[torch.Tensor] = []
    model.target_head.register_forward_pre_hook(lambda _, inputs: pooled.append(inputs[0]))
    predict(model, known)
    base = nn.functional.linear(pooled[0], model.target_head.weight, model.target_head.bias)
    assert_close(model.target_head(pooled[0], known), (base * 2 + 1) * 3 + 5)
    assert_close(model.target_head(pooled[0], unknown), base)


def test_multi_output_scaling(host: Host) -> None:
    model = with_categories(host, {"scaler": ("location",)}, out_dim=3)
    before = predict(model, ids())
    with torch.no_grad():
        model.target_head.scaler.bias_location[0] = torch.tensor([1.0, 2.0, 3.0])
    moved = predict(model, ids()) - before
    first = ids()["location"] == 1
    assert_close(moved[first], torch.tensor([[1.0, 2.0, 3.0]]).expand(int(first.sum()), 3))
    assert not moved[~first].any()


@pytest.mark.parametrize(("targets", "levels"), [(1, (0.1, 0.5, 0.9)), (2, (0.1, 0.9)), (3, (0.5,))])
def test_quantile_output_shape(host: Host, targets: int, levels: tuple[float, ...]) -> None:
    model = with_categories(host, {"quantiles": levels}, out_dim=targets)
    assert predict(model, ids()).shape == (5, targets, len(levels))
    assert model.num_quantiles == len(levels)


def test_quantile_output_constraints_applied(host: Host) -> None:
    """In AAM the name says that they are not, and the test looks at the shape alone."""
    model = with_categories(host, {"quantiles": (0.1, 0.9)}, output_activation="softplus")
    with shaken(model.target_head):
        assert (predict(model, ids()) > 0).all()


def test_count_prediction_unaffected(host: Host) -> None:
    plain = host.predictor(categorical_cardinalities=CARDINALITIES).eval()
    model = with_categories(host, {"quantiles": (0.5,)}).eval()
    expected = plain(tokens(), categorical_ids=ids())["count_prediction"]
    assert torch.equal(model(tokens(), categorical_ids=ids())["count_prediction"], expected)
    without = attach(host.predictor(count_prediction=False), {}).eval()(tokens())
    assert "count_prediction" not in without
    assert "base_embeddings" not in without


@pytest.mark.parametrize("activation", ["relu", "softplus", "exp"])
def test_output_activation_non_negative(host: Host, activation: str) -> None:
    model = attach(host.predictor(out_dim=2, output_activation=activation), {"hidden_dims": (8,)})
    with shaken(model.target_head, seed=1):
        assert (predict(model) >= 0).all()


def test_pinball_loss_multi_output(host: Host) -> None:
    preds = torch.tensor([[[0.0, 1.0], [2.0, 3.0]]])
    target = torch.tensor([[0.5, 2.0]])
    losses = host.loss({"type": "quantile", "quantiles": [0.1, 0.9]})({"target_prediction": preds}, {"target": target})
    # 0.1 * 0.5, 0.1 * 0.5, 0, 0.1 * 1
    assert_close(losses["target_loss"], torch.tensor((0.05 + 0.05 + 0.0 + 0.1) / 4))


def test_compute_asymmetric_loss_equal_penalties_is_mae(host: Host) -> None:
    preds, target = torch.tensor([[1.0], [5.0]]), torch.tensor([[3.0], [2.0]])
    losses = host.loss({"type": "asymmetric", "base": "mae"})({"target_prediction": preds}, {"target": target})
    assert_close(losses["target_loss"], (preds - target).abs().mean())


def test_get_loss_type_falls_back_and_finds_by_index_or_name(host: Host) -> None:
    preds, target = torch.tensor([[3.0, 3.0, 3.0]]), torch.zeros(1, 3)
    spec = {"type": "per_output", "losses": {"pH": "mse", 2: "mae"}, "outputs": ["pH", "depth", "yield"]}
    losses = host.loss(spec)({"target_prediction": preds}, {"target": target})
    assert_close(losses["target_loss"], torch.tensor((9.0 + 2.5 + 3.0) / 3))


def test_get_loss_type_index_takes_precedence(host: Host) -> None:
    """In AAM the index wins silently; here a column that is named twice is a mistake, and told."""
    spec = {"type": "per_output", "losses": {"pH": "mse", 0: "mae"}, "outputs": ["pH", "yield"]}
    with pytest.raises(ValueError, match="names the output 0 twice, once by its name and once by its index"):
        host.loss(spec)


def normalizer() -> CategoryNormalizer:
    target = torch.tensor([[1.0], [3.0], [10.0], [14.0]])
    return CategoryNormalizer({"location": 4}).fit(target, {"location": torch.tensor([1, 1, 2, 2])})


def test_unseen_category_uses_global_stats() -> None:
    unseen = {"location": torch.tensor([3])}
    target = torch.tensor([[1.0], [3.0], [10.0], [14.0]])
    with pytest.warns(UnseenCategoryWarning, match="had no training rows"):
        z = normalizer()(torch.tensor([[8.0]]), unseen)
    assert_close(z, (torch.tensor([[8.0]]) - target.mean()) / target.std())


def test_to_dict_from_dict_roundtrip() -> None:
    again = CategoryNormalizer.from_state_dict(normalizer().state_dict())
    places = {"location": torch.tensor([0, 1, 2])}
    z = torch.tensor([[-1.0], [0.0], [1.0]])
    assert torch.equal(again.inverse(z, places), normalizer().inverse(z, places))


def test_film_identity_init_preserved_in_sequence_predictor(host: Host) -> None:
    plain = attach(host.predictor(), {"hidden_dims": (8, 4)})
    asked = {"hidden_dims": (8, 4), "film": ("location", "season"), "cardinalities": CARDINALITIES}
    model = attach(host.predictor(), asked)
    model._init_weights()
    for name, parameter in plain.target_head.named_parameters():
        parameter.data.copy_(model.target_head.get_parameter(name))
    assert torch.equal(predict(model, ids()), predict(plain, ids()))


def test_film_requires_mlp_head(host: Host) -> None:
    with pytest.raises(ValueError, match="film acts on hidden layers and hidden_dims gives none"):
        with_categories(host, {"film": ("location",)})


def test_film_requires_categoricals(host: Host) -> None:
    with pytest.raises(ValueError, match="names the column 'location', which is not among"):
        attach(host.predictor(), {"hidden_dims": (8,), "film": ("location",)})


def test_film_column_must_exist(host: Host) -> None:
    with pytest.raises(ValueError, match="names the column 'place', which is not among"):
        with_categories(host, {"hidden_dims": (8,), "film": ("place",)})


@pytest.mark.parametrize("fusion", ["concat", "add"])
def test_film_affects_predictions_with_any_fusion(host: Host, fusion: str) -> None:
    asked = {"hidden_dims": (8,), "film": ("location",), "scaler": ("season",)}
    model = with_categories(host, asked, categorical_fusion=fusion)
    with shaken(model.target_head):
        one, other = (predict(model, {**ids(), "location": torch.full((5,), place)}) for place in (1, 2))
    assert not torch.allclose(one, other)
