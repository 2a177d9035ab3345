"""A locallearn command line in a forked process that has torch imported already, which dies at a chosen moment.

`multiprocessing`'s fork server imports the heavy modules once, so that fifty runs take seconds to begin, not minutes.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
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
from locallearn.runs.snapshot import Snapshot
from locallearn.runtime.world import Words
from locallearn.training import run, writer
from locallearn.training.writer import Writer

HEAVY = ["hydra", "torch._dynamo", run.__name__, experiment.__name__]
"""What every run imports; torch._dynamo with its first optimizer."""
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(HEAVY)


class Moment(NamedTuple):
    """Before or after the call number `count` of a function, of less than `most`; `half` of what it writes is written.

    everywhere  in any process of several, not in the lowest stage alone
    beside      only calls while a checkpoint is being written are counted
    """

    owner: Any
    name: str
    after: bool = False
    half: bool = False
    most: int = 5
    everywhere: bool = False
    beside: bool = False


ANY_STEP = {"most": 400, "everywhere": True}
MOMENTS = {
    "in the backward half of a step": Moment(TrainedBlock, "update", **ANY_STEP),
    "after a block's update": Moment(TrainedBlock, "update", after=True, **ANY_STEP),
    "in the forward half of a step": Moment(TrainedBlock, "reseed", after=True, **ANY_STEP),
    "in a step while a checkpoint is written": Moment(TrainedBlock, "update", most=9, everywhere=True, beside=True),
    "in evaluation": Moment(Learner, "predict", everywhere=True),
    "in the copy of a checkpoint": Moment(Snapshot, "take", half=True, everywhere=True),
    "after the copy of a checkpoint": Moment(Snapshot, "take", after=True, everywhere=True),
    "before the writer of a checkpoint begins": Moment(Writer, "_run", everywhere=True),
    "before the tensors of a checkpoint": Moment(writer, "write", everywhere=True),
    "in the tensors of a checkpoint": Moment(writer, "write", half=True, everywhere=True),
    "after the tensors of a checkpoint": Moment(writer, "write", after=True, everywhere=True),
    "in the sums of a checkpoint": Moment(checkpoint, "_sum_of", after=True),
    "before a sync of a checkpoint": Moment(checkpoint, "sync"),
    "before the rename of a checkpoint": Moment(Path, "rename"),
    "after the rename of a checkpoint": Moment(Path, "rename", after=True),
    "before old checkpoints are removed": Moment(checkpoint, "_committed", after=True),
    "after the writer of a checkpoint has ended": Moment(Writer, "_run", after=True, everywhere=True),
    "in a line of metrics.jsonl": Moment(record.os, "write", half=True),
    "after a line of metrics.jsonl": Moment(record.Recorder, "log", after=True),
    "before a file is put in its place": Moment(run_folder.os, "replace"),
    "after a file was put in its place": Moment(run_folder.os, "replace", after=True),
}
TOGETHER = {
    "before the writer of a stage says something": Moment(Words, "say", everywhere=True),
    "after the writer of a stage has heard something": Moment(Words, "hear", after=True, everywhere=True),
}
"""Only where there are several processes."""
assert all(hasattr(moment.owner, moment.name) for moment in (MOMENTS | TOGETHER).values()), (
    "a function has another name now"
)


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
        place = (MOMENTS | TOGETHER)[moment]
        setattr(place.owner, place.name, _deadly(getattr(place.owner, place.name), place, count))
    sys.exit(cli.main(arguments))


def _deadly(function: Callable[..., Any], place: Moment, count: int) -> Callable[..., Any]:
    left = count

    @wraps(function)
    def call(*arguments: Any, **named: Any) -> Any:
        nonlocal left
        if not place.beside or any(thread.name == "checkpoint" for thread in threading.enumerate()):
            left -= 1
        if left > 0:
            return function(*arguments, **named)
        if place.half:
            *others, data = arguments
            some = len(data) // 2
            function(*others, dict([*data.items()][:some]) if isinstance(data, dict) else data[:some])
        elif place.after:
            function(*arguments, **named)
        os.kill(os.getpid(), signal.SIGKILL)

    return call
