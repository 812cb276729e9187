"""A finished training: the model in its folder, and what the table was like."""

import contextlib
import json
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from reghead.cli._errors import InputError
from reghead.cli._files import sha256_of
from reghead.cli._run_directory import MARK, RESULT
from reghead.cli._schema import Schema
from reghead.config._base import read_small
from reghead.estimators._model import TableModel

FORMAT = 1
MODEL = "model.safetensors"


@dataclass(frozen=True)
class SavedRun:
    """What ``reghead train`` left.

    Args:
        model: Head, normalizer and preprocessing.
        schema: What the columns of the table are for.
        record: All of ``run.json``.
    """

    model: TableModel
    schema: Schema
    record: dict[str, Any]


def load_run(folder: Path, device: str) -> SavedRun:
    """Load what is in ``folder``, whole and as it was written.

    Raises:
        InputError: If it is not the folder of a finished training, was written by another version, or a file in it
            was changed or cut short.
    """
    record = _read_record(folder)
    try:
        schema, expected = Schema.from_dict(record.get("schema")), record["model"]["sha256"]
    except InputError as error:
        raise InputError(f"{folder / RESULT} is damaged: {error}") from error
    except (KeyError, TypeError) as error:
        raise InputError(f"{folder / RESULT} is damaged: it lacks the SHA-256 of the model") from error
    file = folder / MODEL
    if not file.is_file():
        raise InputError(f"{folder} has lost its model, {MODEL}; train again")
    if sha256_of(file) != expected:
        raise InputError(
            f"{file} is not the file that training wrote: its SHA-256 is not the one in {RESULT}; copy it again whole"
        )
    where = usable_device(device)
    try:
        model = TableModel.load(file)
    except (ValueError, RuntimeError) as error:
        raise InputError(f"{file} cannot be loaded: {error}; use the reghead that wrote it, or train again") from error
    if ((*schema.features, *schema.categories), schema.targets) != (model.preprocessor.names, model.outputs):
        raise InputError(f"{folder / RESULT} is damaged: its columns are not those of the model; copy it again whole")
    return SavedRun(model.to(where).eval(), schema, record)


def usable_device(name: str) -> torch.device:
    """The device that ``--device`` names.

    Raises:
        InputError: If there is none of that name here.
    """
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise InputError(f"--device {name} cannot be used: {str(error).splitlines()[0]}; choose cpu") from error
    return device


def _read_record(folder: Path) -> dict[str, Any]:
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder; give the --output-dir of reghead train")
    file = folder / RESULT
    if (folder / MARK).exists() and not file.exists():  # which is the last to be written
        raise InputError(f"the training in {folder} has not finished; go on with it with --resume")
    if not file.is_file():
        raise InputError(f"{folder} is not a folder that reghead train wrote: it has no {RESULT}")
    record: Any = None
    with contextlib.suppress(ValueError, RecursionError):
        record = json.loads(read_small(file))
    if not isinstance(record, dict) or "format" not in record:
        raise InputError(f"{file} is damaged: it is not the JSON that reghead wrote")
    if record["format"] != FORMAT:
        library = record.get("library")
        version = library.get("reghead") if isinstance(library, dict) else None
        raise InputError(
            f"{folder} was written by reghead {version or 'of another version'} in "
            f"format {record['format']!r}, and reghead {metadata.version('reghead')} reads format {FORMAT}; "
            "use that version, or train again"
        )
    if record.get("kind") != "model":
        raise InputError(
            f"{folder} is the record of an evaluation, not a model; give the --output-dir of reghead train"
        )
    return record
