"""From the arguments of an estimator to a configuration, and back."""

from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import numpy as np

from reghead._checks import check_choice
from reghead.config import HeadConfig, LossConfig, NormalizerConfig, RegressionConfig
from reghead.config._base import Config, OptionError
from reghead.config._loss import LOSS_TYPES
from reghead.config._normalizer import METHODS
from reghead.estimators._table import resolve
from reghead.estimators._training import TrainingOptions

C = TypeVar("C", bound=Config)

_HEAD = (
    *("hidden_dims", "dropout", "activation", "norm", "residual", "embedding_dim", "scaler_compose", "non_crossing"),
    *("output_activation", "learnable_scale", "unknown_dropout", "partial_pooling", "ensemble"),
)
_MEMBERS = 8
_COLUMNS = ("film", "scaler", "wide")
_LOSS = ("quantiles", "delta", "over_penalty", "under_penalty", "base", "expectile")
_SPELLING = {  # fields that an estimator has other names for
    "columns": "categories",
    "head.columns": "categories",
    "type": "loss",
    "loss.type": "loss",
    "by": "normalize_by",
    "normalizer.by": "normalize_by",
    "method": "normalize",
    "normalizer.method": "normalize",
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
    fields |= {"columns": columns, "fusion": given.fusion if columns else None, "moe": moe}
    fields |= {"out_features": len(outputs), "bounds": None if by_logit else given.bounds}
    plain = _build(HeadConfig, **fields | {"unknown_dropout": 0.0, "ensemble": 1})
    if not (plain.fusion or any(getattr(plain, name) for name in _COLUMNS) or (plain.moe and plain.moe.routing)):
        fields["unknown_dropout"] = 0.0  # nothing uses categories, and nothing has to be told of unknown ones
    if isinstance(given.ensemble, str):
        check_auto("ensemble", given.ensemble)
        fields["ensemble"] = _MEMBERS if plain.hidden_dims and plain.moe is None else 1
    head = _build(HeadConfig, **fields)
    loss = _make_loss(given, outputs)
    check_choice("normalize", given.normalize, (*METHODS, None))
    by = resolve("normalize_by", given.normalize_by, names)
    if given.normalize == "mixed_effects" and len(by) == 1:
        raise ValueError(
            f"a mixed model has effects of every column, so normalize_by {list(by)} says nothing; name two or more, "
            "whose combinations then have effects, or set normalize='moments'"
        )
    normalizer = _build(
        NormalizerConfig,
        method=given.normalize or "moments",
        by=by,
        shrinkage=given.shrinkage,
        fallback=given.fallback,
        transform=given.target_transform,
        bounds=given.bounds if by_logit else None,
    )
    if given.normalize is None and normalizer != NormalizerConfig():
        raise ValueError(
            "normalize=None leaves the target on its own scale, and normalize_by, shrinkage, fallback and "
            "target_transform ask for another; keep one of them"
        )
    used = None if given.normalize is None else normalizer
    config = _build(RegressionConfig, head=head, loss=loss, normalizer=used)
    return config.on_target_scale()


def check_auto(name: str, value: str) -> None:
    """Raise unless ``value``, of an argument that is a number otherwise, leaves the choice to us."""
    if value != "auto":
        raise ValueError(f"{name} must be an integer or 'auto', got {value!r}")


def arguments_of(config: RegressionConfig, options: TrainingOptions) -> dict[str, Any]:
    """The arguments of an estimator that :func:`make_config` makes ``config`` of."""
    head, loss, normalizer = config.head, config.loss, config.normalizer or NormalizerConfig()
    fields = {name: getattr(head, name) for name in (*_HEAD, *_COLUMNS, "moe", "fusion")}
    fields |= {name: getattr(loss, name) for name in (*_LOSS, "per_output")}
    if loss.quantiles is not None and not loss.uses("quantiles"):
        fields["quantiles"] = None
    fields |= {"shrinkage": normalizer.shrinkage, "fallback": normalizer.fallback}
    fields |= {"normalize_by": normalizer.by, "target_transform": normalizer.transform}
    fields |= {"categories": head.columns, "loss": loss.type}
    fields["normalize"] = None if config.normalizer is None else normalizer.method
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
