"""P16: the speed of training while W&B's server answers, is not there, refuses, fails, is slow, or dies half way; and
P17, what W&B takes of the training process itself."""

from __future__ import annotations

import functools
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

from bench.goals import Report
from bench.loop import BATCH
from bench.method import Bench, Sample, between, mark
from locallearn import api
from locallearn.runs import wandb_sink

KEY = "0123456789abcdef0123456789abcdef01234567"
NOBODY = "http://127.0.0.1:9"  # refuses every connection
SERVERS = {
    "answers": "ok",
    "refuses the key": "401",
    "fails": "500",
    "answers after 15 s": "slow",
    "dies half way": "ok",
}
EPOCHS = 12
HALF_WAY = 6.0  # seconds from the start of a run
CLOSING_SECONDS = 3.0  # instead of 30: the end of a run is not measured here


def measure(bench: Bench, report: Report) -> None:
    """Runs of some 12 seconds with a record each second, with and without W&B; and whether their metrics are whole."""
    wandb_sink.FINISH_SECONDS = CLOSING_SECONDS
    with tempfile.TemporaryDirectory(prefix="locallearn-bench-") as folder:
        variants = _variants(bench, folder)
        found = bench.run({"none": lambda: _run(bench, folder, None), **variants}, bench.rounds(more=2), warm=False)
    for name in variants:
        report.add(
            "P16", f"W&B's server {name}", bench.ratio(found[name], found["none"]), "the rounds differ by as much"
        )


def inside(bench: Bench, report: Report) -> None:
    """Percent of training that W&B takes of its process, which the noise of whole runs does not hide."""
    wandb_sink.FINISH_SECONDS = CLOSING_SECONDS
    with tempfile.TemporaryDirectory(prefix="locallearn-bench-") as folder, _watched() as spent:

        def percent(run: Callable[[], Sample]) -> Sample:
            spent.clear()
            sample = run()
            return Sample(100 * sum(spent) / (sample.seconds * EPOCHS * _images(bench) / BATCH), sample.foreign)

        variants = {name: lambda run=run: percent(run) for name, run in _variants(bench, folder).items()}
        found = bench.run(variants, bench.rounds(), warm=False)
    for name in variants:
        report.add("P17", f"W&B's server {name}", bench.single(found[name]))


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


def _variants(bench: Bench, folder: str) -> dict[str, Callable[[], Sample]]:
    served = {name: functools.partial(_served, bench, folder, name, mode) for name, mode in SERVERS.items()}
    return {"has no network": lambda: _run(bench, folder, NOBODY), **served}


def _images(bench: Bench) -> int:
    return 1280 if bench.quick else 16_000


def _served(bench: Bench, folder: str, name: str, mode: str) -> Sample:
    with _server(mode) as (url, process):
        timer = threading.Timer(HALF_WAY, process.kill)
        if name == "dies half way":
            timer.start()
        try:
            return _run(bench, folder, url)
        finally:
            timer.cancel()


@contextmanager
def _server(mode: str) -> Iterator[tuple[str, subprocess.Popen]]:
    command = [sys.executable, "-m", "bench.wandb_server", mode]
    here = Path(__file__).resolve().parents[1]
    with subprocess.Popen(command, cwd=here, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().strip(), process
        finally:
            process.kill()


def _run(bench: Bench, folder: str, url: str | None) -> Sample:
    """Seconds per step: the lower quartile over the epochs of one run, each of which hands W&B a record. What else the
    machine does only ever slows an epoch, here by more than the 2 % that are to be told apart."""
    settings: dict[str, Any] = {"model": "mlp", "model.width": 320, "data": "synthetic", "data.size": 8, "threads": 1}
    settings |= {"data.images": _images(bench), "batch_size": BATCH, "auxiliary": "linear"}
    settings |= {"epochs": EPOCHS, "checkpoint.every": "never", "out": folder, "evaluate_every": EPOCHS}
    if url is not None:
        os.environ |= {"WANDB_BASE_URL": url, "WANDB_API_KEY": KEY}
        settings["record"] = "wandb"
    start = mark(bench.pids)
    result = api.train(quiet=True, **settings)
    foreign = between(start, mark(bench.pids)).foreign
    if len(result.history) != EPOCHS:
        raise AssertionError(f"{len(result.history)} of {EPOCHS} records")
    steps = [BATCH / record["images_per_second"] for record in result.history]
    return Sample(statistics.quantiles(steps, n=4)[0], foreign)
