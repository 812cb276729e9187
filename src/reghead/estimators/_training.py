"""The training loop: mini-batches of tensors in memory, early stopping, and the best weights at the end."""

import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn

from reghead._checks import check_int, check_number
from reghead._optional import import_optional
from reghead._typing import Categories
from reghead.functional import expert_utilization
from reghead.heads import RegressionHead

History: TypeAlias = dict[str, list[Any]]
"""One entry for each epoch: ``train_loss``, and ``validation_loss`` and the experts' where there are any."""
Score: TypeAlias = Callable[[Tensor, "Rows"], float]
"""From predictions in z, and the rows they are for, to a number that is better when lower."""
Callback: TypeAlias = Callable[[Mapping[str, list[Any]]], None]


class Rows(NamedTuple):
    """One part of the data, all on one device."""

    x: Tensor  # (B, F)
    categories: Categories  # column -> ids (B,)
    target: Tensor  # (B, D); z in training, what the score wants in validation
    weight: Tensor | None = None  # (B,)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingOptions:
    """How to train.

    Args:
        max_epochs: Passes over the training rows, at most.
        batch_size: Rows in a step; all of them where there are no more.
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
        return torch.cat([head(x[i : i + batch_size], _take(categories, slice(i, i + batch_size))) for i in blocks])
    finally:
        head.train(was_training)


def train(
    head: RegressionHead,
    loss: nn.Module,
    rows: Rows,
    options: TrainingOptions,
    *,
    generator: torch.Generator | None = None,
    validation: Rows | None = None,
    score: Score | None = None,
    callbacks: Iterable[Callback] = (),
) -> History:
    """Train ``head`` in place; with ``validation`` it ends with the weights of its best epoch, in eval mode.

    Args:
        head: Any head; the losses that it returns beside its predictions are added.
        loss: Takes ``(preds, target, weight=)``; parameters of its own are trained without decay.
        rows: The training rows, targets in z.
        options: How to train.
        generator: Draws the order of the rows, on the CPU.
        validation: Rows to stop early by; needs ``score``.
        score: What is to fall on them, so that they can be judged in the target's own units.
        callbacks: Called after every epoch with the history so far.

    Raises:
        RuntimeError: If the loss of an epoch is not finite.
    """
    if (validation is None) != (score is None):
        raise ValueError("validation and score go together: give both, to stop early, or neither")
    optimizer = _optimizer(head, loss, options)
    history: History = {"train_loss": []}
    best_score, best_epoch, best = math.inf, 0, _snapshot(head, loss)
    for epoch in range(options.max_epochs):
        head.train()
        for name, value in _epoch(head, loss, rows, optimizer, options, generator).items():
            history.setdefault(name, []).append(value)
        if not math.isfinite(history["train_loss"][-1]):
            raise RuntimeError(
                f"training diverged: the loss of epoch {epoch + 1} is {history['train_loss'][-1]}; "
                f"lower lr, which is {options.lr}, or look for extreme values in the features"
            )
        if validation is not None and score is not None:
            now = score(predict(head, validation.x, validation.categories), validation)
            history.setdefault("validation_loss", []).append(now)
            if now < best_score:
                best_score, best_epoch, best = now, epoch, _snapshot(head, loss)
        for callback in callbacks:
            callback(history)
        if validation is not None and epoch - best_epoch >= options.patience:
            break
    if validation is not None:
        with torch.no_grad():
            for tensor, value in zip(_tensors(head, loss), best, strict=True):
                tensor.copy_(value)
    head.eval()
    return history


@contextlib.contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[torch.Generator]:
    """Seed what initial weights and dropout draw from, and give it back as it was."""
    cuda = device.type == "cuda"
    with torch.random.fork_rng(devices=[device] if cuda else []):
        torch.default_generator.manual_seed(seed)
        if cuda:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        yield torch.Generator().manual_seed(seed)


@contextlib.contextmanager
def progress(title: str, epochs: int, shown: bool) -> Iterator[list[Callback]]:
    """A progress bar as a callback, where it is to be shown."""
    if not shown:
        yield []
        return
    with import_optional("tqdm", "sklearn").tqdm(total=epochs, desc=title) as bar:

        def update(history: Mapping[str, list[Any]]) -> None:
            bar.set_postfix({name: values[-1] for name, values in history.items() if name.endswith("_loss")})
            bar.update()

        yield [update]


def _epoch(
    head: RegressionHead,
    loss: nn.Module,
    rows: Rows,
    optimizer: torch.optim.Optimizer,
    options: TrainingOptions,
    generator: torch.Generator | None,
) -> dict[str, Any]:
    """Train on every row once, and return the means over the rows of what is to be remembered."""
    n = len(rows.x)
    total, mass = rows.x.new_zeros(()), rows.x.new_zeros(())
    balance, used, routed = rows.x.new_zeros(()), rows.x.new_zeros(()), 0
    for batch in _batches(rows, options.batch_size, generator):
        optimizer.zero_grad(set_to_none=True)
        preds, aux = head(batch.x, batch.categories, return_aux=True)
        data_loss = loss(preds, batch.target, weight=batch.weight)
        objective = data_loss
        for extra in aux.losses.values():
            objective = objective + extra
        objective.backward()
        optimizer.step()
        size = batch.weight.sum() if batch.weight is not None else len(batch.x)
        total, mass = total + data_loss.detach() * size, mass + size
        if aux.routing is not None:
            rows_here = len(batch.x)
            balance = balance + aux.routing.load_balancing_loss.detach() * rows_here
            used = used + expert_utilization(aux.routing.routing_weights.detach()) * rows_here
            routed += rows_here
    means: dict[str, Any] = {"train_loss": (total / mass).item()}
    if routed:
        means |= {"load_balancing_loss": (balance / n).item(), "expert_utilization": (used / n).tolist()}
    return means


def _batches(rows: Rows, batch_size: int, generator: torch.Generator | None) -> Iterable[Rows]:
    """All rows at once where they fit, in the given order; otherwise shuffled."""
    n = len(rows.x)
    if n <= batch_size:
        yield rows
        return
    order = torch.randperm(n, generator=generator).to(rows.x.device)
    for index in torch.split(order, batch_size):
        weight = None if rows.weight is None else rows.weight[index]
        yield Rows(rows.x[index], _take(rows.categories, index), rows.target[index], weight)


def _optimizer(head: RegressionHead, loss: nn.Module, options: TrainingOptions) -> torch.optim.Optimizer:
    groups = head.param_groups(options.lr, categorical_lr=options.categorical_lr, weight_decay=options.weight_decay)
    learned = list(loss.parameters())
    if learned:
        groups.append({"name": "loss", "params": learned, "lr": options.lr, "weight_decay": 0.0})
    return torch.optim.AdamW(groups, fused=True)


def _tensors(head: nn.Module, loss: nn.Module) -> list[Tensor]:
    return [*head.parameters(), *head.buffers(), *loss.parameters()]


def _snapshot(head: nn.Module, loss: nn.Module) -> list[Tensor]:
    return [tensor.detach().clone() for tensor in _tensors(head, loss)]


def _take(categories: Categories, index: Tensor | slice) -> dict[str, Tensor]:
    return {column: ids[index] for column, ids in categories.items()}
