"""How strongly the effects of categories are pulled to the population."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.testing import assert_close

from reghead.heads import RegressionHead

COUNTS = (0, 1, 4, 50)  # training rows of each id
PART = {"cardinalities": {"site": len(COUNTS)}, "wide": ["site"]}


def training_rows(targets: int = 2) -> tuple[Tensor, dict[str, Tensor]]:
    ids = torch.repeat_interleave(torch.arange(len(COUNTS)), torch.tensor(COUNTS))
    noise = torch.randn(len(ids), targets, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return noise + torch.tensor([0.0, 3.0, -1.0, 2.0], dtype=torch.float64)[ids, None], {"site": ids}


def intercepts_alone(strength: float, targets: int = 2) -> RegressionHead:
    head = RegressionHead(1, targets, **PART, partial_pooling=strength).double()
    for parameter in (head.weight, head.bias):
        nn.init.zeros_(parameter)
        parameter.requires_grad_(False)
    return head


def closed_form(strength: float, y: Tensor, ids: Tensor) -> Tensor:
    """The posterior means of normal intercepts around 0: sum of the rows over (their number + lambda)."""
    return torch.stack([y[ids == c].sum(0) / ((ids == c).sum() + strength) for c in range(1, len(COUNTS))])


@pytest.mark.parametrize("strength", [0.5, 3.0, 100.0])
@pytest.mark.parametrize("targets", [1, 2])
def test_beside_a_squared_error_intercepts_are_shrunk_by_the_share_of_their_rows(strength: float, targets: int) -> None:
    y, categories = training_rows(targets)
    head = intercepts_alone(strength, targets)
    head.observe(categories)
    optimizer = torch.optim.LBFGS(head.wide.parameters(), max_iter=100, tolerance_grad=1e-12, tolerance_change=1e-15)

    def objective() -> Tensor:
        optimizer.zero_grad()
        preds, aux = head(torch.zeros(len(y), 1, dtype=torch.float64), categories, return_aux=True)
        total = F.mse_loss(preds, y) + aux.losses["partial_pooling"]
        total.backward()
        return total

    optimizer.step(objective)
    assert_close(head.wide.bias_site.detach(), closed_form(strength, y, categories["site"]), atol=1e-7, rtol=0)


def test_the_mean_over_equal_batches_is_the_objective_of_all_rows() -> None:
    y, categories = training_rows()
    y, ids = y[:54], categories["site"][:54]
    head = intercepts_alone(3.0)
    nn.init.normal_(head.wide.bias_site, generator=torch.Generator().manual_seed(1))
    head.observe({"site": ids})

    def objective(rows: Tensor) -> Tensor:
        preds, aux = head(torch.zeros(len(rows), 1, dtype=torch.float64), {"site": ids[rows]}, return_aux=True)
        return F.mse_loss(preds, y[rows]) + aux.losses["partial_pooling"]

    batches = torch.stack([objective(rows) for rows in torch.randperm(54).split(9)])
    assert_close(batches.mean(), objective(torch.arange(54)))


@pytest.mark.parametrize("ensemble", [1, 3])
def test_it_is_strength_times_the_sum_of_squares_over_rows_and_targets(ensemble: int) -> None:
    head = RegressionHead(
        1, 2, (4,), cardinalities={"a": 3, "b": 2}, scaler=["a"], wide=["b"], partial_pooling=4.0, ensemble=ensemble
    )
    ids = {"a": torch.tensor([1, 2, 0, 1, 1]), "b": torch.tensor([1, 1, 1, 0, 0])}
    head.observe(ids)
    with torch.no_grad():
        head.scaler.bias_a.fill_(2.0)  # 2 categories x 2 targets x 4
        head.wide.bias_b.fill_(3.0)  # 1 category x 2 targets x 9
    aux = head(torch.zeros(5, 1), ids, return_aux=True)[1]
    assert {name: p.item() for name, p in aux.penalties.items()} == {"scaler": 16.0, "wide": 18.0}
    assert set(aux.losses) == {"partial_pooling"}
    assert aux.losses["partial_pooling"].item() == pytest.approx(4.0 * (16 + 18) / (5 * 2))


def test_without_a_strength_nothing_is_added_and_no_rows_are_needed() -> None:
    head = RegressionHead(1, 1, **PART)
    aux = head(torch.zeros(1, 1), {"site": torch.ones(1, dtype=torch.int64)}, return_aux=True)[1]
    assert aux.losses == {}
    assert set(aux.penalties) == {"wide"}


ONE: Any = (torch.zeros(1, 1), {"site": torch.ones(1, dtype=torch.int64)})


@pytest.mark.parametrize("told", [None, torch.zeros(0, dtype=torch.int64)])
def test_the_number_of_training_rows_must_be_told(told: Tensor | None) -> None:
    head = RegressionHead(1, 1, **PART, partial_pooling=1.0)
    if told is not None:
        head.observe({"site": told})
    head(*ONE)  # predicting needs none
    with pytest.raises(ValueError, match=r"partial_pooling needs the number of training rows.*call head\.observe"):
        head(*ONE, return_aux=True)


def test_where_values_cannot_be_looked_at_untold_rows_give_nan_and_told_ones_the_loss() -> None:
    torch._dynamo.reset()
    head = RegressionHead(1, 1, **PART, partial_pooling=1.0)
    nn.init.ones_(head.wide.bias_site)
    compiled = torch.compile(head, fullgraph=True, backend="eager")
    assert compiled(*ONE, return_aux=True)[1].losses["partial_pooling"].isnan()
    head.observe({"site": torch.ones(6, dtype=torch.int64)})
    assert compiled(*ONE, return_aux=True)[1].losses["partial_pooling"].item() == pytest.approx(3 / 6)


def test_the_sum_is_wide_also_in_half_precision() -> None:
    """300 squares of 1 stop growing at 256 in bfloat16."""
    head = RegressionHead(1, 1, cardinalities={"site": 302}, wide=["site"], partial_pooling=1.0).bfloat16()
    nn.init.ones_(head.wide.bias_site)
    head.observe({"site": torch.ones(1, dtype=torch.int64)})
    aux = head(torch.zeros(1, 1, dtype=torch.bfloat16), ONE[1], return_aux=True)[1]
    assert aux.losses["partial_pooling"].item() == 301.0


def test_float64_loses_no_digits() -> None:
    head = RegressionHead(1, 1, **PART, partial_pooling=0.1).double()
    nn.init.ones_(head.wide.bias_site)
    head.observe({"site": torch.ones(7, dtype=torch.int64)})
    loss = head(ONE[0].double(), ONE[1], return_aux=True)[1].losses["partial_pooling"]
    assert loss.dtype == torch.float64
    assert loss.item() == pytest.approx(0.3 / 7, rel=1e-15)
