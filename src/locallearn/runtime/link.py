"""Messages between the stages of a pipeline; `wire` has what carries them."""

from __future__ import annotations

from collections import deque
from selectors import DefaultSelector

import torch
import torch.distributed as dist
from torch import Tensor

from locallearn.contract import Feedback, Packet
from locallearn.engine.link import Stopped
from locallearn.runtime.wire.carriers import Carrier, Gloo, Ring
from locallearn.runtime.wire.lanes import Inline, Lane, lane_of, streams
from locallearn.runtime.wire.meeting import carrier_between, host, meet
from locallearn.runtime.wire.nccl import Nccl, groups
from locallearn.runtime.wire.wire import Wire

TARGETS = 1  # the place of y in a packet: a box at 300 is not one at 301, which bfloat16 takes for the same
UNDER_WAY = 4  # messages of a sender that nobody has taken yet; the next one waits


class Pipe:
    """A `Link` to the ranks below and above (None at the ends). Both neighbours must make it at the same time.

    Messages travel while the stages compute: up to `UNDER_WAY` may be sent that the neighbour has not taken. Floats are
    sent as `message` if that is given (bfloat16 halves the traffic, and changes the bits). A tensor arrives with the
    strides that it had: they decide which kernel a convolution takes, and so the last bits. A further `late` messages
    of feedback (staleness times micro-batches) may wait for this stage: were they not taken in, the stage above would
    wait to send them, and this one would wait for that stage to take its packets.

    wire  what carries the bytes, as `runtime.wire`
    """

    def __init__(
        self,
        below: int | None,
        above: int | None,
        device: torch.device,
        message: torch.dtype | None,
        late: int = 0,
        wire: str = "auto",
    ) -> None:
        self.below, self.above = below is not None, above is not None
        lines, self._served = meet(below, above), DefaultSelector()

        replicas = next((abs(rank - dist.get_rank()) for rank in lines), 1)
        joined = groups(dist.get_world_size(), replicas, "nccl", device) if wire == "nccl" else {}

        def moved(rank: int) -> tuple[Carrier, Lane]:
            line, there = lines[rank]
            kind = carrier_between(wire, host(), there)
            if kind == "nccl":
                both = Nccl(rank, joined, device, streams(device))
                return both, both
            if kind == "ring":
                return Ring(line, device), lane_of(device)
            return Gloo(rank), Inline()

        def wire_to(rank: int, slots: int, whole: int | None = None) -> Wire:
            return Wire(lines[rank][0], *moved(rank), self._served, slots, device, message, whole)

        self._below = None if below is None else wire_to(below, UNDER_WAY + late)
        self._above = None if above is None else wire_to(above, UNDER_WAY, whole=TARGETS)
        self._feedback: deque[Feedback] = deque()
        self._published: deque[tuple[int, tuple[Tensor, ...]]] = deque()
        self._wires = [wire for wire in (self._below, self._above) if wire is not None]

    def recv_forward(self) -> Packet:
        assert self._below is not None
        try:
            _, (h, y, *side) = self._below.get()
        except Stopped as stop:
            self.stop(stop.step)
            raise
        assert h is not None
        assert y is not None
        return Packet(h, y, tuple(t for t in side if t is not None))

    def send_forward(self, packet: Packet) -> None:
        assert self._above is not None
        self._above.put((packet.h, packet.y, *packet.side))

    def recv_backward(self) -> Feedback | None:
        while not self._feedback:
            self._hear_above()
        return self._feedback.popleft() or None

    def send_backward(self, feedback: Feedback | None) -> None:
        assert self._below is not None
        self._below.put(feedback or ())

    def recv_published(self) -> tuple[int, tuple[Tensor, ...]]:
        while not self._published:
            self._hear_above()
        return self._published.popleft()

    def send_published(self, number: int, tensors: tuple[Tensor, ...]) -> None:
        assert self._below is not None
        self._below.put(tensors, kind=number + 1)

    def _hear_above(self) -> None:
        """The next message from above, for whoever asks for its kind."""
        assert self._above is not None
        kind, tensors = self._above.get()
        if kind:
            self._published.append((kind - 1, tuple(t for t in tensors if t is not None)))
        else:
            self._feedback.append(tensors)

    def stop(self, step: int) -> None:
        """Tell the stages above to stop as this one has, with `step` steps done."""
        if self._above is not None:
            self._above.stop(step)

    def close(self) -> None:
        """Say that nothing follows, and wait until the neighbours have said so, too. What nobody has taken is lost."""
        for wire in self._wires:
            wire.begin_closing()
        for wire in self._wires:
            wire.close()
        self._served.close()

    def waited(self) -> float:
        """Seconds that this stage has waited for others since the last call."""
        seconds = sum(wire.waited for wire in self._wires)
        for wire in self._wires:
            wire.waited = 0.0
        return seconds
