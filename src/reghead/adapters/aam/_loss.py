"""AAM's MultiTaskLoss with a target loss of reghead."""

import functools
from collections.abc import Mapping
from typing import Any, cast

from torch import Tensor, nn

from reghead._optional import import_optional
from reghead.adapters.aam._contract import REVISION
from reghead.config import LossConfig
from reghead.losses import make_loss
from reghead.losses._base import Loss

AUXILIARY = ("head_load_balancing", "head_partial_pooling")


class AttachedLoss(nn.Module):
    """Before AAM's MultiTaskLoss: its signature and its result, with another loss of the targets."""

    target_loss: nn.Module

    def compute_target_loss(
        self,
        target_pred: Tensor,
        target_true: Tensor,
        is_classifier: bool = False,
        sample_weights: Tensor | None = None,
    ) -> Tensor:
        """The loss of the targets: reghead's, or AAM's for classes.

        With weights it is the mean of weight times loss over the rows, as in AAM: what a batch of light rows adds to an
        epoch is then little.
        """
        if is_classifier:
            return cast(Tensor, super().compute_target_loss(target_pred, target_true, True, sample_weights))  # type: ignore[misc]
        loss: Tensor = self.target_loss(target_pred, target_true, weight=sample_weights)
        return loss if sample_weights is None else loss * sample_weights.mean()

    def forward(
        self,
        outputs: Mapping[str, Tensor],
        targets: Mapping[str, Tensor],
        is_classifier: bool = False,
        encoder_type: str = "unifrac",
        gather_for_distributed: bool = False,
        sample_weights: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """All losses and their total, with what the head adds in training."""
        members = outputs.get("target_members")
        if members is not None and "target" in targets:
            # Every member learns from its own loss: rows of all members, each with the target of its row.
            number = members.shape[1]
            outputs = {**outputs, "target_prediction": members.flatten(0, 1)}
            targets = {**targets, "target": targets["target"].repeat_interleave(number, dim=0)}
            if sample_weights is not None:
                sample_weights = sample_weights.repeat_interleave(number, dim=0)
        losses: dict[str, Tensor] = super().forward(
            outputs,
            targets,
            is_classifier=is_classifier,
            encoder_type=encoder_type,
            gather_for_distributed=gather_for_distributed,
            sample_weights=sample_weights,
        )
        for name in AUXILIARY:
            if name in outputs:
                # One value from each replica of the model.
                term = outputs[name].mean()
                losses[f"{name}_loss"] = term
                losses["total_loss"] = losses["total_loss"] + term
        return losses

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        state = super().__reduce_ex__(protocol)
        kind = type(self)
        return (_new, (kind.__mro__[kind.__mro__.index(AttachedLoss) + 1],), *state[2:])


def loss(
    spec: str | Mapping[str, Any] | LossConfig | nn.Module = "huber",
    *,
    penalty: float = 1.0,
    nuc_penalty: float = 1.0,
    target_penalty: float = 1.0,
    count_penalty: float = 1.0,
    class_weights: Tensor | None = None,
    base: Any = None,
) -> nn.Module:
    """AAM's MultiTaskLoss whose target loss is any loss of reghead.

    Weights of samples act on every target loss, one per column and quantiles included, as the mean of weight times
    loss. What the head adds in training, the balance of its experts and its partial pooling, joins the total, and its
    values join the result, which AAM averages and logs.

    Args:
        spec: A type or data as :func:`reghead.losses.make_loss` takes them, a :class:`~reghead.config.LossConfig`, or
            a loss module. Huber by default, as in AAM.
        penalty: Weight of AAM's base loss.
        nuc_penalty: Weight of its nucleotide loss.
        target_penalty: Weight of the target loss.
        count_penalty: Weight of its count loss.
        class_weights: For a classifier.
        base: The class to build on; AAM's MultiTaskLoss by default.

    Raises:
        ImportError: If AAM is not installed and ``base`` is not given.
        TypeError: If ``spec`` is of another kind.
        ValueError: If ``spec`` has an unknown type or parameter, or a reduction other than the mean.

    Example:
        >>> class Base(torch.nn.Module):  # AAM's MultiTaskLoss, as far as it matters here
        ...     def __init__(self, **penalties):
        ...         super().__init__()
        >>> tasks = loss({"type": "asymmetric", "over_penalty": 2.0}, base=Base)
        >>> tasks.compute_target_loss(torch.tensor([[3.0], [1.0]]), torch.tensor([[2.0], [2.0]]))  # (2 + 1) / 2
        tensor(1.5000)
    """
    if isinstance(spec, LossConfig):
        spec = spec.spec
    if isinstance(spec, nn.Module) and not isinstance(spec, Loss):
        raise TypeError(f"spec must be a loss of reghead, which takes weights, or what makes one, got {spec!r}")
    target_loss = spec if isinstance(spec, nn.Module) else make_loss(spec)
    if target_loss.reduction != "mean":
        raise ValueError(
            f"AAM adds up losses that are means over a batch, got reduction={target_loss.reduction!r}; "
            "use reduction='mean'"
        )
    made: Any = _attached_class(base or import_aam("aam.training.losses").MultiTaskLoss)(
        penalty=penalty,
        nuc_penalty=nuc_penalty,
        target_penalty=target_penalty,
        count_penalty=count_penalty,
        class_weights=class_weights,
    )
    made.target_loss = target_loss
    return cast(nn.Module, made)


def import_aam(module: str) -> Any:
    """A module of AAM, which no extra brings: it is not on a package index."""
    try:
        return import_optional(module, extra="aam")
    except ImportError as error:
        raise ImportError(
            f"this needs AAM, which cannot be imported ({error.__cause__}); install it from its repository, "
            f"jbk708/aam at {REVISION}"
        ) from error


@functools.cache
def _attached_class(plain: Any) -> Any:
    return type(f"Attached{plain.__name__}", (AttachedLoss, plain), {"__module__": __name__, "__doc__": None})


def _new(plain: Any) -> nn.Module:
    kind = _attached_class(plain)
    return cast(nn.Module, kind.__new__(kind))
