"""The same seed gives the same numbers, and a row does not depend on the company it is in."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close
from torch.utils._pytree import tree_leaves, tree_map

from _cases import CASES, DRAWS, SIZES, Case
from numerics._exact import LOSSES
from reghead import functional as R
from reghead.calibration import SplitConformal
from reghead.heads import RegressionHead
from reghead.nn import MixtureOfExperts
from reghead.normalization import CategoryNormalizer

each_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
by_row = [case for case in CASES if case.shape(4) != ()]
each_row_case = pytest.mark.parametrize("case", by_row, ids=lambda case: case.name)
# Products of matrices may add up in another order in a batch of another size.
CLOSE = {"rtol": 2e-5, "atol": 2e-5}


@pytest.fixture
def deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def step(case: Case, seed: int) -> list[Tensor]:
    """Output and gradients of a training step, dropout and all."""
    module = case.module().train()
    inputs = case.batch(9)
    torch.manual_seed(seed)
    out = module(*inputs)
    if out.requires_grad:
        out.sum().backward()
    return [out.detach(), *(p.grad for p in module.parameters() if p.grad is not None)]


@each_case
@pytest.mark.usefixtures("deterministic")
def test_the_same_seed_gives_the_same_step_with_deterministic_algorithms(case: Case) -> None:
    with torch.random.fork_rng(devices=[]):
        first, second = step(case, 3), step(case, 3)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_dropout_follows_the_seed() -> None:
    case = next(case for case in CASES if case.name == "RegressionHead-everything")
    with torch.random.fork_rng(devices=[]):
        assert not torch.equal(step(case, 3)[0], step(case, 4)[0])


@pytest.mark.usefixtures("deterministic")
def test_fits_are_the_same_each_time() -> None:
    def fit() -> list[Tensor]:
        rng = torch.Generator().manual_seed(0)
        y = torch.randn(2000, 2, generator=rng, dtype=DRAWS)
        ids = {c: torch.randint(0, n, (2000,), generator=rng) for c, n in SIZES.items()}
        normalizer = CategoryNormalizer(SIZES, shrinkage="empirical_bayes", fallback="additive").fit(y, ids)
        conformal = SplitConformal([0.5, 0.9], groups=SIZES).conformalize(0 * y, y, ids)
        return [*normalizer.buffers(), *conformal.buffers()]

    for a, b in zip(fit(), fit(), strict=True):
        assert_close(a, b, rtol=0, atol=0, equal_nan=True)


def batch_of(case: Case, rows: int) -> tuple[torch.nn.Module, Any, Tensor]:
    module, inputs = case.module(), case.batch(rows)
    with torch.no_grad():
        return module, inputs, module(*inputs)


def rows_of(tree: Any, index: Tensor) -> Any:
    return tree_map(lambda t: t[index], tree)


@each_row_case
def test_rows_in_any_order(case: Case) -> None:
    module, inputs, out = batch_of(case, 40)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        assert_close(module(*rows_of(inputs, order)), out[order], **CLOSE)


@each_row_case
def test_a_batch_in_parts(case: Case) -> None:
    module, inputs, out = batch_of(case, 40)
    with torch.no_grad():
        parts = [module(*rows_of(inputs, torch.arange(a, b))) for a, b in ((0, 1), (1, 17), (17, 17), (17, 40))]
    assert_close(torch.cat(parts), out, **CLOSE)


@each_row_case
def test_a_batch_padded_with_rows_of_anything(case: Case) -> None:
    """NaN and infinite features, and the unknown category, stay in their own rows."""
    module, inputs, out = batch_of(case, 20)

    def pad(t: Tensor, fill: float) -> Tensor:
        rows = t.new_zeros(7, *t.shape[1:])
        return torch.cat([t, rows if not t.is_floating_point() else rows.fill_(fill)])

    for fill in (torch.nan, torch.inf, 1e30):
        padded = tree_map(lambda t, fill=fill: pad(t, fill), inputs)
        assert all(len(t) == 27 for t in tree_leaves(padded))
        with torch.no_grad():
            assert_close(module(*padded)[:20], out, **CLOSE)


@pytest.mark.parametrize("how", [{"gate": "soft"}, {"gate": "top_k"}, {"gate": "hard"}, {"mix": "parameters"}])
def test_large_batches_of_experts_are_computed_otherwise_and_end_alike(how: dict[str, Any]) -> None:
    """In eager mode on a CPU 768 rows and more are dealt out to the experts."""
    torch.manual_seed(0)
    moe = MixtureOfExperts(5, 2, 4, (8, 3), cardinalities=SIZES, residual=True, norm="layer", **how).eval()
    rng = torch.Generator().manual_seed(1)
    x = torch.randn(2000, 5, generator=rng)
    ids = {c: torch.randint(0, n, (2000,), generator=rng) for c, n in SIZES.items()}
    order = torch.randperm(2000, generator=rng)
    with torch.no_grad():
        whole = moe(x, ids)
        small = torch.cat(
            [moe(x[i : i + 100], {c: t[i : i + 100] for c, t in ids.items()}) for i in range(0, 2000, 100)]
        )
        assert_close(whole, small, **CLOSE)
        assert_close(moe(x[order], {c: t[order] for c, t in ids.items()}), whole[order], **CLOSE)


def test_gradients_of_a_split_batch_add_up() -> None:
    torch.manual_seed(0)
    head = RegressionHead(
        3, 2, (8,), cardinalities=SIZES, film=["season"], scaler=["location"], quantiles=(0.1, 0.5, 0.9)
    )
    rng = torch.Generator().manual_seed(1)
    x, y = torch.randn(60, 3, generator=rng), torch.randn(60, 2, generator=rng)
    ids = {c: torch.randint(0, n, (60,), generator=rng) for c, n in SIZES.items()}

    def gradients(*parts: slice) -> list[Tensor]:
        head.zero_grad()
        for part in parts:
            out = head(x[part], {c: t[part] for c, t in ids.items()})
            R.pinball_loss(out, y[part], (0.1, 0.5, 0.9), reduction="sum").backward()
        return [p.grad.clone() for p in head.parameters() if p.grad is not None]

    for whole, parts in zip(gradients(slice(0, 60)), gradients(slice(0, 7), slice(7, 60)), strict=True):
        assert_close(parts, whole, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", LOSSES)
def test_cells_of_losses_are_the_same_in_any_batch(name: str) -> None:
    """To a rounding of tanh and the like: where a vector of the processor ends they are computed otherwise."""
    loss = LOSSES[name]
    rng = torch.Generator().manual_seed(2)
    preds, target = torch.randn(50, 2, loss.width, generator=rng), torch.randn(50, 2, generator=rng)
    whole = loss(preds, target, reduction="none")
    order = torch.randperm(50, generator=rng)
    assert_close(loss(preds[order], target[order], reduction="none"), whole[order], rtol=1e-6, atol=1e-7)
    alone = [loss(preds[i : i + 1], target[i : i + 1], reduction="none") for i in range(50)]
    assert_close(torch.cat(alone), whole, rtol=1e-6, atol=1e-7)
