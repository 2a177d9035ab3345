"""P2: the whole training loop on a net so small that its own cost shows."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F

from bench.goals import Report
from bench.method import Bench, Sample, between, mark
from bench.subjects import optimizer_of
from locallearn import api
from locallearn.config.compose import compose
from locallearn.config.experiment import experiment
from locallearn.runs.folder import RunFolder
from locallearn.runs.recorder import Recorder

WIDTH, DEPTH, BATCH = 320, 3, 128
EPOCHS = 4  # of a sample; the first one warms up
LINES = 500


def measure(bench: Bench, report: Report) -> None:
    """`locallearn.train` against a loop written by hand over the same batches; and a line of its metrics.jsonl."""
    with tempfile.TemporaryDirectory(prefix="locallearn-bench-") as folder:
        settings = _settings(1280 if bench.quick else 25600, folder)
        runs: list[Path] = []
        variants = {"harness": lambda: _trained(bench, settings, runs), "bare": _by_hand(bench, settings)}
        found = bench.run(variants, bench.rounds(more=4))
        line = _line_seconds(runs[-1]) * 1e6
    harness, bare = found["harness"], found["bare"]
    added = bench.joined([harness, bare], lambda a, b: (a - b) * 1e6 + line)
    loop = bench.joined([harness, bare], lambda a, b: (a - b) * 1e6)
    why = f"the loop adds {'?' if loop.value is None else round(loop.value)} us, a JSON line {line:.0f} us"
    subject = f"mlp {DEPTH} x {WIDTH}, 64 inputs, batch {BATCH}"
    steps = {f"{name}_us": None if s.median is None else s.median * 1e6 for name, s in found.items()}
    report.add("P2", subject, added, why, loop_us=loop._asdict(), line_us=line, **steps)


def _settings(images: int, folder: str) -> dict[str, Any]:
    return {
        "strategy": "backprop",
        "blocks": 1,
        "model": "mlp",
        "model.width": WIDTH,
        "model.depth": DEPTH,
        "data": "synthetic",
        "data.images": images,
        "data.size": 8,
        "data.channels": 1,
        "data.validation": 0.0,
        "optim": "sgd",
        "batch_size": BATCH,
        "threads": 1,
        "epochs": EPOCHS,
        "evaluate_every": EPOCHS,
        "checkpoint.every": "never",
        "out": folder,
    }


def _trained(bench: Bench, settings: dict[str, Any], runs: list[Path]) -> Sample:
    """Seconds per step of a run, as it records them for each epoch (evaluation is not in them)."""
    start = mark(bench.pids)
    result = api.train(quiet=True, **settings)
    foreign = between(start, mark(bench.pids)).foreign
    runs.append(result.run_dir)
    return Sample(statistics.median(BATCH / record["images_per_second"] for record in result.history[1:]), foreign)


def _by_hand(bench: Bench, settings: dict[str, Any]) -> Callable[[], Sample]:
    exp = experiment(*compose(list(api._overrides(settings))))
    data = exp.source.load(0, torch.device("cpu"))
    model = exp.model(data.image, len(data.classes)).train()
    optimizer = optimizer_of(model)

    def sample() -> Sample:
        begin, seconds = mark(bench.pids), []
        for epoch in range(EPOCHS):
            start = time.perf_counter()
            for x, y in data.batches(epoch, BATCH):
                optimizer.zero_grad(set_to_none=True)
                F.cross_entropy(model(x), y).backward()
                optimizer.step()
            seconds.append((time.perf_counter() - start) / data.steps(BATCH))
        return Sample(statistics.median(seconds[1:]), between(begin, mark(bench.pids)).foreign)

    return sample


def _line_seconds(run: Path) -> float:
    """Seconds to write one record of the run to its metrics.jsonl."""
    folder = RunFolder.open(run)
    record = folder.read_metrics()[-1]
    recorder = Recorder(folder)
    start = time.perf_counter()
    for _ in range(LINES):
        recorder.log(record)
    seconds = (time.perf_counter() - start) / LINES
    recorder.close("done", {})
    return seconds
