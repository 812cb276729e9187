"""What tests of the mixed model share."""

import torch
from torch import Tensor, nn

from reghead.normalization import MixedEffects


class Whole(nn.Module):
    """Forward and both inverses of a normalizer, in one graph."""

    def __init__(self, model: MixedEffects) -> None:
        super().__init__()
        self.model = model

    def forward(self, y: Tensor, ids: dict[str, Tensor], x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        z = self.model(y, ids, x)
        spread = torch.stack([z - 1, z, z + 1], dim=-1)
        return z, self.model.inverse(z, ids, x), self.model.inverse(spread, ids, x, output_dim=-2)
