"""A head of reghead in a SequencePredictor, and out of it again."""

import copy
import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from reghead._checks import check_columns
from reghead.adapters.aam._carry import carry_over
from reghead.adapters.aam._contract import check_normalizer, check_predictor
from reghead.adapters.aam._head import NAMES, TargetHead
from reghead.adapters.aam._host import describe_host
from reghead.adapters.aam._predictor import AttachedPredictor, NoEmbedder, attached_class, plain_class
from reghead.adapters.aam._request import requested_config
from reghead.categories import CategoryEncoder
from reghead.config import HeadConfig
from reghead.heads import RegressionHead
from reghead.normalization import CategoryNormalizer

NEUTRAL = {
    **dict.fromkeys(("output_scale", "output_bias", "output_scales", "output_biases"), None),
    "conditional_scaling_columns": None,
    "learnable_output_scale": False,
    "bounded_targets": False,
    "output_activation": "none",
}


@dataclasses.dataclass
class Replaced:
    """What was in the model before; not a module, so that no ``state_dict`` has it."""

    target_head: nn.Module
    values: dict[str, Any]


def attach(
    model: nn.Module,
    config_or_head: HeadConfig | Mapping[str, Any] | RegressionHead,
    *,
    cardinalities: Mapping[str, int] | None = None,
    keep_weights: bool = False,
    encoder: CategoryEncoder | None = None,
    normalizer: CategoryNormalizer | None = None,
    outputs: Sequence[str] = (),
) -> nn.Module:
    """Put a head of reghead into an existing SequencePredictor, in the place of its ``target_head``.

    ``forward`` keeps its signature and its output. The head owns all that comes after the pooled embedding: AAM's
    conditional scaling, learnable scale, bounds and activation move into it, where they act on quantiles as well.
    Categories reach the head under every fusion, and also in a model that has none of its own. Everything is checked
    before the model changes. Wrap, compile and make the optimizer afterwards: they hold on to the parameters they see.

    Args:
        model: AAM's SequencePredictor.
        config_or_head: A :class:`~reghead.config.HeadConfig`, or its fields in a mapping, where ``out_features`` and
            ``cardinalities`` may be left out; or a :class:`~reghead.heads.RegressionHead`, whose weights are copied.
        cardinalities: Number of ids of the columns that the head uses and the model does not, id 0 included.
        keep_weights: Start from the weights of the head that is replaced, so that predictions stay what they are. The
            new head must have its layers; FiLM and scaling, the identity at the start, may be added, bounds and
            activations not.
        encoder: The labels behind the ids, which then travel in the checkpoint.
        normalizer: A fitted one, which brings predictions back to the target's units; it travels in the checkpoint.
        outputs: Names of the targets.

    Returns:
        ``model``, whose class is now a subclass of what it was.

    Raises:
        TypeError: If ``model`` is not a SequencePredictor, or is inside a wrapper; or an argument has the wrong type.
        ValueError: If a head was attached before, or the request does not fit the model or itself.

    Example:
        >>> model = SequencePredictor(categorical_cardinalities={"location": 4})  # doctest: +SKIP
        >>> model = attach(model, {"hidden_dims": (64, 32), "film": ["location"]})  # doctest: +SKIP
        >>> model(tokens, categorical_ids={"location": ids})["target_prediction"].shape  # doctest: +SKIP
        torch.Size([8, 1])
    """
    check_plain(model)
    host: Any = model
    if isinstance(config_or_head, RegressionHead) and config_or_head.encoder is not None:
        if encoder is not None and encoder.to_dict() != config_or_head.encoder.to_dict():
            raise ValueError("the head that was given has labels of its own, which encoder= contradicts; leave it out")
        encoder = config_or_head.encoder
    config = requested_config(host, config_or_head, cardinalities, encoder)
    if normalizer is not None:
        check_normalizer(normalizer, config.out_features)
    outputs = check_columns("outputs", outputs)
    if outputs and len(outputs) != config.out_features:
        raise ValueError(f"outputs must name the {config.out_features} targets of the head, got {list(outputs)}")
    weight = next(host.target_head.parameters())
    head = TargetHead.from_config(config, encoder=encoder, device=weight.device, dtype=weight.dtype)
    if isinstance(config_or_head, RegressionHead):
        head.load_state_dict(_renamed(config_or_head, head))
    if keep_weights:
        carry_over(host, head)
    # A copy: refitting the caller's normalizer must not move predictions.
    head.equip(normalizer=copy.deepcopy(normalizer), outputs=outputs, host=describe_host(host))
    return install(model, head)


def check_plain(model: nn.Module) -> None:
    """Raise unless ``model`` is a SequencePredictor with its own head."""
    if isinstance(model, AttachedPredictor):
        raise ValueError("the model has a head of reghead already; detach(model) first")
    check_predictor(model)


def install(model: nn.Module, head: TargetHead) -> nn.Module:
    """Put ``head``, which fits, into ``model``."""
    host: Any = model
    quantiles = head.config.quantiles
    changed: dict[str, Any] = {**NEUTRAL, "num_quantiles": None if quantiles is None else len(quantiles)}
    if head.config.columns and host.categorical_embedder is None:
        # AAM's Trainer asks for an embedder before it hands out categories; with this fusion nobody asks it for more.
        changed |= {"categorical_embedder": NoEmbedder(), "categorical_fusion": "gmu"}
    head.replaced = Replaced(host.target_head, {name: getattr(host, name) for name in changed})
    head.to(next(model.parameters()).device).train(host.target_head.training)
    for name, value in {**changed, "target_head": head}.items():
        setattr(host, name, value)
    kind: Any = type(model)
    host.__class__ = attached_class(kind)
    return model


def detach(model: nn.Module) -> nn.Module:
    """Give back the SequencePredictor as it was before :func:`attach`, with its own head and the weights it had.

    A model that :func:`load_predictor` built never had a head of AAM's that was trained; it gets one at its start.

    Raises:
        TypeError: If no head of reghead is attached.

    Example:
        >>> type(detach(attach(SequencePredictor(), {}))).__name__  # doctest: +SKIP
        'SequencePredictor'
    """
    if not isinstance(model, AttachedPredictor):
        raise TypeError(f"model must be one that attach returned, got {type(model).__name__}")
    host: Any = model
    head = model.target_head
    weight = next(head.parameters())
    host.__class__ = plain_class(type(model))
    for name, value in {**head.replaced.values, "target_head": head.replaced.target_head}.items():
        if isinstance(value, nn.Module):
            value.to(weight.device, weight.dtype).train(head.training)
        elif isinstance(value, nn.Parameter):
            value.data = value.data.to(weight.device, weight.dtype)
        setattr(host, name, value)
    return model


def _renamed(source: RegressionHead, head: TargetHead) -> dict[str, Any]:
    """The weights of ``source`` under the names of ``head``."""
    renamed = {}
    for name, tensor in source.state_dict().items():
        part, dot, rest = name.partition(".")
        renamed[name if isinstance(source, TargetHead) else NAMES.get(part, part) + dot + rest] = tensor
    return {**renamed, "_extra_state": head.get_extra_state()}
