"""The one builder of regression heads."""

import warnings
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Self, overload

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from reghead._checks import check_last_dim
from reghead._typing import Categories, Quantiles
from reghead._warnings import RedundantOptionWarning
from reghead.categories import CategoryEncoder
from reghead.config import HeadConfig, MoEConfig
from reghead.functional._lookup import align
from reghead.heads._aux import HeadAux, make_aux
from reghead.heads._described import DescribedHead
from reghead.heads._observing import ObservesRows
from reghead.heads._parts import (
    agreed_cardinalities,
    hide_categories,
    make_embedding,
    make_output_activation,
    make_scaler,
    make_trunk,
    mean_of_members,
    parameter_groups,
    routing_columns,
    zero_outputs,
)
from reghead.nn import MLP, CategoryContext, LearnableScale, QuantileOutput, RoutingAux
from reghead.nn._start import start_linear


class RegressionHead(ObservesRows, DescribedHead):
    r"""Regression head: from features, and categories where options ask for them, to predictions.

    Called with features alone and nothing asked it is one linear layer with ``weight`` and ``bias``, a drop-in for
    ``nn.Linear(in_features, out_features)``. Options add parts, in this order: unknown-dropout, fusion of the
    categories with the features, trunk (MLP or mixture of experts, modulated by FiLM), shaping of quantiles,
    conditional scaling, learnable scale, random intercepts, output activation.

    .. math:: \hat y = \phi\big(s \cdot (s_c\, f(x, c) + b_c) + b + a_c\big)

    Args:
        in_features: F, the width of the features.
        out_features: D, the number of targets.
        hidden_dims: Widths of the hidden layers; none by default.
        dropout: Probability in [0, 1), after each hidden activation.
        activation: ``"relu"``, ``"gelu"``, ``"silu"``, ``"tanh"``, ``"elu"`` or ``"leaky_relu"``.
        norm: ``None``, ``"layer"`` or ``"rms"``, after each hidden linear layer.
        residual: Add a linear map of the features to the output of the trunk.
        ensemble: k, the number of members that share the trunk's weights. The output is the mean of their predictions,
            which are in :class:`HeadAux`, so that each is trained by its own loss (see :class:`~reghead.nn.MLP`).
        cardinalities: Categorical columns -> number of ids, id 0 (unknown or missing) included.
        encoder: A fitted :class:`~reghead.categories.CategoryEncoder`; gives ``cardinalities`` where they are left
            out, and travels in the ``state_dict``.
        embedding_dim: Width of each column's embedding, shared by fusion, FiLM and router.
        fusion: ``None``, or how all columns join the features: ``"concat"`` or ``"add"``.
        film: Columns that modulate the hidden layers (:class:`~reghead.nn.FiLM`).
        moe: A :class:`~reghead.config.MoEConfig` or its fields in a mapping: a mixture of experts as the trunk.
        scaler: Columns with a scale and a bias per category (:class:`~reghead.nn.ConditionalScaler`).
        scaler_compose: ``"sequential"`` or ``"additive"``.
        wide: Columns with random intercepts, and one for each cell of several columns.
        partial_pooling: :math:`\lambda \ge 0`, how strongly scaler and wide path are pulled to the population by the
            loss ``"partial_pooling"`` of :class:`HeadAux`. Needs :meth:`observe`.
        quantiles: Levels to predict; ``None`` for point predictions.
        non_crossing: Quantiles ordered by construction, or free and sorted in eval mode.
        output_activation: ``None``, ``"relu"``, ``"softplus"`` or ``"exp"``.
        bounds: Lowest and highest prediction, in units of the target, by a sigmoid.
        learnable_scale: One learnable scale and bias per target.
        unknown_dropout: Share of training rows whose ids are replaced by 0, so that the unknown is trained too.
        device: Where the parameters live.
        dtype: Of the parameters.

    Raises:
        ValueError: If a value is out of range, a column is not among ``cardinalities``, or options exclude or need
            each other; the message names both.

    Shape:
        - ``x``: ``(*, F)``
        - ``categories``: column -> ids, all of one shape that is a prefix of ``*``
        - output: ``(*, D)``, or ``(*, D, Q)`` with ``quantiles``

    Example:
        >>> head = RegressionHead(2, 1)
        >>> _ = head.weight.data.copy_(torch.tensor([[1.0, 2.0]])), head.bias.data.fill_(0.5)
        >>> head(torch.tensor([[3.0, 4.0]])).detach()
        tensor([[11.5000]])
    """

    weight: nn.Parameter | None
    bias: nn.Parameter | None
    fusion_weight: nn.Parameter | None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        hidden_dims: Sequence[int] = (),
        *,
        dropout: float = 0.0,
        activation: str = "relu",
        norm: str | None = None,
        residual: bool = False,
        ensemble: int = 1,
        cardinalities: Mapping[str, int] | None = None,
        encoder: CategoryEncoder | None = None,
        embedding_dim: int = 16,
        fusion: str | None = None,
        film: Sequence[str] = (),
        moe: MoEConfig | Mapping[str, Any] | None = None,
        scaler: Sequence[str] = (),
        scaler_compose: str = "sequential",
        wide: Sequence[str] = (),
        partial_pooling: float = 0.0,
        quantiles: Quantiles | None = None,
        non_crossing: bool = True,
        output_activation: str | None = None,
        bounds: tuple[float, float] | None = None,
        learnable_scale: bool = False,
        unknown_dropout: float = 0.0,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if encoder is not None:
            cardinalities = agreed_cardinalities(cardinalities, encoder)
        config = HeadConfig.from_dict(
            {
                "in_features": in_features,
                "out_features": out_features,
                "hidden_dims": hidden_dims,
                "dropout": dropout,
                "activation": activation,
                "norm": norm,
                "residual": residual,
                "ensemble": ensemble,
                "cardinalities": cardinalities,
                "embedding_dim": embedding_dim,
                "fusion": fusion,
                "film": film,
                "moe": moe,
                "scaler": scaler,
                "scaler_compose": scaler_compose,
                "wide": wide,
                "partial_pooling": partial_pooling,
                "quantiles": quantiles,
                "non_crossing": non_crossing,
                "output_activation": output_activation,
                "bounds": bounds,
                "learnable_scale": learnable_scale,
                "unknown_dropout": unknown_dropout,
            }
        )
        if config.in_features is None:
            raise TypeError("in_features must be an integer, got None")
        if config.scaler and config.learnable_scale:
            warnings.warn(
                "scaler and learnable_scale both scale the output; with categories scaler alone is preferred",
                RedundantOptionWarning,
                stacklevel=2,
            )
        self.config = config
        # A copy: refitting the caller's encoder must not move categories to each other's rows.
        self.encoder = None if encoder is None else CategoryEncoder.from_dict(encoder.to_dict())
        self.in_features, self.out_features = config.in_features, config.out_features
        self._build({"device": device, "dtype": dtype})
        self._start()

    def _build(self, factory: dict[str, Any]) -> None:
        config = self.config
        self.embedding = make_embedding(config, factory)
        fused = len(config.columns) * config.embedding_dim if config.fusion else 0
        width = self.in_features + (fused if config.fusion == "concat" else 0)
        outputs = config.out_features * (1 if config.quantiles is None else len(config.quantiles))
        self.trunk = make_trunk(config, width, outputs, factory)

        def parameter(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.empty(shape, **factory))

        self.register_parameter("fusion_weight", parameter(width, fused) if config.fusion == "add" else None)
        # Without a trunk, the names of nn.Linear, whose state_dict a plain head loads.
        self.register_parameter("weight", parameter(outputs, width) if self.trunk is None else None)
        self.register_parameter("bias", parameter(outputs) if self.trunk is None else None)
        quantiles = config.quantiles
        self.quantile_output = None if quantiles is None else QuantileOutput(quantiles, config.non_crossing)
        # Scales of quantiles stay positive, so that their order survives.
        common = {
            "positive": quantiles is not None,
            "output_dim": -1 if quantiles is None else -2,
            **factory,
        }
        self.scaler = make_scaler(config, config.scaler, compose=config.scaler_compose, **common)
        self.learnable_scale = LearnableScale(self.out_features, **common) if config.learnable_scale else None
        wide = {"compose": "additive", "scale": False, "cells": len(config.wide) > 1}
        self.wide = make_scaler(config, config.wide, **wide, **common)
        self.output_activation = make_output_activation(config)

    def reset_parameters(self) -> None:
        """Initialise every part as torch does its own; what compensates for categories becomes the identity."""
        for part in (self.embedding, self.trunk, self.scaler, self.learnable_scale, self.wide):
            if part is not None:
                part.reset_parameters()
        self._start()

    def _start(self) -> None:
        """Initialise the parameters that are not in a part, which starts by itself."""
        if self.fusion_weight is not None:
            start_linear(self.fusion_weight.shape[1], self.fusion_weight)
        if self.weight is not None:
            start_linear(self.weight.shape[1], self.weight, self.bias)
        if self.quantile_output is not None and self.quantile_output.non_crossing:
            # Raw gaps of zero: training starts from one normal spread everywhere.
            levels, anchor = len(self.quantile_output.quantiles), self.quantile_output.anchor
            gaps = [i for i in range(self.out_features * levels) if i % levels != anchor]
            zero_outputs(gaps, self.trunk, self.weight, self.bias)

    @torch.no_grad()
    def zero_output(self) -> Self:
        """Start at a prediction of 0, with normal gaps between quantiles: the head then learns a correction.

        What leads to the output is zeroed; with an output activation the prediction is that of 0.
        """
        levels = 1 if self.config.quantiles is None else len(self.config.quantiles)
        zero_outputs(list(range(self.out_features * levels)), self.trunk, self.weight, self.bias)
        return self

    @overload
    def forward(
        self, x: Tensor, categories: Categories | None = ..., *, return_aux: Literal[False] = ...
    ) -> Tensor: ...

    @overload
    def forward(
        self, x: Tensor, categories: Categories | None = ..., *, return_aux: Literal[True]
    ) -> tuple[Tensor, HeadAux]: ...

    def forward(
        self, x: Tensor, categories: Categories | None = None, *, return_aux: bool = False
    ) -> Tensor | tuple[Tensor, HeadAux]:
        """Predict from features ``x``; with ``return_aux`` also a :class:`HeadAux`.

        Args:
            x: Features. Shape ``(*, F)``.
            categories: Column -> ids; needed where an option uses categories. Other columns are ignored.
            return_aux: Also return auxiliary losses, penalties, routing and members.
        """
        check_last_dim("x", x, self.in_features, "in_features")
        if self.training and self.config.unknown_dropout and isinstance(categories, Mapping):
            categories = hide_categories(categories, self.config.cardinalities or {}, self.config.unknown_dropout)
        routing: RoutingAux | None = None
        x = self._fuse(x, categories)
        if self.trunk is None:
            out = F.linear(x, self.weight, self.bias)  # type: ignore[arg-type]
        else:
            film = self._context(categories, self.config.film)
            if isinstance(self.trunk, MLP):
                out = self.trunk(x, film)
            else:
                routed = self._context(categories, routing_columns(self.config))
                mixed = self.trunk(x, context=routed, film_context=film, return_aux=return_aux)
                out, routing = mixed if isinstance(mixed, tuple) else (mixed, None)
        if self.quantile_output is not None:
            out = self.quantile_output(
                torch.unflatten(out, -1, (self.out_features, len(self.quantile_output.quantiles)))
            )
        if self.scaler is not None:
            out = self.scaler(out, categories)
        if self.learnable_scale is not None:
            out = self.learnable_scale(out)
        if self.wide is not None:
            out = self.wide(out, categories)
        if self.output_activation is not None:
            out = self.output_activation(out)
        members: Tensor | None = None
        if self.config.ensemble > 1:
            member_dim = -2 if self.quantile_output is None else -3
            # After the activation: each member predicts by itself, and a mean of predictions stays in their range.
            members = out.movedim(member_dim, 0)
            out = mean_of_members(members, self.config.bounds)
        return (out, make_aux(self.config, self.scaler, self.wide, routing, members)) if return_aux else out

    def _context(self, categories: Categories | None, columns: Sequence[str]) -> CategoryContext | None:
        if not columns or self.embedding is None:
            return None
        return self.embedding.context(categories, columns)  # type: ignore[arg-type]

    def _fuse(self, x: Tensor, categories: Categories | None) -> Tensor:
        if self.config.fusion is None:
            return x
        context = self._context(categories, self.config.columns)
        assert context is not None
        if self.fusion_weight is not None:
            return x + align(context.project(self.fusion_weight), x)
        dense = context.dense()
        return torch.cat([x, align(dense, x).expand(*x.shape[:-1], dense.shape[-1])], dim=-1)

    def param_groups(
        self, lr: float, *, categorical_lr: float | None = None, weight_decay: float = 0.0
    ) -> list[dict[str, Any]]:
        """Parameter groups for an optimiser: ``"weights"``, ``"biases"`` (no decay) and ``"categorical"``.

        The tables of categories see few rows each and often want a larger rate; their decay pulls a category
        towards the population.

        Args:
            lr: Learning rate.
            categorical_lr: Learning rate of the tables of categories; ``lr`` by default.
            weight_decay: Of weights and tables; biases and norms are not decayed.
        """
        return parameter_groups(self, lr, lr if categorical_lr is None else categorical_lr, weight_decay)

    @classmethod
    def from_config(
        cls,
        config: HeadConfig,
        *,
        encoder: CategoryEncoder | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> Self:
        """Build the head that ``config`` describes.

        Raises:
            ValueError: If ``config`` lacks ``in_features``, or ``cardinalities`` of columns that a part uses.
        """
        if config.in_features is None or (config.columns and config.cardinalities is None and encoder is None):
            raise ValueError("config lacks in_features or cardinalities; fill them in with config.with_data(...)")
        if config.columns and config.cardinalities is None and encoder is not None:
            config = config.with_data(cardinalities=encoder.cardinalities)
        fields = {name: value for name, value in vars(config).items() if name != "columns"}
        return cls(**fields, encoder=encoder, device=device, dtype=dtype)

    def extra_repr(self) -> str:
        text = f"in_features={self.in_features}, out_features={self.out_features}"
        return text + (f", fusion={self.config.fusion!r}" if self.config.fusion else "")
