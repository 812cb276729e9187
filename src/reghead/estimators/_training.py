"""The training loop: mini-batches, early stopping, the best weights at the end, and a state to go on from."""

import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple, Protocol, TypeAlias

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from reghead._checks import check_int, check_number
from reghead._optional import import_optional
from reghead._typing import Categories
from reghead.estimators._data import Data, Rows, take_ids
from reghead.estimators._network import Network
from reghead.estimators._processes import ALONE, Processes
from reghead.estimators._state import TrainingState
from reghead.heads import RegressionHead
from reghead.nn import RoutingAux

History: TypeAlias = dict[str, list[Any]]
"""One entry for each epoch: ``train_loss``, and ``validation_loss`` and the experts' where there are any."""
Score: TypeAlias = Callable[[Tensor, Rows], float]
"""From predictions in z, and the rows they are for, to a mean over them that is better when lower."""
Callback: TypeAlias = Callable[[Mapping[str, list[Any]]], None]


class DivergedError(RuntimeError):
    """The loss is no longer finite, and further training would not make it so."""


class Checkpoint(Protocol):
    """Where the state of a training is kept between epochs."""

    def restore(self) -> dict[str, Tensor] | None:
        """The state to go on from, or None to start."""

    def keep(self, state: Callable[[], dict[str, Tensor]]) -> None:
        """Called after every epoch, with what makes its state."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingOptions:
    """How to train.

    Args:
        max_epochs: Passes over the training rows, at most.
        batch_size: Rows in a step, over all processes; all of them where there are no more.
        lr: Learning rate of AdamW.
        categorical_lr: Learning rate of the tables of categories; ``lr`` if left out.
        weight_decay: Decoupled weight decay of weights and tables.
        patience: Epochs without a better validation score after which training stops.
    """

    max_epochs: int = 200
    batch_size: int = 128
    lr: float = 3e-3
    categorical_lr: float | None = None
    weight_decay: float = 1e-3
    patience: int = 20

    def __post_init__(self) -> None:
        for name in ("max_epochs", "batch_size", "patience"):
            object.__setattr__(self, name, check_int(name, getattr(self, name)))
        check_number("lr", self.lr, above=0.0)
        if self.categorical_lr is not None:
            check_number("categorical_lr", self.categorical_lr, above=0.0)
        check_number("weight_decay", self.weight_decay, at_least=0.0)


@torch.no_grad()
def predict(head: nn.Module, x: Tensor, categories: Categories, batch_size: int = 8192) -> Tensor:
    """Predictions of ``head`` in eval mode, computed in blocks of rows; the mode is given back."""
    was_training = head.training
    head.eval()
    try:
        blocks = range(0, max(len(x), 1), batch_size)
        return torch.cat([head(x[i : i + batch_size], take_ids(categories, slice(i, i + batch_size))) for i in blocks])
    finally:
        head.train(was_training)


def train(
    head: RegressionHead | Network,
    loss: nn.Module,
    data: Data,
    options: TrainingOptions,
    *,
    seed: int = 0,
    mean_weight: float = 1.0,
    processes: Processes = ALONE,
    validation: Data | None = None,
    score: Score | None = None,
    callbacks: Iterable[Callback] = (),
    checkpoint: Checkpoint | None = None,
) -> History:
    """Train ``head`` in place; with ``validation`` it ends with the weights of its best epoch, in eval mode.

    Epochs are seeded one by one, so that a training that goes on from a checkpoint ends where it would have ended
    without the break. No generator of torch's is left changed.

    Args:
        head: Any head, alone or with what it sees of a table; the losses that it returns beside its predictions are
            added.
        loss: Takes ``(preds, target, weight=)``; parameters of its own are trained without decay.
        data: The training rows, targets in z.
        options: How to train.
        seed: Of the order of the rows and of dropout.
        mean_weight: Of a row: a head counts rows, and its partial pooling is to weigh against what they count for.
        processes: Those that train together, all with the same arguments but their own rows.
        validation: Rows to stop early by; needs ``score``.
        score: What is to fall on them, so that they can be judged in the target's own units.
        callbacks: Called after every epoch with the history so far.
        checkpoint: Keeps the state after every epoch.

    Raises:
        DivergedError: If the loss of an epoch is not finite.
    """
    if (validation is None) != (score is None):
        raise ValueError("validation and score go together: give both, to stop early, or neither")
    state = TrainingState(head, loss, _optimizer(head, loss, options))
    restored = None if checkpoint is None else checkpoint.restore()
    if restored is not None:
        state.load(restored)
    objective = _Objective(head, loss, mean_weight, processes)
    step = DistributedDataParallel(objective) if processes.size > 1 else objective
    device = next(head.parameters()).device
    history = state.history
    while state.epoch < options.max_epochs and not (validation and state.epochs_since_best >= options.patience):
        with seeded(_mix(seed, state.epoch, processes.rank), device):
            head.train()
            order = torch.Generator().manual_seed(_mix(seed, state.epoch))
            batches = data.batches(options.batch_size, processes, order)
            for name, value in _epoch(step, batches, state.optimizer, processes).items():
                history.setdefault(name, []).append(value)
        if not math.isfinite(history["train_loss"][-1]):
            raise DivergedError(
                f"training diverged: the loss of epoch {state.epoch} is {history['train_loss'][-1]}; "
                f"lower lr, which is {options.lr}, or look for extreme values in the features"
            )
        if validation is not None and score is not None:
            now = _score(head, validation, score, processes)
            history.setdefault("validation_loss", []).append(now)
            state.judge(now)
        for callback in callbacks:
            callback(history)
        if checkpoint is not None:
            checkpoint.keep(state.tensors)
    if validation is not None:
        state.restore_best()
    head.eval()
    return history


@contextlib.contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seed what initial weights and dropout draw from, and give it back as it was."""
    cuda = device.type == "cuda"
    with torch.random.fork_rng(devices=[device] if cuda else []):
        torch.default_generator.manual_seed(seed)
        if cuda:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield


@contextlib.contextmanager
def progress(title: str, epochs: int, shown: bool) -> Iterator[list[Callback]]:
    """A progress bar as a callback, where it is to be shown."""
    if not shown:
        yield []
        return
    with import_optional("tqdm", "sklearn").tqdm(total=epochs, desc=title, unit="epoch") as bar:

        def update(history: Mapping[str, list[Any]]) -> None:
            shown = {name: f"{values[-1]:.4g}" for name, values in history.items() if name.endswith("_loss")}
            if "expert_utilization" in history:
                shown["experts"] = "/".join(f"{share:.0%}" for share in history["expert_utilization"][-1])
            bar.set_postfix(shown, refresh=False)
            bar.update(len(history["train_loss"]) - bar.n)

        yield [update]


class _Step(NamedTuple):
    """What a batch gives."""

    objective: Tensor  # what is minimised
    data_loss: Tensor  # the part of it that is the loss of the data
    balance: Tensor | None = None  # the load-balancing loss, not weighted
    used: Tensor | None = None  # sum of the routing weights of each expert


class _Objective(nn.Module):
    """Head and loss as one module, so that processes share the gradients of both."""

    def __init__(
        self, head: RegressionHead | Network, loss: nn.Module, mean_weight: float, processes: Processes
    ) -> None:
        super().__init__()
        self.head, self.loss, self._mean_weight, self._processes = head, loss, mean_weight, processes

    def forward(self, batch: Rows) -> _Step:
        """The objective of ``batch``, this process's share of it."""
        preds, aux = self.head(batch.x, batch.categories, return_aux=True)
        target, weight = batch.target, batch.weight
        if aux.members is not None:
            # Each member learns by itself: the loss of their mean would let them cancel each other's errors.
            preds, members = aux.members, len(aux.members)
            target = target.expand(members, *target.shape)
            weight = None if weight is None else weight.expand(members, *weight.shape)
        data_loss = self.loss(preds, target, weight=weight)
        extras = dict(aux.losses)
        if "partial_pooling" in extras:
            extras["partial_pooling"] = extras["partial_pooling"] / self._mean_weight
        if aux.routing is None:
            return _Step(data_loss + sum(extras.values()), data_loss)
        each = batch.x.new_ones(len(batch.x), 1) if batch.weight is None else batch.weight.unsqueeze(-1)
        balance = self._balance(aux.routing, each)
        if "load_balancing" in extras:
            extras["load_balancing"] = self.head.config.moe.load_balancing_weight * balance  # type: ignore[union-attr]
        used = (each * aux.routing.routing_weights.detach()).sum(0)
        return _Step(data_loss + sum(extras.values()), data_loss, balance, used)

    def _balance(self, routing: RoutingAux, weight: Tensor) -> Tensor:
        """The load-balancing loss of rows that count ``weight`` times.

        How the experts are used is known from the rows of all processes: the loss of each by itself has another mean.
        """
        mass = weight.sum()
        shares = self._processes.sum(torch.cat([(weight * routing.dispatch).sum(0), mass.reshape(1)]))
        probability = (weight * routing.probabilities).sum(0) / mass.clamp(min=torch.finfo(mass.dtype).tiny)
        return len(probability) * (shares[:-1] / shares[-1] * probability).sum()


def _epoch(
    step: nn.Module, batches: Iterable[Rows], optimizer: torch.optim.Optimizer, processes: Processes
) -> dict[str, Any]:
    """Train on every row once, and return the means over the rows of what is to be remembered."""
    sums: dict[str, Any] = {}

    def add(name: str, value: Tensor | float) -> None:
        sums[name] = sums[name] + value if name in sums else value

    for batch in batches:
        optimizer.zero_grad(set_to_none=True)
        objective, data_loss, balance, used = step(batch)
        mass: Tensor | float = len(batch.x) if batch.weight is None else batch.weight.sum()
        if processes.size > 1:
            mass = torch.as_tensor(mass, dtype=data_loss.dtype, device=data_loss.device)
            # Gradients are averaged over processes, and this one counts by its share of the batch.
            objective = objective * (processes.size * mass / processes.sum(mass.clone()))
        objective.backward()
        optimizer.step()
        add("mass", mass)
        add("train_loss", data_loss.detach() * mass)
        if balance is not None:
            add("load_balancing_loss", balance.detach() * mass)
            add("expert_utilization", used)
    for value in sums.values():
        processes.sum(value)  # in place
    return {name: (value / sums["mass"]).tolist() for name, value in sums.items() if name != "mass"}


def _score(head: nn.Module, validation: Data, score: Score, processes: Processes) -> float:
    """The mean over the validation rows of all chunks and processes."""
    total = torch.zeros(2, dtype=torch.float64)
    for rows in validation.chunks:
        if len(rows.x):
            mass = len(rows.x) if rows.weight is None else rows.weight.sum().item()
            total += torch.tensor([score(predict(head, rows.x, rows.categories), rows) * mass, mass])
    value, mass = processes.sum(total.to(next(head.parameters()).device)).tolist()
    return value / mass if mass else math.nan


def _optimizer(head: RegressionHead | Network, loss: nn.Module, options: TrainingOptions) -> torch.optim.Optimizer:
    groups = head.param_groups(options.lr, categorical_lr=options.categorical_lr, weight_decay=options.weight_decay)
    learned = list(loss.parameters())
    if learned:
        groups.append({"name": "loss", "params": learned, "lr": options.lr, "weight_decay": 0.0})
    return torch.optim.AdamW(groups, fused=True)


def _mix(*entropy: int) -> int:
    """One seed from several numbers, unlike that of any other numbers."""
    return int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0] >> 1)
