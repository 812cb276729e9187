"""What each flag of the loss, the target's scale and the output does to a model that ``reghead train`` trains."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from end_to_end._cli import LOCATIONS, NEVER, SEASON, Cli, Trained, shows
from reghead.normalization import MixedEffects

COLUMNS = "--categorical-columns location,season"
LONG = "--target skewed --max-epochs 500"

Score = Callable[[np.ndarray], np.ndarray]


def statistics(trained: Trained, location: str | None, season: str | None = None) -> tuple[float, float]:
    """Mean and standard deviation of a cell, read off as what z = 0 and z = 1 stand for."""
    model = trained.model
    labels = {"location": [location, location], "season": [season, season]}
    ids = model.encoder_.transform({column: labels[column] for column in model.encoder_.cardinalities})
    z = torch.tensor([[0.0], [1.0]], dtype=torch.float64)
    zero, one = model.normalizer_.inverse(z, ids).flatten().tolist()
    return zero, one - zero


def asymmetric(over: float, under: float, base: Score) -> Score:
    return lambda error: np.where(error > 0, over, under) * base(error)


def clipped(at: float) -> Score:
    return lambda error: np.clip(error, -at, at)


def square(error: np.ndarray) -> np.ndarray:
    return error


# The derivative of each loss by the prediction, as a function of the error, preds - target.
DERIVATIVES: dict[str, Score] = {
    "--loss-type mse": square,
    "--loss-type mae": np.sign,
    "--loss-type huber": clipped(1.0),
    "--loss-type huber --huber-delta 0.2": clipped(0.2),
    "--loss-type log_cosh": np.tanh,
    "--loss-type expectile --expectile 0.9": asymmetric(0.1, 0.9, square),
    "--loss-type asymmetric --over-penalty 4": asymmetric(4.0, 1.0, square),
    "--loss-type asymmetric --under-penalty 4": asymmetric(1.0, 4.0, square),
    "--loss-type asymmetric --over-penalty 4 --asymmetric-base mae": asymmetric(4.0, 1.0, np.sign),
    "--loss-type asymmetric --under-penalty 3 --asymmetric-base huber": asymmetric(1.0, 3.0, clipped(1.0)),
}


@shows("train --loss-type")
@pytest.mark.parametrize("flags", DERIVATIVES)
def test_each_loss_is_minimised_and_none_of_the_others(cli: Cli, flags: str) -> None:
    """At the minimum of a linear model the mean of the derivative is zero, alone and along every feature."""
    trained = cli.train(f"{LONG} {flags}")
    x = trained.inputs()[0].numpy()
    error = (trained.preds_z() - trained.z("skewed")).numpy()

    def gradient(derivative: Score) -> float:
        slope = derivative(error) / np.abs(derivative(error)).mean()
        return float(np.abs([slope.mean(), *(slope[:, None] * x).mean(0)]).max())

    own, *others = sorted((gradient(derivative), name) for name, derivative in DERIVATIVES.items())
    assert own[1] == flags
    assert own[0] < (0.02 if "mae" in flags else 1e-6)  # the share of rows above has steps of 1/240
    assert others[0][0] > (0.025 if "mae" in flags else 1e-3)


@shows("train --loss-type")
def test_huber_is_the_default_loss(cli: Cli) -> None:
    np.testing.assert_array_equal(cli.train(LONG).predict(), cli.train(f"{LONG} --loss-type huber").predict())


@shows("train --over-penalty", "train --under-penalty")
def test_what_costs_more_happens_less(cli: Cli) -> None:
    def bias(flags: str) -> float:
        trained = cli.train(f"{LONG} --loss-type asymmetric {flags}")
        return float((trained.predict() - trained.table["skewed"]).mean())

    assert bias("--over-penalty 4") < -1 < bias("") < 1 < bias("--under-penalty 4")


@shows("train --huber-delta", "train --expectile", "train --asymmetric-base")
def test_parameters_of_a_loss_move_the_predictions(cli: Cli) -> None:
    def level(flags: str) -> float:
        return float(cli.train(f"{LONG} {flags}").predict().mean())

    mean = level("--loss-type mse")
    # The target has a long tail upwards: the sooner a loss turns linear, the further below the mean it stays.
    assert level("--loss-type huber --huber-delta 0.2") < level("--loss-type huber") < mean
    assert level("--loss-type expectile --expectile 0.9") > mean + 2
    # The expectile of level 0.2 and the quantile of level 0.2, which is lower where the short tail is the lower one.
    expectile = level("--loss-type asymmetric --over-penalty 4")
    assert level("--loss-type asymmetric --over-penalty 4 --asymmetric-base mae") < expectile - 0.5 < mean - 1


@shows("train --quantiles", "train --loss-type")
def test_quantiles_are_ordered_and_cover_what_they_say(cli: Cli) -> None:
    trained = cli.train(f"{LONG} --loss-type quantile --quantiles 0.25,0.75")
    quantiles = trained.model.predict_quantiles(trained.rows())
    assert quantiles.shape == (240, 2)
    assert (np.diff(quantiles) > 0).all()
    share = (trained.table["skewed"].to_numpy()[:, None] <= quantiles).mean(0)
    np.testing.assert_allclose(share, [0.25, 0.75], atol=0.03)
    written = cli.predict(trained)
    np.testing.assert_allclose(written[["skewed_q0.25", "skewed_q0.75"]], quantiles)
    assert trained.metrics["training"]["overall"]["skewed"]["confidence_level"] == pytest.approx(0.5)


@shows("train --allow-crossing")
def test_free_quantiles_may_cross_in_training_and_are_sorted_in_predictions(cli: Cli) -> None:
    flags = "--target skewed --loss-type quantile --quantiles 0.4,0.45,0.5,0.55,0.6 --max-epochs 3"

    def crossing(trained: Trained) -> float:
        trained.head.train()
        raw = trained.preds_z().diff(dim=-1)
        trained.head.eval()
        return float((raw < 0).double().mean())

    free, ordered = cli.train(f"{flags} --allow-crossing"), cli.train(flags)
    assert crossing(free) > 0.1
    assert crossing(ordered) == 0.0
    assert (np.diff(free.model.predict_quantiles(free.rows())) >= 0).all()


@shows("train --loss-config")
@pytest.mark.parametrize("inline", [True, False])
def test_each_output_has_the_loss_that_the_config_names(cli: Cli, inline: bool) -> None:
    losses = json.dumps({"skewed": "mse", "copper": {"type": "quantile", "quantiles": [0.2, 0.8]}})
    file = cli.folder / "losses.json"
    file.write_text(losses)
    text = losses if inline else str(file)
    trained = cli.train(f"--target copper,skewed,plane --max-epochs 500 --loss-config '{text}'")
    preds, quantiles = trained.predict(), trained.model.predict_quantiles(trained.rows())
    error = preds - trained.table[["copper", "skewed", "plane"]].to_numpy()
    assert abs(error[:, 1].mean()) < 0.1  # mse: the mean, which is far above the median here
    assert np.median(error[:, 1]) > 1
    share = (trained.table["copper"].to_numpy()[:, None] <= quantiles[:, 0]).mean(0)
    np.testing.assert_allclose(share, [0.2, 0.8], atol=0.04)
    assert np.isnan(quantiles[:, 1:]).all()
    assert np.abs(error[:, 2]).max() < 0.1  # named nowhere: --loss-type
    assert list(cli.predict(trained).columns[1:]) == [
        *("copper_pred", "copper_q0.2", "copper_q0.8", "skewed_pred", "plane_pred"),
    ]


@shows("train --normalize-targets")
def test_normalize_targets_standardises_by_one_mean_and_standard_deviation(cli: Cli) -> None:
    """Also bounded targets, which are not standardised unless that is asked for, on the scale of their logits."""
    trained = cli.train("--target share --bounded-targets --normalize-targets")
    share = trained.table["share"]
    logits = np.log(share / (1 - share))
    np.testing.assert_allclose(trained.z("share"), (logits - logits.mean()) / logits.std())
    assert cli.train("--target share --bounded-targets").model.normalizer_ is None


@shows("train --no-normalize-targets")
def test_without_normalization_the_head_predicts_in_the_units_of_the_target(cli: Cli) -> None:
    trained = cli.train("--target plane --no-normalize-targets --max-epochs 500 --loss-type mse")
    assert trained.model.normalizer_ is None
    np.testing.assert_allclose(trained.preds_z(), trained.predict())
    scale = trained.table[["x0", "x1"]].std(ddof=0)
    np.testing.assert_allclose(trained.head.weight.detach().numpy()[0] / scale, [2, -5], rtol=0.01)


@shows("train --normalize-targets-by")
def test_normalize_targets_by_takes_the_moments_of_each_combination(cli: Cli) -> None:
    trained = cli.train(f"{COLUMNS} --normalize-targets-by location,season")
    cells = trained.table.groupby(["location", "season"])["copper"].agg(["mean", "std"])
    for (location, season), expected in cells.iterrows():
        np.testing.assert_allclose(statistics(trained, location, season), expected)
    copper = trained.table["copper"]
    with pytest.warns(UserWarning, match="no training rows|never"):
        np.testing.assert_allclose(statistics(trained, *NEVER), [copper.mean(), copper.std()])


@shows("train --normalize-shrinkage")
def test_shrinkage_moves_the_mean_of_each_category_toward_the_population(cli: Cli) -> None:
    flags = f"{COLUMNS} --normalize-targets-by season --target skewed"
    shrunk = cli.train(f"{flags} --normalize-shrinkage empirical_bayes")
    mean = shrunk.table["skewed"].mean()
    for season, own in shrunk.table.groupby("season")["skewed"].mean().items():
        assert statistics(cli.train(flags), None, season)[0] == pytest.approx(own)
        assert abs(statistics(shrunk, None, season)[0] - mean) < 0.99 * abs(own - mean)


@shows("train --normalize-fallback")
def test_the_additive_fallback_adds_the_effects_of_the_columns(cli: Cli) -> None:
    """The combination that was never sampled: main effects by least squares over the rows."""
    trained = cli.train(f"{COLUMNS} --normalize-targets-by location,season --normalize-fallback additive")
    table = trained.table

    def design(rows: pd.DataFrame) -> np.ndarray:
        columns = [rows["location"] == c for c in LOCATIONS] + [rows["season"] == c for c in list(SEASON)[1:]]
        return np.stack(columns, axis=1).astype(float)

    effects = np.linalg.lstsq(design(table), table["copper"], rcond=None)[0]
    (expected,) = design(pd.DataFrame([NEVER], columns=["location", "season"])) @ effects
    assert expected > 180
    with pytest.warns(UserWarning, match="no training rows|never"):
        assert statistics(trained, *NEVER)[0] == pytest.approx(expected)


@shows("train --normalize-method")
def test_a_mixed_model_separates_the_slope_from_the_levels(cli: Cli) -> None:
    trained = cli.train(f"{COLUMNS} --normalize-method mixed_effects --dtype float64")
    model = trained.model.normalizer_
    assert isinstance(model, MixedEffects)
    effects = model.statistics().effects["location"][1:, 0]
    np.testing.assert_allclose(effects.diff().numpy(), [40.0, 140.0], atol=4.0)  # LEVEL, without what the season does


@shows("train --target-transform")
def test_the_target_is_transformed_before_it_is_standardised(cli: Cli) -> None:
    trained = cli.train("--target bent --target-transform log1p")
    logs = np.log1p(trained.table["bent"])
    np.testing.assert_allclose(trained.z("bent"), (logs - logs.mean()) / logs.std())
    np.testing.assert_allclose(trained.predict(), np.expm1(trained.preds_z().numpy() * logs.std() + logs.mean()))


@shows("train --output-activation")
@pytest.mark.parametrize("normalize", ["", " --no-normalize-targets"])
@pytest.mark.parametrize("activation", ["relu", "softplus", "exp"])
def test_an_output_activation_keeps_predictions_at_or_above_zero(cli: Cli, activation: str, normalize: str) -> None:
    flags = "--target bent --max-epochs 20"
    points = {"x0": np.linspace(-300, 300, 240), "x1": 0.0}
    kept = cli.train(f"{flags} --output-activation {activation}{normalize}").predict(**points)
    assert (kept >= 0).all()
    assert kept.max() > kept.min()
    assert cli.train(f"{flags}{normalize}").predict(**points).min() < 0


@shows("train --bounded-targets")
@pytest.mark.parametrize("normalize", ["", " --normalize-targets"])
def test_bounded_targets_stay_between_0_and_1(cli: Cli, normalize: str) -> None:
    points = {"x0": 0.0, "x1": np.linspace(-10, 10, 240)}
    flags = "--target share --max-epochs 200"
    preds = cli.train(f"{flags} --bounded-targets{normalize}").predict(**points)
    assert ((preds > 0) & (preds < 1)).all()
    assert (np.diff(preds) > 0).all()
    without = cli.train(flags).predict(**points)
    assert without.min() < 0 < 1 < without.max()


@shows("train --bounded-targets")
def test_bounded_targets_may_be_at_the_bounds(cli: Cli, tmp_path: Path) -> None:
    file = tmp_path / "table.csv"
    cli.table.assign(share=(cli.table["share"] > 0.5).astype(float)).to_csv(file, index=False)
    preds = cli.train("--target share --bounded-targets", file=file).predict()
    assert ((preds > 0) & (preds < 1)).all()
