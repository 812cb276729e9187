"""What anything that is read may do: give a result, or say in words of reghead's own what is wrong."""

import os
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import hypothesis.strategies as st
from hypothesis import HealthCheck, settings

import reghead
from reghead.cli._errors import InputError

R = TypeVar("R")
DOCUMENTED = (InputError, ValueError, TypeError, RuntimeError)
CORPUS = Path(__file__).with_name("corpus")
_ROOT = str(Path(reghead.__file__).parent) + os.sep
_LONG = int(os.environ.get("REGHEAD_FUZZ", "0"))


def examples(few: int) -> settings:
    """``few`` examples; ``REGHEAD_FUZZ=1000`` makes them 1000."""
    checks = [HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example]
    checks += [HealthCheck.filter_too_much, HealthCheck.function_scoped_fixture]
    return settings(max_examples=_LONG or few, deadline=None, suppress_health_check=checks, print_blob=True)


def tried(call: Callable[[], R], *also: type[BaseException]) -> R | None:
    """The result of ``call``; None where it was refused by reghead itself, and not by what it is built on.

    Args:
        call: Reads something.
        also: Errors that are documented beside the usual ones.
    """
    try:
        return call()
    except (*DOCUMENTED, *also) as error:
        check_own(error)
        return None


def check_own(error: BaseException) -> None:
    """Assert that the error was raised in reghead, in words."""
    where = traceback.extract_tb(error.__traceback__)[-1].filename
    assert where.startswith(_ROOT), f"raised in {where}: {type(error).__name__}: {error}"
    assert str(error).strip(), type(error).__name__
    assert type(error) not in (UnicodeEncodeError, UnicodeDecodeError), error


def mutated(content: bytes) -> st.SearchStrategy[bytes]:
    """``content`` with some bytes changed, cut off, doubled, or put in."""
    place = st.integers(0, max(len(content) - 1, 0))
    piece = st.sampled_from(
        [
            b"",
            b"\x00",
            b"\xff\xfe",
            b'"',
            b"\n",
            b"\r",
            b",",
            b"{",
            b"]",
            b"\xf0\x9f",
            b"nan",
            b"1e999",
            b"-",
            b"9" * 400,
        ]
    )
    change = st.one_of(
        st.tuples(st.just("flip"), place, st.integers(1, 255)),
        st.tuples(st.just("cut"), place, st.just(0)),
        st.tuples(st.just("drop"), place, st.integers(1, 40)),
        st.tuples(st.just("twice"), place, st.integers(1, 40)),
        st.tuples(st.just("put"), place, st.one_of(piece, st.binary(max_size=8))),
    )

    def apply(changes: list[tuple[str, int, Any]]) -> bytes:
        result = bytearray(content)
        for kind, at, value in changes:
            if kind == "flip" and at < len(result):
                result[at] ^= value
            elif kind == "cut":
                del result[at:]
            elif kind == "drop":
                del result[at : at + value]
            elif kind == "twice":
                result[at:at] = result[at : at + value]
            elif kind == "put":
                result[at:at] = value
        return bytes(result)

    return st.lists(change, min_size=1, max_size=4).map(apply)


HUGE = 10**400
"""More than a float holds."""
TEXTS = st.one_of(
    st.text(max_size=12),
    st.text(st.characters(), max_size=4),  # lone surrogates, too
    st.sampled_from(
        ["", " ", "\x00", "a\nb", "\ud800", "é", "e\u0301", "İ", "None", "nan", "1", "1.0", "\ufeff", "=1+1"]
    ),
)
NUMBERS = st.one_of(
    st.integers(-3, 12),
    st.sampled_from([2**31, 2**63, -(2**63), 2**64, 10**30, HUGE, -HUGE]),
    st.floats(-2, 2),
    st.floats(),
)
SCALARS = st.one_of(st.none(), st.booleans(), NUMBERS, TEXTS)
JSON = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4), max_leaves=8
)
"""What JSON can hold, and numbers and texts that it cannot."""
