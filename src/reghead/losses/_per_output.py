"""The module for a loss of its own for every output column."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from reghead._typing import NanPolicy, Reduction
from reghead.functional import per_output_loss
from reghead.functional._columns import Columns
from reghead.functional._loss_types import LossSpec
from reghead.functional._per_output import reduce_columns
from reghead.losses._base import Loss


class PerOutputLoss(Loss):
    r"""A loss of its own for every output column, as :func:`reghead.functional.per_output_loss`.

    The mean over columns of each column's own mean. With ``uncertainty=True`` the module learns the logarithm of
    each column's noise variance, ``log_variance`` :math:`s`, and a column's term is
    :math:`(e^{-s} m + s) / 2`, which may be negative; give its parameters to the optimizer as well, without weight
    decay. Once :math:`s` is learned, the unit of a target does not matter, except to the losses that turn from square
    to linear: Huber's ``delta`` is in that unit, and the turn of ``"log_cosh"`` is at 1.

    Args:
        losses: Output, by name or index, to a loss: a type (``"mse"``, ``"mae"``, ``"huber"``, ``"quantile"``,
            ``"asymmetric"``, ``"expectile"``, ``"log_cosh"``, ``"huber_quantile"``), or a mapping with ``"type"``, any
            parameters of that type, and ``"weight"``.
        outputs: Names of the D outputs, in their order.
        default: Loss of the columns that ``losses`` does not name.
        uncertainty: Learn how to weigh the columns, starting from equal weights. Needs ``outputs``.
        nan_policy: ``"omit"`` treats a NaN target as missing; ``"propagate"`` returns NaN.
        reduction: ``"mean"``, ``"sum"``, or ``"none"``.
        device: Device of ``log_variance``.
        dtype: Dtype of ``log_variance``.

    Raises:
        TypeError: If a spec is neither a type nor a mapping with ``"type"``.
        ValueError: If an output, a type or a parameter is unknown, or ``uncertainty`` comes without ``outputs``.

    Example:
        >>> loss = PerOutputLoss({"pH": "mse", "yield": "quantile"}, outputs=["pH", "yield"])
        >>> loss.quantiles  # predictions have shape (*, 2, 3)
        (0.1, 0.5, 0.9)
        >>> loss(torch.tensor([[[0.0, 1.0, 2.0], [4.0, 5.0, 6.0]]]), torch.tensor([[3.0, 5.0]]))  # (4 + 0.2 / 3) / 2
        tensor(2.0333)
    """

    function = staticmethod(per_output_loss)
    arguments = ("losses", "outputs", "default")

    def __init__(
        self,
        losses: Mapping[str | int, LossSpec],
        outputs: Sequence[str] | None = None,
        default: LossSpec = "huber",
        *,
        uncertainty: bool = False,
        nan_policy: NanPolicy = "propagate",
        reduction: Reduction = "mean",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(nan_policy=nan_policy, reduction=reduction)
        self._columns = Columns.parse(losses, outputs, default)
        self.losses = dict(losses)
        self.outputs = self._columns.outputs
        self._layout = None if self.outputs is None else self._columns.layout((len(self.outputs),))
        self.default = default
        self.log_variance: nn.Parameter | None
        if uncertainty:
            if self.outputs is None:
                raise ValueError("uncertainty=True needs outputs=[...], to know how many variances there are to learn")
            self.log_variance = nn.Parameter(torch.empty(len(self.outputs), device=device, dtype=dtype))
        else:
            self.register_parameter("log_variance", None)
        self.reset_parameters()

    @property
    def quantiles(self) -> tuple[float, ...] | None:
        """The levels that predictions need, increasing; ``None`` for point predictions of shape ``(*, D)``."""
        return self._columns.quantiles

    def reset_parameters(self) -> None:
        """Set every noise variance to 1."""
        if self.log_variance is not None:
            nn.init.zeros_(self.log_variance)

    def forward(
        self, preds: Tensor, target: Tensor, *, weight: Tensor | None = None, mask: Tensor | None = None
    ) -> Tensor:
        """The loss of ``preds``, of shape ``(*, D)``, or ``(*, D, Q)`` with :attr:`quantiles`."""
        layout = self._layout
        if layout is None or target.shape[-1:] != (len(layout.order),):
            layout = self._columns.layout(target.shape)
        return reduce_columns(
            preds,
            target,
            layout,
            log_variance=self.log_variance,
            weight=weight,
            mask=mask,
            nan_policy=self.nan_policy,
            reduction=self.reduction,
        )

    def extra_repr(self) -> str:
        """The arguments of the constructor."""
        learned = ", uncertainty=True" if self.log_variance is not None else ""
        return super().extra_repr() + learned
