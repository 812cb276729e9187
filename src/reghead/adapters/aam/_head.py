"""The head in the place of AAM's, which finds the categories that AAM passes by it."""

from collections.abc import Mapping, Sequence
from typing import Any, Self, cast

import torch
from torch import Tensor, nn

from reghead._persistence import decode_json, encode_json
from reghead._typing import Categories
from reghead.adapters.aam._start import start_as_aam
from reghead.heads import HeadAux, RegressionHead
from reghead.heads._parts import parameter_groups
from reghead.nn import CategoryEmbedding, ConditionalScaler
from reghead.normalization import CategoryNormalizer

# AAM's optimizer gives the categorical learning rate to parameters whose names contain one of its own words.
NAMES = {"embedding": "categorical_embedder", "scaler": "output_scales", "wide": "output_scales_wide"}


class TargetHead(RegressionHead):
    """A :class:`~reghead.heads.RegressionHead` in the place of a SequencePredictor's ``target_head``.

    It differs from other heads in four ways. Its linear maps start as AAM's do. Its tables of categories are named as
    AAM's optimizer wants them, so that ``--categorical-lr`` reaches them. Categories that are missing or out of range
    are unknown, and not an error. And it carries what a checkpoint needs to be used alone: the normalizer, the labels,
    and how the model around it is built.

    :func:`attach` makes it; there is no need to build one.

    Args:
        options: Those of :class:`~reghead.heads.RegressionHead`.

    Attributes:
        normalizer: What brings predictions back to the target's own units, or None.
        outputs: Names of the targets, or none.
        host: What the model around it is built from.
        data: Facts of the data that a prediction needs.

    Example:
        >>> head = TargetHead(2, 1, cardinalities={"location": 3}, scaler=["location"])
        >>> _ = head.weight.data.fill_(1.0), head.scaler.bias_location.data.fill_(10.0)
        >>> head(torch.tensor([[3.0, 4.0], [3.0, 4.0]]), {"location": torch.tensor([1, 7])}).detach()
        tensor([[17.],
                [ 7.]])
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.normalizer: CategoryNormalizer | None = None
        self.outputs: tuple[str, ...] = ()
        self.host: dict[str, Any] = {}
        self.data: dict[str, Any] = {}
        self.replaced: Any = None
        self._ids: Categories | None = None
        self._extras: dict[str, Tensor] = {}

    @property
    def embedding(self) -> CategoryEmbedding | None:
        """The embedding that fusion, FiLM and router share."""
        return cast(CategoryEmbedding | None, getattr(self, NAMES["embedding"]))

    @embedding.setter
    def embedding(self, part: CategoryEmbedding | None) -> None:
        self.register_module(NAMES["embedding"], part)

    @property
    def scaler(self) -> ConditionalScaler | None:
        """Scale and bias per category."""
        return cast(ConditionalScaler | None, getattr(self, NAMES["scaler"]))

    @scaler.setter
    def scaler(self, part: ConditionalScaler | None) -> None:
        self.register_module(NAMES["scaler"], part)

    @property
    def wide(self) -> ConditionalScaler | None:
        """Random intercepts."""
        return cast(ConditionalScaler | None, getattr(self, NAMES["wide"]))

    @wide.setter
    def wide(self, part: ConditionalScaler | None) -> None:
        self.register_module(NAMES["wide"], part)

    def _build(self, factory: dict[str, Any]) -> None:
        super()._build(factory)
        for ours, theirs in NAMES.items():
            # nn.Module takes a module under its name before it looks for a setter.
            if ours in self._modules:
                self.register_module(theirs, self._modules.pop(ours))

    def _start(self) -> None:
        super()._start()
        start_as_aam(self)

    def forward(  # type: ignore[override]
        self, x: Tensor, categories: Categories | None = None, *, return_aux: bool = False
    ) -> Tensor | tuple[Tensor, HeadAux]:
        """Predict from pooled embeddings of shape ``(B, F)``.

        ``categories`` are those that the model around the head was called with, unless some are given here.
        """
        ids = known_ids(self._ids if categories is None else categories, self.config.cardinalities or {}, x)
        if return_aux:
            return super().forward(x, ids, return_aux=True)
        if not (self.training and self._has_extras()):
            # AAM takes a view of quantiles, which is none of what lies otherwise in memory.
            return super().forward(x, ids).contiguous()
        out, aux = super().forward(x, ids, return_aux=True)
        self._extras = extras_of(aux)
        return out.contiguous()

    def _has_extras(self) -> bool:
        return self.config.moe is not None or self.config.partial_pooling > 0 or self.config.ensemble > 1

    def equip(
        self,
        *,
        normalizer: CategoryNormalizer | None = None,
        outputs: Sequence[str] = (),
        host: Mapping[str, Any] | None = None,
        data: Mapping[str, Any] | None = None,
    ) -> Self:
        """Take along what a checkpoint needs to be used alone."""
        self.normalizer = normalizer
        self.outputs, self.host, self.data = tuple(outputs), dict(host or {}), dict(data or {})
        return self

    def param_groups(
        self, lr: float, *, categorical_lr: float | None = None, weight_decay: float = 0.0
    ) -> list[dict[str, Any]]:
        """Parameter groups as :meth:`reghead.heads.RegressionHead.param_groups` makes them."""
        return parameter_groups(
            cast(nn.Module, _OwnNames(self)), lr, lr if categorical_lr is None else categorical_lr, weight_decay
        )

    def _describe(self) -> dict[str, Any]:
        normalizer = None if self.normalizer is None else self.normalizer._describe()
        own = {"outputs": list(self.outputs), "normalizer": normalizer, "host": self.host, "data": self.data}
        return {**super()._describe(), **own}

    @classmethod
    def _from_description(cls, description: Mapping[str, Any]) -> Self:
        head = super()._from_description(description)
        described = description.get("normalizer")
        normalizer = None if described is None else CategoryNormalizer._from_description(described)
        return head.equip(
            normalizer=normalizer,
            outputs=description.get("outputs") or (),
            host=description.get("host"),
            data=description.get("data"),
        )

    def set_extra_state(self, state: object) -> None:
        """Refuse a ``state_dict`` that describes another head; the model around it may be built otherwise."""
        description = decode_json(state)
        if isinstance(description, dict):
            # Gradient checkpointing, chunks and dropout are a run's own business, and shapes are checked by themselves.
            description["host"] = self.host
        super().set_extra_state(encode_json(description))


class _OwnNames:
    """The parameters of a head under the names that reghead has for them."""

    def __init__(self, head: TargetHead) -> None:
        self.head = head

    def named_parameters(self) -> list[tuple[str, nn.Parameter]]:
        ours = {theirs: name for name, theirs in NAMES.items()}
        named = []
        for name, parameter in self.head.named_parameters():
            part, dot, rest = name.partition(".")
            named.append((ours.get(part, part) + dot + rest, parameter))
        return named


def known_ids(categories: Categories | None, cardinalities: Mapping[str, int], x: Tensor) -> dict[str, Tensor]:
    """The ids of every column for the rows of ``x``; what is missing or out of range is 0, the unknown."""
    ids = {}
    for column, cardinality in cardinalities.items():
        given = None if categories is None else categories.get(column)
        if given is None:
            ids[column] = torch.zeros(x.shape[:-1], dtype=torch.int64, device=x.device)
        else:
            ids[column] = safe_ids(column, given, cardinality)
    return ids


def safe_ids(column: str, given: object, cardinality: int) -> Tensor:
    """The ids of one column, where what is out of range is 0, the unknown."""
    if not isinstance(given, Tensor) or given.dtype not in (torch.int64, torch.int32):
        got = str(given.dtype) if isinstance(given, Tensor) else type(given).__name__
        raise TypeError(
            f"categorical_ids[{column!r}] must be a tensor of integer ids (torch.int64), got {got}; "
            "use torch.tensor for a list of ids, and a CategoryEncoder for labels"
        )
    return torch.where((given >= 0) & (given < cardinality), given, 0)


def extras_of(aux: HeadAux) -> dict[str, Tensor]:
    """What training needs beside the predictions, in shapes that DataParallel can gather."""
    extras = {f"head_{name}": term.reshape(1) for name, term in aux.losses.items()}
    if aux.routing is not None:
        weights = aux.routing.routing_weights.detach()
        extras["expert_utilization"] = weights.mean(dim=0, keepdim=True)
    if aux.members is not None:
        extras["target_members"] = aux.members.transpose(0, 1)
    return extras
