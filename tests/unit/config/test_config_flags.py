"""Flags: what each does to the configuration, what it refuses, and that messages speak of flags."""

import argparse
import dataclasses
import json
import re
from pathlib import Path

import pytest

from reghead.config import (
    FLAGS,
    HeadConfig,
    LossConfig,
    MoEConfig,
    NormalizerConfig,
    RegressionConfig,
    add_arguments,
    config_from_args,
)

COLUMNS = ["--categorical-columns", "location,season"]
HIDDEN = ["--regressor-hidden-dims", "64,32"]


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(prog="reghead", exit_on_error=False)
    add_arguments(result)
    return result


def configure(*argv: str, outputs: tuple[str, ...] = ()) -> RegressionConfig:
    return config_from_args(parser().parse_args(argv), outputs=outputs)


def expected(**head: object) -> RegressionConfig:
    return RegressionConfig(head=HeadConfig(**head))  # type: ignore[arg-type]


def test_no_flags_are_the_defaults() -> None:
    assert configure() == RegressionConfig() == config_from_args({})


@pytest.mark.parametrize(
    ("argv", "head"),
    [
        ([*HIDDEN], {"hidden_dims": (64, 32)}),
        ([*HIDDEN, "--regressor-dropout", "0.1"], {"hidden_dims": (64, 32), "dropout": 0.1}),
        (["--regressor-dropout", "0"], {}),
        ([*HIDDEN, "--regressor-activation", "gelu"], {"hidden_dims": (64, 32), "activation": "gelu"}),
        ([*HIDDEN, "--regressor-norm", "layer"], {"hidden_dims": (64, 32), "norm": "layer"}),
        (["--regressor-norm", "none"], {}),
        ([*HIDDEN, "--residual-regression-head"], {"hidden_dims": (64, 32), "residual": True}),
        ([*COLUMNS], {"columns": ("location", "season"), "fusion": "concat"}),
        (["--categorical-columns", " location , season "], {"columns": ("location", "season"), "fusion": "concat"}),
        ([*COLUMNS, "--categorical-fusion", "add"], {"columns": ("location", "season"), "fusion": "add"}),
        ([*COLUMNS, "--categorical-fusion", "none"], {"columns": ("location", "season"), "fusion": None}),
        (["--categorical-fusion", "none"], {}),
        (
            [*COLUMNS, "--categorical-embed-dim", "4"],
            {"columns": ("location", "season"), "fusion": "concat", "embedding_dim": 4},
        ),
        (
            [*COLUMNS, *HIDDEN, "--film-conditioning", "location,season"],
            {
                "columns": ("location", "season"),
                "fusion": "concat",
                "hidden_dims": (64, 32),
                "film": ("location", "season"),
            },
        ),
        (
            [*COLUMNS, "--conditional-output-scaling", "season,location", "--scaling-compose", "additive"],
            {
                "columns": ("location", "season"),
                "fusion": "concat",
                "scaler": ("season", "location"),
                "scaler_compose": "additive",
            },
        ),
        (
            [*COLUMNS, "--wide-columns", "location"],
            {"columns": ("location", "season"), "fusion": "concat", "wide": ("location",)},
        ),
        (
            [*COLUMNS, "--unknown-dropout", "0.05"],
            {"columns": ("location", "season"), "fusion": "concat", "unknown_dropout": 0.05},
        ),
        (["--moe-experts", "4"], {"moe": MoEConfig(num_experts=4, route_features=True)}),
        (
            [*COLUMNS, "--moe-experts", "4", "--moe-routing", "location"],
            {
                "columns": ("location", "season"),
                "fusion": "concat",
                "moe": MoEConfig(num_experts=4, routing=("location",)),
            },
        ),
        (
            ["--moe-experts", "4", "--moe-gate", "top_k", "--moe-top-k", "3"],
            {"moe": MoEConfig(num_experts=4, route_features=True, gate="top_k", top_k=3)},
        ),
        (
            ["--moe-experts", "4", "--moe-temperature", "0.5", "--moe-load-balancing-weight", "0.01"],
            {"moe": MoEConfig(num_experts=4, route_features=True, temperature=0.5, load_balancing_weight=0.01)},
        ),
        (
            [*COLUMNS, "--moe-experts", "4", "--moe-routing", "location", "--moe-mix", "parameters"],
            {
                "columns": ("location", "season"),
                "fusion": "concat",
                "moe": MoEConfig(num_experts=4, routing=("location",), mix="parameters"),
            },
        ),
        (
            [*COLUMNS, "--wide-columns", "season", "--partial-pooling", "3"],
            {"columns": ("location", "season"), "fusion": "concat", "wide": ("season",), "partial_pooling": 3.0},
        ),
        ([*HIDDEN, "--ensemble", "8"], {"hidden_dims": (64, 32), "ensemble": 8}),
        (["--ensemble", "1"], {}),
        (["--output-activation", "softplus"], {"output_activation": "softplus"}),
        (["--output-activation", "none"], {}),
        (["--bounded-targets"], {"bounds": (0.0, 1.0)}),
        (["--learnable-output-scale"], {"learnable_scale": True}),
    ],
)
def test_what_a_flag_does_to_the_head(argv: list[str], head: dict[str, object]) -> None:
    assert configure(*argv) == expected(**head)


@pytest.mark.parametrize(
    ("argv", "loss"),
    [
        *(
            (["--loss-type", kind], {"type": kind})
            for kind in ("mse", "mae", "log_cosh", "expectile", "huber_quantile")
        ),
        (["--loss-type", "quantile"], {"type": "quantile", "quantiles": (0.1, 0.5, 0.9)}),
        (["--loss-type", "quantile", "--quantiles", "0.05, 0.95"], {"type": "quantile", "quantiles": (0.05, 0.95)}),
        (["--loss-type", "asymmetric", "--over-penalty", "2"], {"type": "asymmetric", "over_penalty": 2.0}),
        (["--loss-type", "asymmetric", "--under-penalty", "3"], {"type": "asymmetric", "under_penalty": 3.0}),
        (["--loss-type", "asymmetric", "--asymmetric-base", "mae"], {"type": "asymmetric", "base": "mae"}),
        (["--huber-delta", "2.5"], {"delta": 2.5}),
        (["--loss-type", "expectile", "--expectile", "0.9"], {"type": "expectile", "expectile": 0.9}),
        (
            ["--loss-config", '{"pH": "mse", "yield": {"type": "huber", "delta": 2}}'],
            {"per_output": {"pH": "mse", "yield": {"type": "huber", "delta": 2.0}}},
        ),
        (
            ["--loss-config", '{"yield": "quantile"}', "--quantiles", "0.2,0.8"],
            {"per_output": {"yield": "quantile"}, "quantiles": (0.2, 0.8)},
        ),
    ],
)
def test_what_a_flag_does_to_the_loss(argv: list[str], loss: dict[str, object]) -> None:
    assert configure(*argv) == RegressionConfig(loss=LossConfig(**loss))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("argv", "normalizer"),
    [
        ([], None),
        (["--no-normalize-targets"], None),
        (["--normalize-targets"], NormalizerConfig()),
        ([*COLUMNS, "--normalize-targets-by", "location,season"], NormalizerConfig(by=("location", "season"))),
        (
            [
                *COLUMNS,
                *("--normalize-targets-by", "location"),
                *("--normalize-shrinkage", "empirical_bayes"),
                *("--normalize-fallback", "additive"),
            ],
            NormalizerConfig(by=("location",), shrinkage="empirical_bayes", fallback="additive"),
        ),
        (["--normalize-targets", "--target-transform", "log1p"], NormalizerConfig(transform="log1p")),
        (["--target-transform", "log"], NormalizerConfig(transform="log")),
        (["--normalize-method", "mixed_effects"], NormalizerConfig(method="mixed_effects")),
        (["--normalize-method", "moments"], None),
        (
            [*COLUMNS, "--normalize-method", "mixed_effects", "--normalize-targets-by", "location,season"],
            NormalizerConfig(method="mixed_effects", by=("location", "season")),
        ),
        (["--target-transform", "identity"], None),
        (["--no-normalize-targets", "--target-transform", "identity"], None),
    ],
)
def test_what_a_flag_does_to_the_normalizer(argv: list[str], normalizer: NormalizerConfig | None) -> None:
    assert configure(*argv).normalizer == normalizer


def test_allow_crossing_frees_the_quantiles() -> None:
    config = configure("--loss-type", "quantile", "--allow-crossing")
    assert not config.head.non_crossing
    assert configure("--loss-type", "quantile").head.non_crossing


def test_the_names_of_the_outputs_count_them() -> None:
    config = configure("--loss-config", '{"1": "mse"}', outputs=("pH", "yield"))
    assert config.head.out_features == 2
    assert config.loss == LossConfig(per_output={"yield": {"type": "mse"}}, outputs=("pH", "yield"))


def test_the_loss_may_come_from_a_file(tmp_path: Path) -> None:
    for name in ("loss.json", "loss"):
        path = tmp_path / name
        path.write_text(json.dumps({"pH": "mse"}))
        assert configure("--loss-config", str(path)).loss == LossConfig(per_output={"pH": {"type": "mse"}})


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--regressor-hidden-dims", "64,x"], "must be integers separated by commas, such as 64,32, got '64,x'"),
        (["--regressor-hidden-dims", "64,"], "must be integers separated by commas, such as 64,32, got '64,'"),
        (["--regressor-hidden-dims", "64,0"], "[1] must be at least 1, got 0"),
        (["--regressor-dropout", "1"], "must be finite and >= 0 and < 1, got 1.0"),
        (["--regressor-dropout", "little"], "must be a number, got 'little'"),
        (["--regressor-activation", "rleu"], "did you mean 'relu'?"),
        (["--regressor-norm", "batch"], "must be one of 'none', 'layer', 'rms', got 'batch'"),
        (["--categorical-columns", "location,"], "must be column names separated by commas, such as location,season"),
        (["--categorical-columns", ""], "must be column names separated by commas, such as location,season, got ''"),
        (["--categorical-columns", "a,a"], "must not repeat a column, got ('a', 'a')"),
        (["--categorical-embed-dim", "0"], "must be at least 1, got 0"),
        (["--categorical-embed-dim", "1.5"], "must be an integer, got '1.5'"),
        (["--categorical-fusion", "sum"], "must be one of 'none', 'concat', 'add', got 'sum'"),
        (["--film-conditioning", ","], "must be column names separated by commas"),
        (["--conditional-output-scaling", ","], "must be column names separated by commas"),
        (["--scaling-compose", "sum"], "must be one of 'sequential', 'additive', got 'sum'"),
        (["--wide-columns", ","], "must be column names separated by commas"),
        (["--unknown-dropout", "-0.1"], "must be finite and >= 0 and < 1, got -0.1"),
        (["--moe-experts", "0"], "must be at least 1, got 0"),
        (["--moe-routing", ","], "must be column names separated by commas"),
        (["--moe-gate", "topk"], "must be one of 'soft', 'top_k', 'hard', got 'topk'; did you mean 'top_k'?"),
        (["--moe-top-k", "two"], "must be an integer, got 'two'"),
        (["--moe-temperature", "0"], "must be finite and > 0, got 0.0"),
        (["--moe-mix", "output"], "must be one of 'outputs', 'parameters', got 'output'; did you mean 'outputs'?"),
        (["--ensemble", "0"], "must be at least 1, got 0"),
        (["--partial-pooling", "-1"], "must be finite and >= 0, got -1.0"),
        (["--moe-load-balancing-weight", "-1"], "must be finite and >= 0, got -1.0"),
        (["--normalize-targets-by", ","], "must be column names separated by commas"),
        (["--normalize-shrinkage", "bayes"], "must be one of 'none', 'empirical_bayes', got 'bayes'"),
        (["--normalize-fallback", "parent"], "must be one of 'global', 'additive', got 'parent'"),
        (["--target-transform", "log2"], "must be one of 'identity', 'log', 'log1p', 'logit', 'softplus', 'clamp'"),
        (["--loss-type", "hubr"], "did you mean 'huber'?"),
        (["--quantiles", "0.1;0.9"], "must be numbers separated by commas, such as 0.1,0.5,0.9, got '0.1;0.9'"),
        (["--quantiles", "0.9,0.1"], "must be strictly increasing, without repeats, got (0.9, 0.1)"),
        (["--quantiles", "0.5,1"], "[1] must be finite and > 0 and < 1, got 1.0"),
        (["--over-penalty", "0"], "must be finite and > 0, got 0.0"),
        (["--under-penalty", "nan"], "must be finite and > 0, got nan"),
        (["--asymmetric-base", "mean"], "must be one of 'mse', 'mae', 'huber', got 'mean'"),
        (["--huber-delta", "-1"], "must be finite and > 0, got -1.0"),
        (["--expectile", "1"], "must be finite and > 0 and < 1, got 1.0"),
        (["--output-activation", "sigmoid"], "must be one of 'none', 'relu', 'softplus', 'exp', got 'sigmoid'"),
        (["--loss-config", "loss.json"], "the path of a JSON file; the file does not exist: 'loss.json'"),
        (["--loss-config", "mse"], "must be inline JSON that starts with {, or the path of a JSON file; it is neither"),
        (["--loss-config", '{"a": }'], "is not valid JSON at line 1, column 7: Expecting value"),
        (["--loss-config", '{"a": "mse", "a": "mae"}'], "the key 'a' appears twice in one object"),
        (["--loss-config", '{"a": "mze"}'], "value['a']['type'] must be one of"),
        (["--loss-config", '{"a": {"type": "huber", "k": 1}}'], "value['a'] has the parameter 'k', which the loss"),
        (["--loss-config", '{"a": 1}'], "value['a'] must be a loss type or a mapping with 'type'"),
    ],
)
def test_a_value_is_refused_alone_by_the_parser_and_by_the_mapping(argv: list[str], message: str) -> None:
    with pytest.raises(argparse.ArgumentError, match=re.escape(f"argument {argv[0]}: ")) as caught:
        parser().parse_args([f"{argv[0]}={argv[1]}"])
    assert message in str(caught.value)
    needed = {"moe_experts": "2", "categorical_columns": "c", "conditional_output_scaling": "c"}
    needed |= {"normalize_targets_by": "c", "regressor_hidden_dims": "4"}
    dest = argv[0].removeprefix("--").replace("-", "_")
    with pytest.raises((TypeError, ValueError), match=re.escape(argv[0])) as raised:
        config_from_args({**needed, dest: argv[1]})
    assert message.removeprefix("value") in str(raised.value)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--regressor-dropout", "0.1"], "--regressor-dropout acts on hidden layers and --regressor-hidden-dims gives"),
        (["--regressor-norm", "rms"], "--regressor-norm acts on hidden layers and --regressor-hidden-dims gives none"),
        (
            ["--residual-regression-head"],
            "--residual-regression-head acts on hidden layers and --regressor-hidden-dims gives none; give "
            "--regressor-hidden-dims (such as 64,32), or leave --residual-regression-head out",
        ),
        ([*COLUMNS, "--film-conditioning", "location"], "--film-conditioning acts on hidden layers and --regressor-hi"),
        (
            ["--regressor-activation", "relu"],
            "--regressor-activation does nothing without --regressor-hidden-dims; give --regressor-hidden-dims, or "
            "leave it out",
        ),
        (["--categorical-embed-dim", "16"], "--categorical-embed-dim does nothing without --categorical-columns"),
        (["--categorical-fusion", "add"], "--categorical-fusion joins embeddings to the features and needs --categor"),
        ([*COLUMNS, "--scaling-compose", "sequential"], "--scaling-compose does nothing without --conditional-output"),
        (
            [*COLUMNS, *HIDDEN, "--film-conditioning", "seson"],
            "--film-conditioning names the column 'seson', which is not among --categorical-columns ('location', "
            "'season'); did you mean 'season'?",
        ),
        (
            ["--conditional-output-scaling", "location"],
            "--conditional-output-scaling names the column 'location', which is not among --categorical-columns (none ",
        ),
        ([*COLUMNS, "--wide-columns", "x"], "--wide-columns names the column 'x', which is not among --categorical-co"),
        (
            [*COLUMNS, "--moe-experts", "2", "--moe-routing", "x"],
            "--moe-routing names the column 'x', which is not among --categorical-columns",
        ),
        (
            [*COLUMNS, "--normalize-targets-by", "x"],
            "--normalize-targets-by names the column 'x', which is not among --categorical-columns",
        ),
        (
            ["--unknown-dropout", "0.1"],
            "--unknown-dropout hides categories in training, but no part uses them; give --categorical-fusion, "
            "--film-conditioning, --conditional-output-scaling, --wide-columns or --moe-routing, or leave",
        ),
        *(
            ([f"--moe-{name}", value], f"--moe-{name} does nothing without --moe-experts; give --moe-experts, or leave")
            for name, value in (
                ("routing", "location"),
                ("gate", "soft"),
                ("mix", "outputs"),
                ("top-k", "2"),
                ("temperature", "1"),
                ("load-balancing-weight", "0"),
            )
        ),
        (
            ["--moe-experts", "2", "--moe-gate", "top_k", "--moe-top-k", "3"],
            "--moe-top-k must be at most --moe-experts = 2 with --moe-gate top_k, got 3",
        ),
        (
            ["--moe-experts", "2", "--moe-mix", "parameters", "--moe-gate", "hard"],
            "--moe-mix parameters makes one expert of all and needs --moe-gate soft, got --moe-gate hard; keep one of "
            "them, or choose --moe-mix outputs",
        ),
        (
            [*HIDDEN, "--ensemble", "2", "--moe-experts", "2"],
            "--ensemble and --moe-experts both take the place of the hidden layers",
        ),
        (["--ensemble", "2"], "--ensemble acts on hidden layers and --regressor-hidden-dims gives none"),
        (
            [*COLUMNS, "--partial-pooling", "1"],
            "--partial-pooling pulls categories to the population, but no part has effects of categories to pull; give "
            "--conditional-output-scaling or --wide-columns, or leave --partial-pooling out",
        ),
        (["--moe-experts", "4", "--moe-top-k", "2"], "--moe-top-k needs --moe-gate top_k, got --moe-gate soft"),
        (
            [*COLUMNS, "--normalize-targets", "--normalize-targets-by", "location"],
            "--normalize-targets and --normalize-targets-by exclude each other",
        ),
        (
            [*COLUMNS, "--no-normalize-targets", "--normalize-targets-by", "location"],
            "--no-normalize-targets and --normalize-targets-by exclude each other",
        ),
        (
            ["--no-normalize-targets", "--normalize-method", "mixed_effects"],
            "--normalize-method mixed_effects and --no-normalize-targets exclude each other",
        ),
        (
            [
                *COLUMNS,
                *("--normalize-targets-by", "location", "--normalize-shrinkage", "empirical_bayes"),
                *("--normalize-method", "mixed_effects"),
            ],
            "--normalize-shrinkage empirical_bayes is for --normalize-method moments; a mixed model shrinks and",
        ),
        (["--normalize-shrinkage", "none"], "--normalize-shrinkage does nothing without --normalize-targets-by"),
        (["--normalize-fallback", "global"], "--normalize-fallback does nothing without --normalize-targets-by"),
        (
            ["--no-normalize-targets", "--target-transform", "log"],
            "--target-transform log is part of the normalization that --no-normalize-targets turns off",
        ),
        (
            ["--target-transform", "log", "--output-activation", "exp"],
            "--output-activation and --target-transform log both shape the predictions; keep one of them",
        ),
        (
            ["--target-transform", "logit", "--bounded-targets"],
            "--bounded-targets and --target-transform logit both shape the predictions",
        ),
        (
            ["--bounded-targets", "--output-activation", "relu"],
            "--bounded-targets and --output-activation are both the last step of the head; keep one of them",
        ),
        (["--allow-crossing"], "--allow-crossing needs quantiles, and --loss-type huber predicts none"),
        (
            ["--quantiles", "0.1,0.5,0.9"],
            "--quantiles is for --loss-type quantile or huber_quantile, and no output takes it from here (--loss-type "
            "is huber); choose --loss-type quantile or huber_quantile, or leave --quantiles out",
        ),
        (["--over-penalty", "1"], "--over-penalty is for --loss-type asymmetric"),
        (["--under-penalty", "1"], "--under-penalty is for --loss-type asymmetric"),
        (["--asymmetric-base", "mse"], "--asymmetric-base is for --loss-type asymmetric"),
        (["--expectile", "0.5"], "--expectile is for --loss-type expectile"),
        (
            ["--loss-type", "mse", "--huber-delta", "1"],
            "--huber-delta is for --loss-type huber or asymmetric (with --asymmetric-base huber) or huber_quantile",
        ),
    ],
)
def test_flags_that_do_not_go_together_are_refused_in_their_own_words(argv: list[str], message: str) -> None:
    """Also at their default value: what is given explicitly is meant."""
    with pytest.raises(ValueError, match=re.escape(message)) as caught:
        configure(*argv)
    fields = {f"{field.name} " for kind in (HeadConfig, LossConfig, MoEConfig) for field in dataclasses.fields(kind)}
    spoken = re.sub(r"--[a-z-]+|'[^']*'", "", str(caught.value))
    assert not [field for field in fields if "_" in field and field in spoken]


def test_unknown_outputs_of_the_loss_are_refused_by_flag() -> None:
    message = "--loss-config names the output 'yeild', which is not among the outputs ('pH', 'yield'); did you mean 'yi"
    with pytest.raises(ValueError, match=re.escape(message)):
        configure("--loss-config", '{"yeild": "mse"}', outputs=("pH", "yield"))


def test_a_file_that_is_not_json_or_cannot_be_read_is_named(tmp_path: Path) -> None:
    bad = tmp_path / "bad.json"
    bad.write_text("{\n  'pH': 'mse'\n}")
    with pytest.raises(ValueError, match=r"--loss-config .*bad\.json is not valid JSON at line 2, column 3"):
        config_from_args({"loss_config": str(bad)})
    bad.write_bytes(b"\xff\xfe{}")
    with pytest.raises(ValueError, match=r"--loss-config cannot read '.*bad\.json'"):
        config_from_args({"loss_config": str(bad)})
    with pytest.raises(ValueError, match="--loss-config cannot read"):
        config_from_args({"loss_config": str(tmp_path)})
    bad.write_text("[1]")
    with pytest.raises(TypeError, match=r"bad\.json must map outputs to losses, such as .*, got \[1\]"):
        config_from_args({"loss_config": str(bad)})


def test_parsed_values_text_and_namespaces_are_read_alike() -> None:
    argv = [*COLUMNS, *HIDDEN, "--loss-type", "quantile", "--quantiles", "0.2,0.8", "--bounded-targets"]
    parsed = parser().parse_args(argv)
    text = {
        "categorical_columns": "location,season",
        "regressor_hidden_dims": "64,32",
        "loss_type": "quantile",
        "quantiles": "0.2,0.8",
        "bounded_targets": True,
    }
    assert config_from_args(parsed) == config_from_args(vars(parsed)) == config_from_args(text)


def test_other_arguments_and_switches_that_are_off_are_left_alone() -> None:
    args = {"epochs": 10, "bounded_targets": False, "learnable_output_scale": False, "quantiles": None}
    assert config_from_args(args) == RegressionConfig()


def test_a_switch_is_a_boolean() -> None:
    with pytest.raises(TypeError, match="--bounded-targets must be True or False, got 'yes'"):
        config_from_args({"bounded_targets": "yes"})
    with pytest.raises(TypeError, match="--normalize-targets must be True or False, got 1"):
        config_from_args({"normalize_targets": 1})


def test_what_is_not_given_is_none() -> None:
    assert set(vars(parser().parse_args([])).values()) == {None}


def test_the_help_lists_every_flag_with_its_default() -> None:
    text = " ".join(parser().format_help().split())
    for flag in FLAGS:
        assert flag.name in text
        assert f"(default: {flag.default})".replace(" ", "") in text.replace(" ", "")
    assert "routes by the features" in text


def test_flags_and_the_fields_they_fill_are_named_once() -> None:
    assert len({flag.name for flag in FLAGS}) == len({flag.field for flag in FLAGS}) == len(FLAGS)
    assert {flag.needs for flag in FLAGS} - {None} <= {flag.name for flag in FLAGS}


def test_every_field_is_reached_by_a_flag_or_given_by_the_data() -> None:
    not_flags = {
        "head.in_features",  # the data's
        "head.out_features",
        "head.cardinalities",
        "loss.outputs",
        "head.quantiles",  # the loss's
        "head.moe.route_features",  # what leaving out --moe-routing means
        "normalizer.bounds",  # those of --bounded-targets, on the target's own scale
    }
    parts = {"head": HeadConfig, "loss": LossConfig, "normalizer": NormalizerConfig, "head.moe": MoEConfig}
    fields = {f"{path}.{field.name}" for path, kind in parts.items() for field in dataclasses.fields(kind)}
    reached = {flag.field for flag in FLAGS} - {"normalizer"}
    assert fields - {"head.moe"} == reached | not_flags
    assert not reached & not_flags
