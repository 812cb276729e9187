"""What the loss modules share: a module holds the parameters of one function of ``reghead.functional``."""

from collections.abc import Callable
from typing import Any, ClassVar

from torch import Tensor, nn

from reghead._checks import check_choice
from reghead._typing import NanPolicy, Reduction


class Loss(nn.Module):
    """Calls ``function`` with its own attributes named in ``arguments``, its ``nan_policy`` and its ``reduction``.

    All of these are Python values, so that no cast of a module can bend them.
    """

    function: ClassVar[Callable[..., Tensor]]
    arguments: ClassVar[tuple[str, ...]] = ()

    def __init__(self, *, nan_policy: NanPolicy = "propagate", reduction: Reduction = "mean") -> None:
        super().__init__()
        check_choice("nan_policy", nan_policy, ("propagate", "omit"))
        check_choice("reduction", reduction, ("none", "mean", "sum"))
        self.nan_policy: NanPolicy = nan_policy
        self.reduction: Reduction = reduction

    def forward(
        self, preds: Tensor, target: Tensor, *, weight: Tensor | None = None, mask: Tensor | None = None
    ) -> Tensor:
        """The loss of ``preds``; the shapes are those of the function."""
        return self._call(preds, target, weight=weight, mask=mask)

    def _call(self, *tensors: Tensor, weight: Tensor | None, mask: Tensor | None) -> Tensor:
        own: dict[str, Any] = {name: getattr(self, name) for name in self.arguments}
        return type(self).function(
            *tensors, **own, weight=weight, mask=mask, nan_policy=self.nan_policy, reduction=self.reduction
        )

    def extra_repr(self) -> str:
        """The arguments of the constructor."""
        names = (*self.arguments, "nan_policy", "reduction")
        return ", ".join(f"{name}={getattr(self, name)!r}" for name in names)
