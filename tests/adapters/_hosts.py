"""The two hosts that the adapter is tested on: the real AAM where it is installed, and a stand-in everywhere."""

import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

EXAMPLES = Path(__file__).parents[2] / "examples"
HAS_AAM = importlib.util.find_spec("aam") is not None
# What AAM and TensorBoard warn of by themselves is not ours to mend.
QUIET = [
    pytest.mark.filterwarnings("ignore:enable_nested_tensor:UserWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning"),
    pytest.mark.filterwarnings("ignore:Unable to import:UserWarning"),
]
NEEDS_AAM = [pytest.mark.aam, pytest.mark.skipif(not HAS_AAM, reason="AAM is not installed"), *QUIET]
HOSTS = ["stand-in", pytest.param("aam", marks=NEEDS_AAM)]
CARDINALITIES = {"location": 4, "season": 3}
#: A configuration with all parts of a head.
EVERYTHING = {
    "hidden_dims": (8,),
    "film": ("location",),
    "scaler": ("season", "location"),
    "wide": ("season",),
    "moe": {"num_experts": 3, "routing": ("season",), "load_balancing_weight": 0.1},
    "quantiles": (0.1, 0.5, 0.9),
}
SIZES = dict.fromkeys([f"{part}_num_layers" for part in ("asv", "sample", "encoder", "count", "target")], 1) | (
    dict.fromkeys([f"{part}_num_heads" for part in ("asv", "sample", "encoder", "count", "target")], 2)
)


@dataclass(frozen=True)
class Host:
    """The classes of one host."""

    SequencePredictor: Any
    MultiTaskLoss: Any
    Trainer: Any
    create_optimizer: Any
    name: str

    def predictor(self, *, seed: int = 0, **options: Any) -> Any:
        """A small model with the same weights for the same options."""
        torch.manual_seed(seed)
        return self.SequencePredictor(**{"embedding_dim": 16, "max_bp": 8, "token_limit": 6, **SIZES, **options})

    def loss(self, spec: Any = "huber", **options: Any) -> Any:
        """The adapter's loss on this host's own."""
        from reghead.adapters.aam import loss

        return loss(spec, base=self.MultiTaskLoss, **{"nuc_penalty": 0.0, **options})


def example(name: str) -> Any:
    """A module of the examples."""
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
    return sys.modules[name]


def host_named(name: str) -> Host:
    """The host of that name."""
    if name == "aam":
        from aam.models.sequence_predictor import SequencePredictor
        from aam.training.losses import MultiTaskLoss
        from aam.training.trainer import Trainer, create_optimizer

        return Host(SequencePredictor, MultiTaskLoss, Trainer, create_optimizer, name)
    model, training = example("_sequence_predictor"), example("_sequence_trainer")
    return Host(model.SequencePredictor, model.MultiTaskLoss, training.Trainer, training.create_optimizer, name)


def tokens(rows: int = 5, seed: int = 0) -> Tensor:
    """Tokens of a few sequences a sample, the last of which is padding."""
    drawn = torch.randint(1, 5, (rows, 4, 9), generator=torch.Generator().manual_seed(seed))
    drawn[:, :, 0] = 5
    drawn[:, -1] = 0
    return drawn


def ids(rows: int = 5) -> dict[str, Tensor]:
    """Ids of both columns, with unknown ones."""
    return {"location": torch.arange(rows) % 4, "season": torch.arange(rows) % 3}


def predict(model: nn.Module, given: Any = None, rows: int = 5) -> Tensor:
    """Target predictions in eval mode."""
    with torch.no_grad():
        out: Tensor = model.eval()(tokens(rows), categorical_ids=given)["target_prediction"]
    return out


@contextmanager
def shaken(model: nn.Module, seed: int = 0) -> Iterator[None]:
    """Move every parameter a little, so that nothing is at its start, where much is the identity."""
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=rng))
    yield


def with_categories(host: Host, **options: Any) -> Any:
    return host.predictor(categorical_cardinalities=CARDINALITIES, **options)
