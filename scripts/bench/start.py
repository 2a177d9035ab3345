"""P13 and P14: a checkpoint, and the wait for the first step."""

from __future__ import annotations

import hashlib
import itertools
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import xxhash

from bench.goals import Report
from bench.method import Action, Bench, Sample, Series, between, mark, medians
from bench.subjects import batch_of, learner_of, model_of
from locallearn.runs.snapshot import Snapshot, write
from locallearn.runtime.world import World
from locallearn.training.writer import Save, Writer

LIMIT_SECONDS = 120
FIRST = str(Path(__file__).with_name("first.py"))


def saving(bench: Bench, report: Report) -> None:
    """P13: how long training stands for a checkpoint; beside it the whole save, and each part of it by itself."""
    model, (x, y) = model_of("vgg16", bench.quick), batch_of(bench.quick, 16)
    learner = learner_of(model, "backprop", model.cut(4))
    learner.learn(x, y)  # momentum exists after a step
    with tempfile.TemporaryDirectory(prefix="locallearn-bench-", dir=Path.cwd()) as name:
        writer, saves = Writer(World()), Path(name) / "checkpoints"
        steps, whole, cpu = itertools.count(1), Series(), Series()

        def stand() -> Sample:
            before, start, own = mark(bench.pids), time.perf_counter(), time.thread_time()
            learner.check()
            writer.start(Save(saves, 1, next(steps), {}, lambda reports: {}, needed=True), learner.state())
            stood = time.perf_counter() - start
            cpu.kept[len(cpu.kept)] = time.thread_time() - own
            writer.wait()
            whole.kept[len(whole.kept)] = time.perf_counter() - start
            return Sample(stood, between(before, mark(bench.pids)).foreign)

        snapshot, file = Snapshot(), Path(name) / "parts"
        snapshot.take(learner.state())
        _written(file, snapshot)
        content = file.read_bytes()
        variants: dict[str, Action] = {
            "stands": stand,
            "check": learner.check,
            "copy": lambda: snapshot.take(learner.state()),
            "finite": snapshot.broken,
            "xxh3_128": lambda: xxhash.xxh3_128(content),
            "sha256": lambda: hashlib.sha256(content),
            "write, sync": lambda: _written(file, snapshot),
        }
        series = bench.run(variants, bench.rounds(more=6))
    for of_save in (whole, cpu):
        del of_save.kept[0]  # to warm up
    size = len(content)
    series |= {"whole": whole, "CPU": cpu}
    took = {name: f"{1e3 * s.median:.0f} ms" if s.median is not None else "?" for name, s in series.items()}
    why = (
        f"{took['CPU']} of it are CPU time; by themselves the check of the weights takes {took['check']} and the copy "
        f"{took['copy']}; the whole save takes {took['whole']}: looking for NaN {took['finite']}, writing with a sum "
        f"and a sync {took['write, sync']}, of which the sum {took['xxh3_128']} (SHA-256: {took['sha256']})"
    )
    parts = {"bytes": size, **medians(series, "ms")}
    stands = bench.joined([series["stands"]], lambda seconds: 1e3 * seconds)
    report.add("P13", f"vgg16, {size / 1e6:.0f} MB", stands, why, **parts)


def _written(file: Path, snapshot: Snapshot) -> None:
    file.unlink(missing_ok=True)
    write(file, snapshot.head, snapshot.tensors)


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
