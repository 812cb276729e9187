"""Point metrics against scikit-learn, and the rule of weights, masks and missing targets."""

import re
from collections.abc import Callable

import numpy as np
import pytest
import torch
from sklearn.metrics import mean_absolute_error, r2_score, root_mean_squared_error
from torch import Tensor

from reghead.metrics import bias, mae, r2, rmse

METRICS = [rmse, mae, bias, r2]


def draw(seed: int = 0, rows: int = 50, outputs: int = 3) -> tuple[Tensor, Tensor, Tensor]:
    rng = torch.Generator().manual_seed(seed)
    target = torch.randn(rows, outputs, generator=rng, dtype=torch.float64)
    preds = target + 0.5 * torch.randn(rows, outputs, generator=rng, dtype=torch.float64)
    return preds, target, torch.rand(rows, generator=rng, dtype=torch.float64)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize(
    ("metric", "reference"), [(rmse, root_mean_squared_error), (mae, mean_absolute_error), (r2, r2_score)]
)
def test_each_output_agrees_with_scikit_learn(
    metric: Callable[..., Tensor], reference: Callable[..., np.ndarray], weighted: bool
) -> None:
    preds, target, weight = draw()
    ours = metric(preds, target, weight=weight if weighted else None, per_output=True)
    theirs = reference(
        target.numpy(),
        preds.numpy(),
        sample_weight=weight.numpy() if weighted else None,
        multioutput="raw_values",
    )
    np.testing.assert_allclose(ours.numpy(), theirs, rtol=1e-12)


@pytest.mark.parametrize("weighted", [False, True])
def test_overall_errors_pool_all_cells_and_r2_averages_outputs(weighted: bool) -> None:
    preds, target, weight = draw()
    given = weight if weighted else None
    flat = [t.reshape(-1).numpy() for t in (preds, target, weight.unsqueeze(-1).expand(-1, 3))]
    sample_weight = flat[2] if weighted else None
    expected = root_mean_squared_error(flat[1], flat[0], sample_weight=sample_weight)
    assert rmse(preds, target, weight=given).item() == pytest.approx(expected, rel=1e-12)
    expected = mean_absolute_error(flat[1], flat[0], sample_weight=sample_weight)
    assert mae(preds, target, weight=given).item() == pytest.approx(expected, rel=1e-12)
    expected = np.average(flat[0] - flat[1], weights=sample_weight)
    assert bias(preds, target, weight=given).item() == pytest.approx(expected, rel=1e-12)
    expected = r2_score(target.numpy(), preds.numpy(), sample_weight=weight.numpy() if weighted else None)
    assert r2(preds, target, weight=given).item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("metric", METRICS)
def test_a_missing_target_is_a_missing_cell_of_its_output_alone(metric: Callable[..., Tensor]) -> None:
    preds, target, _ = draw()
    holes = target.clone()
    holes[:7, 0] = torch.nan
    result = metric(preds, holes, nan_policy="omit", per_output=True)
    expected = [
        metric(preds[7:, :1], target[7:, :1]),
        *(metric(preds[:, d : d + 1], target[:, d : d + 1]) for d in (1, 2)),
    ]
    torch.testing.assert_close(result, torch.stack(expected))
    assert metric(preds, holes).isnan()
    assert metric(preds, holes, per_output=True).isnan().tolist() == [True, False, False]


@pytest.mark.parametrize("metric", METRICS)
def test_a_nan_prediction_is_reported_never_left_out(metric: Callable[..., Tensor]) -> None:
    preds, target, _ = draw()
    preds[3, 1] = torch.nan
    assert metric(preds, target, nan_policy="omit").isnan()
    mask = torch.ones_like(target, dtype=torch.bool)
    mask[3, 1] = False
    assert metric(preds, target, mask=mask).isfinite()


@pytest.mark.parametrize("metric", METRICS)
def test_nothing_counted_is_nan_and_not_a_perfect_score(metric: Callable[..., Tensor]) -> None:
    preds, target, weight = draw()
    assert metric(preds, target, weight=torch.zeros_like(weight)).isnan()
    assert metric(preds, target, mask=torch.zeros(50, dtype=torch.bool), per_output=True).isnan().all()
    assert metric(preds[:0], target[:0]).isnan()


@pytest.mark.parametrize("metric", [rmse, mae, bias])
def test_perfect_predictions_are_plain_zero(metric: Callable[..., Tensor]) -> None:
    assert str(metric(torch.ones(3, 1), torch.ones(3, 1)).item()) == "0.0"


@pytest.mark.parametrize("metric", METRICS)
def test_shapes_never_broadcast(metric: Callable[..., Tensor]) -> None:
    """A target of shape (B, 1) against predictions of shape (B,) would silently build B x B errors."""
    with pytest.raises(ValueError, match=re.escape("got (4,) and (4, 1); use preds.unsqueeze(-1) (nothing is bro")):
        metric(torch.zeros(4), torch.zeros(4, 1))
    with pytest.raises(ValueError, match="weight must have the leading dimensions of target"):
        metric(torch.zeros(4, 2), torch.zeros(4, 2), weight=torch.ones(2))


@pytest.mark.parametrize("metric", METRICS)
def test_one_row_of_outputs_cannot_be_reported_by_output(metric: Callable[..., Tensor]) -> None:
    with pytest.raises(
        ValueError, match=re.escape("one value for each output needs shape (*, D), got (4,); use unsque")
    ):
        metric(torch.arange(4.0), torch.zeros(4), per_output=True)


@pytest.mark.parametrize("metric", [rmse, mae, bias])
def test_one_output_may_come_without_its_dimension(metric: Callable[..., Tensor]) -> None:
    preds, target, weight = (t.squeeze(-1) for t in draw(outputs=1))
    torch.testing.assert_close(
        metric(preds, target, weight=weight), metric(preds[:, None], target[:, None], weight=weight)
    )


@pytest.mark.parametrize("constant", [0.1, 0.0, 1e6, -1e-30])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_constant_target_has_no_r2(constant: float, dtype: torch.dtype) -> None:
    """Rounding leaves equal numbers a variance that is not 0; the share of it explained would be noise."""
    target = torch.full((1000, 1), constant, dtype=dtype)
    assert r2(target + 1, target).isnan()
    assert r2(target, target).isnan()


def test_r2_keeps_its_digits_on_a_large_mean() -> None:
    """The mean of 1e6 in float32 is off by more than the spread of the targets is wide."""
    rng = np.random.default_rng(0)
    target = (1e6 + rng.normal(size=4000)).astype(np.float32)
    preds = (target + rng.normal(size=4000)).astype(np.float32)
    ours = r2(torch.from_numpy(preds)[:, None], torch.from_numpy(target)[:, None]).item()
    assert ours == pytest.approx(r2_score(target.astype(np.float64), preds.astype(np.float64)), abs=1e-4)


def test_one_target_a_rounding_apart_has_an_r2() -> None:
    target = torch.full((1000, 1), 1.0)
    target[0] = 1.0 + torch.finfo(torch.float32).eps
    assert r2(target, target).item() == 1.0


def test_half_precision_is_averaged_in_single() -> None:
    """A sum of 1e5 ones overflows in float16."""
    preds = torch.ones(100_000, 1, dtype=torch.float16)
    for metric in (rmse, mae, bias):
        assert metric(preds, torch.zeros_like(preds)).item() == 1.0
        assert metric(preds, torch.zeros_like(preds)).dtype == torch.float32


@pytest.mark.parametrize("metric", METRICS)
def test_a_metric_compiles_to_one_graph(metric: Callable[..., Tensor]) -> None:
    preds, target, weight = draw()
    compiled = torch.compile(metric, fullgraph=True, backend="eager")
    torch.testing.assert_close(
        compiled(preds, target, weight=weight, nan_policy="omit", per_output=True),
        metric(preds, target, weight=weight, nan_policy="omit", per_output=True),
    )
