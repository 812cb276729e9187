"""``reghead predict``."""

import argparse
import os
import sys
from collections import Counter
from pathlib import Path

import numpy as np

from reghead.cli._arrow import DataFrame, need
from reghead.cli._errors import InputError
from reghead.cli._files import TableWriter
from reghead.cli._saved import SavedRun, load_run
from reghead.cli._schema import to_part
from reghead.cli._tables import Table, open_table
from reghead.estimators._model import TableModel
from reghead.estimators._part import Part
from reghead.functional import nearest_level


def run(args: argparse.Namespace) -> None:
    """Predict as ``args`` say."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise InputError("reghead predict runs in one process; start it without torchrun")
    if args.output is not None and Path(args.output).is_file() and not args.overwrite:
        raise InputError(f"{args.output} is there already; choose another --output, or give --overwrite")
    saved = load_run(Path(args.model), args.device or "cpu")
    table = open_rows(args, saved)
    unseen = UnseenLabels(saved.model)
    first = 0
    with TableWriter(args.output) as writer:
        for i, size in enumerate(table.sizes):
            frame = table[i]
            part = to_part(frame, saved.schema, first_row=first, training=False)
            unseen.count(part)
            writer.write(_predictions(saved, frame, part, first))
            first += size
    for message in unseen.messages():
        print(f"reghead: warning: {message}", file=sys.stderr)
    if args.output is not None and not args.quiet:
        print(f"{first} predictions are in {args.output}")


def open_rows(args: argparse.Namespace, saved: SavedRun) -> Table:
    """The table of ``args``, read as the one of the training was."""
    schema = saved.schema
    text = [*schema.categories, *([schema.id_column] if schema.id_column else [])]
    optional = {} if args.rows_in_memory is None else {"rows_in_memory": args.rows_in_memory}
    return open_table(args.table, metadata=args.metadata, id_column=schema.id_column, text_columns=text, **optional)


class UnseenLabels:
    """How many rows have a category that training did not see, by column.

    Args:
        model: Knows the categories.
    """

    def __init__(self, model: TableModel) -> None:
        self._encoder = model.preprocessor.encoder
        self._rows = 0
        self._found: dict[str, Counter[object]] = {}

    def count(self, part: Part) -> None:
        """Add the rows of ``part``."""
        self._rows += len(part.target)
        if self._encoder is None:
            return
        pandas = need("pandas")
        for column, vocabulary in self._encoder.vocabularies.items():
            labels = pandas.Series(part.labels[column], dtype=object)
            new = labels.notna().to_numpy() & (vocabulary.encode(labels).numpy() == 0)
            self._found.setdefault(column, Counter()).update(labels[new])

    def messages(self) -> list[str]:
        """A line for each column with such rows."""
        return [
            f"{labels.total()} of {self._rows} rows have a {column} that training did not see "
            f"({', '.join(str(label) for label, _ in labels.most_common(3))}{', ...' if len(labels) > 3 else ''}); "
            "it is read as unknown"
            for column, labels in self._found.items()
            if labels
        ]


def _predictions(saved: SavedRun, frame: DataFrame, part: Part, first: int) -> DataFrame:
    """One row for each row of ``frame``: its id or number, and for each target the prediction and its quantiles."""
    preds = saved.model.predict(part).double().numpy()
    id_column, all_levels = saved.schema.id_column, saved.model.config.head.quantiles
    columns: dict[str, object] = {}
    if id_column is not None and id_column in frame.columns:
        columns[id_column] = frame[id_column]
    else:
        columns["row"] = np.arange(first + 1, first + 1 + len(frame))
    for d, (output, levels) in enumerate(zip(saved.model.outputs, saved.model.trained_levels(), strict=True)):
        if all_levels is None:
            columns[f"{output}_pred"] = preds[:, d]
            continue
        candidates = levels or all_levels  # a point loss trains the slot nearest the median
        columns[f"{output}_pred"] = preds[:, d, all_levels.index(candidates[nearest_level(candidates)])]
        columns |= {f"{output}_q{level:g}": preds[:, d, all_levels.index(level)] for level in levels}
    return need("pandas").DataFrame(columns)
