"""``reghead evaluate``."""

import argparse
import contextlib
import os
import sys
from pathlib import Path

import rich.console

from reghead.cli._errors import InputError
from reghead.cli._files import check_inputs_stay, data_fingerprint, library_fingerprint, write_json
from reghead.cli._parts import TableParts
from reghead.cli._predict import UnseenLabels, open_rows, report_unmatched
from reghead.cli._reference import REFERENCE, load_reference
from reghead.cli._run_directory import RESULT, RunDirectory
from reghead.cli._saved import FORMAT, load_run
from reghead.cli._scoring import cardinalities_of, groupings, report_of, score_rows, write_report

PART = "evaluation"


def run(args: argparse.Namespace) -> None:
    """Evaluate as ``args`` say."""
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise InputError("reghead evaluate runs in one process; start it without torchrun")
    folder = None
    if args.output_dir is not None:
        check_inputs_stay(args.output_dir, {"FOLDER": args.model, "TABLE": args.table, "--metadata": args.metadata})
        folder = RunDirectory(args.output_dir, kind="evaluation", overwrite=bool(args.overwrite))
    saved = load_run(Path(args.model), args.device or "cpu")
    model = saved.model
    sizes = cardinalities_of(model), model.config.head.quantiles, len(model.outputs)
    reference = load_reference(Path(args.model), *sizes)
    table = open_rows(args, saved)
    report_unmatched(table)
    by = groupings(args.report_by, saved.schema.categories, table)
    parts, unseen = TableParts(table, saved.schema), UnseenLabels(saved.model)
    for part in parts:
        unseen.count(part)
    scored = score_rows(saved.model, parts, by)
    assert scored is not None  # this process is the first
    report = report_of(saved.model, {PART: scored}, by, reference)
    if reference is None:
        print(
            f"reghead: warning: {args.model} has no {REFERENCE}, so that nothing is told of what training has seen, "
            "and nothing compared with baselines; train again",
            file=sys.stderr,
        )
    for message in unseen.messages():
        print(f"reghead: warning: {message}", file=sys.stderr)
    problems: list[str] = []
    if folder is not None:
        with folder, contextlib.ExitStack() as undo:
            undo.callback(folder.discard)
            problems = write_report(
                folder.path,
                saved.model,
                report,
                parts,
                scored,
                part=PART,
                by=by,
                history={},
                figures=not args.no_figures,
            )
            record = {"format": FORMAT, "kind": "evaluation", "library": library_fingerprint()}
            record |= {"data": data_fingerprint(table, saved.schema), "model": saved.record["model"]}
            write_json(folder.path / RESULT, record)
            folder.commit()
            undo.pop_all()
    if not args.quiet:
        console = rich.console.Console()
        report.print(console, PART)
        for problem in problems:
            console.print(problem, markup=False)
