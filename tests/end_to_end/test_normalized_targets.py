"""Targets normalized by category: metrics and predictions come out in the target's own units, also from a file."""

import io
import warnings

import pytest
import torch
from torch import Tensor, nn

from reghead import CategoryNormalizer, RegressionHead, UnseenCategoryWarning
from reghead.metrics import mae, rmse

CARDINALITIES = {"location": 5}  # 1 to 3 are sampled, 4 never is


class Model(nn.Module):
    """What a user writes: a backbone, a head, and the normalizer of its targets."""

    def __init__(self, normalizer: CategoryNormalizer | None = None) -> None:
        super().__init__()
        self.backbone = nn.Linear(2, 32)
        self.head = RegressionHead(32, 1, (32,), cardinalities=CARDINALITIES, film=["location"])
        self.normalizer = normalizer if normalizer is not None else CategoryNormalizer(CARDINALITIES)

    def forward(self, x: Tensor, categories: dict[str, Tensor]) -> Tensor:
        return self.head(self.backbone(x).relu(), categories)

    @torch.no_grad()
    def predict(self, x: Tensor, categories: dict[str, Tensor]) -> Tensor:
        return self.normalizer.inverse(self(x, categories), categories)


def shifted(rows: int, seed: int) -> tuple[Tensor, dict[str, Tensor], Tensor]:
    """Locations with means 0, 100, 5000 and spreads 1, 10, 300; one slope on the normalized scale."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, 2, generator=generator)
    ids = torch.arange(rows) % 3 + 1
    mean, spread = torch.tensor([0.0, 0.0, 100.0, 5000.0])[ids], torch.tensor([1.0, 1.0, 10.0, 300.0])[ids]
    noise = torch.randn(rows, generator=generator)
    return x, {"location": ids}, (mean + spread * (x[:, 0] + 0.3 * noise)).unsqueeze(-1)


@pytest.fixture(scope="module")
def trained() -> Model:
    x, categories, y = shifted(600, seed=0)
    torch.manual_seed(0)
    model = Model(CategoryNormalizer(CARDINALITIES).fit(y, categories))
    z = model.normalizer(y, categories)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for _ in range(200):
        optimizer.zero_grad()
        nn.functional.mse_loss(model(x, categories), z).backward()
        optimizer.step()
    return model.eval()


def test_the_normalizer_makes_the_locations_one_problem(trained: Model) -> None:
    """0.3 of each spread is noise that no model can predict; over five seeds 0.28 to 0.34 was left."""
    x, categories, y = shifted(900, seed=1)
    preds = trained.predict(x, categories)
    for location, spread in ((1, 1.0), (2, 10.0), (3, 300.0)):
        rows = categories["location"] == location
        assert 0.25 * spread < rmse(preds[rows], y[rows]) < 0.4 * spread


def test_metrics_by_batch_in_original_units_are_those_of_the_whole_set(trained: Model) -> None:
    """Each batch takes the targets that come with it and inverts its own predictions: nothing depends on the batch."""
    x, categories, y = shifted(301, seed=2)
    whole = trained.predict(x, categories)
    absolute, squared = torch.zeros(()), torch.zeros(())
    for rows in torch.arange(len(x)).split(64):
        ids = {column: values[rows] for column, values in categories.items()}
        preds = trained.predict(x[rows], ids)
        # What a training loop holds is the normalized target; it comes back in original units.
        target = trained.normalizer.inverse(trained.normalizer(y[rows], ids), ids)
        absolute += len(rows) * mae(preds, target)
        squared += len(rows) * rmse(preds, target).square()
    torch.testing.assert_close(absolute / len(x), mae(whole, y))
    torch.testing.assert_close((squared / len(x)).sqrt(), rmse(whole, y))
    assert mae(whole, y) > 10.0  # dollars, litres, days; a mean error in z-scores would be about 0.25


def test_a_never_sampled_location_takes_the_population_and_warns_once() -> None:
    _, categories, y = shifted(600, seed=0)
    normalizer = CategoryNormalizer(CARDINALITIES).fit(y, categories)
    elsewhere = {"location": torch.full((2,), 4)}
    z = torch.tensor([[0.0], [1.0]])
    with pytest.warns(UnseenCategoryWarning) as caught:
        preds = normalizer.inverse(z, elsewhere)
    assert len(caught) == 1
    torch.testing.assert_close(preds.flatten(), torch.stack([y.mean(), y.mean() + y.std()]))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        torch.testing.assert_close(normalizer.inverse(z, elsewhere), preds)


def test_a_file_restores_the_predictions_in_original_units_bit_for_bit(trained: Model) -> None:
    file = io.BytesIO()
    torch.save(trained.state_dict(), file)
    file.seek(0)
    torch.manual_seed(99)
    again = Model().eval()  # neither fitted nor trained
    again.load_state_dict(torch.load(file, weights_only=True))
    x, categories, _ = shifted(64, seed=3)
    assert torch.equal(again.predict(x, categories), trained.predict(x, categories))
