"""The flags of the command beside those of :data:`reghead.config.FLAGS`: the table, the training, the output."""

import dataclasses
from typing import Any

from reghead.config import FLAGS, Flag, Kind
from reghead.config._flag import COLUMNS, LOSS_CONFIG, choice, integer, number, switch

TABLE, TRAINING, RUN, REPORT = "table", "training", "run", "report"


def _text(name: str, value: object) -> str:
    if not isinstance(value, str) or not value:
        raise TypeError(f"{name} must be text, got {value!r}")
    return value


def _seed(name: str, value: object) -> int:
    number = int(value) if isinstance(value, str) and value.isdecimal() else value
    if not isinstance(number, int) or isinstance(number, bool) or not 0 <= number < 2**32:
        raise ValueError(f"{name} must be an integer from 0 to 4294967295, got {value!r}")
    return number


PATH, COLUMN, DEVICE = Kind(_text, "FILE"), Kind(_text, "COLUMN"), Kind(_text, "DEVICE")

METADATA = Flag("--metadata", "table.metadata", TABLE, PATH, "table with the targets of an .npz of embeddings", "none")
ID = Flag(
    "--id-column", "table.id_column", TABLE, COLUMN, "column that names a row; joins --metadata to embeddings", "none"
)
ROWS_IN_MEMORY = Flag(
    "--rows-in-memory",
    "table.rows_in_memory",
    TABLE,
    integer("N"),
    "rows of a Parquet file to hold at once; a larger file is read in row groups, anew in every pass",
    "2000000",
)
OUTPUT_DIR = Flag("--output-dir", "run.output_dir", RUN, Kind(_text, "FOLDER"), "folder to write", "required")
OVERWRITE = Flag("--overwrite", "run.overwrite", RUN, switch(True), "replace results that are there", "refuse to")
QUIET = Flag("--quiet", "run.quiet", RUN, switch(True), "print nothing but warnings and errors", "off")
TRACEBACK = Flag("--traceback", "run.traceback", RUN, switch(True), "show where an error came from", "off")
DEVICE_FLAG = Flag("--device", "training.device", RUN, DEVICE, "where to compute, such as cpu or cuda", "cpu")
REPORT_BY = Flag(
    "--report-by",
    "report.by",
    REPORT,
    COLUMNS,
    "report each combination of these columns",
    "each of --categorical-columns by itself",
)
NO_FIGURES = Flag("--no-figures", "report.no_figures", REPORT, switch(True), "draw no figures", "draw them")

TRAIN_FLAGS: tuple[Flag, ...] = (
    Flag("--target", "table.targets", TABLE, COLUMNS, "column to predict, or several", "required"),
    Flag(
        "--feature-columns",
        "table.features",
        TABLE,
        COLUMNS,
        "numeric columns to predict from",
        "every numeric column that has no other role",
    ),
    Flag("--exclude-columns", "table.exclude", TABLE, COLUMNS, "columns to leave out", "none"),
    ID,
    Flag("--weight-column", "table.weight_column", TABLE, COLUMN, "column that says how often a row counts", "none"),
    METADATA,
    Flag(
        "--impute-missing",
        "table.impute",
        TABLE,
        switch(True),
        "a missing number becomes its column's mean in training, beside an indicator of it",
        "refuse missing numbers",
    ),
    ROWS_IN_MEMORY,
    Flag("--max-epochs", "training.max_epochs", TRAINING, integer("N"), "passes over the rows, at most", "200"),
    Flag(
        "--batch-size",
        "training.batch_size",
        TRAINING,
        integer("N"),
        "rows in a step, over all processes; all rows where there are no more",
        "128",
    ),
    Flag("--lr", "training.lr", TRAINING, number("R", above=0.0), "learning rate of AdamW", "0.003"),
    Flag(
        "--categorical-lr",
        "training.categorical_lr",
        TRAINING,
        number("R", above=0.0),
        "learning rate of what is learned per category",
        "--lr",
        needs="--categorical-columns",
    ),
    Flag("--weight-decay", "training.weight_decay", TRAINING, number("W", at_least=0.0), "decoupled decay", "0.001"),
    Flag(
        "--patience",
        "training.patience",
        TRAINING,
        integer("N"),
        "epochs without a better loss on the validation rows before training stops and the best weights are restored",
        "20",
    ),
    Flag(
        "--validation-fraction",
        "training.validation_fraction",
        TRAINING,
        number("P", at_least=0.0, below=1.0),
        "share of the rows held back to stop early by; 0 trains on all for --max-epochs",
        "0.1, or 0 where there are fewer than 200 rows",
    ),
    Flag(
        "--validation-by",
        "training.validation_by",
        TRAINING,
        COLUMN,
        "column of which whole categories are held back, not single rows",
        "none",
    ),
    Flag(
        "--validation-table",
        "training.validation_table",
        TRAINING,
        PATH,
        "table to stop early by, in the place of rows held back",
        "none",
    ),
    Flag("--seed", "training.seed", TRAINING, Kind(_seed, "N"), "of weights, rows held back, order and dropout", "0"),
    Flag(
        "--dtype",
        "training.dtype",
        TRAINING,
        choice(("float32", "float64")),
        "precision of features and parameters",
        "float32",
    ),
    DEVICE_FLAG,
    REPORT_BY,
    NO_FIGURES,
    OUTPUT_DIR,
    OVERWRITE,
    Flag("--resume", "run.resume", RUN, switch(True), "go on with a training that was interrupted", "off"),
    Flag(
        "--config",
        "run.config",
        RUN,
        PATH,
        "JSON or TOML file of flags without their dashes, such as max-epochs; flags given here come first",
        "none",
    ),
    QUIET,
    TRACEBACK,
)
"""The flags of ``reghead train`` beside those of the model."""

PREDICT_FLAGS: tuple[Flag, ...] = (
    Flag("--output", "run.output", RUN, PATH, "CSV, TSV or Parquet file to write, also .gz", "CSV to the terminal"),
    METADATA,
    ROWS_IN_MEMORY,
    DEVICE_FLAG,
    OVERWRITE,
    QUIET,
    TRACEBACK,
)
EVALUATE_FLAGS: tuple[Flag, ...] = (
    METADATA,
    ROWS_IN_MEMORY,
    DEVICE_FLAG,
    REPORT_BY,
    NO_FIGURES,
    dataclasses.replace(OUTPUT_DIR, default="print the report, write nothing"),
    OVERWRITE,
    QUIET,
    TRACEBACK,
)


class LossesOfFile(dict[str, Any]):
    """The losses of ``--loss-config``, with the file they were read from; None where they are JSON on the spot."""

    file: str | None = None


def _losses(name: str, value: object) -> LossesOfFile:
    losses = LossesOfFile(LOSS_CONFIG.parse(name, value))
    if isinstance(value, str) and not value.strip().startswith("{"):
        losses.file = value.strip()
    return losses


_OURS: dict[str, dict[str, Any]] = {
    "--normalize-targets": {"default": "on, but with --bounded-targets, and with --normalize-targets-by instead"},
    "--loss-config": {"kind": dataclasses.replace(LOSS_CONFIG, parse=_losses)},
}
# The tables that people bring have targets of any size, so that here the target is standardised unless told otherwise.
MODEL_FLAGS: tuple[Flag, ...] = tuple(dataclasses.replace(flag, **_OURS.get(flag.name, {})) for flag in FLAGS)
