"""Optional dependencies: imported where they are needed, and a missing one names its extra."""

import importlib
from types import ModuleType


def import_optional(module: str, extra: str) -> ModuleType:
    """Import ``module``, or raise an ``ImportError`` that says which extra brings it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        raise ImportError(
            f"this needs {package}, which is not installed; run: pip install 'reghead[{extra}]'"
        ) from error
