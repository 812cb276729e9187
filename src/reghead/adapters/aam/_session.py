"""One run of AAM's own training, with parts of reghead in the place of some of AAM's."""

import contextlib
import logging
from collections.abc import Callable, Iterator, Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from reghead._optional import import_optional
from reghead.adapters.aam._attach import attach
from reghead.adapters.aam._dataset import LabelReader, TargetsDataset, read_targets
from reghead.adapters.aam._head import TargetHead
from reghead.adapters.aam._labels import ids_of, text_labels
from reghead.adapters.aam._loss import loss
from reghead.adapters.aam._plan import Plan
from reghead.adapters.aam._trainer import prepare_trainer
from reghead.categories import CategoryEncoder
from reghead.normalization import CategoryNormalizer

_SHAPE = ("in_features", "columns", "cardinalities")


class Session:
    """What a run knows, and what it makes when AAM asks for a part by its name.

    Args:
        plan: What was asked for.
        aam: AAM's module ``aam.cli.train``.
        resumed: The head of the checkpoint to resume from, whose labels and statistics go on.
        rates: The learning rates of AAM's parameter groups.
    """

    def __init__(
        self, plan: Plan, aam: ModuleType, resumed: TargetHead | None = None, rates: Sequence[float] = ()
    ) -> None:
        self.plan, self.aam, self.resumed, self.rates = plan, aam, resumed, tuple(rates)
        self.encoder: CategoryEncoder | None = None
        self.normalizer: CategoryNormalizer | None = None
        self.seen: dict[str, Tensor] = {}
        self.frames: list[Any] = []
        self.data: dict[str, Any] = {}
        self.originals: dict[str, Any] = {}
        if resumed is not None:
            check_same_head(plan, resumed)

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        """Put the parts of reghead where AAM's command looks for its own, and put those back."""
        parts: dict[str, Callable[..., Any]] = {
            "CategoricalEncoder": lambda: _Fitting(self),
            "ASVDataset": self.make_dataset,
            "SequencePredictor": self.make_model,
            "MultiTaskLoss": self.make_loss,
            "Trainer": self.make_trainer,
        }
        self.originals = {name: getattr(self.aam, name) for name in parts}
        try:
            for name, part in parts.items():
                setattr(self.aam, name, part)
            yield
        finally:
            for name, original in self.originals.items():
                setattr(self.aam, name, original)

    def learn(self, metadata: Any) -> None:
        """Learn labels and scale from the metadata of the training samples, once."""
        if self.encoder is not None or self.seen:
            return
        targets = torch.stack(list(self._read_targets(metadata).values()))
        if self.plan.labels:
            if self.resumed is None:
                self.encoder = CategoryEncoder(self.plan.labels)
                self.seen = self.encoder.fit_transform(text_labels(metadata, self.plan.labels))
            else:
                self.encoder = self.resumed.encoder
                assert self.encoder is not None
                self.seen = ids_of(self.encoder, metadata)
        if self.resumed is None:
            sizes = {} if self.encoder is None else self.encoder.cardinalities
            self.normalizer = self.plan.fit_normalizer(targets, self.seen, sizes)
        else:
            self.normalizer = self.resumed.normalizer
        scale = self.plan.method if self.normalizer is None else repr(self.normalizer)
        logging.getLogger(__name__).info("Targets %s, scale: %s", ", ".join(self.plan.outputs), scale)

    def make_dataset(self, **options: Any) -> TargetsDataset:
        """AAM's dataset, of the training rows at the first call, with the targets in their own units."""
        metadata = options["metadata"]
        targets = self._read_targets(metadata)
        first = not self.frames
        if first:
            self.learn(metadata)
            if self.resumed is not None:
                self.data = self.resumed.data
        self.frames.append(metadata)
        counted: dict[str, Any] = {name: self.data[name] for name in ("count_min", "count_max") if name in self.data}
        # AAM scales counts with the targets' range, and asks us for targets as they are.
        options |= {**counted, "normalize_counts": self.plan.method == "minmax", "target_column": self.plan.outputs[0]}
        dataset = self.originals["ASVDataset"](**options)
        if first and self.resumed is None:
            self.data = {"columns": list(self.plan.columns), "levels": self.plan.levels, "scale": self.plan.scale}
            if dataset.count_scale is not None:
                self.data |= {"count_min": dataset.count_min, "count_max": dataset.count_max}
        return TargetsDataset(dataset, targets)

    def _read_targets(self, metadata: Any) -> dict[str, Tensor]:
        targets = read_targets(metadata, self.plan.outputs)
        self.plan.check_targets(torch.stack(list(targets.values())))
        return targets

    def make_model(self, **options: Any) -> nn.Module:
        """AAM's model with the head that was asked for."""
        model = attach(
            self.originals["SequencePredictor"](**options),
            self.plan.head,
            encoder=self.encoder,
            normalizer=self.normalizer,
            outputs=self.plan.outputs,
        )
        head = model.target_head
        assert isinstance(head, TargetHead)
        head.data = dict(self.data)
        if head.config.columns:
            head.observe(self.seen)
        return model

    def make_loss(self, **options: Any) -> nn.Module:
        """AAM's loss with the target loss that was asked for."""
        logging.getLogger(__name__).info("Target loss: %s", self.plan.loss.spec)
        kept = ("penalty", "nuc_penalty", "target_penalty", "count_penalty", "class_weights")
        chosen = {name: options[name] for name in kept if name in options}
        return loss(self.plan.loss, **chosen, base=self.originals["MultiTaskLoss"])

    def make_trainer(self, **options: Any) -> Any:
        """AAM's Trainer, prepared."""
        trainer = self.originals["Trainer"](**options)
        hidden = [column for column in self.plan.normalizer.by if column not in self.plan.columns]
        pandas = import_optional("pandas", extra="aam")
        prepare_trainer(trainer, metadata=pandas.concat(self.frames) if hidden else None)
        load = trainer.load_checkpoint

        def load_checkpoint(*args: Any, **kwargs: Any) -> Any:
            result = load(*args, **kwargs)
            # AAM gives all groups the rate of the first when it resumes.
            for group, rate in zip(trainer.optimizer.param_groups, self.rates, strict=False):
                group["lr"] = rate
            if hasattr(trainer.scheduler, "base_lrs"):
                trainer.scheduler.base_lrs = list(self.rates[: len(trainer.scheduler.base_lrs)])
            return result

        trainer.load_checkpoint = load_checkpoint
        return trainer


class _Fitting:
    """AAM's encoder until it is fitted, on the metadata of the training samples."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._reader: LabelReader | None = None

    def fit(self, metadata: Any, columns: Sequence[str]) -> "_Fitting":
        self._session.learn(metadata)
        assert self._session.encoder is not None
        self._reader = LabelReader(self._session.encoder, columns)
        return self

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or self.__dict__.get("_reader") is None:
            raise AttributeError(name)
        return getattr(self._reader, name)


def check_same_head(plan: Plan, resumed: TargetHead) -> None:
    """Raise unless the head of the checkpoint is the one asked for."""
    asked, has = plan.head.to_dict(), resumed.config.to_dict()
    for name in asked:
        if name not in _SHAPE and asked[name] != has[name]:
            raise ValueError(
                f"--resume-from goes on with the checkpoint's head, which has {name} {has[name]!r}, and the flags ask "
                f"for {asked[name]!r}; give the flags of the first run"
            )
    scale = resumed.data.get("scale", plan.scale)
    if scale != plan.scale:
        raise ValueError(
            f"--resume-from goes on with the targets on the checkpoint's scale, {scale}, and the flags ask for "
            f"{plan.scale}; give the flags of the first run"
        )
    if tuple(resumed.outputs) != plan.outputs:
        raise ValueError(
            f"--resume-from goes on with the targets {list(resumed.outputs)} of the checkpoint, and the flags name "
            f"{list(plan.outputs)}"
        )
    wanted, had = set(plan.labels), set(() if resumed.encoder is None else resumed.encoder.columns)
    if wanted != had:
        raise ValueError(
            f"--resume-from goes on with the categorical columns {sorted(had)} of the checkpoint, and the flags name "
            f"{sorted(wanted)}"
        )
