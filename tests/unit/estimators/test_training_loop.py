"""The training loop: what it minimises, what it remembers, and what it leaves as it was."""

import math

import pytest
import torch
from torch import Tensor, nn

from reghead.estimators._data import Data, Rows
from reghead.estimators._training import TrainingOptions, predict, train
from reghead.heads import RegressionHead
from reghead.losses import MSELoss, PerOutputLoss


def linear_rows(n: int = 60, seed: int = 0, outputs: int = 1) -> Rows:
    rng = torch.Generator().manual_seed(seed)
    x = torch.randn(n, 2, generator=rng, dtype=torch.float64)
    target = x @ torch.tensor([[1.0], [-2.0]], dtype=torch.float64) + 0.5
    return Rows(x, {}, target.expand(n, outputs).contiguous())


def head(**options: object) -> RegressionHead:
    torch.manual_seed(0)
    return RegressionHead(2, 1, **{"dtype": torch.float64, **options})  # type: ignore[arg-type]


@pytest.mark.parametrize("batch_size", [20, 60])
def test_a_linear_head_finds_the_linear_map(batch_size: int) -> None:
    model = head()
    options = TrainingOptions(max_epochs=400, batch_size=batch_size, lr=0.05, weight_decay=0.0)
    train(model, MSELoss(), Data.of(linear_rows()), options)
    torch.testing.assert_close(model.weight.data, torch.tensor([[1.0, -2.0]], dtype=torch.float64), atol=1e-3, rtol=0)
    assert not model.training


def test_the_weights_of_the_best_epoch_are_restored() -> None:
    model, scores, seen = head(), iter([3.0, 1.0, 2.0, 5.0, 4.0, 0.0]), []

    def score(preds: Tensor, rows: Rows) -> float:
        seen.append(preds.clone())
        return next(scores)

    rows = linear_rows()
    options = TrainingOptions(max_epochs=6, patience=3)
    history = train(model, MSELoss(), Data.of(rows), options, validation=Data.of(rows), score=score)
    assert history["validation_loss"] == [3.0, 1.0, 2.0, 5.0, 4.0]  # epoch 2 is best, and three pass without a better
    assert len(history["train_loss"]) == 5
    torch.testing.assert_close(predict(model, rows.x, {}), seen[1], rtol=0, atol=0)


def test_a_score_that_is_never_a_number_restores_the_start() -> None:
    model, rows = head(), linear_rows()
    before = model.weight.detach().clone()
    train(
        model,
        MSELoss(),
        Data.of(rows),
        TrainingOptions(max_epochs=3),
        validation=Data.of(rows),
        score=lambda *_: math.nan,
    )
    assert torch.equal(model.weight, before)


def test_history_tells_of_the_experts() -> None:
    moe = {"num_experts": 3, "route_features": True, "load_balancing_weight": 0.1}
    history = train(head(moe=moe), MSELoss(), Data.of(linear_rows()), TrainingOptions(max_epochs=4, batch_size=16))
    assert {len(values) for values in history.values()} == {4}
    for shares, balance in zip(history["expert_utilization"], history["load_balancing_loss"], strict=True):
        assert sum(shares) == pytest.approx(1.0)
        assert balance > 0.5


def test_the_load_balancing_loss_is_trained() -> None:
    def final_balance(weight: float) -> float:
        moe = {"num_experts": 3, "route_features": True, "load_balancing_weight": weight}
        model = head(moe=moe)
        history = train(model, MSELoss(), Data.of(linear_rows()), TrainingOptions(max_epochs=150, lr=0.03))
        return float(history["load_balancing_loss"][-1])

    assert final_balance(10.0) < final_balance(0.0)


def test_the_parameters_of_a_loss_are_trained_without_decay() -> None:
    loss = PerOutputLoss({"a": "mse"}, outputs=["a"], uncertainty=True, dtype=torch.float64)
    train(head(), loss, Data.of(linear_rows()), TrainingOptions(max_epochs=3))
    assert loss.log_variance is not None
    assert loss.log_variance.abs().max() > 0


def test_the_train_loss_is_the_weighted_mean_over_all_rows() -> None:
    rows = linear_rows(30)._replace(weight=torch.arange(30, dtype=torch.float64))
    model = head()
    expected = MSELoss()(predict(model, rows.x, {}), rows.target, weight=rows.weight)
    # At a rate this small the weights stay where they are through the epoch.
    options = TrainingOptions(max_epochs=1, batch_size=7, lr=1e-12, weight_decay=0.0)
    history = train(model, MSELoss(), Data.of(rows), options)
    assert history["train_loss"][0] == pytest.approx(expected.item())


def test_predict_gives_the_mode_back_and_takes_no_rows() -> None:
    model = nn.Sequential(nn.Dropout(0.5), nn.Linear(2, 1))

    class Takes(nn.Module):
        def forward(self, x: Tensor, categories: object) -> Tensor:
            return model(x)  # type: ignore[no-any-return]

    wrapped = Takes()
    assert predict(wrapped, torch.zeros(0, 2), {}).shape == (0, 1)
    assert wrapped.training


def test_a_diverged_run_is_an_error() -> None:
    rows = linear_rows()._replace(target=torch.full((60, 1), math.inf, dtype=torch.float64))
    with pytest.raises(RuntimeError, match=r"training diverged: the loss of epoch 1 is .*; lower lr, which is 0.003"):
        train(head(), MSELoss(), Data.of(rows), TrainingOptions())


def test_validation_needs_a_score() -> None:
    with pytest.raises(ValueError, match="validation and score go together"):
        train(head(), MSELoss(), Data.of(linear_rows()), TrainingOptions(), validation=Data.of(linear_rows()))


@pytest.mark.parametrize(("name", "value"), [("max_epochs", 0), ("lr", 0.0), ("weight_decay", -1.0), ("patience", 1.5)])
def test_options_are_checked(name: str, value: float) -> None:
    with pytest.raises((TypeError, ValueError), match=name):
        TrainingOptions(**{name: value})  # type: ignore[arg-type]
