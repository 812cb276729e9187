"""From the arguments of an estimator to a configuration."""

from collections.abc import Mapping, Sequence
from typing import Any

from reghead.config import HeadConfig, LossConfig, NormalizerConfig, RegressionConfig
from reghead.estimators._table import resolve

_HEAD = (
    *("hidden_dims", "dropout", "activation", "norm", "residual", "embedding_dim", "scaler_compose", "non_crossing"),
    *("output_activation", "learnable_scale", "unknown_dropout"),
)
_COLUMNS = ("film", "scaler", "wide")
_LOSS = ("quantiles", "delta", "over_penalty", "under_penalty", "base", "expectile")


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
    head = HeadConfig(
        out_features=len(outputs),
        columns=columns,
        fusion=given.fusion if columns else None,
        moe=moe,
        bounds=None if by_logit else given.bounds,
        **fields,
    )
    chosen = {name: getattr(given, name) for name in _LOSS}
    loss = LossConfig(type=given.loss, per_output=given.per_output, outputs=outputs, **chosen)
    for name in _LOSS:
        if chosen[name] != getattr(LossConfig, name, None):
            loss.refuse_unused(name)
    normalizer = NormalizerConfig(
        by=resolve("normalize_by", given.normalize_by, names),
        shrinkage=given.shrinkage,
        fallback=given.fallback,
        transform=given.target_transform,
        bounds=given.bounds if by_logit else None,
    )
    return RegressionConfig(head=head, loss=loss, normalizer=normalizer).on_target_scale()
