"""The command on a small table, for the tests of its flags."""

import pytest

from end_to_end._cli import Cli


@pytest.fixture(scope="session")
def cli(tmp_path_factory: pytest.TempPathFactory) -> Cli:
    """Trains each line of flags once."""
    return Cli(tmp_path_factory.mktemp("cli"))
