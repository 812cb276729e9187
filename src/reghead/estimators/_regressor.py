"""The scikit-learn regressor."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal, Self

import numpy as np
import torch
from sklearn.base import BaseEstimator, RegressorMixin
from sklearn.utils import check_random_state
from sklearn.utils.validation import (
    check_array,
    check_consistent_length,
    check_is_fitted,
    validate_data,
)

from reghead._checks import check_choice
from reghead.categories import CategoryEncoder
from reghead.config import MoEConfig, RegressionConfig
from reghead.estimators._fit import fit_parts
from reghead.estimators._settings import make_config
from reghead.estimators._split import Part, as_frequencies, held_back, validation_labels
from reghead.estimators._table import Column, FloatArray, Preprocessor, names_of, target_names, validate_mixed
from reghead.estimators._training import History, TrainingOptions, predict, progress
from reghead.functional import nearest_level
from reghead.heads import RegressionHead
from reghead.normalization import CategoryNormalizer

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
        unknown_dropout: Share of training rows whose categories are hidden, so that the unknown is trained too.
        loss: The type of loss, as in :class:`~reghead.config.LossConfig`; ``"quantile"`` predicts quantiles.
        quantiles: Levels of a quantile loss; (0.1, 0.5, 0.9) if left out.
        delta: Where the Huber losses turn linear, in standard deviations of the normalized target.
        over_penalty: Factor of the asymmetric loss on predictions above the target.
        under_penalty: Factor of the asymmetric loss on predictions below the target.
        base: What the asymmetric loss multiplies.
        expectile: Level of the expectile loss.
        per_output: Target, by name or position, to a loss of its own.
        normalize_by: Columns whose combinations have a mean and a standard deviation of their own.
        shrinkage: ``"none"`` or ``"empirical_bayes"``; see :class:`~reghead.normalization.CategoryNormalizer`.
        fallback: ``"global"`` or ``"additive"``, for combinations not seen.
        target_transform: Of the target, before it is standardised.
        max_epochs: Passes over the training rows, at most.
        batch_size: Rows in a step; all rows where there are no more.
        lr: Learning rate.
        categorical_lr: Learning rate of the tables of categories; ``lr`` if left out.
        weight_decay: Decoupled weight decay.
        early_stopping: Stop when the loss on held-back rows no longer falls and keep the best weights; ``"auto"``
            where there are 200 rows or an ``eval_set``. That loss is in the units of the target, divided by its
            standard deviation so that several targets count alike.
        validation_fraction: Share of the rows held back, of the categories with ``validation_by``.
        validation_by: A column of which whole categories are held back.
        patience: Epochs without a better loss on the held-back rows before training stops.
        warm_start: Continue from the last fit, with its statistics and labels.
        random_state: Seed, or generator of NumPy's, for initial weights, held-back rows, order and dropout.
        device: Where to train and predict.
        verbose: Show a progress bar.

    Attributes:
        head_: The fitted head.
        normalizer_: The fitted normalizer of the target.
        encoder_: The labels of the categories, or None.
        config_: Everything as a :class:`~reghead.config.RegressionConfig`.
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
    normalizer_: CategoryNormalizer
    _preprocessor: Preprocessor

    def __init__(
        self,
        categories: Sequence[Column] | None = None,
        *,
        hidden_dims: Sequence[int] = (64, 32),
        dropout: float = 0.0,
        activation: str = "relu",
        norm: str | None = None,
        residual: bool = False,
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
        unknown_dropout: float = 0.0,
        loss: str = "huber",
        quantiles: Sequence[float] | None = None,
        delta: float = 1.0,
        over_penalty: float = 1.0,
        under_penalty: float = 1.0,
        base: str = "mse",
        expectile: float = 0.5,
        per_output: Mapping[str | int, Any] | None = None,
        normalize_by: Sequence[Column] = (),
        shrinkage: str = "none",
        fallback: str = "global",
        target_transform: str = "identity",
        max_epochs: int = 200,
        batch_size: int = 128,
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
        options = self._options()
        continued = self.warm_start and hasattr(self, "head_")
        table, target = self._validate_fit(X, y, reset=not continued)
        names = names_of(X if hasattr(X, "columns") else table)
        outputs = target_names(y, target)
        config = make_config(self, names, outputs)
        preprocessor = self._preprocessor if continued else Preprocessor(names, config.head.columns)
        part = self._part(preprocessor, table, target, sample_weight)
        if part.weight is not None:
            part = part.take(part.weight > 0)
        rng = check_random_state(self.random_state)
        held = None
        if self._stops_early(len(part.target), eval_set is not None):
            if eval_set is not None:
                held = self._read_eval_set(eval_set, preprocessor, part.target.shape[1])
            else:
                aside = held_back(
                    len(part.target),
                    self.validation_fraction,
                    validation_labels(self.validation_by, preprocessor, part),
                    rng,
                )
                held, part = part.take(aside), part.take(~aside)
        if not continued:
            preprocessor.fit(part.numbers, part.labels, part.weight)
        encoder = preprocessor.encoder
        cardinalities = None if encoder is None else encoder.cardinalities
        config = config.with_data(in_features=preprocessor.in_features, cardinalities=cardinalities)
        if continued and config != self.config_:
            raise ValueError(
                "warm_start continues a fit with the same head, loss and normalizer, and their arguments or the data "
                "have changed; set warm_start=False"
            )
        models = (self.head_, self.normalizer_) if continued else None
        with progress("HeadRegressor", options.max_epochs, self.verbose) as callbacks:
            self.head_, self.normalizer_, self.history_ = fit_parts(
                preprocessor,
                config,
                options,
                part,
                held,
                models=models,
                device=torch.device(self.device),
                seed=int(rng.randint(2**31 - 1)),
                callbacks=callbacks,
            )
        self._preprocessor, self.config_, self.encoder_ = preprocessor, config, encoder
        self.n_iter_ = len(self.history_["train_loss"])
        self._one_target = target.ndim == 1
        self.target_names_ = outputs
        return self

    def predict(self, X: Any) -> FloatArray:  # noqa: N803
        """Point predictions in the units of the target, of shape (B,) or (B, D).

        With quantiles they are those of the level nearest 0.5.
        """
        preds = self._predict(X)
        levels = self.config_.head.quantiles
        return self._shaped(preds if levels is None else preds[..., nearest_level(levels, 0.5)])

    def predict_quantiles(self, X: Any) -> FloatArray:  # noqa: N803
        """Quantiles in the units of the target, of shape (B, Q) or (B, D, Q).

        Where targets have losses of their own, a level that a target was not trained on is NaN.

        Raises:
            ValueError: If the loss predicts no quantiles.
        """
        levels = self._levels()
        preds = self._predict(X)
        for d, trained in enumerate(self._trained_levels()):
            preds[:, d, [level not in trained for level in levels]] = np.nan
        return self._shaped(preds)

    def predict_interval(self, X: Any, confidence_level: float) -> tuple[FloatArray, FloatArray]:  # noqa: N803
        r"""Lower and upper ends, in the units of the target, each of shape (B,) or (B, D).

        They are the predicted quantiles of the levels :math:`(1 \mp c) / 2`, which must be among those fitted.

        Args:
            X: Table of shape (B, columns).
            confidence_level: The share c of targets that is to lie inside.

        Raises:
            ValueError: If the loss predicts no quantiles, or not those of ``confidence_level``.
        """
        levels = self._levels()
        if not 0.0 < confidence_level < 1.0:
            raise ValueError(f"confidence_level must be between 0 and 1, got {confidence_level!r}")
        wanted = ((1 - confidence_level) / 2, (1 + confidence_level) / 2)
        found = [i for w in wanted for i, level in enumerate(levels) if abs(level - w) < 1e-9]
        if len(found) != 2:
            raise ValueError(
                f"confidence_level={confidence_level} needs the levels {wanted[0]:.4g} and {wanted[1]:.4g}, and those "
                f"fitted are {', '.join(map(str, levels))}; fit with both among quantiles"
            )
        quantiles = self.predict_quantiles(X)
        return quantiles[..., found[0]], quantiles[..., found[1]]

    def _options(self) -> TrainingOptions:
        check_choice("early_stopping", self.early_stopping, (True, False, "auto"))
        names = ("max_epochs", "batch_size", "lr", "categorical_lr", "weight_decay", "patience")
        return TrainingOptions(**{name: getattr(self, name) for name in names})

    def _validate_fit(self, X: Any, y: Any, *, reset: bool) -> tuple[Any, FloatArray]:  # noqa: N803
        if not self.categories:
            table, target = validate_data(self, X, y, reset=reset, multi_output=True, y_numeric=True, **_CHECKS)
        else:
            table, target = validate_mixed(self, X, reset=reset), check_array(y, ensure_2d=False, input_name="y")
            check_consistent_length(table, target)
        return table, np.array(target, dtype=np.float64)

    def _part(self, preprocessor: Preprocessor, table: Any, target: FloatArray, sample_weight: Any) -> Part:
        numbers, labels = preprocessor.split(table)
        targets = target[:, None] if target.ndim == 1 else target
        return Part(numbers, labels, targets, as_frequencies(sample_weight, len(numbers)))

    def _stops_early(self, rows: int, has_eval_set: bool) -> bool:
        if self.early_stopping == "auto":
            return has_eval_set or rows >= _ENOUGH_TO_HOLD_BACK
        return bool(self.early_stopping)

    def _validate(self, X: Any) -> Any:  # noqa: N803
        if self._preprocessor.categories:
            return validate_mixed(self, X, reset=False)
        return validate_data(self, X, reset=False, **_CHECKS)

    def _read_eval_set(self, eval_set: Any, preprocessor: Preprocessor, targets: int) -> Part:
        if not isinstance(eval_set, tuple | list) or len(eval_set) not in (2, 3):
            raise ValueError("eval_set must be (X, y) or (X, y, sample_weight)")
        part = self._part(
            preprocessor, *self._validate_fit(*eval_set[:2], reset=False), eval_set[2] if len(eval_set) == 3 else None
        )
        if part.target.shape[1] != targets:
            raise ValueError(f"eval_set must have as many targets as y, {targets}, got {part.target.shape[1]}")
        return part

    def _predict(self, X: Any) -> FloatArray:  # noqa: N803
        check_is_fitted(self)
        x, ids = self._preprocessor.transform(*self._preprocessor.split(self._validate(X)))
        device = next(self.head_.parameters()).device
        x, ids = x.to(device, next(self.head_.parameters()).dtype), {c: i.to(device) for c, i in ids.items()}
        preds = predict(self.head_, x, ids)
        own = self.normalizer_.inverse(preds, ids, output_dim=-1 if self.config_.head.quantiles is None else -2)
        result: FloatArray = own.cpu().numpy()
        return result

    def _shaped(self, preds: FloatArray) -> FloatArray:
        return preds[:, 0] if self._one_target else preds

    def _levels(self) -> tuple[float, ...]:
        check_is_fitted(self)
        levels: tuple[float, ...] | None = self.config_.head.quantiles
        if levels is None:
            raise ValueError(f"loss={self.config_.loss.type!r} predicts no quantiles; fit with loss='quantile'")
        return levels

    def _trained_levels(self) -> list[Sequence[float]]:
        spec = self.config_.loss.spec
        if spec["type"] != "per_output":
            return [spec["quantiles"]] * self.config_.head.out_features
        return [spec["losses"].get(name, spec["default"]).get("quantiles", ()) for name in self.target_names_]


_CHECKS: dict[str, Any] = {"dtype": (np.float64, np.float32), "ensure_all_finite": "allow-nan"}
