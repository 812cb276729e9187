"""Pure functions of tensors: losses, scores, modulation, routing. No state."""

from reghead.functional._asymmetric import asymmetric_loss, expectile_loss
from reghead.functional._film import film
from reghead.functional._lookup import lookup
from reghead.functional._per_output import per_output_loss
from reghead.functional._pinball import huber_pinball_loss, pinball_loss
from reghead.functional._pointwise import huber_loss, log_cosh_loss, mae_loss, mse_loss
from reghead.functional._quantiles import nearest_level, non_crossing_quantiles, sort_quantiles
from reghead.functional._routing import (
    expert_utilization,
    load_balancing_loss,
    routing_entropy,
    routing_weights,
)
from reghead.functional._scores import crps_loss, gaussian_nll_loss, interval_score_loss

__all__ = [
    "asymmetric_loss",
    "crps_loss",
    "expectile_loss",
    "expert_utilization",
    "film",
    "gaussian_nll_loss",
    "huber_loss",
    "huber_pinball_loss",
    "interval_score_loss",
    "load_balancing_loss",
    "log_cosh_loss",
    "lookup",
    "mae_loss",
    "mse_loss",
    "nearest_level",
    "non_crossing_quantiles",
    "per_output_loss",
    "pinball_loss",
    "routing_entropy",
    "routing_weights",
    "sort_quantiles",
]
