"""The command ``reghead``: train, predict and evaluate on a table. Needs the extra ``cli``."""

from reghead.cli._main import main

__all__ = ["main"]
