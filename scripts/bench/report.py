"""The result as JSON and as a page."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch

from bench.goals import GOALS, Finding, Report
from bench.method import LEAST, LOUD


def record(report: Report, seconds: float, repeats: int, quick: bool, command: str) -> dict[str, Any]:
    """What was measured, where and how, as JSON can hold it."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {
        "command": command,
        "machine": f"{_processor()}, {os.cpu_count()} cores, {memory:.0f} GiB",
        "system": f"{platform.system()} {platform.release()}, Python {platform.python_version()}",
        "torch": torch.__version__,
        "repeats": repeats,
        "quick": quick,
        "seconds": round(seconds),
        "findings": [finding.plain() for finding in report.findings],
        "validation": report.validation,
        "failed": report.failed,
    }


def page(report: Report, about: dict[str, Any]) -> str:
    """The page for `docs/`."""
    findings = report.findings
    themes = "" if about["command"] == "make bench" else ": " + ", ".join({f.goal.split()[0]: 0 for f in findings})
    lines = [
        f"# Benchmark{themes}",
        "",
        f"`{about['command']}`, {about['seconds'] / 60:.0f} minutes on {about['machine']};",
        f"{about['system']}, torch {about['torch']}.",
        "Batches of 128 random images of 3x32x32, 10 classes, SGD with momentum and weight decay, fp32, channels_last,",
        "and the same allocator setting on both sides, except in P3.",
        "",
        *(["**A quick try of the script with tiny models: its numbers mean nothing.**", ""] if about["quick"] else []),
        "Variants run in turn; a number is the median over the rounds, with its 95 % interval in brackets (of a few",
        f"rounds, their extremes). A sample during which other programs used more than {LOUD} of a core is discarded",
        f"and repeated (kept/dropped); with fewer than {LEAST} quiet rounds there is no number. P2, P14, P18 and P19",
        "measure CPU time, which other programs do not lengthen. `benchmark.json` has every part.",
        "",
        "| | what | on | goal | found | kept/dropped | |",
        "|---|---|---|---|---|---|---|",
        *map(_row, findings),
        "",
        *_listed(
            "Why goals were missed:", (f"- {f.goal}, {f.subject}: {f.why}." for f in findings if f.verdict == "missed")
        ),
        *_listed(None, _checkpointed(report)),
        *_listed(None, _held(report)),
        *(f"Milliseconds per batch, {name}: {steps}.\n" for name, steps in _steps(report)),
        *(f"{part} failed: {message}" for part, message in report.failed.items()),
    ]
    return "\n".join(lines).rstrip() + "\n"


def _row(f: Finding) -> str:
    goal = GOALS[f.goal]
    sign, places = (">=" if goal.most is None else "<="), ",.0f" if goal.limit >= 10_000 else ",.4g"
    limit = f"{sign} {goal.limit:{places}} {goal.unit}".strip() if f.judged else ""
    shown = "none" if f.number.value is None else f"{rounded(f.number.value)} {goal.unit}".strip()
    if f.number.low is not None and f.number.low != f.number.high:
        shown += f" ({rounded(f.number.low)} to {rounded(f.number.high or 0.0)})"
    samples = f"{f.number.kept}/{f.number.dropped}" if f.number.kept or f.number.dropped else "counted"
    return f"| {f.goal} | {goal.what} | {f.subject} | {limit} | {shown} | {samples} | {f.verdict} |"


def rounded(value: float) -> str:
    """Three decimals of a ratio, no decimals of thousands."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3f}"


def _listed(head: str | None, found: Iterable[str]) -> list[str]:
    lines = list(found)
    return [*([head, ""] if head else []), *lines, ""] if lines else []


def _checkpointed(report: Report) -> Iterator[str]:
    held = {f.subject: f.parts["checkpointed_backprop"] for f in report.findings if f.goal == "P6 flops"}
    for subject, found in report.validation.get("checkpointed backprop, time", {}).items():
        share = next((value for name, value in held.items() if name.startswith(subject)), None)
        if found["value"] is not None and share is not None:
            time = rounded(found["value"])
            yield f"Checkpointed backprop, {subject}, 4 blocks: holds {share:.3f} of backprop, takes {time} x the time."


def _held(report: Report) -> Iterator[str]:
    found = {f.subject: f.parts["MB"] for f in report.findings if f.goal == "P10 DDP" and "MB" in f.parts}
    for subject, megabytes in found.items():
        each = ", ".join(f"{name} {state:.0f} + {kept:.0f}" for name, (state, kept) in megabytes.items())
        yield f"MB in the larger of 2 processes, {subject} (weights, gradients, momentum + kept by autograd): {each}.\n"


def _steps(report: Report) -> Iterator[tuple[str, str]]:
    """The measured times against which `locallearn plan` can be held."""
    for subject, found in report.validation.items():
        if "step_s" in found:
            times = {name: "?" if s is None else f"{s * 1e3:.0f}" for name, s in found["step_s"].items()}
            yield subject, ", ".join(f"{name} {time}" for name, time in times.items())


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())
