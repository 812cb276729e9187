"""``reghead train``."""

import argparse
import contextlib
import dataclasses
import functools
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import rich.console
import torch

from reghead._checks import did_you_mean
from reghead.cli._checkpoint import FileCheckpoint
from reghead.cli._domain import check_targets
from reghead.cli._errors import InputError
from reghead.cli._files import (
    check_inputs_stay,
    data_fingerprint,
    library_fingerprint,
    sha256_of,
    write_json,
    write_table,
)
from reghead.cli._flags import MODEL_FLAGS, REPORT, RUN, TRAIN_FLAGS
from reghead.cli._parser import settings_of
from reghead.cli._parts import TableParts
from reghead.cli._predict import prediction_columns, report_unmatched
from reghead.cli._report import Report
from reghead.cli._run_directory import CHECKPOINT, MARK, RESULT, RunDirectory
from reghead.cli._saved import FORMAT, MODEL, usable_device
from reghead.cli._schema import Schema, check_training, choose_schema, numbers_of
from reghead.cli._scoring import groupings, report_of, score_rows, write_report
from reghead.cli._tables import Table, open_table
from reghead.cli._torchrun import is_lost_connection, joined
from reghead.config import config_from_args
from reghead.estimators._fit import fit_model
from reghead.estimators._model import TableModel
from reghead.estimators._processes import Processes
from reghead.estimators._split import as_frequencies, held_back
from reghead.estimators._training import DivergedError, History, TrainingOptions, progress

_ENOUGH_TO_HOLD_BACK = 200  # rows
_FILES = {"TABLE": "table", "--metadata": "metadata", "--validation-table": "validation_table"}
_SCALED_TWICE = (
    "--conditional-output-scaling and --learnable-output-scale both scale the prediction; "
    "--conditional-output-scaling alone is enough"
)
_MAY_CHANGE = ("--max-epochs", "--patience", "--rows-in-memory")  # in a training that goes on


def run(args: argparse.Namespace) -> None:
    """Train as ``args`` say."""
    settings = settings_of(args)
    for name, dest in (("TABLE", "table"), ("--target", "target"), ("--output-dir", "output_dir")):
        if dest not in settings:
            raise InputError(f"reghead train needs {name}; reghead train --help lists the flags")
    asked = config_from_args(_normalized(settings), outputs=settings["target"])
    config, options = asked.on_target_scale(), _options(settings)
    _check_held_back(settings)
    inputs = {name: settings.get(dest) for name, dest in _FILES.items()}
    losses = getattr(settings.get("loss_config"), "file", None)
    check_inputs_stay(settings["output_dir"], {**inputs, "--config": args.config, "--loss-config": losses})
    with joined(usable_device(settings.get("device", "cpu"))) as (processes, device):
        first, quiet = processes.rank == 0, settings.get("quiet", False)
        place = {name: settings.get(name, False) for name in ("overwrite", "resume")}
        folder = RunDirectory(settings["output_dir"], **place) if first else None
        table = _open(settings, settings["table"])
        schema = _schema(table, settings)
        prediction_columns(schema, [asked.loss.levels or ()] * len(schema.targets))
        check_training(table, schema)
        data = _Split.of(table, schema, settings)
        for each in data.tables.values():
            check_targets(each, schema.targets, asked)
            if first:
                report_unmatched(each)
        if first and config.head.scaler and config.head.learnable_scale:
            print(f"reghead: warning: {_SCALED_TWICE}", file=sys.stderr)
        # Of every table: a column that one lacks is not to be found out when the training is done.
        by, *_ = [groupings(settings.get("report_by"), schema.categories, each) for each in data.tables.values()]
        path = Path(processes.gather(str(folder.path) if folder else None)[0])
        checkpoint = FileCheckpoint(path / CHECKPOINT, _identity(settings, data), writes=first)
        with folder or contextlib.nullcontext(), _kept(folder, checkpoint):
            with progress("training", options.max_epochs, first and not quiet) as callbacks:
                model, history = fit_model(
                    data.training.in_memory(),
                    None if data.validation is None else data.validation.in_memory(),
                    names=(*schema.features, *schema.categories),
                    outputs=schema.targets,
                    config=config,
                    options=options,
                    dtype=getattr(torch, settings.get("dtype", "float32")),
                    device=device,
                    seed=settings.get("seed", 0),
                    processes=processes,
                    callbacks=callbacks,
                    checkpoint=checkpoint,
                )
            written = _write(folder, checkpoint, model, history, data, by, settings, processes)
    if written is not None and not quiet:
        _print(written)


@dataclasses.dataclass(frozen=True)
class _Split:
    """The rows to train on, and those to stop early by."""

    training: TableParts
    validation: TableParts | None
    tables: Mapping[str, Table]

    @functools.cached_property
    def fingerprints(self) -> dict[str, dict[str, Any]]:
        """Of the tables; computed once, as they may be large."""
        return {name: data_fingerprint(table, self.training.schema) for name, table in self.tables.items()}

    @classmethod
    def of(cls, table: Table, schema: Schema, settings: Mapping[str, Any]) -> "_Split":
        unit = _weight_unit(table, schema)
        by, share = settings.get("validation_by"), settings.get("validation_fraction")
        if "validation_table" in settings:
            other = _open(settings, settings["validation_table"])
            _check_weights(schema, {"validation": (other, None)})
            validation = TableParts(other, schema, weight_unit=unit)
            return cls(TableParts(table, schema, None, unit), validation, {"training": table, "validation": other})
        if share is None:
            share = 0.1 if table.rows >= _ENOUGH_TO_HOLD_BACK or by is not None else 0.0
        if share == 0.0:
            return cls(TableParts(table, schema, None, unit), None, {"training": table})
        labels = None
        if by is not None:
            if by not in table.columns:
                raise InputError(
                    f"--validation-by names the column {by!r}, which is not in {table.paths[0]}"
                    f"{did_you_mean(by, table.columns)}"
                )
            labels = table.column(by)
            if labels.nunique(dropna=False) < 2:
                raise InputError(f"--validation-by {by} needs at least two categories, to hold one back")
        aside = held_back(table.rows, share, labels, np.random.RandomState(settings.get("seed", 0)))
        _check_weights(schema, {"training": (table, ~aside), "validation": (table, aside)})
        training, validation = (TableParts(table, schema, keep, unit) for keep in (~aside, aside))
        return cls(training, validation, {"training": table})


def _check_held_back(settings: Mapping[str, Any]) -> None:
    by, share = settings.get("validation_by"), settings.get("validation_fraction")
    if "validation_table" in settings and (by is not None or share is not None):
        raise InputError(
            "--validation-table takes the place of --validation-fraction and --validation-by; give one of them"
        )
    for name, given in (("--validation-by", by), ("--patience", settings.get("patience"))):
        if share == 0.0 and given is not None:
            raise InputError(f"{name} does nothing with --validation-fraction 0; keep one of them")


def _check_weights(schema: Schema, parts: Mapping[str, tuple[Table, npt.NDArray[np.bool_] | None]]) -> None:
    """Refuse a part in which no row counts: there would be nothing to learn from, or to stop by."""
    column = schema.weight_column
    if column is None:
        return
    for name, (table, keep) in parts.items():
        weight = numbers_of(table.column(column), f"weight {column!r}")
        if not (weight if keep is None else weight[keep]).any():
            raise InputError(f"weight {column!r} is zero in every {name} row; hold back other rows, or more of them")


def _normalized(settings: Mapping[str, Any]) -> dict[str, Any]:
    """With the target standardised, unless that was decided; a sigmoid also takes targets at the bounds."""
    decided = {"normalize_targets", "normalize_targets_by", "bounded_targets"} & settings.keys()
    return {**settings} if decided else {**settings, "normalize_targets": True}


def _options(settings: Mapping[str, Any]) -> TrainingOptions:
    names = {field.name for field in dataclasses.fields(TrainingOptions)}
    return TrainingOptions(**{name: value for name, value in settings.items() if name in names})


def _open(settings: Mapping[str, Any], path: str) -> Table:
    id_column = settings.get("id_column")
    text = [*settings.get("categorical_columns", ()), *([id_column] if id_column else [])]
    optional = {name: settings[name] for name in ("metadata", "rows_in_memory") if name in settings}
    return open_table(path, id_column=id_column, text_columns=text, **optional)


def _schema(table: Table, settings: Mapping[str, Any]) -> Schema:
    return choose_schema(
        table,
        targets=settings["target"],
        categories=settings.get("categorical_columns", ()),
        features=settings.get("feature_columns"),
        exclude=settings.get("exclude_columns", ()),
        id_column=settings.get("id_column"),
        weight_column=settings.get("weight_column"),
        impute=settings.get("impute_missing", False),
    )


def _weight_unit(table: Table, schema: Schema) -> float:
    """What weights are divided by: 1 for integers, which count as repeated rows, and otherwise their mean."""
    if schema.weight_column is None:
        return 1.0
    weight = table.column(schema.weight_column).to_numpy(dtype=np.float64)
    counted = weight > 0
    return float(weight[counted][0] / as_frequencies(weight)[counted][0])


def _identity(settings: Mapping[str, Any], data: _Split) -> dict[str, Any]:
    """What a training that goes on must have in common with its beginning."""
    flags = [flag for flag in (*TRAIN_FLAGS, *MODEL_FLAGS) if flag.group not in (RUN, REPORT)]
    identity = {flag.name: settings.get(flag.dest) for flag in flags if flag.name not in _MAY_CHANGE}
    for name, fingerprint in data.fingerprints.items():
        identity[f"the SHA-256 of the {name} table"] = [file["sha256"] for file in fingerprint["files"]]
    return identity


@contextlib.contextmanager
def _kept(folder: RunDirectory | None, checkpoint: FileCheckpoint) -> Iterator[None]:
    """After an error keep the last state; where there is none leave nothing behind."""
    try:
        yield
    except BaseException as error:
        if folder is None:
            if is_lost_connection(error):
                raise InputError(
                    "the first process of this training has ended, and this one cannot go on without it; see what the "
                    "first one said, if anything"
                ) from error
            raise
        if isinstance(error, DivergedError):  # as it would again
            folder.discard()
            raise
        with contextlib.suppress(InputError):
            checkpoint.flush()
        kept = checkpoint.path.exists()
        if not kept:
            folder.discard()
        how = f"what was trained so far is in {folder.path}, and the same command with --resume goes on with it"
        if isinstance(error, KeyboardInterrupt):
            without = "interrupted before the first epoch was done; nothing was written"
            raise KeyboardInterrupt(f"interrupted; {how}" if kept else without) from None
        if is_lost_connection(error):
            raise InputError(
                "another process of this training has ended, and this one cannot go on without it; "
                f"{how if kept else 'nothing was written'}"
            ) from error
        system = error if isinstance(error, OSError) else error.__cause__
        if isinstance(system, OSError):
            # Not always with a file: the bytes of a file in memory are written without its name.
            what = str(error) if error is not system else f"{system.filename or folder.path}: {system.strerror}"
            raise InputError(f"{what}; {how if kept else 'nothing was written'}") from error
        raise


def _write(
    folder: RunDirectory | None,
    checkpoint: FileCheckpoint,
    model: TableModel,
    history: History,
    data: _Split,
    by: Sequence[Sequence[str]],
    settings: Mapping[str, Any],
    processes: Processes,
) -> "_Written | None":
    """Write everything that training leaves, by the first of all processes."""
    parts = {"training": data.training} | ({} if data.validation is None else {"validation": data.validation})
    scored = {name: score_rows(model, rows, by, processes) for name, rows in parts.items()}
    found = {name: rows for name, rows in scored.items() if rows is not None}
    if folder is None:
        return None
    report, shown = report_of(model, found, by), list(parts)[-1]
    path = folder.path
    for left in {*path.iterdir()} - {path / MARK, checkpoint.path}:  # by one that was interrupted here
        shutil.rmtree(left) if left.is_dir() and not left.is_symlink() else left.unlink()
    model.save(path / MODEL)
    write_table(path / "history.csv", _history_rows(history))
    problems = write_report(
        path,
        model,
        report,
        parts[shown],
        found[shown],
        part=shown,
        by=by,
        history=history,
        figures=not settings.get("no_figures"),
    )
    run_flags = {flag.dest for flag in TRAIN_FLAGS if flag.group == RUN and flag.dest != "device"}
    write_json(path / "config.json", {name: value for name, value in settings.items() if name not in run_flags})
    record = {
        "format": FORMAT,
        "kind": "model",
        "library": library_fingerprint(),
        "data": data.fingerprints,
        "schema": data.training.schema.to_dict(),
        "processes": processes.size,
        "model": {"file": MODEL, "sha256": sha256_of(path / MODEL)},
    }
    write_json(path / RESULT, record)
    return _Written(folder.commit(), report, shown, problems, len(history["train_loss"]))


@dataclasses.dataclass(frozen=True)
class _Written:
    """What there is to say about a training whose results are in their place."""

    output_dir: Path
    report: Report
    shown: str
    problems: Sequence[str]
    epochs: int


def _print(written: _Written) -> None:
    console = rich.console.Console()
    written.report.print(console, written.shown)
    for problem in written.problems:
        console.print(problem, markup=False)
    console.print(
        f"Trained {written.epochs} epochs; everything is in {written.output_dir}", markup=False, soft_wrap=True
    )


def _history_rows(history: History) -> list[dict[str, Any]]:
    """One row for each epoch; the experts have a column each."""
    rows = []
    for epoch, values in enumerate(zip(*history.values(), strict=True), start=1):
        row: dict[str, Any] = {"epoch": epoch}
        for name, value in zip(history, values, strict=True):
            if isinstance(value, list):
                row |= {f"{name}_{expert}": share for expert, share in enumerate(value)}
            else:
                row[name] = value
        rows.append(row)
    return rows
