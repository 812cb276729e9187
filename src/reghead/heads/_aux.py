"""What a head returns beside its predictions."""

from typing import NamedTuple

import torch
from torch import Tensor

from reghead._checks import reads_values
from reghead.config import HeadConfig
from reghead.nn import ConditionalScaler, RoutingAux


class HeadAux(NamedTuple):
    r"""What a head computed beside its predictions.

    The loss ``"partial_pooling"`` is

    .. math:: \frac{\lambda}{n D} \Big(\sum \delta^2 + \sum b^2\Big)

    over the deviations of scaler and wide path, with :math:`\lambda` the head's ``partial_pooling`` and n the number of
    training rows told by :meth:`RegressionHead.observe`. Beside a mean squared error over complete rows it makes
    training a maximum a posteriori estimate, with :math:`\lambda = \sigma^2 / \sigma_b^2` the variance of the noise
    over that of the effects: a lone intercept is :math:`n_c / (n_c + \lambda)` of the mean residual of its
    :math:`n_c` rows (Gelman and Hill, 2007, eq. 12.1). Beside half a squared error, which the Huber loss is near 0, it
    pools as :math:`2 \lambda`. It is NaN where no rows were told and values cannot be looked at to say so.

    Attributes:
        losses: Terms to add to the training loss by name, each already times its weight: ``"load_balancing"``,
            ``"partial_pooling"``.
        penalties: Sums of squared deviations by name, not weighted: ``"scaler"``, ``"wide"``.
        routing: What the router of the experts did, or None.
        members: Predictions of each member of an ensemble, shape ``(k, *, D)`` or ``(k, *, D, Q)``, or None. Trained on
            the mean of the members' losses they stay different; trained on the loss of their mean they would not.
    """

    losses: dict[str, Tensor]
    penalties: dict[str, Tensor]
    routing: RoutingAux | None
    members: Tensor | None = None


def make_aux(
    config: HeadConfig,
    scaler: ConditionalScaler | None,
    wide: ConditionalScaler | None,
    routing: RoutingAux | None,
    members: Tensor | None,
) -> HeadAux:
    """What a head of that configuration returns beside its predictions."""
    losses: dict[str, Tensor] = {}
    if routing is not None and config.moe is not None and config.moe.load_balancing_weight:
        losses["load_balancing"] = config.moe.load_balancing_weight * routing.load_balancing_loss
    parts = {name: part for name, part in (("scaler", scaler), ("wide", wide)) if part is not None}
    penalties = {name: part.penalty() for name, part in parts.items()}
    if parts and config.partial_pooling:
        rows = next(iter(parts.values())).observed_rows()
        if reads_values(rows) and rows <= 0:
            raise ValueError(
                "partial_pooling needs the number of training rows, and the head was told of none; "
                "call head.observe(categories) with their ids before training"
            )
        share = config.partial_pooling / config.out_features
        losses["partial_pooling"] = (
            torch.stack(list(penalties.values())).sum() * share / torch.where(rows > 0, rows, torch.nan)
        )
    return HeadAux(losses, penalties, routing, members)
