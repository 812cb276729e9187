"""``reghead predict``."""

import argparse
import os
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from reghead.cli._arrow import DataFrame, need
from reghead.cli._errors import InputError
from reghead.cli._files import TableWriter, is_inside
from reghead.cli._saved import SavedRun, load_run
from reghead.cli._schema import Schema, to_part
from reghead.cli._tables import Table, open_table
from reghead.estimators._model import TableModel
from reghead.estimators._part import Part


def run(args: argparse.Namespace) -> None:
    """Predict as ``args`` say."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise InputError("reghead predict runs in one process; start it without torchrun")
    if args.output is not None:
        _check_output(args)
    saved = load_run(Path(args.model), args.device or "cpu")
    names = prediction_columns(saved.schema, saved.model.trained_levels())
    table = open_rows(args, saved)
    report_unmatched(table)
    unseen = UnseenLabels(saved.model)
    first = 0
    with TableWriter(args.output) as writer:
        for i, size in enumerate(table.sizes):
            frame = table[i]
            part = to_part(frame, saved.schema, first_row=first, training=False)
            unseen.count(part)
            writer.write(_predictions(saved, names, frame, part, first))
            first += size
    for message in unseen.messages():
        print(f"reghead: warning: {message}", file=sys.stderr)
    if args.output is not None and not args.quiet:
        print(f"{first} predictions are in {args.output}")


def _check_output(args: argparse.Namespace) -> None:
    """Refuse to write over what is read, or what nobody said to replace."""
    for name, path in (("TABLE", args.table), ("--metadata", args.metadata)):
        if path is not None and is_inside(args.output, path):
            raise InputError(f"--output {args.output} is the file that {name} reads; choose another --output")
    if is_inside(args.output, args.model):
        raise InputError(f"--output {args.output} lies in the folder of the model; choose a place outside it")
    if Path(args.output).is_file() and not args.overwrite:
        raise InputError(f"{args.output} is there already; choose another --output, or give --overwrite")


def report_unmatched(table: Table) -> None:
    """Say how many rows a join has left out."""
    embeddings, metadata = table.unmatched
    if embeddings or metadata:
        print(
            f"reghead: warning: {embeddings} of {table.rows + embeddings} embeddings in {table.paths[0]} and "
            f"{metadata} of {table.rows + metadata} rows of {table.paths[-1]} have no counterpart in the other, and "
            "are left out",
            file=sys.stderr,
        )


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


def prediction_columns(schema: Schema, levels: Sequence[Sequence[float]]) -> list[str]:
    """The columns of a table of predictions: of the row's name, and for each target the prediction and its quantiles.

    Args:
        schema: With the targets, and the column that names a row.
        levels: For each target the levels that it was trained on; none for a point output.

    Raises:
        InputError: If two would have one name.
    """
    names = [schema.id_column or "row"]
    for target, own in zip(schema.targets, levels, strict=True):
        # As many digits as tell a level from any other.
        names += [f"{target}_pred", *(f"{target}_q{level!r}" for level in own)]
    twice = next((name for i, name in enumerate(names) if name in names[:i]), None)
    if twice is not None:
        raise InputError(
            f"two columns of the predictions would be called {twice!r}; rename --id-column or --target in the table"
        )
    return names


def _predictions(saved: SavedRun, names: Sequence[str], frame: DataFrame, part: Part, first: int) -> DataFrame:
    """One row for each row of ``frame``, with the columns ``names``."""
    preds = saved.model.predict(part)
    points = saved.model.point(preds)
    id_column, all_levels = saved.schema.id_column, saved.model.config.head.quantiles
    columns: list[object] = []
    if id_column is not None and id_column in frame.columns:
        columns.append(frame[id_column])
    else:
        names = ["row", *names[1:]]
        columns.append(np.arange(first + 1, first + 1 + len(frame)))
    for d, levels in enumerate(saved.model.trained_levels()):
        columns.append(points[:, d].numpy())
        columns += [preds[:, d, (all_levels or ()).index(level)].numpy() for level in levels]
    return need("pandas").DataFrame(dict(zip(names, columns, strict=True)))
