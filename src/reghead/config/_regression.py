"""Head, loss and normalizer together, checked against each other."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from reghead.config._base import Config, OptionError, nested
from reghead.config._head import HeadConfig, check_among
from reghead.config._loss import LossConfig
from reghead.config._normalizer import NormalizerConfig, Transform

_TRANSFORM_OF: dict[str, Transform] = {"exp": "log", "softplus": "softplus", "relu": "clamp"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class RegressionConfig(Config):
    """A whole regression: what is built, what is minimised, and on what scale.

    Args:
        head: What the head is made of; its ``quantiles`` are the loss's and may be left out.
        loss: What is minimised.
        normalizer: On what scale; ``None`` is the target's own.

    Raises:
        TypeError: If a part is neither its configuration nor a mapping.
        ValueError: If the quantiles of head and loss differ, the normalizer's columns are not among the head's,
            the numbers of outputs differ, or the predictions are bounded by head and transform both.

    Example:
        >>> config = RegressionConfig(head=HeadConfig(), loss=LossConfig(type="quantile", quantiles=[0.1, 0.9]))
        >>> config.head.quantiles
        (0.1, 0.9)
        >>> bounded = RegressionConfig(head=HeadConfig(bounds=(0, 1)), normalizer=NormalizerConfig())
        >>> bounded.on_target_scale().normalizer.transform
        'logit'
    """

    head: HeadConfig = dataclasses.field(default_factory=HeadConfig)
    loss: LossConfig = dataclasses.field(default_factory=LossConfig)
    normalizer: NormalizerConfig | None = None

    def __post_init__(self) -> None:
        self._set("head", nested("head", self.head, HeadConfig))
        self._set("loss", nested("loss", self.loss, LossConfig))
        if self.normalizer is not None:
            self._set("normalizer", nested("normalizer", self.normalizer, NormalizerConfig))
        self._check_outputs()
        self._check_normalizer()

    def with_data(
        self,
        *,
        in_features: int | None = None,
        out_features: int | None = None,
        cardinalities: Mapping[str, int] | None = None,
        outputs: Sequence[str] = (),
    ) -> "RegressionConfig":
        """This configuration with what the data says filled in; what is left out stays as it is.

        Args:
            in_features: Width F of the features.
            out_features: Number D of targets; the number of ``outputs`` if these are given.
            cardinalities: Number of ids of each categorical column, id 0 included.
            outputs: Names of the targets, in their order.
        """
        loss = self.loss.with_data(outputs=tuple(outputs)) if outputs else self.loss
        head = self.head.with_data(
            in_features=in_features, out_features=out_features or len(outputs) or None, cardinalities=cardinalities
        )
        # Naming the outputs can leave the default loss with none, and its quantiles with it.
        head = dataclasses.replace(head, quantiles=loss.levels)
        return RegressionConfig(head=head, loss=loss, normalizer=self.normalizer)

    def on_target_scale(self) -> "RegressionConfig":
        """The configuration in which a request on the predictions is met on the target's own scale.

        A normalized head predicts z-scores, and a relu there could never predict below a category's mean. So with a
        normalizer ``exp`` becomes the transform log, ``softplus`` its inverse, ``relu`` a clamp at 0, ``bounds`` a
        logit between them, and the head ends linear. Without a normalizer nothing changes.
        """
        asked: dict[str, Any] = {}
        if self.head.bounds is not None:
            asked = {"transform": "logit", "bounds": self.head.bounds}
        elif self.head.output_activation is not None:
            asked = {"transform": _TRANSFORM_OF[self.head.output_activation]}
        if self.normalizer is None or not asked:
            return self
        return dataclasses.replace(
            self,
            head=dataclasses.replace(self.head, output_activation=None, bounds=None),
            normalizer=dataclasses.replace(self.normalizer, **asked),
        )

    def _check_outputs(self) -> None:
        levels = self.loss.levels
        if self.head.quantiles is None and levels is not None:
            self._set("head", dataclasses.replace(self.head, quantiles=levels))
        elif self.head.quantiles != levels:
            raise OptionError(
                "{head.quantiles} must be the levels of the loss, got {head_levels} and {loss_levels}; "
                "leave {head.quantiles} out to take the loss's, or choose {loss.type} quantile with the same levels",
                {"head_levels": self.head.quantiles, "loss_levels": levels or f"a point loss ({self.loss.type})"},
            )
        if self.loss.outputs and len(self.loss.outputs) != self.head.out_features:
            raise OptionError(
                "{head.out_features} must be the number of {loss.outputs}, got {wide} for {outputs}",
                {"wide": self.head.out_features, "outputs": self.loss.outputs},
            )

    def _check_normalizer(self) -> None:
        if self.normalizer is None:
            return
        check_among("normalizer.by", self.normalizer.by, "head.columns", self.head.columns)
        for name, asked in (
            ("head.bounds", self.head.bounds is not None),
            ("head.output_activation", self.head.output_activation is not None),
        ):
            if asked and self.normalizer.transform != "identity":
                raise OptionError(
                    f"{{{name}}} and {{normalizer.transform}} {self.normalizer.transform} both shape the predictions; "
                    "keep one of them"
                )
