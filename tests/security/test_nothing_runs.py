"""Nothing that is read is run: no pickle, no code, no name that is imported because a file says so."""

import ast
import json
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import reghead
from _command import lakes, saved, train
from reghead.adapters.aam._load import read_checkpoint
from reghead.categories import CategoryEncoder
from reghead.cli import main
from reghead.cli._checkpoint import FileCheckpoint
from reghead.cli._errors import InputError
from reghead.cli._tables import open_table
from reghead.config import LossConfig, RegressionConfig
from reghead.heads import RegressionHead
from reghead.losses import PerOutputLoss, make_loss

SOURCES = sorted(Path(reghead.__file__).parent.rglob("*.py"))
MODULES = {
    "pickle",
    "cPickle",
    "_pickle",
    "dill",
    "cloudpickle",
    "joblib",
    "marshal",
    "shelve",
    "yaml",
    "subprocess",
    "runpy",
    "code",
    "ctypes",
}
HELPERS = {("_arrow.py", "module"), ("_loss.py", "name"), ("_loss.py", "module")}
CALLS = {
    "eval",
    "exec",
    "compile",
    "__import__",
    "os.system",
    "os.popen",
    "pd.eval",
    "pandas.eval",
    "torch.jit.load",
    "torch.hub.load",
}


def name_of(node: ast.AST) -> str:
    """``a.b.c`` of an expression; empty for anything else."""
    if isinstance(node, ast.Name):
        return node.id
    return f"{name_of(node.value)}.{node.attr}" if isinstance(node, ast.Attribute) else ""


def offences(tree: ast.AST) -> list[str]:
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
            found += [name for name in names if name.partition(".")[0] in MODULES]
        if not isinstance(node, ast.Call):
            continue
        called, given = name_of(node.func), {word.arg: word.value for word in node.keywords}
        if called in CALLS or called.endswith((".read_pickle", ".to_pickle")):
            found.append(called)
        if called == "torch.load" and not is_constant(given.get("weights_only"), True):
            found.append("torch.load without weights_only=True")
        if called in ("np.load", "numpy.load") and not is_constant(given.get("allow_pickle"), False):
            found.append("np.load without allow_pickle=False")
    return found


def is_constant(node: ast.AST | None, value: object) -> bool:
    return isinstance(node, ast.Constant) and node.value is value


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: str(path.relative_to(Path(reghead.__file__).parent)))
def test_the_sources_have_no_way_to_run_a_file(source: Path) -> None:
    assert offences(ast.parse(source.read_text(encoding="utf-8"))) == []


@pytest.mark.parametrize(
    "code",
    [
        *("import pickle", "from joblib import load", "eval(x)", "exec(x)", "torch.load(p)", "import yaml"),
        *("torch.load(p, weights_only=False)", "np.load(p)", "np.load(p, allow_pickle=True)", "pd.read_pickle(p)"),
    ],
)
def test_the_search_finds_what_it_is_for(code: str) -> None:
    assert offences(ast.parse(code))


def test_a_module_is_imported_by_name_where_the_source_names_it() -> None:
    """The one function that imports by name is never given a name that was read."""
    for source in SOURCES:
        for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            called = name_of(node.func)
            if called.endswith("import_module"):
                assert source.name == "_optional.py"
            if called == "import_optional":
                named = node.args[0]
                # A parameter of a helper whose callers write the name, or the name itself.
                start = named.values[0] if isinstance(named, ast.JoinedStr) else named  # such as f"rich.{part}"
                assert isinstance(start, ast.Constant) or (source.name, name_of(named)) in HELPERS, source
            if called in ("need", "import_aam") and node.args:
                assert isinstance(node.args[0], ast.Constant), source


class Malice:
    """Its pickle makes a file when it is read."""

    def __init__(self, place: Path) -> None:
        self.place = place

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.place),)


@pytest.fixture
def ran(tmp_path: Path) -> Path:
    """What is there after the pickle was read."""
    return tmp_path / "it-ran"


@pytest.fixture
def pickles(tmp_path: Path, ran: Path) -> list[Path]:
    """The same thing in the formats that torch, NumPy and pickle itself write."""
    made = [tmp_path / name for name in ("a.pkl", "b.pt", "c.npz", "d.npy")]
    made[0].write_bytes(pickle.dumps(Malice(ran)))
    torch.save({"model_state_dict": Malice(ran)}, made[1])
    np.savez(made[2], ids=np.array([Malice(ran)], object), embeddings=np.zeros((1, 2)))
    np.save(made[3], np.array([Malice(ran)], object), allow_pickle=True)
    return made


def test_the_pickle_would_run(pickles: list[Path], ran: Path) -> None:
    pickle.loads(pickles[0].read_bytes())
    assert ran.is_dir()


def test_a_pickle_is_no_model(tmp_path: Path, pickles: list[Path], ran: Path) -> None:
    for file in pickles:
        with pytest.raises(ValueError, match="is not a whole safetensors file"):
            RegressionHead.load(file)
        with pytest.raises(
            ValueError, match=r"is no checkpoint that can be read by its weights alone|has no head of reghead"
        ):
            read_checkpoint(file)
        (tmp_path / "checkpoint.safetensors").write_bytes(file.read_bytes())
        with pytest.raises(InputError, match="is damaged"):
            FileCheckpoint(tmp_path / "checkpoint.safetensors", {}).restore()
    assert not ran.exists()


def test_a_pickle_is_no_table(tmp_path: Path, pickles: list[Path], ran: Path) -> None:
    metadata = saved(tmp_path, lakes())
    for file in pickles:
        for name in ("t.csv", "t.csv.gz", "t.tsv", "t.parquet", "t.npz"):
            table = tmp_path / name
            table.write_bytes(file.read_bytes())
            with pytest.raises(InputError):
                open_table(table, metadata=metadata if name == "t.npz" else None, id_column="id")
    assert not ran.exists()


def test_a_pickle_in_the_place_of_a_trained_model(tmp_path: Path, pickles: list[Path], ran: Path, capsys: Any) -> None:
    import hashlib

    table = saved(tmp_path, lakes())
    assert train(table, tmp_path / "out", "--max-epochs", 1) == 0
    for file in pickles:
        content = file.read_bytes()
        (tmp_path / "out" / "model.safetensors").write_bytes(content)
        record = json.loads((tmp_path / "out" / "run.json").read_text())
        record["model"]["sha256"] = hashlib.sha256(content).hexdigest()
        (tmp_path / "out" / "run.json").write_text(json.dumps(record))
        assert main(["predict", str(tmp_path / "out"), str(table)]) == 2
        assert "is not a whole safetensors file" in capsys.readouterr().err
    assert not ran.exists()


EVIL = [
    "os.system",
    "builtins.eval",
    "torch.nn.MSELoss",
    "reghead.losses.PinballLoss",
    "PinballLoss",
    "__import__('os')",
    "__class__",
]


@pytest.mark.parametrize("name", EVIL)
def test_a_loss_is_one_of_the_table_and_never_a_name_to_import(name: str) -> None:
    for build in (
        lambda: LossConfig(type=name),  # type: ignore[arg-type]
        lambda: LossConfig(per_output={"pH": name}),  # type: ignore[dict-item]
        lambda: LossConfig(per_output={"pH": {"type": "mse", name: 1}}),
        lambda: make_loss({"type": name}),
        lambda: make_loss(name),
        lambda: PerOutputLoss({"pH": name}, outputs=["pH"]),
        lambda: RegressionConfig.from_dict({"head": {"activation": name}}),
        lambda: RegressionConfig.from_dict({name: {}}),
        lambda: CategoryEncoder.from_dict({"format": 1, "type": name, "columns": []}),
    ):
        with pytest.raises((ValueError, TypeError)):
            build()
