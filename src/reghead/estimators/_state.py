"""What a training has come to: the weights, the best ones, the optimiser and the history."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from reghead._persistence import decode_json, encode_json


class TrainingState:
    """All that a training needs to go on, as tensors.

    Args:
        head: Trained in place.
        loss: Its parameters are trained, too.
        optimizer: Of the parameters of both.
    """

    def __init__(self, head: nn.Module, loss: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer
        self.history: dict[str, list[Any]] = {"train_loss": []}
        self._now = [*head.parameters(), *head.buffers(), *loss.parameters()]
        self._best = [tensor.detach().clone() for tensor in self._now]
        self._best_score, self._best_epoch = math.inf, 1

    @property
    def epoch(self) -> int:
        """Epochs done."""
        return len(self.history["train_loss"])

    @property
    def epochs_since_best(self) -> int:
        """Epochs done since the best one, which is the first until there is one."""
        return self.epoch - self._best_epoch

    def judge(self, score: float) -> None:
        """Remember the weights if their ``score`` is the lowest so far."""
        if score < self._best_score:
            self._best_score, self._best_epoch = score, self.epoch
            self._best = [tensor.detach().clone() for tensor in self._now]

    @torch.no_grad()
    def restore_best(self) -> None:
        """Give head and loss their best weights back."""
        for tensor, value in zip(self._now, self._best, strict=True):
            tensor.copy_(value)

    def tensors(self) -> dict[str, Tensor]:
        """A copy of the state."""
        history = {name: [_without_nan(value) for value in values] for name, values in self.history.items()}
        best = {"score": _without_nan(self._best_score), "epoch": self._best_epoch}
        state = {"progress": encode_json({"history": history, "best": best})}
        state |= {f"now.{i}": tensor.detach().clone() for i, tensor in enumerate(self._now)}
        state |= {f"best.{i}": tensor.clone() for i, tensor in enumerate(self._best)}
        for i, moments in self.optimizer.state_dict()["state"].items():
            state |= {f"optimizer.{i}.{name}": moment.clone() for name, moment in moments.items()}
        return state

    @torch.no_grad()
    def load(self, state: Mapping[str, Tensor]) -> None:
        """Go on from ``state``, which :meth:`tensors` made.

        Raises:
            ValueError: If it is the state of another model; nothing has changed then.
        """
        named = {f"{part}.{i}": tensor.shape for part in ("now", "best") for i, tensor in enumerate(self._now)}
        given = {name: tensor.shape for name, tensor in state.items() if name.partition(".")[0] in ("now", "best")}
        if named != given or "progress" not in state:
            raise ValueError("the checkpoint is that of another model; start anew")
        progress = decode_json(state["progress"])
        nan = {name: [math.nan if v is None else v for v in values] for name, values in progress["history"].items()}
        score = progress["best"]["score"]
        self.history.update(nan)
        self._best_score, self._best_epoch = math.inf if score is None else score, progress["best"]["epoch"]
        for i, tensor in enumerate(self._now):
            tensor.copy_(state[f"now.{i}"])
        self._best = [state[f"best.{i}"].to(tensor.device) for i, tensor in enumerate(self._now)]
        moments: dict[int, dict[str, Tensor]] = {}
        for name, tensor in state.items():
            kind, _, rest = name.partition(".")
            if kind == "optimizer":
                index, _, moment = rest.partition(".")
                moments.setdefault(int(index), {})[moment] = tensor
        self.optimizer.load_state_dict({**self.optimizer.state_dict(), "state": moments})


def _without_nan(value: Any) -> Any:
    """JSON has no number for NaN and the infinities."""
    return None if isinstance(value, float) and not math.isfinite(value) else value
