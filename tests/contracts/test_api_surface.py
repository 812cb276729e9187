"""The public names are those of tests/api_surface.json: a name that comes or goes is edited there on purpose.

``python tests/contracts/test_api_surface.py --write`` lists what is there now; ``--check`` compares without pytest.
"""

import importlib
import json
import pkgutil
import sys
from pathlib import Path

import reghead

LISTED = Path(__file__).parents[1] / "api_surface.json"


def public_modules() -> list[str]:
    """reghead and every module under it with no underscore anywhere in its path."""
    found, todo = [], [reghead.__name__]
    while todo:
        name = todo.pop()
        found.append(name)
        path = getattr(importlib.import_module(name), "__path__", ())
        todo += [f"{name}.{m.name}" for m in pkgutil.iter_modules(path) if not m.name.startswith("_")]
    return sorted(found)


def surface() -> dict[str, list[str]]:
    return {name: sorted(importlib.import_module(name).__all__) for name in public_modules()}


def test_public_names_are_the_listed_ones() -> None:
    assert surface() == json.loads(LISTED.read_text()), (
        "the public names changed; if that is meant, run python tests/contracts/test_api_surface.py --write, "
        "and add a line to CHANGELOG.md"
    )


def test_every_public_name_exists_and_is_listed_once() -> None:
    for name in public_modules():
        module = importlib.import_module(name)
        assert len(set(module.__all__)) == len(module.__all__), f"{name}.__all__ repeats a name"
        for attribute in module.__all__:
            assert hasattr(module, attribute), f"{name}.__all__ lists {attribute}, which {name} does not have"


def test_a_class_or_function_has_one_home_besides_the_top() -> None:
    homes: dict[int, str] = {}
    for name in public_modules():
        if name == reghead.__name__:
            continue
        module = importlib.import_module(name)
        for attribute in module.__all__:
            value = getattr(module, attribute)
            if callable(value):
                there = homes.setdefault(id(value), name)
                assert there == name, f"{attribute} is public in both {there} and {name}"


if __name__ == "__main__":
    if sys.argv[1:] == ["--write"]:
        LISTED.write_text(json.dumps(surface(), indent=2) + "\n")
    elif sys.argv[1:] == ["--check"]:
        sys.exit(0 if surface() == json.loads(LISTED.read_text()) else f"the public names differ from {LISTED}")
    else:
        sys.exit(__doc__)
