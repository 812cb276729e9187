"""TargetHead by itself: what every module of reghead keeps, and what it adds to a RegressionHead."""

from typing import Any

import pytest
import torch
from torch.testing import assert_close

from _cases import LEVELS, SIZES, Case, D, F, draw, to, with_ids
from contracts import test_sweep as sweep
from reghead import RegressionHead
from reghead.adapters.aam import TargetHead
from reghead.normalization import CategoryNormalizer

MOE = {"num_experts": 3, "routing": ["location"], "load_balancing_weight": 0.1}
OPTIONS: dict[str, dict[str, Any]] = {
    "linear": {},
    "film": {"hidden_dims": (4,), "film": ["location"], "scaler": ["season"], "wide": ["location", "season"]},
    "experts": {"hidden_dims": (4,), "moe": MOE, "residual": True},
    "quantiles": {"hidden_dims": (4,), "quantiles": LEVELS, "scaler": ["location"], "bounds": (0.0, 1.0)},
    "members": {"hidden_dims": (4,), "ensemble": 2},
}
CASES = [
    Case(
        f"TargetHead-{name}",
        lambda options=options, **factory: TargetHead(F, D, cardinalities=SIZES, **options, **factory),
        with_ids,
        to(D, len(LEVELS)) if "quantiles" in options else to(D),
    )
    for name, options in OPTIONS.items()
]
CHECKS = (
    *("float64", "rows_do_not_depend_on_each_other", "non_contiguous", "gradcheck", "compile", "export", "autocast"),
    *("vmap", "per_sample_gradients", "copies", "repr", "reset_parameters", "meta_device", "factory_dtype"),
    "every_parameter_gets_a_gradient",
)


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_it_keeps_what_every_module_keeps(case: Case, check: str) -> None:
    getattr(sweep, f"test_{check}")(case)


@pytest.mark.parametrize("rows", [0, 1, 5])
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_shape_and_dtype(case: Case, rows: int) -> None:
    sweep.test_shape_and_dtype(case, rows)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_state_dict_by_weights_alone(case: Case, tmp_path: Any) -> None:
    sweep.test_state_dict(case, tmp_path)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_evaluation_stores_nothing(case: Case) -> None:
    sweep.test_forward_stores_nothing(case, False)


@pytest.mark.parametrize("name", ["film", "quantiles"])
def test_with_known_categories_it_is_a_regression_head(name: str) -> None:
    head = CASES[list(OPTIONS).index(name)].module()
    assert isinstance(head, TargetHead)
    plain = RegressionHead(F, D, cardinalities=SIZES, **OPTIONS[name]).eval()
    ours = {"categorical_embedder": "embedding", "output_scales": "scaler", "output_scales_wide": "wide"}
    for name_here, parameter in head.named_parameters():
        part, _, rest = name_here.partition(".")
        plain.get_parameter(f"{ours.get(part, part)}.{rest}").data.copy_(parameter)
    x, categories = CASES[1].batch(6)
    assert_close(head(x, categories), plain(x, categories))
    out, aux = head(x, categories, return_aux=True)
    assert_close(out, plain(x, categories))
    assert aux.penalties.keys() == plain(x, categories, return_aux=True)[1].penalties.keys()


@pytest.mark.parametrize(
    ("given", "got"), [([1, 2], "list"), (torch.tensor([1.0, 2.0]), r"torch\.float32"), ("north", "str")]
)
def test_ids_that_are_no_tensor_of_integers_are_refused(given: Any, got: str) -> None:
    head = TargetHead(F, 1, cardinalities={"location": 3}, scaler=["location"])
    message = (
        rf"categorical_ids\['location'\] must be a tensor of integer ids \(torch.int64\), got {got}; use torch.tensor"
    )
    with pytest.raises(TypeError, match=message):
        head(torch.ones(2, F), {"location": given})


def test_it_carries_a_normalizer_and_facts_in_its_state() -> None:
    target = draw(torch.Generator().manual_seed(0), torch.float64, 8, 1)
    places = {"location": torch.arange(8) % 4}
    head = TargetHead(F, 1).equip(
        normalizer=CategoryNormalizer({"location": 4}).fit(target, places),
        outputs=["pH"],
        host={"embedding_dim": F},
        data={"levels": [[0.5]]},
    )
    again = TargetHead.from_state_dict(head.state_dict())
    assert (again.outputs, again.host, again.data) == (("pH",), {"embedding_dim": F}, {"levels": [[0.5]]})
    assert again.normalizer is not None
    assert head.normalizer is not None
    assert_close(again.normalizer(target, places), head.normalizer(target, places))


def test_a_host_that_was_built_otherwise_is_no_other_head_but_other_facts_are() -> None:
    head, other = TargetHead(F, 1).equip(host={"dropout": 0.1}), TargetHead(F, 1).equip(host={"dropout": 0.2})
    other.load_state_dict(head.state_dict())
    assert other.host == {"dropout": 0.2}
    with pytest.raises(ValueError, match="was written by another TargetHead: outputs differs"):
        TargetHead(F, 1).equip(outputs=["pH"]).load_state_dict(head.state_dict())
    with pytest.raises(ValueError, match="extra state must describe a TargetHead in a JSON object, got list"):
        head.set_extra_state(torch.tensor(list(b"[]"), dtype=torch.uint8))
