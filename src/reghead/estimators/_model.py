"""All between a table and predictions in the target's own units, as one module that describes itself."""

from collections.abc import Mapping
from statistics import NormalDist
from typing import Any, Literal, Self

import numpy as np
import torch
from torch import Tensor

from reghead._persistence import SelfDescribing
from reghead.categories import CategoryEncoder
from reghead.config import RegressionConfig
from reghead.estimators._data import Rows
from reghead.estimators._features import Bins, Features
from reghead.estimators._intervals import CalibratedIntervals
from reghead.estimators._network import Network
from reghead.estimators._part import Part
from reghead.estimators._preprocessor import STATE, Preprocessor
from reghead.estimators._training import TrainingOptions, predict
from reghead.functional import nearest_level
from reghead.heads import RegressionHead
from reghead.normalization import CategoryNormalizer, MixedEffects


class TableModel(SelfDescribing):
    """A preprocessor, a head and a normalizer that belong together.

    Args:
        preprocessor: Fitted.
        config: Of head, loss and normalizer, with the sizes of the data.
        options: How the head was, or will be, trained.
        outputs: Names of the targets.
        names_given: Whether the table named its columns.
        one_dimensional: Whether the target had shape ``(B,)``.
        bins: Edges of the bins of each number, where numbers are embedded.
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
        bins: Bins | None = None,
        device: torch.device | None = None,
        dtype: torch.dtype,
    ) -> None:
        super().__init__()
        self.preprocessor, self.config, self.options, self.outputs = preprocessor, config, options, outputs
        self.names_given, self.one_dimensional = names_given, one_dimensional
        for name, value in preprocessor.state().items():
            self.register_buffer(name, value)
        numbers = len(preprocessor.numeric)
        self.features = Features(
            numbers,
            (config.head.in_features or 0) - numbers,
            clip=preprocessor.clip,
            bins=bins,
            dtype=dtype,
            device=device,
        )
        head = config.head.with_data(in_features=self.features.out_features)
        self.head = RegressionHead.from_config(head, encoder=preprocessor.encoder, device=device, dtype=dtype)
        self.intervals: CalibratedIntervals | None = None
        self.normalizer = _make_normalizer(config)
        if self.normalizer is not None:
            self.normalizer.to(device)

    @property
    def network(self) -> Network:
        """What is trained: the head, and what it sees of the numbers."""
        return Network(self.features, self.head)

    @property
    def dtype(self) -> torch.dtype:
        """Of the features and parameters."""
        return next(self.head.parameters()).dtype

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return next(self.head.parameters()).device

    def fit_normalizer(self, rows: Rows) -> None:
        """Add ``rows``, with targets in their own units, to the statistics of the normalizer.

        Raises:
            ValueError: If a mixed model, which needs all rows at once, is fitted already.
        """
        if isinstance(self.normalizer, MixedEffects):
            if self.normalizer.is_fitted:
                raise ValueError("a mixed model needs all training rows in memory and in one process")
            self.normalizer.fit(rows.target, rows.categories, self.features.linear(rows.x), weight=rows.weight)
        elif self.normalizer is not None:
            self.normalizer.partial_fit(rows.target, rows.categories, weight=rows.weight)

    def to_z(self, rows: Rows) -> Rows:
        """Training rows with their targets as the head learns them."""
        z = rows.target
        if isinstance(self.normalizer, MixedEffects):
            # Each from all rows but itself: the model has seen the row, and would be too sure of rare categories.
            z = self.normalizer.leave_one_out(z, rows.categories, self.features.linear(rows.x), weight=rows.weight)
        elif self.normalizer is not None:
            z = self.normalizer(z, rows.categories)
        return rows._replace(target=z.to(self.dtype))

    def to_own_units(self, preds: Tensor, x: Tensor, ids: Mapping[str, Tensor]) -> Tensor:
        """The head's predictions for features ``x`` in the target's own units, in their dtype."""
        if self.normalizer is None:
            return preds
        output_dim: Literal[-1, -2] = -1 if self.config.head.quantiles is None else -2
        if isinstance(self.normalizer, MixedEffects):
            linear, center = self.features.linear(x), self._center(preds)
            return self.normalizer.inverse(preds, ids, linear, output_dim=output_dim, center=center)
        return self.normalizer.inverse(preds, ids, output_dim=output_dim)

    def predict(self, part: Part) -> Tensor:
        """Predictions in the target's own units, on the CPU. Shape ``(B, D)``, or ``(B, D, Q)`` with quantiles."""
        x, ids = self.preprocessor.transform(part, self.dtype)
        x, ids = x.to(self.device), {column: i.to(self.device) for column, i in ids.items()}
        # In float64: float32 has no minutes in a target of 1.7e9 seconds.
        return self.to_own_units(predict(self.network, x, ids).to(torch.float64), x, ids).cpu()

    def point(self, preds: Tensor) -> Tensor:
        """The point prediction among ``preds``: of each output the trained quantile nearest the median."""
        levels = self.config.head.quantiles
        if levels is None:
            return preds
        own = [trained or levels for trained in self.trained_levels()]  # a point loss trains the slot nearest 0.5
        slots = [levels.index(each[nearest_level(each)]) for each in own]
        return preds[..., range(len(slots)), slots]

    def predict_interval(self, part: Part) -> Tensor:
        """Calibrated ends of all pairs of levels in increasing order, on the CPU. Shape ``(B, D, 2L)``."""
        assert self.intervals is not None  # the caller checks
        _, ids = self.preprocessor.transform(part, self.dtype, expect_unseen=True)
        ends: Tensor = self.intervals(self.to_calibrate(self.predict(part)), ids)
        return ends if self.normalizer is None else self.normalizer.transform.inverse(ends)

    def to_calibrate(self, values: Tensor) -> Tensor:
        """Predictions or targets on the scale of the target transform, where any shift of them is a target."""
        transform = None if self.normalizer is None else self.normalizer.transform
        if transform is None or transform.kind in ("identity", "clamp"):
            return values
        ends = transform.inverse(values.new_tensor([-torch.inf, torch.inf]))
        # A prediction next to an end may be rounded to it, which is not a target.
        low, high = torch.nextafter(ends, ends.flip(0))
        return transform.forward(values.clamp(low, high))

    def _center(self, preds: Tensor) -> Tensor | None:
        """The median that quantiles are spread around: between two levels as in a normal distribution.

        With all levels on one side of it, it is taken to be that of the mixed model.
        """
        levels = self.config.head.quantiles
        if levels is None:
            return None
        if not levels[0] <= 0.5 <= levels[-1]:
            return torch.zeros_like(preds[..., 0])
        above = next(i for i, level in enumerate(levels) if level >= 0.5)
        if levels[above] == 0.5:
            return preds[..., above]
        low, high = (NormalDist().inv_cdf(levels[i]) for i in (above - 1, above))
        return preds[..., above - 1] + (preds[..., above] - preds[..., above - 1]) * (low / (low - high))

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
            "feature_clip": self.preprocessor.clip,
            "bins": self.features.bins,
            "outputs": list(self.outputs),
            "one_dimensional": self.one_dimensional,
            "dtype": str(self.dtype).removeprefix("torch."),
            "encoder": None if encoder is None else encoder.to_dict(),
            "config": self.config.to_dict(),
            "training": vars(self.options),
            "intervals": None if self.intervals is None else self.intervals._describe(),
        }

    @classmethod
    def _from_description(cls, description: Mapping[str, Any]) -> Self:
        try:
            config = RegressionConfig.from_dict(description["config"])
            preprocessor = Preprocessor(description["columns"], config.head.columns, description["feature_clip"])
            preprocessor.rows = description["rows"]
            if description["encoder"] is not None:
                preprocessor.encoder = CategoryEncoder.from_dict(description["encoder"])
            options, outputs = TrainingOptions(**description["training"]), tuple(description["outputs"])
            preprocessor.target_scale = np.ones(len(outputs))
            shapes = {name: description[name] for name in ("names_given", "one_dimensional", "bins")}
            dtype = {"float32": torch.float32, "float64": torch.float64}[description["dtype"]]
        except (KeyError, TypeError) as error:
            raise ValueError(f"the description of a fitted table model is not complete: {error}") from error
        model = cls(preprocessor, config, options, outputs, **shapes, dtype=dtype)
        if description.get("intervals") is not None:
            model.intervals = CalibratedIntervals._from_description(description["intervals"])
        return model

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        super()._load_from_state_dict(*args, **kwargs)
        for name in STATE:
            setattr(self.preprocessor, name, getattr(self, name).cpu().numpy().copy())


def _make_normalizer(config: RegressionConfig) -> CategoryNormalizer | MixedEffects | None:
    asked, cardinalities = config.normalizer, config.head.cardinalities
    if asked is None:
        return None
    if asked.method == "moments":
        return CategoryNormalizer.from_config(asked, cardinalities)
    cells = asked.by if len(asked.by) > 1 else False
    return MixedEffects(cardinalities, cells=cells, transform=asked.transform, bounds=asked.bounds)
