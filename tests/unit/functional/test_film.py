"""Feature-wise linear modulation as a function."""

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from reghead.functional import film


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_it_is_gamma_times_x_plus_beta() -> None:
    x = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    gamma, beta = torch.tensor([[2.0, 1.0], [0.0, -1.0]]), torch.tensor([[0.0, 10.0], [5.0, 0.5]])
    assert film(x, gamma, beta).tolist() == [[2, 12], [5, -3.5]]


def test_one_and_zero_are_the_identity_bit_for_bit() -> None:
    x = draw(0, 4, 3).float()
    assert torch.equal(film(x, torch.ones(4, 3), torch.zeros(4, 3)), x)


@pytest.mark.parametrize("prefix", [(), (4,), (4, 2)])
def test_factors_with_leading_dimensions_of_x_are_those_of_every_row_below(prefix: tuple[int, ...]) -> None:
    x, gamma, beta = draw(0, 4, 2, 3), draw(1, *prefix, 3), draw(2, *prefix, 3)
    got = film(x, gamma, beta)
    for b in range(4):
        for s in range(2):
            index = (b, s)[: len(prefix)]
            assert_close(got[b, s], gamma[index] * x[b, s] + beta[index])


def test_factors_go_with_the_first_dimension_also_where_sizes_coincide() -> None:
    x, gamma = torch.ones(3, 3, 1), torch.tensor([[1.0], [2.0], [3.0]])
    assert film(x, gamma, torch.zeros(3, 1))[..., 0].tolist() == [[1, 1, 1], [2, 2, 2], [3, 3, 3]]


def test_narrow_factors_keep_the_dtype_of_the_features() -> None:
    x = draw(0, 4, 3).float()
    got = film(x, torch.full((4, 3), 2.0, dtype=torch.bfloat16), torch.ones(4, 3, dtype=torch.bfloat16))
    assert got.dtype == torch.float32
    assert_close(got, 2 * x + 1)


def test_gradients() -> None:
    inputs = [draw(i, *shape).requires_grad_() for i, shape in enumerate([(2, 3, 2), (2, 2), (2, 2)])]
    assert torch.autograd.gradcheck(film, inputs)


@pytest.mark.parametrize("batch", [0, 1])
def test_small_batches(batch: int) -> None:
    assert film(torch.ones(batch, 2), torch.ones(batch, 2), torch.ones(batch, 2)).tolist() == [[2, 2]] * batch


@pytest.mark.parametrize(
    ("gamma", "beta", "message"),
    [
        ((4, 2), (4, 3), r"gamma must have shape \(\*, F\) with F = 3, got \(4, 2\)"),
        ((4, 3), (4, 1), r"beta must have shape \(\*, F\) with F = 3, got \(4, 1\)"),
        ((5, 3), (4, 3), r"gamma.* must have the leading dimensions of x, .*got \(5, 3\)"),
        ((4, 3), (1, 3), r"beta.* must have the leading dimensions of x, .*got \(1, 3\)"),
        ((2, 4, 3), (4, 3), r"gamma.* must have the leading dimensions of x"),
    ],
)
def test_shapes_that_do_not_go_together(gamma: tuple[int, ...], beta: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        film(torch.ones(4, 3), torch.ones(gamma), torch.ones(beta))
