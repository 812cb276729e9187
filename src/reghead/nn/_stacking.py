"""Experts kept one by one in a ``state_dict``, read into stacked parameters."""

from typing import Any

import torch
from torch import Tensor, nn


def stack_expert_modules(module: nn.Module, state_dict: dict[str, Any], prefix: str, *_: object) -> None:
    """Turn ``experts.{i}.<...>.weight`` of a list of modules into the stacked layout, in place."""
    head = f"{prefix}experts."
    names = [key for key in state_dict if key.startswith(head)]
    if not names:
        return
    for kind, target in (("weight", "weights"), ("bias", "biases")):
        per_expert: dict[int, list[Tensor]] = {}
        for name in sorted((n for n in names if n.endswith(f".{kind}")), key=_natural):
            expert = int(name[len(head) :].partition(".")[0])
            tensor = state_dict.pop(name)
            per_expert.setdefault(expert, []).append(tensor.t() if kind == "weight" else tensor)
        for layer in range(len(next(iter(per_expert.values()), []))):
            stacked = torch.stack([per_expert[e][layer] for e in sorted(per_expert)])
            state_dict[f"{prefix}{target}.{layer}"] = stacked


def _natural(name: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdigit() else (-1, part) for part in name.split(".")]
