"""The command ``reghead-aam``."""

import sys
from collections.abc import Sequence

from reghead._optional import import_optional


def main(argv: Sequence[str] | None = None) -> int:
    """Run ``reghead-aam`` with ``argv``, those of the process by default.

    Returns:
        The exit code: 0, 1 after an error in the data or the flags, 2 if a flag has no such value or AAM is missing.

    Example:
        >>> main(["no-such-command"])
        2
    """
    try:
        click = import_optional("click", extra="aam")
        from reghead.adapters.aam._predict import predict_command
        from reghead.adapters.aam._train import train_command

        group = click.Group(
            "reghead-aam", help="AAM's training and prediction, with heads, losses and normalizers of reghead."
        )
        for command in (train_command(), predict_command()):
            group.add_command(command)
    except ImportError as error:
        print(f"reghead-aam: error: {error}", file=sys.stderr)
        return 2
    try:
        group.main(args=None if argv is None else list(argv), prog_name="reghead-aam")
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 1
    return 0
