"""Activations: hidden ones by name, and the last step of a head."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from reghead._checks import check_choice, check_number

HIDDEN_ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "tanh": nn.Tanh,
    "elu": nn.ELU,
    "leaky_relu": nn.LeakyReLU,
}
NORMS: dict[str, Callable[..., nn.Module]] = {"layer": nn.LayerNorm, "rms": nn.RMSNorm}


def check_hidden_options(dropout: float, activation: str, norm: str | None) -> None:
    """Raise for a bad option of hidden layers also where there are none to use it."""
    check_number("dropout", dropout, at_least=0.0, below=1.0)
    check_choice("activation", activation, HIDDEN_ACTIVATIONS)
    check_choice("norm", norm, (None, *NORMS))


def make_activation(activation: str) -> nn.Module:
    """The hidden activation of that name."""
    check_choice("activation", activation, HIDDEN_ACTIVATIONS)
    return HIDDEN_ACTIVATIONS[activation]()


def make_norm(norm: str | None, features: int, device: object, dtype: object) -> nn.Module | None:
    """The normalisation layer of that name over ``features``, or None."""
    check_choice("norm", norm, (None, *NORMS))
    return None if norm is None else NORMS[norm](features, device=device, dtype=dtype)


def make_dropout(dropout: float) -> nn.Module | None:
    """A dropout layer, or None at 0."""
    probability = check_number("dropout", dropout, at_least=0.0, below=1.0)
    return nn.Dropout(probability) if probability else None


class OutputActivation(nn.Module):
    r"""Last step of a head: puts predictions into the range of the target. Monotone, so quantiles stay quantiles.

    ``"relu"``: :math:`\max(x, 0)`; ``"softplus"``: :math:`\log(1 + e^x)`; ``"exp"``: :math:`e^x`; ``"bounded"``:
    :math:`a + (b - a)\,\sigma(x)`.

    Args:
        activation: ``"relu"``, ``"softplus"``, ``"exp"`` or ``"bounded"``.
        bounds: (a, b), in the units of the target; for ``"bounded"`` alone.

    Raises:
        ValueError: For an unknown name, or bounds that are not increasing.

    Example:
        >>> OutputActivation("bounded", bounds=(0.0, 10.0))(torch.tensor([0.0]))
        tensor([5.])
    """

    def __init__(self, activation: str, bounds: tuple[float, float] = (0.0, 1.0)) -> None:
        super().__init__()
        check_choice("activation", activation, ("relu", "softplus", "exp", "bounded"))
        if len(bounds) != 2:
            raise ValueError(f"bounds must be a pair (lower, upper), got {bounds}")
        lower, upper = (check_number(f"bounds[{i}]", bound) for i, bound in enumerate(bounds))
        if lower >= upper:
            raise ValueError(f"bounds must be increasing, got {bounds}")
        self.activation, self.bounds = activation, (lower, upper)

    def forward(self, x: Tensor) -> Tensor:
        """Activate ``x``, of any shape."""
        if self.activation == "relu":
            return F.relu(x)
        if self.activation == "softplus":
            return F.softplus(x)
        if self.activation == "exp":
            return x.exp()
        lower, upper = self.bounds
        # Rounding may carry a saturated sum beyond a bound: 0.57 + 0.61 is above 1.18 in float32.
        return (lower + (upper - lower) * torch.sigmoid(x)).clamp(lower, upper)

    def extra_repr(self) -> str:
        return repr(self.activation) + (f", bounds={self.bounds}" if self.activation == "bounded" else "")
