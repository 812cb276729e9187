"""NormalizerConfig and RegressionConfig: the parts checked against each other, and on whose scale a request is met."""

import re

import pytest

from reghead.config import HeadConfig, LossConfig, NormalizerConfig, RegressionConfig


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"shrinkage": "bayes"}, "shrinkage must be one of 'none', 'empirical_bayes', got 'bayes'"),
        ({"fallback": "parent"}, "fallback must be one of 'global', 'additive', got 'parent'"),
        ({"transform": "log2"}, "transform must be one of 'identity', 'log', 'log1p'"),
        (
            {"shrinkage": "empirical_bayes"},
            "shrinkage empirical_bayes acts on statistics per category and needs by; name its columns, or leave "
            "shrinkage out",
        ),
        ({"fallback": "additive"}, "fallback additive acts on statistics per category and needs by"),
        (
            {"bounds": (0, 1)},
            "bounds are for transform logit, got transform identity; choose logit, or leave bounds out",
        ),
        ({"bounds": (1, 0), "transform": "logit"}, "bounds must be (low, high) with low < high"),
        ({"by": ("a", "a")}, "by must not repeat a column"),
    ],
)
def test_normalizer_refusals(fields: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        NormalizerConfig(**fields)  # type: ignore[arg-type]


def test_logit_lies_between_0_and_1_unless_told() -> None:
    assert NormalizerConfig(transform="logit").bounds == (0.0, 1.0)
    assert NormalizerConfig(transform="logit", bounds=[0, 100]).bounds == (0.0, 100.0)  # type: ignore[arg-type]
    assert NormalizerConfig(by=["a"], fallback="additive", shrinkage="empirical_bayes").by == ("a",)  # type: ignore[arg-type]


def test_the_head_takes_its_quantiles_from_the_loss() -> None:
    config = RegressionConfig(loss=LossConfig(type="quantile", quantiles=(0.1, 0.9)))
    assert config.head.quantiles == (0.1, 0.9)
    assert RegressionConfig().head.quantiles is None
    assert RegressionConfig(head=HeadConfig(quantiles=(0.1, 0.9)), loss=config.loss) == config


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            {"head": {"quantiles": (0.1, 0.9)}},
            "head.quantiles must be the levels of the loss, got (0.1, 0.9) and a point loss (huber); leave "
            "head.quantiles out to take the loss's, or choose loss.type quantile with the same levels",
        ),
        (
            {"head": {"quantiles": (0.1, 0.9)}, "loss": {"type": "quantile"}},
            "head.quantiles must be the levels of the loss, got (0.1, 0.9) and (0.1, 0.5, 0.9)",
        ),
        (
            {"normalizer": {"by": ("location",)}, "head": {"columns": ("season",)}},
            "normalizer.by names the column 'location', which is not among head.columns ('season')",
        ),
        (
            {"normalizer": {"transform": "log"}, "head": {"output_activation": "exp"}},
            "head.output_activation and normalizer.transform log both shape the predictions; keep one of them",
        ),
        (
            {"normalizer": {"transform": "logit"}, "head": {"bounds": (0, 1)}},
            "head.bounds and normalizer.transform logit both shape the predictions; keep one of them",
        ),
        (
            {"loss": {"outputs": ("pH", "salt")}},
            "head.out_features must be the number of loss.outputs, got 1 for ('pH', 'salt')",
        ),
    ],
)
def test_parts_that_disagree_raise(config: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        RegressionConfig.from_dict(config)


@pytest.mark.parametrize("part", ["head", "loss", "normalizer"])
def test_a_part_of_the_wrong_kind_raises(part: str) -> None:
    with pytest.raises(TypeError, match=f"{part} must be a .*Config or a mapping, got 3 of type int"):
        RegressionConfig.from_dict({part: 3})


@pytest.mark.parametrize(
    ("head", "transform", "bounds"),
    [
        (HeadConfig(output_activation="exp"), "log", None),
        (HeadConfig(output_activation="softplus"), "softplus", None),
        (HeadConfig(output_activation="relu"), "clamp", None),
        (HeadConfig(bounds=(0.0, 5.0)), "logit", (0.0, 5.0)),
        (HeadConfig(), "identity", None),
    ],
)
def test_with_a_normalizer_a_request_moves_to_the_targets_own_scale(
    head: HeadConfig, transform: str, bounds: tuple[float, float] | None
) -> None:
    """A relu on z-scores could never predict below a category's mean."""
    moved = RegressionConfig(head=head, normalizer=NormalizerConfig()).on_target_scale()
    assert moved.normalizer == NormalizerConfig(transform=transform, bounds=bounds)  # type: ignore[arg-type]
    assert moved.head == HeadConfig()
    assert moved.on_target_scale() == moved


@pytest.mark.parametrize("head", [HeadConfig(output_activation="relu"), HeadConfig(bounds=(0.0, 1.0)), HeadConfig()])
def test_without_a_normalizer_a_request_stays_in_the_head(head: HeadConfig) -> None:
    config = RegressionConfig(head=head)
    assert config.on_target_scale() == config


def test_moving_keeps_the_rest() -> None:
    config = RegressionConfig(
        head=HeadConfig(columns=("location",), hidden_dims=(8,), output_activation="exp"),
        loss=LossConfig(type="quantile"),
        normalizer=NormalizerConfig(by=("location",), shrinkage="empirical_bayes"),
    )
    moved = config.on_target_scale()
    assert moved.loss == config.loss
    assert moved.head == HeadConfig(columns=("location",), hidden_dims=(8,), quantiles=(0.1, 0.5, 0.9))
    assert moved.normalizer == NormalizerConfig(by=("location",), shrinkage="empirical_bayes", transform="log")


def test_with_data_names_the_outputs_and_counts_them() -> None:
    config = RegressionConfig(head=HeadConfig(columns=("location",)), loss=LossConfig(per_output={1: "quantile"}))  # type: ignore[dict-item]
    filled = config.with_data(in_features=8, cardinalities={"location": 4}, outputs=["pH", "yield"])
    assert filled.head == HeadConfig(
        in_features=8,
        out_features=2,
        columns=("location",),
        cardinalities={"location": 4},
        quantiles=(0.1, 0.5, 0.9),
    )
    assert filled.loss.per_output == {"yield": {"type": "quantile"}}
    assert config.with_data(out_features=3).head.out_features == 3


def test_naming_the_outputs_can_leave_no_quantile_to_predict() -> None:
    config = RegressionConfig(loss=LossConfig(type="quantile", per_output={"pH": "mse"}))
    assert config.head.quantiles == (0.1, 0.5, 0.9)
    assert config.with_data(outputs=["pH"]).head.quantiles is None
