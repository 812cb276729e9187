"""A mixture of experts, and what its router found: twelve stations of three kinds that nobody named.

Each station answers to the features by one of three functions; the table says which station a row is of, and not of
which kind the station is. The router sees the station, the experts see the features. With a load-balancing loss all
experts are used, and stations of one kind end with one expert. Run ``python examples/mixture_of_experts.py``.
"""

import torch

from reghead import RegressionHead
from reghead.functional import expert_utilization
from reghead.losses import MSELoss
from reghead.metrics import rmse

STATIONS, ROWS = 12, 40
HEADS = {
    "one MLP": {},
    "concat": {"fusion": "concat"},
    "4 experts": {"moe": {"num_experts": 4, "routing": ["station"], "load_balancing_weight": 0.01}},
}


def make(rows: int, generator: torch.Generator) -> tuple[torch.Tensor, dict[str, torch.Tensor], torch.Tensor]:
    """Features (B, 2), stations, and targets (B, 1) with noise of 0.1."""
    station = torch.arange(1, STATIONS + 1).repeat_interleave(rows)
    x = torch.rand(len(station), 2, generator=generator) * 4 - 2
    kinds = torch.stack([torch.sin(2 * x[:, 0]) + x[:, 1], x[:, 0] * x[:, 1], x[:, 0].abs() - 1.5 * x[:, 1]], dim=1)
    y = kinds.gather(1, ((station - 1) % 3).unsqueeze(-1))
    return x, {"station": station}, y + 0.1 * torch.randn(y.shape, generator=generator)


def main() -> None:
    """Train three heads on 40 rows of each station, and print where the experts went."""
    generator = torch.Generator().manual_seed(0)
    x, ids, y = make(ROWS, generator)
    new_x, new_ids, new_y = make(200, generator)
    print(f"{'head':12} {'RMSE':>6}   (noise: 0.10)")
    for name, options in HEADS.items():
        torch.manual_seed(0)
        head = RegressionHead(2, 1, (32, 32), cardinalities={"station": STATIONS + 1}, embedding_dim=8, **options)
        optimizer = torch.optim.AdamW(head.param_groups(lr=1e-2, categorical_lr=2e-2, weight_decay=1e-3))
        for _ in range(300):
            optimizer.zero_grad()
            preds, aux = head(x, ids, return_aux=True)
            (MSELoss()(preds, y) + sum(aux.losses.values())).backward()
            optimizer.step()
        head.eval()
        with torch.no_grad():
            preds, aux = head(new_x, new_ids, return_aux=True)
        print(f"{name:12} {rmse(preds, new_y):6.2f}")

    weights = aux.routing.routing_weights  # (B, E)
    print(f"\nload-balancing loss {aux.routing.load_balancing_loss:.2f} (1: all alike, 4: one expert does it all)")
    print("share of all rows:    " + "".join(f"{share:8.0%}" for share in expert_utilization(weights)))
    print("\nrouting weights       " + "".join(f"{f'expert {e}':>9}" for e in range(weights.shape[1])))
    for kind in range(3):
        for station in range(kind + 1, STATIONS + 1, 3):
            row = weights[new_ids["station"] == station][0]
            print(f"kind {kind}, station {station:2}    " + "".join(f"{w:9.2f}" for w in row))


if __name__ == "__main__":
    main()
