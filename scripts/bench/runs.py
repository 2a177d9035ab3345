"""P2, P16 and P17: whole runs on a net so small that what is done beside its steps shows: by the training loop, and for
W&B while its server answers, is not there, refuses, fails, is slow, or dies half way."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from bench.goals import Report
from bench.method import Bench, Sample, between, mark, medians
from bench.subjects import by_hand
from locallearn import train
from locallearn.callbacks.base import Callback, RunView
from locallearn.config.compose import compose
from locallearn.config.experiment import experiment
from locallearn.config.keywords import overrides
from locallearn.runs import wandb_sink
from locallearn.runs.folder import RunFolder
from locallearn.runs.recorder import Recorder

WIDTH, DEPTH, BATCH = 320, 3, 128
LINES = 500
KEY = "0123456789abcdef0123456789abcdef01234567"
NOBODY = "http://127.0.0.1:9"  # refuses every connection
SERVERS = {
    "has no network": None,
    "answers": "ok",
    "refuses the key": "401",
    "fails": "500",
    "answers after 15 s": "slow",
    "dies half way": "ok",
}
HALF_WAY = 6.0  # seconds from the start of a run
CLOSING_SECONDS = 3.0  # instead of 30: the end of a run is not measured here


def settings(images: int, epochs: int, folder: str, **more: Any) -> dict[str, Any]:
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
        "epochs": epochs,
        "evaluate_every": epochs,
        "checkpoint.every": "never",
        "out": folder,
        **more,
    }


def trained(bench: Bench, given: dict[str, Any]) -> tuple[Path, list[float], float]:
    """A run: its folder, seconds per step of each epoch as it records them (evaluation is not in them), and the cores
    that others used meanwhile."""
    start = mark(bench.pids)
    result = train(quiet=True, **given)
    foreign = between(start, mark(bench.pids)).foreign
    steps = [BATCH / record["images_per_second"] for record in result.history]
    assert len(steps) == given["epochs"], f"{len(steps)} of {given['epochs']} records"
    return result.run_dir, steps, foreign


class Clock(Callback):
    """CPU seconds of this thread at the end of each epoch."""

    def __init__(self) -> None:
        self.at: list[float] = []

    def epoch(self, run: RunView) -> None:
        self.at.append(time.thread_time())


def loop(bench: Bench, report: Report) -> None:
    """P2: `locallearn.train` against a loop written by hand over the same batches, and a line of its metrics.jsonl. In
    CPU time of the one thread that both have: other programs move the wall time of a step by more than the difference
    to be found."""
    with tempfile.TemporaryDirectory(prefix="locallearn-bench-") as folder:
        given = settings(1280 if bench.quick else 12_800, 5, folder)
        exp = experiment(*compose(list(overrides(given))))
        data = exp.source.load(0, torch.device("cpu"))
        by_itself = by_hand(exp.model(data.image, len(data.classes)))
        runs: list[Path] = []

        def harness() -> Sample:
            clock = Clock()
            runs.append(train(quiet=True, callback=clock, **given).run_dir)
            return _per_step(clock.at, data.steps(BATCH))

        def bare() -> Sample:
            ends = []
            for epoch in range(given["epochs"]):
                for x, y in data.batches(epoch, BATCH):
                    by_itself(x, y)
                ends.append(time.thread_time())
            return _per_step(ends, data.steps(BATCH))

        series = bench.run({"harness": harness, "bare": bare}, bench.rounds(more=28))
        line = _line_seconds(runs[-1]) * 1e6
    both = [series["harness"], series["bare"]]
    added = bench.joined(both, lambda a, b: (a - b) * 1e6 + line)
    loop = bench.joined(both, lambda a, b: (a - b) * 1e6)
    why = f"the loop adds {'?' if loop.value is None else round(loop.value)} us, a JSON line {line:.0f} us"
    parts = {"loop_us": loop._asdict(), "line_us": line, **medians(series, "us")}
    report.add("P2", f"mlp {DEPTH} x {WIDTH}, 64 inputs, batch {BATCH}", added, why, **parts)


def _per_step(ends: Sequence[float], steps: int) -> Sample:
    """The median over the epochs, of which each has so many steps; the first one warms up."""
    return Sample(statistics.median(b - a for a, b in pairwise(ends)) / steps, 0.0)


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


def tracked(bench: Bench, report: Report) -> None:
    """P16: runs of some 12 seconds with a record each second, with and without W&B. P17: percent of training that W&B
    takes of its process, which the noise of whole runs does not hide."""
    wandb_sink.FINISH_SECONDS = CLOSING_SECONDS
    percents: dict[str, list[float]] = {name: [] for name in SERVERS}
    with tempfile.TemporaryDirectory(prefix="locallearn-bench-") as folder, _watched() as spent:
        more = {"strategy": "dgl", "auxiliary": "linear", "blocks": "auto"}
        given = settings(1280 if bench.quick else 16_000, 12, folder, **more)

        def run(name: str | None) -> Sample:
            spent.clear()
            with _server(name) as more:
                _, steps, foreign = trained(bench, given | more)
            if name is not None:
                training = sum(steps) * given["data.images"] / BATCH
                percents[name].append(100 * sum(spent) / training)
            # what else the machine does only ever slows an epoch, by more than the 2 % that are to be told apart
            return Sample(statistics.quantiles(steps, n=4)[0], foreign)

        variants = {str(name): (lambda name=name: run(name)) for name in (None, *SERVERS)}
        series = bench.run(variants, bench.rounds(more=2), warm=False)
    for name in SERVERS:
        subject, why = f"W&B's server {name}", "the rounds differ by as much as the variants do"
        report.add("P16", subject, bench.ratio(series[name], series["None"]), why)
        report.add("P17", subject, bench.of(percents[name]))


@contextmanager
def _watched() -> Iterator[list[float]]:
    """The seconds that handing records over takes, and those of CPU of the thread that sends them on."""
    spent: list[float] = []
    put, feed = wandb_sink.WandbSink._put, wandb_sink.WandbSink._feed

    def timed_put(self: wandb_sink.WandbSink, message: Any) -> None:
        start = time.perf_counter()
        put(self, message)
        spent.append(time.perf_counter() - start)

    def timed_feed(self: wandb_sink.WandbSink) -> None:
        feed(self)
        spent.append(time.thread_time())

    with mock.patch.multiple(wandb_sink.WandbSink, _put=timed_put, _feed=timed_feed):
        yield spent


@contextmanager
def _server(name: str | None) -> Iterator[dict[str, str]]:
    """A server of W&B that behaves as its name says, and the settings of a run that records there; None: no W&B."""
    mode = SERVERS.get(name or "")
    os.environ |= {"WANDB_BASE_URL": NOBODY, "WANDB_API_KEY": KEY}
    if mode is None:
        yield {} if name is None else {"record": "wandb"}
        return
    command = [sys.executable, "-m", "bench.wandb_server", mode]
    here = Path(__file__).resolve().parents[1]
    with subprocess.Popen(command, cwd=here, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        timer = threading.Timer(HALF_WAY, process.kill)
        try:
            os.environ["WANDB_BASE_URL"] = process.stdout.readline().strip()
            if name == "dies half way":
                timer.start()
            yield {"record": "wandb"}
        finally:
            timer.cancel()
            process.kill()
