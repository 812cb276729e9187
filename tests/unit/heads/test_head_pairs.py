"""Every pair of options of a head works together, or is refused with both names."""

import itertools
import re
from typing import Any

import pytest
import torch
from torch import Tensor

from reghead import RedundantOptionWarning
from reghead.heads import RegressionHead

SIZES = {"location": 4, "season": 3}
LEVELS = (0.05, 0.3, 0.5, 0.9)
HIDDEN = {"hidden_dims": (5, 4)}
MOE = {"num_experts": 3, "routing": ["location"]}

# What needs hidden layers brings them: that need is tested by itself.
OPTIONS: dict[str, dict[str, Any]] = {
    "hidden_dims": HIDDEN,
    "film": {"film": ["season", "location"], **HIDDEN},
    "residual": {"residual": True, **HIDDEN},
    "moe-soft": {"moe": MOE},
    "moe-top_k": {"moe": {**MOE, "gate": "top_k"}},
    "moe-parameters": {"moe": {**MOE, "mix": "parameters"}},
    "moe-hard": {"moe": {**MOE, "gate": "hard", "route_features": True}},
    "scaler-sequential": {"scaler": ["season", "location"]},
    "scaler-additive": {"scaler": ["location", "season"], "scaler_compose": "additive"},
    "wide": {"wide": ["location", "season"]},
    "partial_pooling": {"partial_pooling": 2.0, "scaler": ["location"]},
    "ensemble": {"ensemble": 3, **HIDDEN},
    "quantiles": {"quantiles": LEVELS},
    "quantiles-free": {"quantiles": LEVELS, "non_crossing": False},
    "relu": {"output_activation": "relu"},
    "softplus": {"output_activation": "softplus"},
    "exp": {"output_activation": "exp"},
    "bounds": {"bounds": (-0.1, 0.7)},
    "learnable_scale": {"learnable_scale": True},
    "fusion-concat": {"fusion": "concat"},
    "fusion-add": {"fusion": "add"},
    "unknown_dropout": {"unknown_dropout": 0.5, "scaler": ["location"]},
    "dropout": {"dropout": 0.2, **HIDDEN},
    "norm": {"norm": "layer", **HIDDEN},
    "activation": {"activation": "silu", **HIDDEN},
}
REFUSED = {
    frozenset({"bounds", "relu"}): ("bounds", "output_activation"),
    frozenset({"bounds", "softplus"}): ("bounds", "output_activation"),
    frozenset({"bounds", "exp"}): ("bounds", "output_activation"),
    **{frozenset({"ensemble", f"moe-{how}"}): ("ensemble", "moe") for how in ("soft", "top_k", "hard", "parameters")},
}
NEEDS_HIDDEN_LAYERS = {"film": ["season"], "residual": True, "dropout": 0.1, "norm": "layer", "ensemble": 2}
RANGES = {"relu": (0.0, torch.inf), "softplus": (0.0, torch.inf), "exp": (0.0, torch.inf), "bounds": (-0.1, 0.7)}


def alternatives(first: str, second: str) -> bool:
    """Two values of one option."""
    one, other = OPTIONS[first], OPTIONS[second]
    return any(one[key] != other[key] for key in one.keys() & other.keys() if key != "hidden_dims")


def batch(rows: int) -> tuple[Tensor, dict[str, Tensor]]:
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(rows, 3, generator=rng)
    return x, {c: torch.randint(0, n, (rows,), generator=rng) for c, n in SIZES.items()}


PAIRS = [p for p in itertools.combinations(OPTIONS, 2) if frozenset(p) in REFUSED or not alternatives(*p)]


@pytest.mark.filterwarnings("ignore::reghead.RedundantOptionWarning")
@pytest.mark.parametrize(("first", "second"), [p for p in PAIRS if frozenset(p) not in REFUSED])
def test_pair_works(first: str, second: str) -> None:
    options = {"embedding_dim": 2, **OPTIONS[first], **OPTIONS[second]}
    head = RegressionHead(3, 2, cardinalities=SIZES, **options)
    rng = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=rng))
    x, categories = batch(16)
    levels = (len(LEVELS),) if "quantiles" in options else ()

    head.train()
    out = head(x, categories)
    assert out.shape == (16, 2, *levels)
    out.sum().backward()
    assert [name for name, p in head.named_parameters() if p.grad is None] == []

    head.eval()
    out = head(30.0 * x, categories)  # far into the tails of every activation
    if levels:
        assert (out[..., 1:] >= out[..., :-1]).all()
    low, high = next((RANGES[name] for name in (first, second) if name in RANGES), (-torch.inf, torch.inf))
    assert (out >= low).all()
    assert (out <= high).all()

    rebuilt = RegressionHead.from_state_dict(head.state_dict()).eval()
    assert rebuilt.config == head.config
    assert torch.equal(rebuilt(x, categories), head(x, categories))


@pytest.mark.parametrize("pair", REFUSED, ids=lambda pair: "+".join(sorted(pair)))
def test_refused_pair_names_both(pair: frozenset[str]) -> None:
    options: dict[str, Any] = {}
    for name in pair:
        options |= OPTIONS[name]
    with pytest.raises(ValueError, match=r"both .* keep one of them") as raised:
        RegressionHead(3, 2, cardinalities=SIZES, **options)
    for name in REFUSED[pair]:
        assert re.search(rf"\b{name}\b", str(raised.value))


@pytest.mark.parametrize("name", NEEDS_HIDDEN_LAYERS)
@pytest.mark.parametrize("trunk", [{}, {"moe": MOE}], ids=["linear", "moe"])
def test_option_of_hidden_layers_without_any_names_both(name: str, trunk: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"^{name} acts on hidden layers and hidden_dims gives none"):
        RegressionHead(3, 2, cardinalities=SIZES, **{name: NEEDS_HIDDEN_LAYERS[name]}, **trunk)


def test_unknown_dropout_without_a_part_that_uses_categories() -> None:
    with pytest.raises(ValueError, match="unknown_dropout hides categories in training, but no part uses them"):
        RegressionHead(3, 2, cardinalities=SIZES, unknown_dropout=0.1)


def test_partial_pooling_without_effects_to_pool() -> None:
    with pytest.raises(ValueError, match="partial_pooling pulls categories to the population, but no part has effects"):
        RegressionHead(3, 2, cardinalities=SIZES, fusion="add", partial_pooling=1.0)


def test_fusion_without_columns() -> None:
    with pytest.raises(ValueError, match="fusion joins embeddings to the features and needs columns"):
        RegressionHead(3, 2, fusion="concat")


def test_scaler_with_learnable_scale_warns_once_and_says_which_to_keep() -> None:
    with pytest.warns(RedundantOptionWarning, match="with categories scaler alone is preferred") as caught:
        RegressionHead(3, 2, cardinalities=SIZES, scaler=["location"], learnable_scale=True)
    assert len(caught) == 1
    assert caught[0].filename == __file__
