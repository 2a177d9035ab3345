"""Checkpoints of a run: what belongs to one moment, gathered from all processes, and put back."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch

from locallearn.config.settings import CheckpointSettings
from locallearn.engine import Learner
from locallearn.errors import RunError
from locallearn.runs import checkpoint
from locallearn.runs.console import warn
from locallearn.runtime.world import World
from locallearn.training.calls import Calls
from locallearn.training.evaluate import sums_of_blocks
from locallearn.training.output import Output
from locallearn.training.running import RunningNumbers, Sums


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

    def save(self, position: Position, folder: Path | None = None) -> None:
        """Write a checkpoint of this moment, alone into `folder` or beside the others of the run. Raises RunError if a
        number is not finite, NotSaved if writing fails."""
        self.learner.stage.drain()
        self.learner.check()  # never replace a good checkpoint by a broken one
        tensors = self.learner.state()
        for name, tensor in tensors.items():
            if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
                raise RunError(f"{name} is not finite after step {self.learner.step_count}; lower optim.lr")
        values, own = self.calls.state()
        tensors = self.world.gather_tensors(tensors | own)
        reports = self.world.gather({"blocks": sums_of(self.learner), "logged": list(self.running.last.items())})
        self.running.flush()
        if self.world.rank == 0:
            self.output.mend()
            blocks, logged = (list(sums_of_blocks(report[k] for report in reports).values()) for k in reports[0])
            state: dict[str, Any] = {**position._asdict(), "blocks": blocks}
            more: dict[str, Any] = {"logged": logged, "callbacks": values}
            if stopped := state.pop("stopped"):
                more |= {"stopped": stopped, "ends": self.last_step}
            state |= {name: value for name, value in more.items() if value}
            place, keep = (folder, 1) if folder else (self.output.folder.checkpoints, self.keep)
            checkpoint.save(place, self.learner.step_count, tensors, state, keep)

    def save_or_warn(self, position: Position, folder: Path | None = None) -> None:
        """A periodic save that fails costs a warning; the next one is tried again."""
        try:
            self.save(position, folder)
        except checkpoint.NotSaved as error:
            warn(f"{error}; training goes on")

    def save_kept(self, position: Position) -> None:
        """Save what callbacks have asked to keep, each in its folder."""
        for name in self.calls.kept():
            self.save_or_warn(position, self.output.folder.path / name)

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
