"""What a normalizer refuses, and what it says."""

import math
import re
import warnings

import pytest
import torch
from torch import Tensor

from reghead.categories import CategoryEncoder
from reghead.normalization import CategoryNormalizer

F64 = torch.float64


def column(*values: float) -> Tensor:
    return torch.tensor(values, dtype=F64).unsqueeze(-1)


def at(*ids: int) -> dict[str, Tensor]:
    return {"location": torch.tensor(ids, dtype=torch.int64)}


def by_location(n: int = 4, **options: object) -> CategoryNormalizer:
    return CategoryNormalizer({"location": n}, **options)  # type: ignore[arg-type]


def test_what_cannot_be_fitted_is_refused_and_changes_nothing() -> None:
    normalizer = by_location().fit(column(1, 3), at(1, 1))
    before = normalizer.location.clone()
    nan, inf = math.nan, math.inf
    with pytest.raises(ValueError, match=r"fit needs at least one row, got target of shape \(0, 1\)"):
        normalizer.fit(torch.zeros(0, 1), at())
    with pytest.raises(ValueError, match="needs a value with a positive weight, but column 1 has none"):
        normalizer.fit(torch.tensor([[1.0, nan], [2.0, nan]]), at(1, 1))
    with pytest.raises(ValueError, match="but column 0 has none"):
        normalizer.fit(column(nan, nan), at(1, 1))
    with pytest.raises(ValueError, match="but column 0 has none"):
        normalizer.fit(column(1, 2), at(1, 1), weight=torch.zeros(2))
    with pytest.raises(ValueError, match=r"target must be finite, or NaN where it is missing.*column 1"):
        normalizer.fit(torch.tensor([[nan, 1.0], [1.0, -inf]]), at(1, 1))
    with pytest.raises(ValueError, match="column 0"):
        normalizer.fit(column(inf, -inf), at(1, 1))
    with pytest.raises(ValueError, match="weight must be finite and non-negative"):
        normalizer.fit(column(1, 2), at(1, 1), weight=torch.tensor([-1.0, 1.0]))
    with pytest.raises(ValueError, match="weight must have the leading dimensions of target"):
        normalizer.fit(column(1, 2), at(1, 1), weight=torch.ones(3))
    with pytest.raises(ValueError, match="target must have at least one column"):
        normalizer.fit(torch.zeros(2, 0), at(1, 1))
    with pytest.raises(ValueError, match=r"target must have shape \(\*, D\) with D = 1, got \(2, 2\)"):
        normalizer.partial_fit(torch.ones(2, 2), at(1, 1))
    assert torch.equal(normalizer.location, before)


def test_a_target_without_columns_is_refused_with_advice() -> None:
    y = torch.tensor([1.0, 3.0])
    with pytest.raises(ValueError, match=r"target must have shape \(\*, D\), got \(2,\); use target.unsqueeze\(-1\)"):
        by_location().fit(y, at(1, 1))
    normalizer = by_location().fit(y.unsqueeze(-1), at(1, 1))
    with pytest.raises(ValueError, match=r"with D = 1, got \(2,\); use target.unsqueeze\(-1\)"):
        normalizer(y, at(1, 1))
    with pytest.raises(ValueError, match=r"with D = 1, got \(2,\); use preds.unsqueeze\(-1\)"):
        normalizer.inverse(y, at(1, 1))
    # One row per column: the ids tell that the dimension is the batch.
    two = by_location().fit(torch.ones(2, 2), at(1, 1))
    with pytest.raises(ValueError, match=r"has shape \(2,\), but target has only the leading dimensions \(\)"):
        two(y, at(1, 1))


def test_the_first_column_that_is_wrong_is_named() -> None:
    nan, inf = math.nan, math.inf
    with pytest.raises(ValueError, match=r"got an infinite value in column 1$"):
        by_location().fit(torch.tensor([[1.0, 2.0, -inf, 1.0], [1.0, inf, inf, 2.0]]), at(1, 1))
    with pytest.raises(ValueError, match="but column 1 has none"):
        by_location().fit(torch.tensor([[1.0, nan, nan, 1.0], [1.0, nan, nan, 2.0]]), at(1, 1))


def test_use_before_fit_is_refused() -> None:
    normalizer = by_location()
    assert not normalizer.is_fitted
    for call in (normalizer, normalizer.inverse, normalizer.inverse_scale):
        with pytest.raises(RuntimeError, match="this CategoryNormalizer has no statistics yet; call fit"):
            call(column(1), at(1))
    with pytest.raises(RuntimeError, match="no statistics yet"):
        normalizer.statistics()
    with pytest.raises(RuntimeError, match="no statistics yet"):
        _ = normalizer.out_features


def test_wrong_arguments_are_refused() -> None:
    normalizer = by_location().fit(torch.ones(2, 3), at(1, 1))
    assert normalizer.out_features == 3
    with pytest.raises(ValueError, match=r"preds must have shape \(\*, D\) with D = 3, got \(2, 2\)"):
        normalizer.inverse(torch.ones(2, 2), at(1, 1))
    with pytest.raises(ValueError, match=r"preds must have shape \(\*, D, Q\) with D = 3, got \(3,\)"):
        normalizer.inverse(torch.ones(3), at(1), output_dim=-2)
    with pytest.raises(ValueError, match="output_dim must be one of -1, -2, got 1"):
        normalizer.inverse(torch.ones(2, 3), at(1, 1), output_dim=1)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"target must be of a floating-point dtype, got torch\.int64"):
        normalizer(torch.ones(2, 3, dtype=torch.int64), at(1, 1))
    with pytest.raises(TypeError, match="target must be of a floating-point dtype"):
        normalizer.fit(torch.ones(2, 3, dtype=torch.int64), at(1, 1))
    with pytest.raises(TypeError, match="CategoryNormalizer needs categories"):
        normalizer(torch.ones(2, 3))
    with pytest.raises(ValueError, match=r"categories\['location'\] must hold ids in \[0, 4\), got 4"):
        normalizer(torch.ones(2, 3), at(1, 4))
    with pytest.raises(ValueError, match=r"must have the leading dimensions of target without its columns"):
        normalizer(torch.ones(2, 3), at(1, 1, 1))


def test_normalizers_that_differ_do_not_merge() -> None:
    fitted = by_location().fit(column(1, 3), at(1, 1))
    with pytest.raises(ValueError, match=r"same options, got \{'location': 4\}.* and \{'location': 5\}"):
        fitted.merge(by_location(5))
    with pytest.raises(TypeError, match="merge needs a CategoryNormalizer, got int"):
        fitted.merge(3)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="of 1 and of 2 target columns do not merge"):
        fitted.merge(by_location().fit(torch.ones(1, 2), at(1)))


def test_wrong_options_are_refused() -> None:
    with pytest.raises(ValueError, match="shrinkage must be one of 'none', 'empirical_bayes', got 'eb'"):
        by_location(shrinkage="eb")
    with pytest.raises(ValueError, match="fallback must be one of 'global', 'additive', got 'mean'"):
        by_location(fallback="mean")
    with pytest.raises(TypeError, match="cardinalities must map each column"):
        CategoryNormalizer(["location"])  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"product of at most 2\*\*62 .* use fewer columns"):
        CategoryNormalizer({"a": 2**31, "b": 2**32})
    assert CategoryNormalizer({"a": 2**31, "b": 2**31}).cardinalities == {"a": 2**31, "b": 2**31}


def test_repr_says_what_it_is() -> None:
    normalizer = by_location(transform="logit", bounds=(0, 2))
    assert "transform='logit', bounds=(0.0, 2.0), not fitted" in repr(normalizer)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        normalizer.fit(torch.ones(3, 1), at(1, 2, 2))
    assert "{'location': 4}, shrinkage='none', fallback='global'" in repr(normalizer)
    assert "2 cells" in repr(normalizer)


def test_quantiles_without_their_dimension_are_told_of_it() -> None:
    normalizer = CategoryNormalizer().fit(torch.randn(10, 1))
    with pytest.raises(ValueError, match=r"got \(4, 1, 3\); give output_dim=-2 with quantiles$"):
        normalizer.inverse(torch.randn(4, 1, 3))


@pytest.mark.parametrize("shape", [(5, 3, 7), (5, 1, 7), (2, 7), (7,), ()])
def test_other_shapes_get_no_advice_that_would_not_help(shape: tuple[int, ...]) -> None:
    normalizer = CategoryNormalizer().fit(torch.tensor([[1.0, 2.0], [3.0, 5.0]]))
    got = re.escape(f"with D = 2, got {shape}") + "$"
    with pytest.raises(ValueError, match=got):
        normalizer(torch.ones(shape))
    with pytest.raises(ValueError, match=got):
        normalizer.inverse(torch.ones(shape))
    with pytest.raises(ValueError, match=got):
        normalizer.inverse_scale(torch.ones(shape))


def test_advice_is_for_the_call_that_was_made() -> None:
    two, one = (CategoryNormalizer().fit(torch.randn(10, d)) for d in (2, 1))
    for tensor in (torch.ones(4, 2, 3), torch.ones(6, 4, 2, 3)):
        for call in (two.inverse, two.inverse_scale):
            with pytest.raises(ValueError, match=r"; give output_dim=-2 with quantiles$"):
                call(tensor)
        with pytest.raises(ValueError, match=re.escape(f"got {tuple(tensor.shape)}") + "$"):
            two(tensor)  # targets have no quantiles
    with pytest.raises(ValueError, match=r"with D = 1, got \(4,\)$"):
        one.inverse(torch.ones(4), output_dim=-2)
    with pytest.raises(ValueError, match=r"got \(4,\); use std_or_width.unsqueeze\(-1\)$"):
        one.inverse_scale(torch.ones(4))


def test_an_encoder_in_the_place_of_its_cardinalities_is_told_of_them() -> None:
    with pytest.raises(TypeError, match=r"id 0 included, got CategoryEncoder\(.*\); use its cardinalities$"):
        CategoryNormalizer(CategoryEncoder(["site"]).fit({"site": ["a", "b"]}))  # type: ignore[arg-type]
