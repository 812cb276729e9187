"""The command line, and the file of flags behind it."""

import argparse
import importlib.metadata
import re
import tomllib
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from reghead._checks import did_you_mean
from reghead.cli._errors import InputError
from reghead.cli._flags import EVALUATE_FLAGS, MODEL_FLAGS, PATH, PREDICT_FLAGS, TRAIN_FLAGS
from reghead.config import Flag, add_arguments
from reghead.config._base import parse_json, read_small

ALL_TRAIN_FLAGS = (*TRAIN_FLAGS, *MODEL_FLAGS)
_FLAGS: dict[str, Sequence[Flag]] = {"train": ALL_TRAIN_FLAGS, "predict": PREDICT_FLAGS, "evaluate": EVALUATE_FLAGS}
_TYPED_ALONE = ("config", "traceback")  # read before any file of flags is
_WHAT = {
    "train": "fit a regression head to a table and write the model, its scores and figures to a folder",
    "predict": "write the predictions of a trained model for the rows of a table",
    "evaluate": "score a trained model on a table: overall, per category, and in the worst category",
}


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        # The kinds of values do not know their flag here, and call it "value".
        message = re.sub(r"^argument (--[\w-]+): value\b", r"\1", message)
        raise InputError(f"{message}; {self.prog} --help lists the flags")

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As argparse does, and with the command of a flag that is none."""
        found, unknown = self.parse_known_args(args, namespace)
        if unknown:
            flags = [flag.name for flag in _FLAGS[found.command]]
            guess = did_you_mean(unknown[0].partition("=")[0], flags)
            command = f"{self.prog} {found.command}"
            raise InputError(f"unrecognized arguments: {' '.join(unknown)}{guess}; {command} --help lists the flags")
        return found


def make_parser() -> argparse.ArgumentParser:
    """The parser of all commands; what is not given is None."""
    parser = _Parser(
        prog="reghead",
        description="Regression heads for data whose target shifts between categories.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"reghead {importlib.metadata.version('reghead')}")
    commands = parser.add_subparsers(dest="command", metavar="train|predict|evaluate", required=True)

    def add(name: str, usage: str, flags: Sequence[Flag]) -> argparse.ArgumentParser:
        command = commands.add_parser(
            name, help=_WHAT[name], description=_WHAT[name].capitalize() + ".", usage=usage, allow_abbrev=False
        )
        add_arguments(command, flags)
        return command

    train = add("train", "reghead train TABLE --target COLUMN --output-dir FOLDER [flags]", ALL_TRAIN_FLAGS)
    train.add_argument("table", nargs="?", metavar="TABLE", help="CSV, TSV or Parquet, also .gz; or .npz of embeddings")
    predict = add("predict", "reghead predict FOLDER TABLE [--output FILE] [flags]", PREDICT_FLAGS)
    evaluate = add("evaluate", "reghead evaluate FOLDER TABLE [--output-dir FOLDER] [flags]", EVALUATE_FLAGS)
    for command in (predict, evaluate):
        command.add_argument("model", metavar="FOLDER", help="what reghead train wrote")
        command.add_argument("table", metavar="TABLE", help="with the columns of the training table")
    return parser


def settings_of(args: argparse.Namespace) -> dict[str, Any]:
    """What ``reghead train`` was given, from the command line and, behind it, from the file of ``--config``.

    Returns:
        The values that were given, by the names of their flags, parsed; ``table`` among them.

    Raises:
        InputError: If the file cannot be read, or a name in it is no flag.
    """
    flags = {flag.dest: flag for flag in ALL_TRAIN_FLAGS}
    given: dict[str, Any] = {}
    for dest, value in (_read_config(args.config, flags) if args.config else {}).items():
        if dest == "table":
            given[dest] = PATH.parse("table", value)
            continue
        kind = flags[dest].kind
        parsed = kind.parse(flags[dest].name, value)
        if kind.action != "switch":
            given[dest] = value if parsed is None else parsed  # None is kept for "not given"
        elif value:
            given[dest] = True
    given |= {dest: value for dest, value in vars(args).items() if value is not None and dest in {*flags, "table"}}
    given.pop("config", None)
    for flag in ALL_TRAIN_FLAGS:  # the model's too: what one needs may be in either place
        if flag.dest in given and flag.needs is not None:
            needed = flag.needs.removeprefix("--").replace("-", "_")
            if needed not in given:
                raise InputError(f"{flag.name} does nothing without {flag.needs}; give {flag.needs}, or leave it out")
    return given


def _read_config(path: str, flags: Mapping[str, Flag]) -> dict[str, Any]:
    try:
        text = read_small(path)
    except (OSError, ValueError) as error:
        raise InputError(f"--config cannot read {path!r}: {error}") from error
    if path.endswith(".toml"):
        try:
            data: Any = tomllib.loads(text)
        except (ValueError, RecursionError) as error:  # also of numbers and of nesting without end
            raise InputError(f"--config {path} is not valid TOML: {error}") from error
    elif path.endswith(".json"):
        data = parse_json(text, f"--config {path}")
    else:
        raise InputError(f"--config must be a .json or a .toml file, got {path!r}")
    if not isinstance(data, Mapping):
        raise InputError(f"--config {path} must hold an object of flags and values, got {type(data).__name__}")
    names = {key: key.replace("-", "_") for key in data}
    known = {*flags, "table"}.difference(_TYPED_ALONE)
    for key, name in names.items():
        if name in _TYPED_ALONE:
            raise InputError(f"--config {path} has {key!r}, which works on the command line alone; leave it out")
        if name not in known:
            raise InputError(
                f"--config {path} has {key!r}, which is no flag of reghead train{did_you_mean(name, known)}"
            )
    if len(set(names.values())) < len(names):
        raise InputError(f"--config {path} gives one flag twice, with dashes and with underscores")
    return {name: data[key] for key, name in names.items() if data[key] is not None}
