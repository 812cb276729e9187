"""``python -m reghead``, the same as the command ``reghead``."""

import os
import sys

from reghead.cli import main

if __name__ == "__main__":
    code = main()
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        # All is written and the process group is gone. Threads of torch's can abort a process of several that ends in
        # the usual way ("terminate called without an active exception"), and torchrun then stops the others.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)
