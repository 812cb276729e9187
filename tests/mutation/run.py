#!/usr/bin/env python3
"""Change the source at 500 places, one at a time, and see whether the tests notice.

    python tests/mutation/run.py --count 500 --workers 2

Cosmic Ray makes the changes; a fixed seed draws them from all it could make in the packages below, but for those that
no test can tell (annotations) and those that any call would (bits of floats). A change is tried on the tests that run
its line, those of its own package first, until one fails. Each worker has a copy of the tree. The report names the
survivors, to be judged by a reader.
"""

import argparse
import ast
import concurrent.futures
import dataclasses
import difflib
import json
import os
import queue
import random
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import coverage
from cosmic_ray.ast import ast_nodes, get_ast_from_path
from cosmic_ray.mutating import mutate_code
from cosmic_ray.plugins import get_operator, operator_names

ROOT = Path(__file__).parents[2]
PACKAGES = ("functional", "losses", "normalization", "calibration", "nn")
TESTS = (
    *(f"tests/unit/{name}" for name in (*PACKAGES, "heads", "metrics", "test_checks.py", "test_reduction.py")),
    *("tests/properties", "tests/reference", "tests/numerics", "tests/guarantees", "tests/contracts/test_sweep.py"),
)
TRIVIAL = re.compile(r"(Add|Sub|Mul|Div|FloorDiv|Mod|Pow)_(Bit|LShift|RShift)|USub_(Invert|Not)")
SECONDS = 300  # after which a changed program counts as hanging, and so as noticed


@dataclasses.dataclass(frozen=True)
class Mutant:
    """One change: the n-th place of a file that an operator fits."""

    path: str
    operator: str
    occurrence: int
    line: int


def mutants() -> list[Mutant]:
    """All that could be made, in a fixed order."""
    found = []
    operators = [(name, get_operator(name)) for name in sorted(operator_names()) if not TRIVIAL.search(name)]
    plain = [(name, operator()) for name, operator in operators if not operator.arguments()]
    for package in PACKAGES:
        for path in sorted((ROOT / "src/reghead" / package).glob("*.py")):
            silent = unobservable(path)
            nodes = list(ast_nodes(get_ast_from_path(path)))
            for name, operator in plain:
                places = [start for node in nodes for start, _ in operator.mutation_positions(node)]
                relative = str(path.relative_to(ROOT))
                found += [
                    Mutant(relative, name, n, line)
                    for n, (line, column) in enumerate(places)
                    if not any(start <= (line, column) < end for start, end in silent)
                ]
    return found


def unobservable(path: Path) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """Where a change means nothing: annotations, and what is for type checkers only."""
    spans: list[ast.AST] = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef):
            arguments = [
                *node.args.posonlyargs,
                *node.args.args,
                *node.args.kwonlyargs,
                node.args.vararg,
                node.args.kwarg,
            ]
            spans += [a.annotation for a in arguments if a is not None and a.annotation is not None]
            spans += [] if node.returns is None else [node.returns]
            spans += [d for d in node.decorator_list if ast.unparse(d) == "overload"]
        elif isinstance(node, ast.AnnAssign):
            spans.append(node.annotation)
        elif isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            spans.append(node)
    return [((s.lineno, s.col_offset), (s.end_lineno or 0, s.end_col_offset or 0)) for s in spans]  # type: ignore[attr-defined]


def environment(tree: Path) -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(tree / "src"), "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"}


def tests_by_line(folder: Path) -> dict[str, dict[int, list[str]]]:
    """For each file of the packages, the tests that run each line; from one run with coverage."""
    data = folder / "coverage"
    where = [path for path in TESTS if (ROOT / path).exists()]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "not slow", *where]
    command += ["--cov=reghead", "--cov-context=test", "--cov-report=", "--cov-fail-under=0"]
    command += ["-o", "addopts=--import-mode=importlib"]
    subprocess.run(command, cwd=ROOT, env=environment(ROOT) | {"COVERAGE_FILE": str(data)}, check=True)
    measured = coverage.CoverageData(basename=str(data))
    measured.read()
    found = {}
    for path in measured.measured_files():
        lines = measured.contexts_by_lineno(path)
        tests = {line: sorted({c.split("|")[0] for c in contexts if c}) for line, contexts in lines.items()}
        found[str(Path(path).relative_to(ROOT))] = tests
    return found


def ordered(mutant: Mutant, tests: dict[int, list[str]]) -> list[str]:
    """The tests that run the line, or any line of the file where it runs at import; the nearest first."""
    chosen = tests.get(mutant.line) or sorted({test for line in tests.values() for test in line})
    package, stem = Path(mutant.path).parts[2], Path(mutant.path).stem.strip("_")
    return sorted(chosen, key=lambda test: (stem not in test.split("::")[0], f"/{package}/" not in test, test))


def copies(count: int, folder: Path) -> "queue.Queue[Path]":
    trees: queue.Queue[Path] = queue.Queue()
    for number in range(count):
        tree = folder / f"tree{number}"
        for name in ("src", "tests", "examples", "docs", "benchmarks"):
            shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__", "_build"))
        for name in ("pyproject.toml", "README.md", "CHANGELOG.md", "CONTRIBUTING.md", "noxfile.py", "constraints.txt"):
            shutil.copy(ROOT / name, tree / name)
        trees.put(tree)
    return trees


def outcome(mutant: Mutant, tests: Sequence[str], trees: "queue.Queue[Path]") -> tuple[str, str]:
    """Killed, survived or timeout, and the change as a diff."""
    tree = trees.get()
    path = tree / mutant.path
    before = path.read_text()
    try:
        after = mutate_code(before, get_operator(mutant.operator)(), mutant.occurrence)
        diff = "".join(difflib.unified_diff(*(t.splitlines(keepends=True) for t in (before, after)), n=1))
        if not tests:
            return "survived", diff
        path.write_text(after)
        names = tree / "names.txt"
        names.write_text("\n".join(tests))
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "--no-header", f"@{names}"]
        command += ["-o", "addopts=--import-mode=importlib"]
        done = subprocess.run(
            command, cwd=tree, env=environment(tree), capture_output=True, timeout=SECONDS, check=False
        )
        return ("survived" if done.returncode == 0 else "killed"), diff
    except subprocess.TimeoutExpired:
        return "timeout", diff
    finally:
        path.write_text(before)
        trees.put(tree)


def results(
    chosen: Sequence[Mutant], by_line: dict[str, dict[int, list[str]]], workers: int
) -> Iterator[tuple[Mutant, str, str]]:
    with tempfile.TemporaryDirectory() as folder, concurrent.futures.ThreadPoolExecutor(workers) as pool:
        trees = copies(workers, Path(folder))
        calls = {
            pool.submit(outcome, mutant, ordered(mutant, by_line.get(mutant.path, {})), trees): mutant
            for mutant in chosen
        }
        for call in concurrent.futures.as_completed(calls):
            yield calls[call], *call.result()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--part", default="0/1", help="2/5: the third fifth of the sample, to spread a long run")
    parser.add_argument("--output", type=Path, default=Path("build/mutants.json"))
    args = parser.parse_args()
    everything = mutants()
    sample = random.Random(args.seed).sample(everything, min(args.count, len(everything)))
    number, parts = map(int, args.part.split("/"))
    chosen = sample[number::parts]
    print(f"{len(chosen)} of {len(everything):,} changes", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        by_line = tests_by_line(Path(folder))
    done = []
    for mutant, verdict, diff in results(chosen, by_line, args.workers):
        done.append({**dataclasses.asdict(mutant), "verdict": verdict, "diff": diff})
        print(f"{len(done)}/{len(chosen)} {verdict}: {mutant.path}:{mutant.line} {mutant.operator}", flush=True)
        if verdict == "survived":
            print(diff, flush=True)
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.write_text(json.dumps(done, indent=1))
    noticed = sum(each["verdict"] != "survived" for each in done)
    print(f"{noticed} of {len(done)} noticed ({noticed / len(done):.1%})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
