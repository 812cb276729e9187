"""PerOutputLoss as a module: its levels, and the variances it learns."""

import copy
import pickle

import pytest
import torch
from torch.testing import assert_close

from reghead.functional import per_output_loss
from reghead.losses import PerOutputLoss


def test_the_levels_are_the_union_of_those_in_use() -> None:
    assert PerOutputLoss({"a": "mse"}, outputs=["a", "b"]).quantiles is None
    specs = {"a": {"type": "quantile", "quantiles": [0.1, 0.9]}, "b": {"type": "huber_quantile", "quantiles": [0.5]}}
    assert PerOutputLoss(specs, outputs=["a", "b"]).quantiles == (0.1, 0.5, 0.9)


def test_a_default_that_no_column_takes_adds_no_levels() -> None:
    assert PerOutputLoss({"a": "mse"}, outputs=["a"], default="quantile").quantiles is None
    assert PerOutputLoss({"a": "mse"}, outputs=["a", "b"], default="quantile").quantiles == (0.1, 0.5, 0.9)
    assert PerOutputLoss({0: "mse"}, default="quantile").quantiles == (0.1, 0.5, 0.9)


def test_the_learned_variance_is_the_functions_log_variance() -> None:
    loss = PerOutputLoss({"a": "mse"}, outputs=["a", "b"], uncertainty=True)
    assert loss.log_variance is not None
    assert loss.log_variance.tolist() == [0.0, 0.0]
    with torch.no_grad():
        loss.log_variance.copy_(torch.tensor([1.0, -2.0]))
    preds, target = torch.zeros(3, 2), torch.ones(3, 2)
    by_function = per_output_loss(preds, target, {"a": "mse"}, ["a", "b"], log_variance=torch.tensor([1.0, -2.0]))
    assert_close(loss(preds, target), by_function.detach(), check_stride=False)
    loss.reset_parameters()
    assert loss.log_variance.tolist() == [0.0, 0.0]


def test_learning_ends_at_the_logarithm_of_each_columns_loss() -> None:
    loss = PerOutputLoss({}, outputs=["small", "large"], default="mse", uncertainty=True)
    preds, target = torch.zeros(4, 2), torch.tensor([[0.1, 30.0]] * 4)
    optimizer = torch.optim.LBFGS(loss.parameters(), max_iter=200, line_search_fn="strong_wolfe")

    def step() -> torch.Tensor:
        optimizer.zero_grad()
        value: torch.Tensor = loss(preds, target)
        value.backward()
        return value

    optimizer.step(step)
    assert loss.log_variance is not None
    assert_close(loss.log_variance.detach(), torch.tensor([0.01, 900.0]).log(), rtol=1e-3, atol=1e-3)


def test_the_learned_variance_is_stored_and_cast_as_a_parameter() -> None:
    loss = PerOutputLoss({}, outputs=["a"], uncertainty=True, dtype=torch.float64)
    assert loss.log_variance is not None
    assert loss.log_variance.dtype == torch.float64
    with torch.no_grad():
        loss.log_variance.fill_(0.5)
    other = PerOutputLoss({}, outputs=["a"], uncertainty=True)
    other.load_state_dict(loss.state_dict(), strict=True)
    for twin in (other, copy.deepcopy(loss), pickle.loads(pickle.dumps(loss))):
        assert twin.log_variance is not None
        assert twin.log_variance.item() == 0.5
    assert "uncertainty=True" in repr(loss)


def test_uncertainty_needs_the_outputs() -> None:
    with pytest.raises(ValueError, match=r"uncertainty=True needs outputs=\[...\]"):
        PerOutputLoss({0: "mse"}, uncertainty=True)


def test_unknown_names_and_types_are_refused_at_construction() -> None:
    with pytest.raises(ValueError, match=r"the output 'c', which is not among the outputs \('a', 'b'\)"):
        PerOutputLoss({"c": "mse"}, outputs=["a", "b"])
    with pytest.raises(ValueError, match=r"losses\['a'\] must be of a type among"):
        PerOutputLoss({"a": "rmse"}, outputs=["a", "b"])
    with pytest.raises(ValueError, match="outputs must not repeat a column"):
        PerOutputLoss({}, outputs=["a", "a"])


def test_a_target_of_another_width_is_refused() -> None:
    with pytest.raises(ValueError, match="target must have 2 columns, one for each of outputs, got 3"):
        PerOutputLoss({}, outputs=["a", "b"])(torch.zeros(4, 3), torch.zeros(4, 3))
