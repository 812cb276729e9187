"""Skill against a baseline."""

import pytest
import torch

from reghead.functional import pinball_loss
from reghead.metrics import rmse, skill


def test_perfect_is_1_the_baseline_is_0_and_worse_is_below() -> None:
    scores = torch.tensor([0.0, 1.0, 2.0, 6.0])
    assert skill(scores, torch.full((4,), 2.0)).tolist() == [1.0, 0.5, 0.0, -2.0]


def test_beside_a_perfect_baseline_there_is_none() -> None:
    found = skill(torch.tensor([0.0, 1.0]), torch.zeros(2))
    assert found[0].isnan()
    assert found[1] == -torch.inf


def test_it_has_no_units() -> None:
    target, preds, training = torch.tensor([1.0, 4.0]), torch.tensor([2.0, 3.0]), torch.tensor([0.0, 4.0])
    for scale in (1.0, 1e6):
        baseline = (scale * training).mean().expand(2)
        found = skill(rmse(scale * preds, scale * target), rmse(baseline, scale * target))
        assert found.item() == pytest.approx(1.0 - 1.0 / 2.5**0.5)


def test_quantiles_of_the_training_target_have_a_skill_of_0() -> None:
    training = torch.arange(1.0, 12.0)
    levels = (0.1, 0.5, 0.9)
    baseline = training.quantile(torch.tensor(levels)).expand(11, 3)
    score = pinball_loss(baseline, training, levels)
    assert skill(score, pinball_loss(baseline, training, levels)) == 0.0
    assert skill(pinball_loss(baseline + 1.0, training, levels), score) < 0.0


def test_nothing_is_broadcast() -> None:
    with pytest.raises(ValueError, match=r"baseline must have shape of score = \(2,\), got \(\)"):
        skill(torch.ones(2), torch.tensor(1.0))
