"""The flags of ``reghead-aam train``: what they mean, and what is refused before any data is loaded."""

import math
from typing import Any

import pytest
import torch
from torch.testing import assert_close

from reghead.adapters.aam._plan import make_plan

DEFAULTS: dict[str, Any] = {
    "metadata_column": "y",
    "out_dim": 1,
    "classifier": False,
    "target_transform": None,
    "normalize_by": None,
    "normalize_targets": True,
    "log_transform_targets": False,
    "categorical_fusion": "concat",
}
PLACES = {"location": torch.tensor([1, 1, 2, 2])}


def plan_of(**values: Any) -> Any:
    return make_plan({**DEFAULTS, **values}, list(values))


def test_without_flags_it_is_aams_default() -> None:
    plan = plan_of()
    assert plan.method == "minmax"
    assert plan.loss.type == "huber"
    assert plan.head.hidden_dims == ()
    assert plan.levels == [[]]


def test_flags_of_the_head_reach_its_configuration() -> None:
    plan = plan_of(
        categorical_columns="location, season",
        regressor_hidden_dims="64,32",
        regressor_dropout="0.1",
        residual_regression_head=True,
        film_conditioning="location",
        conditional_output_scaling="season",
        moe_experts="4",
        moe_routing="location",
    )
    assert plan.head.hidden_dims == (64, 32)
    assert (plan.head.dropout, plan.head.residual) == (0.1, True)
    assert (plan.head.film, plan.head.scaler) == (("location",), ("season",))
    assert plan.head.moe is not None
    assert (plan.head.moe.num_experts, plan.head.moe.routing) == (4, ("location",))
    assert plan.head.fusion is None  # AAM fuses, once


def test_losses_per_column_by_name_with_quantiles_and_asymmetry() -> None:
    config = '{"pH": "quantile", "yield": {"type": "asymmetric", "over_penalty": 2.0}}'
    plan = plan_of(metadata_column="pH, yield", loss_config=config)
    assert plan.outputs == ("pH", "yield")
    assert plan.head.quantiles == (0.1, 0.5, 0.9)
    assert plan.levels == [[0.1, 0.5, 0.9], []]
    assert plan.loss.spec["losses"]["yield"]["base"] == "mse"


def test_the_loss_of_every_column_comes_from_a_file(tmp_path: Any) -> None:
    (tmp_path / "loss.json").write_text('{"y": "mae"}')
    assert plan_of(loss_config=str(tmp_path / "loss.json")).loss.spec["losses"] == {"y": {"type": "mae"}}


TARGET = torch.tensor([[1.0], [3.0], [10.0], [14.0]], dtype=torch.float64)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({}, [0.0, 2 / 13, 9 / 13, 1.0]),
        ({"normalize_targets": True}, [0.0, 2 / 13, 9 / 13, 1.0]),
        ({"target_transform": "none"}, [1.0, 3.0, 10.0, 14.0]),
        ({"normalize_targets": False}, [1.0, 3.0, 10.0, 14.0]),
        ({"log_transform_targets": True, "normalize_targets": False}, [math.log1p(y) for y in (1, 3, 10, 14)]),
        ({"target_transform": "log-minmax"}, [0.0, math.log(2) / math.log(7.5), math.log(5.5) / math.log(7.5), 1.0]),
        ({"target_transform": "zscore-category", "normalize_by": "location"}, [-(0.5**0.5), 0.5**0.5] * 2),
        ({"normalize_targets_by": "location"}, [-(0.5**0.5), 0.5**0.5] * 2),
        ({"normalize_targets_by": "location", "log_transform_targets": True}, [-(0.5**0.5), 0.5**0.5] * 2),
    ],
)
def test_the_scale_of_the_targets(values: Any, expected: list[float]) -> None:
    normalizer = plan_of(**values).fit_normalizer(TARGET, PLACES, {"location": 3})
    z = TARGET if normalizer is None else normalizer(TARGET, PLACES)
    assert_close(z.flatten(), torch.tensor(expected, dtype=torch.float64))
    if normalizer is not None:
        assert_close(normalizer.inverse(z, PLACES), TARGET)


def test_one_mean_and_standard_deviation_for_all() -> None:
    normalizer = plan_of(target_transform="zscore").fit_normalizer(TARGET, {}, {})
    assert normalizer is not None
    assert_close(normalizer(TARGET), (TARGET - 7.0) / TARGET.std())


def test_the_range_of_a_constant_target_is_one() -> None:
    normalizer = plan_of().fit_normalizer(torch.full((3, 1), 5.0, dtype=torch.float64), {}, {})
    assert normalizer is not None
    assert_close(
        normalizer(torch.tensor([[5.0], [6.0]], dtype=torch.float64)).flatten().float(), torch.tensor([0.0, 1])
    )


def test_columns_of_the_scale_need_not_be_inputs() -> None:
    plan = plan_of(target_transform="zscore-category", normalize_by="plot", categorical_columns="location")
    assert plan.columns == ("location",)
    assert plan.labels == ("location", "plot")


def test_bounds_act_on_the_range_of_the_targets_or_on_their_own_scale() -> None:
    assert plan_of(bounded_targets=True).head.bounds == (0.0, 1.0)
    scaled = plan_of(bounded_targets=True, target_transform="zscore")
    assert scaled.head.bounds is None
    assert (scaled.normalizer.transform, scaled.normalizer.bounds) == ("logit", (0.0, 1.0))
    positive = plan_of(output_activation="softplus", normalize_targets_by="location", loss_type="quantile")
    assert (positive.head.output_activation, positive.normalizer.transform) == (None, "softplus")
    assert positive.normalizer.by == ("location",)
    assert plan_of(output_activation="relu").head.output_activation == "relu"
    assert plan_of(target_transform="log-minmax").head.bounds == (0.0, 1.0)


ZSCORE = {"target_transform": "zscore"}


@pytest.mark.parametrize(
    ("values", "inside", "outside", "message"),
    [
        (
            {**ZSCORE, "bounded_targets": True},
            [0.1, 0.9],
            [0.5, 1.0],
            r"--bounded-targets with z-scores needs targets strictly between 0 and 1, and those of 'b' go from "
            r"0\.5 to 1; leave it out, or have it bound .* --target-transform minmax and without --normalize-by",
        ),
        (
            {**ZSCORE, "output_activation": "exp"},
            [0.1, 9.0],
            [0.0, 2.0],
            r"--output-activation exp with z-scores needs targets above 0, .* go from 0 to 2; leave it out, or .* relu",
        ),
        (
            {**ZSCORE, "output_activation": "softplus"},
            [0.1, 9.0],
            [0.0, 2.0],
            "--output-activation softplus with z-scores needs targets above 0, .*; leave it out, or .* choose --output",
        ),
        (
            {**ZSCORE, "output_activation": "relu"},
            [0.0, 9.0],
            [-1.0, 2.0],
            "--output-activation relu with z-scores needs targets of at least 0, .* go from -1 to 2; leave it out",
        ),
        (
            {"target_transform": "log-minmax"},
            [-0.5, 9.0],
            [-1.0, 2.0],
            "logarithm of the targets needs targets above -1, .*; leave it out, which is log- in --target-transform",
        ),
        ({"bounded_targets": True}, [-5.0, 500.0], None, ""),
        (ZSCORE, [-5.0, 500.0], None, ""),
    ],
)
def test_targets_that_the_scale_does_not_take_are_told_in_flags(
    values: Any, inside: list[float], outside: list[float] | None, message: str
) -> None:
    plan = plan_of(metadata_column="a,b", **values)
    good = torch.tensor(inside, dtype=torch.float64)
    plan.check_targets(torch.stack([good, good], dim=-1))
    if outside is not None:
        with pytest.raises(ValueError, match=message):
            plan.check_targets(torch.stack([good, torch.tensor(outside, dtype=torch.float64)], dim=-1))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"classifier": True}, "for --classifier use aam train"),
        ({"metadata_column": "y,y"}, "--metadata-column must be different column names"),
        ({"out_dim": 3}, "--out-dim must be the number of columns of --metadata-column, 1, got 3; leave it out"),
        ({"categorical_fusion": "add"}, "--categorical-fusion does nothing without --categorical-columns"),
        ({"film_conditioning": "location", "categorical_columns": "location"}, "--regressor-hidden-dims"),
        ({"film_conditioning": "place", "regressor_hidden_dims": "8"}, "--film-conditioning names the column 'place'"),
        ({"conditional_output_scaling": "place"}, "--conditional-output-scaling names the column 'place'"),
        ({"residual_regression_head": True}, "--residual-regression-head acts on hidden layers"),
        ({"regressor_dropout": "0.1"}, "--regressor-dropout acts on hidden layers"),
        ({"regressor_hidden_dims": "8,,4"}, "--regressor-hidden-dims must be integers separated by commas"),
        ({"moe_routing": "location"}, "--moe-routing does nothing without --moe-experts"),
        ({"quantiles": "0.1,0.9"}, "--quantiles is for --loss-type quantile"),
        ({"quantiles": "0.9,0.1", "loss_type": "quantile"}, "write 0.1,0.9"),
        ({"over_penalty": "2"}, "--over-penalty is for --loss-type asymmetric"),
        ({"over_penalty": "nan", "loss_type": "asymmetric"}, "must be finite and > 0"),
        ({"loss_config": '{"pH": "mse"}'}, "--loss-config names the output 'pH', which is not among the outputs"),
        ({"bounded_targets": True, "output_activation": "exp"}, "--bounded-targets and --output-activation"),
        (
            {"normalize_targets": True, "normalize_targets_by": "location"},
            "--normalize-targets and --normalize-targets-by exclude each other",
        ),
        (
            {"normalize_targets": False, "normalize_targets_by": "location"},
            "--no-normalize-targets and --normalize-targets-by exclude each other",
        ),
        (
            {"target_transform": "minmax", "log_transform_targets": True},
            "--target-transform minmax says all of it; leave --log-transform-targets out",
        ),
        (
            {"normalize_by": "location", "normalize_targets_by": "season"},
            "--normalize-by and --normalize-targets-by are one flag by two names",
        ),
        ({"target_transform": "none", "normalize_targets": False}, "leave --no-normalize-targets out"),
        ({"target_transform": "zscore-category"}, "--target-transform zscore-category needs --normalize-by"),
        ({"normalize_by": "location"}, "is for --target-transform zscore-category or log-zscore, and it is minmax"),
        ({"normalize_by": "location", "target_transform": "zscore"}, "is one scale for all; with --normalize-by"),
        ({"normalize_by": "a,", "target_transform": "zscore-category"}, "--normalize-by must be different column"),
        ({"normalize_shrinkage": "empirical_bayes"}, "--normalize-shrinkage does nothing without --normalize-by"),
        (
            {"target_transform": "log-zscore", "output_activation": "relu"},
            "--output-activation relu and the logarithm of the targets both shape the predictions",
        ),
        ({"target_transform": "log-zscore", "bounded_targets": True}, "--bounded-targets and the logarithm"),
    ],
)
def test_what_is_refused(values: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plan_of(**values)
