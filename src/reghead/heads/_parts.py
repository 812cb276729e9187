"""The parts of a head, made from its configuration."""

from collections.abc import Mapping, Sequence
from functools import reduce
from typing import Any

import torch
from torch import Tensor, nn

from reghead._checks import check_ids
from reghead._typing import Categories
from reghead.categories import CategoryEncoder
from reghead.config import HeadConfig
from reghead.nn import MLP, CategoryEmbedding, ConditionalScaler, MixtureOfExperts, OutputActivation


def agreed_cardinalities(cardinalities: Mapping[str, int] | None, encoder: CategoryEncoder) -> Mapping[str, int]:
    """The cardinalities of ``encoder``, or the given ones, which must agree with it on the columns of both."""
    if not isinstance(encoder, CategoryEncoder):
        raise TypeError(f"encoder must be a fitted CategoryEncoder, got {type(encoder).__name__}")
    if cardinalities is None:
        return encoder.cardinalities
    if any(cardinalities.get(column, n) != n for column, n in encoder.cardinalities.items()):
        raise ValueError(
            f"cardinalities must be those of the encoder, {encoder.cardinalities}, got {dict(cardinalities)}"
        )
    return cardinalities


def routing_columns(config: HeadConfig) -> tuple[str, ...]:
    """Columns that route to experts."""
    return config.moe.routing if config.moe is not None else ()


def make_embedding(config: HeadConfig, factory: dict[str, Any]) -> CategoryEmbedding | None:
    """One embedding for fusion, FiLM and router."""
    cardinalities = config.cardinalities or {}
    fused = config.columns if config.fusion else ()
    used = {*fused, *config.film, *routing_columns(config)}
    embedded = {column: cardinalities[column] for column in config.columns if column in used}
    return CategoryEmbedding(embedded, config.embedding_dim, **factory) if embedded else None


def make_trunk(
    config: HeadConfig, in_features: int, out_features: int, factory: dict[str, Any]
) -> MLP | MixtureOfExperts | None:
    """The part from features to raw outputs; None for a single linear layer."""
    options: dict[str, Any] = {
        "dropout": config.dropout,
        "activation": config.activation,
        "norm": config.norm,
        "residual": config.residual,
        **factory,
    }
    film_features = len(config.film) * config.embedding_dim or None
    if config.moe is not None:
        return MixtureOfExperts(
            in_features,
            out_features,
            config.moe.num_experts,
            config.hidden_dims,
            context_features=len(config.moe.routing) * config.embedding_dim or None,
            route_features=config.moe.route_features,
            mix=config.moe.mix,
            gate=config.moe.gate,
            top_k=config.moe.top_k,
            temperature=config.moe.temperature,
            film_features=film_features,
            **options,
        )
    if config.hidden_dims:
        options |= {"context_features": film_features, "ensemble": config.ensemble}
        return MLP(in_features, out_features, config.hidden_dims, **options)
    return None


def make_scaler(config: HeadConfig, columns: Sequence[str], **options: Any) -> ConditionalScaler | None:
    """A scaler over ``columns``, in their order; None without columns."""
    if not columns:
        return None
    cardinalities = config.cardinalities or {}
    return ConditionalScaler({c: cardinalities[c] for c in columns}, config.out_features, **options)


def make_output_activation(config: HeadConfig) -> OutputActivation | None:
    """The last step of the head, or None."""
    if config.bounds is not None:
        return OutputActivation("bounded", config.bounds)
    return None if config.output_activation is None else OutputActivation(config.output_activation)


@torch.no_grad()
def zero_outputs(outputs: Sequence[int], trunk: MLP | MixtureOfExperts | None, *tensors: Tensor | None) -> None:
    """Zero what leads to the raw ``outputs``: in the trunk, and the rows of ``tensors``."""
    rows = [tensor for tensor in tensors if tensor is not None]
    if isinstance(trunk, MLP):
        rows += [trunk.output.weight.movedim(-2, 0), trunk.output.bias.movedim(-1, 0)]
    elif trunk is not None:
        rows += [trunk.weights[-1].movedim(-1, 0), trunk.biases[-1].movedim(-1, 0)]
    if trunk is not None and trunk.skip is not None:
        rows += [trunk.skip.weight, trunk.skip.bias]
    for tensor in rows:
        tensor[outputs] = 0.0


def hide_categories(categories: Categories, cardinalities: Mapping[str, int], share: float) -> dict[str, Tensor]:
    """Make a share of the rows unknown: one draw a row, the same for every part and column."""
    present = {column: n for column, n in cardinalities.items() if column in categories}
    # Checked before some are hidden: a wrong id must not pass by luck.
    used = dict(zip(present, check_ids(categories, present, "RegressionHead"), strict=True))
    hidden: dict[tuple[int, ...], Tensor] = {}
    for ids in used.values():
        if tuple(ids.shape) not in hidden:
            hidden[tuple(ids.shape)] = torch.rand(ids.shape, device=ids.device) < share
    return {**categories, **{c: torch.where(hidden[tuple(ids.shape)], 0, ids) for c, ids in used.items()}}


def mean_of_members(members: Tensor, bounds: tuple[float, float] | None) -> Tensor:
    """Mean of the predictions of all members, within ``bounds`` as they are. Shape ``(k, *)`` gives ``(*)``."""
    # Term by term, in one order everywhere: then rounding cannot make ordered quantiles cross.
    mean = reduce(torch.add, (members / len(members)).unbind())
    return mean if bounds is None else mean.clamp(*bounds)


def parameter_groups(head: nn.Module, lr: float, categorical_lr: float, weight_decay: float) -> list[dict[str, Any]]:
    """Weights, biases and scales without decay, and the tables of categories."""
    groups: dict[str, list[nn.Parameter]] = {"weights": [], "biases": [], "categorical": []}
    for name, parameter in head.named_parameters():
        if name.partition(".")[0] in ("embedding", "scaler", "wide"):
            groups["categorical"].append(parameter)
        else:
            # Stacked, for experts or members, the biases and scales have two dimensions.
            stacked = ".biases." in name or name.endswith((".bias", ".input_scale", ".output_scale"))
            groups["biases" if parameter.ndim < 2 or stacked else "weights"].append(parameter)
    options = {
        "weights": {"lr": lr, "weight_decay": weight_decay},
        "biases": {"lr": lr, "weight_decay": 0.0},
        "categorical": {"lr": categorical_lr, "weight_decay": weight_decay},
    }
    return [{"name": name, "params": group, **options[name]} for name, group in groups.items() if group]
