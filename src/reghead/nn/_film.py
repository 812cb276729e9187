"""Feature-wise linear modulation by a context."""

import torch
from torch import Tensor, nn

from reghead._checks import check_int, check_last_dim
from reghead.functional import film
from reghead.functional._film import film_by_id
from reghead.nn._embedding import CategoryContext


class FiLM(nn.Module):
    r"""Feature-wise linear modulation: a context scales and shifts each feature.

    .. math:: \mathrm{FiLM}(x, e) = (1 + W e) \odot x + V e

    Perez et al., "FiLM: Visual Reasoning with a General Conditioning Layer", 2018. W and V are raw parameters that
    start at zero, and there is no bias: the layer is the identity at the start, whatever a parent does to its
    Linear layers, and stays the identity for a zero context, the embedding of an unknown category. The context
    must not start at zero too, or neither ever learns.

    Args:
        context_features: C, the width of the context.
        num_features: F, the number of features modulated.
        device: Where the parameters live.
        dtype: Of the parameters.

    Raises:
        ValueError: If a size is below 1.

    Shape:
        - ``x``: ``(*, F)``
        - ``context``: ``(*prefix, C)`` with leading dimensions of ``x``, any model's own, or what
          :meth:`CategoryEmbedding.context` returns, which is projected once per category and then gathered
        - output: ``(*, F)``

    Example:
        >>> layer = FiLM(context_features=1, num_features=2)
        >>> _ = layer.weight_gamma.data.fill_(0.5), layer.weight_beta.data.fill_(1.0)
        >>> layer(torch.tensor([[1.0, 2.0]]), context=torch.tensor([[2.0]])).detach()
        tensor([[4., 6.]])
    """

    def __init__(
        self,
        context_features: int,
        num_features: int,
        *,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        self.context_features = check_int("context_features", context_features)
        self.num_features = check_int("num_features", num_features)
        shape = (self.num_features, self.context_features)
        self.weight_gamma = nn.Parameter(torch.empty(shape, device=device, dtype=dtype))
        self.weight_beta = nn.Parameter(torch.empty(shape, device=device, dtype=dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Make the layer the identity."""
        nn.init.zeros_(self.weight_gamma)
        nn.init.zeros_(self.weight_beta)

    def gamma_beta(self, context: Tensor | CategoryContext) -> tuple[Tensor, Tensor]:
        """Factor and shift of each row: gamma and beta, each of shape ``(*prefix, F)``."""
        if isinstance(context, CategoryContext):
            self._check_width(context)
            return context.project(self.weight_gamma, offset=1.0), context.project(self.weight_beta)
        check_last_dim("context", context, self.context_features, "C")
        return 1.0 + nn.functional.linear(context, self.weight_gamma), nn.functional.linear(context, self.weight_beta)

    def forward(self, x: Tensor, context: Tensor | CategoryContext) -> Tensor:
        """Modulate ``x`` by ``context``."""
        check_last_dim("x", x, self.num_features, "F")
        if isinstance(context, CategoryContext) and len(context.tables) == 1:
            self._check_width(context)
            (gamma,), (beta,) = (
                context.project_tables(self.weight_gamma, offset=1.0),
                context.project_tables(self.weight_beta),
            )
            return film_by_id(x, gamma, beta, context.ids[0])
        gamma, beta = self.gamma_beta(context)
        return film(x, gamma, beta)

    def _check_width(self, context: CategoryContext) -> None:
        width = sum(table.shape[-1] for table in context.tables)
        if width != self.context_features:
            raise ValueError(f"context must have {self.context_features} features, got {width}")

    def extra_repr(self) -> str:
        return f"context_features={self.context_features}, num_features={self.num_features}"
