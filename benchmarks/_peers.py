"""The peers, each as its users would run it: defaults, early stopping and calibration on the validation rows."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd

from benchmarks._data import Fold
from benchmarks._method import CONFIDENCE, LEVELS, Prediction, conformalize, gaussian, method

FloatArray = npt.NDArray[np.float64]

ROUNDS, PATIENCE = 1000, 50
MANY = 100  # labels of a column from which on it is a random effect or is left out


def columns_of(fold: Fold) -> Any:
    """One indicator per label, none for one not seen; numbers standardised, and imputed by the mean."""
    from sklearn.compose import ColumnTransformer
    from sklearn.impute import SimpleImputer
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder, StandardScaler

    numbers = make_pipeline(SimpleImputer(add_indicator=True), StandardScaler())
    labels = OneHotEncoder(handle_unknown="ignore", sparse_output=False)
    return ColumnTransformer([("labels", labels, fold.categories), ("numbers", numbers, fold.numbers)])


@method("mean", "sklearn")
def mean(fold: Fold, seed: int) -> Prediction:
    rows = len(fold.test.target)
    quantiles = np.quantile(fold.train.target, LEVELS)
    return Prediction(np.full(rows, fold.train.target.mean()), np.tile(quantiles, (rows, 1)))


@method("additive", "sklearn")
def additive(fold: Fold, seed: int) -> Prediction:
    """Least squares on the main effects of all labels, without numbers; a label not seen has no effect."""
    from sklearn.linear_model import Ridge
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder

    names = fold.categories
    model = make_pipeline(OneHotEncoder(handle_unknown="ignore"), Ridge(alpha=1e-3))
    model.fit(fold.train.features[names], fold.train.target)
    residual = fold.train.target - model.predict(fold.train.features[names])
    free = max(len(residual) - 1 - sum(fold.train.features[name].nunique() - 1 for name in names), 1)
    return gaussian(model.predict(fold.test.features[names]), np.sqrt((residual**2).sum() / free))


@method("ols", "sklearn", uses=(columns_of,))
def ols(fold: Fold, seed: int) -> Prediction:
    from sklearn.linear_model import LinearRegression

    columns = columns_of(fold)
    x = columns.fit_transform(fold.train.features)
    model = LinearRegression().fit(x, fold.train.target)
    residual = fold.train.target - model.predict(x)
    free = max(len(x) - 1 - model.rank_, 1)
    return gaussian(model.predict(columns.transform(fold.test.features)), np.sqrt((residual**2).sum() / free))


@method("ridge", "sklearn", uses=(columns_of,))
def ridge(fold: Fold, seed: int) -> Prediction:
    """The penalty and the spread are those of the validation rows."""
    from sklearn.linear_model import Ridge

    columns = columns_of(fold)
    x, held = columns.fit_transform(fold.train.features), columns.transform(fold.validation.features)
    models = [Ridge(alpha=alpha).fit(x, fold.train.target) for alpha in np.logspace(-2, 4, 13)]
    deviations = [np.sqrt(np.mean((fold.validation.target - model.predict(held)) ** 2)) for model in models]
    best = int(np.argmin(deviations))
    return gaussian(models[best].predict(columns.transform(fold.test.features)), deviations[best])


def ordinal(fold: Fold) -> tuple[Any, list[bool]]:
    """Labels as integers, -1 where not seen; columns of more than 255 labels by the target's mean."""
    from sklearn.compose import ColumnTransformer
    from sklearn.preprocessing import OrdinalEncoder, TargetEncoder

    few = [name for name in fold.categories if fold.train.features[name].nunique() <= 255]
    many = [name for name in fold.categories if name not in few]
    encoder = OrdinalEncoder(handle_unknown="use_encoded_value", unknown_value=-1)
    steps = [
        ("few", encoder, few),
        ("many", TargetEncoder(random_state=0), many),
        ("numbers", "passthrough", fold.numbers),
    ]
    return ColumnTransformer(steps), [True] * len(few) + [False] * (len(many) + len(fold.numbers))


@method("histgb", "sklearn", uses=(ordinal, conformalize))
def histgb(fold: Fold, seed: int) -> Prediction:
    from sklearn.ensemble import HistGradientBoostingRegressor

    columns, categorical = ordinal(fold)
    x = columns.fit_transform(fold.train.features, fold.train.target)
    held, test = columns.transform(fold.validation.features), columns.transform(fold.test.features)

    def fit(**loss: Any) -> Any:
        model = HistGradientBoostingRegressor(
            max_iter=ROUNDS,
            early_stopping=True,
            n_iter_no_change=PATIENCE,
            categorical_features=categorical,
            random_state=seed,
            **loss,
        )
        return model.fit(x, fold.train.target, X_val=held, y_val=fold.validation.target)

    models = [fit(loss="quantile", quantile=level) for level in LEVELS]
    calibration = np.stack([model.predict(held) for model in models], -1)
    quantiles = np.stack([model.predict(test) for model in models], -1)
    return Prediction(fit().predict(test), conformalize(calibration, fold.validation.target, quantiles))


@method("mapie", "mapie", uses=(ordinal,))
def mapie(fold: Fold, seed: int) -> Prediction:
    """Split conformal intervals around HistGradientBoosting."""
    from mapie.regression import SplitConformalRegressor
    from sklearn.ensemble import HistGradientBoostingRegressor

    columns, categorical = ordinal(fold)
    x = columns.fit_transform(fold.train.features, fold.train.target)
    held, test = columns.transform(fold.validation.features), columns.transform(fold.test.features)
    model = HistGradientBoostingRegressor(
        max_iter=ROUNDS,
        early_stopping=True,
        n_iter_no_change=PATIENCE,
        categorical_features=categorical,
        random_state=seed,
    ).fit(x, fold.train.target, X_val=held, y_val=fold.validation.target)
    conformal = SplitConformalRegressor(model, confidence_level=CONFIDENCE, prefit=True)
    point, interval = conformal.conformalize(held, fold.validation.target).predict_interval(test)
    return Prediction(point, np.stack([interval[:, 0, 0], point, interval[:, 1, 0]], -1))


@method("lightgbm", "lightgbm", uses=(conformalize,))
def lightgbm(fold: Fold, seed: int) -> Prediction:
    import lightgbm

    types = {name: pd.CategoricalDtype(sorted(fold.train.features[name].unique())) for name in fold.categories}
    x, held, test = (part.features.astype(types) for part in (fold.train, fold.validation, fold.test))

    def fit(**loss: Any) -> Any:
        model = lightgbm.LGBMRegressor(n_estimators=ROUNDS, random_state=seed, n_jobs=1, verbose=-1, **loss)
        stop = lightgbm.early_stopping(PATIENCE, verbose=False)
        return model.fit(x, fold.train.target, eval_set=[(held, fold.validation.target)], callbacks=[stop])

    models = [fit(objective="quantile", alpha=level) for level in LEVELS]
    calibration = np.stack([model.predict(held) for model in models], -1)
    quantiles = np.stack([model.predict(test) for model in models], -1)
    return Prediction(fit().predict(test), conformalize(calibration, fold.validation.target, quantiles))


@method("catboost", "catboost", seeded=True, uses=(conformalize,))
def catboost(fold: Fold, seed: int) -> Prediction:
    import catboost

    def fit(loss: str) -> Any:
        model = catboost.CatBoostRegressor(
            iterations=ROUNDS,
            loss_function=loss,
            cat_features=fold.categories,
            random_seed=seed,
            thread_count=1,
            verbose=False,
            allow_writing_files=False,
        )
        held = (fold.validation.features, fold.validation.target)
        return model.fit(fold.train.features, fold.train.target, eval_set=held, early_stopping_rounds=PATIENCE)

    quantile = fit(f"MultiQuantile:alpha={','.join(map(str, LEVELS))}")
    held, test = quantile.predict(fold.validation.features), quantile.predict(fold.test.features)
    point = fit("RMSE").predict(fold.test.features)
    return Prediction(point, conformalize(held, fold.validation.target, test))


def effects_of(fold: Fold) -> list[str]:
    """The columns with random effects: the environment's, and those of many labels."""
    environment = [name for name in (fold.location, fold.season) if name]
    return [name for name in fold.categories if name in environment or fold.train.features[name].nunique() >= MANY]


def cells_of(fold: Fold, frame: pd.DataFrame) -> pd.Series:
    names = [name for name in (fold.location, fold.season) if name]
    return frame[names].agg(" / ".join, axis=1)


@method("gpboost", "gpboost", uses=(effects_of, cells_of))
def gpboost(fold: Fold, seed: int) -> Prediction:
    """Trees and random effects of location, season, their cells, and columns of many labels."""
    import gpboost

    random = effects_of(fold)
    labels = {name: sorted(fold.train.features[name].unique()) for name in fold.categories if name not in random}
    center, scale = fold.train.target.mean(), fold.train.target.std()

    def read(frame: pd.DataFrame) -> tuple[FloatArray, npt.NDArray[np.object_]]:
        codes = {name: pd.Categorical(frame[name], known).codes.astype(float) for name, known in labels.items()}
        groups = frame[random].assign(cell=cells_of(fold, frame)) if fold.season else frame[random]
        return np.column_stack([*codes.values(), frame[fold.numbers]]), groups.to_numpy(object)

    (x, groups), (held, held_groups), (test, test_groups) = (
        read(part.features) for part in (fold.train, fold.validation, fold.test)
    )
    effects = gpboost.GPModel(group_data=groups, likelihood="gaussian", seed=seed, num_parallel_threads=1)
    effects.set_prediction_data(group_data_pred=held_groups)
    data = gpboost.Dataset(x, (fold.train.target - center) / scale, categorical_feature=list(range(len(labels))))
    model = gpboost.train(
        {"learning_rate": 0.1, "verbose": -1, "seed": seed, "num_threads": 1},
        data,
        num_boost_round=ROUNDS,
        gp_model=effects,
        valid_sets=data.create_valid(held, (fold.validation.target - center) / scale),
        early_stopping_rounds=20,
        use_gp_model_for_validation=True,
        verbose_eval=False,
    )
    found = model.predict(test, group_data_pred=test_groups, predict_var=True, pred_latent=False)
    return gaussian(center + scale * found["response_mean"], scale * np.sqrt(found["response_var"]))


def crossed(fold: Fold, frame: pd.DataFrame) -> dict[str, pd.Series]:
    """The random effects: location, season and their cells, unless those are too many for dense matrices."""
    effects = {name: frame[name] for name in (fold.location, fold.season) if name}
    if fold.season and cells_of(fold, fold.train.features).nunique() < 200:
        effects["cell"] = cells_of(fold, frame)
    return effects


@method("mixedlm", "statsmodels", uses=(cells_of, crossed))
def mixedlm(fold: Fold, seed: int) -> Prediction:
    """Crossed random effects of the environment; another column of many labels is left out."""
    import warnings

    from scipy.linalg import qr
    from sklearn.compose import ColumnTransformer
    from sklearn.impute import SimpleImputer
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import OneHotEncoder, StandardScaler
    from statsmodels.regression.mixed_linear_model import MixedLM, VCSpec

    effects = crossed(fold, fold.train.features)
    fixed = [name for name in fold.categories if name not in effects and fold.train.features[name].nunique() < MANY]
    columns = ColumnTransformer(
        [
            ("labels", OneHotEncoder(drop="first", handle_unknown="ignore", sparse_output=False), fixed),
            ("numbers", make_pipeline(SimpleImputer(add_indicator=True), StandardScaler()), fold.numbers),
        ]
    )
    indicators = {name: pd.get_dummies(labels, dtype=float) for name, labels in effects.items()}
    names = [[list(one.columns)] for one in indicators.values()]
    variances = VCSpec(list(indicators), names, [[one.to_numpy()] for one in indicators.values()])
    center, scale = fold.train.target.mean(), fold.train.target.std()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of labels not seen, of optima on the boundary and failed line searches
        x = np.column_stack([np.ones(len(fold.train.target)), columns.fit_transform(fold.train.features)])
        test = np.column_stack([np.ones(len(fold.test.target)), columns.transform(fold.test.features)])
        _, triangle, order = qr(x, mode="economic", pivoting=True)
        sizes = np.abs(np.diag(triangle))
        independent = np.sort(order[: int((sizes > 1e-8 * sizes[0]).sum())])
        one_group = np.zeros(len(x))
        model = MixedLM((fold.train.target - center) / scale, x[:, independent], one_group, exog_vc=variances)
        fit = model.fit(method=["bfgs", "lbfgs", "cg"])
        found = fit.random_effects[0.0]
    mean, spread = test[:, independent] @ fit.fe_params, np.full(len(test), fit.scale)
    values = dict(zip(found.index, found, strict=True))
    for (name, labels), variance in zip(crossed(fold, fold.test.features).items(), fit.vcomp, strict=True):
        keys = [f"{name}[{label}]" for label in labels]
        mean = mean + np.array([values.get(key, 0.0) for key in keys])
        spread = spread + np.where([key in values for key in keys], 0.0, variance)
    return gaussian(center + scale * mean, scale * np.sqrt(spread))
