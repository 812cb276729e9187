"""What a head refuses, and in which words."""

import re
from typing import Any

import numpy as np
import pytest
import torch

from reghead.config import HeadConfig
from reghead.heads import RegressionHead

SIZES = {"location": 4, "season": 3}


@pytest.mark.parametrize(
    ("options", "kind", "message"),
    [
        ({"hidden_dims": (4, 0)}, ValueError, r"hidden_dims[1] must be at least 1, got 0"),
        ({"hidden_dims": (-2,)}, ValueError, r"hidden_dims[0] must be at least 1, got -2"),
        ({"hidden_dims": (4.0,)}, TypeError, r"hidden_dims[0] must be an integer, got 4.0 of type float"),
        (
            {"hidden_dims": "64,32"},
            TypeError,
            "hidden_dims must be a sequence of integers such as (64, 32), got '64,32'",
        ),
        ({"hidden_dims": 64}, TypeError, "hidden_dims must be a sequence of integers such as (64, 32), got 64"),
        ({"hidden_dims": (4,), "dropout": 1.0}, ValueError, "dropout must be finite and >= 0 and < 1, got 1.0"),
        ({"hidden_dims": (4,), "dropout": -0.1}, ValueError, "dropout must be finite and >= 0 and < 1, got -0.1"),
        ({"in_features": 0}, ValueError, "in_features must be at least 1, got 0"),
        ({"in_features": None}, TypeError, "in_features must be an integer, got None"),
        ({"out_features": 0}, ValueError, "out_features must be at least 1, got 0"),
        ({"activation": "rely"}, ValueError, "did you mean 'relu'?"),
        ({"quantiles": (0.0, 0.5)}, ValueError, "quantiles[0] must be finite and > 0 and < 1, got 0.0"),
        ({"quantiles": (0.5, 1.0)}, ValueError, "quantiles[1] must be finite and > 0 and < 1, got 1.0"),
        ({"quantiles": (0.5, 0.5)}, ValueError, "quantiles must be strictly increasing, without repeats"),
        ({"quantiles": (0.9, 0.1)}, ValueError, "use sorted(set(levels))"),
        ({"quantiles": ()}, ValueError, "quantiles must hold at least one level, got none"),
        ({"bounds": (1.0, 0.0)}, ValueError, "bounds must be (low, high) with low < high, got (1.0, 0.0)"),
        ({"unknown_dropout": 1.0, "scaler": ["location"]}, ValueError, "unknown_dropout must be finite"),
        ({"scaler": ["locaton"]}, ValueError, "scaler names the column 'locaton', which is not among"),
        ({"wide": ["planet"]}, ValueError, "wide names the column 'planet'"),
        ({"film": ["planet"], "hidden_dims": (4,)}, ValueError, "film names the column 'planet'"),
        ({"moe": {"num_experts": 2, "routing": ["planet"]}}, ValueError, "moe.routing names the column 'planet'"),
        ({"moe": {"num_experts": 2}}, ValueError, "the router sees nothing"),
        ({"scaler": "location"}, TypeError, "scaler must be a sequence of column names"),
        ({"cardinalities": {"location": 0}}, ValueError, "cardinalities['location'] must be at least 1, got 0"),
    ],
)
def test_constructor_refuses(options: dict[str, Any], kind: type[Exception], message: str) -> None:
    arguments = {"in_features": 3, "out_features": 2, "cardinalities": SIZES, **options}
    with pytest.raises(kind, match=re.escape(message)):
        RegressionHead(**arguments)


def test_a_misspelt_column_is_answered_with_the_nearest() -> None:
    with pytest.raises(ValueError, match="did you mean 'location'"):
        RegressionHead(3, 2, cardinalities=SIZES, scaler=["locaton"])


def test_numpy_integers_are_integers() -> None:
    head = RegressionHead(np.int64(3), np.int32(2), (np.int64(4),), cardinalities={"location": np.int64(4)})
    assert head(torch.zeros(1, 3)).shape == (1, 2)
    assert type(head.config.hidden_dims[0]) is int
    RegressionHead.from_state_dict(head.state_dict())


@pytest.mark.parametrize("options", [{}, {"hidden_dims": (4,)}, {"moe": {"num_experts": 2, "route_features": True}}])
@pytest.mark.parametrize("shape", [(5, 4), (3, 5), ()])
def test_features_of_another_width(options: dict[str, Any], shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=rf"x must have shape \(\*, in_features\).* = 3, got {re.escape(str(shape))}"):
        RegressionHead(3, 2, **options)(torch.zeros(shape))


PARTS: dict[str, dict[str, Any]] = {
    "scaler": {"scaler": ["location"]},
    "wide": {"wide": ["location"]},
    "film": {"film": ["location"], "hidden_dims": (4,)},
    "fusion-concat": {"fusion": "concat"},
    "fusion-add": {"fusion": "add"},
    "moe": {"moe": {"num_experts": 2, "routing": ["location"]}},
    "unknown_dropout": {"scaler": ["location"], "unknown_dropout": 0.5},
}
WRONG_IDS = [
    (None, TypeError, r"needs categories: a mapping from column to ids with 'location'.*got None; pass id 0"),
    ([torch.ones(2)], TypeError, "needs categories: a mapping from column to ids.*got list"),
    (
        {"season": torch.ones(2, dtype=torch.int64)},
        ValueError,
        "needs the column 'location' in categories, got 'season'",
    ),
    ({"location": None}, TypeError, r"categories\['location'\] must be a tensor of integer ids.*got NoneType"),
    ({"location": [1, 1]}, TypeError, r"categories\['location'\] must be a tensor of integer ids.*got list"),
    ({"location": torch.ones(2)}, TypeError, r"must be a tensor of integer ids \(torch.int64\), got torch.float32"),
    ({"location": torch.ones(2, dtype=torch.bool)}, TypeError, "must be a tensor of integer ids.*got torch.bool"),
    ({"location": torch.tensor([0, 4])}, ValueError, r"must hold ids in \[0, 4\), got 4; an unseen label is id 0"),
    ({"location": torch.tensor([-1, 0])}, ValueError, r"must hold ids in \[0, 4\), got -1"),
    ({"location": torch.ones(3, dtype=torch.int64)}, ValueError, r"must have the leading dimensions.*got .*\(3,"),
    ({"location": torch.ones(2, 1, dtype=torch.int64)}, ValueError, "must have the leading dimensions"),
]


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize(("categories", "kind", "message"), WRONG_IDS)
def test_wrong_categories_are_refused_by_every_part(part: str, categories: Any, kind: Any, message: str) -> None:
    head = RegressionHead(3, 2, cardinalities={"location": 4}, **PARTS[part])
    with pytest.raises(kind, match=message):
        head(torch.zeros(2, 3), categories)


def test_a_wrong_id_does_not_pass_by_luck_when_its_row_is_hidden() -> None:
    head = RegressionHead(3, 2, cardinalities={"location": 4}, scaler=["location"], unknown_dropout=0.99)
    with pytest.raises(ValueError, match="must hold ids in"):
        head(torch.zeros(1, 3), {"location": torch.tensor([7])})


@pytest.mark.parametrize("part", [part for part in PARTS if part != "unknown_dropout"])
def test_a_wrong_id_is_read_as_unknown_where_values_are_not_looked_at(part: str) -> None:
    torch._dynamo.reset()
    head = RegressionHead(3, 2, cardinalities={"location": 4}, **PARTS[part]).eval()
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.add_(0.5)
    x = torch.ones(4, 3)
    compiled = torch.compile(head, fullgraph=True, backend="eager")
    out = compiled(x, {"location": torch.tensor([4, -1, 10**9, 1])})
    torch.testing.assert_close(out, head(x, {"location": torch.tensor([0, 0, 0, 1])}))


def test_extra_columns_are_ignored_whatever_they_hold() -> None:
    head = RegressionHead(3, 2, cardinalities=SIZES, scaler=["location"])
    x, location = torch.zeros(2, 3), torch.tensor([1, 2])
    extra = {"season": torch.tensor([99]), "planet": None, "location": location}
    assert torch.equal(head(x, extra), head(x, {"location": location}))


def test_ids_of_one_row_for_many_do_not_broadcast() -> None:
    head = RegressionHead(3, 2, cardinalities=SIZES, wide=["location", "season"])
    with pytest.raises(ValueError, match="the ids of all columns must have one shape"):
        head(torch.zeros(2, 3), {"location": torch.tensor([1, 2]), "season": torch.tensor([1])})


def test_from_config_needs_what_the_data_knows() -> None:
    with pytest.raises(ValueError, match="config lacks in_features or cardinalities"):
        RegressionHead.from_config(HeadConfig(in_features=3, columns=("location",), scaler=("location",)))
    with pytest.raises(ValueError, match="config lacks in_features or cardinalities"):
        RegressionHead.from_config(HeadConfig())
