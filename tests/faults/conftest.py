"""Processes that come to grief."""

from pathlib import Path

import pytest

from faults._victim import Victims


@pytest.fixture
def victims(tmp_path: Path) -> Victims:
    """Those whose files are in the folder ``here`` of ``tmp_path``."""
    (tmp_path / "here").mkdir()
    return Victims(tmp_path / "here")
