"""A block as it is trained: units, auxiliary modules, the optimizers that own exactly these, and its running totals."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from locallearn import seeds
from locallearn.contract import BlockSpec
from locallearn.engine.optim import Optim
from locallearn.engine.totals import Totals
from locallearn.errors import RunError

HALVES = ("forward", "backward", "begin")
"""The parts of a step that have a random stream of their own."""


class TrainedBlock:
    """Implements `contract.Block`. One object per block, in the process where the block lives.

    totals, notes  what was reported and noted since `reset`
    """

    def __init__(
        self,
        spec: BlockSpec,
        layers: nn.Module,
        head: nn.Module | None,
        auxiliary: nn.ModuleDict,
        separate: frozenset[str],
        optim: Optim,
        seed: int,
        micro_batches: int,
        device: torch.device,
    ) -> None:
        self.spec = spec
        self.layers = layers
        self.head = head
        self.auxiliary = auxiliary
        self.optim = optim
        self.micro_batches = micro_batches
        self.progress = 0.0
        self.step = 0
        self.micro = 0
        self.predicts = False
        self._seeds = seeds.StepSeeds(seeds.derive(seed, "block", spec.index), micro_batches, len(HALVES))
        self.optimizers = _optimizers(layers, head, auxiliary, separate, optim)
        self._pending = dict.fromkeys(self.optimizers, 0)
        self.device = device
        self.totals = Totals(device)
        self.notes: dict[str, Totals] = {}

    @property
    def last(self) -> bool:
        return self.spec.last

    @property
    def learning_rate(self) -> float:
        """The rate of the units at this moment."""
        return self.optim.lr * self.optim.factor(self.progress)

    def update(self, part: str = "main") -> None:
        """Count a micro-batch; with the last one average, clip, apply and clear the gradients of this part."""
        self._pending[part] += 1
        if self._pending[part] < self.micro_batches:
            return
        self._pending[part] = 0
        optimizer = self.optimizers.get(part)
        if optimizer is None or not optimizer.param_groups:
            return
        if self.micro_batches > 1 or self.optim.clip:
            self._average_and_clip(optimizer)
        factor = self.optim.factor(self.progress)
        for group in optimizer.param_groups:
            group["lr"] = group["base_lr"] * factor
        optimizer.step()
        for group in optimizer.param_groups:
            for p in group["params"]:
                p.grad = None  # `zero_grad` does the same for 60 us more, most of it for the profiler

    def _average_and_clip(self, optimizer: Optimizer) -> None:
        parameters = [p for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        if self.micro_batches > 1:
            for p in parameters:
                p.grad.div_(self.micro_batches)
        if self.optim.clip:
            nn.utils.clip_grad_norm_(parameters, self.optim.clip)

    def report(self, loss: Tensor, logits: Tensor | None = None, y: Tensor | None = None) -> None:
        """Add to the totals. On the CPU a loss that is not finite is refused here, before anything learns from it; on a
        GPU reading it would synchronise, so `check` does it every some steps."""
        self.predicts |= logits is not None and y is not None
        value = self.totals.add(loss, logits, y)
        if value is not None and not math.isfinite(value):
            raise self._not_finite("loss", value)

    def note(self, name: str, value: Tensor) -> None:
        """Add to the running mean of one more number; like `report` it refuses what is not finite."""
        if name not in self.notes:
            self.notes[name] = Totals(self.device)
        found = self.notes[name].add(value)
        if found is not None and not math.isfinite(found):
            raise self._not_finite(name.replace("_", " "), found)

    def check(self) -> None:
        """Refuse totals that are not finite. Synchronises a GPU."""
        for name, totals in {"loss": self.totals, **self.notes}.items():
            total = totals.read()[0]
            if not math.isfinite(total):
                raise self._not_finite(name.replace("_", " "), total)

    def read(self) -> dict[str, float]:
        """Mean loss, accuracy and notes since `reset`; only what this block reported. Synchronises a GPU."""
        found: dict[str, float] = {}
        loss, correct, samples = self.totals.read()
        if samples:
            found["loss"] = loss / samples
        if samples and self.predicts:
            found["accuracy"] = correct / samples
        for name, totals in self.notes.items():
            value, _, count = totals.read()
            found[name] = value / count
        return found

    def reset(self) -> None:
        self.totals.write([0.0, 0.0, 0.0])
        self.notes.clear()
        self.predicts = False

    def running(self) -> dict:
        """What was reported since `reset`, for a checkpoint."""
        notes = {name: totals.read() for name, totals in self.notes.items()}
        return {"totals": self.totals.read(), "predicts": self.predicts, "notes": notes}

    def resume(self, running: dict) -> None:
        """Go on from what `running` gave."""
        self.totals.write(running["totals"])
        self.predicts = running["predicts"]
        self.notes = {name: Totals(self.device) for name in running["notes"]}
        for name, sums in running["notes"].items():
            self.notes[name].write(sums)

    @contextmanager
    def again(self) -> Iterator[None]:
        """A second forward in one step: the dropout of the first one, batch statistics left alone."""
        modules = (*self.layers.modules(), *self.auxiliary.modules())
        norms = [m for m in modules if isinstance(m, nn.modules.batchnorm._BatchNorm)]
        tracking = [m.track_running_stats for m in norms]
        self.reseed("forward")
        for m in norms:
            m.track_running_stats = False
        try:
            yield
        finally:
            for m, tracks in zip(norms, tracking, strict=True):
                m.track_running_stats = tracks

    def reseed(self, half: str) -> None:
        """Put PyTorch's global generator at the start of this block's stream for this step, micro-batch and half."""
        seed = self._seeds(self.step, self.micro, HALVES.index(half))
        torch.default_generator.manual_seed(seed)
        if self.device.type == "cuda":
            torch.cuda.manual_seed(seed)

    def train(self, learns: bool) -> None:
        """Training mode where the block learns, else eval mode. Walks the modules only when the mode changes."""
        first = next(iter(self.layers.children()), self.layers)
        if first.training != learns or self.layers.training != learns:
            for module in (self.layers, self.head, self.auxiliary):
                if module is not None:
                    module.train(learns)

    def _not_finite(self, name: str, value: float) -> RunError:
        return RunError(
            f"block {self.spec.index} of {self.spec.depth}, step {self.step}: the {name} is {value} at learning rate "
            f"{self.learning_rate:.3g}; lower optim.lr, or limit the gradient with optim.clip=1"
        )


def _optimizers(
    layers: nn.Module, head: nn.Module | None, auxiliary: nn.ModuleDict, separate: frozenset[str], optim: Optim
) -> dict[str, Optimizer | None]:
    """One optimizer for the main part and one for each auxiliary module that has its own; None where nothing learns."""
    main = [*layers.parameters(), *(head.parameters() if head is not None else ())]
    joint = [p for name, m in auxiliary.items() if name not in separate for p in m.parameters()]
    parts = {"main": optim.groups(_trainable(main), _trainable(joint))}
    for name in sorted(separate & set(auxiliary)):
        parts[name] = optim.groups([], _trainable(list(auxiliary[name].parameters())))
    return {name: optim.build(groups) if groups else None for name, groups in parts.items()}


def _trainable(parameters: list[nn.Parameter]) -> list[nn.Parameter]:
    return list(dict.fromkeys(p for p in parameters if p.requires_grad))
