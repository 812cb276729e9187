"""Linear layers of the members of an ensemble."""

from typing import Any

import torch
from torch import Tensor, nn

from reghead.nn._start import start_linear


class SharedLinear(nn.Module):
    r"""k linear maps that share one weight, each with scales and a bias of its own.

    .. math:: y_m = s_m \odot W (r_m \odot x_m) + b_m

    Wen et al., "BatchEnsemble", 2020, eq. 3. Without scales the maps would differ in their bias alone: in the first
    layer the entries of r start as random signs, elsewhere all scales start at 1, as in Gorishniy et al., "TabM", 2024.

    Args:
        in_features: Width of the input.
        out_features: Width of the output.
        members: k.
        first: Whether the members have one input in common, x of shape ``(*, in_features)``, and r starts as signs.
        device: Where the parameters live.
        dtype: Of the parameters.

    Shape:
        - ``x``: ``(*, k, in_features)``
        - output: ``(*, k, out_features)``
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        members: int,
        *,
        first: bool,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.first = first
        factory: dict[str, Any] = {"device": device, "dtype": dtype}
        self.weight = nn.Parameter(torch.empty(out_features, in_features, **factory))
        self.bias = nn.Parameter(torch.empty(members, out_features, **factory))
        self.input_scale = nn.Parameter(torch.empty(members, in_features, **factory))
        self.output_scale = nn.Parameter(torch.empty(members, out_features, **factory))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        """Initialise weight and biases as :class:`torch.nn.Linear` does, and the scales as signs or ones."""
        start_linear(self.weight.shape[1], self.weight, self.bias)
        self.output_scale.fill_(1.0)
        if self.first:
            self.input_scale.bernoulli_(0.5).mul_(2.0).sub_(1.0)
        else:
            self.input_scale.fill_(1.0)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the map of each member to its ``x``."""
        # Scales into the weights, k times a small matrix, and not onto k times the rows.
        weight = self.output_scale.unsqueeze(-1) * self.weight * self.input_scale.unsqueeze(-2)
        if self.first:
            x = x.unsqueeze(-2).expand(*x.shape[:-1], *self.input_scale.shape)
        return _each_its_own(x, weight, self.bias)

    def extra_repr(self) -> str:
        members, out_features = self.bias.shape
        return f"in_features={self.weight.shape[1]}, out_features={out_features}, members={members}"


class MemberLinear(nn.Module):
    """k linear maps with nothing in common, one per member; shapes as in :class:`SharedLinear`."""

    def __init__(
        self,
        in_features: int,
        out_features: int,
        members: int,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(members, out_features, in_features, device=device, dtype=dtype))
        self.bias = nn.Parameter(torch.empty(members, out_features, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise every map as :class:`torch.nn.Linear` does."""
        start_linear(self.weight.shape[-1], self.weight, self.bias)

    def forward(self, x: Tensor) -> Tensor:
        """Apply the map of each member to its ``x``."""
        return _each_its_own(x, self.weight, self.bias)

    def extra_repr(self) -> str:
        members, out_features, in_features = self.weight.shape
        return f"in_features={in_features}, out_features={out_features}, members={members}"


def _each_its_own(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Shapes: x (*, k, in), weight (k, out, in), bias (k, out) -> (*, k, out)."""
    # The result lies in memory member by member, and so does all that follows: no product has to copy its rows.
    members = x.movedim(-2, 0)
    out = torch.baddbmm(bias.unsqueeze(1), members.unsqueeze(1).flatten(1, -2), weight.transpose(1, 2))
    return out.reshape(*members.shape[:-1], weight.shape[1]).movedim(0, -2)
