"""The public names, and what can be passed to each, are those of tests/api_surface.json, changed there on purpose.

``python tests/contracts/test_api_surface.py --write`` lists what is there now; ``--check`` compares without pytest.
"""

import importlib
import inspect
import json
import pkgutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

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


def parameters(function: Callable[..., Any]) -> str:
    """What can be passed, and by position or by name; not the types, which say no more than the docstring."""
    found = inspect.signature(function).parameters.values()
    return str(inspect.Signature([p.replace(annotation=p.empty, default=shown(p.default)) for p in found]))


def shown(default: object) -> object:
    """A default as it is written in the source, or dots."""
    plain = default is inspect.Parameter.empty or isinstance(default, int | float | str | tuple | None)
    return default if plain and len(repr(default)) < 60 else ...


def describe(value: object) -> str | dict[str, str]:
    """The parameters of a function, or of a class and each public method that reghead gives it."""
    if isinstance(value, type) and not issubclass(value, BaseException):
        methods = {
            name: parameters(member.__func__ if isinstance(member, classmethod | staticmethod) else member)
            for kind in reversed(value.__mro__)
            if kind.__module__.startswith("reghead")
            for name, member in vars(kind).items()
            if not name.startswith("_")
            and (inspect.isfunction(member) or isinstance(member, classmethod | staticmethod))
        }
        return {"": parameters(value)} | dict(sorted(methods.items()))
    return parameters(value) if inspect.isfunction(value) else ""


def surface() -> dict[str, dict[str, str | dict[str, str] | None]]:
    """What is public; None for what needs an extra that is not installed."""
    found: dict[str, dict[str, str | dict[str, str] | None]] = {}
    for name in public_modules():
        module, found[name] = importlib.import_module(name), {}
        for word in sorted(module.__all__):
            try:
                found[name][word] = describe(getattr(module, word))
            except ImportError:
                found[name][word] = None
    return found


def is_as_listed() -> bool:
    """Whether all names are the listed ones, and what can be passed to each that can be imported."""
    found, listed = surface(), json.loads(LISTED.read_text())
    names = {name: [*words] for name, words in found.items()} == {name: [*words] for name, words in listed.items()}
    return names and all(
        text in (None, listed[name][word]) for name, words in found.items() for word, text in words.items()
    )


def test_public_names_and_their_parameters_are_the_listed_ones() -> None:
    assert surface() == json.loads(LISTED.read_text()), (
        "the public names, or what can be passed to one, changed; if that is meant, run "
        "python tests/contracts/test_api_surface.py --write, and add a line to CHANGELOG.md"
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
        sys.exit(0 if is_as_listed() else f"the public names, or their parameters, differ from {LISTED}")
    else:
        sys.exit(__doc__)
