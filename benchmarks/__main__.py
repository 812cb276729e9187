"""``python -m benchmarks``: measure every subject in a process of its own, and write ``benchmarks/RESULTS.md``."""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.speed._results import markdown

#: The modules of ``benchmarks.speed``, in the order of the report.
SUBJECTS = (
    "pinball",
    "pointwise",
    "per_output",
    "normalizer",
    "labels",
    "film",
    "scaler",
    "moe",
    "training_step",
    "regressor",
    "calibration",
    "importing",
    "scale",
    "processes",
)
FOLDER = Path(__file__).parent


def run(subject: str, threads: int, quick: bool) -> dict[str, Any] | None:
    """Measure one subject and keep what it wrote under ``benchmarks/results``; ``None`` if its script fails."""
    output = FOLDER / "results" / f"{subject}-{threads}.json"
    output.parent.mkdir(exist_ok=True)
    command = [sys.executable, "-m", f"benchmarks.speed.{subject}", "--threads", str(threads), "--output", str(output)]
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "POLARS_MAX_THREADS")
    environment = os.environ | dict.fromkeys(names, str(threads))
    if subprocess.run(command + ["--quick"] * quick, env=environment, cwd=FOLDER.parent, check=False).returncode:
        return None
    result: dict[str, Any] = json.loads(output.read_text())
    return result


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--subjects", nargs="+", choices=SUBJECTS, default=SUBJECTS, metavar="SUBJECT")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--quick", action="store_true", help="to try the scripts: the numbers mean little")
    parser.add_argument("--output", type=Path, default=FOLDER / "RESULTS.md")
    args = parser.parse_args()
    results, failed = [], []
    for subject in args.subjects:
        for threads in args.threads:
            start = time.perf_counter()
            result = run(subject, threads, args.quick)
            if result is None:
                failed.append(f"{subject}, {threads} threads")
            else:
                results.append(result)
            print(f"{subject}, {threads} threads: {time.perf_counter() - start:.0f} s", file=sys.stderr, flush=True)
    args.output.write_text(markdown(results))
    if failed:
        print(f"not in {args.output}, since their scripts failed: {'; '.join(failed)}", file=sys.stderr)
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
