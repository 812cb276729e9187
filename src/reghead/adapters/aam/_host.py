"""How a SequencePredictor is built, read off a living one: what AAM's best_model.pt does not say."""

from typing import Any

_ENCODERS = {
    "asv": "base_model.sample_encoder.asv_encoder.transformer",
    "sample": "base_model.sample_encoder.sample_transformer",
    "encoder": "base_model.encoder_transformer",
    "count": "count_encoder",
    "target": "target_encoder",
}
_VALUES = {
    "encoder_type": "base_model.encoder_type",
    "base_output_dim": "base_model.base_output_dim",
    "predict_nucleotides": "base_model.predict_nucleotides",
    "token_limit": "base_model.sample_encoder.token_limit",
    "vocab_size": "base_model.sample_encoder.asv_encoder.vocab_size",
    "max_bp": "base_model.sample_encoder.asv_encoder.max_bp",
    "asv_chunk_size": "base_model.sample_encoder.asv_encoder.asv_chunk_size",
    "mask_ratio": "base_model.sample_encoder.asv_encoder.mask_ratio",
    "mask_strategy": "base_model.sample_encoder.asv_encoder.mask_strategy",
    "gradient_checkpointing": "target_encoder.gradient_checkpointing",
    "attn_implementation": "target_encoder.attn_implementation",
    "count_prediction": "count_prediction_enabled",
    "target_layer_norm": "target_layer_norm_enabled",
    **{
        name: name
        for name in (
            *("embedding_dim", "out_dim", "is_classifier", "count_embedding", "count_embedding_method"),
            *("cross_attn_heads", "perceiver_num_latents", "perceiver_num_layers", "categorical_fusion"),
        )
    },
}


def describe_host(model: Any) -> dict[str, Any]:
    """The arguments that build ``model`` without its head, as plain data; none if it is not built of AAM's parts."""
    try:
        arguments = {argument: _read(model, path) for argument, path in _VALUES.items()}
        for name, path in _ENCODERS.items():
            encoder = _read(model, path)
            if encoder is None:
                continue
            layer = encoder.encoder.layers[0]
            arguments |= {
                f"{name}_num_layers": len(encoder.encoder.layers),
                f"{name}_num_heads": layer.self_attn.num_heads,
                f"{name}_intermediate_size": layer.linear1.out_features,
                f"{name}_dropout": layer.dropout.p,
                f"{name}_activation": _activation(layer.activation),
            }
        embedder = model.categorical_embedder
        if embedder is not None:
            tables = {column: embedder.embeddings[column] for column in embedder.column_names}
            arguments["categorical_cardinalities"] = {c: table.num_embeddings for c, table in tables.items()}
            widths = {c: table.embedding_dim for c, table in tables.items()}
            # AAM takes one width, or one for each column, and builds the same from both.
            arguments["categorical_embed_dim"] = widths
            arguments["categorical_dropout"] = embedder.dropout.p
    except (AttributeError, IndexError):
        return {}
    return arguments


def _read(model: Any, path: str) -> Any:
    for name in path.split("."):
        model = getattr(model, name)
    return model


def _activation(function: Any) -> str:
    name = function if isinstance(function, str) else getattr(function, "__name__", type(function).__name__)
    return name.lower()
