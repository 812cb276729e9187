"""A table, and a command to train on it, for each host."""

import sys
from pathlib import Path

import pytest

from adapters._command_stand_in import modules
from adapters._hosts import HOSTS
from adapters._table import write_table


@pytest.fixture(params=HOSTS)
def aam(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    name: str = request.param
    if name == "stand-in":
        for module, value in modules().items():
            monkeypatch.setitem(sys.modules, module, value)
    return name


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {}


@pytest.fixture
def folder(aam: str, folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    if aam not in folders:
        folders[aam] = write_table(tmp_path_factory.mktemp("table"), biom_format=aam == "aam")
    return folders[aam]
