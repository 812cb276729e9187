"""Where the linear maps of a head start from in AAM: Xavier's uniform weights, and no bias."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from reghead.heads import RegressionHead
from reghead.heads._parts import zero_outputs
from reghead.nn import MLP, MixtureOfExperts
from reghead.nn._ensemble import MemberLinear, SharedLinear


@torch.no_grad()
def start_as_aam(head: RegressionHead) -> None:
    """Initialise every linear map of ``head`` as AAM does; gaps between quantiles stay those of the normal."""
    for weight, bias in _linear_maps(head):
        nn.init.xavier_uniform_(weight)
        nn.init.zeros_(bias)
    quantiles = head.quantile_output
    if quantiles is not None and quantiles.non_crossing:
        levels = len(quantiles.quantiles)
        gaps = [i for i in range(head.out_features * levels) if i % levels != quantiles.anchor]
        zero_outputs(gaps, head.trunk, head.weight, head.bias)


def _linear_maps(head: RegressionHead) -> Iterator[tuple[Tensor, Tensor]]:
    """Weight and bias of each linear map, one by one where several are stacked."""
    if head.weight is not None and head.bias is not None:
        yield head.weight, head.bias
    if isinstance(head.trunk, MixtureOfExperts):
        for weights, biases in zip(head.trunk.weights, head.trunk.biases, strict=True):
            yield from zip(weights, biases, strict=True)
    if isinstance(head.trunk, MLP | MixtureOfExperts):
        for module in head.trunk.modules():
            if isinstance(module, nn.Linear | SharedLinear):
                yield module.weight, module.bias
            elif isinstance(module, MemberLinear):
                yield from zip(module.weight, module.bias, strict=True)
