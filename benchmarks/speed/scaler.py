"""A scale and a bias per category, against one fused multiply-add with the factors given."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from benchmarks.speed._layers import forward_backward
from benchmarks.speed._measure import Comparison, Reach
from benchmarks.speed._subject import main
from reghead import ConditionalScaler

TITLE = "Conditional scaling"
_CARDINALITIES = {"location": 8, "season": 4}
_LIMIT = "limit: addcmul, factors given"
_WHY = {
    1: "One number a row is so little that checking the ids, joining two columns into one id and composing their"
    " tables, some forty operations each way, cost more than the rows do.",
    16: "The gradients of the tables are sums over the rows of each combination, which the limit does not take.",
}


class _OneAfterTheOther(nn.Module):
    """As AAM has it: look up a scale and a bias of each column, and apply them in turn."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.scales = nn.ModuleList(nn.Embedding(n, outputs) for n in _CARDINALITIES.values())
        self.biases = nn.ModuleList(nn.Embedding(n, outputs) for n in _CARDINALITIES.values())
        for table in self.scales:
            nn.init.ones_(table.weight)
        for table in self.biases:
            nn.init.zeros_(table.weight)

    def forward(self, x: Tensor, *columns: Tensor) -> Tensor:
        for scale, bias, ids in zip(self.scales, self.biases, columns, strict=True):
            x = x * scale(ids) + bias(ids)
        return x


def measure() -> Iterator[Comparison]:
    rows = 65_536
    torch.manual_seed(0)
    categories = {column: torch.randint(n, (rows,)) for column, n in _CARDINALITIES.items()}
    ids = tuple(categories.values())
    for outputs, times, aam in ((1, 5.0, 0.2), (16, 2.0, None)):
        x, scale, shift = (torch.randn(rows, outputs, requires_grad=True) for _ in range(3))
        ours, peer = ConditionalScaler(_CARDINALITIES, outputs), _OneAfterTheOther(outputs)
        contenders = {
            "reghead": forward_backward(lambda m=ours, x=x: m(x, categories), [x, *ours.parameters()]),
            _LIMIT: forward_backward(lambda s=shift, f=scale, x=x: torch.addcmul(s, f, x), [x, scale, shift]),
            "AAM": forward_backward(lambda m=peer, x=x: m(x, *ids), [x, *peer.parameters()]),
        }
        yield Comparison(
            f"two columns, B=65,536, D={outputs}",
            contenders,
            [Reach(times, (_LIMIT,))] + ([] if aam is None else [Reach(aam, ("AAM",))]),
            seconds=8.0,
            why=_WHY[outputs],
            memory=tuple(contenders),
        )


if __name__ == "__main__":
    main("scaler", TITLE, measure)
