"""What the mixed model refuses, and what it says."""

import re
from typing import Any

import pytest
import torch
from torch import Tensor

from reghead._warnings import RegheadWarning
from reghead.normalization import MixedEffects, _mixed_iterate, _mixed_state, _reml_sampled

IDS = {"a": torch.tensor([1, 1, 2, 2, 3, 3])}
Y = torch.tensor([[1.0], [2.0], [4.0], [3.0], [9.0], [7.0]])
X = torch.tensor([[0.5], [2.0], [0.1], [1.0], [3.0], [2.0]])


def fitted(**options: Any) -> MixedEffects:
    return MixedEffects({"a": 5}, **options).fit(Y, IDS, X)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"cells": 1}, TypeError, "cells must be True, False or a sequence of column names, got 1"),
        ({"cells": "a"}, TypeError, "cells must be True, False or a sequence of column names, got 'a'"),
        ({"cells": ["a"]}, ValueError, r"cells must name at least two columns, got \('a',\); a column by itself has"),
        ({"cells": ["a", "b"]}, ValueError, "cells names the column 'b', which is not among the categorical columns"),
        ({"shrink_features": 1}, TypeError, "shrink_features must be True or False, got 1"),
        ({"transform": "sqrt"}, ValueError, "transform must be one of 'identity'"),
        ({"bounds": (0, 1)}, ValueError, "bounds belong to transform='logit'"),
    ],
)
def test_options(options: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        MixedEffects({"a": 5}, **options)


@pytest.mark.parametrize(
    ("target", "features", "weight", "message"),
    [
        (Y[:, 0], X, None, r"target must have shape \(\*, D\), got \(6,\); use target.unsqueeze\(-1\)"),
        (Y[:, :0], X, None, "target must have at least one column"),
        (Y / 0, X, None, "target must be finite, or NaN where it is missing, got an infinite value in column 0"),
        (Y * torch.nan, X, None, "every column of target needs a value with a positive weight, but column 0 has none"),
        (Y[:0], X[:0], None, "every column of target needs a value with a positive weight, but column 0 has none"),
        (
            Y,
            X[:, 0],
            None,
            r"features must have shape \(\*, F\) with the leading dimensions \(6,\) of target, got \(6,\)",
        ),
        (Y, X * torch.nan, None, "features must be finite, got NaN or an infinite value in column 0; fill in"),
        (Y, X, -Y[:, 0], "weight must be finite and non-negative"),
        (
            Y,
            X,
            Y[:, 0] / 100,
            r"more rows than fixed effects, .* the weights of column 0 sum to 0.26 for 2; weights are frequencies",
        ),
        (
            Y,
            torch.eye(6),
            None,
            "more rows than fixed effects, .* column 0 sum to 6 for 6; .* that are shrunk are no",
        ),
    ],
)
def test_fit_says_what_is_wrong_and_changes_nothing(
    target: Tensor, features: Tensor, weight: Tensor | None, message: str
) -> None:
    model, fresh = fitted(shrink_features=False), MixedEffects({"a": 5}, shrink_features=False)
    before = {name: t.clone() for name, t in model.state_dict().items()}
    ids = {"a": IDS["a"][: len(target)]}
    for m in (model, fresh):
        with pytest.raises(ValueError, match=message):
            m.fit(target, ids, features, weight=weight)
    assert not fresh.is_fitted
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())


def test_integer_targets_and_features() -> None:
    with pytest.raises(TypeError, match=r"target must be of a floating-point dtype, got torch.int64"):
        fitted().fit(Y.long(), IDS, X)
    with pytest.raises(TypeError, match=r"features must be of a floating-point dtype, got torch.int64"):
        fitted()(Y, IDS, X.long())


def test_targets_outside_the_domain_of_the_transform() -> None:
    with pytest.raises(ValueError, match="transform='log' takes targets above 0, got -1"):
        MixedEffects({"a": 5}, transform="log").fit(Y - 2, IDS)
    with pytest.raises(ValueError, match="a width has no inverse under transform='log'"):
        MixedEffects({"a": 5}, transform="log").fit(Y, IDS).inverse_scale(Y, IDS)


def test_many_large_columns_need_no_common_key_unless_they_are_combined() -> None:
    sizes = dict.fromkeys("abcdef", 10**5)
    with pytest.raises(ValueError, match=r"product of at most 2\*\*62 for cells to have integer keys"):
        MixedEffects(sizes)
    MixedEffects(sizes, cells=False)
    MixedEffects(sizes, cells=["a", "f"])


def test_before_a_fit() -> None:
    model = MixedEffects({"a": 5})
    for call in (
        lambda: model(Y, IDS),
        lambda: model.inverse(Y, IDS),
        lambda: model.update(Y, IDS),
        lambda: model.predict(IDS),
        lambda: model.leave_one_out(Y, IDS),
        model.statistics,
        lambda: model.out_features,
        lambda: model.in_features,
    ):
        with pytest.raises(RuntimeError, match=r"this MixedEffects has no statistics yet; call fit"):
            call()


@pytest.mark.parametrize("name", ["forward", "inverse", "inverse_scale", "update", "leave_one_out"])
def test_calls_check_shapes_features_and_ids(name: str) -> None:
    call = getattr(fitted(), name)
    with pytest.raises(ValueError, match=r"must have shape \(\*, D\) with D = 1, got \(6,\); use .*unsqueeze"):
        call(Y[:, 0], IDS, X)
    with pytest.raises(ValueError, match="this MixedEffects was fitted with 1 features; pass features"):
        call(Y, IDS)
    with pytest.raises(ValueError, match=r"features must have F = 1 columns, as in fit, got \(6, 2\)"):
        call(Y, IDS, X.expand(6, 2))
    with pytest.raises(ValueError, match=r"features must have shape \(\*, F\) with the leading dimensions \(6,\)"):
        call(Y, IDS, X[:3])
    with pytest.raises(ValueError, match="needs the column 'a' in categories, got 'b'"):
        call(Y, {"b": IDS["a"]}, X)
    with pytest.raises(TypeError, match="MixedEffects needs categories"):
        call(Y, None, X)
    with pytest.raises(ValueError, match=r"must hold ids in \[0, 5\), got 5"):
        call(Y, {"a": IDS["a"] + 2}, X)
    with pytest.raises(ValueError, match=r"has shape \(6, 1\), but .* has only the leading dimensions \(6,\)"):
        call(Y, {"a": IDS["a"].unsqueeze(1)}, X)


def test_inverse_checks_its_dimension_and_its_center() -> None:
    model = fitted()
    with pytest.raises(ValueError, match="output_dim must be one of -1, -2, got 0"):
        model.inverse(Y, IDS, X, output_dim=0)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"preds must have shape \(\*, D, Q\) with D = 1, got \(6, 3, 1\)"):
        model.inverse(torch.zeros(6, 3, 1), IDS, X, output_dim=-2)
    with pytest.raises(ValueError, match="center is what quantiles are spread around; pass output_dim=-2"):
        model.inverse(Y, IDS, X, center=Y)
    with pytest.raises(ValueError, match=r"center must have shape \(\*, D\) = \(6, 1\), got \(6,\)"):
        model.inverse(torch.zeros(6, 1, 3), IDS, X, output_dim=-2, center=Y[:, 0])


def test_a_state_dict_of_another_model_or_a_part_of_one() -> None:
    model = fitted()
    with pytest.raises((ValueError, RuntimeError), match="written by another MixedEffects: a is 5 there and 6 here"):
        MixedEffects({"a": 6}).load_state_dict(model.state_dict())
    state = model.state_dict()
    del state["ratios"]
    with pytest.raises(ValueError, match="has only a part of the statistics, and nothing was loaded; it lacks ratios"):
        MixedEffects({"a": 5}).load_state_dict(state)
    state = model.state_dict() | {"moment": torch.zeros(3)}
    with pytest.raises(ValueError, match="state_dict's moment must have 2 dimensions, got 1"):
        MixedEffects({"a": 5}).load_state_dict(state)
    state = model.state_dict() | {"square": torch.zeros(3)}
    with pytest.raises(ValueError, match=r"state_dict's square must have shape \(1,\) to go with .*, got \(3,\)"):
        MixedEffects({"a": 5}).load_state_dict(state)
    with pytest.raises(ValueError, match="the description of a MixedEffects must have cardinalities, cells, shr"):
        MixedEffects._from_description({"cells": True})


def test_the_first_column_that_is_wrong_is_named() -> None:
    nan, inf = torch.nan, torch.inf
    with pytest.raises(ValueError, match=r"got an infinite value in column 1$"):
        MixedEffects().fit(torch.tensor([[1.0, 2.0, -inf, 1.0], [1.0, inf, inf, 2.0]]))
    with pytest.raises(ValueError, match="but column 1 has none"):
        MixedEffects().fit(torch.tensor([[1.0, nan, nan, 1.0], [1.0, nan, nan, 2.0]]))
    with pytest.raises(ValueError, match="the weights of column 1 sum to 1 for 1; weights"):
        MixedEffects().fit(torch.tensor([[1.0, nan, nan], [1.0, 3.0, 2.0]]))
    wrong = torch.zeros(6, 4)
    wrong[2, 1:3] = torch.tensor([nan, inf])
    with pytest.raises(ValueError, match="features must be finite, got NaN or an infinite value in column 1; fill"):
        MixedEffects().fit(Y, features=wrong)
    with pytest.raises(ValueError, match="features must be finite, got NaN or an infinite value in column 0; fill"):
        fitted().update(Y, IDS, X / 0)


@pytest.mark.parametrize("shape", [(), (1,), (5, 1), (6, 1, 1), (1, 6, 1)])
def test_features_of_any_other_shape(shape: tuple[int, ...]) -> None:
    with pytest.raises(
        ValueError, match=r"features must have shape \(\*, F\) with the leading dimensions \(6,\) of targ"
    ):
        fitted()(Y, IDS, torch.zeros(shape))
    with pytest.raises(ValueError, match="features must have shape"):
        fitted().predict({"a": IDS["a"][:2]}, torch.zeros(())) if not shape else fitted().fit(
            Y, IDS, torch.zeros(shape)
        )


def test_advice_is_for_what_it_would_help() -> None:
    model = fitted()
    for tensor, options in ((Y.expand(6, 2), {}), (torch.ones(()), {}), (Y[:, 0], {"output_dim": -2})):
        with pytest.raises(ValueError, match=rf"with D = 1, got {re.escape(str(tuple(tensor.shape)))}$"):
            model.inverse(tensor, IDS, X, **options)  # type: ignore[arg-type]
    two = MixedEffects({"a": 5}).fit(Y.expand(6, 2), IDS)
    with pytest.raises(ValueError, match=r"with D = 2, got \(6,\)$"):
        two(Y[:, 0], IDS)


@pytest.mark.parametrize(("module", "name"), [(_mixed_iterate, "MAX_ITERATIONS"), (_reml_sampled, "_MAX_STEPS")])
def test_warnings_of_equations_that_are_iterated_point_at_the_call_of_fit(
    module: Any, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_mixed_state, "MAX_LEVELS", 0)
    monkeypatch.setattr(module, name, 1)
    rng = torch.Generator().manual_seed(0)
    ids = {c: torch.randint(1, 30, (300,), generator=rng) for c in "ab"}
    y = 2 * torch.randn(30, 1, generator=rng)[ids["a"]] + torch.randn(300, 1, generator=rng)
    call = compile("MixedEffects({'a': 30, 'b': 30}).fit(y, ids)", "the caller", "exec")
    with pytest.warns(RegheadWarning) as caught:
        exec(call, {"MixedEffects": MixedEffects, "y": y, "ids": ids})
    assert {warning.filename for warning in caught} == {"the caller"}
