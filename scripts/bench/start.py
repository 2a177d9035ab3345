"""P13 and P14: a checkpoint, and the wait for the first step."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from safetensors.torch import save_file

from bench.goals import Report
from bench.method import Bench, Series
from bench.subjects import batch_of, learner_of, model_of
from bench.team import ENTRY
from locallearn.training import checkpoint

LIMIT_SECONDS = 120


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
    builds the same net and does one step."""
    model = "resnet32" if bench.quick else "vgg16"
    for batch in (32, 128):  # the default of the harness, and that of the other measurements
        with tempfile.TemporaryDirectory(prefix="locallearn-bench-") as out:
            overrides = [f"model={model}", "strategy=dgl", "data=synthetic", f"batch_size={batch}", f"out={out}"]
            variants = {
                "harness": lambda overrides=overrides: _process(bench, "--first-step", *overrides),
                "bare": lambda batch=batch: _process(bench, "--bare-step", model, str(batch)),
                "torch": lambda: _nothing(subprocess.run([sys.executable, "-c", "import torch"], check=True)),
                "no step": lambda overrides=overrides: _process(bench, "--before-step", *overrides),
            }
            found = bench.run(variants, bench.rounds())
        parts = {f"{name}_s": series.median for name, series in found.items()}
        why = (
            f"importing torch takes {_text(found['torch'])} s, a bare script with one step {_text(found['bare'])} s, "
            f"and the command until the step begins {_text(found['no step'])} s"
        )
        report.add("P14", f"{model}, dgl, batch {batch}", bench.single(found["harness"]), why, **parts)


def _process(bench: Bench, *arguments: str) -> None:
    """With all cores, as a user has them; one in a quick try."""
    environment = {k: v for k, v in os.environ.items() if k != "OMP_NUM_THREADS" or bench.quick}
    command = [sys.executable, str(ENTRY), *arguments]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, timeout=LIMIT_SECONDS, env=environment)


def _text(series: Series) -> str:
    return "?" if series.median is None else f"{series.median:.2f}"
