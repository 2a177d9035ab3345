"""The result as JSON and as a page."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

import torch

from bench.goals import GOALS, Finding, Report
from bench.method import LEAST, LOUD


def facts(seconds: float, repeats: int, quick: bool, command: str) -> dict[str, Any]:
    """Where and how it was measured."""
    return {
        "command": command,
        "machine": f"{_processor()}, {os.cpu_count()} cores, {_memory_gib():.0f} GiB",
        "system": f"{platform.system()} {platform.release()}, Python {platform.python_version()}",
        "torch": torch.__version__,
        "repeats": repeats,
        "quick": quick,
        "seconds": round(seconds),
    }


def plain(report: Report, about: dict[str, Any]) -> dict[str, Any]:
    findings = [finding.plain() for finding in report.findings]
    return {**about, "findings": findings, "validation": report.validation, "failed": report.failed}


def page(report: Report, about: dict[str, Any]) -> str:
    """The page for `docs/`."""
    lines = [
        "# Benchmark",
        "",
        f"`{about['command']}`, {about['seconds'] / 60:.0f} minutes on {about['machine']};",
        f"{about['system']}, torch {about['torch']}.",
        "Batches of 128 random images of 3x32x32, 10 classes, SGD with momentum and weight decay, fp32, channels_last,",
        "and one allocator setting on both sides, but for P3.",
        "",
        *(["**A quick try of the script with tiny models: its numbers mean nothing.**", ""] if about["quick"] else []),
        "Variants run in turn; a number is the median over the rounds, in brackets its extremes. A sample during which",
        f"others used more than {LOUD} of a core is thrown away and repeated (kept/dropped); with fewer than {LEAST}",
        "quiet rounds there is no number. P14 and P18 are CPU time, which others do not lengthen: their brackets are",
        "the 95 % interval of the median. `benchmark.json` has all parts.",
        "",
        "| | what | on | goal | found | kept/dropped | |",
        "|---|---|---|---|---|---|---|",
        *map(_row, report.findings),
        "",
        *_missed(report),
        *_checkpointed(report),
        *_validation(report),
        *(f"{part} failed: {message}" for part, message in report.failed.items()),
    ]
    return "\n".join(lines).rstrip() + "\n"


def _row(f: Finding) -> str:
    goal = GOALS[f.goal]
    limit = f"{'<=' if goal.most else '>='} {goal.limit:,.4g} {goal.unit}".strip() if f.judged else ""
    if goal.limit >= 10_000 and f.judged:
        limit = f">= {goal.limit:,.0f} {goal.unit}"
    found = "none" if f.found.value is None else f"{number(f.found.value)} {goal.unit}".strip()
    if f.found.low is not None and f.found.low != f.found.high:
        found += f" ({number(f.found.low)} to {number(f.found.high or 0.0)})"
    samples = f"{f.found.kept}/{f.found.dropped}" if f.found.kept or f.found.dropped else "counted"
    return f"| {f.goal} | {goal.what} | {f.subject} | {limit} | {found} | {samples} | {f.verdict} |"


def number(value: float) -> str:
    """Three decimals of a ratio, no decimals of thousands."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3f}"


def _missed(report: Report) -> list[str]:
    missed = [f for f in report.findings if f.verdict == "missed"]
    if not missed:
        return []
    return ["Why not more:", "", *(f"- {f.goal}, {f.subject}: {f.why}." for f in missed), ""]


def _checkpointed(report: Report) -> list[str]:
    times = report.validation.get("checkpointed backprop, time", {})
    held = {f.subject: f.parts["checkpointed_backprop"] for f in report.findings if f.goal == "P6 flops"}
    lines = []
    for subject, found in times.items():
        share = next((value for name, value in held.items() if name.startswith(subject)), None)
        if found["value"] is not None and share is not None:
            time = number(found["value"])
            lines.append(
                f"Checkpointed backprop, {subject}, 4 blocks: holds {share:.3f} of backprop, takes {time} x the time."
            )
    return [*lines, ""] if lines else []


def _validation(report: Report) -> list[str]:
    """The measured times against which `locallearn plan` can be held."""
    lines = []
    for subject, found in report.validation.items():
        if "step_s" in found:
            steps = ", ".join(f"{n} {'?' if s is None else f'{s * 1e3:.0f}'}" for n, s in found["step_s"].items())
            lines += [f"Milliseconds per batch, {subject}: {steps}.", ""]
    return lines


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def _memory_gib() -> float:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / (1 << 30)
