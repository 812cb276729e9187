"""What each flag of the mixture of experts does to a model that ``reghead train`` trains."""

import numpy as np
import pytest
import torch

from end_to_end._cli import LOCATIONS, Cli, Trained, shows

FLAGS = "--categorical-columns location,season --categorical-fusion none"
BY_LOCATION = f"{FLAGS} --moe-experts 4 --moe-routing location"


def routing(trained: Trained, **values: object) -> torch.Tensor:
    """Weight of each expert in each row."""
    weights: torch.Tensor = trained.aux(**values).routing.routing_weights
    return weights.expand(len(trained.table), -1)


def utilization(trained: Trained) -> np.ndarray:
    columns = [name for name in trained.history if name.startswith("expert_utilization_")]
    return trained.history[columns].to_numpy()


@shows("train --moe-experts")
def test_experts_share_the_rows(cli: Cli) -> None:
    trained = cli.train("--moe-experts 3")
    assert utilization(trained).shape == (40, 3)
    np.testing.assert_allclose(utilization(trained).sum(1), 1)
    assert routing(trained).shape == (len(trained.table), 3)
    assert not [name for name in cli.train().history if "expert" in name]


@shows("train --moe-routing")
def test_routing_by_a_column_is_one_mixture_for_each_category(cli: Cli) -> None:
    trained = cli.train(BY_LOCATION)
    mixtures = {location: routing(trained, location=location) for location in LOCATIONS}
    for weights in mixtures.values():
        assert (weights == weights[0]).all()
    assert (mixtures["hill"][0] - mixtures["sea"][0]).abs().max() > 0.1
    assert routing(trained, season="dry").equal(routing(trained, season="mild"))


@shows("train --moe-experts")
def test_without_columns_the_features_route(cli: Cli) -> None:
    weights = routing(cli.train(f"{FLAGS} --moe-experts 4"), location="hill")
    assert (weights - weights[0]).abs().max() > 0.01


@shows("train --moe-mix")
def test_mixed_parameters_are_a_single_expert_for_each_category(cli: Cli) -> None:
    """With one hidden unit an expert bends once; a mixture of outputs bends where any of its experts does."""
    points = np.linspace(-4, 4, 400)

    def bends(trained: Trained, location: str) -> int:
        rows = trained.rows(location=location).head(1)
        rows = rows.loc[rows.index.repeat(len(points))].assign(x0=points, x1=-0.7 * points)
        bent = np.abs(np.diff(trained.model.predict(rows), 2)) > 1e-6
        return int(np.diff(bent.astype(int), prepend=0).clip(min=0).sum())

    flags = f"{BY_LOCATION} --regressor-hidden-dims 1"
    parameters, outputs = cli.train(f"{flags} --moe-mix parameters"), cli.train(flags)
    assert max(bends(parameters, location) for location in LOCATIONS) == 1
    assert max(bends(outputs, location) for location in LOCATIONS) > 1


@shows("train --moe-gate")
def test_the_hard_gate_takes_one_expert(cli: Cli) -> None:
    hard, soft = routing(cli.train(f"{BY_LOCATION} --moe-gate hard")), routing(cli.train(BY_LOCATION))
    assert ((hard > 0).sum(-1) == 1).all()
    assert (soft > 0).all()


@shows("train --moe-gate")
def test_the_top_k_gate_takes_two_experts_by_itself(cli: Cli) -> None:
    weights = routing(cli.train(f"{BY_LOCATION} --moe-gate top_k"))
    assert ((weights > 0).sum(-1) == 2).all()


@shows("train --moe-top-k")
def test_the_top_k_gate_takes_as_many_experts_as_it_is_told(cli: Cli) -> None:
    weights = routing(cli.train(f"{BY_LOCATION} --moe-gate top_k --moe-top-k 3"))
    assert ((weights > 0).sum(-1) == 3).all()
    torch.testing.assert_close(weights.sum(-1), torch.ones(len(weights), dtype=weights.dtype))


@shows("train --moe-temperature")
def test_a_low_temperature_sharpens_and_a_high_one_flattens(cli: Cli) -> None:
    cold, plain, hot = (
        routing(cli.train(f"{BY_LOCATION}{flag} --max-epochs 5")).max(-1).values.mean().item()
        for flag in (" --moe-temperature 0.1", "", " --moe-temperature 1000")
    )
    assert cold > plain > hot
    assert hot == pytest.approx(1 / 4, abs=0.01)


@shows("train --moe-load-balancing-weight")
def test_the_load_balancing_loss_evens_the_use_of_experts(cli: Cli) -> None:
    flags = f"{BY_LOCATION} --max-epochs 100"
    balanced, free = cli.train(f"{flags} --moe-load-balancing-weight 1"), cli.train(flags)
    assert balanced.history["load_balancing_loss"].iloc[-1] < 1.01 < free.history["load_balancing_loss"].iloc[-1]
    np.testing.assert_allclose(utilization(balanced)[-1], 1 / 4, atol=0.02)
    assert utilization(free)[-1].std() > 0.1
