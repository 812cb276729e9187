"""All between a table and predictions in the target's own units, as one module that describes itself."""

from collections.abc import Mapping
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from reghead._persistence import SelfDescribing
from reghead.categories import CategoryEncoder
from reghead.config import RegressionConfig
from reghead.estimators._part import Part
from reghead.estimators._preprocessor import Preprocessor
from reghead.estimators._training import TrainingOptions, predict
from reghead.functional import nearest_level
from reghead.heads import RegressionHead
from reghead.normalization import CategoryNormalizer

_STATE = ("mean", "scale", "indicated", "target_scale")


class TableModel(SelfDescribing):
    """A preprocessor, a head and a normalizer that belong together.

    Args:
        preprocessor: Fitted.
        config: Of head, loss and normalizer, with the sizes of the data.
        options: How the head was, or will be, trained.
        outputs: Names of the targets.
        names_given: Whether the table named its columns.
        one_dimensional: Whether the target had shape ``(B,)``.
        device: Where the parameters live.
        dtype: Of the parameters.
    """

    mean: Tensor
    scale: Tensor
    indicated: Tensor

    def __init__(
        self,
        preprocessor: Preprocessor,
        config: RegressionConfig,
        options: TrainingOptions,
        outputs: tuple[str, ...],
        *,
        names_given: bool = True,
        one_dimensional: bool = False,
        device: torch.device | None = None,
        dtype: torch.dtype,
    ) -> None:
        super().__init__()
        self.preprocessor, self.config, self.options, self.outputs = preprocessor, config, options, outputs
        self.names_given, self.one_dimensional = names_given, one_dimensional
        for name, value in preprocessor.state().items():
            self.register_buffer(name, value)
        self.head = RegressionHead.from_config(config.head, encoder=preprocessor.encoder, device=device, dtype=dtype)
        self.normalizer = (
            None
            if config.normalizer is None
            else CategoryNormalizer.from_config(config.normalizer, config.head.cardinalities).to(device)
        )

    @property
    def dtype(self) -> torch.dtype:
        """Of the features and parameters."""
        return next(self.head.parameters()).dtype

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return next(self.head.parameters()).device

    def predict(self, part: Part) -> Tensor:
        """Predictions in the target's own units, on the CPU. Shape ``(B, D)``, or ``(B, D, Q)`` with quantiles."""
        x, ids = self.preprocessor.transform(part, self.dtype)
        ids = {column: i.to(self.device) for column, i in ids.items()}
        # In float64: float32 has no minutes in a target of 1.7e9 seconds.
        preds = predict(self.head, x.to(self.device), ids).to(torch.float64)
        return self.to_own_units(preds, ids).cpu()

    def point(self, preds: Tensor) -> Tensor:
        """The point prediction among ``preds``: of each output the trained quantile nearest the median."""
        levels = self.config.head.quantiles
        if levels is None:
            return preds
        own = [trained or levels for trained in self.trained_levels()]  # a point loss trains the slot nearest 0.5
        slots = [levels.index(each[nearest_level(each)]) for each in own]
        return preds[..., range(len(slots)), slots]

    def to_own_units(self, preds: Tensor, ids: Mapping[str, Tensor]) -> Tensor:
        """The head's predictions in the target's own units, in their dtype."""
        if self.normalizer is None:
            return preds
        return self.normalizer.inverse(preds, ids, output_dim=-1 if self.config.head.quantiles is None else -2)

    def trained_levels(self) -> list[tuple[float, ...]]:
        """For each output, the levels that its own loss trains; none for a point loss."""
        spec = self.config.loss.spec
        if spec["type"] != "per_output":
            return [tuple(spec.get("quantiles", ()))] * self.config.head.out_features
        specs = [spec["losses"].get(name, spec["default"]) for name in self.outputs]
        return [tuple(own.get("quantiles", ())) for own in specs]

    def _describe(self) -> dict[str, Any]:
        encoder = self.preprocessor.encoder
        return {
            "columns": list(self.preprocessor.names),
            "names_given": self.names_given,
            "rows": self.preprocessor.rows,
            "outputs": list(self.outputs),
            "one_dimensional": self.one_dimensional,
            "dtype": str(self.dtype).removeprefix("torch."),
            "encoder": None if encoder is None else encoder.to_dict(),
            "config": self.config.to_dict(),
            "training": vars(self.options),
        }

    @classmethod
    def _from_description(cls, description: Mapping[str, Any]) -> Self:
        try:
            config = RegressionConfig.from_dict(description["config"])
            preprocessor = Preprocessor(description["columns"], config.head.columns)
            preprocessor.rows = description["rows"]
            if description["encoder"] is not None:
                preprocessor.encoder = CategoryEncoder.from_dict(description["encoder"])
            options, outputs = TrainingOptions(**description["training"]), tuple(description["outputs"])
            preprocessor.target_scale = np.ones(len(outputs))
            shapes = {name: description[name] for name in ("names_given", "one_dimensional")}
            dtype = {"float32": torch.float32, "float64": torch.float64}[description["dtype"]]
        except (KeyError, TypeError) as error:
            raise ValueError(f"the description of a fitted table model is not complete: {error}") from error
        return cls(preprocessor, config, options, outputs, **shapes, dtype=dtype)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        for name in _STATE:
            setattr(self.preprocessor, name, getattr(self, name).cpu().numpy().copy())
