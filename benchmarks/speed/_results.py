"""All subjects measured, as one page of Markdown."""

import datetime
import importlib.metadata
import os
import platform
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

PEERS = ("torch", "numpy", "pandas", "polars", "scikit-learn", "torchmetrics", "tabm")
PEERS += ("pytorch-forecasting", "neuralforecast")

_HOW = """\
Each case calls all its contenders in turns in one process, so that whatever disturbs one disturbs all. Times are
medians, with the quantiles between which nine in ten of the calls lie; forward and backward together unless a case
says otherwise. A ratio is one of medians, with its 95 % band by a bootstrap over the rounds. What is aimed at is
reached (yes) when the lower end of the band is within it. Memory is what torch's allocator held at most during a call
beyond what it held before, the result included.

A *limit* is a contender that does only the arithmetic, in the best way known to us: a hand-written C++ kernel that
lives in `benchmarks/speed`, or a plain formulation that a library with checks, weights and masks can't be faster than.
"""


def markdown(subjects: Sequence[Mapping[str, Any]]) -> str:
    """The page.

    Args:
        subjects: What each module wrote, those of one subject with different numbers of threads one after the other.
    """
    return "\n".join([*_head(), *_missed(subjects), *(line for each in subjects for line in _section(each))]) + "\n"


def _head() -> Iterator[str]:
    yield "# Speed and memory\n"
    yield "Written by `python -m benchmarks`; not edited by hand.\n"
    yield f"- date: {datetime.datetime.now(tz=datetime.UTC):%Y-%m-%d}"
    yield f"- machine: {_processor()}, {os.cpu_count()} cores, {_memory()} of memory; GPU: not measured"
    yield f"- {platform.system()} {platform.machine()}, Python {platform.python_version()}"
    yield f"- versions: {', '.join(_versions())}\n"
    yield _HOW


def _missed(subjects: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    reached = [(each, result, reach) for each, result, reach in _reaches(subjects)]
    missed = [(each, result, reach) for each, result, reach in reached if not reach["holds"]]
    yield "## What is missed\n"
    yield f"Of {len(reached)} figures aimed at, {len(reached) - len(missed)} are reached.\n"
    for each, result, reach in missed:
        why = f" {result['why']}" if result["why"] else ""
        yield (
            f"- {each['title']}, {result['case']}, {_threads(each)}: {_ratio(reach)}, where {_number(reach['at_most'])}"
            f" was aimed at.{why}"
        )
    yield ""


def _reaches(
    subjects: Sequence[Mapping[str, Any]],
) -> Iterator[tuple[Mapping[str, Any], Mapping[str, Any], Mapping[str, Any]]]:
    for each in subjects:
        for result in each["results"]:
            if result["kind"] == "figure":
                if result["at_most"] is not None:
                    yield each, result, {"of": None, "what": "figure", **result}
            else:
                for reach in result["reaches"]:
                    yield each, result, reach


def _section(each: Mapping[str, Any]) -> Iterator[str]:
    yield f"## {each['title']}, {_threads(each)}\n"
    rows = [
        f"| {result['case']} | {_ratio(reach)} | {_aim(reach)} | {'yes' if reach['holds'] else '**no**'} |"
        for _, result, reach in _reaches([each])
    ]
    if rows:
        yield "| case | reached | aimed at | |\n|---|---|---|---|"
        yield from rows
        yield ""
    comparisons = [result for result in each["results"] if result["kind"] == "comparison"]
    if comparisons:
        yield "| case | contender | median | nine in ten | memory |\n|---|---|---:|---:|---:|"
    for result in comparisons:
        for name, taken in result["contenders"].items():
            shown = f"**{name}**" if name == result["ours"] else name
            memory = "" if taken["memory"] is None else f"{taken['memory'] / 2**20:.2f} MiB"
            band = f"{_time(taken['low'])} - {_time(taken['high'])}"
            yield f"| {result['case']} | {shown} | {_time(taken['median'])} | {band} | {memory} |"
    if comparisons:
        yield ""
    figures = [result for result in each["results"] if result["kind"] == "figure" and result["at_most"] is None]
    if figures:
        yield "| | | how |\n|---|---:|---|"
        for result in figures:
            yield f"| {result['case']} | {_figure(result)} | {result['how']} |"
        yield ""


def _threads(each: Mapping[str, Any]) -> str:
    return "one thread" if each["threads"] == 1 else f"{each['threads']} threads"


def _ratio(reach: Mapping[str, Any]) -> str:
    if reach["what"] == "figure":
        return _figure(reach)
    if reach["what"] == "memory":
        return f"{_number(reach['value'])} x the memory of {reach['of']}"
    return f"{_number(reach['value'])} ({_number(reach['low'])} - {_number(reach['high'])}) x {reach['of']}"


def _aim(reach: Mapping[str, Any]) -> str:
    return f"<= {_number(reach['at_most'])} {reach.get('unit', 'x')}"


def _figure(result: Mapping[str, Any]) -> str:
    band = "" if result["low"] is None else f" ({_number(result['low'])} - {_number(result['high'])})"
    return f"{_number(result['value'])}{band} {result['unit']}"


def _number(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _time(seconds: float) -> str:
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds / 1e-6:.3g} us"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or "unknown processor"
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "unknown processor")


def _memory() -> str:
    return f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB"


def _versions() -> Iterator[str]:
    for name in ("reghead", *PEERS):
        try:
            yield f"{name} {importlib.metadata.version(name)}"
        except importlib.metadata.PackageNotFoundError:
            yield f"{name} not installed"
