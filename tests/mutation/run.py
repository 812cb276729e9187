#!/usr/bin/env python3
"""Change the source at 500 places, one at a time, and see whether the tests notice.

    python tests/mutation/run.py --count 500 --workers 2

Cosmic Ray makes the changes; a fixed seed draws them from all it could make in the packages below, but for those that
no test can tell (annotations, ``strict=True`` of zip, and lines with ``# pragma: no mutate``, which decide how fast a
result comes and not which) and those that any call would (bits of floats). A change is tried on the tests that run its
line, those of its own package first, until one fails. Each worker has a copy of the tree. The report names the
survivors, to be judged by a reader. ``--tests`` keeps which test runs which line, for the next run; with ``--earlier``
only what was not noticed then is tried again, on the same sources.
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
SAME = re.compile(r"_(Eq_Is|Is_Eq|NotEq_IsNot|IsNot_NotEq)$")  # for None and for small numbers
SURFACE = "tests/contracts/test_api_surface.py"
SECONDS = 60.0  # of tests that a change is tried on
CHOSEN = "not slow and not long"
OPTIONS = ("-o", "addopts=--import-mode=importlib", "-W", "ignore::pytest.PytestAssertRewriteWarning")
SERVER = Path(__file__).with_name("_tests.py")


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


def tells(mutant: Mutant) -> bool:
    """Whether it may change a result. Asked of those drawn: a line that comes to say no makes room for one more."""
    line = (ROOT / mutant.path).read_text().splitlines()[mutant.line - 1]
    return SAME.search(mutant.operator) is None and "pragma: no mutate" not in line


def unobservable(path: Path) -> list[tuple[tuple[int, int], tuple[int, int]]]:
    """Where a change means nothing: annotations, what is for type checkers only, and ``strict`` of zip, a belief."""
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
        elif isinstance(node, ast.keyword) and node.arg == "strict":
            spans.append(node.value)
        elif isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            spans.append(node)
    return [((s.lineno, s.col_offset), (s.end_lineno or 0, s.end_col_offset or 0)) for s in spans]  # type: ignore[attr-defined]


def environment(tree: Path) -> dict[str, str]:
    return os.environ | {
        "PYTHONPATH": str(tree / "src"),
        "OMP_NUM_THREADS": "1",
        "PYTHONDONTWRITEBYTECODE": "1",
        "CI": "1",  # the same examples of Hypothesis each time
    }


@dataclasses.dataclass(frozen=True)
class Tests:
    """Which tests run which line of which file, and the seconds that each takes; from one run with coverage."""

    by_line: dict[str, dict[str, list[str]]]
    seconds: dict[str, float]

    @classmethod
    def measure(cls, folder: Path) -> "Tests":
        data, durations = folder / "coverage", folder / "durations.json"
        command = [sys.executable, str(SERVER), str(durations), "-q", "-p", "no:cacheprovider", "-m", CHOSEN]
        command += [path for path in TESTS if (ROOT / path).exists()]
        command += ["--cov=reghead", "--cov-context=test", "--cov-report=", "--cov-fail-under=0", *OPTIONS]
        subprocess.run(command, cwd=ROOT, env=environment(ROOT) | {"COVERAGE_FILE": str(data)}, check=True)
        measured = coverage.CoverageData(basename=str(data))
        measured.read()
        by_line = {}
        for path in measured.measured_files():
            lines = measured.contexts_by_lineno(path)
            tests = {str(line): sorted({c.split("|")[0] for c in contexts if c}) for line, contexts in lines.items()}
            by_line[str(Path(path).relative_to(ROOT))] = tests
        return cls(by_line, json.loads(durations.read_text()))

    def of(self, mutant: Mutant) -> list[list[str]]:
        """Those that run the line, or any line of the file where it runs at import: first the nearest, then the rest.

        Quick ones come first, and there are as many as take ``SECONDS`` in all: a change that only the others would
        notice counts as not noticed.
        """
        lines = self.by_line.get(mutant.path, {})
        chosen = lines.get(str(mutant.line)) or sorted({test for tests in lines.values() for test in tests})
        package, stem = Path(mutant.path).parts[2], Path(mutant.path).stem.strip("_")
        near = [test for test in chosen if stem in test.split("::")[0] or f"/{package}/" in test]
        rest = sorted(set(chosen) - set(near))
        groups, spent = [], 0.0
        for group in (near, rest):
            groups.append([])
            for test in sorted(group, key=lambda test: self.seconds.get(test, 0.0)):
                spent += self.seconds.get(test, 0.0)
                if spent < SECONDS:
                    groups[-1].append(test)
        return [group for group in (*groups, [SURFACE]) if group]

    def limit(self, tests: Sequence[str]) -> float:
        """Seconds after which a changed program counts as hanging, and so as noticed."""
        return 60 + 10 * sum(self.seconds.get(test, 0.0) for test in tests)


class Worker:
    """A copy of the tree, and a process that runs tests in it."""

    def __init__(self, tree: Path) -> None:
        self.tree = tree
        for name in ("src", "tests", "examples", "docs", "benchmarks"):
            shutil.copytree(ROOT / name, tree / name, ignore=shutil.ignore_patterns("__pycache__", "_build"))
        for name in ("pyproject.toml", "README.md", "CHANGELOG.md", "CONTRIBUTING.md", "noxfile.py", "constraints.txt"):
            shutil.copy(ROOT / name, tree / name)
        self.process = subprocess.Popen(
            [sys.executable, str(SERVER)],
            cwd=tree,
            env=environment(tree),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )

    def notices(self, tests: Sequence[str], seconds: float) -> str:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        names = self.tree / "names.txt"
        names.write_text("\n".join(tests))
        arguments = ["-x", "-q", "-p", "no:cacheprovider", "-m", CHOSEN, "--hypothesis-profile=noticing", *OPTIONS]
        print(json.dumps({"arguments": [*arguments, f"@{names}"], "seconds": seconds}), file=self.process.stdin)
        self.process.stdin.flush()
        code = json.loads(self.process.stdout.readline())
        return "timeout" if code is None else "survived" if code == 0 else "killed"

    def outcome(self, mutant: Mutant, tests: Tests) -> tuple[str, str]:
        """Killed, survived or timeout, and the change as a diff."""
        path = self.tree / mutant.path
        before = path.read_text()
        after = mutate_code(before, get_operator(mutant.operator)(), mutant.occurrence)
        diff = "".join(difflib.unified_diff(*(t.splitlines(keepends=True) for t in (before, after)), n=1))
        verdict = "survived"
        path.write_text(after)
        try:
            for group in tests.of(mutant):
                if verdict == "survived":
                    verdict = self.notices(group, tests.limit(group))
        finally:
            path.write_text(before)
        return verdict, diff


def results(chosen: Sequence[Mutant], tests: Tests, workers: int) -> Iterator[tuple[Mutant, str, str]]:
    with tempfile.TemporaryDirectory() as folder, concurrent.futures.ThreadPoolExecutor(workers) as pool:
        free: queue.Queue[Worker] = queue.Queue()
        everybody = [Worker(Path(folder) / f"tree{number}") for number in range(workers)]
        for worker in everybody:
            # Without a change all has to pass, or every change would seem to be noticed.
            few = [group[0] for mutant in chosen[:20] for group in tests.of(mutant)]
            if worker.notices(few, 600) != "survived":
                raise RuntimeError(f"some of these tests fail without a change: {few}")
            free.put(worker)

        def outcome(mutant: Mutant) -> tuple[str, str]:
            worker = free.get()
            try:
                return worker.outcome(mutant, tests)
            finally:
                free.put(worker)

        calls = {pool.submit(outcome, mutant): mutant for mutant in chosen}
        for call in concurrent.futures.as_completed(calls):
            yield calls[call], *call.result()
        for worker in everybody:
            worker.process.communicate("")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--part", default="0/1", help="2/5: the third fifth of the sample, to spread a long run")
    parser.add_argument("--tests", type=Path, help="which tests run which line: read where it exists, else written")
    parser.add_argument("--earlier", type=Path, help="the --output of an earlier run")
    parser.add_argument("--output", type=Path, default=Path("build/mutants.json"))
    args = parser.parse_args()
    everything = mutants()
    drawn = random.Random(args.seed).sample(everything, min(2 * args.count, len(everything)))
    number, parts = map(int, args.part.split("/"))
    chosen = [mutant for mutant in drawn if tells(mutant)][: args.count][number::parts]
    print(f"{len(chosen)} of {len(everything):,} changes", flush=True)
    if args.tests is not None and args.tests.exists():
        tests = Tests(**json.loads(args.tests.read_text()))
    else:
        with tempfile.TemporaryDirectory() as folder:
            tests = Tests.measure(Path(folder))
        if args.tests is not None:
            args.tests.write_text(json.dumps(dataclasses.asdict(tests)))
    known = [] if args.earlier is None else json.loads(args.earlier.read_text())
    noticed = {
        Mutant(each["path"], each["operator"], each["occurrence"], each["line"]): each
        for each in known
        if each["verdict"] != "survived"
    }
    done = [noticed[mutant] for mutant in chosen if mutant in noticed]
    for mutant, verdict, diff in results([m for m in chosen if m not in noticed], tests, args.workers):
        done.append({**dataclasses.asdict(mutant), "verdict": verdict, "diff": diff})
        print(f"{len(done)}/{len(chosen)} {verdict}: {mutant.path}:{mutant.line} {mutant.operator}", flush=True)
        if verdict == "survived":
            print(diff, flush=True)
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.write_text(json.dumps(done, indent=1))
    count = sum(each["verdict"] != "survived" for each in done)
    print(f"{count} of {len(done)} noticed ({count / len(done):.1%})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
