"""The base of callbacks that decide by a number of the validation split."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from dataclasses import dataclass, field

from locallearn import names
from locallearn.callbacks.base import Callback, RunView
from locallearn.errors import UserError


@dataclass
class Monitoring(Callback):
    """Base of what decides by one number, which may never be one of the test split. Whether more of it is better, the
    task of the run says.

    monitor  its name in the record of an evaluation: validation/loss, block/00/validation_accuracy, or with
             `callback=ema` validation/ema_accuracy; None: the score of the task, such as validation/accuracy
    """

    monitor: str | None = None
    monitored: str = field(init=False, default="")
    higher: bool = field(init=False, default=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        split = names.VALIDATION if self.monitor is None else names.split_of(self.monitor)
        if split != names.VALIDATION:
            why = "nothing may be chosen by a number of the test split" if split == names.TEST else "is no such number"
            raise UserError(f"{self._asked}: {why}; give one of an evaluation of the validation split, or null")

    @property
    def _asked(self) -> str:
        return f"{self._group}.monitor={self.monitor or self.monitored}"

    def check(self, run: RunView, known: Callable[[], Collection[str]]) -> None:
        recorded = known()
        self.start(run)
        if self.monitored not in recorded:
            there = [name for name in recorded if names.split_of(name) == names.VALIDATION]
            none = "there is no validation split: set data.validation=0.1"
            has = f"give one of {', '.join(there)}" if there else none
            raise UserError(f"{self._asked}: this run records no such number; {has}")

    def start(self, run: RunView) -> None:
        task = run.learner.setup.task
        self.monitored = self.monitor or names.on(names.VALIDATION, task.score)
        metric = names.divided(self.monitored)[1].removeprefix(f"{names.VALIDATION}_").removeprefix("ema_")
        higher = task.metrics.get(metric, names.higher_is_better(metric))
        if higher is None:
            known = ", ".join(task.metrics)
            raise UserError(f"{self._asked}: whether more of it is better is not known; give one of {known}, or null")
        self.higher = higher

    def improves(self, value: float, best: float | None, by: float = 0.0) -> bool:
        """Whether a value is better than the best one so far, by more than so much."""
        if best is None:
            return math.isfinite(value)
        return value > best + by if self.higher else value < best - by
