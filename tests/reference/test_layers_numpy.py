"""Mixtures of experts against loops in NumPy float64, and the quantile head against a free one on real data."""

import itertools

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn.datasets import load_diabetes
from torch import Tensor, nn

from reghead.functional import pinball_loss
from reghead.nn import MLP, MixtureOfExperts, QuantileOutput

Array = NDArray[np.float64]
COLUMNS = {"location": 4, "season": 3}


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def filled(seed: int, **options: object) -> MixtureOfExperts:
    moe = MixtureOfExperts(5, 2, 3, dtype=torch.float64, **options)  # type: ignore[arg-type]
    for i, parameter in enumerate(moe.parameters()):
        parameter.data = 0.7 * draw(seed + i, *parameter.shape)
    return moe


def gate_by_loop(logits: Array, gate: str, k: int) -> Array:
    p = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
    if gate == "soft":
        return p
    order = np.argsort(-p)[: k if gate == "top_k" else 1]
    out = np.zeros_like(p)
    out[order] = 1.0 if gate == "hard" else (p[order] / p[order].sum() if k > 1 else p[order])
    return out


def mixture_by_loop(
    moe: MixtureOfExperts, x: Array, ids: dict[str, Array], film_context: Array | None, norm: str | None
) -> Array:
    """Row by row, expert by expert, unit by unit: the formula of the class read aloud."""
    state = {name: tensor.numpy() for name, tensor in moe.state_dict().items()}
    layers, out = len(moe.hidden_dims) + 1, np.zeros((len(x), 2))
    for n, row in enumerate(x):
        embedded = []
        for column in sorted(COLUMNS):
            table, i = state[f"embedding.weight_{column}"], int(ids[column][n])
            embedded += [0.0] * table.shape[1] if i == 0 else list(table[i - 1])
        logits = state["router_context"] @ np.array(embedded) + state["router_bias"]
        logits = (logits + state["router_features"] @ row) / moe.temperature
        weights = gate_by_loop(logits, moe.gate, moe.top_k)
        for e in range(moe.num_experts):
            h = row
            for layer in range(layers):
                weight, bias = state[f"weights.{layer}"][e], state[f"biases.{layer}"][e]
                h = np.array([sum(h[i] * weight[i, o] for i in range(len(h))) + bias[o] for o in range(len(bias))])
                if layer + 1 == layers:
                    break
                if norm == "layer":
                    h = (h - h.mean()) / np.sqrt(h.var() + 1e-5)
                    h = h * state[f"norms.{layer}.weight"] + state[f"norms.{layer}.bias"]
                if film_context is not None:
                    gamma = 1 + state[f"films.{layer}.weight_gamma"] @ film_context[n]
                    h = gamma * h + state[f"films.{layer}.weight_beta"] @ film_context[n]
                h = np.maximum(h, 0)
            out[n] += weights[e] * h
        if moe.skip is not None:
            out[n] += state["skip.weight"] @ row + state["skip.bias"]
    return out


@pytest.mark.parametrize("rows", [9, 800])
@pytest.mark.parametrize(("gate", "k"), [("soft", 2), ("top_k", 2), ("top_k", 1), ("hard", 2)])
@pytest.mark.parametrize("rich", [False, True])
def test_a_mixture_is_a_loop_over_rows_and_experts(rows: int, gate: str, k: int, rich: bool) -> None:
    # Nine rows and eight hundred are computed in different ways; of the many, the loop checks every 50th.
    more = {"norm": "layer", "film_features": 2, "residual": True, "temperature": 0.7} if rich else {}
    moe = filled(
        3, hidden_dims=(4, 3), cardinalities=COLUMNS, embedding_dim=2, route_features=True, gate=gate, top_k=k, **more
    )
    x, context = draw(0, rows, 5), draw(1, rows, 2) if rich else None
    ids = {column: torch.arange(rows) * 7 % n for column, n in COLUMNS.items()}
    step = 1 if rows < 50 else 50
    expected = mixture_by_loop(
        moe,
        x[::step].numpy(),
        {column: i[::step].numpy() for column, i in ids.items()},
        None if context is None else context[::step].numpy(),
        "layer" if rich else None,
    )
    got = moe(x, ids, film_context=context)[::step].detach().numpy()
    np.testing.assert_allclose(got, expected, rtol=1e-10, atol=1e-12)


# The quantile head on real data

LEVELS = (0.1, 0.5, 0.9)


def scores(seed: int, non_crossing: bool, epochs: int, lr: float) -> tuple[float, float, float]:
    """Pinball loss on the test rows at the best validation epoch and at the last, and the share that crosses there."""
    features, target = load_diabetes(return_X_y=True)
    rows = np.random.default_rng(seed).permutation(len(target))
    train, validation, test = rows[:240], rows[240:310], rows[310:]
    target = (target - target[train].mean()) / target[train].std()
    features = (features - features[train].mean(0)) / features[train].std(0)
    x, y = torch.tensor(features, dtype=torch.float32), torch.tensor(target, dtype=torch.float32).unsqueeze(-1)
    torch.manual_seed(seed)
    network = nn.Sequential(MLP(10, 3, (64, 32)), nn.Unflatten(-1, (1, 3)))
    shape = QuantileOutput(LEVELS, non_crossing=non_crossing)
    optimizer = torch.optim.Adam(network.parameters(), lr=lr)
    best, chosen = float("inf"), float("nan")
    for _ in range(epochs):
        optimizer.zero_grad()
        pinball_loss(shape.train()(network(x[train])), y[train], LEVELS).backward()
        optimizer.step()
        with torch.no_grad():
            preds = shape.eval()(network(x))
            score = pinball_loss(preds[validation], y[validation], LEVELS).item()
            last = pinball_loss(preds[test], y[test], LEVELS).item()
        if score < best:
            best, chosen = score, last
    crossing = (preds.diff(dim=-1) < 0).any(-1).float().mean().item()
    return chosen, last, crossing


def ratio(seeds: int, epochs: int, lr: float) -> tuple[float, float]:
    """Pinball loss of the ordered head over that of the sorted free one, mean over seeds: best epoch, last epoch."""
    runs = np.array([[scores(seed, ordered, epochs, lr) for seed in range(seeds)] for ordered in (True, False)])
    assert (runs[..., 2] == 0).all(), "shaped quantiles crossed"
    ordered, free = runs.mean(1)
    return ordered[0] / free[0], ordered[1] / free[1]


def test_the_ordered_head_trains_as_well_as_the_sorted_free_one_on_three_seeds() -> None:
    at_best, _ = ratio(seeds=3, epochs=80, lr=1e-2)
    assert at_best < 1.01


@pytest.mark.slow
@pytest.mark.parametrize(("lr", "epochs"), [(1e-2, 60), (3e-3, 120), (1e-3, 200)])
def test_the_ordered_head_trains_as_well_as_the_sorted_free_one_on_ten_seeds(lr: float, epochs: int) -> None:
    at_best, _ = ratio(seeds=10, epochs=epochs, lr=lr)
    assert at_best < 1.01


@pytest.mark.slow
def test_the_ordered_head_is_no_worse_after_sixty_epochs_before_either_overfits() -> None:
    _, at_last = ratio(seeds=10, epochs=60, lr=1e-3)
    assert at_last < 1.01


def test_a_free_head_with_many_levels_crosses_and_an_ordered_one_never_does() -> None:
    levels = tuple((np.arange(99) + 1) / 100)
    torch.manual_seed(0)
    network, x = nn.Sequential(MLP(10, 99, (32,)), nn.Unflatten(-1, (1, 99))), draw(0, 200, 10).float()
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-2)
    target = x[:, :1] + draw(1, 200, 1).float()
    crossed = {}
    for ordered, _ in itertools.product((False, True), range(20)):
        shape = QuantileOutput(levels, non_crossing=ordered)
        optimizer.zero_grad()
        pinball_loss(shape(network(x)), target, levels).backward()
        optimizer.step()
        crossed[ordered] = (shape(network(x)).diff(dim=-1) < 0).any(-1).float().mean().item()
    assert crossed[False] > 0.9
    assert crossed[True] == 0
