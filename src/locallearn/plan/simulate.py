"""When each stage of a pipeline works and when it waits, by schedule, up to thousands of stages.

A device does its pieces of work in the order of its schedule; a piece starts when the device is free and what it needs
has arrived. A link carries one message at a time: it takes bytes / bandwidth, and arrives `latency` later. Sending
costs a device nothing.

Each schedule is written as waves: what a wave needs has been sent in an earlier one, so that all devices of a wave are
computed at once. N batches of M micro-batches on S stages take O(N (M + S)) array operations and O(N M S) arithmetic:
seconds for S = M = 4096.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

from locallearn.plan.devices import BACKWARD, FORWARD, QUEUE, Devices, Items, Piece, Seconds, Stages


def _wave(tick: int, stride: int, items: int, count: int) -> Iterator[tuple[slice, Items]]:
    """The devices s with stride * item + s == tick for some item below `items`, and these items; nothing if none."""
    low = max(0, tick - stride * (items - 1))
    low += (tick - low) % stride
    high = min(count - 1, tick)
    if low <= high:
        yield slice(low, high + 1, stride), (tick - np.arange(low, high + 1, stride)) // stride


def _from_above(tick: int, stride: int, items: int, count: int) -> Iterator[tuple[slice, Items]]:
    """The same for a wave that begins at the top stage and moves down."""
    for who, of_each in _wave(tick, stride, items, count):
        last = range(*who.indices(count))[-1]
        yield slice(count - 1 - last, count - who.start, stride), of_each[::-1]


def _none(on: Devices, batches: int, micro: int) -> None:
    """Learn as soon as the packet is there; a bounded queue lets nobody run far ahead."""
    if on.stages.readings:
        return _reading(on, batches * micro, micro)
    total = batches * micro
    taken = np.zeros((QUEUE, on.count + 1))  # when a stage began its last packets, by item modulo QUEUE
    for tick in range(total + on.count - 1):
        for who, items in _wave(tick, 1, total, on.count):
            devices = _numbers(who)
            waits = np.maximum(on.arrived[:-1][who], taken[items % QUEUE, devices + 1])
            taken[items % QUEUE, devices] = np.maximum(on.free[who], waits)
            on.send_up(who, on.work(who, on.stages.forward[who], items, FORWARD, waits))
            on.finish(items, on.work(who, on.stages.backward[who], items, BACKWARD))


def _reading(on: Devices, total: int, micro: int) -> None:
    """The same where stages also wait for tensors of stages above. One piece after the other, for a wave holds steps of
    which a lower one may need what a higher one has not done."""
    s = on.stages
    begun, learned = np.zeros((2, on.count, total))
    for item in range(total):
        for device in range(on.count):
            who, items = slice(device, device + 1), np.full(1, item)
            waits = on.arrived[who].copy()
            if device + 1 < on.count and item >= QUEUE:
                waits = np.maximum(waits, begun[device + 1, item - QUEUE])
            for reading in s.readings:
                if reading.stage == device and (due := reading.due(item // micro)):
                    waits = np.maximum(waits, learned[reading.source, due * micro - 1] + reading.seconds)
            begun[device, item] = np.maximum(on.free[who], waits)[0]
            on.send_up(who, on.work(who, s.forward[who], items, FORWARD, waits))
            learned[device, item] = on.work(who, s.backward[who], items, BACKWARD)[0]
            on.finish(items, on.free[who])


def _neighbor(on: Devices, batches: int, micro: int) -> None:
    """The top block of a stage learns from batch t when the stage above has begun with it, and before batch t + 1; all
    other blocks learn before it hands on batch t, the block under the top one after that."""
    total, s = batches * micro, on.stages
    lower = s.forward - s.top + s.backward - s.own - s.under
    late, at_once = s.own.copy(), s.under.copy()
    late[-1], at_once[-1] = 0.0, s.under[-1] + s.own[-1]  # the last block waits for nobody
    for tick in range(2 * total + on.count):
        for who, items in _wave(tick, 2, total, on.count):
            on.work(who, lower[who], items, FORWARD, on.arrived[:-1][who])
            answer = on.free[who] - lower[who] + s.first[who]
            feedback = np.where(items > 0, on.answered[1:][who], 0.0)
            on.work(who, np.where(items > 0, late[who], 0.0), items - 1, BACKWARD, feedback)
            end = on.work(who, s.top[who], items, FORWARD)
            on.send_up(who, end)
            on.send_down(who, np.where(s.single[who], end, answer))
            on.finish(items, on.work(who, at_once[who], items, BACKWARD))


def _chain(on: Devices, batches: int, micro: int, relay: Seconds | None = None) -> None:
    """All micro-batches up, then all down, oldest first (GPipe); with one micro-batch, naive model parallelism."""
    for first in range(0, batches * micro, micro):
        for tick in range(micro + on.count - 1):
            for who, items in _wave(tick, 1, micro, on.count):
                on.forward(who, first + items)
        for tick in range(micro + on.count - 1):
            for who, items in _from_above(tick, 1, micro, on.count):
                on.backward(who, first + items, relay)


def _broadcast(on: Devices, batches: int, micro: int) -> None:
    """All micro-batches up; then the last block's error goes down, and each stage hands it on before it learns."""
    relay = np.zeros(on.count)
    relay[-1] = on.stages.own[-1]
    _chain(on, batches, micro, relay)


def _1f1b(on: Devices, batches: int, micro: int) -> None:
    """Stage s runs S - s micro-batches ahead, then one backward half for each forward half; flush after each batch."""
    for first in range(0, batches * micro, micro):
        for tick in range(2 * (micro + on.count) - 2):
            for who, items in _wave(tick, 2, micro, on.count):
                on.forward(who, first + items)
            for who, items in _from_above(tick - on.count, 2, micro, on.count):
                on.backward(who, first + items)


def _delayed(on: Devices, batches: int, micro: int) -> None:
    """Delayed gradients (DDG): in step t stage s runs forward on batch t and backward on batch t - (S - 1 - s)."""
    top = on.count - 1
    for tick in range(2 * batches * micro + on.count):
        for who, items in _wave(tick, 2, batches * micro, on.count):
            on.forward(who, items)
            lowest = max(who.start, 2 * top - tick)  # below it nothing has come back yet
            if lowest < who.stop:
                who, steps = slice(lowest, who.stop, 2), items[(lowest - who.start) // 2 :]
                on.backward(who, steps - top + _numbers(who), steps=steps)


def _rounds(on: Devices, batches: int, micro: int) -> None:
    """One micro-batch at a time: up, then all stages exchange messages with both neighbours, round after round."""
    everyone, share = slice(0, on.count), on.stages.backward / on.stages.exchanges
    for item in range(batches * micro):
        for tick in range(on.count):
            for who, _ in _wave(tick, 1, 1, on.count):
                on.forward(who, np.full(1, item))
                on.send_down(who, on.free[who])
        items = np.full(on.count, item)
        for number in range(on.stages.exchanges):
            above, below = on.answered[1:].copy(), on.arrived[:-1].copy()
            end = on.work(everyone, share, items, BACKWARD, np.maximum(above, below) if number else above)
            if number < on.stages.exchanges - 1:
                on.send_up(everyone, end)
                on.send_down(everyone, end)
        on.finish(items[:1], end.max(keepdims=True))


def _numbers(who: slice) -> Items:
    return np.arange(who.start, who.stop, who.step)


SCHEDULES: dict[str, Callable[[Devices, int, int], None]] = {
    "none": _none,
    "neighbor": _neighbor,
    "chain": _chain,
    "1f1b": _1f1b,
    "broadcast": _broadcast,
    "delayed": _delayed,
    "rounds": _rounds,
}


class Trace(NamedTuple):
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


def simulate(schedule: str, stages: Stages, micro_batches: int = 1, batches: int = 0, keep: int = 0) -> Trace:
    """Run a schedule of `SCHEDULES` over some batches from empty devices; 0: enough to know the steady state. Keeps the
    pieces of the first `keep` devices. Under `delayed` a batch is not divided."""
    count = len(stages.forward)
    rounds = 4 * max((reading.every for reading in stages.readings), default=4)  # a steady state has whole ones
    enough = {"none": rounds + 1, "neighbor": 32, "broadcast": 4, "delayed": 2 * count + 16}
    batches = batches or enough.get(schedule, 2)
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
