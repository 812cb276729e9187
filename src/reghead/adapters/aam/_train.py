"""``reghead-aam train``: AAM's own training, with the head, loss and scale that the flags ask for."""

import csv
import sys
from collections.abc import Mapping
from typing import Any

from reghead.adapters.aam._load import read_checkpoint
from reghead.adapters.aam._loss import import_aam
from reghead.adapters.aam._options import with_our_options
from reghead.adapters.aam._plan import NEUTRAL, Plan, make_plan
from reghead.adapters.aam._session import Session


def train_command() -> Any:
    """The command, with the options of ``aam train`` and those of reghead."""
    import click

    original = import_aam("aam.cli").train
    module = sys.modules["aam.cli.train"]

    def run(**values: Any) -> None:
        context = click.get_current_context()
        typed = click.core.ParameterSource.COMMANDLINE
        given = [name for name in values if context.get_parameter_source(name) is typed]
        try:
            plan = make_plan(values, given)
            _check_columns(values["metadata"], plan)
            session = Session(plan, module, _resumed(values), _rates(values))
        except (TypeError, ValueError, OSError) as error:
            raise click.ClickException(str(error)) from error
        own = {parameter.name for parameter in original.params}
        passed = {name: value for name, value in {**values, **NEUTRAL}.items() if name in own}
        passed |= {"metadata_column": plan.outputs[0], "out_dim": len(plan.outputs)}
        passed |= {"categorical_columns": ",".join(plan.columns) or None}
        passed["categorical_embed_dim"] = plan.head.embedding_dim
        with session.in_place():
            original.callback(**passed)

    return click.Command(
        "train",
        callback=run,
        params=with_our_options(original.params),
        help="Train a SequencePredictor with a head of reghead.",
    )


def _check_columns(metadata: str, plan: Plan) -> None:
    """Raise unless the header of the metadata has every column that the flags name."""
    with open(metadata, encoding="utf-8-sig", newline="") as file:
        header = [name.strip() for name in next(csv.reader(file, delimiter="\t"), [])]
    for flag, columns in (
        ("--metadata", ("sample_id",)),
        ("--metadata-column", plan.outputs),
        ("--categorical-columns", plan.columns),
        ("--normalize-by", plan.normalizer.by),
    ):
        for column in columns:
            if column not in header:
                found = ", ".join(header) or "none"
                raise ValueError(f"{flag} needs the column {column!r}, and {metadata} has {found}")


def _resumed(values: Mapping[str, Any]) -> Any:
    return None if values.get("resume_from") is None else read_checkpoint(values["resume_from"])[0]


def _rates(values: Mapping[str, Any]) -> list[float]:
    categorical = values.get("categorical_lr")
    return [values["lr"], *([] if categorical is None else [categorical])]
