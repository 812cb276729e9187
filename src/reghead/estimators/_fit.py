"""Head and normalizer of a configuration, fitted on one part of the data."""

import copy
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from torch import Tensor, nn

from reghead._warnings import UnseenCategoryWarning
from reghead.config import RegressionConfig
from reghead.estimators._data import Data, Lazy, Rows
from reghead.estimators._features import Bins, Features, make_bins
from reghead.estimators._model import TableModel
from reghead.estimators._part import Part
from reghead.estimators._preprocessor import Preprocessor
from reghead.estimators._processes import ALONE, Processes
from reghead.estimators._training import Callback, Checkpoint, History, Score, TrainingOptions, seeded, train
from reghead.losses import make_loss
from reghead.normalization import MixedEffects


def fit_model(
    parts: Sequence[Part],
    held: Sequence[Part] | None,
    *,
    names: Sequence[str],
    outputs: tuple[str, ...],
    names_given: bool = True,
    one_dimensional: bool | None = None,
    config: RegressionConfig,
    options: TrainingOptions,
    dtype: torch.dtype,
    device: torch.device,
    seed: int,
    feature_clip: float | None = None,
    embed: bool = False,
    start: TableModel | None = None,
    processes: Processes = ALONE,
    callbacks: Iterable[Callback] = (),
    checkpoint: Checkpoint | None = None,
) -> tuple[TableModel, History]:
    """Fit on ``parts``, stopping early by ``held``.

    Args:
        parts: The training rows, those of all processes. A list is kept in memory as tensors; of another sequence
            each part is read anew in every pass.
        held: Rows to stop early by, or None.
        names: All columns of the table, in their order.
        outputs: Names of the targets.
        names_given: Whether the table named its columns.
        one_dimensional: Whether the target had shape ``(B,)``; if left out, whether there is one.
        config: Of head, loss and normalizer; the sizes of the data are filled in.
        options: How to train.
        dtype: Of the features and parameters.
        device: Where to train.
        feature_clip: As in :class:`Preprocessor`.
        embed: Whether numbers are embedded.
        seed: Of initial weights, order and dropout.
        start: What to continue from, with its statistics and labels, or None.
        processes: Those that train together.
        callbacks: Called after every epoch.
        checkpoint: Keeps the state after every epoch.

    Raises:
        ValueError: If ``start`` was fitted with another configuration, or embedded numbers are not all in memory.
    """
    mixed = config.normalizer is not None and config.normalizer.method == "mixed_effects"
    if mixed and start is not None:
        raise ValueError(
            "warm_start cannot go on from a mixed model, whose residuals are those of the rows it was fitted on; "
            "set warm_start=False or normalize='moments'"
        )
    if embed and (len(parts) > 1 or processes.size > 1):
        raise ValueError("the bins of embedded numbers need all training rows in memory and in one process")
    training, validation = _Mine(parts, processes), None if held is None else _Mine(held, processes)
    preprocessor = Preprocessor(names, config.head.columns, feature_clip) if start is None else start.preprocessor
    if start is None:
        for part in training:
            preprocessor.partial_fit(part)
        preprocessor.all_reduce(processes)
    cardinalities = None if preprocessor.encoder is None else preprocessor.encoder.cardinalities
    config = config.with_data(in_features=preprocessor.in_features, cardinalities=cardinalities)
    if start is not None:
        embedded = start.features.bins is not None
        if (config, feature_clip, embed) != (start.config, preprocessor.clip, embedded):
            raise ValueError(
                "warm_start continues a fit with the same features, head, loss and normalizer, and their arguments or "
                "the data have changed; set warm_start=False"
            )
        model = copy.deepcopy(start).to(device)
        model.options = options
    else:
        bins = _make_bins(preprocessor, training.part(0)) if embed else None
        with seeded(seed, device):
            model = TableModel(
                preprocessor,
                config,
                options,
                outputs,
                names_given=names_given,
                one_dimensional=len(outputs) == 1 if one_dimensional is None else one_dimensional,
                bins=bins,
                device=device,
                dtype=dtype,
            )
        _fit_statistics(model, training, processes)
        if isinstance(model.normalizer, MixedEffects):
            model.head.zero_output()

    loss = make_loss(config.loss.spec).to(device)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UnseenCategoryWarning)  # held-back rows may have new categories
        history = train(
            model.network,
            loss,
            training.data(lambda part: model.to_z(_to_rows(model, part))),
            options,
            seed=seed,
            mean_weight=preprocessor.mean_weight,
            processes=processes,
            validation=None if validation is None else validation.data(lambda part: _to_rows(model, part)),
            score=None if validation is None else _make_score(loss, model),
            callbacks=callbacks,
            checkpoint=checkpoint,
        )
    return model, history


def _make_bins(preprocessor: Preprocessor, part: Part) -> Bins:
    x, _ = preprocessor.transform(part, torch.float64, expect_unseen=True)
    numbers = len(preprocessor.numeric)
    bounded = Features(numbers, x.shape[1] - numbers, clip=preprocessor.clip, dtype=torch.float64)(x)
    return make_bins(bounded[:, :numbers].numpy(), part.weight)


class _Mine:
    """The rows of ``parts`` that this process holds, without those of weight 0.

    Attributes:
        sizes: Rows of each part over all processes, known once it was read.
    """

    def __init__(self, parts: Sequence[Part], processes: Processes) -> None:
        self.sizes = [0] * len(parts)
        self._parts, self._processes = parts, processes

    def __iter__(self) -> Iterator[Part]:
        return map(self.part, range(len(self._parts)))

    def part(self, index: int) -> Part:
        """One part, read anew unless it is in memory."""
        part = self._parts[index]
        if part.weight is not None:
            part = part.take(part.weight > 0)
        self.sizes[index] = len(part.target)
        return part if self._processes.size == 1 else part.take(self._processes.share)

    def data(self, transform: Callable[[Part], Rows]) -> Data:
        """As tensors: all of them now, or one chunk after the other when it is wanted."""
        if isinstance(self._parts, list):
            return Data([transform(part) for part in self], self.sizes)
        return Data(Lazy(len(self._parts), lambda index: transform(self.part(index))), self.sizes)


def _fit_statistics(model: TableModel, parts: Iterable[Part], processes: Processes) -> None:
    """Fit the normalizer, and tell the head which ids have training rows."""
    for part in parts:
        rows = _to_rows(model, part)
        model.fit_normalizer(rows)
        model.head.observe(rows.categories)
    if processes.size > 1:
        if isinstance(model.normalizer, MixedEffects):
            raise ValueError("a mixed model needs all training rows in memory and in one process")
        if model.normalizer is not None:
            model.normalizer.all_reduce()
        model.head.all_reduce()


def _to_rows(model: TableModel, part: Part) -> Rows:
    """As tensors; the target is float64 and in its own units."""
    x, ids = model.preprocessor.transform(part, model.dtype, expect_unseen=True)
    device = model.device
    weight = None if part.weight is None else torch.from_numpy(part.weight).to(device)
    ids = {column: i.to(device) for column, i in ids.items()}
    return Rows(x.to(device), ids, torch.from_numpy(part.target).to(device), weight)


def _make_score(loss: nn.Module, model: TableModel) -> Score:
    """The loss in the units of the target, each divided by its standard deviation so that all count alike."""
    point = model.config.head.quantiles is None
    scale = torch.from_numpy(model.preprocessor.target_scale).to(model.device)

    def score(preds: Tensor, rows: Rows) -> float:
        own = model.to_own_units(preds.to(torch.float64), rows.x, rows.categories)
        value: Tensor = loss(own / (scale if point else scale[:, None]), rows.target / scale, weight=rows.weight)
        return value.item()

    return score
