"""A loss for each column: equal to a plain loop over the columns, at a cost that does not grow with them."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from reghead.functional import (
    asymmetric_loss,
    expectile_loss,
    huber_loss,
    huber_pinball_loss,
    log_cosh_loss,
    mae_loss,
    mse_loss,
    per_output_loss,
    pinball_loss,
)

NAMES = ["a", "b", "c", "d", "e", "f", "g"]
SPEC: dict[Any, Any] = {
    "a": "mse",
    "b": {"type": "quantile", "quantiles": [0.1, 0.5, 0.9]},
    "c": {"type": "asymmetric", "over_penalty": 3.0, "base": "mae"},
    "d": "mse",
    "e": {"type": "quantile", "quantiles": [0.05, 0.9]},
    "f": {"type": "huber_quantile", "quantiles": [0.5], "delta": 0.5},
}  # and "g" by default
LEVELS = (0.05, 0.1, 0.5, 0.9)


def data(columns: int = 7, quantiles: int = 4) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(0)
    preds = torch.randn(6, columns, quantiles, generator=rng, dtype=torch.float64)
    return preds.requires_grad_(), torch.randn(6, columns, generator=rng, dtype=torch.float64)


def by_loop(preds: Tensor, target: Tensor, **kwargs: Any) -> list[Tensor]:
    """The mean of each column, by slices."""
    point = [preds[:, d, 2] for d in range(7)]  # the slot of 0.5
    y = target.unbind(1)
    weight, mask = kwargs.get("weight"), kwargs.get("mask")

    def of(d: int) -> dict[str, Any]:
        return {
            "weight": weight if weight is None or weight.ndim == 1 else weight[:, d],
            "mask": mask if mask is None or mask.ndim == 1 else mask[:, d],
            "nan_policy": kwargs.get("nan_policy", "propagate"),
        }

    return [
        mse_loss(point[0], y[0], **of(0)),
        pinball_loss(preds[:, 1, [1, 2, 3]], y[1], [0.1, 0.5, 0.9], **of(1)),
        asymmetric_loss(point[2], y[2], over_penalty=3.0, base="mae", **of(2)),
        mse_loss(point[3], y[3], **of(3)),
        pinball_loss(preds[:, 4, [0, 3]], y[4], [0.05, 0.9], **of(4)),
        huber_pinball_loss(preds[:, 5, [2]], y[5], [0.5], 0.5, **of(5)),
        huber_loss(point[6], y[6], **of(6)),
    ]


WAYS: dict[str, dict[str, Any]] = {
    "plain": {},
    "weight per row": {"weight": torch.tensor([1.0, 2.0, 0.0, 1.0, 0.5, 3.0])},
    "weight per cell": {"weight": torch.rand(6, 7, generator=torch.Generator().manual_seed(1))},
    "mask": {"mask": torch.rand(6, 7, generator=torch.Generator().manual_seed(2)) > 0.4},
    "mask per row": {"mask": torch.tensor([True, False, True, True, True, False])},
    "omit": {"nan_policy": "omit"},
}


@pytest.mark.parametrize("way", WAYS)
def test_equals_a_loop_over_the_columns(way: str) -> None:
    preds, target = data()
    if way == "omit":
        target[torch.rand(6, 7, generator=torch.Generator().manual_seed(3)) > 0.6] = float("nan")
    loss = per_output_loss(preds, target, SPEC, NAMES, **WAYS[way])
    loop = torch.stack(by_loop(preds, target, **WAYS[way])).mean()
    assert_close(loss, loop)
    assert_close(torch.autograd.grad(loss, preds), torch.autograd.grad(loop, preds))


@pytest.mark.parametrize(
    ("kind", "function"),
    [
        ("mse", mse_loss),
        ("mae", mae_loss),
        ("huber", huber_loss),
        ("log_cosh", log_cosh_loss),
        ({"type": "expectile", "expectile": 0.3}, lambda p, t: expectile_loss(p, t, 0.3)),
        ({"type": "asymmetric", "under_penalty": 4.0}, lambda p, t: asymmetric_loss(p, t, under_penalty=4.0)),
    ],
)
def test_one_loss_for_all_columns_is_that_loss(kind: Any, function: Any) -> None:
    preds, target = data(3, 1)
    preds = preds[..., 0]
    assert_close(per_output_loss(preds, target, {}, default=kind), function(preds, target))
    assert_close(per_output_loss(preds, target, {0: kind, "1": kind, 2: kind}, default="mae"), function(preds, target))


def test_a_mean_of_column_means_is_not_the_mean_over_cells() -> None:
    """A column with one observed cell weighs as much as a full one; the plain loss weighs cells."""
    preds = torch.zeros(4, 2)
    target = torch.tensor([[1.0, 3.0], [1.0, float("nan")], [1.0, float("nan")], [1.0, float("nan")]])
    per_column = per_output_loss(preds, target, {}, default="mse", nan_policy="omit")
    assert per_column.item() == (1.0 + 9.0) / 2
    assert mse_loss(preds, target, nan_policy="omit").item() == pytest.approx((4 * 1.0 + 9.0) / 5)


def test_a_column_with_nothing_valid_is_not_counted() -> None:
    preds = torch.zeros(3, 2, requires_grad=True)
    target = torch.tensor([[2.0, float("nan")]] * 3)
    loss = per_output_loss(preds, target, {0: {"type": "mse", "weight": 0.25}}, nan_policy="omit")
    loss.backward()
    assert loss.item() == 4.0
    assert preds.grad is not None
    assert not preds.grad[:, 1].any()


@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize("way", ["omit", "mask", "weight"])
@pytest.mark.parametrize("kind", ["mse", "log_cosh", "expectile", "quantile"])
def test_a_column_with_nothing_that_counts_is_as_if_it_were_not_there(kind: str, way: str, learned: bool) -> None:
    preds, target = data(3, 3)
    s = torch.tensor([0.5, -3.0, 1.0], dtype=torch.float64) if learned else None
    preds = preds if kind == "quantile" else preds[..., 0]
    specs = [{"type": kind, "weight": weight} for weight in (0.25, 4.0, 2.0)]
    for spec in specs:
        spec |= {"expectile": 0.3} if kind == "expectile" else {}
    there = torch.tensor([True, False, True])
    target[:, 1] = torch.nan if way == "omit" else 1e3
    options = {
        "omit": {"nan_policy": "omit"},
        "mask": {"mask": there.expand(6, 3)},
        "weight": {"weight": there.double().expand(6, 3)},
    }[way]
    losses: dict[Any, Any] = dict(enumerate(specs))
    found = per_output_loss(preds, target, losses, log_variance=s, **options)
    rest = {0: specs[0], 1: specs[2]}
    alone = per_output_loss(preds[:, there], target[:, there], rest, log_variance=s if s is None else s[there])
    assert_close(found, alone)
    assert_close(torch.autograd.grad(found, preds), torch.autograd.grad(alone, preds))


def test_nothing_valid_at_all_gives_zero_with_a_zero_gradient() -> None:
    for rows in (0, 3):
        preds = torch.zeros(rows, 2, requires_grad=True)
        s = torch.zeros(2, requires_grad=True)
        target = torch.full((rows, 2), float("nan"))
        loss = per_output_loss(preds, target, {}, log_variance=s, nan_policy="omit")
        loss.backward()
        assert loss.item() == 0.0
        assert preds.grad is not None
        assert s.grad is not None
        assert not preds.grad.any()
        assert not s.grad.any()


def test_the_weight_of_a_spec_multiplies_the_term_of_its_column() -> None:
    preds, target = torch.zeros(2, 3), torch.tensor([[1.0, 2.0, 3.0]] * 2)
    spec = {0: {"type": "mse", "weight": 2.0}, 1: {"type": "mae", "weight": 0.5}, 2: {"type": "mse", "weight": 0.0}}
    assert per_output_loss(preds, target, spec).item() == pytest.approx((2 * 1.0 + 0.5 * 2.0) / 2.5)
    cells = per_output_loss(preds, target, spec, reduction="none")
    assert cells.tolist() == [[2.0, 1.0, 0.0]] * 2
    assert per_output_loss(preds, target, spec, reduction="sum").item() == 6.0


@pytest.mark.parametrize("way", WAYS)
def test_the_cells_of_reduction_none_stand_in_the_columns_order(way: str) -> None:
    preds, target = data()
    cells = per_output_loss(preds, target, SPEC, NAMES, reduction="none", **WAYS[way])
    weight = WAYS[way].get("weight", torch.ones(6))
    weight = (weight[:, None] if weight.ndim == 1 else weight).expand(6, 7)
    mask = WAYS[way].get("mask", torch.ones(6, dtype=torch.bool))
    share = weight * (mask[:, None] if mask.ndim == 1 else mask)
    assert_close(cells.sum(0) / share.sum(0), torch.stack(by_loop(preds, target, **WAYS[way])))
    assert_close(per_output_loss(preds, target, SPEC, NAMES, reduction="sum", **WAYS[way]), cells.sum())


def test_the_slots_that_a_column_does_not_use_get_no_gradient() -> None:
    preds, target = data()
    per_output_loss(preds, target, SPEC, NAMES).backward()
    used = torch.zeros(7, 4, dtype=torch.bool)
    for column, slots in {0: [2], 1: [1, 2, 3], 2: [2], 3: [2], 4: [0, 3], 5: [2], 6: [2]}.items():
        used[column, slots] = True
    assert preds.grad is not None
    assert torch.equal((preds.grad != 0).all(0), used)
    assert torch.equal((preds.grad != 0).any(0), used)


def test_a_point_takes_the_level_nearest_a_half() -> None:
    preds = torch.tensor([[[10.0, 20.0, 30.0], [1.0, 2.0, 3.0]]])
    spec: dict[Any, Any] = {0: "mse", 1: {"type": "quantile", "quantiles": [0.1, 0.4, 0.9]}}
    cells = per_output_loss(preds, torch.tensor([[0.0, 2.0]]), spec, reduction="none")
    assert cells[0, 0].item() == 400.0


def test_a_nan_prediction_in_an_unused_slot_is_harmless_and_in_a_used_one_propagates() -> None:
    preds, target = data()
    with torch.no_grad():
        preds[0, 0, 0] = float("nan")
    assert per_output_loss(preds, target, SPEC, NAMES).isfinite()
    with torch.no_grad():
        preds[0, 0, 2] = float("nan")
    assert per_output_loss(preds, target, SPEC, NAMES, nan_policy="omit").isnan()


def count_nodes(loss: Tensor) -> int:
    seen, todo = set(), [loss.grad_fn]
    while todo:
        node = todo.pop()
        if node is not None and node not in seen:
            seen.add(node)
            todo += [parent for parent, _ in node.next_functions]
    return len(seen)


def test_columns_with_one_spec_are_one_call() -> None:
    def nodes(columns: int) -> int:
        preds = torch.zeros(4, columns, requires_grad=True)
        spec: dict[Any, Any] = {d: ("mse", "log_cosh")[d % 2] for d in range(columns)}
        return count_nodes(per_output_loss(preds, torch.zeros(4, columns), spec))

    assert nodes(2) == nodes(4) - 1  # only two columns need no gathering
    assert nodes(4) == nodes(100)


def test_uncertainty_weighting_by_hand() -> None:
    preds, target = torch.zeros(2, 2), torch.tensor([[1.0, 3.0]] * 2)
    s = torch.tensor([0.0, 2.0])
    loss = per_output_loss(preds, target, {}, default="mse", log_variance=s)
    by_hand = 0.5 * ((1.0 + 0.0) / 2 + (9 * torch.exp(torch.tensor(-2.0)) + 2.0) / 2)
    assert_close(loss, by_hand)
    cells = per_output_loss(preds, target, {}, default="mse", log_variance=s, reduction="none")
    assert_close(cells.mean(), loss)


def test_uncertainty_weighting_may_be_negative() -> None:
    s = torch.full((1,), -4.0)
    assert per_output_loss(torch.zeros(3, 1), torch.full((3, 1), 1e-3), {}, log_variance=s) < 0


@pytest.mark.parametrize("factor", [1e-3, 40.0])
def test_uncertainty_weighting_does_not_see_the_units_of_a_target(factor: float) -> None:
    """At the best s for the data, the gradient in the network's own terms is the same in metres and millimetres."""

    def gradient(unit: Tensor) -> Tensor:
        preds, target = data(2, 1)
        outputs = preds[..., 0] * unit
        # The minimum over s of exp(-s) m + s is at s = log m.
        s = (outputs - target * unit).square().mean(0).log().detach()
        loss = per_output_loss(outputs, target * unit, {}, default="mse", log_variance=s)
        return torch.autograd.grad(loss, preds)[0]

    one = torch.ones(2, dtype=torch.float64)
    assert_close(gradient(torch.tensor([1.0, factor], dtype=torch.float64)), gradient(one))


def test_a_missing_column_gives_its_uncertainty_no_gradient() -> None:
    preds, target = torch.zeros(3, 2), torch.tensor([[2.0, float("nan")]] * 3)
    s = torch.zeros(2, requires_grad=True)
    loss = per_output_loss(preds, target, {}, default="mse", log_variance=s, nan_policy="omit")
    loss.backward()
    assert s.grad is not None
    assert s.grad.tolist() == [(1.0 - 4.0) / 2, 0.0]


def test_a_column_weight_of_rows_is_per_row_also_with_as_many_rows_as_columns() -> None:
    preds, target = torch.zeros(2, 2), torch.tensor([[1.0, 2.0], [3.0, 4.0]])
    loss = per_output_loss(preds, target, {}, default="mae", weight=torch.tensor([1.0, 3.0]))
    assert loss.item() == ((1 + 9) / 4 + (2 + 12) / 4) / 2


def test_leading_dimensions_of_any_number() -> None:
    preds, target = data(2, 1)
    preds = preds[..., 0]
    loss = per_output_loss(preds, target, {0: "mse"})
    assert_close(per_output_loss(preds.reshape(2, 3, 2), target.reshape(2, 3, 2), {0: "mse"}), loss)
    for losses in ({0: "mse"}, {0: "mae", 1: {"type": "asymmetric", "over_penalty": 3.0}}, {0: "log_cosh"}):
        assert_close(per_output_loss(preds[0], target[0], losses), per_output_loss(preds[:1], target[:1], losses))


@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
@pytest.mark.parametrize("way", WAYS)
def test_a_sequence_of_rows_is_as_many_rows(way: str, reduction: Any) -> None:
    preds, target = data()
    if way == "omit":
        target[torch.rand(6, 7, generator=torch.Generator().manual_seed(3)) > 0.6] = float("nan")
    options = WAYS[way]
    folded = {k: v.reshape(3, 2, *v.shape[1:]) if isinstance(v, Tensor) else v for k, v in options.items()}
    points = {name: spec for name, spec in SPEC.items() if spec == "mse" or "quantile" not in spec["type"]}
    for p, losses in ((preds, SPEC), (preds[..., 1], points), (preds[..., 1], points | {"b": "log_cosh"})):
        flat = per_output_loss(p, target, losses, NAMES, **options, reduction=reduction)
        by_sequence = per_output_loss(
            p.reshape(3, 2, *p.shape[1:]), target.reshape(3, 2, 7), losses, NAMES, **folded, reduction=reduction
        )
        assert_close(by_sequence, flat.reshape(3, 2, 7) if reduction == "none" else flat)


@pytest.mark.parametrize("levels", [[0.1], [0.1, 0.5], [0.5], [0.1, 0.9], [0.9], [0.5, 0.9]])
def test_a_single_column_takes_its_own_levels_out_of_all(levels: list[float]) -> None:
    """The default is of levels, too, and may be that of a column to come."""
    preds, target = data(1, 3)
    slots = [LEVELS[1:].index(level) for level in levels]
    spec: dict[Any, Any] = {0: {"type": "quantile", "quantiles": levels}}
    expected = pinball_loss(preds[..., slots], target, levels)
    assert_close(per_output_loss(preds, target, spec, default="quantile"), expected)


def test_gradcheck() -> None:
    preds, target = data()
    s = torch.randn(7, generator=torch.Generator().manual_seed(4), dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(
        lambda p, s: per_output_loss(p, target, SPEC, NAMES, log_variance=s, mask=WAYS["mask"]["mask"]), (preds, s)
    )


def test_compiles_in_one_graph() -> None:
    preds, target = data()
    torch._dynamo.reset()
    compiled = torch.compile(lambda p, t: per_output_loss(p, t, SPEC, NAMES), fullgraph=True, backend="aot_eager")
    assert_close(compiled(preds, target), per_output_loss(preds, target, SPEC, NAMES))


@pytest.mark.parametrize(
    ("error", "losses", "kwargs", "message"),
    [
        (ValueError, {"pH": "mse"}, {}, r"losses names the output 'pH', but the outputs have no names; pass outputs="),
        (
            ValueError,
            {"yeild": "mse"},
            {"outputs": ["pH", "yield"]},
            r"the output 'yeild', which is not among the outputs \('pH', 'yield'\); did you mean 'yield'\?",
        ),
        (ValueError, {2: "mse"}, {"outputs": ["pH", "yield"]}, r"the output 2, which is not among the outputs"),
        (ValueError, {2: "mse"}, {}, r"losses names the output 2, but target has 2 columns, counted from 0"),
        (ValueError, {7: "mse"}, {}, r"losses names the output 7, but target has 2 columns, counted from 0"),
        (ValueError, {-1: "mse"}, {}, r"the output -1, which is not among the outputs \(indices from 0\)"),
        (
            ValueError,
            {"pH": "mse", 0: "mae"},
            {"outputs": ["pH", "yield"]},
            r"names the output 0 twice, once by its name and once by its index",
        ),
        (ValueError, {}, {"outputs": ["pH"]}, r"target must have 1 columns, one for each of outputs, got 2"),
        (ValueError, {0: "hubr"}, {}, r"losses\[0\] must be of a type among 'mse', .*; did you mean 'huber'\?"),
        (ValueError, {}, {"default": "qantile"}, r"default must be of a type .*; did you mean 'quantile'\?"),
        (
            ValueError,
            {0: {"type": "huber", "dleta": 1.0}},
            {},
            r"losses\[0\] has the parameter 'dleta', which the loss 'huber' does not take; it takes delta, weight; "
            r"did you mean 'delta'\?",
        ),
        (ValueError, {0: {"type": "huber", "delta": -1.0}}, {}, r"losses\[0\]\['delta'\] must be finite and > 0"),
        (ValueError, {0: "expectile"}, {}, r"losses\[0\] needs 'expectile', which the loss 'expectile' has no default"),
        (ValueError, {0: {"type": "mse", "weight": -1.0}}, {}, r"weight of losses\[0\] must be finite and >= 0"),
        (TypeError, {0: 3}, {}, r"losses\[0\] must be a loss type or a mapping with 'type', such as .*, got 3"),
        (TypeError, {0: {"delta": 1.0}}, {}, r"losses\[0\] must be a loss type or a mapping with 'type'"),
        (TypeError, {1.5: "mse"}, {}, r"losses must have names or indices of outputs as keys, got 1.5"),
        (TypeError, ["mse"], {}, r"losses must map outputs to losses, such as {'pH': 'mse'}, got \['mse'\]"),
        (ValueError, {0: "quantile"}, {}, r"preds must have shape \(\*target.shape, Q\) = \(4, 2, 3\), got \(4, 2\)"),
        (ValueError, {}, {"log_variance": torch.zeros(3)}, r"log_variance must have shape \(D,\) = \(2,\), got \(3,\)"),
        (ValueError, {}, {"reduction": "avg"}, r"reduction must be one of"),
    ],
)
def test_refusals(error: type[Exception], losses: Any, kwargs: dict[str, Any], message: str) -> None:
    with pytest.raises(error, match=message):
        per_output_loss(torch.zeros(4, 2), torch.zeros(4, 2), losses, **kwargs)


def test_refuses_a_target_without_columns() -> None:
    with pytest.raises(ValueError, match=r"target must have shape \(\*, D\), a column for each output, got \(\)"):
        per_output_loss(torch.zeros(()), torch.zeros(()), {})
    with pytest.raises(ValueError, match=r"same shape, got \(4, 1\) and \(4,\)"):
        per_output_loss(torch.zeros(4, 1), torch.zeros(4), {})
