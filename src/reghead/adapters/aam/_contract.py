"""What this adapter relies on in AAM, checked before anything is changed."""

import inspect
from typing import Any

from torch import nn

from reghead.normalization import CategoryNormalizer, MixedEffects

REVISION = "6f65d20"
"""The commit of AAM that the adapter is tested with."""

ATTRIBUTES = (
    *("base_model", "target_head", "embedding_dim", "out_dim", "is_classifier", "num_quantiles"),
    *("bounded_targets", "output_activation", "learnable_output_scale", "output_scale", "output_bias"),
    *("conditional_scaling_columns", "output_scales", "output_biases", "categorical_embedder", "categorical_fusion"),
)
FORWARD = ("tokens", "counts", "categorical_ids", "return_nucleotides", "return_sample_embeddings")
TRAINER = ("model", "loss_fn", "evaluator", "target_normalization_params")
TRAINER_METHODS = ("train_epoch", "_prepare_batch", "_log_to_tensorboard", "_save_val_predictions")
EVALUATOR_METHODS = ("_prepare_batch", "_denormalize_targets", "_extract_median_quantile")


def check_predictor(model: object) -> None:
    """Raise unless ``model`` is a SequencePredictor as the adapter knows it."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be AAM's SequencePredictor, got {type(model).__name__}")
    for wrapper in ("module", "_orig_mod"):
        if isinstance(getattr(model, wrapper, None), nn.Module):
            raise TypeError(
                f"model must be the SequencePredictor itself, got it inside a {type(model).__name__}; "
                "attach first, then wrap, compile, and make the optimizer"
            )
    missing = [name for name in ATTRIBUTES if not hasattr(model, name)]
    if missing:
        raise TypeError(_changed(type(model).__name__, f"lacks {', '.join(missing)}"))
    parameters = tuple(inspect.signature(model.forward).parameters)
    if parameters != FORWARD:
        raise TypeError(_changed(type(model).__name__, f"has forward({', '.join(parameters)})"))


def check_trainer(trainer: Any) -> None:
    """Raise unless ``trainer`` is a Trainer as the adapter knows it."""
    missing = [name for name in (*TRAINER, *TRAINER_METHODS) if not hasattr(trainer, name)]
    if not missing:
        missing = [f"evaluator.{name}" for name in EVALUATOR_METHODS if not hasattr(trainer.evaluator, name)]
    if missing:
        raise TypeError(_changed(type(trainer).__name__, f"lacks {', '.join(missing)}"))


def check_normalizer(normalizer: object, targets: int) -> None:
    """Raise unless ``normalizer`` is one that a checkpoint can carry, fitted on as many ``targets``."""
    if isinstance(normalizer, MixedEffects):
        raise TypeError(
            "normalizer must be a CategoryNormalizer, got MixedEffects, which predicts each training row from "
            "all others, while batches are normalized as they come; use "
            "CategoryNormalizer(..., shrinkage='empirical_bayes', fallback='additive')"
        )
    if not isinstance(normalizer, CategoryNormalizer):
        raise TypeError(f"normalizer must be a CategoryNormalizer, got {type(normalizer).__name__}")
    if not normalizer.is_fitted or normalizer.out_features != targets:
        raise ValueError(f"the normalizer must be fitted on the {targets} targets of the head, got {normalizer!r}")


def _changed(kind: str, how: str) -> str:
    return f"the {kind} is not the one this adapter knows, that of AAM at {REVISION}: it {how}"
