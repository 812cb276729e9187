"""scikit-learn's own checks of an estimator."""

from typing import Any

from sklearn.utils.estimator_checks import parametrize_with_checks

from reghead.estimators import HeadRegressor


@parametrize_with_checks(
    [HeadRegressor(max_epochs=60, lr=0.01), HeadRegressor(loss="quantile", max_epochs=60, lr=0.01)],
)
def test_passes_the_checks_of_scikit_learn(estimator: Any, check: Any) -> None:
    check(estimator)
