"""A head, its loss and its normalizer as a scikit-learn regressor. Needs the extra ``sklearn``."""

from typing import TYPE_CHECKING, Any

from reghead._optional import import_optional

if TYPE_CHECKING:
    from reghead.estimators._regressor import HeadRegressor

__all__ = ["HeadRegressor"]


def __getattr__(name: str) -> Any:
    # The class has bases of scikit-learn's: it is made on first use, so that this module imports without it.
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import_optional("sklearn", "sklearn")
    from reghead.estimators._regressor import HeadRegressor

    globals()[name] = HeadRegressor
    return HeadRegressor


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
