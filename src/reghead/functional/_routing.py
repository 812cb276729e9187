"""Routing of rows to experts, and how evenly it is done."""

import torch
from torch import Tensor

from reghead._checks import check_choice, check_int, check_number
from reghead._typing import Gate


def routing_weights(logits: Tensor, gate: Gate = "soft", *, top_k: int = 2, temperature: float = 1.0) -> Tensor:
    r"""Weights of the experts, from the router's logits.

    .. math:: p = \mathrm{softmax}(\text{logits} / T)

    ``"soft"`` returns :math:`p`. ``"top_k"`` keeps the k largest and divides them by their sum; at k = 1 they are
    not divided, since a weight that is always 1 would leave the router without a gradient (Fedus et al., "Switch
    Transformers", 2021, eq. 2). ``"hard"`` gives weight 1 to the largest, with the gradient of its :math:`\log p`.

    Args:
        logits: Shape ``(*, E)``.
        gate: ``"soft"``, ``"top_k"`` or ``"hard"``.
        top_k: Number of experts kept by ``"top_k"``.
        temperature: T, positive; towards 0 the weights become one-hot.

    Returns:
        Weights in float32 or wider, non-negative. Shape ``(*, E)``.

    Example:
        >>> logits = torch.tensor([[0.0, 0.0, -torch.inf]])
        >>> routing_weights(logits)
        tensor([[0.5000, 0.5000, 0.0000]])
        >>> routing_weights(torch.tensor([[1.0, 2.0]]), "hard")
        tensor([[0., 1.]])
    """
    check_gate(gate, top_k, logits.shape[-1])
    check_number("temperature", temperature, above=0.0)
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    if temperature != 1.0:
        # Largest logit 0: whatever the temperature, nothing overflows to inf - inf.
        wide = (wide - wide.detach().amax(-1, keepdim=True)) / temperature
    probabilities = torch.softmax(wide, dim=-1)
    if gate == "soft":
        return probabilities
    if gate == "hard":
        # scatter, and not one_hot, which looks at its values and so has no vmap.
        largest, index = probabilities.max(-1, keepdim=True)
        return torch.zeros_like(probabilities).scatter(-1, index, largest / largest.detach())
    values, index = probabilities.topk(top_k, dim=-1)
    if top_k > 1:
        values = values / values.sum(-1, keepdim=True)
    return torch.zeros_like(probabilities).scatter(-1, index, values)


def check_gate(gate: str, top_k: int, experts: int) -> None:
    """Raise unless ``gate`` is known, and keeps no more experts than there are."""
    check_choice("gate", gate, ("soft", "top_k", "hard"))
    if gate == "top_k" and check_int("top_k", top_k) > experts:
        raise ValueError(f"top_k must be at most the number of experts, {experts}, got {top_k}")


def load_balancing_loss(logits: Tensor, gate: Gate = "soft", *, top_k: int = 2, temperature: float = 1.0) -> Tensor:
    r"""Load-balancing loss of the Switch Transformer: 1 when experts are used evenly, E / k when k of them do it all.

    .. math:: L = E \sum_e f_e P_e, \qquad f_e = \frac{1}{N}\sum_n d_{ne}, \qquad P_e = \frac{1}{N}\sum_n p_{ne}

    :math:`p` is the softmax of the logits, :math:`d` the share of the row that goes to the expert: :math:`p` itself
    under soft routing and at k = E, :math:`1/k` for each of the k experts that are chosen otherwise. The gradient goes
    through :math:`P` alone. Fedus et al., "Switch Transformers", 2021, eq. 4 to 6; divided by k, so that it is 1 at
    uniform routing for any k.

    Rows split evenly over the experts and rows that each use one expert score alike; the entropy of
    :func:`routing_entropy` tells them apart.

    Args:
        logits: The router's logits. Shape ``(*, E)``.
        gate: As in :func:`routing_weights`.
        top_k: As in :func:`routing_weights`.
        temperature: As in :func:`routing_weights`.

    Returns:
        A scalar; 0 for an empty batch.

    Example:
        >>> load_balancing_loss(torch.zeros(4, 2))
        tensor(1.)
        >>> load_balancing_loss(torch.tensor([[100.0, 0.0]]))
        tensor(2.)
    """
    check_gate(gate, top_k, logits.shape[-1])
    probabilities = routing_weights(logits.reshape(-1, logits.shape[-1]), temperature=temperature)
    rows = max(probabilities.shape[0], 1)  # not len, which makes a constant of it in an export
    dispatch = dispatch_of(probabilities, gate, top_k)
    balance: Tensor = (dispatch.sum(0) / rows * (probabilities.sum(0) / rows)).sum()
    return balance * probabilities.shape[-1]


def dispatch_of(probabilities: Tensor, gate: Gate, top_k: int) -> Tensor:
    """The share of each row that goes to each expert, without gradient: shape ``(*, E)``."""
    experts = probabilities.shape[-1]
    # NOTE[DIFF] with k = E the paper's share is 1/E whatever the router does; we take the softmax, as when soft.
    if gate == "soft" or (gate == "top_k" and top_k == experts):
        return probabilities.detach()
    k = top_k if gate == "top_k" else 1
    return torch.zeros_like(probabilities).scatter(-1, probabilities.detach().topk(k, dim=-1).indices, 1.0 / k)


def routing_entropy(weights: Tensor) -> Tensor:
    r"""Mean entropy of the rows' routing weights, in nats: 0 when each row uses one expert, log E when all evenly.

    .. math:: H = -\frac{1}{N} \sum_n \sum_e w_{ne} \log w_{ne}

    Args:
        weights: Shape ``(*, E)``.

    Example:
        >>> routing_entropy(torch.tensor([[1.0, 0.0]]))
        tensor(0.)
    """
    rows = max(weights[..., 0].numel(), 1)
    # The logarithm stays finite at a weight of 0, or its gradient would be NaN there.
    total: Tensor = torch.special.xlogy(weights, weights.clamp_min(torch.finfo(weights.dtype).tiny)).sum()
    # + 0.0 turns the -0.0 of one-hot rows into 0.0.
    return -total / rows + 0.0


def expert_utilization(weights: Tensor, ids: Tensor | None = None, cardinality: int | None = None) -> Tensor:
    r"""Mean routing weight of each expert, over all rows or per category.

    .. math:: u_e = \frac{1}{N} \sum_n w_{ne}

    Args:
        weights: Routing weights. Shape ``(*, E)``.
        ids: Category of each row; gives one row of the result per category. Shape ``(*,)``.
        cardinality: Number of ids, id 0 included; needed with ``ids``.

    Returns:
        Shape ``(E,)``, or ``(K, E)`` with ``ids``; NaN for a category without rows.

    Example:
        >>> weights = torch.tensor([[1.0, 0.0], [0.5, 0.5], [0.0, 1.0]])
        >>> expert_utilization(weights)
        tensor([0.5000, 0.5000])
        >>> expert_utilization(weights, torch.tensor([1, 1, 2]), 3)
        tensor([[   nan,    nan],
                [0.7500, 0.2500],
                [0.0000, 1.0000]])
    """
    flat = weights.reshape(-1, weights.shape[-1])
    if ids is None:
        return flat.mean(0)
    # Sums row by row stop growing at 256 rows in bfloat16, and at 16,777,216 in float32; MPS has nothing wider.
    result = torch.promote_types(flat.dtype, torch.float32)
    flat = flat.to(result if flat.device.type == "mps" else torch.float64)
    if cardinality is None:
        raise ValueError("cardinality must be given with ids: the number of ids, id 0 included")
    if ids.shape != weights.shape[:-1]:
        raise ValueError(
            f"ids must have shape {tuple(weights.shape[:-1])}, one per row of weights, got {tuple(ids.shape)}"
        )
    ids = ids.reshape(-1)
    total = torch.zeros(cardinality, flat.shape[-1], dtype=flat.dtype, device=flat.device).index_add(0, ids, flat)
    rows = torch.zeros(cardinality, dtype=flat.dtype, device=flat.device).index_add(0, ids, torch.ones_like(flat[:, 0]))
    return (total / rows.unsqueeze(-1)).to(result)
