"""What each option of a head was asked to do."""

import copy
from statistics import NormalDist
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.testing import assert_close

from reghead.heads import RegressionHead
from reghead.losses import PinballLoss

SIZES = {"location": 4, "season": 3}
LEVELS = (0.1, 0.5, 0.9)


def ids(*values: int, column: str = "location") -> dict[str, Tensor]:
    return {column: torch.tensor(values)}


def batch(rows: int, features: int, seed: int = 0) -> tuple[Tensor, dict[str, Tensor]]:
    rng = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, features, generator=rng)
    return x, {c: torch.randint(0, n, (rows,), generator=rng) for c, n in SIZES.items()}


def perturb(module: nn.Module, seed: int = 1) -> nn.Module:
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.5 * torch.randn(parameter.shape, generator=rng))
    return module


# --- hidden layers ----------------------------------------------------------------------------------------------


def test_hidden_dims_make_linear_layers_with_relu_and_dropout_between() -> None:
    head = RegressionHead(128, 3, (64, 32), dropout=0.1)
    kinds = [m for m in head.modules() if not list(m.children()) and not isinstance(m, nn.ModuleList)]
    assert [type(m) for m in kinds] == [nn.Linear, nn.ReLU, nn.Dropout] * 2 + [nn.Linear]
    assert [(m.in_features, m.out_features) for m in kinds if isinstance(m, nn.Linear)] == [
        (128, 64),
        (64, 32),
        (32, 3),
    ]
    assert [m.p for m in kinds if isinstance(m, nn.Dropout)] == [0.1, 0.1]


def test_mlp_head_computes_what_an_nn_sequential_computes() -> None:
    reference = nn.Sequential(nn.Linear(8, 5), nn.ReLU(), nn.Dropout(0.1), nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 2))
    head = RegressionHead(8, 2, (5, 4), dropout=0.1).eval()
    values = list(reference.state_dict().values())
    own = list(head.parameters())
    assert [p.shape for p in own] == [v.shape for v in values]
    for parameter, value in zip(own, values, strict=True):
        parameter.data.copy_(value)
    x, _ = batch(6, 8)
    assert torch.equal(head(x), reference.eval()(x))


def test_dropout_acts_in_training_alone() -> None:
    torch.manual_seed(0)
    head = RegressionHead(8, 2, (50,), dropout=0.5)
    x, _ = batch(6, 8)
    assert not torch.equal(head.train()(x), head(x))
    assert torch.equal(head.eval()(x), head(x))


# --- plain head -------------------------------------------------------------------------------------------------


def test_default_head_is_one_linear_layer() -> None:
    head = RegressionHead(4, 2)
    assert {name: p.shape for name, p in head.named_parameters()} == {"weight": (2, 4), "bias": (2,)}
    torch.manual_seed(3)
    started = RegressionHead(4, 2)
    torch.manual_seed(3)
    assert torch.equal(started.weight, nn.Linear(4, 2).weight)


@pytest.mark.parametrize("option", [{}, {"bounds": (0.0, 1.0)}, {"output_activation": "exp"}])
def test_plain_head_and_linear_load_each_other(option: dict[str, Any]) -> None:
    linear, head = nn.Linear(4, 2), RegressionHead(4, 2, **option)
    head.load_state_dict(linear.state_dict(), strict=True)
    x, _ = batch(5, 4)
    last = head.output_activation or nn.Identity()
    assert torch.equal(head(x), last(linear(x)))
    other = nn.Linear(4, 2)
    other.load_state_dict({key: head.state_dict()[key] for key in ("weight", "bias")}, strict=True)
    assert torch.equal(other(x), linear(x))
    unexpected = nn.Linear(4, 2).load_state_dict(head.state_dict(), strict=False).unexpected_keys
    assert unexpected == ["_extra_state"]


def test_plain_head_is_a_drop_in_for_linear_in_a_sequential() -> None:
    before = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    after = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), RegressionHead(4, 2))
    after.load_state_dict(before.state_dict(), strict=True)
    x, _ = batch(5, 3)
    assert torch.equal(after(x), before(x))


@pytest.mark.parametrize("hidden_dims", [(), (4,)])
@pytest.mark.parametrize(
    ("option", "activation"),
    [
        ({}, nn.Identity()),
        ({"bounds": (-2.0, 6.0)}, lambda x: -2.0 + 8.0 * torch.sigmoid(x)),
        ({"output_activation": "relu"}, F.relu),
        ({"output_activation": "softplus"}, F.softplus),
        ({"output_activation": "exp"}, torch.exp),
    ],
)
def test_output_transforms_are_the_last_step(hidden_dims: tuple[int, ...], option: Any, activation: Any) -> None:
    bare, head = RegressionHead(3, 2, hidden_dims), RegressionHead(3, 2, hidden_dims, **option)
    for parameter, value in zip(head.parameters(), bare.parameters(), strict=True):
        parameter.data.copy_(value)
    x, _ = batch(5, 3)
    assert_close(head(x), activation(bare(x)))


# --- conditional scaling ----------------------------------------------------------------------------------------


def scaled(**options: Any) -> RegressionHead:
    head = RegressionHead(3, 1, cardinalities=SIZES, **options)
    with torch.no_grad():
        head.scaler.scale_location[1 - 1] = 1.0 if not head.scaler.positive else torch.tensor(2.0).log()
        head.scaler.bias_location[1 - 1] = 3.0
    return head


@pytest.mark.parametrize("options", [{}, {"hidden_dims": (4,)}, {"learnable_scale": True}, {"quantiles": LEVELS}])
@pytest.mark.filterwarnings("ignore::reghead.RedundantOptionWarning")
def test_prediction_times_scale_plus_bias_of_the_category(options: dict[str, Any]) -> None:
    head = scaled(scaler=["location"], **options)
    x, _ = batch(1, 3)
    base = head(x, ids(0))
    assert_close(head(x, ids(1)), 2.0 * base + 3.0)
    assert_close(head(x, ids(2)), base)


@pytest.mark.parametrize(
    ("option", "inverse"),
    [
        ({"bounds": (0.0, 1.0)}, torch.logit),
        ({"output_activation": "exp"}, torch.log),
        ({"output_activation": "softplus"}, lambda y: torch.log(torch.expm1(y))),
    ],
)
def test_scaling_acts_before_the_output_transform(option: dict[str, Any], inverse: Any) -> None:
    head = scaled(scaler=["location"], **option)
    x, _ = batch(1, 3)
    assert_close(inverse(head(x, ids(1))), 2.0 * inverse(head(x, ids(0))) + 3.0, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize(
    ("columns", "expected"),
    [(["location", "season"], (5.0 * 2 + 3) * 4 + 7), (["season", "location"], (5.0 * 4 + 7) * 2 + 3)],
)
def test_several_columns_scale_in_the_order_asked_for(columns: list[str], expected: float) -> None:
    head = RegressionHead(1, 1, cardinalities=SIZES, scaler=columns)
    with torch.no_grad():
        head.weight.fill_(5.0), head.bias.zero_()
        head.scaler.scale_location.fill_(1.0), head.scaler.bias_location.fill_(3.0)
        head.scaler.scale_season.fill_(3.0), head.scaler.bias_season.fill_(7.0)
    out = head(torch.ones(1, 1), {"location": torch.tensor([1]), "season": torch.tensor([1])})
    assert out.item() == expected
    rebuilt = RegressionHead.from_state_dict(head.state_dict())
    assert rebuilt(torch.ones(1, 1), {"location": torch.tensor([1]), "season": torch.tensor([1])}).item() == expected


# --- FiLM -------------------------------------------------------------------------------------------------------


def test_film_scales_and_shifts_every_hidden_pre_activation() -> None:
    head = perturb(RegressionHead(3, 2, (5, 4), cardinalities=SIZES, film=["location", "season"], embedding_dim=2))
    x, categories = batch(6, 3)
    e = torch.cat([head.embedding.context(categories).dense()], dim=-1)
    h = x
    for layer in head.trunk.layers:
        gamma, beta = 1 + e @ layer.film.weight_gamma.T, e @ layer.film.weight_beta.T
        h = F.relu(gamma * layer.linear(h) + beta)
    assert_close(head(x, categories), head.trunk.output(h))


def test_film_learns_from_its_start_as_the_identity() -> None:
    torch.manual_seed(0)
    head = RegressionHead(3, 2, (5,), cardinalities=SIZES, film=["location"])
    x, _ = batch(3, 3)
    assert_close(head(x, ids(1, 2, 3)), head(x, ids(0, 0, 0)))
    head(x, ids(1, 2, 3)).square().sum().backward()
    film = head.trunk.layers[0].film
    assert film.weight_gamma.grad.abs().sum() > 0
    assert film.weight_beta.grad.abs().sum() > 0


# --- quantiles --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"hidden_dims": (4,)}, {"non_crossing": False}])
@pytest.mark.parametrize("levels", [LEVELS, (0.5,), (0.9, 0.99)])
def test_one_output_for_each_target_and_level(options: dict[str, Any], levels: tuple[float, ...]) -> None:
    head = RegressionHead(3, 2, quantiles=levels, **options)
    x, _ = batch(5, 3)
    assert head(x).shape == (5, 2, len(levels))
    assert head(x.reshape(1, 5, 3)).shape == (1, 5, 2, len(levels))


def test_non_crossing_quantiles_start_at_the_normal_spread() -> None:
    expected = torch.tensor([NormalDist().inv_cdf(level) for level in LEVELS]).diff()
    head = RegressionHead(3, 2, (4,), quantiles=LEVELS, residual=True)
    x, _ = batch(5, 3)
    spread = head(x).diff(dim=-1)
    assert_close(spread, expected.expand_as(spread))


def test_free_quantiles_are_raw_in_training_and_sorted_in_eval() -> None:
    head = RegressionHead(1, 1, quantiles=LEVELS, non_crossing=False)
    with torch.no_grad():
        head.weight.zero_(), head.bias.copy_(torch.tensor([3.0, 1.0, 2.0]))
    assert head.train()(torch.ones(1, 1)).tolist() == [[[3.0, 1.0, 2.0]]]
    assert head.eval()(torch.ones(1, 1)).tolist() == [[[1.0, 2.0, 3.0]]]


def test_quantile_head_learns_the_quantiles_of_its_targets() -> None:
    target = torch.linspace(0.0, 10.0, 101).unsqueeze(-1)
    head, loss = RegressionHead(1, 1, quantiles=LEVELS), PinballLoss(LEVELS)
    optimizer = torch.optim.Adam(head.parameters(), lr=0.1)
    for _ in range(400):
        optimizer.zero_grad()
        loss(head(torch.zeros(101, 1)), target).backward()
        optimizer.step()
    assert_close(head(torch.zeros(1, 1)).flatten(), torch.tensor([1.0, 5.0, 9.0]), atol=0.2, rtol=0)


# --- residual ---------------------------------------------------------------------------------------------------


def test_residual_head_is_a_linear_map_plus_the_mlp() -> None:
    head = RegressionHead(3, 2, (4,), residual=True)
    mlp = RegressionHead(3, 2, (4,))
    mlp.load_state_dict(
        {k: v for k, v in head.state_dict().items() if "skip" not in k and "extra" not in k}, strict=False
    )
    x, _ = batch(5, 3)
    assert_close(head(x), F.linear(x, head.trunk.skip.weight, head.trunk.skip.bias) + mlp(x))


def test_residual_passes_gradients_by_a_dead_mlp() -> None:
    for residual in (False, True):
        head = RegressionHead(3, 2, (4, 4), residual=residual)
        with torch.no_grad():
            head.trunk.layers[0].linear.weight.zero_(), head.trunk.layers[0].linear.bias.fill_(-1.0)
        x = torch.ones(5, 3, requires_grad=True)
        head(x).sum().backward()
        assert bool(x.grad.abs().sum() > 0) is residual


def test_residual_gives_larger_input_gradients_in_a_deep_head() -> None:
    for seed in range(10):
        norms = []
        for residual in (True, False):
            torch.manual_seed(seed)
            head = RegressionHead(16, 1, (16,) * 8, residual=residual)
            x = batch(32, 16, seed)[0].requires_grad_()
            head(x).sum().backward()
            norms.append(x.grad.norm().item())
        assert norms[0] > 2 * norms[1]


# --- mixture of experts -----------------------------------------------------------------------------------------


def test_experts_are_mlps_mixed_by_the_routing_weights_of_the_category() -> None:
    options = {"num_experts": 3, "routing": ["location"], "load_balancing_weight": 0.5}
    head = perturb(RegressionHead(3, 2, (5, 4), cardinalities=SIZES, moe=options, embedding_dim=2))
    x, categories = batch(6, 3)
    out, aux = head(x, categories, return_aux=True)
    weights = aux.routing.routing_weights
    assert_close(weights.sum(-1), torch.ones(6))
    for location in range(4):
        rows = weights[categories["location"] == location]
        assert_close(rows, rows[:1].expand_as(rows))  # routed by the category alone
    experts = []
    for expert in range(3):
        h = x
        for i, (weight, bias) in enumerate(zip(head.trunk.weights, head.trunk.biases, strict=True)):
            h = h @ weight[expert] + bias[expert]
            h = F.relu(h) if i < 2 else h
        experts.append(weights[:, expert : expert + 1] * h)
    assert_close(out, sum(experts))
    assert torch.equal(out, head(x, categories))
    assert_close(aux.losses["load_balancing"], 0.5 * aux.routing.load_balancing_loss)


def test_without_a_weight_there_is_no_balancing_loss() -> None:
    head = RegressionHead(3, 2, cardinalities=SIZES, moe={"num_experts": 3, "routing": ["location"]})
    aux = head(*batch(4, 3), return_aux=True)[1]
    assert aux.losses == {}
    assert aux.routing.routing_weights.shape == (4, 3)


def test_balancing_loss_evens_out_a_collapsed_router() -> None:
    torch.manual_seed(0)
    moe = {"num_experts": 3, "routing": ["location"], "load_balancing_weight": 1.0}
    head = RegressionHead(3, 1, cardinalities=SIZES, moe=moe)
    with torch.no_grad():
        head.trunk.router_bias.copy_(torch.tensor([3.0, 0.0, 0.0]))
    x, categories = batch(64, 3)
    optimizer = torch.optim.Adam(head.parameters(), lr=0.05)
    used = []
    for _ in range(200):
        optimizer.zero_grad()
        aux = head(x, categories, return_aux=True)[1]
        used.append(aux.routing.routing_weights.mean(0).max().item())
        aux.losses["load_balancing"].backward()
        optimizer.step()
    assert used[0] > 0.8
    assert used[-1] < 0.5


# --- identity at the start --------------------------------------------------------------------------------------

COMPENSATION: dict[str, dict[str, Any]] = {
    "scaler": {"scaler": ["location", "season"]},
    "learnable_scale": {"learnable_scale": True},
    "wide": {"wide": ["location", "season"]},
    "film": {"film": ["location"]},
}


@pytest.mark.parametrize("option", COMPENSATION)
@pytest.mark.parametrize("quantiles", [None, LEVELS])
def test_head_starts_as_the_head_without_the_option(option: str, quantiles: Any) -> None:
    common: dict[str, Any] = {"cardinalities": SIZES, "quantiles": quantiles, "hidden_dims": (4,)}
    bare, head = RegressionHead(3, 2, **common), RegressionHead(3, 2, **common, **COMPENSATION[option])
    x, categories = batch(8, 3)

    def share_trunk() -> None:
        trunk = head.trunk.state_dict()
        trunk.update(bare.trunk.state_dict())
        head.trunk.load_state_dict(trunk)

    share_trunk()
    assert_close(head(x, categories), bare(x, categories), rtol=0, atol=0)

    def initialize(module: nn.Module) -> None:
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight), nn.init.normal_(module.bias)

    nn.ModuleList([head]).apply(initialize)  # as a parent model does to all it holds
    share_trunk()
    assert_close(head(x, categories), bare(x, categories), rtol=0, atol=0)


# --- unknown categories -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("option", ["scaler", "wide", "film"])
def test_unknown_ids_get_no_compensation_after_training_either(option: str) -> None:
    head = perturb(RegressionHead(3, 2, (4,), cardinalities=SIZES, **COMPENSATION[option]))
    x, categories = batch(8, 3)
    nothing = {column: torch.zeros_like(i) for column, i in categories.items()}
    bare = RegressionHead(3, 2, (4,))
    bare.load_state_dict(
        {k: v for k, v in head.state_dict().items() if k.startswith("trunk") and "film" not in k}, strict=False
    )
    assert_close(head(x, nothing), bare(x))
    assert not torch.allclose(head(x, categories), bare(x))


@pytest.mark.parametrize("option", [*COMPENSATION.values(), {"fusion": "concat"}, {"fusion": "add"}], ids=str)
def test_ids_that_were_not_observed_are_unknown(option: dict[str, Any]) -> None:
    if "learnable_scale" in option:
        option = {**option, "wide": ["location"]}
    head = perturb(RegressionHead(3, 2, (4,), cardinalities=SIZES, **option)).eval()
    x = torch.ones(4, 3)
    seasons = torch.ones(4, dtype=torch.int64)
    every = {"location": torch.arange(4), "season": seasons}
    before = head(x, every)
    head.observe({"location": torch.tensor([1, 2]), "season": torch.tensor([1, 2])})  # location 3 has no rows
    after = head(x, every)
    assert torch.equal(after[:3], before[:3])
    assert_close(after[3], after[0])
    assert not torch.allclose(before[3], before[0])
    rebuilt = RegressionHead.from_state_dict(head.state_dict()).eval()
    assert torch.equal(rebuilt(x, every), after)


def test_unknown_dropout_hides_whole_rows_in_training_alone() -> None:
    head = RegressionHead(
        1, 1, cardinalities=SIZES, scaler=["location"], wide=["season"], unknown_dropout=0.3, output_activation=None
    )
    with torch.no_grad():
        head.weight.zero_(), head.bias.zero_()
        head.scaler.bias_location.fill_(1.0), head.wide.bias_season.fill_(10.0)
    rows = 20_000
    x, categories = torch.zeros(rows, 1), {c: torch.ones(rows, dtype=torch.int64) for c in SIZES}
    torch.manual_seed(0)
    out = head.train()(x, categories).flatten()
    assert set(out.unique().tolist()) == {0.0, 11.0}  # all parts of a row are hidden, or none
    hidden = (out == 0).float().mean().item()
    assert abs(hidden - 0.3) < 4 * (0.3 * 0.7 / rows) ** 0.5
    assert (head.eval()(x, categories) == 11.0).all()
    assert all((i == 1).all() for i in categories.values())


# --- shapes, groups, configuration ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "option",
    [
        *COMPENSATION.values(),
        {"fusion": "concat"},
        {"fusion": "add"},
        {"moe": {"num_experts": 2, "routing": ["location"]}, "film": ["season"]},
        {"quantiles": LEVELS, "scaler": ["season"]},
    ],
    ids=str,
)
def test_ids_of_rows_go_with_features_of_sequences(option: dict[str, Any]) -> None:
    head = perturb(RegressionHead(3, 2, (4,), cardinalities=SIZES, **option)).eval()
    x = batch(20, 3)[0].reshape(4, 5, 3)
    categories = batch(4, 3)[1]
    each = {c: i.unsqueeze(1).expand(4, 5) for c, i in categories.items()}
    assert_close(head(x, categories), head(x, each))
    assert_close(head(x, categories)[:, 2], head(x[:, 2], categories))


def test_param_groups_hold_every_parameter_once_and_decay_no_bias() -> None:
    head = RegressionHead(
        3,
        2,
        (4,),
        cardinalities=SIZES,
        norm="layer",
        residual=True,
        film=["location"],
        scaler=["season"],
        wide=["location", "season"],
        moe={"num_experts": 2, "routing": ["location"]},
    )
    groups = {group["name"]: group for group in head.param_groups(0.1, categorical_lr=0.5, weight_decay=0.01)}
    names = {id(p): name for name, p in head.named_parameters()}
    held = {name: sorted(names[id(p)] for p in group["params"]) for name, group in groups.items()}
    assert sorted(name for group in held.values() for name in group) == sorted(names.values())
    assert all(name.startswith(("embedding.", "scaler.", "wide.")) for name in held["categorical"])
    assert {name for name in names.values() if "bias" in name.replace("biases", "bias") and "trunk" in name} <= set(
        held["biases"]
    )
    assert {name: (g["lr"], g["weight_decay"]) for name, g in groups.items()} == {
        "weights": (0.1, 0.01),
        "biases": (0.1, 0.0),
        "categorical": (0.5, 0.01),
    }
    torch.optim.AdamW(head.param_groups(0.1))


def test_config_rebuilds_the_head_and_is_its_own_inverse() -> None:
    options: dict[str, Any] = {
        "film": ["season"],
        "quantiles": LEVELS,
        "moe": {"num_experts": 2, "routing": ["season"]},
    }
    head = RegressionHead(3, 2, (4,), cardinalities=SIZES, **options)
    other = RegressionHead.from_config(type(head.config).from_json(head.config.to_json()))
    assert other.config == head.config
    other.load_state_dict(head.state_dict())
    x, categories = batch(5, 3)
    assert torch.equal(other(x, categories), head(x, categories))


def test_penalties_are_those_of_the_parts() -> None:
    head = RegressionHead(3, 1, cardinalities=SIZES, scaler=["location"], wide=["season"])
    with torch.no_grad():
        head.scaler.bias_location.fill_(2.0)
    aux = head(*batch(4, 3), return_aux=True)[1]
    assert {name: p.item() for name, p in aux.penalties.items()} == {"scaler": 12.0, "wide": 0.0}
    assert aux.routing is None


def test_copy_shares_nothing() -> None:
    head = RegressionHead(3, 1, cardinalities=SIZES, scaler=["location"])
    copied = copy.deepcopy(head)
    copied.observe(ids(1))
    assert (head.scaler.counts_location == -1).all()
