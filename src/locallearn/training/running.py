"""The records inside an epoch: means over the steps since the last one, every `log_every` steps."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from locallearn import names
from locallearn.engine import Learner
from locallearn.engine.totals import BlockTotals
from locallearn.runs.console import SPEED_INSIDE
from locallearn.runtime.world import World
from locallearn.training.evaluate import model_numbers, sums_of_blocks

Sums = list[tuple[int, dict[str, Any]]]
"""Index and sums of each block of a process."""


PAUSE_SECONDS = 0.001  # between two looks for what others have


class RunningNumbers:
    """Means over the training batches since the last record, every `every` steps of an epoch; its end has a record of
    its own.

    In a pipeline a process says what it has and goes on: rank 0 records it once all have said theirs, which is when it
    looks for the next record, or where all meet anyway; before a save it waits for them.

    last  the sums at the last record, by block
    """

    def __init__(
        self, every: int, learner: Learner, batch: int, world: World, log: Callable[[dict[str, Any]], None]
    ) -> None:
        self.every = every
        self.learner = learner
        self.batch = batch
        self.world = world
        self.log = log
        self.last: dict[int, Mapping[str, Any]] = {}
        self._begun = 0, 0.0
        self._pending: deque[tuple[dict[str, Any], Callable[[], list[Any] | None]]] = deque()

    def start(self) -> None:
        """Count from here, at the start of an epoch or inside one that goes on."""
        self._begun = self.learner.step_count, time.perf_counter()

    def pause(self, seconds: float) -> None:
        """Do not count these seconds as training."""
        step, started = self._begun
        self._begun = step, started + seconds

    def due(self, offset: int) -> bool:
        """Whether there is a record after `offset` steps of an epoch, which has more."""
        return self.every > 0 and offset % self.every == 0

    def record(self, epoch: float, seconds: float, sums: Sums, numbers: Mapping[str, float]) -> None:
        """Record the steps since the last time. `epoch` is a fraction; `numbers` are those of callbacks. Synchronises a
        GPU. All processes must call this after the same step."""
        (first, started), now = self._begun, time.perf_counter()
        blocks = [(index, _difference(own, self.last.get(index, {}))) for index, own in sums]
        rate = self.learner.blocks[-1].learning_rate
        ready = self.world.post({"blocks": blocks, "numbers": numbers, "learning_rate": rate})
        step = self.learner.step_count
        speed = (step - first) * self.batch / (now - started)
        head = {"epoch": epoch, "step": step, "seconds": seconds, SPEED_INSIDE: speed}
        self.last = dict(sums)
        self._begun = step, now
        if self.world.rank == 0:
            self._pending.append((head, ready))
            self.flush()

    def complete(self) -> None:
        """Record everything, once all processes have said what they have."""
        while self._pending:
            self.flush()
            time.sleep(PAUSE_SECONDS if self._pending else 0)

    def flush(self) -> None:
        """Record what is complete: everything, where all processes have met since."""
        while self._pending and (reports := self._pending[0][1]()) is not None:
            head, _ = self._pending.popleft()
            sums = sums_of_blocks(report["blocks"] for report in reports)
            task = self.learner.setup.task
            blocks = {index: BlockTotals.means(own, task) for index, own in sums.items()}
            found = model_numbers(blocks, task) | names.of_blocks(blocks)
            record = head | {names.on(names.STEP, name): value for name, value in found.items()}
            for report in reports:
                record |= report["numbers"]
            self.log(record | {"learning_rate": reports[-1]["learning_rate"]})

    def reset(self) -> None:
        """The sums begin anew, at the end of an epoch."""
        self.last = {}


def _difference(now: Any, before: Any) -> Any:
    """Of sums and of mappings and lists of them; whatever is not a number, as it is now."""
    if isinstance(now, Mapping):
        return {key: _difference(value, before.get(key)) if before else value for key, value in now.items()}
    if isinstance(now, Sequence) and not isinstance(now, str):
        if not before:
            return now
        if len(before) != len(now):  # the sums of metrics come with the first prediction
            before = [before[0], *[0.0] * (len(now) - 2), before[-1]]
        return [_difference(a, b) for a, b in zip(now, before, strict=True)]
    return now if before is None or isinstance(now, bool | str) else now - before
