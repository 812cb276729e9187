"""From the arguments of an estimator to a configuration, and back."""

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

from reghead._checks import check_choice
from reghead.config import HeadConfig, LossConfig, NormalizerConfig, RegressionConfig
from reghead.config._base import Config, OptionError
from reghead.config._loss import LOSS_TYPES
from reghead.estimators._table import resolve
from reghead.estimators._training import TrainingOptions

C = TypeVar("C", bound=Config)

_HEAD = (
    *("hidden_dims", "dropout", "activation", "norm", "residual", "embedding_dim", "scaler_compose", "non_crossing"),
    *("output_activation", "learnable_scale", "unknown_dropout", "partial_pooling", "ensemble"),
)
_COLUMNS = ("film", "scaler", "wide")
_LOSS = ("quantiles", "delta", "over_penalty", "under_penalty", "base", "expectile")
_SPELLING = {  # fields that an estimator has other names for
    "columns": "categories",
    "head.columns": "categories",
    "type": "loss",
    "loss.type": "loss",
    "by": "normalize_by",
    "normalizer.by": "normalize_by",
    "transform": "target_transform",
    "normalizer.transform": "target_transform",
}


def make_config(given: Any, names: Sequence[str], outputs: tuple[str, ...]) -> RegressionConfig:
    """What the arguments ``given`` (an estimator's attributes) ask for, on the target's own scale.

    Args:
        given: Has the arguments as attributes.
        names: The columns of X.
        outputs: The names of the targets.
    """
    columns = resolve("categories", given.categories, names)
    moe = given.moe
    if isinstance(moe, Mapping) and moe.get("routing"):
        moe = {**moe, "routing": resolve("moe['routing']", moe["routing"], names)}
    by_logit = given.target_transform == "logit"
    fields: dict[str, Any] = {name: resolve(name, getattr(given, name), names) for name in _COLUMNS}
    fields |= {name: getattr(given, name) for name in _HEAD}
    head = _build(
        HeadConfig,
        out_features=len(outputs),
        columns=columns,
        fusion=given.fusion if columns else None,
        moe=moe,
        bounds=None if by_logit else given.bounds,
        **fields,
    )
    loss = _make_loss(given, outputs)
    normalizer = _build(
        NormalizerConfig,
        method="mixed_effects" if given.mixed_effects else "moments",
        by=resolve("normalize_by", given.normalize_by, names),
        shrinkage=given.shrinkage,
        fallback=given.fallback,
        transform=given.target_transform,
        bounds=given.bounds if by_logit else None,
    )
    if not given.normalize and normalizer != NormalizerConfig():
        raise ValueError(
            "normalize=False leaves the target on its own scale, and normalize_by, mixed_effects, shrinkage, fallback "
            "and target_transform ask for another; keep one of them"
        )
    config = _build(RegressionConfig, head=head, loss=loss, normalizer=normalizer if given.normalize else None)
    return config.on_target_scale()


def arguments_of(config: RegressionConfig, options: TrainingOptions) -> dict[str, Any]:
    """The arguments of an estimator that :func:`make_config` makes ``config`` of."""
    head, loss, normalizer = config.head, config.loss, config.normalizer or NormalizerConfig()
    fields = {name: getattr(head, name) for name in (*_HEAD, *_COLUMNS, "moe", "fusion")}
    fields |= {name: getattr(loss, name) for name in (*_LOSS, "per_output")}
    if loss.quantiles is not None and not loss.uses("quantiles"):
        fields["quantiles"] = None
    fields |= {"shrinkage": normalizer.shrinkage, "fallback": normalizer.fallback}
    fields |= {"normalize_by": normalizer.by, "target_transform": normalizer.transform}
    fields |= {"categories": head.columns, "loss": loss.type, "normalize": config.normalizer is not None}
    fields["mixed_effects"] = normalizer.method == "mixed_effects"
    return fields | {"bounds": head.bounds or normalizer.bounds, **vars(options)}


def _make_loss(given: Any, outputs: tuple[str, ...]) -> LossConfig:
    check_choice("loss", given.loss, LOSS_TYPES)
    chosen = {name: getattr(given, name) for name in _LOSS}
    if isinstance(chosen["quantiles"], np.ndarray):
        chosen["quantiles"] = chosen["quantiles"].tolist()
    loss = _build(LossConfig, type=given.loss, per_output=given.per_output, outputs=outputs, **chosen)
    try:
        for name in _LOSS:
            if chosen[name] != getattr(LossConfig, name, None):
                loss.refuse_unused(name)
    except OptionError as error:
        raise _in_arguments(error) from error
    return loss


def _build(kind: type[C], **fields: Any) -> C:
    try:
        return kind(**fields)
    except OptionError as error:
        raise _in_arguments(error) from error


def _in_arguments(error: OptionError) -> ValueError:
    return ValueError(error.spelled(lambda field: _SPELLING.get(field, field.rpartition(".")[2])))
