"""From flags to a configuration."""

import argparse
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from reghead.config._base import Config, OptionError
from reghead.config._flag import Flag
from reghead.config._flags import FLAGS
from reghead.config._head import HeadConfig, MoEConfig
from reghead.config._loss import LossConfig
from reghead.config._normalizer import NormalizerConfig
from reghead.config._regression import RegressionConfig

C = TypeVar("C", bound=Config)

_SPELLING = {flag.field: flag.name for flag in FLAGS}


def add_arguments(parser: argparse.ArgumentParser, flags: Sequence[Flag] = FLAGS) -> None:
    """Add ``flags`` to ``parser``, grouped, each with its default in the help.

    A flag that is not given is ``None`` in the parsed arguments, so that :func:`config_from_args` can tell it from
    one given at its default.

    Args:
        parser: Of any program.
        flags: All of reghead's, or those that the program wants, and its own.

    Example:
        >>> import argparse
        >>> parser = argparse.ArgumentParser()
        >>> add_arguments(parser)
        >>> parser.parse_args(["--regressor-hidden-dims", "64,32"]).regressor_hidden_dims
        (64, 32)
    """
    groups = {title: parser.add_argument_group(title) for title in dict.fromkeys(flag.group for flag in flags)}
    for flag in flags:
        described = f"{flag.help} (default: {flag.default})".replace("%", "%%")
        if flag.kind.action == "text":
            groups[flag.group].add_argument(
                flag.name, dest=flag.dest, type=_argument_type(flag), metavar=flag.kind.metavar, help=described
            )
        elif flag.kind.action == "switch":
            groups[flag.group].add_argument(flag.name, dest=flag.dest, action="store_const", const=True, help=described)
        else:
            groups[flag.group].add_argument(
                flag.name, dest=flag.dest, action=argparse.BooleanOptionalAction, help=described
            )


def config_from_args(args: argparse.Namespace | Mapping[str, Any], *, outputs: Sequence[str] = ()) -> RegressionConfig:
    """The configuration that parsed flags describe.

    Args:
        args: What a parser filled by :func:`add_arguments` returned, or a mapping with the same names. Values may
            be text or parsed; ``None``, or a name left out, means that the flag was not given. Other names are
            ignored.
        outputs: Names of the targets, in their order, where they are known.

    Raises:
        TypeError: If a value has the wrong type.
        ValueError: If a value or a combination of flags is refused; the message speaks of flags.

    Example:
        >>> config_from_args({"regressor_hidden_dims": "64,32", "loss_type": "mse"}).head.hidden_dims
        (64, 32)
    """
    given = _given(args)
    moe = None
    if "head.moe.num_experts" in given:
        asked = _section(given, "head.moe.")
        moe = _build(MoEConfig, "head.moe.", route_features="routing" not in asked, **asked)
        if "top_k" in asked and moe.gate != "top_k":
            raise ValueError(f"--moe-top-k needs --moe-gate top_k, got --moe-gate {moe.gate}; leave one of them out")
    asked = _section(given, "head.")
    asked.setdefault("fusion", "concat" if asked.get("columns") else None)
    head = _build(HeadConfig, "head.", moe=moe, out_features=len(outputs) or 1, **asked)
    config = _build(RegressionConfig, "", head=head, loss=_loss(given, tuple(outputs)), normalizer=_normalizer(given))
    if "head.non_crossing" in given and config.head.quantiles is None:
        raise ValueError(
            f"--allow-crossing needs quantiles, and --loss-type {config.loss.type} predicts none; "
            "choose --loss-type quantile, or leave --allow-crossing out"
        )
    return config


def _given(args: argparse.Namespace | Mapping[str, Any]) -> dict[str, Any]:
    """The values of the flags that were given, by field."""
    values = vars(args) if isinstance(args, argparse.Namespace) else args
    flags = {
        flag.name: flag
        for flag in FLAGS
        if values.get(flag.dest) is not None and not (flag.kind.action == "switch" and values[flag.dest] is False)
    }
    for flag in flags.values():
        if flag.needs is not None and flag.needs not in flags:
            raise ValueError(f"{flag.name} does nothing without {flag.needs}; give {flag.needs}, or leave it out")
    return {flag.field: flag.kind.parse(flag.name, values[flag.dest]) for flag in flags.values()}


def _loss(given: Mapping[str, Any], outputs: tuple[str, ...]) -> LossConfig:
    asked = _section(given, "loss.")
    loss = _build(LossConfig, "loss.", outputs=outputs, **asked)
    for parameter in asked.keys() - {"type", "per_output"}:
        try:
            loss.refuse_unused(parameter)
        except OptionError as error:
            raise _in_flags(error, "loss.") from error
    return loss


def _normalizer(given: Mapping[str, Any]) -> NormalizerConfig | None:
    asked = _section(given, "normalizer.")
    wanted = given.get("normalizer")
    mixed = asked.get("method", "moments") != "moments"
    if wanted is not None and "by" in asked:
        raise ValueError(
            f"{'--normalize-targets' if wanted else '--no-normalize-targets'} and --normalize-targets-by exclude "
            "each other: one global mean, none, or one for each category; keep one of them"
        )
    if wanted is False and mixed:
        raise ValueError("--normalize-method mixed_effects and --no-normalize-targets exclude each other; keep one")
    if wanted is False and asked.get("transform", "identity") != "identity":
        raise ValueError(
            f"--target-transform {asked['transform']} is part of the normalization that --no-normalize-targets "
            "turns off; keep one of them"
        )
    transforms = asked.get("transform", "identity") != "identity"
    needed = wanted or "by" in asked or transforms or mixed
    return _build(NormalizerConfig, "normalizer.", **asked) if needed else None


def _section(given: Mapping[str, Any], path: str) -> dict[str, Any]:
    fields = {field.removeprefix(path): value for field, value in given.items() if field.startswith(path)}
    return {field: value for field, value in fields.items() if "." not in field}


def _build(kind: type[C], path: str, **values: Any) -> C:
    try:
        return kind(**values)
    except OptionError as error:
        raise _in_flags(error, path) from error


def _in_flags(error: OptionError, path: str) -> ValueError:
    return ValueError(error.spelled(lambda field: _SPELLING.get(path + field, field)))


def _argument_type(flag: Flag) -> Any:
    def parse(text: str) -> Any:
        try:
            value = flag.kind.parse("value", text)
        except (TypeError, ValueError) as error:
            raise argparse.ArgumentTypeError(str(error)) from error
        return text if value is None else value  # None is kept for "not given"

    return parse
