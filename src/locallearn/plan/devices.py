"""Stages as a simulation sees them: how long they work and what they send; and the clocks of their devices and links.

A device does its pieces of work in the order of its schedule; a piece starts when the device is free and what it needs
has arrived. A link carries one message at a time: it takes bytes / bandwidth, and arrives `latency` later. Sending
costs a device nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from locallearn.plan.measure import BlockCost

Seconds: TypeAlias = NDArray[np.float64]
Items: TypeAlias = NDArray[np.int64]


@dataclass(frozen=True)
class Stages:
    """S stages from the input upward: seconds [S] for one micro-batch.

    forward, backward  all blocks of the stage
    lower              what a stage under route NEIGHBOR does before it needs feedback: all but the three that follow
    late               its top block's backward half of the micro-batch before, which needs feedback from above
    top                its top block's forward half
    after              what follows at once: the backward half of the block under the top one (at the last stage both)
    first              its lowest block's forward half, after which the stage below gets its feedback
    own                its top block's backward half; at the last stage the error of route BROADCAST goes down after it
    single             whether it has one block only
    up, down           for one message upward and downward on the wire
    """

    forward: Seconds
    backward: Seconds
    lower: Seconds
    late: Seconds
    top: Seconds
    after: Seconds
    first: Seconds
    own: Seconds
    single: NDArray[np.bool_]
    up: Seconds
    down: Seconds
    latency: float

    @property
    def busy(self) -> float:
        """Seconds that all devices together work for one micro-batch."""
        return float(self.forward.sum() + self.backward.sum())


def stages(division: Sequence[Sequence[BlockCost]], micro_batches: int, bandwidth: float, latency: float) -> Stages:
    """The stages that hold the blocks of `division`, costs for a whole batch. bandwidth in bytes/s, latency in s.

    The optimizer's time is shared among the micro-batches, as everything else is.
    """

    def array(cost: Callable[[Sequence[BlockCost]], float]) -> Seconds:
        return np.array([cost(blocks) for blocks in division], dtype=np.float64) / micro_batches

    own = array(lambda blocks: blocks[-1].times.backward)
    after = array(lambda blocks: blocks[-2].times.backward if len(blocks) > 1 else 0.0)
    late = own.copy()
    late[-1] = 0.0  # the last block waits for nobody
    after[-1] += own[-1]
    return Stages(
        forward=array(lambda blocks: sum(b.times.forward for b in blocks)),
        backward=array(lambda blocks: sum(b.times.backward for b in blocks)),
        lower=array(
            lambda blocks: sum(b.times.forward for b in blocks[:-1]) + sum(b.times.backward for b in blocks[:-2])
        ),
        late=late,
        top=array(lambda blocks: blocks[-1].times.forward),
        after=after,
        first=array(lambda blocks: blocks[0].times.forward),
        own=own,
        single=np.array([len(blocks) == 1 for blocks in division]),
        up=array(lambda blocks: blocks[-1].up) / bandwidth,
        down=array(lambda blocks: blocks[0].down) / bandwidth,
        latency=latency,
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
        count = len(stages.forward)
        self.count = count
        self.stages = stages
        self.free = np.zeros(count)
        self.arrived = np.zeros(count + 1)
        self.answered = np.zeros(count + 1)
        self.done = np.zeros(items)
        self.pieces: list[Piece] = []
        self._up, self._down = np.zeros(count), np.zeros(count)
        self._keep = min(keep, count)

    def work(self, who: slice, seconds: Seconds, items: Items, kind: str, after: Seconds | None = None) -> Seconds:
        """One piece of work on each device of `who`, not before `after`; returns when they end, all by device."""
        start = self.free[who] if after is None else np.maximum(self.free[who], after)
        end = start + seconds
        if who.start < self._keep:
            devices = range(*who.indices(self._keep))
            self.pieces += [
                Piece(d, kind, int(i), float(a), float(b))
                for d, i, a, b in zip(devices, items, start, end, strict=False)
                if b > a
            ]
        self.free[who] = end
        return end

    def send_up(self, who: slice, at: Seconds) -> None:
        self._up[who] = np.maximum(self._up[who], at) + self.stages.up[who]
        self.arrived[1:][who] = self._up[who] + self.stages.latency

    def send_down(self, who: slice, at: Seconds) -> None:
        self._down[who] = np.maximum(self._down[who], at) + self.stages.down[who]
        self.answered[:-1][who] = self._down[who] + self.stages.latency

    def finish(self, items: Items, at: Seconds) -> None:
        self.done[items] = np.maximum(self.done[items], at)
