"""How a head is described in its ``state_dict``, and built from the description."""

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, Self

import torch

from reghead._persistence import EXTRA_STATE, SelfDescribing
from reghead.categories import CategoryEncoder
from reghead.config import HeadConfig


class DescribedHead(SelfDescribing):
    """A head that its configuration and its encoder describe."""

    config: HeadConfig
    encoder: CategoryEncoder | None

    @classmethod
    @abstractmethod
    def from_config(
        cls,
        config: HeadConfig,
        *,
        encoder: CategoryEncoder | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> Self: ...

    def _describe(self) -> dict[str, Any]:
        return {"config": self.config.to_dict(), "encoder": None if self.encoder is None else self.encoder.to_dict()}

    @classmethod
    def _from_description(cls, description: Mapping[str, Any]) -> Self:
        if not isinstance(description.get("config"), Mapping):
            raise ValueError(f"the state_dict's description of a {cls.__name__} lacks its config")
        encoder = description.get("encoder")
        return cls.from_config(
            HeadConfig.from_dict(description["config"]),
            encoder=None if encoder is None else CategoryEncoder.from_dict(encoder),
        )

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, metadata: Any, strict: bool, missing: list[str], *rest: Any
    ) -> None:
        if prefix + EXTRA_STATE in state_dict:
            self.set_extra_state(state_dict[prefix + EXTRA_STATE])  # refuse before anything is overwritten
        super()._load_from_state_dict(state_dict, prefix, metadata, strict, missing, *rest)
        # A plain head is one linear layer: it takes the state_dict of an nn.Linear, which describes nothing.
        plain = {name for name, _ in self.named_parameters()} == {"weight", "bias"} and self.config.quantiles is None
        if plain and prefix + EXTRA_STATE in missing:
            missing.remove(prefix + EXTRA_STATE)
