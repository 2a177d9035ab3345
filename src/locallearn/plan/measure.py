"""What each block costs in a step: seconds, bytes in memory and bytes on the wire, measured in the strategy's step."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from locallearn.analysis.memory import SavedBytes
from locallearn.contract import Block, Feedback, Packet, Send, Step, Strategy
from locallearn.engine import Learner, Stage, TrainedBlock
from locallearn.engine.promises import check_learned

SAMPLES = 16  # below it some CPU kernels are other ones than in training
REPEATS = 3
_METERED = 8


class BlockTimes(NamedTuple):
    """Seconds of one block's halves for one batch: losses, auxiliary networks and the optimizer are in that half in
    which the strategy has them."""

    forward: float
    backward: float

    @property
    def total(self) -> float:
        return self.forward + self.backward


class BlockCost(NamedTuple):
    """What one block costs for one batch.

    up     bytes of the packet for the block above
    down   bytes of the feedback for the block below; 0 where the route has none
    held   bytes that autograd keeps from the forward to the backward half
    peak   the most bytes that autograd keeps at one time, auxiliary networks included
    fixed  bytes of weights, gradients, optimizer state and buffers, whatever the batch
    """

    times: BlockTimes
    up: int
    down: int
    held: int
    peak: int
    fixed: int


def block_times(
    learner: Learner, batch: int, micro_batches: int = 1, samples: int = SAMPLES, repeats: int = REPEATS
) -> list[BlockTimes]:
    """Seconds per block for a batch of `batch`: the fastest of `repeats` steps after one to warm up. Synchronises.

    Runs on random inputs and a copy of the learner, which stays as it is. A batch above `samples` is not run: its time
    follows from those of `samples` and of half as many by a straight line (what does not grow with the batch, such as
    the optimizer, is its intercept). VGG-16 at 16 for 64 comes within some 5 %, where plain scaling is 20 % off.
    """
    if learner.model.samples or batch <= samples:
        return _measured(learner, learner.model.samples or batch, micro_batches, repeats)
    full = micro_batches * max(samples // micro_batches, 1)
    half = micro_batches * max(full // 2 // micro_batches, 1)
    sizes = (half, full) if half < full else (full,)
    runs = [_measured(learner, count, micro_batches, repeats) for count in sizes]
    line = [(_line(few, many, half, full, batch)) for few, many in zip(runs[0], runs[-1], strict=True)]
    return [BlockTimes(*halves) for halves in line]


def _line(few: BlockTimes, many: BlockTimes, half: int, full: int, batch: int) -> list[float]:
    """Seconds of both halves for `batch`, given those for `half` and `full` samples; noise cannot bend them far."""
    found = []
    for a, b in zip(few, many, strict=True):
        slope = (b - a) / (full - half) if half < full else b / full
        found.append(b + (batch - full) * min(max(slope, 0.5 * b / full), b / full))
    return found


def _measured(learner: Learner, count: int, micro_batches: int, repeats: int) -> list[BlockTimes]:
    watch = _Watch(learner.strategy, learner.device)
    twin = _twin(learner, watch, micro_batches)
    runs: list[dict[int, BlockTimes]] = []
    for _ in range(1 + repeats):
        watch.seconds = {}
        _run(learner, twin, count)
        runs.append(watch.seconds)
    return [
        BlockTimes(min(run[k].forward for run in runs[1:]), min(run[k].backward for run in runs[1:]))
        for k in range(len(twin.blocks))
    ]


def block_costs(learner: Learner, batch: int, times: Sequence[BlockTimes]) -> list[BlockCost]:
    """The `times` of each block with its bytes: from one step on a few samples, in proportion to the batch."""
    count = learner.model.samples or min(batch, _METERED)
    meter = _Meter(learner.strategy)
    twin = _twin(learner, meter, 1)
    _run(learner, twin, count)
    scale = 1.0 if learner.model.samples else batch / count
    costs = []
    for k, block in enumerate(twin.blocks):
        up, down, held, peak = (round(scale * n) for n in meter.found[k])
        costs.append(BlockCost(times[k], up, down, held, peak, _fixed(block)))
    return costs


def rehearse(learner: Learner, inputs: Tensor, labels: Tensor) -> None:
    """A step of every phase on inputs [B, ...] and labels [B], on a copy of the blocks; raises what training would."""
    twin = _twin(learner, learner.strategy, 1)
    _phases(learner, twin, inputs, labels)
    check_learned(learner.strategy, twin.blocks)


def _twin(learner: Learner, watched: Strategy, micro_batches: int) -> Stage:
    """A copy of the blocks whose weights stay as they are, however many steps it takes: the optimizer does its work at
    rate 0. Nothing is late and nothing is sent, whatever the runtime."""
    assert len(learner.blocks) == len(learner.cut), "all blocks must be in this process"
    blocks = copy.deepcopy(learner.blocks)
    for block in blocks:
        block.micro_batches = micro_batches
        for optimizer in block.optimizers.values():
            for group in optimizer.param_groups if optimizer is not None else ():
                group["base_lr"] = 0.0
    with learner.stage.autocast():
        bf16 = torch.is_autocast_enabled(learner.device.type)
    return Stage(blocks, watched, bf16=bf16, micro_batches=micro_batches)


def _run(learner: Learner, twin: Stage, samples: int) -> None:
    """One step of every phase of the strategy on noise, so that each block learns once."""
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(samples, *learner.model.image, generator=generator).to(learner.device)
    labels = torch.randint(learner.model.classes, (samples,), generator=generator).to(learner.device)
    _phases(learner, twin, inputs, labels)


def _phases(learner: Learner, twin: Stage, inputs: Tensor, labels: Tensor) -> None:
    phases = len(twin.strategy.phases(len(twin.blocks)))
    for phase in range(phases):
        twin.step(learner.prepare(inputs), labels, phase, phases)


class _Watched(Strategy):
    """A strategy that looks at the halves of another one's step."""

    def __init__(self, inner: Strategy) -> None:
        self.inner = inner
        self.route = inner.route  # type: ignore[misc]  # an instance may have another one than its class

    def begin(self, packet: Packet) -> Packet:
        return self.inner.begin(packet)

    def phases(self, depth: int) -> list[range]:
        return self.inner.phases(depth)


class _Watch(_Watched):
    """Takes the time. seconds: by block, of all its micro-batches."""

    def __init__(self, inner: Strategy, device: torch.device) -> None:
        super().__init__(inner)
        self.seconds: dict[int, BlockTimes] = {}
        self._device = device

    def step(self, block: Block, packet: Packet) -> Step:
        generator = self.inner.step(block, packet)
        start = self._now()
        sent = [next(generator)]
        forward = self._now() - start
        message = yield sent.pop()  # no reference stays behind: it may hold the graph
        start = self._now()
        answer = _finish(generator, message)
        backward = self._now() - start
        before = self.seconds.get(block.spec.index, BlockTimes(0.0, 0.0))
        self.seconds[block.spec.index] = BlockTimes(before.forward + forward, before.backward + backward)
        return answer

    def _now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()


class _Meter(_Watched):
    """Counts bytes. found: by block, (up, down, held, peak)."""

    def __init__(self, inner: Strategy) -> None:
        super().__init__(inner)
        self.found: dict[int, tuple[int, int, int, int]] = {}

    def step(self, block: Block, packet: Packet) -> Step:
        saved = SavedBytes(p for m in _modules(block) for p in m.parameters())
        generator = self.inner.step(block, packet)
        sent: list[Send] = []
        with saved:
            sent.append(next(generator))
        up, down, held = _bytes(_tensors(sent[0].ahead)), _bytes(sent[0].back or ()), saved.now
        message = yield sent.pop()
        with saved:
            answer = _finish(generator, message)
        self.found[block.spec.index] = up, max(down, _bytes(answer or ())), held, saved.peak
        return answer


def _finish(generator: Step, message: Feedback | None) -> Feedback | None:
    """The backward half; what it answers."""
    try:
        generator.send(message)
    except StopIteration as stop:
        return stop.value
    raise AssertionError("a strategy yields exactly once")


def _modules(block: Block) -> list[nn.Module]:
    return [m for m in (block.layers, block.head, block.auxiliary) if m is not None]


def _tensors(packet: Packet) -> tuple[Tensor, ...]:
    return (packet.h, packet.y, *packet.side)


def _bytes(tensors: Iterable[Tensor | None]) -> int:
    return sum(t.numel() * t.element_size() for t in tensors if t is not None)


def _fixed(block: TrainedBlock) -> int:
    """After a step, when the optimizer has its state; gradients count as long as they are there, before the update."""
    modules = _modules(block)
    parameters = list({id(p): p for m in modules for p in m.parameters()}.values())
    buffers = list({id(b): b for m in modules for b in m.buffers()}.values())
    states = [
        t
        for optimizer in block.optimizers.values()
        if optimizer is not None
        for state in optimizer.state.values()
        for t in state.values()
        if isinstance(t, Tensor)
    ]
    return _bytes(parameters) + _bytes(p for p in parameters if p.requires_grad) + _bytes(buffers) + _bytes(states)
