"""A SequencePredictor from a checkpoint alone."""

import os
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from reghead._persistence import EXTRA_STATE
from reghead.adapters.aam._attach import NEUTRAL, check_plain, install
from reghead.adapters.aam._head import TargetHead
from reghead.adapters.aam._loss import import_aam

PREFIX = "target_head."


def load_predictor(
    path: str | os.PathLike[str],
    *,
    model: nn.Module | None = None,
    base: type[nn.Module] | None = None,
    device: torch.device | str = "cpu",
) -> nn.Module:
    """Build the model of a checkpoint that AAM's Trainer wrote of an attached one, in eval mode.

    ``best_model.pt``, whose config AAM leaves empty, is as good as ``final_model.pt``: the head describes itself and
    the model around it. Nothing is unpickled.

    Args:
        path: The checkpoint.
        model: A SequencePredictor of the right sizes without a head of reghead; needed where the model was not built
            of AAM's own parts.
        base: The class to build; AAM's SequencePredictor by default.
        device: Where the model is to live.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no checkpoint, has no head of reghead, or does not say how the model is built; or ``model``
            is built otherwise.

    Example:
        >>> model = load_predictor("run/checkpoints/best_model.pt")  # doctest: +SKIP
        >>> model.target_head.outputs  # doctest: +SKIP
        ('pH',)
    """
    head, state = read_checkpoint(path)
    if model is None:
        if not head.host:
            raise ValueError(
                f"{os.fspath(path)} does not say how its model is built, which was not made of AAM's own parts; "
                "pass model=, built alike"
            )
        model = (base or import_aam("aam.models.sequence_predictor").SequencePredictor)(**head.host)
    check_plain(model)
    _check_built_alike(model, state)
    install(model, head)
    model.load_state_dict(state)
    return model.to(device).eval()


def _check_built_alike(model: nn.Module, state: Mapping[str, Any]) -> None:
    """Raise unless ``model`` has the weights of ``state`` around the head and what the head takes over."""
    own, wanted = (
        {
            name: tuple(value.shape)
            for name, value in tensors.items()
            if name.split(".")[0] not in ("target_head", *NEUTRAL)
        }
        for tensors in (model.state_dict(), state)
    )
    for name in [*wanted, *own]:
        if own.get(name) != wanted.get(name):
            raise ValueError(
                f"the model is built otherwise than that of the checkpoint: {name} has the shape "
                f"{own.get(name, 'of nothing')} in the model, and {wanted.get(name, 'of nothing')} there"
            )


def read_checkpoint(path: str | os.PathLike[str]) -> tuple[TargetHead, dict[str, Any]]:
    """The head of a checkpoint, and the ``state_dict`` of its model without the prefixes of wrappers."""
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception as error:  # a file of another kind can raise nearly anything
        raise ValueError(
            f"{os.fspath(path)} is no checkpoint that can be read by its weights alone: {error}"
        ) from error
    state = checkpoint.get("model_state_dict", checkpoint) if isinstance(checkpoint, Mapping) else {}
    for wrapper in ("_orig_mod.", "module.", "_orig_mod."):
        if state and all(name.startswith(wrapper) for name in state):
            state = {name[len(wrapper) :]: value for name, value in state.items()}
    if PREFIX + EXTRA_STATE not in state:
        raise ValueError(
            f"{os.fspath(path)} has no head of reghead; it reads checkpoints of models that attach returned"
        )
    return TargetHead.from_state_dict(state, prefix=PREFIX), dict(state)
