"""P13 and P14: a checkpoint, and the wait for the first step."""

from __future__ import annotations

import hashlib
import os
import resource
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from safetensors.torch import save_file

from bench.goals import Report
from bench.method import Bench, Found, Series
from bench.small import interval
from bench.subjects import batch_of, learner_of, model_of
from bench.team import ENTRY
from locallearn.runs import checkpoint

LIMIT_SECONDS = 120
STARTS = 9


def saving(bench: Bench, report: Report) -> None:
    """P13, and what each part of it takes by itself: write, checksum, sync."""
    model, (x, y) = model_of("vgg16", bench.quick), batch_of(bench.quick, 16)
    learner = learner_of(model, "backprop", model.cut(4))
    learner.learn(x, y)  # momentum exists after a step
    tensors = learner.state()
    with tempfile.TemporaryDirectory(prefix="locallearn-bench-", dir=Path.cwd()) as name:
        folder, file = Path(name), Path(name) / "parts.safetensors"
        variants: dict[str, Callable[[], None]] = {
            "save": lambda: _nothing(checkpoint.save(folder / "checkpoints", 1, tensors, {}, keep=1)),
            "write": lambda: save_file(checkpoint.distinct(tensors), file),
            "checksum": lambda: _nothing(_digest(file)),
            "write, sync": lambda: _synced(lambda: save_file(checkpoint.distinct(tensors), file), file),
        }
        found = bench.run(variants, bench.rounds(more=2))
        size = file.stat().st_size
    parts = {f"{name}_s": series.median for name, series in found.items()}
    why = (
        f"of {size / 1e6:.0f} MB SHA-256 takes {_text(found['checksum'])} s by itself on this CPU, writing "
        f"{_text(found['write'])} s, writing with a sync {_text(found['write, sync'])} s"
    )
    report.add("P13", f"vgg16, {size / 1e6:.0f} MB", bench.single(found["save"]), why, bytes=size, **parts)


def _nothing(_: object) -> None:
    """An action that was timed returns no sample of its own."""


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _synced(write: Callable[[], None], path: Path) -> None:
    write()
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)


def first_step(bench: Bench, report: Report) -> None:
    """P14: the command line as a user types it, ended right after its first step; and a bare script that imports torch,
    builds the same net and takes the same step. CPU seconds of one thread, which others do not lengthen."""
    for model, batch in (("lenet", 32),) if bench.quick else (("lenet", 32), ("vgg16", 32)):
        with tempfile.TemporaryDirectory(prefix="locallearn-bench-") as out:
            overrides = [f"model={model}", "strategy=backprop", "data=digits", f"batch_size={batch}", f"out={out}"]
            commands = {
                "harness": [str(ENTRY), "--first-step", *overrides],
                "bare": [str(ENTRY), "--bare-step", model, str(batch)],
                "torch": ["-c", "import torch"],
                "no step": [str(ENTRY), "--before-step", *overrides],
            }
            spent: dict[str, list[float]] = {name: [] for name in commands}
            for _ in range(1 if bench.quick else STARTS):
                for name, command in commands.items():
                    spent[name].append(_cpu_seconds(command))
        low, ratio, high = interval([a / b for a, b in zip(spent["harness"], spent["bare"], strict=True)])
        parts = {f"{name}_s": statistics.median(seconds) for name, seconds in spent.items()}
        why = (
            f"importing torch takes {parts['torch_s']:.2f} s, the bare script {parts['bare_s']:.2f} s, the command "
            f"{parts['harness_s']:.2f} s, of which {parts['no step_s']:.2f} s until the step begins"
        )
        found = Found(ratio, low, high, len(spent["bare"]), 0)
        report.add("P14", f"{model}, backprop, batch {batch}, 1 thread", found, why, **parts)


def _cpu_seconds(command: list[str]) -> float:
    """CPU seconds of a Python process with one thread."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run(
        [sys.executable, *command], check=True, stdout=subprocess.DEVNULL, timeout=LIMIT_SECONDS, env=environment
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


def _text(series: Series) -> str:
    return "?" if series.median is None else f"{series.median:.2f}"
