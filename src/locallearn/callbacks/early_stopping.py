"""The end of a run that does not become better."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

from annotated_types import Ge

from locallearn.callbacks.base import RunView
from locallearn.callbacks.monitoring import Monitoring


@dataclass
class EarlyStopping(Monitoring):
    """End the run when the number has not become better for a while (Prechelt 1998, Early stopping - but when?).

    patience   evaluations in a row without a better value
    min_delta  a value counts as better only if it is so by more than this
    """

    patience: Annotated[int, Ge(1)] = 5
    min_delta: Annotated[float, Ge(0)] = 0.0
    best: float | None = field(init=False, default=None)
    since: int = field(init=False, default=0)

    def start(self, run: RunView) -> None:
        if run.step == 0 or self.since >= self.patience:  # the latter in a run that was made longer after its stop
            self.best, self.since = None, 0

    def evaluation(self, run: RunView) -> None:
        number = self.number(run)
        value = run.record[number]
        if self.improves(run, value, self.best, self.min_delta):
            self.best, self.since = value, 0
            return
        self.since += 1
        if self.since >= self.patience:
            better = "risen" if self.more_is_better(run) else "fallen"
            by = f" by more than {self.min_delta:g}" if self.min_delta else ""
            times = "evaluation" if self.since == 1 else f"{self.since} evaluations"
            best = "" if self.best is None else f" since it was {self.best:.4f}"
            run.stop(f"{number} has not {better}{by} in the last {times}{best} (early_stopping)")

    def state_dict(self) -> Mapping[str, Any]:
        return {"best": self.best, "since": self.since}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.best, self.since = state.get("best"), state.get("since", 0)
