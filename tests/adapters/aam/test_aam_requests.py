"""What attach refuses, before anything has changed."""

import copy
from typing import Any

import pytest
import torch
from torch import nn

from adapters._hosts import HOSTS, Host, host_named
from reghead import RegressionHead
from reghead.adapters.aam import attach
from reghead.config import HeadConfig
from reghead.normalization import CategoryNormalizer

pytestmark = pytest.mark.filterwarnings("ignore:scaler and learnable_scale:reghead.RedundantOptionWarning")

MLP = {"regressor_hidden_dims": [8, 4]}
SCALED = {"conditional_scaling_columns": ["season", "location"], "learnable_output_scale": True}


@pytest.fixture(params=HOSTS)
def host(request: pytest.FixtureRequest) -> Host:
    return host_named(request.param)


NAMES = {"location": 4, "season": 3}


@pytest.mark.parametrize(
    ("own", "asked", "options", "error", "message"),
    [
        ({}, {"out_features": 2}, {}, ValueError, "must have out_features=1, as the model has, got 2"),
        ({}, {"in_features": 8}, {}, ValueError, "must have in_features=16, as the model has, got 8"),
        ({}, {"film": ("location",)}, {}, ValueError, "film acts on hidden layers"),
        ({}, {"scaler": ("place",)}, {}, ValueError, "names the column 'place', which is not among"),
        ({}, HeadConfig(columns=("place",), scaler=("place",)), {}, ValueError, "pass cardinalities={'place': ...}"),
        ({}, {}, {"cardinalities": {"season": 9}}, ValueError, "9 ids of the column 'season', and the model 3"),
        (
            {},
            HeadConfig(cardinalities={"season": 9}, scaler=("season",)),
            {},
            ValueError,
            "3 ids in the model or its encoder, and 9 in the head",
        ),
        ({"bounded_targets": True}, {"bounds": (0.0, 2.0)}, {}, ValueError, r"has bounds=\(0.0, 1.0\) and the head"),
        ({"bounded_targets": True}, {"output_activation": "exp"}, {}, ValueError, "keep one of them"),
        ({"output_activation": "relu"}, {"output_activation": "exp"}, {}, ValueError, "'relu' and the head asks"),
        ({"output_activation": "relu"}, RegressionHead(16, 1), {}, ValueError, "or give a HeadConfig"),
        (SCALED, {"scaler": ("season",)}, {}, ValueError, "leave one of them out"),
        ({"out_dim": 3, "is_classifier": True}, {"quantiles": (0.5,)}, {}, ValueError, "log-softmax over classes"),
        ({"out_dim": 3, "is_classifier": True}, {"bounds": (0, 1)}, {}, ValueError, "bounds is for regression"),
        ({}, {"hidden_dims": (8,)}, {"keep_weights": True}, ValueError, "needs a head with the layers of the old"),
        ({}, {"fusion": "add"}, {"keep_weights": True}, ValueError, "fusion makes it another"),
        ({}, {"quantiles": (0.1,)}, {"keep_weights": True}, ValueError, "non_crossing=True makes it another"),
        (MLP, {"hidden_dims": (8, 4), "activation": "gelu"}, {"keep_weights": True}, ValueError, "activation='gelu'"),
        ({}, {}, {"outputs": ["a", "b"]}, ValueError, "outputs must name the 1 targets"),
        (
            {},
            {},
            {"normalizer": CategoryNormalizer().fit(torch.eye(2))},
            ValueError,
            "the normalizer must be fitted on the 1 targets of the head, got Category",
        ),
        ({}, {}, {"normalizer": CategoryNormalizer()}, ValueError, "the normalizer must be fitted on the 1 targets"),
        ({}, {}, {"normalizer": nn.Identity()}, TypeError, "must be a CategoryNormalizer, got Identity"),
        ({}, {}, {"outputs": "y"}, TypeError, "outputs must be a sequence of column names .* got 'y'"),
        ({"out_dim": 2}, {}, {"outputs": ["y", "y"]}, ValueError, "outputs must not repeat a column"),
        (
            SCALED,
            {"scaler_compose": "additive"},
            {"keep_weights": True},
            ValueError,
            "scaler_compose='additive' makes it another",
        ),
        (
            {"num_quantiles": 1, "bounded_targets": True},
            {"quantiles": (0.5,), "non_crossing": False},
            {"keep_weights": True},
            ValueError,
            r"bounds=\(0.0, 1.0\) makes it another",
        ),
        (
            {},
            {"output_activation": "softplus"},
            {"keep_weights": True},
            ValueError,
            "output_activation='softplus' makes it another",
        ),
        ({}, "linear", {}, TypeError, "config_or_head must be a HeadConfig, its fields in a mapping"),
    ],
)
def test_what_is_refused_changes_nothing(
    host: Host, own: Any, asked: Any, options: Any, error: type[Exception], message: str
) -> None:
    model = host.predictor(categorical_cardinalities=NAMES, **own)
    before, kind, values = copy.deepcopy(model.state_dict()), type(model), dict(vars(model))
    with pytest.raises(error, match=message):
        attach(model, asked, **options)
    assert type(model) is kind
    assert model.state_dict().keys() == before.keys()
    assert all(torch.equal(model.state_dict()[name], before[name]) for name in before)
    assert vars(model).keys() == values.keys()


def test_only_a_sequence_predictor_takes_a_head_and_only_once(host: Host) -> None:
    model = host.predictor()
    with pytest.raises(TypeError, match="model must be AAM's SequencePredictor, got dict"):
        attach({}, {})  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"the Linear is not the one .* that of AAM at 6f65d20: it lacks"):
        attach(nn.Linear(1, 1), {})
    for wrapped in (nn.DataParallel(model), torch.compile(model, backend="eager")):
        with pytest.raises(TypeError, match="attach first, then wrap, compile, and make the optimizer"):
            attach(wrapped, {})  # type: ignore[arg-type]
    attach(model, {})
    with pytest.raises(ValueError, match=r"has a head of reghead already; detach\(model\) first"):
        attach(model, {})


def test_another_forward_is_told_at_once(host: Host) -> None:
    class Newer(host.SequencePredictor):  # type: ignore[misc, name-defined]
        def forward(self, tokens: Any, environment: Any = None) -> Any:
            return {}

    torch.manual_seed(0)
    with pytest.raises(TypeError, match=r"it has forward\(tokens, environment\)"):
        attach(Newer(embedding_dim=16), {})
