"""Mixtures of experts: every expert on every row, the chosen ones alone, and mixed parameters."""

import itertools
from collections.abc import Callable, Iterator, Mapping

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.speed._layers import forward_backward, mlp
from benchmarks.speed._measure import Comparison, Figure, Reach, interleave, spread
from benchmarks.speed._subject import main
from reghead import MixtureOfExperts

TITLE = "Mixtures of experts, 128 -> 64 -> 32 -> 1 each"
_CATEGORIES = 33
_LOOP, _BATCHED, _WIDE = "loop over unbound experts", "baddbmm", "MLP of equal FLOPs"
_SHARED = "one MLP for all rows"
_FEW_ROWS = (
    "With few rows the calls cost more than the arithmetic: the router, the checks of ids and one product an expert are"
    " calls that the wide MLP does not make, nor, but for the products, the bare formulations."
)
_EVERY_WEIGHT = (
    "To choose experts by category, to sort the rows by expert and back, and the gradients of all experts' weights are"
    " what one MLP does not have."
)
_UNEVEN = (
    "Each expert has its own small products, of which one of a few rows takes as long as one of many, and gains nothing"
    " from a second thread."
)
_MIXING = (
    "To mix 256 sets of parameters for 32 categories takes twice the arithmetic of the network itself on 4,096 rows."
)
_SMALL_PRODUCTS = "Products of 32 networks, of 128 rows each, gain less from a second thread than one of all rows."
_MANY = 64 * 4096  # experts times rows beyond which the peers' seconds are not spent


class _OneByOne(nn.Module):
    """As is often written: a list of networks, whose outputs are stacked and mixed."""

    def __init__(self, experts: int) -> None:
        super().__init__()
        self.experts = nn.ModuleList(mlp(128, 64, 32, 1) for _ in range(experts))
        self.embedding, self.router = nn.Embedding(_CATEGORIES, 16), nn.Linear(16, experts)

    def forward(self, x: Tensor, ids: Tensor) -> Tensor:
        weights = torch.softmax(self.router(self.embedding(ids)), dim=-1)
        return (torch.stack([expert(x) for expert in self.experts], dim=1) * weights.unsqueeze(-1)).sum(1)


def _routing(moe: MixtureOfExperts, ids: Tensor) -> Tensor:
    table = F.pad(moe.embedding.weight_location, (0, 0, 1, 0))
    return torch.softmax(F.linear(table, moe.router_context, moe.router_bias).index_select(0, ids), dim=-1)


def _mixed(outputs: Tensor, weights: Tensor) -> Tensor:
    return torch.einsum("end,ne->nd", outputs, weights)


def _loop(moe: MixtureOfExperts, x: Tensor, ids: Tensor) -> Tensor:
    weights = zip(*(w.unbind() for w in moe.weights), strict=True)
    biases = zip(*(b.unbind() for b in moe.biases), strict=True)
    outputs = []
    for weight, bias in zip(weights, biases, strict=True):
        h = torch.relu(torch.addmm(bias[0], x, weight[0]))
        outputs.append(torch.addmm(bias[2], torch.relu(torch.addmm(bias[1], h, weight[1])), weight[2]))
    return _mixed(torch.stack(outputs), _routing(moe, ids))


def _batched(moe: MixtureOfExperts, x: Tensor, ids: Tensor) -> Tensor:
    (w0, w1, w2), (b0, b1, b2) = moe.weights, (bias.unsqueeze(1) for bias in moe.biases)
    h = torch.relu(torch.baddbmm(b0, x.expand(len(w0), *x.shape), w0))
    return _mixed(torch.baddbmm(b2, torch.relu(torch.baddbmm(b1, h, w1)), w2), _routing(moe, ids))


def _vmapped(moe: MixtureOfExperts, x: Tensor, ids: Tensor) -> Tensor:
    def one(weights: tuple[Tensor, ...], biases: tuple[Tensor, ...]) -> Tensor:
        h = torch.relu(torch.addmm(biases[0], x, weights[0]))
        return torch.addmm(biases[2], torch.relu(torch.addmm(biases[1], h, weights[1])), weights[2])

    return _mixed(torch.vmap(one)(tuple(moe.weights), tuple(moe.biases)), _routing(moe, ids))


def _tabm(experts: int) -> nn.Module | None:
    """The experts as layers of the package ``tabm``, which holds them stacked too."""
    try:
        from tabm import EnsembleView, LinearEnsemble
    except ImportError:
        return None
    layers: list[nn.Module] = [EnsembleView(k=experts)]
    for before, after in itertools.pairwise((128, 64, 32, 1)):
        layers += [LinearEnsemble(before, after, k=experts), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def _rows(rows: int, categories: int = _CATEGORIES) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(rows, 128, generator=generator, requires_grad=True)  # of a backbone, which learns too
    return x, torch.randint(categories, (rows,), generator=generator)


def _step(module: nn.Module, call: Callable[[], Tensor], x: Tensor) -> Callable[[], object]:
    return forward_backward(call, [x, *module.parameters()])


def _soft(experts: int, rows: int) -> Comparison:
    x, ids = _rows(rows)
    moe = MixtureOfExperts(128, 1, experts, (64, 32), cardinalities={"location": _CATEGORIES})
    wide = mlp(128, 64 * experts, 32, 1)
    contenders = {
        "reghead": _step(moe, lambda: moe(x, {"location": ids}), x),
        _LOOP: _step(moe, lambda: _loop(moe, x, ids), x),
        _BATCHED: _step(moe, lambda: _batched(moe, x, ids), x),
        _WIDE: _step(wide, lambda: wide(x), x),
    }
    if experts * rows <= _MANY:
        listed = _OneByOne(experts)
        contenders["nn.ModuleList, stacked"] = _step(listed, lambda: listed(x, ids), x)
    if experts * rows <= 16 * 4096:
        contenders["torch.vmap"] = _step(moe, lambda: _vmapped(moe, x, ids), x)
        stacked = _tabm(experts)
        if stacked is not None:
            router = nn.ModuleList([nn.Embedding(_CATEGORIES, 16), nn.Linear(16, experts)])
            weights = lambda: torch.softmax(router[1](router[0](ids)), dim=-1)  # noqa: E731
            call = lambda: (stacked(x) * weights().unsqueeze(-1)).sum(1)  # noqa: E731
            contenders["tabm.LinearEnsemble"] = _step(nn.ModuleList([stacked, router]), call, x)
    return Comparison(
        f"soft, E={experts}, B={rows:,}",
        contenders,
        [Reach(1.15, (_LOOP, _BATCHED)), Reach(1.3, (_WIDE,))],
        seconds=3.0,
        rounds=15 if experts * rows <= _MANY else 3,
        why=_FEW_ROWS if rows <= 512 else "",
    )


def _sparse_steps(experts: int, gates: Mapping[str, str], even: bool = True) -> dict[str, Callable[[], object]]:
    """A step of each gate, by name.

    Evenly routed, each category has an expert of its own; otherwise 1,024 categories go where a random router sends
    them, and the busiest expert has several times the rows of the others.
    """
    categories = experts if even else 1024
    x, ids = _rows(4096, categories)
    steps = {}
    for name, gate in gates.items():
        moe = MixtureOfExperts(128, 1, experts, (64, 32), cardinalities={"location": categories + 1}, gate=gate)
        with torch.no_grad():
            if even:
                moe.router_context.copy_(F.normalize(moe.embedding.weight_location, dim=-1))
            else:
                moe.router_context.normal_(generator=torch.Generator().manual_seed(0))
        steps[name] = _step(moe, lambda moe=moe: moe(x, {"location": ids + 1}), x)
    return steps


def _sparse(experts: int, times: float, even: bool) -> Comparison:
    x, _ = _rows(4096)
    shared = mlp(128, 64, 32, 1)
    contenders = _sparse_steps(experts, {"reghead": "hard", "reghead, the two largest": "top_k"}, even)
    contenders[_SHARED] = _step(shared, lambda: shared(x), x)
    return Comparison(
        f"hard, E={experts}, B=4,096, {'evenly' if even else 'unevenly'} routed",
        contenders,
        [Reach(times, (_SHARED,))],
        seconds=4.0,
        why=_EVERY_WEIGHT if even else _UNEVEN,
    )


def _growth() -> Figure:
    """How the time of hard routing grows with E."""
    numbers = (4, 16, 64, 256)
    calls = {str(experts): _sparse_steps(experts, {"": "hard"})[""] for experts in numbers}
    medians = [spread(taken)[0] for taken in interleave(calls, 4.0).values()]
    exponent = float(np.polyfit(np.log(numbers), np.log(medians), 1)[0])
    how = "slope of log time over log E, E = 4 to 256, B=4,096; 1 would be proportional"
    return Figure("hard routing, growth with E", exponent, "as exponent", at_most=0.5, how=how)


def _parameters(experts: int) -> Comparison:
    x, ids = _rows(4096, 32)
    moe = MixtureOfExperts(128, 1, experts, (64, 32), cardinalities={"location": 32}, mix="parameters")
    shared = mlp(128, 64, 32, 1)
    contenders = {
        "reghead": _step(moe, lambda: moe(x, {"location": ids}), x),
        _SHARED: _step(shared, lambda: shared(x), x),
    }
    return Comparison(
        f"mixed parameters, 32 categories, E={experts}, B=4,096",
        contenders,
        [Reach(3.0, (_SHARED,))],
        seconds=3.0,
        why=_MIXING if experts == 256 else _SMALL_PRODUCTS,
    )


def measure() -> Iterator[Comparison | Figure]:
    torch.manual_seed(0)
    for experts in (4, 16, 64, 256):
        for rows in (32, 512, 4096, 8192):
            yield _soft(experts, rows)
    for even, (experts, times) in itertools.product((True, False), ((16, 2.0), (64, 2.7), (256, 3.3))):
        yield _sparse(experts, times, even)
    yield _growth()
    for experts in (4, 16, 64, 256):
        yield _parameters(experts)


if __name__ == "__main__":
    main("moe", TITLE, measure)
