"""Asynchronous decoupled greedy learning in one process: blocks get their turns by chance, and what one emits waits for
the next in a bounded buffer (Belilovsky, Eickenberg & Oyallon 2020, arXiv 1901.08164, Algorithm 2).

Nothing runs at the same time; the order is simulated, so that it repeats bit for bit. A full buffer drops its oldest
packet, however often that was used, as the authors' program does (github.com/eugenium/DGL, buffer_experiments). That
program draws a slowed block less often instead of letting it skip turns, which is the same law of updates. It differs
at both ends of a run: it fills the buffers first, where here a block with an empty buffer is idle; and it goes on until
every block has had its number of epochs, where here a run ends with the data of block 0, and a block slowed by f has
learned 1/f as often.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any

import torch
from annotated_types import Ge
from torch import Tensor

from locallearn import seeds
from locallearn.contract import Packet, Route, Strategy
from locallearn.engine import Stage, TrainedBlock
from locallearn.engine.block import MicroStep, set_modes
from locallearn.engine.stage import PendingBackward, does_not_fit
from locallearn.errors import UserError
from locallearn.runtime.choice import Runtime


@dataclass(frozen=True)
class Replay(Runtime):
    """Blocks that never wait, simulated in this process: each learns from the packets that its buffer has.

    buffer  the most packets (batches of activations with their labels) that wait for each block
    slow    factors by which blocks are slower, by their number, such as {2: 1.2}; None: all are equally fast
    """

    buffer: Annotated[int, Ge(1)] = 10
    slow: dict[int, Annotated[float, Ge(1)]] | None = None

    def stage(self, name: str, strategy: Strategy, micro_batches: int) -> Callable[..., Stage]:
        if strategy.route is not Route.NONE:
            raise UserError(
                f"runtime=replay needs a strategy without feedback; {name} has route {strategy.route.value}: choose "
                "strategy=dgl, or runtime=serial"
            )
        if micro_batches > 1:
            raise UserError(
                f"runtime=replay passes whole batches on, but micro_batches={micro_batches}: choose micro_batches=1, "
                "or runtime=serial"
            )
        return partial(ReplayStage, buffer=self.buffer, slow=self.slow)


@dataclass
class Waiting:
    """A packet in a buffer: `batch` is the step in which block 0 read what it was made from."""

    packet: Packet
    batch: int
    uses: int = 0


class Buffer:
    """What waits for one block, from the oldest to the freshest; at most `size` packets."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.waiting: list[Waiting] = []

    def push(self, packet: Packet, batch: int) -> Waiting | None:
        """Add a packet; returns the oldest one if that had to make room."""
        dropped = self.waiting.pop(0) if len(self.waiting) == self.size else None
        self.waiting.append(Waiting(packet, batch))
        return dropped

    def draw(self) -> Waiting | None:
        """The least used packet, the freshest of these; counts the use. None from an empty buffer."""
        if not self.waiting:
            return None
        drawn = min(reversed(self.waiting), key=lambda w: w.uses)
        drawn.uses += 1
        return drawn


def ticks(stream: int, step: int, slow: Sequence[float]) -> Iterator[tuple[int, bool]]:
    """The ticks between block 0's reading of batch `step` and of the next one: the block, and whether it acts. All
    blocks are equally likely; one slowed by a factor f skips its tick with probability 1 - 1/f."""
    generator = torch.Generator().manual_seed(seeds.mix(stream, step))
    while True:
        which, luck = torch.rand(2, generator=generator, dtype=torch.float64).tolist()
        block = int(which * len(slow))
        acts = luck * slow[block] < 1
        if block == 0 and acts:
            return
        yield block, acts


class ReplayStage(Stage):
    """Drives blocks without feedback asynchronously. A step goes from one reading of block 0 to just before the next:
    each block has one tick per step on average.

    The learning rate follows the steps of the run, for all blocks; the random stream of a block (dropout) follows its
    own count of updates, so that a packet that is used twice meets two dropout masks. Notes of each block, as means:

    staleness  batches that block 0 has read since the one that a packet comes from, when it is used
    uses       how often a packet was used before it left the buffer
    idle       the share of the block's ticks in which it did not learn
    """

    def __init__(
        self,
        blocks: Sequence[TrainedBlock],
        strategy: Strategy,
        *,
        buffer: int,
        slow: Mapping[int, float] | None,
        **options: Any,
    ) -> None:
        super().__init__(blocks, strategy, **options)
        if options.get("reads"):
            raise UserError(
                f"runtime=replay lets blocks learn at different times, but {type(strategy).__name__} reads tensors of "
                "other blocks as they were at a step: choose runtime=serial or pipeline"
            )
        if blocks[0].trained is not None:
            raise UserError("runtime=replay lets all blocks learn: leave train_blocks out, or choose runtime=serial")
        if len(strategy.phases(len(blocks))) > 1:
            raise UserError(
                f"runtime=replay needs blocks that learn at the same time; {type(strategy).__name__} trains one after "
                "the other: choose strategy=dgl, or runtime=serial"
            )
        slow = slow or {}
        for k in slow:
            if not 0 <= k < len(blocks):
                raise UserError(
                    f"runtime.slow names block {k}, but the model is cut into {len(blocks)} blocks: choose from 0 to "
                    f"{len(blocks) - 1}"
                )
        self.slow = [slow.get(k, 1.0) for k in range(len(blocks))]
        self.buffers = [Buffer(buffer) for _ in blocks]  # by reader; block 0 reads the data
        self.updates = [0] * len(blocks)
        self._stream = seeds.derive(blocks[0].spec.seed, "replay")

    def step(self, inputs: Tensor | None, labels: Tensor | None, step: int, total: int | None) -> None:
        """Block 0 learns from the batch, then the others from their buffers until it is block 0's turn again."""
        assert inputs is not None
        assert labels is not None
        progress = min(step, total) / total if total else 0.0
        for block in self.blocks:
            block.progress = progress
        set_modes(self.blocks, range(len(self.blocks)))
        with self.random_state:
            self._learn(0, self._begin(Packet(inputs, labels)), step)
            for k, acts in self.ticks(step):
                drawn = self.buffers[k].draw() if acts else None
                if drawn is None:
                    self._note(k, "idle", 1)
                else:
                    self._note(k, "staleness", step - drawn.batch)
                    self._learn(k, _copy(drawn.packet), drawn.batch)

    def ticks(self, step: int) -> Iterator[tuple[int, bool]]:
        return ticks(self._stream, step, self.slow)

    def state(self) -> dict[str, Tensor]:
        tensors = {"replay.updates": torch.tensor(self.updates)}
        for k, buffer in enumerate(self.buffers):
            tensors[f"replay.{k}.batches"] = torch.tensor([w.batch for w in buffer.waiting], dtype=torch.int64)
            tensors[f"replay.{k}.uses"] = torch.tensor([w.uses for w in buffer.waiting], dtype=torch.int64)
            for i, (h, y, side) in enumerate(w.packet for w in buffer.waiting):
                named = {"h": h, "y": y} | {f"side.{j}": t for j, t in enumerate(side)}
                for name, t in named.items():
                    tensors[f"replay.{k}.{i}.{name}"] = t
                    tensors[f"replay.{k}.{i}.{name}.strides"] = torch.tensor(t.stride())
        return tensors

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        reader = _Reader(tensors, self.blocks[0].device)
        updates = reader.numbers("replay.updates")
        waiting = []
        for k in range(len(self.blocks)):
            counts = zip(reader.numbers(f"replay.{k}.batches"), reader.numbers(f"replay.{k}.uses"), strict=True)
            waiting.append([Waiting(reader.packet(f"replay.{k}.{i}"), *pair) for i, pair in enumerate(counts)])
        reader.close()
        if len(updates) != len(self.blocks) or any(len(w) > b.size for w, b in zip(waiting, self.buffers, strict=True)):
            raise does_not_fit("it has other blocks, or more packets than runtime.buffer")
        self.updates = updates
        for buffer, packets in zip(self.buffers, waiting, strict=True):
            buffer.waiting = packets

    def _begin(self, packet: Packet) -> Packet:
        block = self.blocks[0]
        block.start(MicroStep(self.updates[0], block.progress, 0), "begin")
        return self.strategy.begin(packet)

    def _learn(self, k: int, packet: Packet, batch: int) -> None:
        """One update of block k; what it emits, computed before that update, goes to the buffer above."""
        block = self.blocks[k]
        at = MicroStep(self.updates[k], block.progress, 0)
        block.start(at, "forward")
        generator = self.strategy.step(block, packet)
        with self.autocast():
            send = next(generator)
        if not block.last:
            assert send.ahead is not None
            dropped = self.buffers[k + 1].push(_copy(send.ahead.detach()), batch)
            if dropped is not None:
                self._note(k + 1, "uses", dropped.uses)
        del send  # it may hold the graph
        self._finish(PendingBackward(block, generator, at), None)
        self.updates[k] += 1
        self._note(k, "idle", 0)

    def _note(self, k: int, name: str, value: int) -> None:
        self.blocks[k].note(name, torch.tensor(float(value)))


class _Reader:
    """Takes the tensors of `ReplayStage.state` apart. Raises UserError for what is missing or left over."""

    def __init__(self, tensors: Mapping[str, Tensor], device: torch.device) -> None:
        self._tensors = dict(tensors)
        self._device = device

    def numbers(self, name: str) -> list[int]:
        values = self._take(name)
        if values.dim() != 1 or values.dtype != torch.int64:
            raise does_not_fit(f"{name} is not a list of whole numbers")
        return values.tolist()

    def packet(self, name: str) -> Packet:
        side: list[Tensor] = []
        while f"{name}.side.{len(side)}" in self._tensors:
            side.append(self._tensor(f"{name}.side.{len(side)}"))
        return Packet(self._tensor(f"{name}.h"), self._tensor(f"{name}.y"), tuple(side))

    def close(self) -> None:
        for name in sorted(self._tensors):
            raise does_not_fit(f"{name} is not part of it")

    def _tensor(self, name: str) -> Tensor:
        """In the memory layout that it had: it decides the last bits of a convolution."""
        values = self._take(name)
        strides = self.numbers(f"{name}.strides")
        last = sum((size - 1) * stride for size, stride in zip(values.shape, strides, strict=False))
        if len(strides) != values.dim() or min(strides, default=0) < 0 or last >= max(1, values.numel()):
            raise does_not_fit(f"{name}.strides are not those of {name}")
        return torch.empty_strided(values.shape, strides, dtype=values.dtype, device=self._device).copy_(values)

    def _take(self, name: str) -> Tensor:
        if name not in self._tensors:
            raise does_not_fit(f"{name} is missing")
        return self._tensors.pop(name)


def _copy(packet: Packet) -> Packet:
    """On its way into a buffer and out of it: a block may work in place, and a packet is used more than once."""
    return Packet(packet.h.clone(), packet.y, tuple(t.clone() for t in packet.side))
