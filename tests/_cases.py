"""One entry, or several, for every public module: how to build it, what to give it, what comes out.

The sweeps in ``tests/contracts`` run the same checks on all of them. A check that cannot apply to a case stands in its
``skip``, with the reason.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from reghead import calibration, losses, normalization
from reghead import nn as rnn
from reghead.heads import RegressionHead

F, D, C = 3, 2, 5
LEVELS = (0.1, 0.5, 0.9)
SIZES = {"location": 4, "season": 3}
DRAWS = torch.float64  # drawn wide, then cast: one seed gives the same numbers in every dtype

Inputs = tuple[Any, ...]


@dataclass(frozen=True)
class Case:
    name: str
    build: Callable[..., nn.Module]
    """Takes ``device`` and ``dtype`` if ``factory``."""
    inputs: Callable[[int, torch.Generator, torch.dtype], Inputs]
    """Positional arguments for a batch of that size."""
    shape: Callable[[int], tuple[int, ...]]
    factory: bool = True
    sizes: tuple[str, ...] = ()
    """What the repr must say."""
    skip: Mapping[str, str] = field(default_factory=dict)

    @property
    def kind(self) -> type[nn.Module]:
        return type(self.build())

    def module(self, dtype: torch.dtype | None = None, *, seed: int = 0) -> nn.Module:
        """The module away from its start, which is the identity for many and would hide faults; in eval mode."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            module = self.build()
        rng = torch.Generator().manual_seed(seed + 1)
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=rng))
        return module.eval() if dtype is None else module.eval().to(dtype)

    def batch(self, rows: int, dtype: torch.dtype = torch.float32, *, seed: int = 2) -> Inputs:
        return self.inputs(rows, torch.Generator().manual_seed(seed), dtype)


def draw(rng: torch.Generator, dtype: torch.dtype, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=rng, dtype=DRAWS).to(dtype)


def ids(rng: torch.Generator, rows: int) -> dict[str, Tensor]:
    return {column: torch.randint(0, n, (rows,), generator=rng) for column, n in SIZES.items()}


def features(rows: int, rng: torch.Generator, dtype: torch.dtype) -> Inputs:
    return (draw(rng, dtype, rows, F),)


def with_ids(rows: int, rng: torch.Generator, dtype: torch.dtype) -> Inputs:
    return draw(rng, dtype, rows, F), ids(rng, rows)


def with_context(rows: int, rng: torch.Generator, dtype: torch.dtype) -> Inputs:
    return draw(rng, dtype, rows, F), draw(rng, dtype, rows, C)


def outputs_with_ids(rows: int, rng: torch.Generator, dtype: torch.dtype) -> Inputs:
    return draw(rng, dtype, rows, D), ids(rng, rows)


def outputs(rows: int, rng: torch.Generator, dtype: torch.dtype) -> Inputs:
    return (draw(rng, dtype, rows, D),)


def quantile_outputs(rows: int, rng: torch.Generator, dtype: torch.dtype) -> Inputs:
    return (draw(rng, dtype, rows, D, len(LEVELS)),)


def quantile_outputs_with_ids(rows: int, rng: torch.Generator, dtype: torch.dtype) -> Inputs:
    return draw(rng, dtype, rows, D, len(LEVELS)), ids(rng, rows)


def only_ids(rows: int, rng: torch.Generator, dtype: torch.dtype) -> Inputs:
    return (ids(rng, rows),)


def points(rows: int, rng: torch.Generator, dtype: torch.dtype) -> Inputs:
    return draw(rng, dtype, rows, D), draw(rng, dtype, rows, D)


def levels(number: int) -> Callable[[int, torch.Generator, torch.dtype], Inputs]:
    def inputs(rows: int, rng: torch.Generator, dtype: torch.dtype) -> Inputs:
        return draw(rng, dtype, rows, D, number).sort(-1).values, draw(rng, dtype, rows, D)

    return inputs


def means_and_scales(rows: int, rng: torch.Generator, dtype: torch.dtype) -> Inputs:
    return *points(rows, rng, dtype), draw(rng, dtype, rows, D).abs() + 0.5


def to(*trailing: int) -> Callable[[int], tuple[int, ...]]:
    return lambda rows: (rows, *trailing)


def scalar(rows: int) -> tuple[int, ...]:
    return ()


def layer(name: str, kind: type[nn.Module], arguments: tuple[Any, ...], inputs: Any, shape: Any, **rest: Any) -> Case:
    own = {key: rest.pop(key) for key in ("factory", "sizes", "skip") if key in rest}
    return Case(name, lambda **factory: kind(*arguments, **rest, **factory), inputs, shape, **own)


def loss(name: str, build: Callable[[], nn.Module], inputs: Any, *sizes: str) -> Case:
    return Case(name, build, inputs, scalar, factory=False, sizes=(*sizes, "nan_policy='propagate'"))


def head(name: str, inputs: Any = features, shape: Any = None, *, skip: Any = None, **options: Any) -> Case:
    if inputs is with_ids:
        options["cardinalities"] = SIZES
    if shape is None:
        shape = to(D, len(LEVELS)) if "quantiles" in options else to(D)
    return Case(
        f"RegressionHead-{name}",
        lambda **factory: RegressionHead(F, D, **options, **factory),
        inputs,
        shape,
        sizes=(f"in_features={F}", f"out_features={D}"),
        skip=skip or {},
    )


def fitted_normalizer(**options: Any) -> nn.Module:
    rng = torch.Generator().manual_seed(7)
    cells = torch.cartesian_prod(*(torch.arange(n) for n in SIZES.values())).repeat(3, 1)
    categories = {column: cells[:, i].contiguous() for i, column in enumerate(SIZES)}
    return normalization.CategoryNormalizer(SIZES, **options).fit(
        torch.randn(len(cells), D, generator=rng, dtype=DRAWS) * 3 + 100, categories
    )


HARD = {"gradcheck": "the gradient of the hard gate is that of a surrogate: the choice itself has none"}
MIXTURE = {"num_experts": 3, "routing": ["location"], "load_balancing_weight": 0.1}
EVERYTHING: dict[str, Any] = {
    "hidden_dims": (4, 3),
    "residual": True,
    "norm": "layer",
    "activation": "silu",
    "embedding_dim": 2,
    "fusion": "concat",
    "film": ["season"],
    "moe": {**MIXTURE, "route_features": True},
    "scaler": ["location"],
    "wide": ["location", "season"],
    "quantiles": LEVELS,
    "output_activation": "softplus",
    "unknown_dropout": 0.2,
    "dropout": 0.2,
}

LAYERS = [
    layer("MLP", rnn.MLP, (F, D, (4,)), features, to(D), sizes=("in_features=3", "out_features=2")),
    layer(
        "MLP-residual-film",
        rnn.MLP,
        (F, D, (4, 3)),
        with_context,
        to(D),
        residual=True,
        norm="rms",
        context_features=C,
        activation="tanh",
        sizes=(f"context_features={C}",),
    ),
    layer(
        "MLP-ensemble",
        rnn.MLP,
        (F, D, (4, 3)),
        with_context,
        to(3, D),
        ensemble=3,
        residual=True,
        norm="layer",
        context_features=C,
        sizes=("members=3",),
    ),
    layer("CategoryEmbedding", rnn.CategoryEmbedding, (SIZES, 2), only_ids, to(4), sizes=("'location': 4", "_dim=2")),
    layer("ConditionalScaler", rnn.ConditionalScaler, (SIZES, D), outputs_with_ids, to(D), sizes=("'season': 3", "=2")),
    layer(
        "ConditionalScaler-large",  # too many combinations for one joint table
        rnn.ConditionalScaler,
        ({"location": 400, "season": 300}, D),
        outputs_with_ids,
        to(D),
        compose="additive",
        sizes=("'location': 400", "additive"),
    ),
    layer(
        "ConditionalScaler-cells",
        rnn.ConditionalScaler,
        (SIZES, D),
        quantile_outputs_with_ids,
        to(D, len(LEVELS)),
        cells=True,
        positive=True,
        output_dim=-2,
        sizes=("cells=True", "positive=True"),
    ),
    layer("FiLM", rnn.FiLM, (C, F), with_context, to(F), sizes=("context_features=5", "num_features=3")),
    layer("FiLMLayer", rnn.FiLMLayer, (F, D, SIZES), with_ids, to(D), embedding_dim=2, sizes=("'location': 4",)),
    layer("LearnableScale", rnn.LearnableScale, (D,), outputs, to(D), sizes=("out_features=2",)),
    *(
        layer(
            f"MixtureOfExperts-{gate}",
            rnn.MixtureOfExperts,
            (F, D, 3, (4,)),
            with_ids,
            to(D),
            cardinalities=SIZES,
            embedding_dim=2,
            gate=gate,
            residual=True,
            route_features=gate == "top_k",
            sizes=("num_experts=3", f"gate='{gate}'"),
            skip=HARD if gate == "hard" else {},
        )
        for gate in ("soft", "top_k", "hard")
    ),
    layer(
        "MixtureOfExperts-parameters",
        rnn.MixtureOfExperts,
        (F, D, 3, (4, 3)),
        with_ids,
        to(D),
        cardinalities=SIZES,
        embedding_dim=2,
        mix="parameters",
        norm="layer",
        sizes=("mix='parameters'",),
    ),
    *(
        layer(f"OutputActivation-{name}", rnn.OutputActivation, (name,), outputs, to(D), factory=False, sizes=(name,))
        for name in ("relu", "softplus", "exp", "bounded")
    ),
    *(
        layer(
            f"QuantileOutput-{'ordered' if ordered else 'free'}",
            rnn.QuantileOutput,
            (LEVELS, ordered),
            quantile_outputs,
            to(D, len(LEVELS)),
            factory=False,
            sizes=("0.1", f"non_crossing={ordered}"),
        )
        for ordered in (True, False)
    ),
]

LOSSES = [
    loss("MSELoss", losses.MSELoss, points),
    loss("MAELoss", losses.MAELoss, points),
    loss("HuberLoss", lambda: losses.HuberLoss(0.7), points, "delta=0.7"),
    loss("LogCoshLoss", losses.LogCoshLoss, points),
    loss("AsymmetricLoss", lambda: losses.AsymmetricLoss(2.0), points, "over_penalty=2.0"),
    loss("ExpectileLoss", lambda: losses.ExpectileLoss(0.75), points, "expectile=0.75"),
    loss("PinballLoss", lambda: losses.PinballLoss(LEVELS), levels(3), "0.1, 0.5, 0.9"),
    loss("HuberPinballLoss", lambda: losses.HuberPinballLoss(LEVELS, 0.3), levels(3), "delta=0.3"),
    loss("CRPSLoss", lambda: losses.CRPSLoss(LEVELS), levels(3), "0.1, 0.5, 0.9"),
    loss("IntervalScoreLoss", lambda: losses.IntervalScoreLoss(0.8), levels(2), "confidence_level=0.8"),
    loss("GaussianNLLLoss", losses.GaussianNLLLoss, means_and_scales),
    Case(
        "PerOutputLoss",
        lambda **factory: losses.PerOutputLoss(
            {"pH": "mse", "yield": "quantile"}, outputs=["pH", "yield"], uncertainty=True, **factory
        ),
        levels(3),
        scalar,
        sizes=("'pH': 'mse'", "uncertainty=True"),
    ),
]

HEADS = [
    head("plain"),
    head("mlp", hidden_dims=(4, 3), dropout=0.3, bounds=(-1.0, 4.0)),
    head("everything", with_ids, **EVERYTHING),
    head("fusion-add", with_ids, fusion="add", film=["location"], hidden_dims=(4,), embedding_dim=2),
    head("learnable-scale", output_activation="exp", learnable_scale=True),
    head("quantile", quantiles=LEVELS, hidden_dims=(4,)),
    head("quantile-free", quantiles=LEVELS, non_crossing=False),
    head(
        "ensemble",
        with_ids,
        **{**EVERYTHING, "moe": None, "output_activation": None},
        ensemble=3,
        bounds=(-1.0, 4.0),
        partial_pooling=1.0,
    ),
    head("moe-parameters", with_ids, moe={**MIXTURE, "mix": "parameters"}, hidden_dims=(4,), film=["season"]),
    head("moe-soft", with_ids, moe=MIXTURE, hidden_dims=(4,), embedding_dim=2),
    head("moe-top-k", with_ids, moe={**MIXTURE, "gate": "top_k"}, hidden_dims=(4,), embedding_dim=2),
    head("moe-hard", with_ids, moe={**MIXTURE, "gate": "hard"}, hidden_dims=(4,), embedding_dim=2, skip=HARD),
]

NORMALIZERS = [
    Case(
        f"CategoryNormalizer-{name}",
        lambda options=options: fitted_normalizer(**options),
        outputs_with_ids,
        to(D),
        factory=False,
        sizes=("'location': 4", "6 cells"),
    )
    for name, options in {
        "plain": {},
        "additive": {"fallback": "additive", "shrinkage": "empirical_bayes"},
    }.items()
]


def fitted_mixed_effects(**options: Any) -> nn.Module:
    rng = torch.Generator().manual_seed(7)
    cells = torch.cartesian_prod(*(torch.arange(n) for n in SIZES.values())).repeat(3, 1)
    categories = {column: cells[:, i].contiguous() for i, column in enumerate(SIZES)}
    target = 100 + 3 * draw(rng, DRAWS, len(cells), D)
    return normalization.MixedEffects(SIZES, **options).fit(target, categories)


NORMALIZERS.append(
    Case(
        "MixedEffects",
        fitted_mixed_effects,
        outputs_with_ids,
        to(D),
        factory=False,
        sizes=("'location': 4", "6 cells"),
    )
)


def calibrated(kind: str) -> nn.Module:
    rng = torch.Generator().manual_seed(8)
    rows = 300
    target, quantiles = draw(rng, DRAWS, rows, D), draw(rng, DRAWS, rows, D, len(LEVELS)).sort(-1).values
    categories = {column: torch.randint(1, n, (rows,), generator=rng) for column, n in SIZES.items()}
    points = quantiles[..., 1]
    if kind == "split":
        return calibration.SplitConformal([0.5, 0.8], groups=SIZES).conformalize(points, target, categories)
    if kind == "quantiles":
        module = calibration.ConformalizedQuantiles(LEVELS, asymmetric=True, groups=SIZES)
        return module.conformalize(quantiles, target, categories)
    cross = calibration.CrossConformal(SIZES, 0.8).conformalize(points, target, categories, left_out="rows")
    return cross.conformalize(2 * points, target, categories, left_out="environments")


CALIBRATIONS = [
    Case(
        name, lambda kind=kind: calibrated(kind), inputs, shape, factory=False, sizes=("'location': 4", "6 categories")
    )
    for name, kind, inputs, shape in (
        ("SplitConformal", "split", outputs_with_ids, to(D, 4)),
        ("ConformalizedQuantiles", "quantiles", quantile_outputs_with_ids, to(D, 2)),
        ("CrossConformal", "cross", outputs_with_ids, to(D, 2)),
    )
]

CASES = [*LAYERS, *LOSSES, *HEADS, *NORMALIZERS, *CALIBRATIONS]
