"""What a regression head is made of."""

import dataclasses
from collections.abc import Collection, Mapping
from typing import Literal, TypeAlias

from reghead._checks import (
    check_cardinalities,
    check_choice,
    check_columns,
    check_hidden_dims,
    check_int,
    check_number,
    check_quantiles,
    did_you_mean,
)
from reghead._typing import Gate, Mix
from reghead.config._base import Config, OptionError, check_bool, nested

Activation: TypeAlias = Literal["relu", "gelu", "silu", "tanh", "elu", "leaky_relu"]
Norm: TypeAlias = Literal["layer", "rms"]
Fusion: TypeAlias = Literal["concat", "add"]
Compose: TypeAlias = Literal["sequential", "additive"]
OutputActivation: TypeAlias = Literal["relu", "softplus", "exp"]

MIXES = ("outputs", "parameters")
GATES = ("soft", "top_k", "hard")
ACTIVATIONS = ("relu", "gelu", "silu", "tanh", "elu", "leaky_relu")
NORMS = (None, "layer", "rms")
FUSIONS = (None, "concat", "add")
COMPOSES = ("sequential", "additive")
OUTPUT_ACTIVATIONS = (None, "relu", "softplus", "exp")


@dataclasses.dataclass(frozen=True, kw_only=True)
class MoEConfig(Config):
    """A mixture of experts in the place of the trunk.

    Args:
        num_experts: Number of experts, each with the hidden layers of the head.
        routing: Categorical columns whose embeddings the router sees.
        route_features: Whether the router sees the features, too.
        mix: ``"outputs"`` mixes the experts' predictions, ``"parameters"`` their weights, one expert per category.
        gate: ``"soft"`` mixes all experts, ``"top_k"`` the best few, ``"hard"`` takes the best one.
        top_k: How many experts ``"top_k"`` mixes.
        temperature: Divides the router's logits; below 1 sharpens, above 1 flattens.
        load_balancing_weight: Weight of the load-balancing loss in the total; 0 leaves it out.

    Raises:
        TypeError: If a value has the wrong type.
        ValueError: If a value is out of range, the router has nothing to see, or ``top_k`` exceeds the experts.

    Example:
        >>> MoEConfig(num_experts=4, routing=["location"]).routing
        ('location',)
    """

    num_experts: int
    routing: tuple[str, ...] = ()
    route_features: bool = False
    mix: Mix = "outputs"
    gate: Gate = "soft"
    top_k: int = 2
    temperature: float = 1.0
    load_balancing_weight: float = 0.0

    def __post_init__(self) -> None:
        self._set("num_experts", check_int("num_experts", self.num_experts))
        self._set("routing", check_columns("routing", self.routing))
        self._set("route_features", check_bool("route_features", self.route_features))
        check_choice("mix", self.mix, MIXES)
        check_choice("gate", self.gate, GATES)
        self._set("top_k", check_int("top_k", self.top_k))
        self._set("temperature", check_number("temperature", self.temperature, above=0.0))
        weight = check_number("load_balancing_weight", self.load_balancing_weight, at_least=0.0)
        self._set("load_balancing_weight", weight)
        if not self.routing and not self.route_features:
            raise OptionError("the router sees nothing: give {routing} columns, or route_features=True")
        if self.mix == "parameters" and self.gate != "soft":
            raise OptionError(
                "{mix} parameters makes one expert of all and needs {gate} soft, got {gate} {got}; "
                "keep one of them, or choose {mix} outputs",
                {"got": self.gate},
            )
        if self.gate == "top_k" and self.top_k > self.num_experts:
            raise OptionError(
                "{top_k} must be at most {num_experts} = {n} with {gate} top_k, got {k}; lower it, or add experts",
                {"n": self.num_experts, "k": self.top_k},
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class HeadConfig(Config):
    """Everything a :class:`~reghead.heads.RegressionHead` is built from, as plain data.

    What only the data knows (``in_features``, ``cardinalities``) may be left out and filled in by
    :meth:`with_data`; every check that needs no data runs at construction.

    Args:
        in_features: Width F of the features.
        out_features: Number D of targets.
        hidden_dims: Widths of the hidden layers; none is a single linear map.
        dropout: Probability of dropout after each hidden layer, in [0, 1).
        activation: Nonlinearity of the hidden layers.
        norm: Normalization of the hidden layers, before the activation.
        residual: Add a linear map of the input to the output of the hidden layers.
        ensemble: Number of members that share the hidden layers' weights; their mean is the prediction.
        columns: Categorical columns; the keys of ``cardinalities`` if left out.
        cardinalities: Number of ids of each column, id 0 included. Of a larger mapping, ``columns`` are kept.
        embedding_dim: Width of each column's embedding.
        fusion: How embeddings join the features: ``"concat"``, ``"add"``, or not at all.
        film: Columns that modulate the hidden layers.
        moe: Mixture of experts in the place of the trunk; a mapping is read as a :class:`MoEConfig`.
        scaler: Columns with a scale and a bias of the output per category.
        scaler_compose: How several scaler columns combine.
        wide: Columns with a penalised intercept per category.
        partial_pooling: How strongly ``scaler`` and ``wide`` are pulled to the population: the variance of the noise
            over that of the effects; 0 leaves them free.
        quantiles: Levels to predict, strictly between 0 and 1; ``None`` for point predictions.
        non_crossing: Whether quantiles are ordered by construction.
        output_activation: Last step of the head.
        bounds: Lowest and highest prediction, by a sigmoid; in the place of ``output_activation``.
        learnable_scale: Whether one scale per output is learned.
        unknown_dropout: Probability that a training row's categories are replaced by unknown, in [0, 1).

    Raises:
        TypeError: If a value has the wrong type.
        ValueError: If a value is out of range, or two options do not go together.

    Example:
        >>> config = HeadConfig(hidden_dims=[64, 32], columns=["location"], film=["location"])
        >>> config.with_data(in_features=128, cardinalities={"location": 5}).cardinalities
        {'location': 5}
    """

    in_features: int | None = None
    out_features: int = 1
    hidden_dims: tuple[int, ...] = ()
    dropout: float = 0.0
    activation: Activation = "relu"
    norm: Norm | None = None
    residual: bool = False
    ensemble: int = 1
    columns: tuple[str, ...] = ()
    cardinalities: dict[str, int] | None = None
    embedding_dim: int = 16
    fusion: Fusion | None = None
    film: tuple[str, ...] = ()
    moe: MoEConfig | None = None
    scaler: tuple[str, ...] = ()
    scaler_compose: Compose = "sequential"
    wide: tuple[str, ...] = ()
    partial_pooling: float = 0.0
    quantiles: tuple[float, ...] | None = None
    non_crossing: bool = True
    output_activation: OutputActivation | None = None
    bounds: tuple[float, float] | None = None
    learnable_scale: bool = False
    unknown_dropout: float = 0.0

    def __post_init__(self) -> None:
        self._check_values()
        self._check_columns()
        self._check_combinations()

    def with_data(
        self,
        *,
        in_features: int | None = None,
        out_features: int | None = None,
        cardinalities: Mapping[str, int] | None = None,
    ) -> "HeadConfig":
        """This configuration with what the data says filled in; ``None`` leaves a field as it is."""
        given = {"in_features": in_features, "out_features": out_features, "cardinalities": cardinalities}
        return HeadConfig.from_dict({**vars(self), **{key: v for key, v in given.items() if v is not None}})

    def _check_values(self) -> None:
        if self.in_features is not None:
            self._set("in_features", check_int("in_features", self.in_features))
        self._set("out_features", check_int("out_features", self.out_features))
        self._set("hidden_dims", check_hidden_dims("hidden_dims", self.hidden_dims))
        self._set("dropout", check_number("dropout", self.dropout, at_least=0.0, below=1.0))
        check_choice("activation", self.activation, ACTIVATIONS)
        check_choice("norm", self.norm, NORMS)
        self._set("ensemble", check_int("ensemble", self.ensemble))
        self._set("embedding_dim", check_int("embedding_dim", self.embedding_dim))
        check_choice("fusion", self.fusion, FUSIONS)
        check_choice("scaler_compose", self.scaler_compose, COMPOSES)
        if self.moe is not None:
            self._set("moe", nested("moe", self.moe, MoEConfig))
        if self.quantiles is not None:
            self._set("quantiles", check_quantiles("quantiles", self.quantiles))
        check_choice("output_activation", self.output_activation, OUTPUT_ACTIVATIONS)
        if self.bounds is not None:
            self._set("bounds", check_bounds("bounds", self.bounds))
        self._set("partial_pooling", check_number("partial_pooling", self.partial_pooling, at_least=0.0))
        self._set("unknown_dropout", check_number("unknown_dropout", self.unknown_dropout, at_least=0.0, below=1.0))
        for name in ("residual", "non_crossing", "learnable_scale"):
            self._set(name, check_bool(name, getattr(self, name)))

    def _check_columns(self) -> None:
        self._set("columns", check_columns("columns", self.columns))
        if self.cardinalities is not None:
            given = check_cardinalities("cardinalities", self.cardinalities)
            self._set("columns", self.columns or tuple(given))
            check_among("columns", self.columns, "cardinalities", given)
            self._set("cardinalities", {column: given[column] for column in self.columns})
        for name in ("film", "scaler", "wide"):
            self._set(name, check_columns(name, getattr(self, name)))
            check_among(name, getattr(self, name), "columns", self.columns)
        if self.moe is not None:
            check_among("moe.routing", self.moe.routing, "columns", self.columns)

    def _check_combinations(self) -> None:
        if not self.hidden_dims:
            for name, asked in (
                ("film", bool(self.film)),
                ("residual", self.residual),
                ("dropout", self.dropout > 0),
                ("norm", self.norm is not None),
                ("ensemble", self.ensemble > 1),
            ):
                if asked:
                    raise OptionError(
                        f"{{{name}}} acts on hidden layers and {{hidden_dims}} gives none; "
                        f"give {{hidden_dims}} (such as 64,32), or leave {{{name}}} out"
                    )
        if self.ensemble > 1 and self.moe is not None:
            raise OptionError(
                "{ensemble} and {moe.num_experts} both take the place of the hidden layers: members share them, "
                "experts have their own; keep one of them"
            )
        if self.partial_pooling > 0 and not (self.scaler or self.wide):
            raise OptionError(
                "{partial_pooling} pulls categories to the population, but no part has effects of categories to pull; "
                "give {scaler} or {wide}, or leave {partial_pooling} out"
            )
        if self.fusion is not None and not self.columns:
            raise OptionError("{fusion} joins embeddings to the features and needs {columns}; name them, or drop it")
        if self.bounds is not None and self.output_activation is not None:
            raise OptionError("{bounds} and {output_activation} are both the last step of the head; keep one of them")
        routing = self.moe.routing if self.moe is not None else ()
        if self.unknown_dropout > 0 and not (self.fusion or self.film or self.scaler or self.wide or routing):
            raise OptionError(
                "{unknown_dropout} hides categories in training, but no part uses them; "
                "give {fusion}, {film}, {scaler}, {wide} or {moe.routing}, or leave {unknown_dropout} out"
            )


def check_among(name: str, columns: Collection[str], among: str, available: Collection[str]) -> None:
    """Raise unless all ``columns`` of the option ``name`` are ``available`` in the option ``among``."""
    for column in columns:
        if column not in available:
            raise OptionError(
                f"{{{name}}} names the column {{column}}, which is not among {{{among}}} ({{known}}){{hint}}",
                {
                    "column": repr(column),
                    "known": ", ".join(map(repr, available)) or "none given",
                    "hint": did_you_mean(column, available),
                },
            )


def check_bounds(name: str, bounds: object) -> tuple[float, float]:
    """Return ``(low, high)``, two finite numbers with ``low < high``."""
    if isinstance(bounds, (str, Mapping)) or not isinstance(bounds, Collection) or len(bounds) != 2:
        raise TypeError(f"{name} must be a pair of numbers such as (0.0, 1.0), got {bounds!r}")
    low, high = (check_number(f"{name}[{i}]", value) for i, value in enumerate(bounds))
    if low >= high:
        raise ValueError(f"{name} must be (low, high) with low < high, got {(low, high)}")
    return low, high
