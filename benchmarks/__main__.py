"""``python -m benchmarks``: measure every subject in a process of its own, and write ``benchmarks/RESULTS.md``.

With ``--subjects`` only some are measured again; the others are as ``benchmarks/results`` has kept them.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

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


def kept(subject: str, threads: int) -> Path:
    """Where the results of a subject are."""
    return FOLDER / "results" / f"{subject}-{threads}.json"


def run(subject: str, threads: int, quick: bool) -> bool:
    """Measure one subject and keep what it writes; whether it could."""
    output = kept(subject, threads)
    output.parent.mkdir(exist_ok=True)
    output.unlink(missing_ok=True)
    command = [sys.executable, "-m", f"benchmarks.speed.{subject}", "--threads", str(threads), "--output", str(output)]
    names = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "POLARS_MAX_THREADS")
    environment = os.environ | dict.fromkeys(names, str(threads))
    done = subprocess.run(command + ["--quick"] * quick, env=environment, cwd=FOLDER.parent, check=False)
    return done.returncode == 0


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--subjects", nargs="*", choices=SUBJECTS, default=SUBJECTS, metavar="SUBJECT")
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--quick", action="store_true", help="to try the scripts: the numbers mean little")
    parser.add_argument("--output", type=Path, default=FOLDER / "RESULTS.md")
    args = parser.parse_args()
    failed = []
    for subject in args.subjects:
        for threads in args.threads:
            start = time.perf_counter()
            if not run(subject, threads, args.quick):
                failed.append(f"{subject}, {threads} threads")
            print(f"{subject}, {threads} threads: {time.perf_counter() - start:.0f} s", file=sys.stderr, flush=True)
    files = [kept(subject, threads) for subject in SUBJECTS for threads in args.threads]
    results = [json.loads(file.read_text()) for file in files if file.exists()]
    args.output.write_text(markdown(results))
    if failed:
        print(f"not in {args.output}, since their scripts failed: {'; '.join(failed)}", file=sys.stderr)
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
