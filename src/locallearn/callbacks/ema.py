"""An exponential moving average of the weights, evaluated beside them and exported."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Annotated, Any

import torch
from annotated_types import Interval
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from locallearn import names
from locallearn.callbacks.base import Callback, RunView
from locallearn.callbacks.monitoring import EMA_PREFIX
from locallearn.engine import Learner
from locallearn.engine.answer import answers, exported


@dataclass
class EMA(Callback):
    """After every step average = decay average + (1 - decay) weight, as `torch.optim.swa_utils`: of every parameter of
    the model, from the first step on; buffers, such as the statistics of batch norms, are those of the training.

    Each evaluation has `validation/ema_loss`, `test/ema_accuracy`, ..., and takes twice as long; at the end
    `model-ema.safetensors` has the averaged model. Holds the weights once more; a step costs one pass over them.

    decay  of the average, which reaches back about 1 / (1 - decay) steps
    """

    decay: Annotated[float, Interval(ge=0, lt=1)] = 0.999
    steps: int = field(init=False, default=0)
    averages: dict[str, Tensor] = field(init=False, default_factory=dict, repr=False)

    def start(self, run: RunView) -> None:
        if run.step == 0:
            self.load_state_dict({})
        self._average = get_ema_multi_avg_fn(self.decay)
        self._weights = weights(run.learner)
        if self.averages:  # of a checkpoint: on the CPU, and of all processes
            self.averages = {name: self.averages[name].to(p, copy=True) for name, p in self._weights.items()}

    def step(self, run: RunView) -> None:
        now = list(self._weights.values())
        if self.steps == 0:
            self.averages = {name: p.detach().clone() for name, p in self._weights.items()}
        else:
            with torch.no_grad():
                self._average(list(self.averages.values()), now, self.steps)
        self.steps += 1

    def measure(self, run: RunView) -> Mapping[str, float]:
        with self.averaged(run.learner):
            numbers = run.evaluate()
        parts = ((*names.divided(name), value) for name, value in numbers.items())
        return {
            f"{place}/{EMA_PREFIX}{metric}": v for place, metric, v in parts if place in (names.VALIDATION, names.TEST)
        }

    def end(self, run: RunView) -> None:
        with self.averaged(run.learner):
            run.save("model-ema", exported(run.learner))

    @contextmanager
    def averaged(self, learner: Learner) -> Iterator[None]:
        """The learner with the averages in place of its weights, which are put back bit for bit."""
        own = weights(learner) if self.averages else {}
        before = {name: p.detach().clone() for name, p in own.items()}
        with torch.no_grad():
            try:
                for name, p in own.items():
                    p.copy_(self.averages[name])
                yield
            finally:
                for name, p in own.items():
                    p.copy_(before[name])

    def state_dict(self) -> Mapping[str, Any]:
        return {"steps": self.steps, **self.averages}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.steps = state.get("steps", 0)
        self.averages = {name: value for name, value in state.items() if isinstance(value, Tensor)}


def weights(learner: Learner) -> dict[str, nn.Parameter]:
    """The parameters of the model, and of what ships with it, that this process has, by name."""
    ships = learner.strategy.ships
    kept = {n: p for n, p in learner.parameters() if n.startswith("model.") or answers(n, ships)}
    return {name.removeprefix("model."): p for name, p in kept.items()}
