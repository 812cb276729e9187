"""A missing optional package names its extra, and costs nothing until it is needed."""

import sys
from pathlib import Path

import pytest

from reghead._optional import import_optional
from reghead.heads import RegressionHead


def test_missing_package_names_its_extra() -> None:
    with pytest.raises(ImportError, match=r"this needs no_such_package.*pip install 'reghead\[plots\]'"):
        import_optional("no_such_package.part", extra="plots")


def test_present_package_is_imported() -> None:
    assert import_optional("json", extra="none") is sys.modules["json"]


def test_save_and_load_without_safetensors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    head = RegressionHead(2, 1)
    head.save(tmp_path / "head.safetensors")
    for name in [n for n in sys.modules if n.partition(".")[0] == "safetensors"]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match=r"needs safetensors.*pip install 'reghead\[safetensors\]'"):
        head.save(tmp_path / "other.safetensors")
    with pytest.raises(ImportError, match=r"needs safetensors.*pip install 'reghead\[safetensors\]'"):
        RegressionHead.load(tmp_path / "head.safetensors")
    assert not (tmp_path / "other.safetensors").exists()
