"""What ``reghead-aam train`` is asked for, understood and checked before any data is loaded."""

import dataclasses
from collections.abc import Collection, Mapping
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from reghead.config import FLAGS, HeadConfig, LossConfig, NormalizerConfig, RegressionConfig, config_from_args
from reghead.normalization import CategoryNormalizer, TargetTransform

Method: TypeAlias = Literal["none", "minmax", "zscore"]

# What AAM's own training is told: its head, its loss and its normalization are out of the way.
NEUTRAL: dict[str, Any] = {
    "target_transform": "none",
    "normalize_by": None,
    "normalize_targets": True,
    "normalize_targets_by": None,
    "log_transform_targets": False,
    "bounded_targets": False,
    "output_activation": "none",
    "loss_type": "huber",
    "quantiles": None,
    "over_penalty": 1.0,
    "under_penalty": 1.0,
    "loss_config": None,
    "regressor_hidden_dims": None,
    "regressor_dropout": 0.0,
    "residual_regression_head": False,
    "conditional_output_scaling": None,
    "learnable_output_scale": False,
}
AAM_ONLY = ("--categorical-fusion", "--target-transform", "--normalize-targets", "--normalize-method")
"""Flags of reghead that are AAM's here, or that need features which AAM's table does not have."""
OURS = tuple(flag for flag in FLAGS if flag.name not in AAM_ONLY)
_RELU = "leave it out, or if the least target is 0 choose --output-activation relu"
_DOMAINS = {
    "logit": (
        "--bounded-targets with z-scores",
        "strictly between 0 and 1",
        "leave it out, or have it bound by the range of the training targets, with --target-transform minmax and "
        "without --normalize-by or --normalize-targets-by",
    ),
    "log": ("--output-activation exp with z-scores", "above 0", _RELU),
    "softplus": ("--output-activation softplus with z-scores", "above 0", _RELU),
    "clamp": ("--output-activation relu with z-scores", "of at least 0", "leave it out"),
    "log1p": (
        "the logarithm of the targets",
        "above -1",
        "leave it out, which is log- in --target-transform, or --log-transform-targets",
    ),
}
"""What asked for a transform, the targets that it takes, and what to do about others."""
_NORMALIZER = ("normalize_targets_by", "normalize_shrinkage", "normalize_fallback")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """Everything that the flags say, without the data.

    Args:
        outputs: The columns of the metadata to predict.
        columns: The categorical columns that the model takes.
        head: What the head is made of.
        loss: What is minimised.
        method: On what scale: the target's own, that of its range, or of its mean and standard deviation.
        normalizer: The rest of the scale: columns, transform, shrinkage, fallback.
    """

    outputs: tuple[str, ...]
    columns: tuple[str, ...]
    head: HeadConfig
    loss: LossConfig
    method: Method
    normalizer: NormalizerConfig

    @property
    def labels(self) -> tuple[str, ...]:
        """All columns of the metadata whose labels matter."""
        return tuple(dict.fromkeys([*self.columns, *self.normalizer.by]))

    @property
    def levels(self) -> list[list[float]]:
        """The levels that each target reports; none for one that has a point."""
        spec = self.loss.spec
        entries = spec["losses"] if spec["type"] == "per_output" else {}
        default = spec["default"] if spec["type"] == "per_output" else spec
        return [list(entries.get(name, default).get("quantiles", ())) for name in self.outputs]

    @property
    def scale(self) -> dict[str, Any]:
        """The scale of the targets as plain data."""
        return {"scaled_by": self.method, **self.normalizer.to_dict()}

    def check_targets(self, targets: Tensor) -> None:
        """Raise unless the scale takes all ``targets``, of shape ``(N, D)``; the message speaks of flags."""
        transform = TargetTransform(self.normalizer.transform, self.normalizer.bounds)
        for name, values in zip(self.outputs, targets.unbind(-1), strict=True):
            try:
                transform.check(values)
            except ValueError as error:
                asked, domain, instead = _DOMAINS[transform.kind]
                raise ValueError(
                    f"{asked} needs targets {domain}, and those of {name!r} go from {float(values.min()):g} to "
                    f"{float(values.max()):g}; {instead}"
                ) from error

    def fit_normalizer(
        self, target: Tensor, categories: Mapping[str, Tensor], cardinalities: Mapping[str, int]
    ) -> CategoryNormalizer | None:
        """The fitted normalizer of training targets of shape ``(N, D)``, or None where they stay as they are."""
        if self.method == "zscore":
            return CategoryNormalizer.from_config(self.normalizer, cardinalities).fit(target, categories)
        if self.method == "none" and self.normalizer.transform == "identity":
            return None
        transform = TargetTransform(self.normalizer.transform, self.normalizer.bounds)
        if self.method == "none":
            low, span = torch.zeros(1, target.shape[1]), torch.ones(1, target.shape[1])
        else:
            values = transform.forward(target)
            low, high = values.amin(dim=0, keepdim=True), values.amax(dim=0, keepdim=True)
            span = torch.where(high > low, high - low, 1.0)
        # Two rows with this mean and this standard deviation: (u - low) / span is then what normalizes.
        rows = torch.cat([low - span / 2**0.5, low + span / 2**0.5]).double()
        return CategoryNormalizer(transform=transform.kind, bounds=transform.bounds).fit(transform.inverse(rows))


def make_plan(values: Mapping[str, Any], given: Collection[str]) -> Plan:
    """Understand the flags of ``reghead-aam train``.

    Args:
        values: Every flag's value by its name in Python, as click parsed it.
        given: The names that stand on the command line.

    Raises:
        TypeError: If a value has the wrong type.
        ValueError: If a value or a combination is refused; the message speaks of flags.
    """
    if values.get("classifier"):
        raise ValueError("reghead-aam trains regression; for --classifier use aam train")
    outputs = _split("--metadata-column", values["metadata_column"])
    if "out_dim" in given and values["out_dim"] != len(outputs):
        raise ValueError(
            f"--out-dim must be the number of columns of --metadata-column, {len(outputs)}, got {values['out_dim']}; "
            "leave it out"
        )
    if "categorical_fusion" in given and not values.get("categorical_columns"):
        raise ValueError("--categorical-fusion does nothing without --categorical-columns; give it, or leave it out")
    asked = {flag.dest: values.get(flag.dest) for flag in OURS if flag.dest not in _NORMALIZER}
    # AAM fuses before it pools; the head needs no fusion of its own.
    config = config_from_args({**asked, "categorical_fusion": "none"}, outputs=outputs)
    method, normalizer = _scale(values, given)
    head, normalizer = _shaped(config.head, method, normalizer)
    return Plan(
        outputs=outputs,
        columns=config.head.columns,
        head=head,
        loss=config.loss,
        method=method,
        normalizer=normalizer,
    )


def _scale(values: Mapping[str, Any], given: Collection[str]) -> tuple[Method, NormalizerConfig]:
    """The scale of the targets, from AAM's flags for it, old and new."""
    whole = "--normalize-targets" if values.get("normalize_targets", True) else "--no-normalize-targets"
    if "normalize_targets" in given and values.get("normalize_targets_by"):
        raise ValueError(
            f"{whole} and --normalize-targets-by exclude each other: one scale for all, none, or one for each "
            "category; keep one of them"
        )
    chosen = values.get("target_transform")
    old = [
        flag
        for flag, asked in (
            (whole, "normalize_targets" in given),
            ("--normalize-targets-by", bool(values.get("normalize_targets_by"))),
            ("--log-transform-targets", bool(values.get("log_transform_targets"))),
        )
        if asked
    ]
    if chosen is not None and old:
        raise ValueError(f"--target-transform {chosen} says all of it; leave {old[0]} out")
    if values.get("normalize_by") and values.get("normalize_targets_by"):
        raise ValueError("--normalize-by and --normalize-targets-by are one flag by two names; keep one of them")
    by_flag = "--normalize-by" if values.get("normalize_by") else "--normalize-targets-by"
    text = values.get("normalize_by") or values.get("normalize_targets_by")
    by = _split(by_flag, text) if text else ()
    if chosen is None:
        log = "log-" if values.get("log_transform_targets") else ""
        if values.get("normalize_targets_by"):
            chosen = "log-zscore" if log else "zscore-category"
        else:
            chosen = log + ("minmax" if values.get("normalize_targets", True) else "none")
    scale: Any = chosen.removeprefix("log-").removesuffix("-category")
    if chosen == "zscore-category" and not by:
        raise ValueError("--target-transform zscore-category needs --normalize-by, such as --normalize-by location")
    if by and scale != "zscore":
        raise ValueError(
            f"{by_flag} is for --target-transform zscore-category or log-zscore, and it is {chosen} here; "
            "choose one of them, or leave it out"
        )
    if by and chosen == "zscore":
        raise ValueError(f"--target-transform zscore is one scale for all; with {by_flag} choose zscore-category")
    refined = {name: values.get(f"normalize_{name}") for name in ("shrinkage", "fallback")}
    for name, choice in refined.items():
        if choice is not None and not by:
            raise ValueError(f"--normalize-{name} does nothing without --normalize-by; give it, or leave it out")
    options: dict[str, Any] = {name: choice for name, choice in refined.items() if choice is not None}
    options["transform"] = "log1p" if chosen.startswith("log-") else "identity"
    return scale, NormalizerConfig(by=by, **options)


def _shaped(head: HeadConfig, method: Method, normalizer: NormalizerConfig) -> tuple[HeadConfig, NormalizerConfig]:
    """Where what bounds the predictions acts: on the range of the targets, or on the target's own scale."""
    asked = head.bounds is not None or head.output_activation is not None
    flag = "--bounded-targets" if head.bounds is not None else f"--output-activation {head.output_activation}"
    if normalizer.transform != "identity":
        if head.output_activation is not None or (asked and method != "minmax"):
            raise ValueError(
                f"{flag} and the logarithm of the targets both shape the predictions; leave one of them out"
            )
        # As AAM does: beyond the range of the training targets the exponential runs away.
        return (dataclasses.replace(head, bounds=(0.0, 1.0)) if method == "minmax" else head), normalizer
    if method != "zscore" or not asked:
        return head, normalizer
    scaled = RegressionConfig(head=head, loss=_loss_of(head), normalizer=NormalizerConfig()).on_target_scale()
    assert scaled.normalizer is not None
    own = scaled.normalizer
    return scaled.head, dataclasses.replace(normalizer, transform=own.transform, bounds=own.bounds)


def _loss_of(head: HeadConfig) -> LossConfig:
    return LossConfig() if head.quantiles is None else LossConfig(type="quantile", quantiles=head.quantiles)


def _split(flag: str, text: str) -> tuple[str, ...]:
    items = tuple(item.strip() for item in text.split(","))
    if "" in items or len(set(items)) != len(items):
        raise ValueError(f"{flag} must be different column names separated by commas, got {text!r}")
    return items
