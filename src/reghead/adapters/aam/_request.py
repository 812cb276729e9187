"""From what is asked of a head, and what the model has, to one configuration."""

from collections.abc import Mapping
from typing import Any

from reghead.categories import CategoryEncoder
from reghead.config import HeadConfig
from reghead.heads import RegressionHead


def requested_config(
    model: Any,
    asked: HeadConfig | Mapping[str, Any] | RegressionHead,
    cardinalities: Mapping[str, int] | None,
    encoder: CategoryEncoder | None,
) -> HeadConfig:
    """The configuration of the head for ``model``, with what its own output path asks for."""
    known = _known(model, cardinalities, encoder)
    if isinstance(asked, RegressionHead):
        config = asked.config
    elif isinstance(asked, HeadConfig):
        config = asked
    elif isinstance(asked, Mapping):
        config = HeadConfig.from_dict({"out_features": model.out_dim, "cardinalities": known or None, **asked})
    else:
        raise TypeError(
            f"config_or_head must be a HeadConfig, its fields in a mapping, or a RegressionHead, got {asked!r}"
        )
    for name, wanted, has in (
        ("in_features", config.in_features or model.embedding_dim, model.embedding_dim),
        ("out_features", config.out_features, model.out_dim),
    ):
        if wanted != has:
            raise ValueError(f"the head must have {name}={has}, as the model has, got {wanted}")
    fields = {**vars(config), "in_features": model.embedding_dim, **_inherited(model, config)}
    if isinstance(asked, RegressionHead) and {**vars(config), **_inherited(model, config)} != vars(config):
        raise ValueError(
            "the model scales or shapes its output by itself, and the head that was given does not; "
            "build the model without, or give a HeadConfig, which takes these over"
        )
    columns = _used(fields)
    missing = [c for c in columns if c not in known and c not in (config.cardinalities or {})]
    if missing:
        raise ValueError(
            f"the head uses the column {missing[0]!r}, of which the model does not know the number of ids "
            f"(it has {', '.join(map(repr, known)) or 'no columns'}); pass cardinalities={{{missing[0]!r}: ...}}"
        )
    merged = {**known, **(config.cardinalities or {})}
    for column, number in known.items():
        if merged[column] != number:
            raise ValueError(
                f"the column {column!r} has {number} ids in the model or its encoder, and {merged[column]} in the head"
            )
    fields |= {"columns": columns, "cardinalities": {c: merged[c] for c in columns} or None}
    final = HeadConfig.from_dict(fields)
    _refuse_for_classes(model, final)
    return final


def _known(model: Any, cardinalities: Mapping[str, int] | None, encoder: CategoryEncoder | None) -> dict[str, int]:
    embedder = model.categorical_embedder
    known = {} if embedder is None else {c: embedder.embeddings[c].num_embeddings for c in embedder.column_names}
    sources = {"cardinalities": cardinalities or {}, "encoder": {} if encoder is None else encoder.cardinalities}
    for name, source in sources.items():
        for column, number in source.items():
            if known.setdefault(column, number) != number:
                raise ValueError(
                    f"{name} has {number} ids of the column {column!r}, and the model {known[column]}; "
                    "they must be those of the encoder that makes the ids"
                )
    return known


def _inherited(model: Any, config: HeadConfig) -> dict[str, Any]:
    """What the model does to its output now, which is the head's work from here on."""
    taken: dict[str, Any] = {}
    own_activation = None if model.output_activation == "none" else model.output_activation
    for name, wanted, has in (
        ("scaler", config.scaler or None, tuple(model.conditional_scaling_columns or ()) or None),
        ("output_activation", config.output_activation, own_activation),
        ("bounds", config.bounds, (0.0, 1.0) if model.bounded_targets and not model.is_classifier else None),
        ("learnable_scale", config.learnable_scale or None, model.learnable_output_scale or None),
    ):
        if has is None:
            continue
        if wanted is not None and wanted != has:
            raise ValueError(f"the model has {name}={has!r} and the head asks for {wanted!r}; leave one of them out")
        taken[name] = has
    return taken


def _used(fields: Mapping[str, Any]) -> tuple[str, ...]:
    """The columns that a part of the head uses."""
    moe = fields["moe"]
    parts = (*fields["film"], *fields["scaler"], *fields["wide"], *(moe.routing if moe is not None else ()))
    return tuple(dict.fromkeys([*(fields["columns"] if fields["fusion"] else ()), *parts]))


def _refuse_for_classes(model: Any, config: HeadConfig) -> None:
    if not model.is_classifier:
        return
    for name, asked in (
        ("quantiles", config.quantiles is not None),
        ("output_activation", config.output_activation is not None),
        ("bounds", config.bounds is not None),
    ):
        if asked:
            raise ValueError(
                f"a classifier ends in AAM's log-softmax over classes, and {name} is for regression; leave it out"
            )
