"""Where parameters that stand in no ``nn.Linear`` start from."""

from torch import nn


def start_linear(in_features: int, *parameters: nn.Parameter | None) -> None:
    """Draw ``parameters`` as :class:`torch.nn.Linear` with ``in_features`` draws its weight and bias."""
    bound = in_features**-0.5
    for parameter in parameters:
        if parameter is not None:
            nn.init.uniform_(parameter, -bound, bound)
