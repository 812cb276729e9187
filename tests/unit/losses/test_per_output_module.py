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


def test_the_repr_names_every_argument() -> None:
    loss = PerOutputLoss({"a": "mse"}, ["a", "b"], uncertainty=True, nan_policy="omit")
    arguments = "losses={'a': 'mse'}, outputs=('a', 'b'), default='huber', nan_policy='omit', reduction='mean'"
    assert repr(loss) == f"PerOutputLoss({arguments}, uncertainty=True)"
    assert repr(PerOutputLoss({"a": "mse"}, ["a", "b"], nan_policy="omit")) == f"PerOutputLoss({arguments})"


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
    loss = PerOutputLoss({}, outputs=["a", "b"])
    for width in (1, 3):
        message = f"target must have 2 columns, one for each of outputs, got {width}"
        with pytest.raises(ValueError, match=message):
            loss(torch.zeros(4, width), torch.zeros(4, width))
    for empty in ((), (4, 0)):
        with pytest.raises(ValueError, match=r"target must have shape \(\*, D\), a column for each output, got \("):
            loss(torch.zeros(empty), torch.zeros(empty))


@pytest.mark.parametrize("width", [1, 2, 3])
def test_without_names_the_width_is_that_of_each_target(width: int) -> None:
    loss, rng = PerOutputLoss({0: "mse"}, default="mae"), torch.Generator().manual_seed(0)
    preds, target = torch.randn(2, 4, width, generator=rng)
    error = preds - target
    columns = [error[:, 0].square().mean(), *error[:, 1:].abs().mean(0)]
    assert_close(loss(preds, target), torch.stack(columns).mean())


def test_more_names_than_a_byte_can_count() -> None:
    names = [f"output {i}" for i in range(300)]
    preds, target = torch.zeros(2, 300), torch.ones(2, 300)
    assert PerOutputLoss({"output 299": "mse"}, names, default="mae")(preds, target).item() == pytest.approx(1.0)
