"""What the figures say of the router: by which column, and of all rows."""

from pathlib import Path

import pytest
import torch

from _command import lakes, saved, train
from reghead.cli._parts import TableParts
from reghead.cli._saved import load_run
from reghead.cli._scoring import _routing
from reghead.cli._tables import open_table


@pytest.mark.parametrize(
    ("flags", "column"),
    [
        ((), "lake"),  # the first of --categorical-columns
        (("--moe-routing", "season"), "season"),
        (("--moe-routing", "season,lake"), "season"),
        (("--categorical-columns", "season,lake"), "season"),
    ],
)
def test_routing_is_shown_by_the_first_column_that_it_goes_by_or_else_the_first_of_all(
    tmp_path: Path, flags: tuple[str, ...], column: str
) -> None:
    table = saved(tmp_path, lakes())
    assert train(table, tmp_path / "o", "--moe-experts", 3, *flags) == 0
    run = load_run(tmp_path / "o", "cpu")
    opened = open_table(table, text_columns=["lake", "season", "id"])
    found = _routing(run.model, TableParts(opened, run.schema))
    assert found is not None
    weights, ids, labels = found
    assert list(labels) == sorted(lakes()[column].unique())
    assert [labels[i - 1] for i in ids] == lakes()[column].tolist()
    torch.testing.assert_close(weights.sum(-1), torch.ones(60))


def test_without_experts_there_is_no_routing(tmp_path: Path) -> None:
    table = saved(tmp_path, lakes())
    assert train(table, tmp_path / "o") == 0
    run = load_run(tmp_path / "o", "cpu")
    assert _routing(run.model, TableParts(open_table(table, text_columns=["id"]), run.schema)) is None
