"""Predictions for the rows of a table, beside what they are compared with, and everything written about them."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from reghead._checks import did_you_mean
from reghead.cli._errors import InputError
from reghead.cli._figures import Routing, draw_figures
from reghead.cli._files import write_json, write_table
from reghead.cli._parts import TableParts
from reghead.cli._reference import REFERENCE, Reference
from reghead.cli._report import Report, Scored, make_report
from reghead.cli._tables import Table
from reghead.estimators._data import take_ids
from reghead.estimators._model import TableModel
from reghead.estimators._processes import ALONE, Processes

TRAINING = "training"
_BLOCK = 8192  # rows


def groupings(report_by: Sequence[str] | None, categories: Sequence[str], table: Table) -> list[tuple[str, ...]]:
    """What reports are broken down by: one combination of columns, or each categorical column."""
    if report_by is None:
        return [(column,) for column in categories]
    for column in report_by:
        if column not in table.columns:
            raise InputError(
                f"--report-by names the column {column!r}, which is not in {table.paths[0]}"
                f"{did_you_mean(column, table.columns)}"
            )
    return [tuple(report_by)]


def score_rows(
    model: TableModel, parts: TableParts, by: Sequence[Sequence[str]], processes: Processes = ALONE
) -> Scored | None:
    """Predictions for all rows of ``parts``; None in the processes other than the first, which gets their share."""
    shares, targets, weights = [], [], []
    ids: dict[str, list[Tensor]] = {}
    for part in parts:
        shares.append(model.predict(part.take(processes.share)).to(torch.float64).numpy())
        targets.append(part.target)
        if part.weight is not None:
            weights.append(part.weight)
        if processes.rank == 0 and model.preprocessor.encoder is not None:
            for column, vocabulary in model.preprocessor.encoder.vocabularies.items():
                ids.setdefault(column, []).append(vocabulary.encode(part.labels[column]))
    gathered = processes.gather(shares)
    if processes.rank != 0:
        return None
    preds = []
    for chunk, target in enumerate(targets):
        whole = np.empty((len(target), *gathered[0][chunk].shape[1:]))
        for rank, mine in enumerate(gathered):
            whole[rank :: processes.size] = mine[chunk]
        preds.append(whole)
    return Scored(
        torch.from_numpy(np.concatenate(preds)),
        torch.from_numpy(np.concatenate(targets)),
        parts.labels({column for columns in by for column in columns}),
        torch.from_numpy(np.concatenate(weights)) if weights else None,
        {column: torch.cat(chunks) for column, chunks in ids.items()},
    )


def report_of(
    model: TableModel, scored: dict[str, Scored], by: Sequence[Sequence[str]], reference: Reference | None = None
) -> Report:
    """All metrics of ``scored``, beside those that the training rows allow without a model.

    Args:
        model: Made the predictions.
        scored: Part -> predictions; where the training rows are among them, the reference is made of those.
        by: Groupings.
        reference: The training rows in brief, where they are not among the parts.
    """
    all_levels = model.config.head.quantiles
    if TRAINING in scored:
        rows = scored[TRAINING]
        reference = Reference.of(rows.target, rows.ids, cardinalities_of(model), all_levels or (), rows.weight)
    if reference is not None:
        scored = {part: _compared(rows, reference, by, all_levels) for part, rows in scored.items()}
    report = make_report(scored, outputs=model.outputs, levels=model.trained_levels(), all_levels=all_levels, by=by)
    return dataclasses.replace(report, reference=reference)


def cardinalities_of(model: TableModel) -> dict[str, int]:
    """Of the categorical columns; none without them."""
    return {} if model.preprocessor.encoder is None else model.preprocessor.encoder.cardinalities


def _compared(
    scored: Scored, reference: Reference, by: Sequence[Sequence[str]], all_levels: Sequence[float] | None
) -> Scored:
    """``scored`` with what training has seen of its rows, and what one would predict without a model."""
    asked = dict.fromkeys(column for columns in by for column in columns)
    # Of columns that the model does not have nothing is known.
    columns = tuple(asked) if asked and asked.keys() <= scored.ids.keys() else tuple(scored.ids)
    return scored._replace(
        novelty=reference.novelty(scored.ids, columns) if columns else None,
        novelty_of=columns,
        baselines=reference.baselines(scored.ids, len(scored.target), all_levels),
    )


def write_report(
    folder: Path,
    model: TableModel,
    report: Report,
    parts: TableParts,
    scored: Scored,
    *,
    part: str,
    by: Sequence[Sequence[str]],
    history: dict[str, list[Any]],
    figures: bool,
) -> list[str]:
    """Write metrics and figures into ``folder``; return a line for each figure that could not be drawn.

    Beside the training's own also its reference, for later evaluations.
    """
    if TRAINING in report.metrics and report.reference is not None:
        report.reference.save(folder / REFERENCE)
    write_json(folder / "metrics.json", report.metrics)
    write_table(folder / "per_category.csv", report.rows)
    if not figures:
        return []
    if report.reference is not None:
        scored = _compared(scored, report.reference, by, None)
    return draw_figures(
        folder / "figures",
        scored,
        part=part,
        outputs=model.outputs,
        levels=model.trained_levels(),
        all_levels=model.config.head.quantiles,
        by=by,
        history=history,
        head=model.head,
        encoder=model.preprocessor.encoder,
        routing=_routing(model, parts),
    )


@torch.no_grad()
def _routing(model: TableModel, parts: TableParts) -> Routing | None:
    """What the router did with every row, by the column that it routes by, or by the first where that is none."""
    moe, encoder = model.config.head.moe, model.preprocessor.encoder
    if moe is None or encoder is None:
        return None
    column = (*moe.routing, *encoder.columns)[0]
    weights: list[Tensor] = []
    found: list[Tensor] = []
    for part in parts:
        x, ids = model.preprocessor.transform(part, model.dtype, expect_unseen=True)
        for rows in torch.arange(len(x)).split(_BLOCK):  # type: ignore[no-untyped-call]
            block = {name: i.to(model.device) for name, i in take_ids(ids, rows).items()}
            aux = model.network(x[rows].to(model.device), block, return_aux=True)[1]
            assert aux.routing is not None  # it has experts
            weights.append(aux.routing.routing_weights.cpu())
        found.append(ids[column])
    return torch.cat(weights), torch.cat(found), encoder.vocabularies[column].labels
