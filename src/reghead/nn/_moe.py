"""Mixture of experts, routed by categories, by features, or by both."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple, overload

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from reghead._checks import check_choice, check_hidden_dims, check_int, check_last_dim, check_number
from reghead._reduction import without_autocast
from reghead._typing import Categories, Gate, Mix
from reghead.functional import load_balancing_loss, lookup, routing_entropy, routing_weights
from reghead.functional._lookup import align, joint_ids
from reghead.functional._routing import check_gate, dispatch_of
from reghead.nn._activation import check_hidden_options, make_activation, make_dropout, make_norm
from reghead.nn._embedding import CategoryContext, CategoryEmbedding
from reghead.nn._experts import Hidden, can_deal_out, chosen, deal_out, dense_mixture, mixed_parameters, sparse_mixture
from reghead.nn._film import FiLM
from reghead.nn._mlp import require_hidden_dims
from reghead.nn._stacking import stack_expert_modules
from reghead.nn._start import start_linear


class RoutingAux(NamedTuple):
    """What the router did.

    Attributes:
        routing_weights: Weight of each expert in each row. Shape ``(*, E)``.
        load_balancing_loss: 1 when experts are used evenly, more when not. A scalar.
        entropy: Mean entropy of the router's softmax, before the gate, in nats: log E when a row has no preference,
            0 when it is certain. A scalar.
        probabilities: The router's softmax, before the gate. Shape ``(*, E)``.
        dispatch: Share of each row that goes to each expert, without gradient. Shape ``(*, E)``. With the
            probabilities it gives the balance of weighted rows, or of those of several processes.
    """

    routing_weights: Tensor
    load_balancing_loss: Tensor
    entropy: Tensor
    probabilities: Tensor
    dispatch: Tensor


class MixtureOfExperts(nn.Module):
    r"""Mixture of multilayer perceptrons whose outputs a router mixes.

    .. math::
        y = \sum_e w_e \, f_e(x), \qquad w = \mathrm{gate}\big((R_c\, c + R_x\, x + r) / T\big)

    with :math:`c` the embedding of the categories. Jacobs et al., "Adaptive Mixtures of Local Experts", 1991. The
    gates are those of :func:`reghead.functional.routing_weights`. Logits and softmax are computed in float32 or
    wider also under autocast, where narrower logits change which experts are chosen.

    With ``mix="parameters"`` the experts' weights and biases :math:`\theta_e` are mixed, not their outputs:

    .. math:: y = f\big(x; \textstyle\sum_e w_e\, \theta_e\big)

    as in Yang et al., "CondConv", 2019. Where categories alone route, that is one small network per category, and a
    large batch in eager mode on a CPU costs two or three such networks, whatever E; elsewhere every expert meets every
    row, as when outputs are mixed. Linear experts give what ``mix="outputs"`` gives; others are another model.

    Each expert is initialised as its own :class:`torch.nn.Linear` layers would be; their parameters are stacked,
    shape ``(E, in, out)``. A ``state_dict`` that holds one sub-module per expert (``experts.0.0.weight``, ...) is
    taken too. The normalisation, FiLM and the skip of ``residual`` are shared by the experts.

    Args:
        in_features: F, the width of the input.
        out_features: D, the width of the output.
        num_experts: E.
        hidden_dims: Widths of the hidden layers of each expert; none makes linear experts.
        cardinalities: Columns that route -> number of ids, id 0 included; the layer embeds them itself.
        embedding_dim: Width of each routing column's embedding.
        context_features: Width of a dense context that routes, in place of ``cardinalities``.
        route_features: Route by the input features too, or alone where there is no column and no context.
        mix: ``"outputs"`` or ``"parameters"``; the latter mixes all experts, gate ``"soft"``.
        gate: ``"soft"``, ``"top_k"`` or ``"hard"``.
        top_k: Experts per row of gate ``"top_k"``.
        temperature: T, positive.
        dropout: Probability in [0, 1), after each hidden activation.
        activation: As in :class:`FiLMLayer`.
        norm: ``None``, ``"layer"`` or ``"rms"``, after each hidden linear layer.
        residual: Add one linear map of the input to the mixture.
        film_features: Width of a context that modulates each hidden layer; none by default.
        device: Where the parameters live.
        dtype: Of the parameters.

    Raises:
        ValueError: If nothing routes, or a value is out of range.

    Shape:
        - ``x``: ``(*, F)``
        - ``categories``: column -> ids, all of one shape that is a prefix of ``*``
        - ``context``, ``film_context``: ``(*prefix, C)``
        - output: ``(*, D)``

    Example:
        >>> moe = MixtureOfExperts(1, 1, num_experts=2, cardinalities={"location": 3})
        >>> _ = [p.data.zero_() for p in moe.parameters()]
        >>> _ = moe.biases[0].data.copy_(torch.tensor([[1.0], [3.0]]))
        >>> moe(torch.tensor([[7.0]]), {"location": torch.tensor([1])}).detach()  # evenly routed
        tensor([[2.]])
    """

    router_context: nn.Parameter | None
    router_features: nn.Parameter | None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        num_experts: int,
        hidden_dims: Sequence[int] = (),
        *,
        cardinalities: Mapping[str, int] | None = None,
        embedding_dim: int = 16,
        context_features: int | None = None,
        route_features: bool = False,
        mix: Mix = "outputs",
        gate: Gate = "soft",
        top_k: int = 2,
        temperature: float = 1.0,
        dropout: float = 0.0,
        activation: str = "relu",
        norm: str | None = None,
        residual: bool = False,
        film_features: int | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.in_features = check_int("in_features", in_features)
        self.out_features = check_int("out_features", out_features)
        self.num_experts = check_int("num_experts", num_experts)
        self.hidden_dims = check_hidden_dims("hidden_dims", hidden_dims)
        require_hidden_dims(self.hidden_dims, residual=residual, film_features=film_features is not None)
        check_hidden_options(dropout, activation, norm)
        check_gate(gate, top_k, self.num_experts)
        check_choice("mix", mix, ("outputs", "parameters"))
        if mix == "parameters" and gate != "soft":
            raise ValueError(f'mix="parameters" makes one expert of all and needs gate="soft", got gate={gate!r}')
        self.mix, self.gate, self.top_k = mix, gate, top_k
        self.temperature = check_number("temperature", temperature, above=0.0)
        if cardinalities is not None and context_features is not None:
            raise ValueError("at most one of cardinalities and context_features may be given")
        if not cardinalities and context_features is None and not route_features:
            raise ValueError("nothing routes: give cardinalities, context_features or route_features=True")
        for name, width in (("context_features", context_features), ("film_features", film_features)):
            if width is not None:
                check_int(name, width)
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.embedding = CategoryEmbedding(cardinalities, embedding_dim, **factory) if cardinalities else None
        if self.embedding is not None:
            context_features = self.embedding.embedding_features
        self.context_features = context_features
        widths = (self.in_features, *self.hidden_dims, self.out_features)
        layers = list(itertools.pairwise(widths))
        experts = self.num_experts
        self.weights = nn.ParameterList(torch.empty(experts, i, o, **factory) for i, o in layers)
        self.biases = nn.ParameterList(torch.empty(experts, o, **factory) for _, o in layers)
        # Raw parameters, not nn.Linear: the router keeps its start when a parent re-initialises its Linears.
        self.router_bias = nn.Parameter(torch.empty(experts, **factory))
        self.router_context = (
            nn.Parameter(torch.empty(experts, context_features, **factory)) if context_features else None
        )
        self.router_features = nn.Parameter(torch.empty(experts, in_features, **factory)) if route_features else None
        self.norms = nn.ModuleList(n for h in self.hidden_dims if (n := make_norm(norm, h, device, dtype)) is not None)
        self.films = nn.ModuleList(FiLM(film_features, h, **factory) for h in self.hidden_dims if film_features)
        self.activation = make_activation(activation)
        self.dropout = make_dropout(dropout)
        self.skip = nn.Linear(self.in_features, self.out_features, **factory) if residual else None
        self.register_load_state_dict_pre_hook(stack_expert_modules)  # type: ignore[no-untyped-call]
        self._start()

    def reset_parameters(self) -> None:
        """Initialise every expert, and the router, as :class:`torch.nn.Linear` would be; FiLM becomes the identity."""
        for part in (self.embedding, *self.norms, *self.films, self.skip):
            if part is not None:
                part.reset_parameters()
        self._start()

    def _start(self) -> None:
        """Initialise the parameters that are not in a part, which starts by itself."""
        for weight, bias in zip(self.weights, self.biases, strict=True):
            start_linear(weight.shape[1], weight, bias)
        nn.init.zeros_(self.router_bias)
        for router in (self.router_context, self.router_features):
            if router is not None:
                start_linear(router.shape[1], router)

    @overload
    def forward(
        self,
        x: Tensor,
        categories: Categories | None = ...,
        *,
        context: Tensor | CategoryContext | None = ...,
        film_context: Tensor | CategoryContext | None = ...,
        return_aux: Literal[False] = ...,
    ) -> Tensor: ...

    @overload
    def forward(
        self,
        x: Tensor,
        categories: Categories | None = ...,
        *,
        context: Tensor | CategoryContext | None = ...,
        film_context: Tensor | CategoryContext | None = ...,
        return_aux: Literal[True],
    ) -> tuple[Tensor, RoutingAux]: ...

    @overload
    def forward(
        self,
        x: Tensor,
        categories: Categories | None = ...,
        *,
        context: Tensor | CategoryContext | None = ...,
        film_context: Tensor | CategoryContext | None = ...,
        return_aux: bool,
    ) -> Tensor | tuple[Tensor, RoutingAux]: ...

    def forward(
        self,
        x: Tensor,
        categories: Categories | None = None,
        *,
        context: Tensor | CategoryContext | None = None,
        film_context: Tensor | CategoryContext | None = None,
        return_aux: bool = False,
    ) -> Tensor | tuple[Tensor, RoutingAux]:
        """Mix the experts' outputs for ``x``; with ``return_aux`` also a :class:`RoutingAux`."""
        check_last_dim("x", x, self.in_features, "in_features")
        if self.embedding is not None:
            if context is not None:
                raise ValueError("context must not be given: this layer was built with cardinalities")
            context = self.embedding.context(categories)  # type: ignore[arg-type]
        elif context is not None and self.router_context is None:
            raise ValueError("context must not be given: this layer was built without context_features")
        if film_context is not None and not self.films:
            raise ValueError("film_context must not be given: this layer was built without film_features")
        rows, hidden = x.reshape(-1, self.in_features), self._hidden(x, film_context)
        choice = None if return_aux else self._choice_by_category(x, context)
        if choice is not None:
            out = deal_out(rows, list(self.weights), list(self.biases), *choice, hidden)
        else:
            logits = self._logits(x, context)
            weights = routing_weights(logits, self.gate, top_k=self.top_k, temperature=self.temperature)
            out = self._mix(x, rows, weights.reshape(-1, self.num_experts), context, hidden)
        out = out.reshape(*x.shape[:-1], self.out_features)
        if self.skip is not None:
            out = out + self.skip(x)
        if not return_aux:
            return out
        balance = load_balancing_loss(logits, self.gate, top_k=self.top_k, temperature=self.temperature)
        probabilities = routing_weights(logits, temperature=self.temperature)
        dispatch = dispatch_of(probabilities, self.gate, self.top_k)
        return out, RoutingAux(weights, balance, routing_entropy(probabilities), probabilities, dispatch)

    def _logits(self, x: Tensor, context: Tensor | CategoryContext | None) -> Tensor:
        """The router's logits in float32 or wider, shape ``(*, E)``."""
        with without_autocast(x.device.type):
            wide = torch.promote_types(self.router_bias.dtype, torch.float32)
            bias = self.router_bias.to(wide)
            if self.router_context is None:
                assert self.router_features is not None
                return F.linear(x.to(wide), self.router_features.to(wide), bias)
            weight = self.router_context.to(wide)
            if context is None:
                raise ValueError("context must be given: this layer was built with context_features")
            if isinstance(context, CategoryContext):
                context = CategoryContext(tuple(t.to(wide) for t in context.tables), context.ids)
                routed = context.project(weight, offset=bias)
            else:
                check_last_dim("context", context, weight.shape[1], "C")
                routed = F.linear(context.to(wide), weight, bias)
            routed = align(routed, x)
            if self.router_features is not None:
                return routed + F.linear(x.to(wide), self.router_features.to(wide))
            return routed.expand(*x.shape[:-1], self.num_experts)

    def _choice_by_category(self, x: Tensor, context: Tensor | CategoryContext | None) -> tuple[Tensor, Tensor] | None:
        """Weights and numbers of each row's experts, found once per category where that is cheaper than once per row.

        Shape ``(N, top_k)``, twice.
        """
        if (
            self.gate == "soft"
            or self.router_features is not None
            or not isinstance(context, CategoryContext)
            or len(context.tables) > 1
            or context.ids[0].shape != x.shape[:-1]
            or not can_deal_out(context.ids[0].numel() * self.num_experts, x, *context.tables, *self.parameters())
            or context.ids[0].numel() < len(context.tables[0])  # pragma: no mutate
        ):
            return None
        (table,), ids = context.tables, context.ids[0].reshape(-1)
        each = CategoryContext((table,), (torch.arange(len(table)),))
        logits = self._logits(x.new_empty(()).expand(len(table), self.in_features), each)
        weights = routing_weights(logits, self.gate, top_k=self.top_k, temperature=self.temperature)
        share, expert = chosen(weights, self._experts_per_row)
        return lookup(share, ids), lookup(expert, ids)

    def _hidden(self, x: Tensor, film_context: Tensor | CategoryContext | None) -> Hidden:
        """What follows each hidden linear layer of the experts."""
        if self.films and film_context is None:
            raise ValueError("film_context must be given: this layer was built with film_features")
        modulation = []
        for film, width in zip(self.films, self.hidden_dims, strict=False):
            assert isinstance(film, FiLM)
            pair = film.gamma_beta(film_context)  # type: ignore[arg-type]
            grid = x.new_empty(()).expand(*x.shape[:-1], width)
            modulation.append(tuple(align(t, grid).expand(grid.shape).reshape(-1, width) for t in pair))

        def hidden(h: Tensor, layer: int, index: Tensor | None) -> Tensor:
            if self.norms:
                h = self.norms[layer](h)
            if modulation:
                gamma, beta = (t if index is None else t.index_select(0, index) for t in modulation[layer])
                h = gamma * h + beta
            h = self.activation(h)
            return h if self.dropout is None else self.dropout(h)

        return hidden

    def _mix(
        self, x: Tensor, rows: Tensor, weights: Tensor, context: Tensor | CategoryContext | None, hidden: Hidden
    ) -> Tensor:
        if self.mix == "parameters":
            cells = None
            if isinstance(context, CategoryContext) and self.router_features is None:
                key = joint_ids(context.ids, [len(table) for table in context.tables])
                cells = key.reshape((*key.shape, *(1,) * (x.ndim - 1 - key.ndim))).expand(x.shape[:-1]).reshape(-1)
            return mixed_parameters(rows, list(self.weights), list(self.biases), weights, hidden, cells)
        if self.gate == "soft":
            return dense_mixture(rows, list(self.weights), list(self.biases), weights, hidden)
        return sparse_mixture(rows, list(self.weights), list(self.biases), weights, hidden, self._experts_per_row)

    @property
    def _experts_per_row(self) -> int:
        """Of the gates that choose."""
        return self.top_k if self.gate == "top_k" else 1

    def extra_repr(self) -> str:
        text = f"in_features={self.in_features}, out_features={self.out_features}, num_experts={self.num_experts}"
        if self.mix != "outputs":
            text += f", mix={self.mix!r}"
        gate = f"{self.gate!r}" + (f", top_k={self.top_k}" if self.gate == "top_k" else "")
        return f"{text}, hidden_dims={self.hidden_dims}, gate={gate}"
