"""The best checkpoint of a run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from locallearn import names
from locallearn.callbacks.base import RunView
from locallearn.callbacks.monitoring import Monitoring

BEST = "best"


@dataclass
class Best(Monitoring):
    """Keep the best checkpoint in `best/` of the run folder; at the end `model-best.safetensors` has its model, and the
    summary its numbers as `best/epoch`, `best/validation_accuracy`, `best/test_accuracy`, ..."""

    found: dict[str, float] = field(init=False, default_factory=dict)

    def start(self, run: RunView) -> None:
        if run.step == 0:
            self.found = {}

    def evaluation(self, run: RunView) -> None:
        number = self.number(run)
        if self.improves(run, run.record[number], self.found.get(number)):
            self.found = {
                name: value
                for name, value in run.record.items()
                if name in ("epoch", "step", number) or names.divided(name)[0] in (names.VALIDATION, names.TEST)
            }
            run.keep(BEST)

    def end(self, run: RunView) -> None:
        run.export(BEST)
        run.record |= {f"{BEST}/{name.replace('/', '_')}": value for name, value in self.found.items()}

    def state_dict(self) -> Mapping[str, Any]:
        return {"found": self.found}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.found = dict(state.get("found", {}))
