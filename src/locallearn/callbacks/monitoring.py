"""The base of callbacks that decide by a number of the validation split."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass

from locallearn import names
from locallearn.callbacks.base import Callback, RunView
from locallearn.errors import UserError

EMA_PREFIX = "ema_"
"""Of the metrics of averaged weights."""
SUCH = f"give one of the validation split, such as {names.on(names.VALIDATION, names.LOSS)}"


@dataclass
class Monitoring(Callback):
    """Base of what decides by one number, which may never be one of the test split.

    monitor  its name in the record of an evaluation: validation/accuracy, block/00/validation_accuracy, or with
             `callback=ema` validation/ema_accuracy; None: the score of the task
    """

    monitor: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.monitor is None:
            return
        asked = f"{self._group}.monitor={self.monitor}"
        if names.split_of(self.monitor) == names.TEST:
            raise UserError(f"{asked}: nothing may be chosen by a number of the test split; {SUCH}")
        if names.split_of(self.monitor) != names.VALIDATION:
            raise UserError(f"{asked}: is not a number that evaluations record; {SUCH}")

    def number(self, run: RunView) -> str:
        """The name of the number."""
        return self.monitor or names.on(names.VALIDATION, run.learner.setup.task.score)

    def more_is_better(self, run: RunView) -> bool | None:
        metric = names.metric_of(self.number(run)).removeprefix(EMA_PREFIX)
        return names.higher_is_better(metric, run.learner.setup.task.directions)

    def check(self, run: RunView, known: Callable[[], Collection[str]]) -> None:
        number = self.number(run)
        asked = f"{self._group}.monitor={number}"
        if self.more_is_better(run) is None:
            raise UserError(f"{asked}: it is not known whether higher or lower is better; {SUCH}")
        if number not in (recorded := known()):
            there = [name for name in recorded if names.split_of(name) == names.VALIDATION]
            none = "there is no validation split: set data.validation=0.1"
            has = f"give one of {', '.join(there)}" if there else none
            raise UserError(f"{asked}: this run records no such number; {has}")

    def improves(self, run: RunView, value: float, best: float | None, by: float = 0.0) -> bool:
        """Whether a value is better than the best one so far by more than `by`; without one, any finite value is."""
        if best is None:
            return math.isfinite(value)
        return value > best + by if self.more_is_better(run) else value < best - by
