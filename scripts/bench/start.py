"""P13 and P14: a checkpoint, and the wait for the first step."""

from __future__ import annotations

import hashlib
import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from safetensors.torch import save_file

from bench.goals import Report
from bench.method import Action, Bench, Sample, medians
from bench.subjects import batch_of, learner_of, model_of
from locallearn.runs import checkpoint

LIMIT_SECONDS = 120
FIRST = str(Path(__file__).with_name("first.py"))


def saving(bench: Bench, report: Report) -> None:
    """P13, and what each part of it takes by itself: write, checksum, sync."""
    model, (x, y) = model_of("vgg16", bench.quick), batch_of(bench.quick, 16)
    learner = learner_of(model, "backprop", model.cut(4))
    learner.learn(x, y)  # momentum exists after a step
    tensors = learner.state()
    with tempfile.TemporaryDirectory(prefix="locallearn-bench-", dir=Path.cwd()) as name:
        folder, file = Path(name), Path(name) / "parts.safetensors"
        variants: dict[str, Action] = {
            "save": lambda: checkpoint.save(folder / "checkpoints", 1, tensors, {}, keep=1),
            "write": lambda: save_file(checkpoint.distinct(tensors), file),
            "checksum": lambda: hashlib.sha256(file.read_bytes()),
            "write, sync": lambda: _synced(lambda: save_file(checkpoint.distinct(tensors), file), file),
        }
        series = bench.run(variants, bench.rounds(more=2))
        size = file.stat().st_size
    why = (
        f"of {size / 1e6:.0f} MB SHA-256 takes {series['checksum']} s by itself here, writing {series['write']} s "
        f"and, with a sync, {series['write, sync']} s"
    )
    parts = {"bytes": size, **medians(series, "s")}
    report.add("P13", f"vgg16, {size / 1e6:.0f} MB", bench.single(series["save"]), why, **parts)


def _synced(write: Callable[[], None], path: Path) -> None:
    write()
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)


def first_step(bench: Bench, report: Report) -> None:
    """P14: the command line as a user types it, ended right after its first step; and a bare script that imports torch,
    builds the same net and takes the same step. CPU seconds of one thread, which others do not lengthen."""
    for model in ("lenet",) if bench.quick else ("lenet", "vgg16"):
        with tempfile.TemporaryDirectory(prefix="locallearn-bench-") as out:
            overrides = [f"model={model}", "strategy=backprop", "data=digits", "batch_size=32", f"out={out}"]
            commands = {
                "harness": [FIRST, "step", *overrides],
                "bare": [FIRST, "bare", model, "32"],
                "torch": ["-c", "import torch"],
                "no step": [FIRST, "before", *overrides],
            }
            actions = {name: (lambda command=command: _start(command)) for name, command in commands.items()}
            series = bench.run(actions, bench.rounds(more=6), warm=False)
        why = (
            f"importing torch takes {series['torch']} s, the bare script {series['bare']} s, the command "
            f"{series['harness']} s, of which {series['no step']} s until the step begins"
        )
        ratio = bench.ratio(series["harness"], series["bare"])
        report.add("P14", f"{model}, backprop, batch 32, 1 thread", ratio, why, **medians(series, "s"))


def _start(command: list[str]) -> Sample:
    """CPU seconds of a Python process with one thread."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    environment, quiet = os.environ | {"OMP_NUM_THREADS": "1"}, subprocess.DEVNULL
    subprocess.run([sys.executable, *command], check=True, stdout=quiet, timeout=LIMIT_SECONDS, env=environment)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return Sample(after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime, 0.0)
