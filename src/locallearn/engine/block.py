"""A block as it is trained: units, auxiliary modules, the optimizers that own exactly these, and its running totals."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from locallearn import seeds
from locallearn.accelerator import read
from locallearn.analysis.quiet import Rerun
from locallearn.contract import BlockSpec, Copy
from locallearn.engine.modes import Modes
from locallearn.engine.optim import Optim
from locallearn.engine.replicas import Sum, moved
from locallearn.engine.setup import BlockModules, Place, Setup
from locallearn.engine.totals import BlockTotals, Totals
from locallearn.engine.updates import clear, gradients_of, sum_of_norms, take_step
from locallearn.errors import RunError, UserError
from locallearn.prices import meters_of
from locallearn.scaling import Scaler

HALVES = ("forward", "backward", "begin")
"""The parts of a step that have a random stream of their own."""


class MicroStep(NamedTuple):
    """When a half runs: it decides the random streams and the learning rate."""

    step: int
    progress: float
    micro: int


class TrainedBlock:
    """Implements `contract.Block`. One object per block, in the process where the block lives.

    totals   what was reported and noted since `reset`
    trained  the blocks that the user lets learn; None: all of them
    updates  steps of its optimizers so far
    updated  whether the strategy has ever called `update`
    copies   what it reads of blocks above, by name
    observers  are called with the step before the units and the head learn from the gradients that they have
    """

    def __init__(
        self,
        spec: BlockSpec,
        modules: BlockModules,
        optim: Optim,
        optimizers: dict[str, Optimizer | None],
        setup: Setup,
        place: Place,
    ) -> None:
        self.spec = spec
        self.layers, self.head, self.auxiliary = modules
        self.optim = optim
        self.micro_batches = setup.micro_batches
        self.replicas = place.replicas
        self.device = place.device
        self.progress = 0.0
        self.step = 0
        self.micro = 0
        self.updates = 0
        self.updated = False
        self.copies: dict[str, Copy] = {}
        self.observers: list[Callable[[int], None]] = []
        self.meters = meters_of(self.roots())
        self._scheduled = setup.total_steps is not None
        self.trained = setup.train_blocks
        self.modes = Modes([m for m in self.roots() if not self.frozen or m is not self.auxiliary], self.auxiliary)
        self._seeds = seeds.StepSeeds(seeds.derive(setup.seed, "block", spec.index), len(HALVES))
        self.optimizers = optimizers
        self._pending = dict.fromkeys(self.optimizers, 0)
        self._sums: deque[tuple[Optimizer, list[Tensor], float, Sum]] = deque()
        self.scaler = Scaler(p for m in self.roots() for p in m.parameters()) if setup.precision == "fp16" else None
        self.totals = BlockTotals(self.device, spec.task)
        self._norms = Totals(self.device)

    @property
    def last(self) -> bool:
        return self.spec.last

    @property
    def frozen(self) -> bool:
        """Whether the user lets units and head of this block stay as they are, batch statistics included."""
        return self.trained is not None and self.spec.index not in self.trained

    @property
    def learning_rate(self) -> float:
        """The rate of the units at this moment."""
        return self.optim.lr * self.optim.factor(self.progress)

    def update(self, part: str = "main") -> None:
        """Count a micro-batch; with the last one average, clip, apply and clear the gradients of this part. Those of
        replicas are first summed, while other blocks compute; `apply_sums` then applies them."""
        if part not in self._pending:
            known = ", ".join(self._pending)
            raise UserError(f"block.update({part!r}): a block has the parts {known}; Strategy.separate names others")
        self.updated = True
        for name, value in (reading for meter in self.meters for reading in meter.taken()):
            self.note(name, value)
        self._pending[part] += 1
        if self._pending[part] < self.micro_batches:
            return
        self._pending[part] = 0
        optimizer = self.optimizers.get(part)
        if optimizer is None or not optimizer.param_groups:
            return
        if self.replicas is None:
            self._apply(optimizer, self.micro_batches)
        elif gradients := gradients_of(optimizer):
            statistics = moved(self.roots()) if part == "main" else []
            total = self.replicas.start(gradients + statistics)
            self._sums.append((optimizer, statistics, self.progress, total))

    def apply_sums(self) -> None:
        """Wait for gradients that are being summed over replicas, and apply them."""
        while self._sums:
            optimizer, statistics, self.progress, total = self._sums.popleft()
            total.finish()
            for t in statistics:
                t.div_(total.size)
            self._apply(optimizer, self.micro_batches * total.size)

    def _apply(self, optimizer: Optimizer, shares: int) -> None:
        """One step of the optimizer with the mean of so many shares of a batch. A norm that clipping had to work out
        anyway is looked at before a weight changes; other gradients show in the weights, see `check`."""
        if shares > 1:
            for gradient in gradients_of(optimizer):
                gradient.div_(shares)
        if self.scaler is not None and self._overflowed(self.scaler, optimizer):
            return
        if self.observers and optimizer is self.optimizers["main"]:
            for observe in self.observers:
                observe(self.step)
        if self.optim.clip and gradients_of(optimizer):
            norm = self._norms.add(self._clipped(optimizer))
            if norm is not None and not math.isfinite(norm):
                raise self._not_finite("norm of the gradient", norm)
        factor = self.optim.factor(self.progress)
        for group in optimizer.param_groups:
            group["lr"] = group["base_lr"] * factor
        self.updates += 1  # before, for it may break off half way
        take_step(optimizer)
        clear(optimizer)

    def _overflowed(self, scaler: Scaler, optimizer: Optimizer) -> bool:
        """Whether float16 was too narrow for a gradient: then this step is left out. Synchronises a GPU."""
        gradients = gradients_of(optimizer)
        overflow = bool(gradients) and not math.isfinite(sum_of_norms(gradients).item())
        if overflow and scaler.exhausted:
            raise self._not_finite("gradient", math.inf)
        scaler.update(overflow, grow=bool(gradients) and optimizer is self.optimizers["main"])
        self.totals.note("skipped_steps", torch.full((), float(overflow), device=self.device))
        if overflow:
            clear(optimizer)
        return overflow

    def _clipped(self, optimizer: Optimizer) -> Tensor:
        """The norm of the gradient before it was clipped."""
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        return nn.utils.clip_grad_norm_(parameters, self.optim.clip)

    def broken_weight(self) -> str | None:
        """The name of the first weight of this block that holds a number which is not finite. Synchronises a GPU."""
        weights = self._weights()
        if not weights or math.isfinite(sum_of_norms(list(weights.values())).item()):
            return None
        return next((name for name, p in weights.items() if not bool(torch.isfinite(p).all())), None)

    def _weights(self) -> dict[str, Tensor]:
        """What learns in this block, by its name there."""
        modules = {"": self.layers, "head.": self.head, "auxiliary.": self.auxiliary}
        named = ((prefix + n, p) for prefix, m in modules.items() if m is not None for n, p in m.named_parameters())
        return {name: p.detach() for name, p in named if p.requires_grad}

    def report(self, loss: Tensor, logits: Tensor | None = None, y: Tensor | None = None) -> None:
        """Add to the totals. On the CPU a loss that is not finite is refused here, before anything learns from it; on a
        GPU reading it would synchronise, so `check` does it every few steps."""
        value = self.totals.report(loss, logits, y)
        if value is not None and not math.isfinite(value):
            raise self._not_finite("loss", value)

    def note(self, name: str, value: Tensor) -> None:
        """Add to the running mean of one more number; like `report` it refuses what is not finite."""
        if self.scaler is not None and not self.scaler.exhausted and not math.isfinite(value.detach()):
            return  # the step that is about to be left out
        number = self.totals.note(name, value)
        if number is not None and not math.isfinite(number):
            raise self._not_finite(f"metric {name}", number)

    def check(self) -> None:
        """Refuse totals and weights that are not finite. Reads every weight, and synchronises a GPU once."""
        named = {name if name == "loss" else f"metric {name}": total for name, total in self.totals.sums().items()}
        sums = {**named, "norm of the gradient": self._norms.loss}
        weights = list(self._weights().values())
        *totals, (norms,) = read([*sums.values(), sum_of_norms(weights) if weights else self._norms.loss])
        for name, (total,) in zip(sums, totals, strict=True):
            if not math.isfinite(total):
                raise self._not_finite(name, total)
        if not math.isfinite(norms) and (weight := self.broken_weight()):
            raise self._not_finite(f"weight {weight}", math.nan)

    def read(self) -> dict[str, float]:
        """Mean loss, metrics and notes since `reset`; only what this block reported. Synchronises a GPU."""
        return self.totals.means(self.totals.state(), self.spec.task)

    def reset(self) -> None:
        self.totals.reset()

    def forget(self) -> None:
        """Clear what a step leaves behind that broke off: gradients, counts, sums, and the running means."""
        for root in self.roots():
            for p in root.parameters():
                p.grad = None
        self._pending = dict.fromkeys(self._pending, 0)
        self._sums.clear()
        self._norms.write([0.0, 0.0, 0.0])
        self.clear_meters()
        self.reset()

    def clear_meters(self) -> None:
        """Clear what modules have measured in a step that was only tried, or broke off."""
        for module in self.meters:
            module.forget()

    def published(self, name: str) -> Copy:
        """See `contract.Block`."""
        if name not in self.copies:
            raise UserError(f"block.published({name!r}): Strategy.reads asks for {', '.join(self.copies) or 'nothing'}")
        return self.copies[name]

    def running(self) -> dict[str, Any]:
        """The state of the totals; see `BlockTotals`."""
        return self.totals.state()

    def resume(self, running: Mapping[str, Any]) -> None:
        """Go on from what `running` gave."""
        self.totals.load_state(running)

    def again(self) -> AbstractContextManager[None]:
        """A second forward in one step: the dropout and the buffers of the first one, and no buffer moves. Made before
        the first forward, it knows also those that this one moves."""
        return self._again(Rerun(*self.roots()))

    @contextmanager
    def _again(self, rerun: Rerun) -> Iterator[None]:
        self.reseed("forward")
        with rerun:
            yield

    def start(self, at: MicroStep, half: str | None = None, number: int = 0) -> None:
        """Begin a half or a round of a step: apply gradients that are still being summed, restart the random stream."""
        self.apply_sums()
        self.step, self.progress, self.micro = at
        for meter in self.meters:
            meter.progress = self.progress if self._scheduled else 1.0
        if half is not None:
            self.reseed(half, number)

    def reseed(self, half: str, number: int = 0) -> None:
        """Put PyTorch's global generators at the start of this block's stream for a half or round of this step."""
        seed = self._seeds(self.step, self.micro, HALVES.index(half))
        seeds.restart(seeds.mix(seed, number) if number else seed, self.device)

    def roots(self) -> list[nn.Module]:
        """The modules of which all others of the block are parts."""
        return [m for m in (self.layers, self.head, self.auxiliary) if m is not None]

    def _not_finite(self, name: str, value: float) -> RunError:
        return RunError(
            f"block {self.spec.index} of {self.spec.depth}, step {self.step}: the {name} is {value} at learning rate "
            f"{self.learning_rate:.3g}; lower optim.lr, or limit the gradient with optim.clip=1"
        )


def set_modes(blocks: Sequence[TrainedBlock], learning: range) -> None:
    """For a step in which these blocks learn, but for frozen ones. If nothing in them is in training mode somebody has
    put the whole model into eval mode, to look at it: then all of them is put back."""
    for block in blocks:
        block.modes.set(block.spec.index in learning and not block.frozen)
    learners = [block for block in blocks if block.spec.index in learning and not block.frozen]
    if not any(block.modes.awake() for block in learners):
        for block in learners:
            block.modes.wake()
