"""``python -m reghead``, the same as the command ``reghead``."""

import sys

from reghead.cli import main

if __name__ == "__main__":
    sys.exit(main())
