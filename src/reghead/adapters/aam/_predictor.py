"""The class of a SequencePredictor with a head of reghead, which hands it the categories of the call."""

import functools
from typing import Any, cast

import torch
from torch import Tensor, nn

from reghead._typing import Categories
from reghead.adapters.aam._head import TargetHead


class AttachedPredictor(nn.Module):
    """Before a SequencePredictor's own class: its ``forward`` and output, with categories for the head.

    AAM calls ``target_head`` with the pooled embedding alone. The categories wait on the head while ``forward`` runs:
    there, and not in a closure or on the class, copies and replicas of the model each have their own.
    """

    target_head: TargetHead

    def forward(
        self,
        tokens: Tensor,
        counts: Tensor | None = None,
        categorical_ids: Categories | None = None,
        return_nucleotides: bool = False,
        return_sample_embeddings: bool = False,
    ) -> dict[str, Tensor]:
        """AAM's ``forward``. In training the head's own losses and the use of its experts join the output."""
        head = self.target_head
        head._ids = categorical_ids
        try:
            outputs: dict[str, Tensor] = super().forward(
                tokens,
                counts=counts,
                categorical_ids=categorical_ids,
                return_nucleotides=return_nucleotides,
                return_sample_embeddings=return_sample_embeddings,
            )
            outputs.update(head._extras)
        finally:
            head._ids = None
            head._extras = {}
        return outputs

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        # The class is made at run time; what finds it again is the one that it was made from.
        state = super().__reduce_ex__(protocol)
        return (_new, (plain_class(type(self)),), *state[2:])


@functools.cache
def attached_class(plain: Any) -> Any:
    """The class of ``plain`` models that have a head of reghead: one and the same for each ``plain``."""
    return type(f"Attached{plain.__name__}", (AttachedPredictor, plain), {"__module__": __name__, "__doc__": None})


def plain_class(attached: type[nn.Module]) -> type[nn.Module]:
    """The class that :func:`attached_class` was given."""
    plain: type[nn.Module] = attached.__mro__[attached.__mro__.index(AttachedPredictor) + 1]
    return plain


def _new(plain: Any) -> nn.Module:
    kind = attached_class(plain)
    return cast(nn.Module, kind.__new__(kind))


class NoEmbedder(nn.Module):
    """In AAM's slot of a model without categories of its own, so that AAM's Trainer hands them to the model."""

    column_names: tuple[str, ...] = ()

    def __init__(self) -> None:
        super().__init__()
        self.embeddings: dict[str, nn.Module] = {}

    def forward(self, categorical_ids: Categories) -> Tensor:
        """Nothing: no row has an embedding here."""
        return torch.empty(0)
