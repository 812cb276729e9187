"""AAM's Trainer with targets on the head's scale, scored in their own units, and the use of experts logged."""

import copy
import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from reghead._checks import check_quantiles
from reghead._optional import import_optional
from reghead.adapters.aam._contract import check_normalizer, check_trainer
from reghead.adapters.aam._dataset import check_samples
from reghead.adapters.aam._head import TargetHead, safe_ids
from reghead.adapters.aam._labels import ids_of
from reghead.adapters.aam._loss import AUXILIARY, AttachedLoss
from reghead.adapters.aam._predictor import AttachedPredictor
from reghead.functional._quantiles import nearest_level
from reghead.nn._part import name_in
from reghead.normalization import CategoryNormalizer

_KEY = "normalizer."
"""Before the names of columns that tell the category of a row to the normalizer, and nothing to the model."""


def prepare_trainer(trainer: Any, normalizer: CategoryNormalizer | None = None, metadata: Any = None) -> Any:
    """Let AAM's Trainer train an attached head on normalized targets, and score it in the target's own units.

    The batches hold targets in their own units. With a normalizer they are normalized, by the category of each row,
    on their way to the loss; predictions and targets of the validation go back before they are scored, written to
    ``val_predictions.tsv`` and drawn. Losses stay on the normalized scale.

    The scored quantile is the one nearest 0.5. With several targets each has its own ``mae_<name>`` and ``r2_<name>``
    beside AAM's, which mix them, and its own columns in ``val_predictions.tsv``. The Trainer's TensorBoard also gets
    the share of the training rows that each expert has, and the scales and biases of conditional scaling. A model
    inside DDP or DataParallel is validated without its wrapper, which hides from AAM that it takes categories. Call it
    after the Trainer was made, once.

    Args:
        trainer: AAM's Trainer of a model that :func:`attach` returned, wrapped or not, made without normalization of
            its own.
        normalizer: A fitted one; that of the head by default. It travels in the checkpoints from now on.
        metadata: A table with the column ``sample_id``, which tells the categories of a sample by the head's encoder.
            Needed where the normalizer's columns are not all in the batches; they need not be inputs of the model.

    Returns:
        ``trainer``.

    Raises:
        TypeError: If the Trainer is not AAM's, its model has no head of reghead, or the normalizer is of another kind.
        ValueError: If it was prepared before, it normalizes by itself, its loss leaves out what the head adds, is of
            other quantiles than the head, or one of both is of points, or the metadata cannot tell the categories.

    Example:
        >>> trainer = Trainer(model, loss("huber"))  # doctest: +SKIP
        >>> normalizer = CategoryNormalizer({"location": 4}).fit(target, {"location": ids})  # doctest: +SKIP
        >>> prepare_trainer(trainer, normalizer).train(train_loader, val_loader)  # doctest: +SKIP
    """
    check_trainer(trainer)
    model = unwrapped(trainer.model)
    if not isinstance(model, AttachedPredictor):
        raise TypeError(f"trainer.model must be one that attach returned, got {type(model).__name__}")
    head = model.target_head
    if isinstance(getattr(trainer._prepare_batch, "__self__", None), _Preparation):
        raise ValueError("the trainer is prepared already; make a new one")
    _check_loss(head, trainer.loss_fn)
    normalizer = head.normalizer if normalizer is None else normalizer
    if normalizer is not None:
        if trainer.target_normalization_params is not None:
            raise ValueError(
                "the trainer was made with target_normalization_params, and would normalize and scale back beside the "
                "normalizer; leave them out, and give it batches of targets in their own units"
            )
        check_normalizer(normalizer, head.out_features)
    samples = {} if metadata is None else _ids_by_sample(head, normalizer, metadata)
    if normalizer is not head.normalizer:
        head.normalizer = copy.deepcopy(normalizer)  # refitting the caller's must not move predictions
    if head.normalizer is not None:
        head.normalizer.to(next(model.parameters()).device)
    preparation = _Preparation(trainer, head, samples)
    if hasattr(trainer.model, "module") and not _is_sharded(trainer.model):
        trainer.evaluator.model = model
    evaluator = trainer.evaluator
    # AAM asks these of the wrapper, which does not know.
    trainer._get_encoder_type, trainer._get_is_classifier = evaluator._get_encoder_type, evaluator._get_is_classifier
    trainer._prepare_batch = preparation.training_batch
    evaluator._prepare_batch = preparation.validation_batch
    evaluator._denormalize_targets = preparation.own_units
    evaluator._extract_median_quantile = preparation.point
    if head.out_features > 1 and not model.is_classifier:
        trainer._save_val_predictions = preparation.save_predictions
        evaluator.validate_epoch = preparation.validate
    if head.config.moe is not None:
        trainer.train_epoch = preparation.train_epoch
    trainer._log_to_tensorboard = preparation.log
    return trainer


def unwrapped(model: nn.Module) -> nn.Module:
    """The model inside of compilation and of DDP, FSDP or DataParallel."""
    for name in ("_orig_mod", "module", "_orig_mod"):
        inner = getattr(model, name, None)
        model = inner if isinstance(inner, nn.Module) else model
    return model


def _check_loss(head: TargetHead, loss_fn: nn.Module) -> None:
    """Raise unless ``loss_fn`` trains all that ``head`` predicts."""
    balanced = head.config.moe is not None and head.config.moe.load_balancing_weight > 0
    added = balanced or head.config.partial_pooling > 0 or head.config.ensemble > 1
    if added and not isinstance(loss_fn, AttachedLoss):
        raise ValueError(
            f"the head adds {', '.join(AUXILIARY)} or members of its own to the training loss, which AAM's own "
            "loss leaves out; use reghead.adapters.aam.loss(...)"
        )
    own = loss_fn.target_loss if isinstance(loss_fn, AttachedLoss) else loss_fn
    if own is loss_fn and not hasattr(own, "quantiles"):
        return  # neither ours nor AAM's: nothing is known of it
    levels, predicted = getattr(own, "quantiles", None), head.config.quantiles
    levels = None if levels is None else check_quantiles("the quantiles of the loss", levels)
    if levels != predicted:
        of, predicts = ("points" if q is None else f"the quantiles {q}" for q in (levels, predicted))
        raise ValueError(
            f"the loss is of {of}, and the head predicts {predicts}; give both the same quantiles, or none"
        )


def _is_sharded(model: nn.Module) -> bool:
    return type(model).__name__ == "FullyShardedDataParallel"


class _Preparation:
    """What stands in the place of some methods of one Trainer and its Evaluator."""

    def __init__(self, trainer: Any, head: TargetHead, samples: dict[Any, dict[str, int]]) -> None:
        self.head = head
        self.train_batch, self.val_batch = trainer._prepare_batch, trainer.evaluator._prepare_batch
        self.log_epoch, self.validate_plainly = trainer._log_to_tensorboard, trainer.evaluator.validate_epoch
        self.train_plainly = trainer.train_epoch
        self.trainer = trainer
        self.samples = samples
        self.experts: list[Tensor] = []
        self.names = head.outputs or tuple(str(i) for i in range(head.out_features))

    def training_batch(self, batch: Any) -> tuple[Any, ...]:
        tokens, targets, ids, weights = self.train_batch(batch)
        return tokens, self._normalized(targets, self._known(batch, ids)), ids, weights

    def validation_batch(self, batch: Any) -> tuple[Any, ...]:
        tokens, targets, ids = self.val_batch(batch)
        known = self._known(batch, ids)
        if known:
            # They come back with the predictions, in one pass or several; the model knows no such column.
            ids = {**(ids or {}), **{_KEY + column: values for column, values in known.items()}}
        return tokens, self._normalized(targets, known), ids

    def own_units(self, values: Tensor, categorical_ids: Mapping[str, Tensor] | None = None) -> Tensor:
        normalizer = self.head.normalizer
        if normalizer is None:
            return values
        known = {c: (categorical_ids or {})[_KEY + c] for c in normalizer.cardinalities}
        return normalizer.inverse(values.double(), known)

    def point(self, predictions: Tensor) -> Tensor:
        levels = self.head.config.quantiles
        return predictions if levels is None else predictions[..., nearest_level(levels)]

    def validate(self, dataloader: Any, *args: Any, **options: Any) -> Any:
        """AAM's validation, with a score for each target."""
        asked = inspect.signature(self.validate_plainly).bind(dataloader, *args, **options).arguments
        wanted = (asked.get("collect_all_predictions", False), asked.get("return_predictions", False))
        asked |= {"collect_all_predictions": True, "return_predictions": True}
        scores, drawn, actual, full = self.validate_plainly(**asked)
        if asked.get("compute_metrics", True):
            scores |= _scores_by_target(full["predictions"], full["actuals"], self.names)
        if wanted[0]:
            return scores, drawn, actual, full
        return (scores, drawn, actual) if wanted[1] else scores

    def save_predictions(self, full_predictions: Mapping[str, Any], checkpoint_dir: str) -> None:
        """AAM's file, with a prediction and an actual value for each target."""
        columns = {"sample_id": full_predictions["sample_ids"]}
        for kind, values in (("prediction", "predictions"), ("actual", "actuals")):
            for i, name in enumerate(self.names):
                columns[f"{kind}_{name}"] = full_predictions[values][:, i].tolist()
        pandas = import_optional("pandas", extra="aam")
        pandas.DataFrame(columns).to_csv(Path(checkpoint_dir).parent / "val_predictions.tsv", sep="\t", index=False)

    def train_epoch(self, *args: Any, **options: Any) -> Any:
        """AAM's epoch, in which the use of experts is counted."""
        self.experts.clear()
        # No longer than the epoch: other trainers may share the loss, and a copy of it takes its hooks along.
        hook = self.trainer.loss_fn.register_forward_hook(self.count_experts)
        try:
            return self.train_plainly(*args, **options)
        finally:
            hook.remove()

    def count_experts(self, module: nn.Module, inputs: tuple[Any, ...], losses: Any) -> None:
        share = inputs[0].get("expert_utilization") if inputs else None
        if share is not None:
            self.experts.append(share.mean(dim=0))

    def log(self, epoch: int, *args: Any, **options: Any) -> None:
        """AAM's scalars, with those of parts that AAM does not know."""
        self.log_epoch(epoch, *args, **options)
        scalars: dict[str, float] = {}
        if self.experts:
            shares = torch.stack(self.experts).mean(dim=0).tolist()
            scalars |= {f"experts/{expert}": share for expert, share in enumerate(shares)}
            self.experts.clear()
        scaler = self.head.scaler
        for column in () if scaler is None else scaler.cardinalities:
            for kind in ("scale", "bias"):
                values = getattr(scaler, name_in(kind, column)).detach()
                if scaler is not None and kind == "scale":
                    # As AAM logs them: the scale itself, and not what it differs from 1 by.
                    values = scaler._factor(values)
                if values.numel():
                    scalars[f"conditional_scaling/{column}_{kind}_mean"] = values.mean().item()
                    scalars[f"conditional_scaling/{column}_{kind}_std"] = values.std(unbiased=len(values) > 1).item()
        for tag, value in scalars.items() if self.trainer.writer is not None else ():
            self.trainer.writer.add_scalar(tag, value, epoch)

    def _normalized(self, targets: dict[str, Tensor], ids: Mapping[str, Tensor]) -> dict[str, Tensor]:
        if "target" not in targets or targets["target"].dtype == torch.int64:
            return targets
        target = targets["target"]
        if self.head.normalizer is not None:
            target = self.head.normalizer(target.double(), ids)
        return {**targets, "target": target.float()}

    def _known(self, batch: Any, ids: Mapping[str, Tensor] | None) -> dict[str, Tensor]:
        """The ids of the normalizer's columns for the rows of a batch."""
        columns = {} if self.head.normalizer is None else self.head.normalizer.cardinalities
        if not columns:
            return {}
        if self.samples:
            sample_ids = batch["sample_ids"]
            device = batch["tokens"].device if self.head.normalizer is None else self.head.normalizer.cell_keys.device
            try:
                rows = [self.samples[sample] for sample in sample_ids]
            except KeyError as error:
                raise ValueError(f"metadata has no row for the sample {error.args[0]!r} of a batch") from None
            return {c: torch.tensor([row[c] for row in rows], dtype=torch.int64, device=device) for c in columns}
        missing = [column for column in columns if column not in (ids or {})]
        if missing:
            raise ValueError(
                f"the normalizer needs the column {missing[0]!r}, which the batches do not have; "
                "pass metadata= to prepare_trainer, with the categories of every sample"
            )
        return {c: safe_ids(c, ids[c], n) for c, n in columns.items() if ids is not None}


def _ids_by_sample(head: TargetHead, normalizer: CategoryNormalizer | None, metadata: Any) -> dict[Any, dict[str, int]]:
    if head.encoder is None:
        raise ValueError(
            "metadata holds labels, and the head has no encoder to read them; pass encoder= to attach "
            "(encoder_from_aam makes it from AAM's)"
        )
    check_samples(metadata)
    for column in () if normalizer is None else normalizer.cardinalities:
        if column not in head.encoder.columns:
            raise ValueError(
                f"the normalizer needs the column {column!r}, and the head's encoder has "
                f"{', '.join(head.encoder.columns)}; give attach an encoder= of all of them"
            )
    ids = ids_of(head.encoder, metadata)
    rows = zip(*(values.tolist() for values in ids.values()), strict=True)
    return {s: dict(zip(ids, row, strict=True)) for s, row in zip(metadata["sample_id"], rows, strict=True)}


def _scores_by_target(predictions: Tensor, actuals: Tensor, names: tuple[str, ...]) -> dict[str, float]:
    """Mean absolute error and R squared of each target, over the rows of all processes."""
    dist = torch.distributed
    rows = torch.stack([predictions.double(), actuals.double()], dim=-1)
    if dist.is_available() and dist.is_initialized():
        gathered: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(gathered, rows)
        rows = torch.cat([part for part in gathered if part.numel()] or [rows])
    scores: dict[str, float] = {}
    for i, name in enumerate(names if rows.numel() else ()):
        predicted, actual = rows[:, i].unbind(-1)
        spread = (actual - actual.mean()).square().sum()
        scores[f"mae_{name}"] = (predicted - actual).abs().mean().item()
        scores[f"r2_{name}"] = (1.0 - (predicted - actual).square().sum() / spread).item() if spread > 0 else 0.0
    return scores
