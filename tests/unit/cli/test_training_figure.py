"""The figure of a training shows small differences between experts as small."""

import pytest

pytest.importorskip("matplotlib")

from matplotlib.figure import Figure

from reghead.cli._figures import ROUTING, _of_training


def test_routing_weights_start_at_zero() -> None:
    history = {"train_loss": [1.0, 0.9], "expert_utilization": [[0.49, 0.51], [0.48, 0.52]]}
    ((name, draw),) = _of_training(history)
    figure = Figure()
    draw(figure)
    panels = {ax.get_ylabel(): ax for ax in figure.axes}
    low, high = panels[ROUTING].get_ylim()
    assert name == "training"
    assert low == 0.0
    assert high > 0.52
