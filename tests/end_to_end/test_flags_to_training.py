"""From a line of flags to a model, its loss and its normalizer, and through a training step of them."""

import argparse
import json
import shlex

import pytest
import torch

from reghead import CategoryNormalizer, RegressionHead
from reghead.config import RegressionConfig, add_arguments, config_from_args
from reghead.losses import make_loss

CARDINALITIES = {"season": 4, "location": 5}
OUTPUTS = ("pH", "yield")
COLUMNS = "--categorical-columns location,season"
LINES = [
    "",
    "--regressor-hidden-dims 16,8 --regressor-dropout 0.1",
    "--regressor-hidden-dims 16,8 --residual-regression-head --regressor-activation gelu --regressor-norm layer",
    "--normalize-targets --loss-type mse",
    f"{COLUMNS} --normalize-targets-by location",
    f"{COLUMNS} --normalize-targets-by location,season --normalize-fallback additive "
    "--normalize-shrinkage empirical_bayes",
    "--target-transform log1p --learnable-output-scale",
    f"{COLUMNS} --conditional-output-scaling location,season --scaling-compose additive",
    f"{COLUMNS} --categorical-fusion add --regressor-hidden-dims 16 --film-conditioning location,season",
    f"{COLUMNS} --wide-columns location,season --unknown-dropout 0.5 --categorical-embed-dim 3 --partial-pooling 3",
    "--regressor-hidden-dims 16 --ensemble 4",
    "--loss-type quantile",
    "--loss-type quantile --quantiles 0.05,0.5,0.95 --allow-crossing --bounded-targets",
    f"--loss-type quantile --normalize-targets --output-activation exp {COLUMNS} --conditional-output-scaling season",
    "--loss-type asymmetric --over-penalty 2.0 --under-penalty 0.5",
    "--loss-type asymmetric --asymmetric-base mae --over-penalty 2.0 --output-activation relu",
    """--loss-config '{"pH": "mse", "yield": {"type": "quantile", "quantiles": [0.1, 0.5, 0.9]}}'""",
    """--loss-config '{"yield": "mae"}' --output-activation softplus --normalize-targets""",
    f"{COLUMNS} --moe-experts 4 --moe-routing location --regressor-hidden-dims 16 --moe-load-balancing-weight 0.01",
    f"{COLUMNS} --moe-experts 2 --moe-routing season --moe-mix parameters",
    "--moe-experts 3 --moe-gate top_k --moe-top-k 2 --regressor-hidden-dims 16 --moe-temperature 0.5",
    f"{COLUMNS} --moe-experts 2 --moe-routing season --moe-gate hard --regressor-hidden-dims 8 --loss-type quantile "
    "--film-conditioning location --conditional-output-scaling location --normalize-targets-by location "
    "--bounded-targets",
]


def configure(line: str) -> RegressionConfig:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    config = config_from_args(parser.parse_args(shlex.split(line)), outputs=OUTPUTS)
    known = {column: CARDINALITIES[column] for column in config.head.columns}
    return config.with_data(in_features=6, cardinalities=known, outputs=OUTPUTS).on_target_scale()


@pytest.mark.parametrize("line", LINES)
def test_a_line_of_flags_trains_a_step(line: str) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(32, 6, generator=generator)
    y = 0.05 + 0.9 * torch.rand(32, len(OUTPUTS), generator=generator)  # inside every domain that a flag asks for
    # Every combination of 4 locations and 3 seasons is sampled at least twice.
    rows = torch.arange(32)
    categories = {"location": rows % 4 + 1, "season": rows % 3 + 1}
    config = configure(line)
    assert RegressionConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config

    torch.manual_seed(0)
    head, loss = RegressionHead.from_config(config.head), make_loss(config.loss.spec)
    head.observe(categories)
    z = y
    normalizer = None
    if config.normalizer is not None:
        by = {column: CARDINALITIES[column] for column in config.normalizer.by}
        normalizer = CategoryNormalizer(
            by,
            shrinkage=config.normalizer.shrinkage,
            fallback=config.normalizer.fallback,
            transform=config.normalizer.transform,
            bounds=config.normalizer.bounds,
        ).fit(y, categories)
        z = normalizer(y, categories)

    before = {name: parameter.detach().clone() for name, parameter in head.named_parameters()}
    optimizer = torch.optim.SGD(head.param_groups(0.1, categorical_lr=0.2))
    optimizer.zero_grad()
    preds, aux = head(x, categories, return_aux=True)
    total = loss(preds, z) + sum(aux.losses.values()) + 0.1 * sum(aux.penalties.values())
    total.backward()
    optimizer.step()
    assert total.isfinite()
    assert all(parameter.isfinite().all() for parameter in head.parameters())
    assert any(not torch.equal(parameter, before[name]) for name, parameter in head.named_parameters())

    levels = config.head.quantiles
    assert preds.shape == ((32, 2) if levels is None else (32, 2, len(levels)))
    head.eval()
    with torch.no_grad():
        preds = head(x, categories)
        if normalizer is not None:
            preds = normalizer.inverse(preds, categories, output_dim=-1 if levels is None else -2)
    assert preds.isfinite().all()
    if levels is not None:
        assert (preds.diff(dim=-1) >= 0).all()
    if "--bounded-targets" in line:
        assert ((preds >= 0) & (preds <= 1)).all()
    if "--output-activation" in line:
        assert (preds >= 0).all()


def test_every_flag_is_in_a_line() -> None:
    from reghead.config import FLAGS

    written = {word for line in LINES for word in shlex.split(line)}
    # Numbers of the loss, tested with the losses; a mixed model, which takes features, with the estimator.
    elsewhere = {"--huber-delta", "--expectile", "--normalize-method"}
    assert {flag.name for flag in FLAGS} <= written | elsewhere
