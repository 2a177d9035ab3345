"""The devices of a simulated pipeline: their clocks, their work, and the links between them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from locallearn.plan.link import LinkCost
from locallearn.plan.measure import BlockCost, Read

Seconds: TypeAlias = NDArray[np.float64]
Items: TypeAlias = NDArray[np.int64]
QUEUE = 4
"""The most packets between two stages that are not taken yet; a stage that is further ahead waits. See
`link.UNDER_WAY`."""
FORWARD, BACKWARD = "forward", "backward"


class Reading(NamedTuple):
    """What a stage reads of the stage `source`: a tensor as it was `lag` steps before, at the last multiple of `every`
    steps. The copy arrives `seconds` after that step."""

    stage: int
    source: int
    every: int
    lag: int
    seconds: float

    def due(self, step: int) -> int:
        """How many steps the source must have done before this one begins."""
        return max(0, step - self.lag) // self.every * self.every


class Stages(NamedTuple):
    """S stages from the input upward: seconds [S] for one micro-batch.

    forward, backward  all blocks of the stage
    first              the forward half of its lowest block, after which the stage below gets its feedback
    top, own           the forward and the backward half of its top block
    under              the backward half of the block under the top one
    single             whether it has one block only
    update             what the last micro-batch of a batch adds to the backward half
    up, down           a message upward and downward on the wire
    latency            until a message has arrived
    micro_batches      of a batch
    exchanges          rounds of messages between neighbours, which share the backward half
    readings           what they read of each other's tensors
    """

    forward: Seconds
    backward: Seconds
    first: Seconds
    top: Seconds
    own: Seconds
    under: Seconds
    single: NDArray[np.bool_]
    update: Seconds
    up: Seconds
    down: Seconds
    latency: float
    exchanges: int = 1
    micro_batches: int = 1
    readings: Sequence[Reading] = ()

    @property
    def busy(self) -> float:
        """Seconds that all devices together work for one batch."""
        parts = self.forward.sum() + self.backward.sum()
        return float(self.micro_batches * parts + self.update.sum())


def stages(
    division: Sequence[Sequence[BlockCost]],
    micro_batches: int,
    link: LinkCost,
    exchanges: int = 1,
    reads: Sequence[Read] = (),
) -> Stages:
    """The stages that hold the blocks of `division`, costs for a whole batch. What a device spends on its messages is
    in the half in which it takes or sends them; of several exchanges, in that which they share. Copies of tensors,
    which are rare, take time on their way alone."""
    count, whole = len(division), micro_batches == 1

    def backward(block: BlockCost) -> float:
        return block.times.backward + (block.times.update if whole else 0.0)

    def each(cost: Callable[[Sequence[BlockCost]], float]) -> Seconds:
        return np.array([cost(blocks) for blocks in division], dtype=np.float64) / micro_batches

    def spent(bytes_: Seconds) -> Seconds:
        return np.array([link.spent(float(size)) for size in bytes_])

    inner = np.arange(count) < count - 1  # the top stage sends nothing up, and hears nothing from above
    up, down = each(lambda blocks: blocks[-1].up), each(lambda blocks: blocks[0].down)
    send_up = np.where(inner, spent(up), 0.0)
    take_up = np.concatenate(([0.0], send_up[:-1]))
    send_down = np.where(np.arange(count) > 0, spent(down), 0.0)
    take_down = np.concatenate((send_down[1:], [0.0]))
    updates = [0.0 if whole else sum(b.times.update for b in blocks) for blocks in division]
    further = (exchanges - 1) * (send_up + take_up + send_down + take_down)
    return Stages(
        forward=each(lambda blocks: sum(b.times.forward for b in blocks)) + take_up + send_up,
        backward=each(lambda blocks: sum(map(backward, blocks))) + take_down + send_down + further,
        first=each(lambda blocks: blocks[0].times.forward) + take_up + send_down,
        top=each(lambda blocks: blocks[-1].times.forward) + send_up,
        own=each(lambda blocks: backward(blocks[-1])) + take_down,
        under=each(lambda blocks: backward(blocks[-2]) if len(blocks) > 1 else 0.0),
        single=np.array([len(blocks) == 1 for blocks in division]),
        update=np.array(updates),
        up=np.array([link.flight(float(size)) for size in up]),
        down=np.array([link.flight(float(size)) for size in down]),
        latency=link.latency,
        exchanges=exchanges,
        micro_batches=micro_batches,
        readings=_readings(division, link, reads),
    )


def _readings(division: Sequence[Sequence[BlockCost]], link: LinkCost, reads: Sequence[Read]) -> list[Reading]:
    """Those between stages, of which each hands on what stages below it read."""
    stage_of = [stage for stage, blocks in enumerate(division) for _ in blocks]

    def seconds(size: int, hops: int) -> float:
        return hops * (2 * link.spent(size) + link.flight(size) + link.latency)

    ends = [(stage_of[read.block], stage_of[read.source], read) for read in reads]
    return [
        Reading(low, high, read.every, read.lag, seconds(read.size, high - low))
        for low, high, read in ends
        if low < high
    ]


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
        last = items % self.stages.micro_batches == self.stages.micro_batches - 1
        seconds = self.stages.backward[who] + np.where(last, self.stages.update[who], 0.0)
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
