"""Embeddings of numbers and a head as one module, to be trained together."""

from typing import Any

from torch import Tensor, nn

from reghead._typing import Categories
from reghead.config import HeadConfig
from reghead.estimators._features import Features
from reghead.heads import RegressionHead


class Network(nn.Module):
    """A head that takes a table's features, through what it sees of them.

    Args:
        features: From the features of a table to those of the head.
        head: As wide as they come.
    """

    def __init__(self, features: Features, head: RegressionHead) -> None:
        super().__init__()
        self.features, self.head = features, head
        self.train(head.training)  # one made anew to predict has the mode of what is in it

    @property
    def config(self) -> HeadConfig:
        """That of the head."""
        return self.head.config

    def forward(self, x: Tensor, categories: Categories | None = None, *, return_aux: bool = False) -> Any:
        """As the head's, of features of shape ``(B, F)``."""
        return self.head(self.features(x), categories, return_aux=return_aux)

    def param_groups(
        self, lr: float, *, categorical_lr: float | None = None, weight_decay: float = 0.0
    ) -> list[dict[str, Any]]:
        """The head's, with the embeddings among its weights."""
        groups = self.head.param_groups(lr, categorical_lr=categorical_lr, weight_decay=weight_decay)
        weights = next(group for group in groups if group["name"] == "weights")
        weights["params"] = [*weights["params"], *self.features.parameters()]
        return groups
