"""What a user of the command did not mean: told in one line, without a traceback."""


class InputError(Exception):
    """Something about the files or flags that the user can mend; the message says what, and how."""


class ToldElsewhereError(Exception):
    """What ends this process was, or is being, told by another one of the same training."""
