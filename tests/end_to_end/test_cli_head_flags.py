"""What each flag of the head does to a model that ``reghead train`` trains."""

from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import r2_score

from end_to_end._cli import LOCATIONS, SEASONS, Cli, Trained, shows

COLUMNS = "--categorical-columns location,season"
ALONE = f"{COLUMNS} --categorical-fusion none"  # categories act through the part that is asked for, and no other


def r2(trained: Trained, target: str) -> float:
    return float(r2_score(trained.table[target], trained.predict()))


def by_location(trained: Trained, **values: Any) -> np.ndarray:
    """Predictions at the same features and season for each location, shape (3, B)."""
    same = {"season": "dry", **values}
    return np.array([trained.predict(location=location, **same) for location in LOCATIONS])


def line_of(trained: Trained, points: np.ndarray, **values: Any) -> np.ndarray:
    """Predictions along a line through the features."""
    rows = trained.rows(**values).head(1)
    rows = rows.loc[rows.index.repeat(len(points))].assign(x0=points, x1=0.3 * points)
    return np.asarray(trained.model.predict(rows))


@shows("train --regressor-hidden-dims")
def test_hidden_layers_learn_what_no_line_can(cli: Cli) -> None:
    flags = "--target bent --max-epochs 150"
    linear, deep = cli.train(flags), cli.train(f"{flags} --regressor-hidden-dims 7,5")
    shapes = [tuple(p.shape[-2:]) for p in deep.head.parameters() if p.ndim > 1]
    assert shapes == [(7, 2), (5, 7), (1, 5)]
    assert r2(linear, "bent") < 0.2
    assert r2(deep, "bent") > 0.9


@shows("train --regressor-dropout")
def test_dropout_disturbs_training_and_not_predictions(cli: Cli) -> None:
    flags = "--target plane --regressor-hidden-dims 8 --max-epochs 100"
    plain, dropped = cli.train(flags), cli.train(f"{flags} --regressor-dropout 0.5")
    assert dropped.history["train_loss"].iloc[-1] > 3 * plain.history["train_loss"].iloc[-1]
    np.testing.assert_array_equal(dropped.predict(), dropped.predict())


@shows("train --regressor-activation")
@pytest.mark.parametrize(("activation", "saturates"), [("relu", False), ("tanh", True)])
def test_tanh_is_flat_far_away_where_relu_goes_on(cli: Cli, activation: str, saturates: bool) -> None:
    trained = cli.train(f"--target plane --regressor-hidden-dims 8 --regressor-activation {activation}")
    near, far = line_of(trained, np.array([1e5, 1e6]))
    assert (abs(near - far) < 1e-6) == saturates


@shows("train --regressor-norm")
@pytest.mark.parametrize("norm", ["layer", "rms"])
def test_a_normalized_hidden_layer_does_not_see_the_length_of_the_features(cli: Cli, norm: str) -> None:
    flags = "--target plane --regressor-hidden-dims 8"
    near, far = line_of(cli.train(f"{flags} --regressor-norm {norm}"), np.array([1e6, 1e9]))
    assert near == pytest.approx(far, rel=1e-4)
    near, far = line_of(cli.train(flags), np.array([1e6, 1e9]))
    assert abs(far) > 100 * abs(near)


@shows("train --residual-regression-head")
def test_a_residual_head_goes_on_in_a_line_where_its_hidden_layer_is_flat(cli: Cli) -> None:
    flags = "--target plane --regressor-hidden-dims 1 --regressor-activation tanh --max-epochs 200"
    residual, without = cli.train(f"{flags} --residual-regression-head"), cli.train(flags)
    assert r2(residual, "plane") > 0.999
    first, second, third = line_of(residual, np.array([1000.0, 2000.0, 3000.0]))
    assert abs(second - first) > 100
    assert third - second == pytest.approx(second - first)
    first, second = line_of(without, np.array([1000.0, 2000.0]))
    assert first == pytest.approx(second, abs=1e-6)


@shows("train --ensemble")
def test_members_of_an_ensemble_differ_and_predict_by_their_mean(cli: Cli) -> None:
    trained = cli.train("--target plane --regressor-hidden-dims 8 --ensemble 4 --max-epochs 100")
    members = trained.aux().members.squeeze(-1)
    assert members.shape == (4, len(trained.table))
    assert members.std(0).min() > 0
    torch.testing.assert_close(members.mean(0), trained.preds_z())


@shows("train --ensemble")
def test_every_member_of_an_ensemble_is_trained_to_predict_by_itself(cli: Cli) -> None:
    trained = cli.train("--target plane --regressor-hidden-dims 8 --ensemble 4 --max-epochs 100")
    z = trained.z("plane")
    errors = (trained.aux().members.squeeze(-1) - z).square().mean(-1).sqrt()
    assert errors.max() < 0.1


@shows("train --categorical-columns")
def test_categories_explain_the_levels(cli: Cli) -> None:
    assert r2(cli.train(), "copper") < 0.3
    trained = cli.train("--categorical-columns location --max-epochs 200")
    assert r2(trained, "copper") > 0.9
    assert trained.model.encoder_.vocabularies["location"].labels == LOCATIONS


@shows("train --categorical-embed-dim")
def test_the_width_of_the_embeddings(cli: Cli) -> None:
    assert cli.train(f"{COLUMNS} --categorical-embed-dim 3").head.weight.shape == (1, 2 + 2 * 3)
    assert cli.train(COLUMNS).head.weight.shape == (1, 2 + 2 * 16)


@shows("train --categorical-fusion")
@pytest.mark.parametrize(("fusion", "width"), [("concat", 34), ("add", 2)])
def test_fusion_joins_the_embeddings_to_the_features(cli: Cli, fusion: str, width: int) -> None:
    trained = cli.train(f"{COLUMNS} --categorical-fusion {fusion} --max-epochs 150")
    assert trained.head.weight.shape == (1, width)
    hill, _, sea = by_location(trained).mean(1)
    assert sea - hill > 100


@shows("train --categorical-fusion")
def test_without_fusion_the_categories_say_nothing(cli: Cli) -> None:
    preds = by_location(cli.train(ALONE))
    np.testing.assert_array_equal(preds[0], preds[2])


@shows("train --film-conditioning")
def test_film_gives_each_category_a_slope_of_its_own(cli: Cli) -> None:
    flags = f"{ALONE} --regressor-hidden-dims 8 --max-epochs 200"
    film = cli.train(f"{flags} --film-conditioning location")
    rising = [np.diff(line_of(film, np.array([0.0, 1.0]), location=location)).item() for location in LOCATIONS]
    assert rising[2] > 10 > 0 > rising[1]  # 20 at the sea, -6 at a lake
    preds = by_location(cli.train(flags))
    np.testing.assert_array_equal(preds[0], preds[2])


@shows("train --conditional-output-scaling")
def test_conditional_scaling_scales_and_shifts_by_category(cli: Cli) -> None:
    trained = cli.train(f"{ALONE} --conditional-output-scaling location --max-epochs 200")
    unknown = trained.preds_z(location=None)  # the identity: what the rest of the head says
    scale, bias = (getattr(trained.head.scaler, f"{kind}_location").detach().squeeze(-1) for kind in ("scale", "bias"))
    for i, location in enumerate(LOCATIONS):
        torch.testing.assert_close(trained.preds_z(location=location), (1 + scale[i]) * unknown + bias[i])
    assert len({round(float(s), 2) for s in scale}) == 3
    levels = by_location(trained).mean(1)
    np.testing.assert_allclose(levels, trained.table.groupby("location")["copper"].mean(), atol=12)


@shows("train --conditional-output-scaling", "train --scaling-compose")
def test_additive_scaling_has_no_interaction_and_sequential_has(cli: Cli) -> None:
    flags = f"{ALONE} --conditional-output-scaling location,season"

    def interaction(trained: Trained) -> float:
        z = {(a, b): trained.preds_z(location=a, season=b).numpy() for a in ("sea", None) for b in ("wet", "dry", None)}
        gaps = [z["sea", b] - z["sea", None] - z[None, b] + z[None, None] for b in ("wet", "dry")]
        return float(np.abs(gaps).max())

    assert interaction(cli.train(f"{flags} --scaling-compose additive")) < 1e-12
    assert interaction(cli.train(flags)) > 1e-3


@shows("train --wide-columns")
def test_random_intercepts_shift_and_never_tilt(cli: Cli) -> None:
    trained = cli.train(f"{ALONE} --wide-columns location --max-epochs 200")
    hill, lake, sea = by_location(trained)
    np.testing.assert_allclose(sea - hill, (sea - hill).mean())
    np.testing.assert_allclose(lake - hill, (lake - hill).mean())
    assert (sea - hill).mean() > 150


@shows("train --wide-columns")
def test_random_intercepts_of_two_columns_have_one_for_each_combination(cli: Cli) -> None:
    trained = cli.train(f"{ALONE} --wide-columns location,season --max-epochs 60")
    cells = trained.head.wide.cell_bias.detach().squeeze(-1)  # by the names of the columns: location, then season
    assert cells[LOCATIONS.index("sea"), SEASONS.index("wet")] == 0.0  # never sampled: no gradient
    assert (cells == 0.0).sum() == 1


@shows("train --partial-pooling")
def test_partial_pooling_pulls_the_intercepts_to_the_population(cli: Cli) -> None:
    flags = f"{ALONE} --wide-columns location --max-epochs 150"
    free, mild, strong = (
        cli.train(f"{flags}{pooling}").head.wide.bias_location.abs().sum()
        for pooling in ("", " --partial-pooling 20", " --partial-pooling 2000")
    )
    assert free > 1.1 * mild > 2 * strong


@shows("train --unknown-dropout")
def test_unknown_dropout_makes_the_unknown_category_the_population(cli: Cli) -> None:
    """Where categories are hidden the head has to predict as one that never had any."""
    flags = f"{ALONE} --conditional-output-scaling location --loss-type mse --max-epochs 200"
    population = cli.train("--loss-type mse --max-epochs 200").predict()

    def miss(trained: Trained) -> float:
        with pytest.warns(UserWarning, match="desert"):
            return float(np.abs(trained.predict(location="desert") - population).mean())

    assert miss(cli.train(f"{flags} --unknown-dropout 0.3")) < 0.3 * miss(cli.train(flags))


@shows("train --learnable-output-scale")
def test_the_learnable_scale_is_learned_and_applied(cli: Cli) -> None:
    trained = cli.train("--learnable-output-scale --target plane")
    head = trained.head
    linear = torch.nn.functional.linear(trained.inputs()[0], head.weight, head.bias).squeeze(-1).detach()
    scale = (trained.preds_z().std() / linear.std()).item()
    assert abs(scale - 1) > 0.01
    torch.testing.assert_close(trained.preds_z() - trained.preds_z().mean(), scale * (linear - linear.mean()))
    assert cli.train("--target plane").head.learnable_scale is None
