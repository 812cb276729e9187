"""The words of every check."""

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from reghead import _checks as c
from reghead._checks import check_quantiles

INF, NAN = float("inf"), float("nan")


@pytest.mark.parametrize(
    ("check", "kind", "message"),
    [
        (
            lambda: c.check_choice("n", "meen", ("mean", "sum")),
            ValueError,
            "n must be one of 'mean', 'sum', got 'meen'; did",
        ),
        (lambda: c.check_int("n", True), TypeError, "n must be an integer, got True of type bool"),
        (lambda: c.check_int("n", 2.0), TypeError, "n must be an integer, got 2.0 of type float"),
        (lambda: c.check_int("n", 0), ValueError, "n must be at least 1, got 0"),
        (lambda: c.check_number("n", "1"), TypeError, "n must be a number, got '1' of type str"),
        (lambda: c.check_number("n", True), TypeError, "n must be a number, got True of type bool"),
        (lambda: c.check_number("n", NAN), ValueError, "n must be finite, got nan"),
        (lambda: c.check_number("n", INF, above=0.0), ValueError, "n must be finite and > 0, got inf"),
        (lambda: c.check_number("n", 0.0, above=0.0), ValueError, "n must be finite and > 0, got 0.0"),
        (lambda: c.check_number("n", -1, at_least=0.0, below=1.0), ValueError, "finite and >= 0 and < 1, got -1.0"),
        (
            lambda: c.check_hidden_dims("h", "64"),
            TypeError,
            "h must be a sequence of integers such as (64, 32), got '64'",
        ),
        (lambda: c.check_hidden_dims("h", [1, "2"]), TypeError, "h[1] must be an integer, got '2' of type str"),
        (lambda: c.check_quantiles("q", "0.5"), TypeError, "q must be a sequence of levels such as (0.1, 0.5, 0.9)"),
        (lambda: c.check_quantiles("q", 0.5), TypeError, "q must be a sequence of levels"),
        (lambda: c.check_quantiles("q", []), ValueError, "q must hold at least one level, got none; use (0.5,)"),
        (lambda: c.check_quantiles("q", [0.5, NAN]), ValueError, "q[1] must be finite and > 0 and < 1, got nan"),
        (lambda: c.check_quantiles("q", [0.5, 0.5]), ValueError, "q must be strictly increasing, without repeats"),
        (
            lambda: c.check_cardinalities("k", [3]),
            TypeError,
            "k must map each column to its number of ids, id 0 included",
        ),
        (
            lambda: c.check_cardinalities("k", {1: 3}),
            TypeError,
            "k must have column names (non-empty strings) as keys, got 1",
        ),
        (
            lambda: c.check_cardinalities("k", {"": 3}),
            TypeError,
            "k must have column names (non-empty strings) as keys, got ''",
        ),
        (lambda: c.check_cardinalities("k", {"a": 0}), ValueError, "k['a'] must be at least 1, got 0"),
        (
            lambda: c.check_columns("s", "a"),
            TypeError,
            "s must be a sequence of column names such as ('location',), got 'a'",
        ),
        (lambda: c.check_columns("s", [1]), TypeError, "s must hold column names (non-empty strings), got 1"),
        (lambda: c.check_columns("s", ["a", "a"]), ValueError, "s must not repeat a column, got ('a', 'a')"),
        (
            lambda: c.check_columns("s", ["seson"], ["season"]),
            ValueError,
            "s names the column 'seson', which is not among the categorical columns ('season'); did you mean 'season'?",
        ),
        (lambda: c.check_columns("s", ["a"], []), ValueError, "not among the categorical columns (none)"),
        (lambda: c.check_floating("x", [1.0]), TypeError, "x must be a torch.Tensor, got list; use torch.as_tensor"),
        (lambda: c.check_floating("x", torch.ones(1).long()), TypeError, "got torch.int64; use x.float()"),
        (
            lambda: c.check_shape("x", torch.ones(2), (3,), "(B,)"),
            ValueError,
            "x must have shape (B,) = (3,), got (2,)",
        ),
        (lambda: c.check_shape("x", torch.ones(2), (3,), "(B,)", "turn it"), ValueError, "got (2,); turn it"),
        (
            lambda: c.check_same_shape(torch.ones(3, 1), torch.ones(3)),
            ValueError,
            "got (3, 1) and (3,); use target.unsqueeze(-1) (nothing is broadcast)",
        ),
        (lambda: c.check_same_shape(torch.ones(3), torch.ones(3, 1)), ValueError, "use preds.unsqueeze(-1)"),
        (
            lambda: c.check_same_shape(torch.ones(3, 2), torch.ones(3, 1)),
            ValueError,
            "the same shape, got (3, 2) and (3, 1) (",
        ),
        (
            lambda: c.check_last_dim("x", torch.ones(2, 3), 4, "F"),
            ValueError,
            "x must have shape (*, F) with F = 4, got (2, 3)",
        ),
        (
            lambda: c.check_last_dim("x", torch.ones(()), 1, "F"),
            ValueError,
            "x must have shape (*, F) with F = 1, got ()",
        ),
        (
            lambda: c.check_prefix("weight", torch.ones(2), "target", (3, 2)),
            ValueError,
            "weight must have the leading dimensions of target, which has shape (3, 2), got (2,)",
        ),
        (lambda: c.check_prefix("weight", torch.ones(3, 2, 1), "target", (3, 2)), ValueError, "got (3, 2, 1)"),
        (
            lambda: c.check_ids(None, {"a": 2}, "Part"),
            TypeError,
            "Part needs categories: a mapping from column to ids with 'a'",
        ),
        (
            lambda: c.check_ids({"seson": torch.ones(1).long()}, {"season": 2}, "Part"),
            ValueError,
            "Part needs the column 'season' in categories, got 'seson'; did you mean 'seson'?; pass zeros for unknown",
        ),
        (lambda: c.check_ids({}, {"a": 2}, "Part"), ValueError, "in categories, got none; pass zeros for unknown"),
        (
            lambda: c.check_ids({"a": torch.ones(1)}, {"a": 2}, "Part"),
            TypeError,
            "got torch.float32; CategoryEncoder makes",
        ),
        (
            lambda: c.check_ids({"a": torch.tensor([2])}, {"a": 2}, "Part"),
            ValueError,
            "must hold ids in [0, 2), got 2; an",
        ),
    ],
)
def test_message(check: Callable[[], Any], kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=re.escape(message)):
        check()


def test_what_is_right_comes_back_in_one_form() -> None:
    assert c.check_int("n", np.int64(3)) == 3
    assert type(c.check_int("n", np.int64(3))) is int
    assert type(c.check_number("n", np.float32(0.5))) is float
    assert c.check_hidden_dims("h", [64, np.int32(32)]) == (64, 32)
    assert c.check_quantiles("q", torch.tensor([0.25, 0.5])) == (0.25, 0.5)
    assert c.check_cardinalities("k", {"a": np.int64(2)}) == {"a": 2}
    assert c.check_columns("s", ["a"], ["a", "b"]) == ("a",)
    assert c.did_you_mean("xyz", ["mean"]) == ""


def test_values_are_looked_at_in_eager_mode_on_the_cpu_alone() -> None:
    assert c.reads_values(torch.ones(1))
    assert not c.reads_values(torch.ones(1, device="meta"))
    seen = []
    torch.func.vmap(lambda t: (seen.append(c.reads_values(t)), t)[1])(torch.ones(2))
    assert seen == [False]


def test_ids_that_cannot_be_looked_at_are_read_as_unknown() -> None:
    def resolve(i: torch.Tensor) -> torch.Tensor:
        return c.check_ids({"a": i}, {"a": 3}, "Part")[0]

    assert torch.func.vmap(resolve)(torch.tensor([0, 2, 3, -1])).tolist() == [0, 2, 0, 0]


def test_no_rows_are_no_ids_out_of_range() -> None:
    assert c.check_ids({"a": torch.zeros(0, dtype=torch.int64)}, {"a": 1}, "Part")[0].numel() == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_tensor_of_levels_means_the_numbers_it_shows(dtype: torch.dtype) -> None:
    assert check_quantiles("quantiles", torch.tensor([0.1, 0.5, 0.9], dtype=dtype)) == (0.1, 0.5, 0.9)
