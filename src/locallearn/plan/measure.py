"""What each block costs in a step: seconds, bytes in memory and bytes on the wire, measured in the strategy's step."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from statistics import median
from typing import NamedTuple

import torch
from torch import Tensor

from locallearn.analysis.cost import SavedBytes, now
from locallearn.contract import Block, Packet, Route, Send, Step, Strategy
from locallearn.engine import Learner, Stage, TrainedBlock
from locallearn.engine.promises import check_learned, check_trained
from locallearn.errors import UserError

SAMPLES = 16  # below it some CPU kernels are other ones than in training
REPEATS = 3
_WEIGHED = 8  # samples that bytes are counted with


class BlockTimes(NamedTuple):
    """Seconds of one block's halves for one batch: losses and auxiliary networks are in that half in which the strategy
    has them, and so is the optimizer where the batch is whole. Of a divided one the last micro-batch takes `update`
    longer."""

    forward: float
    backward: float
    update: float = 0.0

    @property
    def total(self) -> float:
        return self.forward + self.backward + self.update


class BlockCost(NamedTuple):
    """What one block costs for one batch.

    up         bytes of the packet for the block above
    down       bytes of the feedback for the block below; 0 where the route has none
    held       bytes that autograd keeps from the forward to the backward half
    peak       the most bytes that autograd keeps at one time, auxiliary networks included
    fixed      bytes of weights, gradients, optimizer state and buffers, whatever the batch
    gradients  bytes of gradients, which replicas sum
    """

    times: BlockTimes
    up: int
    down: int
    held: int
    peak: int
    fixed: int
    gradients: int = 0


class Read(NamedTuple):
    """What a block reads of a published tensor of block `source`, see `contract.Published`; its bytes."""

    block: int
    source: int
    every: int
    lag: int
    size: int


class Measured(NamedTuple):
    """The blocks of one strategy, for a whole batch run at once and in micro-batches; `exchanges` says how many rounds
    a number of blocks takes, `reads` what they read of each other's tensors."""

    name: str
    route: Route
    whole: list[BlockCost]
    parts: list[BlockCost]
    exchanges: Callable[[int], int] = lambda depth: 1
    reads: Sequence[Read] = ()


def measure(
    learners: Mapping[str, Learner], batch: int, micro_batches: int, samples: int, rounds: int, repeats: int
) -> list[Measured]:
    """What the blocks of each learner cost, with the batch whole and in `micro_batches`. The learners take turns, so
    that whatever else the machine does hits all alike."""
    runs: dict[tuple[str, int], list[list[BlockTimes]]] = defaultdict(list)
    for _ in range(rounds):
        for name, learner in learners.items():
            for m in sorted({1, micro_batches}):
                runs[name, m].append(block_times(learner, batch, m, samples, repeats))
    times = {key: middle(*found) for key, found in runs.items()}
    measured = []
    for name, learner in learners.items():
        whole = block_costs(learner, batch, times[name, 1])
        parts = [cost._replace(times=part) for cost, part in zip(whole, times[name, micro_batches], strict=True)]
        strategy = learner.strategy
        measured.append(Measured(name, strategy.route, whole, parts, strategy.rounds, _reads(learner)))
    return measured


def _reads(learner: Learner) -> list[Read]:
    return [
        Read(k, wish.source, wish.every, wish.lag, _bytes(learner.strategy.publish(learner.blocks[wish.source], name)))
        for k, wishes in learner.stage.reads.items()
        for name, wish in wishes.items()
    ]


def block_times(
    learner: Learner, batch: int, micro_batches: int = 1, samples: int = SAMPLES, repeats: int = REPEATS
) -> list[BlockTimes]:
    """Seconds per block for a batch of `batch`: the median of `repeats` steps after one to warm up. Synchronises.
    Raises UserError where the user has frozen blocks: one that takes no step is not seen.

    Runs on random inputs and a copy of the learner, which stays as it is. A batch above `samples` is not run: its time
    follows from those of `samples` and of half as many by a straight line (what does not grow with the batch, such as
    the optimizer, is its intercept). VGG-16 at 16 for 64 comes within some 5 %, where plain scaling is 20 % off.
    """
    if learner.blocks[0].trained is not None:
        raise UserError("blocks that only compute are not measured: leave train_blocks out")
    if learner.model.samples or batch <= samples:
        return _measured(learner, learner.model.samples or batch, micro_batches, repeats)
    full = micro_batches * max(samples // micro_batches, 1)
    half = micro_batches * max(full // 2 // micro_batches, 1)

    def line(few: float, many: float) -> float:
        """Seconds for `batch`, given those for `half` and `full` samples; noise cannot bend them far."""
        slope = (many - few) / (full - half) if half < full else many / full
        return many + (batch - full) * min(max(slope, 0.5 * many / full), many / full)

    sizes = (half, full) if half < full else (full,)
    runs = [_measured(learner, count, micro_batches, repeats) for count in sizes]
    return [
        BlockTimes(line(few.forward, many.forward), line(few.backward, many.backward), many.update)
        for few, many in zip(runs[0], runs[-1], strict=True)
    ]


def _measured(learner: Learner, count: int, micro_batches: int, repeats: int) -> list[BlockTimes]:
    observed = _Observed(learner.strategy, learner.device)
    stage = stage_copy(learner, observed, micro_batches)
    runs = []
    for _ in range(1 + repeats):
        observed.halves = defaultdict(list)
        step_on_noise(learner, stage, count)
        runs.append([_times(observed.halves[k]) for k in range(len(stage.blocks))])
    return middle(*runs[1:])


def _times(halves: Sequence[tuple[float, float]]) -> BlockTimes:
    """Of the halves of every micro-batch, in the order in which they ended."""
    forward, backward = (sum(half) for half in zip(*halves, strict=True))
    *others, (_, last) = halves
    update = max(0.0, last - median(half for _, half in others)) if others else 0.0
    return BlockTimes(forward, backward - update, update)


def middle(*runs: Sequence[BlockTimes]) -> list[BlockTimes]:
    """For each block the median of each time over the runs."""
    return [BlockTimes(*map(median, zip(*times, strict=True))) for times in zip(*runs, strict=True)]


def block_costs(learner: Learner, batch: int, times: Sequence[BlockTimes]) -> list[BlockCost]:
    """The `times` of each block with its bytes: from one step on a few samples, in proportion to the batch."""
    count = learner.model.samples or min(batch, _WEIGHED)
    observed = _Observed(learner.strategy, learner.device, weigh=True)
    stage = stage_copy(learner, observed, 1)
    step_on_noise(learner, stage, count)
    scale = 1.0 if learner.model.samples else batch / count
    costs = []
    for k, block in enumerate(stage.blocks):
        up, down, held, peak = (round(scale * n) for n in observed.bytes[k])
        gradients = _bytes(p for p in _parameters(block) if p.requires_grad)
        costs.append(BlockCost(times[k], up, down, held, peak, _fixed(block), gradients))
    return costs


def rehearse(learner: Learner, inputs: Tensor, labels: Tensor) -> None:
    """A step of every phase on inputs [B, ...] and labels [B], on a copy of the blocks, and an answer where that takes
    rounds; raises what training would."""
    stage = stage_copy(learner, learner.strategy, 1)
    _phases(learner, stage, inputs, labels)
    check_learned(learner.strategy, stage.blocks)
    check_trained(learner.strategy, stage.blocks)
    if learner.strategy.settles(len(learner.cut)):
        learner.predict(inputs)


def stage_copy(learner: Learner, strategy: Strategy, micro_batches: int) -> Stage:
    """A copy of the blocks whose weights stay as they are, however many steps it takes: the optimizer does its work at
    rate 0. Nothing is late and nothing is sent, whatever the runtime."""
    assert len(learner.blocks) == len(learner.cut), "all blocks must be in this process"
    blocks = copy.deepcopy(learner.blocks)
    for block in blocks:
        block.micro_batches = micro_batches
        for optimizer in block.optimizers.values():
            for group in optimizer.param_groups if optimizer is not None else ():
                group["base_lr"] = 0.0
    stage = learner.stage
    return Stage(blocks, strategy, half=stage.half, micro_batches=micro_batches, reads=stage.reads)


def step_on_noise(learner: Learner, stage: Stage, samples: int) -> None:
    """One step of every phase of the strategy on noise, so that each block learns once."""
    generator = torch.Generator().manual_seed(0)
    model = learner.model
    inputs = model.noise(samples, generator)
    targets = learner.setup.task.random(len(inputs), model.classes, model.image, generator)
    _phases(learner, stage, inputs.to(learner.device), targets.to(learner.device))


def _phases(learner: Learner, stage: Stage, inputs: Tensor, labels: Tensor) -> None:
    phases = len(stage.strategy.phases(len(stage.blocks)))
    for phase in range(phases):
        stage.step(learner.prepare(inputs), labels, phase, phases)


class _Observed(Strategy):
    """Another strategy whose halves are timed, and with `weigh` also weighed, which spoils the times.

    halves  by block, the seconds of both halves of each of its micro-batches, in the order in which they end
    bytes   by block: up, down, held and peak, as in `BlockCost`
    """

    def __init__(self, inner: Strategy, device: torch.device, weigh: bool = False) -> None:
        self.inner = inner
        self.route = inner.route  # type: ignore[misc]  # an instance may have another one than its class
        self.halves: dict[int, list[tuple[float, float]]] = defaultdict(list)
        self.bytes: dict[int, tuple[int, int, int, int]] = {}
        self._device = device
        self._weigh = weigh

    def begin(self, packet: Packet) -> Packet:
        return self.inner.begin(packet)

    def phases(self, depth: int) -> list[range]:
        return self.inner.phases(depth)

    def rounds(self, depth: int) -> int:
        return self.inner.rounds(depth)

    def publish(self, block: Block, name: str) -> Sequence[Tensor]:
        return self.inner.publish(block, name)

    def step(self, block: Block, packet: Packet) -> Step:
        saved = SavedBytes(_parameters(block)) if self._weigh else None
        generator = self.inner.step(block, packet)
        start = now(self._device)
        sent: list[Send] = []
        with saved or nullcontext():
            sent.append(next(generator))
        forward = now(self._device) - start
        assert sent[0].ahead is not None
        up, down = _bytes((sent[0].ahead.h, sent[0].ahead.y, *sent[0].ahead.side)), _bytes(sent[0].back or ())
        held = saved.now if saved else 0
        backward, answer = 0.0, None
        while sent:
            message = yield sent.pop()  # no reference stays behind: it may hold the graph
            start = now(self._device)
            with saved or nullcontext():
                try:
                    sent.append(generator.send(message))
                except StopIteration as stop:
                    answer = stop.value
            backward += now(self._device) - start
        k = block.spec.index
        self.halves[k].append((forward, backward))
        self.bytes[k] = up, max(down, _bytes(answer or ())), held, saved.peak if saved else 0
        return answer


def _parameters(block: Block) -> list[Tensor]:
    modules = [m for m in (block.layers, block.head, block.auxiliary) if m is not None]
    return list({id(p): p for m in modules for p in m.parameters()}.values())


def _bytes(tensors: Iterable[Tensor | None]) -> int:
    return sum(t.numel() * t.element_size() for t in tensors if t is not None)


def _fixed(block: TrainedBlock) -> int:
    """After a step, when the optimizer has its state; gradients count as long as they are there, before the update."""
    parameters = _parameters(block)
    gradients = [p for p in parameters if p.requires_grad]
    buffers = {id(b): b for module in block.roots() for b in module.buffers()}.values()
    optimizers = [optimizer for optimizer in block.optimizers.values() if optimizer is not None]
    states = [t for o in optimizers for state in o.state.values() for t in state.values() if isinstance(t, Tensor)]
    return sum(map(_bytes, (parameters, gradients, buffers, states)))
