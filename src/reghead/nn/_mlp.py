"""Multilayer perceptrons, modulated by categories or not, residual or not."""

import itertools
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from reghead._checks import check_hidden_dims, check_int, check_last_dim
from reghead._typing import Categories
from reghead.nn._activation import check_hidden_options, make_activation, make_dropout, make_norm
from reghead.nn._embedding import CategoryContext, CategoryEmbedding
from reghead.nn._ensemble import MemberLinear, SharedLinear
from reghead.nn._film import FiLM


class HiddenLayer(nn.Module):
    """linear -> norm -> FiLM -> activation -> dropout, each but the first two only where asked for."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        context_features: int | None,
        dropout: float,
        activation: str,
        norm: str | None,
        ensemble: int = 1,
        first: bool = True,
        device: torch.device | str | None,
        dtype: torch.dtype | None,
    ) -> None:
        super().__init__()
        self.in_features = check_int("in_features", in_features)
        self.out_features = check_int("out_features", out_features)
        self.linear: nn.Linear | SharedLinear
        if ensemble == 1:
            self.linear = nn.Linear(self.in_features, self.out_features, device=device, dtype=dtype)
        else:
            self.linear = SharedLinear(
                self.in_features, self.out_features, ensemble, first=first, device=device, dtype=dtype
            )
        self.norm = make_norm(norm, self.out_features, device, dtype)
        self.film = (
            None if context_features is None else FiLM(context_features, self.out_features, device=device, dtype=dtype)
        )
        self.activation = make_activation(activation)
        self.dropout = make_dropout(dropout)

    def reset_parameters(self) -> None:
        """Initialise the parts as torch does; FiLM becomes the identity."""
        for part in (self.linear, self.norm, self.film):
            if part is not None:
                part.reset_parameters()  # type: ignore[operator]

    def _apply_layer(self, x: Tensor, context: Tensor | CategoryContext | None) -> Tensor:
        check_last_dim("x", x, self.in_features, "in_features")
        h: Tensor = self.linear(x)
        if self.norm is not None:
            h = self.norm(h)
        if self.film is not None:
            if context is None:
                raise ValueError("context must be given: this layer was built with context_features")
            h = self.film(h, context)
        h = self.activation(h)
        return h if self.dropout is None else self.dropout(h)

    def forward(self, x: Tensor, context: Tensor | CategoryContext | None = None) -> Tensor:
        """Apply the layer to ``x`` of shape ``(*, in_features)``."""
        return self._apply_layer(x, context)


class FiLMLayer(HiddenLayer):
    r"""A hidden layer whose features categories modulate: linear -> norm -> FiLM -> activation -> dropout.

    .. math:: h = \mathrm{dropout}(\phi((1 + W e) \odot (A x + b) + V e))

    Perez et al., 2018; see :class:`FiLM`. Starts as the plain layer :math:`\phi(A x + b)`, and stays it for unknown
    categories. Give either ``cardinalities``, and the layer embeds ids itself, or ``context_features``, and it
    takes a dense context of any model.

    Args:
        in_features: Width of the input.
        out_features: Width of the output.
        cardinalities: Column -> number of ids, id 0 included.
        embedding_dim: Width of each column's embedding.
        context_features: C, the width of a dense context.
        dropout: Probability in [0, 1).
        activation: ``"relu"``, ``"gelu"``, ``"silu"``, ``"tanh"``, ``"elu"`` or ``"leaky_relu"``.
        norm: ``None``, ``"layer"`` or ``"rms"``, before the modulation.
        device: Where the parameters live.
        dtype: Of the parameters.

    Raises:
        ValueError: If both or none of ``cardinalities`` and ``context_features`` are given, or a value is out of
            range.

    Shape:
        - ``x``: ``(*, in_features)``
        - ``categories``: column -> ids, all of one shape that is a prefix of ``*``
        - ``context``: ``(*prefix, C)``
        - output: ``(*, out_features)``

    Example:
        >>> layer = FiLMLayer(2, 1, cardinalities={"location": 3})
        >>> _ = layer.linear.weight.data.fill_(1.0), layer.linear.bias.data.zero_()
        >>> layer(torch.tensor([[1.0, 2.0]]), {"location": torch.tensor([1])}).detach()
        tensor([[3.]])
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        cardinalities: Mapping[str, int] | None = None,
        *,
        embedding_dim: int = 16,
        context_features: int | None = None,
        dropout: float = 0.0,
        activation: str = "relu",
        norm: str | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        if (cardinalities is None) == (context_features is None):
            raise ValueError("exactly one of cardinalities and context_features must be given")
        embedding = None
        if cardinalities is not None:
            embedding = CategoryEmbedding(cardinalities, embedding_dim, device=device, dtype=dtype)
            context_features = embedding.embedding_features
        super().__init__(
            in_features,
            out_features,
            context_features=context_features,
            dropout=dropout,
            activation=activation,
            norm=norm,
            device=device,
            dtype=dtype,
        )
        self.embedding = embedding

    def reset_parameters(self) -> None:
        """Initialise the parts as torch does; FiLM becomes the identity."""
        if self.embedding is not None:
            self.embedding.reset_parameters()
        super().reset_parameters()

    def forward(  # type: ignore[override]
        self, x: Tensor, categories: Categories | None = None, *, context: Tensor | CategoryContext | None = None
    ) -> Tensor:
        """Apply the layer to ``x``."""
        if self.embedding is None:
            if categories is not None:
                raise ValueError(
                    "categories must not be given: this layer was built with context_features; use context="
                )
            return self._apply_layer(x, context)
        if context is not None:
            raise ValueError("context must not be given: this layer was built with cardinalities and takes categories")
        return self._apply_layer(x, self.embedding.context(categories))  # type: ignore[arg-type]


class MLP(nn.Module):
    r"""Multilayer perceptron: hidden layers, then a linear output; with ``residual``, a linear skip beside it.

    .. math:: f(x) = \mathrm{Linear}(h_L) \;[+\; \mathrm{Linear}(x)], \qquad
        h_l = \mathrm{dropout}(\phi(\mathrm{FiLM}(A_l h_{l-1} + b_l)))

    With ``ensemble`` it is k networks in one, Gorishniy et al., "TabM: Advancing Tabular Deep Learning with
    Parameter-Efficient Ensembling", 2024: they share the weights of the hidden layers, FiLM, norms and the skip, and
    differ by scales and biases, :math:`s_{lm} \odot A_l (r_{lm} \odot h) + b_{lm}`, and by their output layers. The
    :math:`r_{1m}` start as random signs. Each member should be trained by its own loss.

    Args:
        in_features: Width of the input.
        out_features: Width of the output.
        hidden_dims: Widths of the hidden layers; none gives one linear layer.
        dropout: Probability in [0, 1), after each hidden activation.
        activation: As in :class:`FiLMLayer`.
        norm: ``None``, ``"layer"`` or ``"rms"``, after each hidden linear layer.
        residual: Add a linear map of the input to the output: He et al., "Deep Residual Learning", 2016.
        context_features: Width of a context that modulates each hidden layer (:class:`FiLM`); none by default.
        ensemble: k, the number of members.
        device: Where the parameters live.
        dtype: Of the parameters.

    Raises:
        ValueError: If a value is out of range, or an option needs hidden layers and there are none.

    Shape:
        - ``x``: ``(*, in_features)``
        - ``context``: ``(*prefix, context_features)``
        - output: ``(*, out_features)``, or ``(*, k, out_features)`` for k > 1 members

    Example:
        >>> mlp = MLP(3, 1, (2,), residual=True)
        >>> _ = [p.data.fill_(1.0) for p in mlp.parameters()]
        >>> mlp(torch.tensor([[1.0, 2.0, 3.0]])).item()  # skip 6 + 1, hidden 2 x (6 + 1), output bias 1
        22.0
    """

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
        context_features: int | None = None,
        ensemble: int = 1,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.in_features = check_int("in_features", in_features)
        self.out_features = check_int("out_features", out_features)
        self.hidden_dims = check_hidden_dims("hidden_dims", hidden_dims)
        self.ensemble = check_int("ensemble", ensemble)
        require_hidden_dims(
            self.hidden_dims,
            residual=residual,
            context_features=context_features is not None,
            ensemble=self.ensemble > 1,
        )
        check_hidden_options(dropout, activation, norm)
        self.context_features = context_features
        widths = (self.in_features, *self.hidden_dims)
        self.layers = nn.ModuleList(
            HiddenLayer(
                before,
                after,
                context_features=context_features,
                dropout=dropout,
                activation=activation,
                norm=norm,
                ensemble=self.ensemble,
                first=layer == 0,
                device=device,
                dtype=dtype,
            )
            for layer, (before, after) in enumerate(itertools.pairwise(widths))
        )
        self.output: nn.Linear | MemberLinear
        if self.ensemble == 1:
            self.output = nn.Linear(widths[-1], self.out_features, device=device, dtype=dtype)
        else:
            self.output = MemberLinear(widths[-1], self.out_features, self.ensemble, device=device, dtype=dtype)
        self.skip = nn.Linear(self.in_features, self.out_features, device=device, dtype=dtype) if residual else None

    def reset_parameters(self) -> None:
        """Initialise every layer as torch does."""
        for part in (*self.layers, self.output, self.skip):
            if part is not None:
                part.reset_parameters()

    def forward(self, x: Tensor, context: Tensor | CategoryContext | None = None) -> Tensor:
        """Apply the network to ``x``."""
        check_last_dim("x", x, self.in_features, "in_features")
        if context is not None and self.context_features is None:
            raise ValueError("context must not be given: this network was built without context_features")
        h = x
        for layer in self.layers:
            h = layer(h, context)
        out: Tensor = self.output(h)
        if self.skip is None:
            return out
        skip: Tensor = self.skip(x)
        return out + (skip if self.ensemble == 1 else skip.unsqueeze(-2))


def require_hidden_dims(hidden_dims: Sequence[int], **options: bool) -> None:
    """Raise if an option that is asked for needs hidden layers and there are none."""
    for name, asked in options.items():
        if asked and not hidden_dims:
            raise ValueError(f"{name} needs hidden_dims, got none; use for example hidden_dims=(64, 32)")
