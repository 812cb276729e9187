"""The state of a training: taken, put back, and nothing of it shared with what goes on."""

import math

import pytest
import torch
from torch import nn

from reghead._persistence import decode_json
from reghead.estimators._state import TrainingState


def parts(seed: int = 0, width: int = 3) -> tuple[nn.Module, nn.Module, torch.optim.Optimizer]:
    head = nn.Sequential(nn.Linear(2, width), nn.BatchNorm1d(width), nn.Linear(width, 1))
    loss = nn.Module()
    loss.log_scale = nn.Parameter(torch.zeros(1))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return head, loss, torch.optim.AdamW([*head.parameters(), *loss.parameters()], lr=0.1)


def steps(
    made: tuple[nn.Module, nn.Module, torch.optim.Optimizer], state: TrainingState, first: int, last: int
) -> None:
    head, loss, optimizer = made
    for epoch in range(first, last):
        x = torch.randn(8, 2, generator=torch.Generator().manual_seed(epoch))
        optimizer.zero_grad()
        value = (head(x) ** 2).mean() * loss.log_scale.exp().sum() - loss.log_scale.sum()
        value.backward()
        optimizer.step()
        state.history["train_loss"].append(value.item())
        state.judge(abs(epoch - 3))  # the best is epoch 3, the fourth


def equal(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(value, right[name]) for name, value in left.items())


def test_going_on_is_as_never_having_stopped() -> None:
    whole = parts()
    state = TrainingState(*whole)
    steps(whole, state, 0, 8)
    first = parts()
    before = TrainingState(*first)
    steps(first, before, 0, 5)
    second = parts(seed=1)
    after = TrainingState(*second)
    after.load(before.tensors())
    assert (after.epoch, after.epochs_since_best) == (5, 1)
    steps(second, after, 5, 8)
    assert equal(after.tensors(), state.tensors())
    state.restore_best()
    after.restore_best()
    assert all(torch.equal(a, b) for a, b in zip(whole[0].buffers(), second[0].buffers(), strict=True))


def test_what_is_taken_does_not_change_afterwards() -> None:
    made = parts()
    state = TrainingState(*made)
    steps(made, state, 0, 2)
    taken = state.tensors()
    copy = {name: tensor.clone() for name, tensor in taken.items()}
    steps(made, state, 2, 4)
    state.restore_best()
    assert equal(taken, copy)
    again = parts(seed=1)
    other = TrainingState(*again)
    other.load(taken)
    steps(again, other, 2, 3)
    assert all(torch.equal(taken[name], copy[name]) for name in taken if name.startswith(("now", "best")))


def test_the_first_epoch_is_the_best_until_a_score_says_more() -> None:
    made = parts()
    state = TrainingState(*made)
    assert (state.epoch, state.epochs_since_best) == (0, -1)
    for score, since in ((math.nan, 0), (2.0, 0), (2.0, 1), (math.inf, 2), (1.0, 0)):
        state.history["train_loss"].append(0.0)
        state.judge(score)
        assert state.epochs_since_best == since, score


def test_scores_that_are_no_numbers_survive() -> None:
    made = parts()
    state = TrainingState(*made)
    state.history["train_loss"] = [1.0]
    state.history["validation_loss"] = [math.nan]
    state.history["expert_utilization"] = [[0.25, 0.75]]
    state.judge(math.nan)
    tensors = state.tensors()
    assert decode_json(tensors["progress"])["best"] == {"score": None, "epoch": 1}
    again = TrainingState(*parts())
    again.load(tensors)
    assert math.isnan(again.history["validation_loss"][0])
    assert again.history["expert_utilization"] == [[0.25, 0.75]]
    again.history["train_loss"].append(1.0)
    again.judge(5.0)
    assert again.epochs_since_best == 0, "any number is better than none"


@pytest.mark.parametrize("change", ["another width", "no progress", "one tensor less"])
def test_a_state_of_another_model_changes_nothing(change: str) -> None:
    tensors = TrainingState(*parts(seed=1, width=4 if change == "another width" else 3)).tensors()
    if change == "no progress":
        del tensors["progress"]
    elif change == "one tensor less":
        del tensors["now.0"]
    state = TrainingState(*parts())
    before = state.tensors()
    with pytest.raises(ValueError, match="the checkpoint is that of another model; start anew"):
        state.load(tensors)
    assert equal(state.tensors(), before)
