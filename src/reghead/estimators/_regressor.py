"""The scikit-learn regressor."""

import dataclasses
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any, Literal, Self

import numpy as np
import torch
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.utils import check_random_state
from sklearn.utils.validation import (
    _check_sample_weight,
    check_array,
    check_consistent_length,
    check_is_fitted,
    validate_data,
)
from torch import Tensor

from reghead._checks import check_choice, check_number
from reghead.categories import CategoryEncoder
from reghead.config import MoEConfig, RegressionConfig
from reghead.estimators._calibrate import calibrate, columns_to_calibrate
from reghead.estimators._fit import fit_model
from reghead.estimators._model import TableModel
from reghead.estimators._part import FloatArray, Part
from reghead.estimators._settings import arguments_of, check_auto, make_config
from reghead.estimators._split import as_frequencies, held_back, validation_labels
from reghead.estimators._table import (
    CHECKS,
    Column,
    names_of,
    naming_labels,
    split_columns,
    target_names,
    validate_mixed,
)
from reghead.estimators._training import History, TrainingOptions, progress
from reghead.heads import RegressionHead
from reghead.normalization import CategoryNormalizer, MixedEffects

_ENOUGH_TO_HOLD_BACK = 200  # rows


class HeadRegressor(RegressorMixin, BaseEstimator):  # type: ignore[misc]
    r"""A :class:`~reghead.heads.RegressionHead` with its loss and its normalizer, as a scikit-learn regressor.

    Numbers are standardised; a missing one becomes the mean of its column, and a column with missing numbers in
    training brings an indicator of them. The columns named in ``categories`` may hold strings, numbers or booleans; a
    label not seen in training, or missing, is unknown (id 0). The target is standardised, by the cells of
    ``normalize_by`` where that is given, and predictions are in its own units. Weights act as frequencies: an integer
    weight equals repeating the row; weights that are not all integers are first scaled to a mean of 1.

    Training is AdamW, in float32 where all numbers of X are float32 and in float64 otherwise. No generator of torch's
    is left changed.

    Args:
        categories: The categorical columns, by name or position; X is a pandas or polars DataFrame or an array.
            Arguments below that name columns name some of these.
        hidden_dims: Widths of the hidden layers.
        dropout: Probability of dropout after each hidden layer.
        activation: Nonlinearity of the hidden layers.
        norm: Normalization of the hidden layers: None, ``"layer"`` or ``"rms"``.
        residual: Add a linear map of the features to the output.
        feature_clip: Bounds standardised numbers by this, smoothly: at c one becomes 0.71 c; and a number beyond those
            of training counts as the nearest of them. None leaves numbers as they are.
        numeric_embeddings: Whether numbers are embedded by functions that may bend at their quantiles.
        embedding_dim: Width of each column's embedding.
        fusion: How the embeddings of all columns join the features: ``"concat"``, ``"add"`` or None.
        film: Columns that modulate the hidden layers.
        moe: A :class:`~reghead.config.MoEConfig` or its fields in a mapping: a mixture of experts.
        scaler: Columns with a scale and a bias of the output per category.
        scaler_compose: ``"sequential"`` or ``"additive"``.
        wide: Columns with a penalised intercept per category.
        non_crossing: Whether quantiles are ordered by construction.
        output_activation: Makes predictions positive (``"exp"``, ``"softplus"``) or non-negative (``"relu"``), by the
            transform of the target that belongs to it.
        bounds: Lowest and highest prediction, in units of the target.
        learnable_scale: One learnable scale and bias per target.
        partial_pooling: Pulls the categories of ``scaler`` and ``wide`` to the population: the variance of the noise
            over that of the effects.
        unknown_dropout: Share of training rows whose categories are hidden, so that the unknown is trained too.
        ensemble: Members that share the hidden layers' weights and predict by their mean. ``"auto"`` is 8, and 1 where
            there are no hidden layers or experts are in their place.
        loss: The type of loss, as in :class:`~reghead.config.LossConfig`; ``"quantile"`` predicts quantiles.
        quantiles: Levels of a quantile loss; (0.1, 0.5, 0.9) if left out.
        delta: Where the Huber losses turn linear, in standard deviations of the normalized target.
        over_penalty: Factor of the asymmetric loss on predictions above the target.
        under_penalty: Factor of the asymmetric loss on predictions below the target.
        base: What the asymmetric loss multiplies.
        expectile: Level of the expectile loss.
        per_output: Target, by name or position, to a loss of its own.
        normalize: What the head learns. ``"mixed_effects"``: what a linear mixed model of the features and of all
            ``categories`` (:class:`~reghead.normalization.MixedEffects`) leaves. ``"moments"``: the standardised
            target (:class:`~reghead.normalization.CategoryNormalizer`). None: the target.
        normalize_by: Columns whose combinations have, with ``"moments"``, a mean and a standard deviation of their own;
            with ``"mixed_effects"``, two columns or more whose combinations have effects beside those of the columns.
        shrinkage: ``"none"`` or ``"empirical_bayes"``; see :class:`~reghead.normalization.CategoryNormalizer`.
        fallback: ``"global"`` or ``"additive"``, for combinations not seen.
        calibrate_by: Columns that make up an environment, from coarse to fine, such as ``["location", "season"]``:
            intervals are calibrated for known ones, for new locations, and for new combinations, on models fitted
            again without whole environments. Needs ``loss="quantile"`` and rows held back.
        target_transform: Of the target, before it is standardised.
        max_epochs: Passes over the training rows, at most.
        batch_size: Rows in a step; all rows where there are no more. ``"auto"`` is the power of 2 nearest to a
            sixteenth of the training rows, between 32 and 1,024.
        lr: Learning rate.
        categorical_lr: Learning rate of the tables of categories; ``lr`` if left out.
        weight_decay: Decoupled weight decay.
        early_stopping: Stop when the loss on held-back rows no longer falls and keep the best weights; ``"auto"``
            where there are 200 rows, an ``eval_set`` or ``validation_by``. That loss is in the units of the target,
            divided by its standard deviation so that several targets count alike.
        validation_fraction: Share of the rows held back, of the categories with ``validation_by``.
        validation_by: A column of which whole categories are held back.
        patience: Epochs without a better loss on the held-back rows before training stops.
        warm_start: Continue from the last fit, with its statistics and labels.
        random_state: Seed, or generator of NumPy's, for initial weights, held-back rows, order and dropout.
        device: Where to train and predict.
        verbose: Show a progress bar.

    Attributes:
        head_: The fitted head.
        normalizer_: The fitted normalizer of the target, or None with ``normalize=None``.
        encoder_: The labels of the categories, or None.
        config_: Everything as a :class:`~reghead.config.RegressionConfig`.
        target_names_: Names of the targets.
        history_: Lists with one entry per epoch: ``train_loss``, ``validation_loss`` where rows are held back, and
            ``load_balancing_loss`` and ``expert_utilization`` with experts.
        n_iter_: Epochs trained in the last fit.

    Example:
        >>> X = [["a", 0.0], ["a", 1.0], ["b", 0.0], ["b", 1.0]]
        >>> y = [0.0, 1.0, 10.0, 11.0]
        >>> model = HeadRegressor([0], hidden_dims=(), loss="mse", weight_decay=0.0, lr=0.1, random_state=0).fit(X, y)
        >>> [round(float(value), 1) + 0.0 for value in model.predict([["a", 0.5], ["b", 0.5]])]
        [0.5, 10.5]
    """

    config_: RegressionConfig
    encoder_: CategoryEncoder | None
    head_: RegressionHead
    history_: History
    normalizer_: CategoryNormalizer | MixedEffects | None
    target_names_: tuple[str, ...]
    _model: TableModel

    def __init__(
        self,
        categories: Sequence[Column] | None = None,
        *,
        hidden_dims: Sequence[int] = (64, 32),
        dropout: float = 0.0,
        activation: str = "relu",
        norm: str | None = None,
        residual: bool = False,
        feature_clip: float | None = 3.0,
        numeric_embeddings: bool = True,
        embedding_dim: int = 16,
        fusion: str | None = "concat",
        film: Sequence[Column] = (),
        moe: MoEConfig | Mapping[str, Any] | None = None,
        scaler: Sequence[Column] = (),
        scaler_compose: str = "sequential",
        wide: Sequence[Column] = (),
        non_crossing: bool = True,
        output_activation: str | None = None,
        bounds: tuple[float, float] | None = None,
        learnable_scale: bool = False,
        partial_pooling: float = 0.0,
        unknown_dropout: float = 0.1,
        ensemble: int | Literal["auto"] = "auto",
        loss: str = "mse",
        quantiles: Sequence[float] | None = None,
        delta: float = 1.0,
        over_penalty: float = 1.0,
        under_penalty: float = 1.0,
        base: str = "mse",
        expectile: float = 0.5,
        per_output: Mapping[str | int, Any] | None = None,
        normalize: str | None = "mixed_effects",
        normalize_by: Sequence[Column] = (),
        shrinkage: str = "none",
        fallback: str = "global",
        calibrate_by: Column | Sequence[Column] | None = None,
        target_transform: str = "identity",
        max_epochs: int = 200,
        batch_size: int | Literal["auto"] = "auto",
        lr: float = 3e-3,
        categorical_lr: float | None = None,
        weight_decay: float = 1e-3,
        early_stopping: bool | Literal["auto"] = "auto",
        validation_fraction: float = 0.1,
        validation_by: Column | None = None,
        patience: int = 20,
        warm_start: bool = False,
        random_state: int | np.random.RandomState | None = None,
        device: str = "cpu",
        verbose: bool = False,
    ) -> None:
        for name, value in locals().copy().items():
            if name not in ("self", "__class__"):
                setattr(self, name, value)

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        tags.input_tags.categorical = tags.input_tags.string = bool(self.categories)
        tags.target_tags.multi_output = True
        return tags

    def fit(self, X: Any, y: Any, sample_weight: Any = None, eval_set: Any = None) -> Self:  # noqa: N803
        """Train on ``X`` and ``y``.

        Args:
            X: Table of shape (B, columns).
            y: Targets of shape (B,) or (B, D); the names of a DataFrame's columns are kept.
            sample_weight: Non-negative weights of shape (B,); a row of weight 0 is left out.
            eval_set: ``(X, y)`` or ``(X, y, sample_weight)`` to stop early by, in the place of held-back rows.

        Raises:
            TypeError: If an argument of the constructor has the wrong type.
            ValueError: If data or arguments are refused, or a warm start finds other arguments than the last fit's.
        """
        self._options(1)  # refuses what is wrong before anything is read
        continued = self.warm_start and hasattr(self, "head_")
        table, target = self._validate_fit(X, y, reset=not continued)
        names, outputs = names_of(X if hasattr(X, "columns") else table), target_names(y, target)
        if eval_set is not None and (self.early_stopping is False or self.validation_by is not None):
            other = "early_stopping=False" if self.early_stopping is False else "validation_by"
            raise ValueError(f"eval_set is there to stop early by, and {other} asks for something else; keep one")
        config = make_config(self, names, outputs)
        part = self._part(table, names, config.head.columns, target, sample_weight)
        if part.weight is not None:
            part = part.take(part.weight > 0)
        columns = columns_to_calibrate(self, names, config, part, continued=continued)
        rng = check_random_state(self.random_state)
        held = None
        if self._stops_early(len(part.target), eval_set is not None):
            if eval_set is not None:
                held = self._read_eval_set(eval_set, names, config.head.columns, part.target.shape[1])
            else:
                labels = validation_labels(self.validation_by, names, part)
                aside = held_back(len(part.target), self.validation_fraction, labels, rng)
                held, part = part.take(aside), part.take(~aside)
        if self.normalize == "mixed_effects" and len(part.target) < 2:
            raise ValueError(
                "a mixed model needs at least 2 rows to train on, got n_samples = 1; give more or set "
                "normalize='moments'"
            )
        seed, options = int(rng.randint(2**31 - 1)), self._options(len(part.target))

        def fit_again(
            part: Part, held: Part | None = None, options: TrainingOptions = options, **more: Any
        ) -> tuple[TableModel, History]:
            return fit_model(
                [part],
                None if held is None else [held],
                names=names,
                outputs=outputs,
                names_given=hasattr(self, "feature_names_in_"),
                one_dimensional=target.ndim == 1,
                config=config,
                options=options,
                dtype=torch.float32 if part.numbers.dtype == np.float32 else torch.float64,
                device=torch.device(self.device),
                seed=seed,
                feature_clip=self.feature_clip,
                embed=self.numeric_embeddings,
                **more,
            )

        if columns and held is None:
            raise ValueError("calibrate_by needs rows held back to calibrate on; set early_stopping=True")
        with progress("HeadRegressor", options.max_epochs, self.verbose) as callbacks:
            model, history = fit_again(part, held, start=self._model if continued else None, callbacks=callbacks)
        if columns and held is not None:
            best = int(np.argmin(np.nan_to_num(history["validation_loss"], nan=np.inf))) + 1
            as_long = dataclasses.replace(options, max_epochs=best)
            model.intervals = calibrate(model, part, held, columns, lambda rows: fit_again(rows, None, as_long)[0], rng)
        model.one_dimensional = target.ndim == 1
        self._adopt(model, history)
        return self

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write what was fitted to ``path`` (safetensors), and its description beside it as readable JSON.

        The description goes to the same name with ``.json`` added. Needs the extra ``safetensors``.
        """
        check_is_fitted(self)
        self._model.save(path)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """The fitted estimator that :meth:`save`, or ``reghead train``, wrote to ``path``.

        Its arguments are those of the fit, but for ``random_state``, ``verbose`` and how rows were held back, which
        are not written. Needs the extra ``safetensors``.

        Raises:
            ValueError: If the file is not a whole one, or not that of a fitted estimator.
        """
        model = TableModel.load(path)
        by = None if model.intervals is None else tuple(model.intervals.cardinalities)
        arguments = arguments_of(model.config, model.options)
        of_features: dict[str, Any] = {"feature_clip": model.preprocessor.clip}
        of_features["numeric_embeddings"] = model.features.bins is not None
        estimator = cls(**arguments, **of_features, calibrate_by=by)
        estimator._adopt(model, {})
        estimator.n_features_in_ = len(model.preprocessor.names)
        if model.names_given:
            estimator.feature_names_in_ = np.array(model.preprocessor.names, dtype=object)
        return estimator

    def _adopt(self, model: TableModel, history: History) -> None:
        self._model, self.history_ = model, history
        self.head_, self.normalizer_, self.encoder_ = model.head, model.normalizer, model.preprocessor.encoder
        self.config_, self.target_names_ = model.config, model.outputs
        self.n_iter_ = len(history.get("train_loss", ()))

    def predict(self, X: Any) -> FloatArray:  # noqa: N803
        """Point predictions in the units of the target, of shape (B,) or (B, D).

        With quantiles they are those of the level nearest 0.5, the lower of two.
        """
        preds = self._predict(X)
        return self._shaped(self._model.point(preds).numpy())

    def predict_quantiles(self, X: Any) -> FloatArray:  # noqa: N803
        """Quantiles in the units of the target, of shape (B, Q) or (B, D, Q).

        Where targets have losses of their own, a level that a target was not trained on is NaN.

        Raises:
            ValueError: If the loss predicts no quantiles.
        """
        levels = self._levels()
        preds = self._predict(X).numpy()
        for d, trained in enumerate(self._model.trained_levels()):
            preds[:, d, [level not in trained for level in levels]] = np.nan
        return self._shaped(preds)

    def predict_interval(self, X: Any, confidence_level: float) -> tuple[FloatArray, FloatArray]:  # noqa: N803
        r"""Lower and upper ends, in the units of the target, each of shape (B,) or (B, D).

        They are the predicted quantiles of the levels :math:`(1 \mp c) / 2`, which must be among those fitted, and with
        ``calibrate_by`` what calibration has made of them, which need not hold the median.

        Args:
            X: Table of shape (B, columns).
            confidence_level: The share c of targets that is to lie inside.

        Raises:
            ValueError: If the loss predicts no quantiles, or not those of ``confidence_level``.
        """
        levels = self._levels()
        if not 0.0 < check_number("confidence_level", confidence_level) < 1.0:
            raise ValueError(f"confidence_level must be between 0 and 1, got {confidence_level!r}")
        wanted = ((1 - confidence_level) / 2, (1 + confidence_level) / 2)
        found = [i for w in wanted for i, level in enumerate(levels) if abs(level - w) < 1e-9]
        if len(found) != 2:
            raise ValueError(
                f"confidence_level={confidence_level} needs the levels {wanted[0]:.4g} and {wanted[1]:.4g}, and those "
                f"fitted are {', '.join(map(str, levels))}; fit with both among quantiles"
            )
        if self._model.intervals is not None:
            ends = self._model.predict_interval(self._read(X)).numpy()
            at = found[0]  # the ends are those of all pairs, the widest first
            return self._shaped(ends[..., at]), self._shaped(ends[..., -1 - at])
        untrained = [
            name
            for name, trained in zip(self.target_names_, self._model.trained_levels(), strict=True)
            if not {levels[i] for i in found} <= set(trained)
        ]
        if untrained:
            raise ValueError(f"confidence_level={confidence_level} needs levels that {untrained} were not trained on")
        quantiles = self.predict_quantiles(X)
        return quantiles[..., found[0]], quantiles[..., found[1]]

    def _options(self, rows: int) -> TrainingOptions:
        check_choice("early_stopping", self.early_stopping, (True, False, "auto"))
        check_choice("numeric_embeddings", self.numeric_embeddings, (True, False))
        size = self.batch_size
        if isinstance(size, str):
            check_auto("batch_size", size)
            size = min(max(2 ** round(math.log2(max(rows, 1) / 16)), 32), 1024)
        names = ("max_epochs", "lr", "categorical_lr", "weight_decay", "patience")
        return TrainingOptions(batch_size=size, **{name: getattr(self, name) for name in names})

    def _validate_fit(self, X: Any, y: Any, *, reset: bool) -> tuple[Any, FloatArray]:  # noqa: N803
        if not self.categories:
            with naming_labels(X):
                table, target = validate_data(self, X, y, reset=reset, multi_output=True, y_numeric=True, **CHECKS)
        else:
            table, target = validate_mixed(self, X, reset=reset), check_array(y, ensure_2d=False, input_name="y")
            check_consistent_length(table, target)
        return table, np.array(target, dtype=np.float64)

    def _part(
        self, table: Any, names: Sequence[str], categories: Sequence[str], target: FloatArray, sample_weight: Any
    ) -> Part:
        numbers, labels = split_columns(table, names, categories)
        weight = None
        if sample_weight is not None:
            weight = as_frequencies(_check_sample_weight(sample_weight, numbers, dtype=np.float64))
        return Part(numbers, labels, target[:, None] if target.ndim == 1 else target, weight)

    def _stops_early(self, rows: int, has_eval_set: bool) -> bool:
        if self.early_stopping == "auto":
            return has_eval_set or self.validation_by is not None or rows >= _ENOUGH_TO_HOLD_BACK
        return bool(self.early_stopping)

    def _validate(self, X: Any) -> Any:  # noqa: N803
        if self._model.preprocessor.categories:
            return validate_mixed(self, X, reset=False)
        return validate_data(self, X, reset=False, **CHECKS)

    def _read_eval_set(self, eval_set: Any, names: Sequence[str], categories: Sequence[str], targets: int) -> Part:
        if not isinstance(eval_set, tuple | list) or len(eval_set) not in (2, 3):
            raise ValueError("eval_set must be (X, y) or (X, y, sample_weight)")
        table, target = self._validate_fit(*eval_set[:2], reset=False)
        part = self._part(table, names, categories, target, eval_set[2] if len(eval_set) == 3 else None)
        if part.target.shape[1] != targets:
            raise ValueError(f"eval_set must have as many targets as y, {targets}, got {part.target.shape[1]}")
        return part

    def _read(self, X: Any) -> Part:  # noqa: N803
        names, categories = self._model.preprocessor.names, self._model.preprocessor.categories
        numbers, labels = split_columns(self._validate(X), names, categories)
        return Part(numbers, labels, np.zeros((len(numbers), len(self.target_names_))), None)

    def _predict(self, X: Any) -> Tensor:  # noqa: N803
        check_is_fitted(self)
        return self._model.predict(self._read(X))

    def _shaped(self, preds: FloatArray) -> FloatArray:
        return preds[:, 0] if self._model.one_dimensional else preds

    def _levels(self) -> tuple[float, ...]:
        check_is_fitted(self)
        levels: tuple[float, ...] | None = self.config_.head.quantiles
        if levels is None:
            raise ValueError(f"loss={self.config_.loss.type!r} predicts no quantiles; fit with loss='quantile'")
        return levels
