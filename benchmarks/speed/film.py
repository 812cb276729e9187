"""An MLP head whose hidden layers categories modulate, against the head without."""

import itertools
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from benchmarks.speed._layers import compiles, forward_backward, mlp
from benchmarks.speed._measure import Comparison, Reach
from benchmarks.speed._subject import main
from reghead import RegressionHead

TITLE = "FiLM"
_CARDINALITIES = {"location": 8, "season": 4}
_BY_ROW = "factors projected row by row"
_WIDTHS = (128, 64, 32, 1)


class _PerSample(nn.Module):
    """As is often written: embed each row, then project each row to its factors and shifts."""

    def __init__(self) -> None:
        super().__init__()
        self.embeddings = nn.ModuleList(nn.Embedding(n, 16) for n in _CARDINALITIES.values())
        self.linears = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(_WIDTHS))
        self.gammas = nn.ModuleList(nn.Linear(32, width) for width in _WIDTHS[1:-1])
        self.betas = nn.ModuleList(nn.Linear(32, width) for width in _WIDTHS[1:-1])

    def forward(self, x: Tensor, *ids: Tensor) -> Tensor:
        context = torch.cat([table(i) for table, i in zip(self.embeddings, ids, strict=True)], dim=-1)
        for linear, gamma, beta in zip(self.linears, self.gammas, self.betas, strict=False):
            x = torch.relu(gamma(context) * linear(x) + beta(context))
        return self.linears[-1](x)


class _PerCell(nn.Module):
    """Free factors and shifts of every cell, in an ``nn.Embedding`` a layer."""

    def __init__(self) -> None:
        super().__init__()
        self.linears = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(_WIDTHS))
        self.tables = nn.ModuleList(nn.Embedding(32, 2 * width) for width in _WIDTHS[1:-1])

    def forward(self, x: Tensor, location: Tensor, season: Tensor) -> Tensor:
        cell = location * _CARDINALITIES["season"] + season
        for linear, table in zip(self.linears, self.tables, strict=False):
            gamma, beta = table(cell).chunk(2, dim=-1)
            x = torch.relu(gamma * linear(x) + beta)
        return self.linears[-1](x)


def measure() -> Iterator[Comparison]:
    torch.manual_seed(0)
    x = torch.randn(65_536, 128, requires_grad=True)  # the features of a backbone, which learns too
    categories = {column: torch.randint(n, (len(x),)) for column, n in _CARDINALITIES.items()}
    ids = tuple(categories.values())
    head = RegressionHead(128, 1, (64, 32), cardinalities=_CARDINALITIES, film=tuple(_CARDINALITIES))
    plain, per_sample, per_cell = mlp(*_WIDTHS), _PerSample(), _PerCell()
    case = "128 -> 64 -> 32 -> 1, B=65,536, 32 cells of two columns"
    yield Comparison(
        case,
        {
            "reghead": forward_backward(lambda: head(x, categories), [x, *head.parameters()]),
            "the MLP without FiLM": forward_backward(lambda: plain(x), [x, *plain.parameters()]),
            _BY_ROW: forward_backward(lambda: per_sample(x, *ids), [x, *per_sample.parameters()]),
            "nn.Embedding of factors": forward_backward(lambda: per_cell(x, *ids), [x, *per_cell.parameters()]),
        },
        [Reach(1.4, ("the MLP without FiLM",))],
        seconds=20.0,
        memory=("reghead", "the MLP without FiLM", _BY_ROW, "nn.Embedding of factors"),
    )
    if compiles():
        fast_head, fast_plain = torch.compile(head, fullgraph=True), torch.compile(plain, fullgraph=True)
        yield Comparison(
            f"{case}, compiled",
            {
                "reghead": forward_backward(lambda: fast_head(x, categories), [x, *head.parameters()]),
                "the MLP without FiLM": forward_backward(lambda: fast_plain(x), [x, *plain.parameters()]),
            },
            [Reach(1.15, ("the MLP without FiLM",))],
            seconds=12.0,
            why=(
                "The compiler sums the gradients of a table by one atomic addition for each number of each row, and"
                " threads wait for each other."
            ),
        )


if __name__ == "__main__":
    main("film", TITLE, measure)
