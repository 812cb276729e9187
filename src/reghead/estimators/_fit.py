"""Head and normalizer of a configuration, fitted on one part of the data."""

import copy
import warnings
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from reghead._warnings import UnseenCategoryWarning
from reghead.config import RegressionConfig
from reghead.estimators._split import Part
from reghead.estimators._table import Preprocessor
from reghead.estimators._training import Callback, History, Rows, Score, TrainingOptions, seeded, train
from reghead.heads import RegressionHead
from reghead.losses import make_loss
from reghead.normalization import CategoryNormalizer


def fit_parts(
    preprocessor: Preprocessor,
    config: RegressionConfig,
    options: TrainingOptions,
    part: Part,
    held: Part | None,
    *,
    models: tuple[RegressionHead, CategoryNormalizer] | None,
    device: torch.device,
    seed: int,
    callbacks: Iterable[Callback],
) -> tuple[RegressionHead, CategoryNormalizer, History]:
    """Fit on ``part``, stopping early by ``held``.

    Args:
        preprocessor: Fitted on ``part``.
        config: Knows the data's sizes.
        options: How to train.
        part: The training rows.
        held: Rows to stop early by, or None.
        models: Fitted ones to continue from copies of, or None for new ones.
        device: Where to train.
        seed: Of initial weights, order and dropout.
        callbacks: Called after every epoch.
    """
    rows = part.to_rows(preprocessor, device)
    with seeded(seed, device) as generator:
        if models is not None:
            head, normalizer = copy.deepcopy(models[0]).to(device), copy.deepcopy(models[1]).to(device)
        else:
            normalizer = make_normalizer(config).to(device)
            normalizer.fit(rows.target, rows.categories, weight=rows.weight)
            head = RegressionHead.from_config(
                config.head, encoder=preprocessor.encoder, device=device, dtype=rows.x.dtype
            )
            head.observe(rows.categories)
        loss = make_loss(config.loss.spec).to(device)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UnseenCategoryWarning)  # held-back rows may have new categories
            z = normalizer(rows.target, rows.categories).to(next(head.parameters()).dtype)
            history = train(
                head,
                loss,
                rows._replace(x=rows.x.to(z.dtype), target=z),
                options,
                generator=generator,
                validation=None
                if held is None
                else _in_dtype(held.to_rows(preprocessor, device, expect_unseen=True), z),
                score=None if held is None else make_score(loss, normalizer, rows.target, config),
                callbacks=callbacks,
            )
    return head, normalizer, history


def _in_dtype(rows: Rows, like: Tensor) -> Rows:
    return rows._replace(x=rows.x.to(like.dtype))


def make_normalizer(config: RegressionConfig) -> CategoryNormalizer:
    assert config.normalizer is not None  # make_config gives one
    options = dict(vars(config.normalizer))
    cardinalities = config.head.cardinalities or {}
    return CategoryNormalizer({column: cardinalities[column] for column in options.pop("by")}, **options)


def make_score(loss: nn.Module, normalizer: CategoryNormalizer, target: Tensor, config: RegressionConfig) -> Score:
    """The loss in the units of the target, each divided by its standard deviation so that all count alike."""
    scale = target.std(0, correction=0)
    scale = torch.where(scale > 0, scale, 1.0)
    point = config.head.quantiles is None

    def score(preds: Tensor, rows: Rows) -> float:
        own = normalizer.inverse(preds.to(torch.float64), rows.categories, output_dim=-1 if point else -2)
        own = own / (scale if point else scale[:, None])
        value: Tensor = loss(own, rows.target / scale, weight=rows.weight)
        return value.item()

    return score
