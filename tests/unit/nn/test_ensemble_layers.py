"""Members of an ensemble: what they share, what is their own, and where they start."""

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from reghead.nn import MLP

K = 4


def draw(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def filled(**options: object) -> MLP:
    mlp = MLP(5, 2, (4, 3), ensemble=K, dtype=torch.float64, **options)  # type: ignore[arg-type]
    for i, parameter in enumerate(mlp.parameters()):
        parameter.data = 0.7 * draw(i, *parameter.shape)
    return mlp


def test_members_are_networks_with_scaled_shared_weights() -> None:
    """Wen et al., 2020, eq. 3, one member after another in NumPy: scale the input, multiply, scale the output."""
    mlp, x = filled(residual=True), draw(9, 6, 5)
    state = {name: value.numpy() for name, value in mlp.state_dict().items()}
    out = mlp(x).detach().numpy()
    assert out.shape == (6, K, 2)
    for m in range(K):
        h = x.numpy()
        for layer in ("layers.0.linear", "layers.1.linear"):
            r, s, b = (state[f"{layer}.{name}"][m] for name in ("input_scale", "output_scale", "bias"))
            h = np.maximum((h * r) @ state[f"{layer}.weight"].T * s + b, 0.0)
        h = h @ state["output.weight"][m].T + state["output.bias"][m]
        np.testing.assert_allclose(out[:, m], h + x.numpy() @ state["skip.weight"].T + state["skip.bias"], atol=1e-12)


def test_scales_start_as_signs_before_the_first_layer_and_as_ones_elsewhere() -> None:
    torch.manual_seed(0)
    mlp = MLP(500, 2, (400, 300), ensemble=K)
    signs = mlp.layers[0].linear.input_scale
    assert set(signs.unique().tolist()) == {-1.0, 1.0}
    assert abs(signs.mean().item()) < 4 / (K * 500) ** 0.5
    assert len({tuple(row) for row in signs.tolist()}) == K
    for scale in (
        mlp.layers[0].linear.output_scale,
        *(getattr(mlp.layers[1].linear, f"{s}_scale") for s in ("input", "output")),
    ):
        assert (scale == 1).all()


def test_a_member_starts_as_spread_as_a_network_of_its_own() -> None:
    torch.manual_seed(0)
    x = torch.randn(2000, 64)
    members = MLP(64, 1, (64, 64), ensemble=64)(x).squeeze(-1)
    alone = torch.stack([MLP(64, 1, (64, 64))(x).squeeze(-1) for _ in range(64)], dim=1)
    assert_close(members.var(0).mean(), alone.var(0).mean(), rtol=0.35, atol=0)


def test_one_member_is_an_ordinary_network() -> None:
    torch.manual_seed(0)
    one = MLP(5, 2, (4,), ensemble=1)
    torch.manual_seed(0)
    plain = MLP(5, 2, (4,))
    assert one.state_dict().keys() == plain.state_dict().keys()
    assert all(torch.equal(value, plain.state_dict()[name]) for name, value in one.state_dict().items())
    assert one(torch.ones(3, 5)).shape == (3, 2)


@pytest.mark.parametrize("shape", [(), (0,), (1,), (3, 2)])
def test_features_of_any_shape(shape: tuple[int, ...]) -> None:
    mlp, x = filled(), draw(0, *shape, 5)
    assert mlp(x).shape == (*shape, K, 2)
    if x.numel() and len(shape) == 2:
        assert_close(mlp(x)[1], mlp(x[1]))


def test_dropout_is_drawn_for_each_member() -> None:
    mlp = MLP(5, 1, (50,), ensemble=2, dropout=0.5)
    with torch.no_grad():
        for parameter in mlp.parameters():
            parameter.copy_(parameter[:1].expand_as(parameter) if parameter.shape[0] == 2 else parameter)
    torch.manual_seed(0)
    first, second = mlp.train()(torch.ones(20, 5)).unbind(1)
    assert not torch.equal(first, second)
    first, second = mlp.eval()(torch.ones(20, 5)).unbind(1)
    assert_close(first, second)


def test_an_ensemble_of_linear_maps_is_refused() -> None:
    with pytest.raises(
        ValueError, match=r"ensemble needs hidden_dims, got none; use for example hidden_dims=\(64, 32\)"
    ):
        MLP(5, 2, ensemble=2)
    with pytest.raises(ValueError, match="ensemble must be at least 1, got 0"):
        MLP(5, 2, (4,), ensemble=0)


def test_repr_names_sizes_and_members() -> None:
    mlp = MLP(5, 2, (4, 3), ensemble=K)
    assert [repr(layer.linear) for layer in mlp.layers] == [
        "SharedLinear(in_features=5, out_features=4, members=4)",
        "SharedLinear(in_features=4, out_features=3, members=4)",
    ]
    assert repr(mlp.output) == "MemberLinear(in_features=3, out_features=2, members=4)"
