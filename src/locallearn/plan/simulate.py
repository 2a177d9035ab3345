"""When each stage of a pipeline works and when it waits, by schedule, up to thousands of stages.

Each schedule is written as waves: what a wave needs has been sent in an earlier one, so that all devices of a wave are
computed at once. N batches of M micro-batches on S stages take O(N (M + S)) array operations and O(N M S) arithmetic:
seconds for S = M = 4096. What devices and links do is in `devices`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from locallearn.plan.devices import Devices, Items, Piece, Seconds, Stages

QUEUE = 4
"""Packets between two stages that nobody has taken yet; who is further ahead waits. `link.UNDER_WAY` at each end."""
FORWARD, BACKWARD = "forward", "backward"


@dataclass(frozen=True)
class Trace:
    """What was simulated.

    done    seconds [batches]: when the last device was done with a batch (delayed: with a step)
    pieces  every piece of work of the devices that were asked for
    """

    done: Seconds
    pieces: list[Piece]

    @property
    def step_seconds(self) -> float:
        """Seconds per batch once the pipeline is full: over the second half of the run."""
        half = (len(self.done) - 1) // 2
        return float(self.done[-1] - self.done[half]) / max(len(self.done) - 1 - half, 1)


def _wave(tick: int, stride: int, items: int, count: int) -> Iterator[tuple[slice, Items]]:
    """The devices s with stride * item + s == tick for some item below `items`, and these items; nothing if none."""
    low = max(0, tick - stride * (items - 1))
    low += (tick - low) % stride
    high = min(count - 1, tick)
    if low <= high:
        yield slice(low, high + 1, stride), (tick - np.arange(low, high + 1, stride)) // stride


def _from_above(tick: int, stride: int, items: int, count: int) -> Iterator[tuple[slice, Items]]:
    """The same for a wave that begins at the top stage and moves down."""
    for who, found in _wave(tick, stride, items, count):
        last = range(*who.indices(count))[-1]
        yield slice(count - 1 - last, count - who.start, stride), found[::-1]


def _forward(on: Devices, who: slice, items: Items) -> None:
    on.send_up(who, on.work(who, on.stages.forward[who], items, FORWARD, on.arrived[:-1][who]))


def _backward(on: Devices, who: slice, items: Items) -> None:
    end = on.work(who, on.stages.backward[who], items, BACKWARD, on.answered[1:][who])
    on.send_down(who, end)
    on.finish(items, end)


def _none(on: Devices, batches: int, micro: int) -> None:
    """Learn as soon as the packet is there; a bounded queue lets nobody run far ahead."""
    items = batches * micro
    taken = np.zeros((QUEUE, on.count + 1))  # when a stage began its last packets, by item modulo QUEUE
    for tick in range(items + on.count - 1):
        for who, found in _wave(tick, 1, items, on.count):
            devices = _numbers(who)
            waits = np.maximum(on.arrived[:-1][who], taken[found % QUEUE, devices + 1])
            taken[found % QUEUE, devices] = np.maximum(on.free[who], waits)
            on.send_up(who, on.work(who, on.stages.forward[who], found, FORWARD, waits))
            on.finish(found, on.work(who, on.stages.backward[who], found, BACKWARD))


def _neighbor(on: Devices, batches: int, micro: int) -> None:
    """The top block of a stage learns from batch t when the stage above has begun with it, and before batch t + 1."""
    items, s = batches * micro, on.stages
    for tick in range(2 * items + on.count):
        for who, found in _wave(tick, 2, items, on.count):
            here = on.arrived[:-1][who]
            on.work(who, s.lower[who], found, FORWARD, here)
            answer = on.free[who] - s.lower[who] + s.first[who]
            late = np.where(found > 0, s.late[who], 0.0)
            on.work(who, late, found - 1, BACKWARD, np.where(found > 0, on.answered[1:][who], 0.0))
            end = on.work(who, s.top[who], found, FORWARD)
            on.send_up(who, end)
            on.send_down(who, np.where(s.single[who], end, answer))
            on.finish(found, on.work(who, s.after[who], found, BACKWARD))


def _chain(on: Devices, batches: int, micro: int) -> None:
    """All micro-batches up, then all down, oldest first (GPipe); with one micro-batch, naive model parallelism."""
    for batch in range(batches):
        for wave, half in ((_wave, _forward), (_from_above, _backward)):
            for tick in range(micro + on.count - 1):
                for who, found in wave(tick, 1, micro, on.count):
                    half(on, who, batch * micro + found)


def _1f1b(on: Devices, batches: int, micro: int) -> None:
    """Stage s runs S - s micro-batches ahead, then one backward half for each forward half; flush after each batch."""
    for batch in range(batches):
        for tick in range(2 * (micro + on.count) - 2):
            for who, found in _wave(tick, 2, micro, on.count):
                _forward(on, who, batch * micro + found)
            for who, found in _from_above(tick - on.count, 2, micro, on.count):
                _backward(on, who, batch * micro + found)


def _broadcast(on: Devices, batches: int, micro: int) -> None:
    """All micro-batches up; then the last block's error goes down, and each stage hands it on before it learns."""
    relay = np.zeros(on.count)
    relay[-1] = on.stages.own[-1]
    for batch in range(batches):
        for tick in range(micro + on.count - 1):
            for who, found in _wave(tick, 1, micro, on.count):
                _forward(on, who, batch * micro + found)
        for tick in range(micro + on.count - 1):
            for who, found in _from_above(tick, 1, micro, on.count):
                items = batch * micro + found
                end = on.work(who, on.stages.backward[who], items, BACKWARD, on.answered[1:][who])
                on.send_down(who, end - on.stages.backward[who] + relay[who])
                on.finish(items, end)


def _delayed(on: Devices, batches: int, micro: int) -> None:
    """Delayed gradients (DDG): in step t stage s runs forward on batch t and backward on batch t - (S - 1 - s)."""
    top = on.count - 1
    for tick in range(2 * batches * micro + on.count):
        for who, found in _wave(tick, 2, batches * micro, on.count):
            _forward(on, who, found)
            first = max(who.start, 2 * top - tick)  # below it nothing has come back yet
            if first < who.stop:
                who, found = slice(first, who.stop, 2), found[(first - who.start) // 2 :]
                end = on.work(who, on.stages.backward[who], found - top + _numbers(who), BACKWARD, on.answered[1:][who])
                on.send_down(who, end)
                on.finish(found, end)


def _numbers(who: slice) -> Items:
    return np.arange(who.start, who.stop, who.step)


SCHEDULES: dict[str, Callable[[Devices, int, int], None]] = {
    "none": _none,
    "neighbor": _neighbor,
    "chain": _chain,
    "1f1b": _1f1b,
    "broadcast": _broadcast,
    "delayed": _delayed,
}


def simulate(schedule: str, stages: Stages, micro_batches: int = 1, batches: int = 0, keep: int = 0) -> Trace:
    """Run a schedule of `SCHEDULES` over some batches from empty devices; 0: enough to know the steady state. Keeps the
    pieces of the first `keep` devices. Under `delayed` a batch is not divided."""
    count = len(stages.forward)
    batches = batches or {"none": 16, "neighbor": 32, "broadcast": 4, "delayed": 2 * count + 16}.get(schedule, 2)
    on = Devices(stages, batches * micro_batches, keep)
    SCHEDULES[schedule](on, batches, micro_batches)
    return Trace(on.done.reshape(batches, micro_batches).max(axis=1), on.pieces)


def graphs(schedule: str, count: int, micro_batches: int) -> list[int]:
    """At each of `count` stages (for `delayed`: blocks), of how many micro-batches the activations are held at most."""
    if schedule in ("none", "neighbor"):
        return [1] * count
    if schedule == "1f1b":
        return [min(count - k, micro_batches) for k in range(count)]
    if schedule == "delayed":
        return [count - k for k in range(count)]
    return [micro_batches] * count
