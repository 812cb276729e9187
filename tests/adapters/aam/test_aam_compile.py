"""An attached model compiled, checkpointed and under autocast, and under the fusions that AAM alone has."""

import pytest
import torch
from torch.testing import assert_close

from adapters._hosts import EVERYTHING, NEEDS_AAM, host_named, ids, predict, tokens, with_categories
from reghead.adapters.aam import attach


@pytest.mark.parametrize("given", [None, "ids"])
def test_the_stand_in_with_a_head_is_one_graph(given: str | None) -> None:
    model = attach(with_categories(host_named("stand-in")), EVERYTHING).eval()
    categories = None if given is None else ids()
    expected = predict(model, categories)
    torch._dynamo.reset()
    compiled = torch.compile(model, fullgraph=True, backend="eager")
    with torch.no_grad():
        assert_close(compiled(tokens(), categorical_ids=categories)["target_prediction"], expected)


@pytest.mark.parametrize("training", [pytest.param(t, marks=NEEDS_AAM) for t in (False, True)])
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor:UserWarning")
def test_aam_with_a_head_breaks_no_graph_beyond_its_own(training: bool) -> None:
    breaks = []
    for asked in (None, EVERYTHING):
        torch._dynamo.reset()
        model = with_categories(host_named("aam"))
        if asked is not None:
            attach(model, asked)
        explained = torch._dynamo.explain(model.train(training))(tokens(), categorical_ids=ids())
        breaks.append(explained.graph_break_count)
    assert breaks[1] <= breaks[0]
    model.eval()
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="eager")
    with torch.no_grad():
        assert_close(compiled(tokens(), categorical_ids=ids())["target_prediction"], predict(model, ids()))
    torch._dynamo.reset()


@pytest.mark.parametrize("fusion", [pytest.param(f, marks=NEEDS_AAM) for f in ("gmu", "cross-attention", "perceiver")])
def test_categories_reach_the_head_under_every_fusion_of_aam(fusion: str) -> None:
    model = with_categories(host_named("aam"), categorical_fusion=fusion, categorical_embed_dim=8)
    attach(model, {"scaler": ("location",)})
    before = predict(model, ids())
    with torch.no_grad():
        model.target_head.scaler.bias_location += 5.0
    assert_close(predict(model, ids()) - before, 5.0 * (ids()["location"] > 0).float().unsqueeze(-1))


@pytest.mark.parametrize("way", [pytest.param(w, marks=NEEDS_AAM) for w in ("checkpointing", "bfloat16")])
def test_gradient_checkpointing_and_autocast(way: str) -> None:
    model = attach(with_categories(host_named("aam"), gradient_checkpointing=way == "checkpointing"), EVERYTHING)
    whole = tokens().clone()
    whole[:, -1] = whole[:, 0]  # AAM itself cannot do padding under autocast
    with torch.autocast("cpu", torch.bfloat16, enabled=way == "bfloat16"):
        out = model.train()(whole, categorical_ids=ids())
    (out["target_prediction"].float().sum() + out["head_load_balancing"].sum()).backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.target_head.parameters())
