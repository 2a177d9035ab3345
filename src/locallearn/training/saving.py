"""Checkpoints of a run: what belongs to one moment, gathered from all processes, and put back."""

from __future__ import annotations

import copy
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from locallearn.config.settings import CheckpointSettings
from locallearn.engine import Learner
from locallearn.engine.replicas import LostProcess
from locallearn.runs import checkpoint
from locallearn.runtime.world import World
from locallearn.training.calls import Calls
from locallearn.training.evaluate import sums_of_blocks
from locallearn.training.output import Output
from locallearn.training.running import RunningNumbers, Sums
from locallearn.training.stopping import Interrupted
from locallearn.training.writer import Save, Writer

LAST_SAVE_SECONDS = 2.0
"""For other processes to write their part of a checkpoint, when this one ends the run."""


class Position(NamedTuple):
    """Where training goes on: `offset` steps of `epoch` are done, `seconds` of training were spent. `stopped` says why
    a callback has ended the run there."""

    epoch: int = 0
    offset: int = 0
    seconds: float = 0.0
    stopped: str = ""


class Checkpoints:
    """Saves and restores the state of a run. All processes must call its methods after the same step."""

    def __init__(
        self,
        settings: CheckpointSettings,
        learner: Learner,
        output: Output,
        world: World,
        calls: Calls,
        running: RunningNumbers,
        last_step: int,
    ) -> None:
        self.keep = settings.keep
        self.learner = learner
        self.output = output
        self.world = world
        self.calls = calls
        self.running = running
        self.last_step = last_step
        self.writer = Writer(world)

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        """Whatever ends the run, the save that is under way comes to its end, but for a second interrupt; where other
        processes may be gone it has two seconds."""
        if error is None:
            self.writer.wait()
        elif isinstance(error, Exception):
            whole = self.world.size == 1 or isinstance(error, Interrupted)
            self.writer.end(None if whole else LAST_SAVE_SECONDS)
            if isinstance(error, LostProcess):
                self.writer.check()  # it may know why

    def save(self, position: Position, folder: Path | None = None, needed: bool = True) -> None:
        """Write a checkpoint of this moment, alone into `folder` or beside the others of the run.

        Returns once it is written, or, if it is not `needed`, once everything is copied; it is then written while
        training goes on, and a failure costs a warning. Raises RunError if a number is not finite, here or at the next
        `check`, and NotSaved if writing fails.
        """
        self.learner.stage.drain()
        self.learner.check()  # never replace a good checkpoint by a broken one
        values, own = self.calls.state()
        report = {"blocks": sums_of(self.learner), "logged": list(self.running.last.items())}
        self.writer.wait()
        self.running.complete()  # what is recorded until here is never recorded again
        if self.world.rank == 0:
            self.output.mend()
        place, keep = (folder, 1) if folder else (self.output.folder.checkpoints, self.keep)
        state = partial(self._state, position, copy.deepcopy(values))
        save = Save(place, keep, self.learner.step_count, report, state, needed)
        self.writer.start(save, self.learner.state() | own)
        if needed:
            self.writer.wait()

    def check(self) -> None:
        """Raise RunError if a save has found a number that is not finite."""
        self.writer.check()

    def _state(self, position: Position, values: dict[str, Any], reports: list[Any]) -> dict[str, Any]:
        """What is saved beside the tensors, given the reports of all processes."""
        blocks, logged = (list(sums_of_blocks(report[k] for report in reports).values()) for k in reports[0])
        state: dict[str, Any] = {**position._asdict(), "blocks": blocks}
        more: dict[str, Any] = {"logged": logged, "callbacks": values}
        if stopped := state.pop("stopped"):
            more |= {"stopped": stopped, "ends": self.last_step}
        return state | {name: value for name, value in more.items() if value}

    def save_kept(self, position: Position) -> None:
        """Save what callbacks have asked to keep, each in its folder."""
        for name in self.calls.kept():
            self.save(position, self.output.folder.path / name, needed=False)

    def restore(self, saved: checkpoint.SavedCheckpoint) -> Position:
        """Go back to the moment of a checkpoint, exactly."""
        state = saved.state
        self.learner.load_state(saved.tensors)
        self.learner.step_count = state["step"]
        for block in self.learner.blocks if self.world.replica == 0 else ():
            index = block.spec.index
            block.resume(state["blocks"][index])
            if logged := state.get("logged"):
                self.running.last[index] = logged[index]
        self.calls.load_state(saved.callbacks)
        stopped = state.get("stopped", "") if state.get("ends") == self.last_step else ""  # else it was made longer
        return Position(state["epoch"], state["offset"], state["seconds"], stopped)


def sums_of(learner: Learner) -> Sums:
    """Index and running sums of each block of this process."""
    return [(block.spec.index, block.running()) for block in learner.blocks]
