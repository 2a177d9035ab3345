"""The callbacks of a run: who calls them, with what, and what becomes of what they ask for."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save as to_bytes
from torch import Tensor

from locallearn.callbacks import Callback
from locallearn.data import Data
from locallearn.engine import Learner
from locallearn.engine.answer import answers
from locallearn.engine.gradients import unchanged
from locallearn.errors import UserError
from locallearn.runs import checkpoint, files
from locallearn.runs.console import warn
from locallearn.runtime.world import World
from locallearn.training.evaluate import evaluate_splits


class CalledOff(Exception):
    """A callback has stopped the run inside an epoch; raised in every process after the same step."""


class Calls:
    """The callbacks of a run by name, and the run as they see it (`callbacks.RunView`)."""

    def __init__(
        self, callbacks: Mapping[str, Callback], learner: Learner, data: Data, folder: Path, world: World
    ) -> None:
        self.callbacks = callbacks
        self.learner = learner
        self.data = data
        self.folder = folder
        self.world = world
        self.rank = world.rank
        self.epoch = 0.0
        self.record: dict[str, Any] = {}
        self.records = False
        self.asked = ""
        self._numbers: dict[str, float | Tensor] = {}
        self._kept: list[str] = []
        self._batches: int | None = None

    def __bool__(self) -> bool:
        return bool(self.callbacks)

    @property
    def step(self) -> int:
        return self.learner.step_count

    def stop(self, reason: str) -> None:
        self.asked = self.asked or reason

    def log(self, numbers: Mapping[str, float | Tensor]) -> None:
        self._numbers |= numbers

    def evaluate(self) -> dict[str, float]:
        return {} if self.world.replica else evaluate_splits(self.learner, self.data, self._batches)

    def save(self, name: str, tensors: Mapping[str, Tensor]) -> None:
        tensors = self.world.gather_tensors(tensors)
        if self.rank == 0:
            files.replace(self.folder / f"{name}.safetensors", [to_bytes(checkpoint.distinct(tensors))])

    def keep(self, name: str) -> None:
        self._kept.append(name)

    def export(self, name: str) -> None:
        saved = checkpoint.newest(self.folder / name, warn) if self.rank == 0 else None
        if saved is not None:
            ships = self.learner.strategy.ships
            kept = {n: t for n, t in saved.tensors.items() if n.startswith("model.") or answers(n, ships)}
            model = {n.removeprefix("model."): t for n, t in kept.items()}
            files.replace(self.folder / f"model-{name}.safetensors", [to_bytes(model)])

    def before_the_run(self) -> None:
        """Let each refuse what cannot be, before anything is written; a batch of each split tells the names of the
        numbers. Raises UserError."""
        self._batches = 1
        for callback in self.callbacks.values():
            callback.check(self, lambda: (self.evaluate() | self.measured()).keys())

    def measured(self) -> dict[str, float]:
        """What the callbacks add to an evaluation. All processes must call this."""
        numbers: dict[str, float] = {}
        if not self:
            return numbers
        with unchanged(self.learner):
            for callback in self.callbacks.values():
                numbers |= callback.measure(self)
        return numbers

    def tell(self, moment: str, epoch: float, record: dict[str, Any] | None = None) -> None:
        """Call a method of every callback; `record` is that of rank 0, which all get. All processes must call this."""
        if not self:
            return
        self.epoch = epoch
        if record is None:
            self._call(moment)
            return
        self.record = record if self.rank == 0 else {}
        others = self.world.broadcast(record)
        if self.rank:
            self.record = others
        with unchanged(self.learner):
            self._call(moment)
        self.record = {}

    def _call(self, moment: str) -> None:
        for callback in self.callbacks.values():
            getattr(callback, moment)(self)

    def decided(self) -> tuple[str, dict[str, float]]:
        """Why the run must stop, in every process, if any of them has asked for it; and at rank 0 the numbers for this
        record. All must call this."""
        if not self:
            return "", {}
        reports = self.world.gather([self.asked, self.taken()])
        self.asked = ""
        numbers = {name: value for _, own in reports for name, value in own.items()}
        return self.world.broadcast(next((asked for asked, _ in reports if asked), "")), numbers

    def taken(self) -> dict[str, float]:
        """The numbers for the next record. Synchronises a GPU if there are any on it."""
        numbers, self._numbers = self._numbers, {}
        return {} if self.world.replica else {name: float(value) for name, value in numbers.items()}

    def kept(self) -> list[str]:
        """The checkpoints that were asked for; once."""
        kept, self._kept = self._kept, []
        return kept

    def state(self) -> tuple[dict[str, dict[str, Any]], dict[str, Tensor]]:
        """Plain values of every callback, and the tensors of all under the names of a checkpoint. Raises UserError."""
        values: dict[str, dict[str, Any]] = {}
        tensors: dict[str, Tensor] = {}
        for name, callback in self.callbacks.items():
            state = callback.state_dict()
            values[name] = {key: value for key, value in state.items() if not isinstance(value, Tensor)}
            tensors |= {checkpoint.of_callback(name, k): v for k, v in state.items() if isinstance(v, Tensor)}
            try:
                json.dumps(values[name], allow_nan=False)
            except (TypeError, ValueError) as error:
                raise UserError(
                    f"callback {name}: state_dict gives what JSON cannot hold ({error}); give tensors, numbers, texts, "
                    "and lists and mappings of these"
                ) from error
        return values, tensors

    def load_state(self, states: Mapping[str, Mapping[str, Any]]) -> None:
        """Put back what a checkpoint has of each. Raises UserError for one whose callback is not there."""
        if missing := sorted(states.keys() - self.callbacks.keys()):
            raise UserError(
                f"the checkpoint has the state of the callback {missing[0]}, which this run does not have: give it too"
            )
        for name, state in states.items():
            self.callbacks[name].load_state_dict(state)
