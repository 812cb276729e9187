"""What a head returns beside its predictions."""

from typing import NamedTuple

from torch import Tensor

from reghead.nn import RoutingAux


class HeadAux(NamedTuple):
    """What a head computed beside its predictions.

    Attributes:
        losses: Terms to add to the training loss by name, each already times its weight: ``"load_balancing"``.
        penalties: Partial-pooling penalties by name, not weighted: ``"scaler"``, ``"wide"``.
        routing: What the router of the experts did, or None.
    """

    losses: dict[str, Tensor]
    penalties: dict[str, Tensor]
    routing: RoutingAux | None
