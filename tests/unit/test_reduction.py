"""The reduction rule: which cells count, what the mean divides by, and what gradient the rest gets."""

import pytest
import torch
from torch.testing import assert_close

from reghead._reduction import counted_cells, reduce, residual, trailing, widen
from reghead.functional import mse_loss

NAN = float("nan")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_widen_gives_float32_or_wider(dtype: torch.dtype) -> None:
    assert widen(torch.ones(1, dtype=dtype)).dtype == torch.float32
    assert widen(torch.ones(1, dtype=torch.float64)).dtype == torch.float64


def test_trailing_appends_dimensions() -> None:
    assert trailing(torch.ones(4), 3).shape == (4, 1, 1)
    assert trailing(torch.ones(4, 2), 2).shape == (4, 2)


def test_everything_counts_without_looking() -> None:
    assert counted_cells(torch.tensor([1.0, NAN]), None, None, "propagate") is None


def test_a_cell_counts_unless_masked_weightless_or_missing() -> None:
    target = torch.tensor([[1.0, 1.0], [1.0, NAN], [1.0, 1.0], [1.0, 1.0]])
    weight = torch.tensor([1.0, 1.0, 0.0, 2.0])
    mask = torch.tensor([[True, False], [True, True], [True, True], [True, True]])
    counted = counted_cells(target, weight, mask, "omit")
    assert counted is not None
    assert counted.tolist() == [[True, False], [True, False], [False, False], [True, True]]


def test_a_row_weight_is_per_row_also_when_there_are_as_many_rows_as_columns() -> None:
    counted = counted_cells(torch.zeros(2, 2), torch.tensor([0.0, 1.0]), None, "propagate")
    assert counted is not None
    assert counted.tolist() == [[False, False], [True, True]]


def test_the_error_of_what_does_not_count_is_zero_before_any_nonlinearity() -> None:
    preds = torch.tensor([1.0, NAN], requires_grad=True)
    error, _ = residual(preds, torch.tensor([3.0, 0.0]), None, torch.tensor([True, False]), "propagate")
    assert error.tolist() == [2.0, 0.0]
    error.square().sum().backward()
    assert preds.grad is not None
    assert preds.grad.tolist() == [-4.0, 0.0]


def test_the_mean_divides_by_the_weights_of_what_counts() -> None:
    loss = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    weight, counted = torch.tensor([1.0, 3.0]), torch.tensor([[True, False], [True, True]])
    assert reduce(loss, weight, counted, "mean").item() == pytest.approx((1 + 3 * 3 + 3 * 4) / (1 + 3 + 3))
    assert reduce(loss, weight, counted, "sum").item() == 22.0
    assert reduce(loss, weight, counted, "none").tolist() == [[1.0, 0.0], [9.0, 12.0]]


def test_trailing_dimensions_of_a_loss_share_the_weight_of_their_cell() -> None:
    loss = torch.tensor([[[1.0, 3.0]], [[5.0, 7.0]]])
    assert reduce(loss, torch.tensor([1.0, 3.0]), None, "mean").item() == (1 + 3 + 15 + 21) / 8


@pytest.mark.parametrize("shape", [(0, 2), (3, 2)])
def test_nothing_counted_gives_zero_with_a_zero_gradient(shape: tuple[int, int]) -> None:
    loss = torch.ones(shape, requires_grad=True)
    mean = reduce(loss, None, torch.zeros(shape, dtype=torch.bool), "mean")
    mean.backward()
    assert mean.item() == 0.0
    assert_close(loss.grad, torch.zeros(shape))


def test_an_empty_batch_gives_zero() -> None:
    assert reduce(torch.ones(0, 2), None, None, "mean").item() == 0.0


def test_a_half_precision_sum_does_not_overflow() -> None:
    assert reduce(torch.ones(100_000, dtype=torch.float16), None, None, "sum").item() == 100_000.0


def test_refuses_an_unknown_reduction() -> None:
    with pytest.raises(ValueError, match="reduction must be one of 'none', 'mean', 'sum', got 'avg'"):
        reduce(torch.ones(1), None, None, "avg")  # type: ignore[arg-type]


def test_refuses_an_unknown_nan_policy() -> None:
    with pytest.raises(ValueError, match="nan_policy must be one of 'propagate', 'omit', got 'drop'"):
        counted_cells(torch.ones(1), None, None, "drop")  # type: ignore[arg-type]


def test_refuses_a_mask_of_numbers() -> None:
    with pytest.raises(TypeError, match=r"mask must be a tensor of torch.bool, .* got torch.float32"):
        counted_cells(torch.ones(2), None, torch.ones(2), "propagate")


@pytest.mark.parametrize("name", ["weight", "mask"])
def test_refuses_what_is_not_a_prefix(name: str) -> None:
    wrong = torch.ones(3, 1, dtype=torch.bool if name == "mask" else torch.float32)
    given = {"weight": None, "mask": None, name: wrong}
    with pytest.raises(
        ValueError, match=rf"{name} must have the leading dimensions of target, .*\(3, 2\), got \(3, 1\)"
    ):
        counted_cells(torch.ones(3, 2), given["weight"], given["mask"], "propagate")


@pytest.mark.parametrize("name", ["preds", "target"])
def test_refuses_integers(name: str) -> None:
    tensors = {"preds": torch.ones(2), "target": torch.ones(2), name: torch.ones(2, dtype=torch.int64)}
    with pytest.raises(TypeError, match=f"{name} must be of a floating-point dtype, got torch.int64"):
        residual(tensors["preds"], tensors["target"], None, None, "propagate")


def test_a_negative_weight_is_refused() -> None:
    with pytest.raises(ValueError, match="weight must be non-negative, got -1"):
        mse_loss(torch.ones(2), torch.zeros(2), weight=torch.tensor([2.0, -1.0]))


@pytest.mark.parametrize("name", ["weight", "mask"])
def test_weights_and_masks_that_are_no_tensors_are_refused(name: str) -> None:
    with pytest.raises(TypeError, match=f"{name} must be a torch.Tensor, got list; use torch.as_tensor"):
        mse_loss(torch.ones(2), torch.zeros(2), **{name: [True, True]})


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_a_missing_target_is_found_in_whatever_tensor(dtype: torch.dtype) -> None:
    whole = torch.tensor([[1.0, torch.nan, -torch.inf], [torch.nan, 0.0, 5.0]], dtype=dtype)
    tensors = (whole, whole.T, whole[:, ::2], whole[0, 1], whole[:0], whole.expand(4, 2, 3))
    for target in (*tensors, *(tensor.clone().requires_grad_() for tensor in tensors)):
        counted = counted_cells(target, None, None, "omit")
        assert counted is not None
        assert counted.dtype == torch.bool
        assert counted.shape == target.shape
        assert counted.flatten().tolist() == [value == value for value in target.flatten().tolist()]


def test_a_target_that_is_a_view_with_its_sign_turned_may_have_missing_values() -> None:
    """The imaginary part of a conjugate: NumPy would refuse to look at it."""
    target = torch.tensor([1 - 2j, complex(0.0, torch.nan)]).conj().imag
    assert target.is_neg()
    assert mse_loss(torch.tensor([3.0, 0.0]), target, nan_policy="omit").item() == 1.0
