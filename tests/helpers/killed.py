"""A locallearn command line in a forked process that has torch imported already, which dies at a chosen moment.

`multiprocessing`'s fork server imports the heavy modules once, so that fifty runs take seconds to begin, not minutes.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from collections.abc import Callable
from functools import wraps
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, NamedTuple

from locallearn.cli import main as cli
from locallearn.config import experiment
from locallearn.engine.block import TrainedBlock
from locallearn.engine.learner import Learner
from locallearn.runs import checkpoint
from locallearn.runs import folder as run_folder
from locallearn.runs import recorder as record
from locallearn.training import run

HEAVY = ["hydra", "torch._dynamo", run.__name__, experiment.__name__]
"""What every run imports; torch._dynamo with its first optimizer."""
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(HEAVY)


class Moment(NamedTuple):
    """Before or after the call number `count` of a function; `half` of what it writes is written."""

    owner: Any
    name: str
    after: bool = False
    half: bool = False


MOMENTS = {
    "in the backward half of a step": Moment(TrainedBlock, "update"),
    "after a block's update": Moment(TrainedBlock, "update", after=True),
    "in the forward half of a step": Moment(TrainedBlock, "reseed", after=True),
    "in evaluation": Moment(Learner, "predict"),
    "before the tensors of a checkpoint": Moment(checkpoint, "save_file"),
    "after the tensors of a checkpoint": Moment(checkpoint, "save_file", after=True),
    "in the sums of a checkpoint": Moment(checkpoint, "_sha256", after=True),
    "before a sync of a checkpoint": Moment(checkpoint, "sync"),
    "before the rename of a checkpoint": Moment(Path, "rename"),
    "after the rename of a checkpoint": Moment(Path, "rename", after=True),
    "before old checkpoints are removed": Moment(checkpoint, "_committed", after=True),
    "in a line of metrics.jsonl": Moment(record.os, "write", half=True),
    "after a line of metrics.jsonl": Moment(record.Recorder, "log", after=True),
    "before a file is put in its place": Moment(run_folder.os, "replace"),
    "after a file was put in its place": Moment(run_folder.os, "replace", after=True),
}
assert all(hasattr(moment.owner, moment.name) for moment in MOMENTS.values()), "a function has another name now"


def begin(
    arguments: list[str], log: Path, moment: str | None = None, count: int = 1, **environment: str
) -> BaseProcess:
    """Start the command line in a new process."""
    process = SERVER.Process(target=_run, args=(arguments, str(log), moment, count, environment))
    process.start()
    return process


def _run(arguments: list[str], log: str, moment: str | None, count: int, environment: dict[str, str]) -> None:
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.environ.update(environment)
    sys.argv = ["locallearn", *arguments]
    if moment is not None:
        place = MOMENTS[moment]
        setattr(place.owner, place.name, _deadly(getattr(place.owner, place.name), place, count))
    sys.exit(cli.main(arguments))


def _deadly(function: Callable[..., Any], place: Moment, count: int) -> Callable[..., Any]:
    left = count

    @wraps(function)
    def call(*arguments: Any, **named: Any) -> Any:
        nonlocal left
        left -= 1
        if left:
            return function(*arguments, **named)
        if place.half:
            handle, data = arguments
            function(handle, data[: len(data) // 2])
        elif place.after:
            function(*arguments, **named)
        os.kill(os.getpid(), signal.SIGKILL)

    return call
