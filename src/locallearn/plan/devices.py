"""The devices of a simulated pipeline: their clocks, their work, and the links between them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from locallearn.plan.measure import BlockCost

Seconds: TypeAlias = NDArray[np.float64]
Items: TypeAlias = NDArray[np.int64]
QUEUE = 4
"""Packets between two stages that nobody has taken yet; who is further ahead waits. See `link.UNDER_WAY`."""
FORWARD, BACKWARD = "forward", "backward"


class Stages(NamedTuple):
    """S stages from the input upward: seconds [S] for one micro-batch.

    forward, backward  all blocks of the stage
    first              the forward half of its lowest block, after which the stage below gets its feedback
    top, own           the forward and the backward half of its top block
    under              the backward half of the block under the top one
    single             whether it has one block only
    up, down           a message upward and downward on the wire
    latency            until a message has arrived
    exchanges          rounds of messages between neighbours, which share the backward half
    """

    forward: Seconds
    backward: Seconds
    first: Seconds
    top: Seconds
    own: Seconds
    under: Seconds
    single: NDArray[np.bool_]
    up: Seconds
    down: Seconds
    latency: float
    exchanges: int = 1

    @property
    def busy(self) -> float:
        """Seconds that all devices together work for one micro-batch."""
        return float(self.forward.sum() + self.backward.sum())


def stages(
    division: Sequence[Sequence[BlockCost]], micro_batches: int, bandwidth: float, latency: float, exchanges: int = 1
) -> Stages:
    """The stages that hold the blocks of `division`, costs for a whole batch. bandwidth in bytes/s, latency in s.

    The optimizer's time is shared among the micro-batches, as everything else is.
    """

    def each(cost: Callable[[Sequence[BlockCost]], float]) -> Seconds:
        return np.array([cost(blocks) for blocks in division], dtype=np.float64) / micro_batches

    return Stages(
        forward=each(lambda blocks: sum(b.times.forward for b in blocks)),
        backward=each(lambda blocks: sum(b.times.backward for b in blocks)),
        first=each(lambda blocks: blocks[0].times.forward),
        top=each(lambda blocks: blocks[-1].times.forward),
        own=each(lambda blocks: blocks[-1].times.backward),
        under=each(lambda blocks: blocks[-2].times.backward if len(blocks) > 1 else 0.0),
        single=np.array([len(blocks) == 1 for blocks in division]),
        up=each(lambda blocks: blocks[-1].up) / bandwidth,
        down=each(lambda blocks: blocks[0].down) / bandwidth,
        latency=latency,
        exchanges=exchanges,
    )


class Piece(NamedTuple):
    """One piece of work of a device; `item` numbers the micro-batches of the run."""

    device: int
    kind: str
    item: int
    start: float
    end: float


class Devices:
    """The clocks of S devices and of the links between them. `who` is always a slice of devices.

    free      when a device has done its work so far
    arrived   [S + 1] at stage s: its newest packet from below
    answered  [S + 1] at stage s - 1: its newest feedback from above
    done      when the last device was done with an item
    pieces    the work of the first `keep` devices
    """

    def __init__(self, stages: Stages, items: int, keep: int) -> None:
        self.count = len(stages.forward)
        self.stages = stages
        self.free, self._up, self._down = np.zeros((3, self.count))
        self.arrived, self.answered = np.zeros((2, self.count + 1))
        self.done = np.zeros(items)
        self.pieces: list[Piece] = []
        self._keep = min(keep, self.count)

    def work(self, who: slice, seconds: Seconds, items: Items, kind: str, after: Seconds | None = None) -> Seconds:
        """One piece of work on each device of `who`, not before `after`; returns when they end, all by device."""
        start = self.free[who] if after is None else np.maximum(self.free[who], after)
        end = start + seconds
        if who.start < self._keep:
            of_each = zip(range(*who.indices(self._keep)), items, start, end, strict=False)
            self.pieces += [Piece(d, kind, int(i), float(a), float(b)) for d, i, a, b in of_each if b > a]
        self.free[who] = end
        return end

    def forward(self, who: slice, items: Items) -> None:
        """The forward half of all blocks once the packet is there, which then goes up."""
        self.send_up(who, self.work(who, self.stages.forward[who], items, FORWARD, self.arrived[:-1][who]))

    def backward(self, who: slice, items: Items, relay: Seconds | None = None, steps: Items | None = None) -> None:
        """The backward half of all blocks once feedback is there, which goes down at the end, or `relay` after the
        start. It ends the work on the items, or on other `steps`."""
        seconds = self.stages.backward[who]
        end = self.work(who, seconds, items, BACKWARD, self.answered[1:][who])
        self.send_down(who, end if relay is None else end - seconds + relay[who])
        self.finish(items if steps is None else steps, end)

    def send_up(self, who: slice, at: Seconds) -> None:
        self._up[who] = np.maximum(self._up[who], at) + self.stages.up[who]
        self.arrived[1:][who] = self._up[who] + self.stages.latency

    def send_down(self, who: slice, at: Seconds) -> None:
        self._down[who] = np.maximum(self._down[who], at) + self.stages.down[who]
        self.answered[:-1][who] = self._down[who] + self.stages.latency

    def finish(self, items: Items, at: Seconds) -> None:
        self.done[items] = np.maximum(self.done[items], at)
