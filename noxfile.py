#!/usr/bin/env python3
"""The project's jobs: ``nox`` runs the gate, ``nox -l`` lists them all, ``nox -s lint`` runs one.

torch is large, so there is one environment instead of one per job: the one that nox itself runs in.
"""

import os
import sys
from pathlib import Path

import nox

nox.needs_version = ">=2025.2.9"
nox.options.default_venv_backend = "none"
nox.options.sessions = ["lint", "docs", "tests"]

BIN = Path(sys.executable).parent
CONSTRAINTS = Path(__file__).with_name("constraints.txt").as_posix()
PARTS = ("calibration", "functional", "heads", "losses", "nn", "normalization")
SMOKE = ("tests/contracts/test_imports.py", *(f"tests/unit/{part}" for part in PARTS))
SLOW = "tests/unit/normalization/test_mixed_effects_iterated.py"  # what solves it says nothing of a wheel
os.environ["PATH"] = os.pathsep.join([str(BIN), os.environ["PATH"]])


def install(session: nox.Session, *requirements: str) -> None:
    """Install with every version held by constraints.txt, also inside an isolated build."""
    held = ("--constraint", CONSTRAINTS, "--build-constraint", CONSTRAINTS)
    session.run_install("python", "-m", "pip", "install", "--quiet", *held, *requirements)


@nox.session
def lint(session: nox.Session) -> None:
    """Style, format, types, imports that point down only, and workflows that are well-formed and safe."""
    install(session, "--editable", ".[cli]", "--group", "lint")
    session.run("ruff", "check", ".")
    session.run("ruff", "format", "--check", ".")
    session.run("mypy")
    session.run("lint-imports")
    workflows = sorted(map(str, Path(".github/workflows").glob("*.yml")))
    session.run("check-jsonschema", "--builtin-schema", "vendor.github-workflows", *workflows)
    session.run("zizmor", "--offline", "--quiet", ".github")


@nox.session
def docs(session: nox.Session) -> None:
    """Build the documentation and run its tutorials; a warning, a name left out or a dead link is an error."""
    install(session, "--editable", ".[cli]", "--group", "docs")
    site = "docs/_build/html"
    session.run("sphinx-build", "-W", "--keep-going", "--fresh-env", "-q", "docs", site)
    session.run("pytest", "-q", "tests/docs/test_site.py", env={"REGHEAD_SITE": site})


@nox.session
def tests(session: nox.Session) -> None:
    """Test all, with branch coverage on two processes, or run pytest with the arguments after ``--``."""
    install(session, "--editable", ".[cli]", "--group", "test")
    gate = ("-m", "not long", "-n", "2", "--cov", "--cov-branch", "--cov-report=term-missing:skip-covered")
    # Two processes with a thread for every core each are slower than two with one.
    session.run("pytest", *(session.posargs or gate), env={"OMP_NUM_THREADS": "1"})


@nox.session
def quickstart(session: nox.Session) -> None:
    """Run the command ``reghead`` on a real table: train, evaluate, predict."""
    install(session, "--editable", ".[cli,examples]")
    session.run("python", "examples/command_line.py", *(session.posargs or ("--output-dir", "build/ames")))


@nox.session
def library(session: nox.Session) -> None:
    """Run the examples of the library: the parts in a training loop of its own, and scikit-learn around them."""
    install(session, "--editable", ".[examples,sklearn]")
    session.run("python", "examples/quickstart.py", *(session.posargs or ("--output-dir", "build")))
    session.run("python", "examples/estimator.py")


@nox.session(venv_backend="venv")
def build(session: nox.Session) -> None:
    """Build the sdist and the wheel, check them, and then test the wheel."""
    tools = ("pip", "build", "check-wheel-contents", "twine")
    session.run_install("python", "-m", "pip", "install", "--quiet", "-c", CONSTRAINTS, *tools)
    session.run("python", "-m", "build", "--outdir", "dist", env={"PIP_BUILD_CONSTRAINT": CONSTRAINTS})
    session.run("twine", "check", "--strict", *map(str, Path("dist").iterdir()))
    session.run("check-wheel-contents", *map(str, Path("dist").glob("*.whl")))
    session.notify("wheel")


@nox.session(venv_backend="venv")
def wheel(session: nox.Session) -> None:
    """Test the parts from the wheel that ``build`` made, with the versions of constraints.txt and no extras."""
    (built,) = map(str, Path("dist").glob("*.whl"))
    smoke(session, "-c", CONSTRAINTS, built)


@nox.session(venv_backend="venv")
def lowest(session: nox.Session) -> None:
    """Test the parts with the lowest versions that pyproject.toml allows, and no extras."""
    needed = nox.project.load_toml("pyproject.toml")["project"]["dependencies"]
    smoke(session, *(f"{requirement.replace('>=', '==')}.*" for requirement in needed), ".")


@nox.session(venv_backend="venv")
def audit(session: nox.Session) -> None:
    """Ask the advisory database about each version of constraints.txt; one that nobody knows is an error too."""
    session.run_install("python", "-m", "pip", "install", "--quiet", "pip-audit>=2.9")
    session.run("pip-audit", "--strict", "--no-deps", "--disable-pip", "--requirement", CONSTRAINTS)


def smoke(session: nox.Session, *requirements: str) -> None:
    """Install the package, and run the tests that need no extra on what is installed."""
    session.run_install("python", "-m", "pip", "install", "--quiet", *requirements)
    session.run_install("python", "-m", "pip", "install", "--quiet", "-c", CONSTRAINTS, "pytest", "hypothesis")
    # -P: the folder that this runs in is no place to import from.
    session.run("python", "-P", "-c", "import reghead; assert 'site-packages' in reghead.__file__, reghead.__file__")
    session.run("python", "-P", "tests/contracts/test_api_surface.py", "--check")
    session.run("python", "-P", "-m", "pytest", "-q", *SMOKE, "--ignore", SLOW, env={"OMP_NUM_THREADS": "1"})


if __name__ == "__main__":
    nox.main()
