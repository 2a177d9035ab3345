"""Runs in processes of their own, and what two runs that should be the same are compared by."""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file

from helpers.commands import obey_signals
from locallearn.cli import main as cli
from locallearn.names import divided
from locallearn.studies.repeat import COST

CAPBSET_DROP, DAC_OVERRIDE, DAC_READ_SEARCH = 24, 1, 2

STAGE = "stage-00-of-01.safetensors"
"""The tensors of a checkpoint that one process has written."""
SETTINGS = [
    "model=mlp",
    "model.width=24",
    "model.depth=4",
    "model.dropout=0.2",
    "epochs=4",
    "batch_size=16",
    "checkpoint.every=7it",
    "threads=1",
    "data.crop=2",
]


def start(folder: Path, *more: str) -> subprocess.Popen:
    folder.mkdir(exist_ok=True)
    return subprocess.Popen(
        [sys.executable, "-m", "locallearn", *SETTINGS, *more],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        preexec_fn=obey_signals,
    )


def whole(folder: Path, *more: str) -> Path:
    """An uninterrupted run, in this process."""
    folder.mkdir(exist_ok=True)
    argv, here = sys.argv, Path.cwd()
    os.chdir(folder)
    try:
        assert cli.main([*SETTINGS, *more]) == 0
    finally:
        sys.argv = argv
        os.chdir(here)
    return next((folder / "runs").iterdir())


def wait_for_steps(folder: Path, steps: int) -> Path:
    """Wait until a run has committed a checkpoint of at least `steps`."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        for path in folder.glob("runs/*/checkpoints/step-*"):
            if int(path.name.removeprefix("step-")) >= steps:
                return path.parents[1]
        time.sleep(0.005)
    raise AssertionError("the run did not get so far in 120 seconds")


def assert_same_run(a: Path, b: Path) -> None:
    one, other = load_file(a / "model.safetensors"), load_file(b / "model.safetensors")
    assert one.keys() == other.keys()
    assert all(torch.equal(t, other[name]) for name, t in one.items())
    records = [
        [
            {k: v for k, v in json.loads(line).items() if divided(k)[1] not in COST}
            for line in (run / "metrics.jsonl").read_text().splitlines()
        ]
        for run in (a, b)
    ]
    assert records[0] == records[1]


class Run:
    """A command line of its own process."""

    def __init__(
        self, *words: str, before: Callable[[], object] | None = None, script: str = "", **places: str
    ) -> None:
        command = [sys.executable, *(["-c", script] if script else ["-m", "locallearn"]), *words]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", **places}
        pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
        self.process = subprocess.Popen(command, env=environment, preexec_fn=before, **pipes)

    def end(self) -> tuple[int, str]:
        error = self.process.communicate(timeout=200)[1]
        assert "Traceback" not in error
        return self.process.returncode, error


def without_privilege() -> None:
    """Also root obeys the permissions of files from here on."""
    for capability in (DAC_OVERRIDE, DAC_READ_SEARCH):
        ctypes.CDLL(None).prctl(CAPBSET_DROP, capability, 0, 0, 0)
