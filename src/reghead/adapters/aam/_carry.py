"""From the weights of AAM's head to those of reghead's, so that predictions stay what they were."""

import warnings
from typing import Any

import torch
from torch import Tensor, nn

from reghead._warnings import RegheadWarning
from reghead.adapters.aam._head import TargetHead
from reghead.nn import MLP
from reghead.nn._part import name_in


@torch.no_grad()
def carry_over(model: Any, head: TargetHead) -> None:
    """Give ``head`` the weights of the output path of ``model``, which may not change them.

    Raises:
        ValueError: If the head is of another kind, so that there is nothing to give it.
    """
    config = head.config
    # AAM bounds and shapes points alone, and what it does the head has taken over.
    shaped = config.bounds is not None or config.output_activation is not None
    same_shape = model.num_quantiles is None and (model.bounded_targets or model.output_activation != "none")
    additive = config.scaler_compose == "additive" and len(config.scaler) > 1
    for option, asked in (
        ("fusion", config.fusion is not None),
        ("moe", config.moe is not None),
        ("ensemble", config.ensemble > 1),
        ("norm", config.norm is not None),
        (f"activation={config.activation!r}", bool(config.hidden_dims) and config.activation != "relu"),
        ("non_crossing=True", config.quantiles is not None and config.non_crossing),
        ("scaler_compose='additive'", additive and model.output_scales is not None),
        (
            f"bounds={config.bounds}"
            if config.bounds is not None
            else f"output_activation={config.output_activation!r}",
            shaped and not same_shape,
        ),
    ):
        if asked:
            raise ValueError(
                f"keep_weights needs a head of the kind that AAM has, and {option} makes it another; "
                "leave one of the two out"
            )
    kept, (old, skip) = _linears_of(head), _old_linears(model.target_head)
    shapes = [tuple(layer.weight.shape) for layer in [*old, *([skip] if skip is not None else [])]]
    wanted = [tuple(weight.shape) for weight, _ in kept]
    if shapes != wanted or model.num_quantiles != (None if config.quantiles is None else len(config.quantiles)):
        raise ValueError(
            f"keep_weights needs a head with the layers of the old one, whose weights have the shapes {shapes}, "
            f"got {wanted}; give the same hidden_dims, residual, out_features and number of quantiles"
        )
    for (weight, bias), layer in zip(kept, [*old, *([skip] if skip is not None else [])], strict=True):
        weight.copy_(layer.weight)
        bias.copy_(layer.bias)
    if config.quantiles is None:  # AAM scales points alone
        _carry_scales(model, head)


def _carry_scales(model: Any, head: TargetHead) -> None:
    if head.learnable_scale is not None and model.output_scale is not None:
        head.learnable_scale.scale.copy_(model.output_scale - 1.0)
        head.learnable_scale.bias.copy_(model.output_bias)
    if head.scaler is None or model.output_scales is None:
        return
    moved = []
    for kind, tables, neutral in (("scale", model.output_scales, 1.0), ("bias", model.output_biases, 0.0)):
        for column in head.config.scaler:
            table = tables[column].weight
            getattr(head.scaler, name_in(kind, column)).copy_(table[1:] - neutral)
            if not torch.allclose(table[0], torch.full_like(table[0], neutral), atol=1e-6):
                moved.append(column)
    if moved:
        warnings.warn(
            f"the model scales rows of an unknown {' or '.join(dict.fromkeys(moved))}, which weight decay has moved "
            "from the identity; the new head leaves their predictions unscaled",
            RegheadWarning,
            stacklevel=4,
        )


def _linears_of(head: TargetHead) -> list[tuple[Tensor, Tensor]]:
    if not isinstance(head.trunk, MLP):
        assert head.weight is not None
        assert head.bias is not None
        return [(head.weight, head.bias)]
    layers: list[Any] = [layer.linear for layer in head.trunk.layers]
    layers += [head.trunk.output, *([head.trunk.skip] if head.trunk.skip is not None else [])]
    return [(layer.weight, layer.bias) for layer in layers]


def _old_linears(old: nn.Module) -> tuple[list[nn.Linear], nn.Linear | None]:
    skip = getattr(old, "skip", None)
    layers = [module for module in old.modules() if isinstance(module, nn.Linear) and module is not skip]
    return layers, skip
