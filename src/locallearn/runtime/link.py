"""Messages between the stages of a pipeline, over torch.distributed and gloo; those of GPUs travel through the CPU."""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from contextlib import suppress

import torch
import torch.distributed as dist
from torch import Tensor

from locallearn.contract import Feedback, Packet
from locallearn.engine.link import Stopped
from locallearn.engine.replicas import LostProcess, lost_process
from locallearn.runtime.message import HEADER, header, layouts, values

FORWARD, BACKWARD = 1, 2  # tags: packets go up, feedback goes down
CLOSED, STOPPED = -1, -2  # in the place of a header's count: no more messages; stop here
CLOSING_SECONDS = 0.05
UNDER_WAY = 2  # messages of a sender that nobody has taken yet; the next one waits


class Pipe:
    """A `Link` to the ranks below and above (None at the ends).

    A thread for each direction receives ahead into a short queue, and sends are not waited for until `UNDER_WAY` of
    them are pending, so that messages travel while the stage computes. A message is a header (types, sizes, strides)
    and its tensors; floats are sent as `message` if that is given (bfloat16 halves the traffic, and changes the bits).
    A tensor arrives with the strides that it had: they decide which kernel a convolution takes, and so the last bits.
    So many messages of feedback more as are `late` (staleness times micro-batches) may wait for this stage: were they
    not taken in, the stage above would wait to send them, and this one for that to take its packets.
    """

    def __init__(
        self,
        below: int | None,
        above: int | None,
        device: torch.device,
        message: torch.dtype | None,
        late: int = 0,
    ) -> None:
        self.below, self.above = below is not None, above is not None
        self._ups = None if above is None else Outbox(above, FORWARD, message)
        self._downs = None if below is None else Outbox(below, BACKWARD, message)
        self._packets = None if below is None else Inbox(below, FORWARD, device, UNDER_WAY)
        self._feedback = None if above is None else Inbox(above, BACKWARD, device, UNDER_WAY + late)

    def recv_forward(self) -> Packet:
        assert self._packets is not None
        try:
            h, y, *side = self._packets.get()
        except Stopped as stop:
            self.stop(stop.step)
            raise
        assert h is not None
        assert y is not None
        return Packet(h, y, tuple(t for t in side if t is not None))

    def send_forward(self, packet: Packet) -> None:
        assert self._ups is not None
        self._ups.put((packet.h, packet.y, *packet.side))

    def recv_backward(self) -> Feedback | None:
        assert self._feedback is not None
        return self._feedback.get() or None

    def send_backward(self, feedback: Feedback | None) -> None:
        assert self._downs is not None
        self._downs.put(feedback or ())

    def stop(self, step: int) -> None:
        """Tell the stages above to stop as this one has, with `step` steps done."""
        if self._ups is not None:
            self._ups.put_word(STOPPED, step)

    def close(self) -> None:
        """Say that nothing follows, and wait until the neighbours have said so, too. What nobody has taken is lost."""
        for box in (self._ups, self._downs, self._packets, self._feedback):
            if box is not None:
                box.close()

    def waited(self) -> float:
        """Seconds that this stage has waited for others since the last call."""
        boxes = [box for box in (self._ups, self._downs, self._packets, self._feedback) if box is not None]
        seconds = sum(box.waited for box in boxes)
        for box in boxes:
            box.waited = 0.0
        return seconds


class Outbox:
    """Sends messages to one rank, some ahead of their arrival. `waited`: the seconds spent on that."""

    def __init__(self, rank: int, tag: int, message: torch.dtype | None) -> None:
        self.rank, self.tag, self._message = rank, tag, message
        self.waited = 0.0
        self._pending: deque[list[dist.Work]] = deque()

    def put(self, tensors: tuple[Tensor | None, ...]) -> None:
        if len(self._pending) == UNDER_WAY:
            self._wait()
        sent = [None if t is None else values(t, self._message) for t in tensors]
        self._send(header(tensors, sent), *(numbers for numbers in sent if numbers is not None))

    def put_word(self, word: int, number: int = 0) -> None:
        """A message of one word."""
        words = torch.zeros(HEADER, dtype=torch.int64)
        words[:2] = torch.tensor([word, number])
        self._send(words)

    def close(self) -> None:
        self.put_word(CLOSED)
        while self._pending:
            self._wait()

    def _send(self, *tensors: Tensor) -> None:
        works = [dist.isend(t, self.rank, tag=self.tag) for t in tensors]
        self._pending.append([w for w in works if w is not None])

    def _wait(self) -> None:
        started = time.perf_counter()
        with lost_process():
            for work in self._pending.popleft():
                work.wait()
        self.waited += time.perf_counter() - started


class Inbox:
    """Receives messages from one rank in a thread of its own. `waited`: the seconds that `get` had to wait."""

    def __init__(self, rank: int, tag: int, device: torch.device, size: int) -> None:
        self.rank, self.tag, self.device = rank, tag, device
        self.waited = 0.0
        self._queue: queue.Queue[tuple[Tensor | None, ...] | Exception] = queue.Queue(size)
        self.thread = threading.Thread(target=self._run, daemon=True, name=f"inbox-{rank}")
        self.thread.start()

    def get(self) -> tuple[Tensor | None, ...]:
        """The next message. Raises what receiving it raised."""
        started = time.perf_counter()
        message = self._queue.get()
        self.waited += time.perf_counter() - started
        if isinstance(message, Exception):
            raise message
        return message

    def close(self) -> None:
        while self.thread.is_alive():
            with suppress(queue.Empty):
                self._queue.get(timeout=CLOSING_SECONDS)

    def _run(self) -> None:
        try:
            with lost_process():
                while (message := self._receive()) is not None:
                    self._queue.put(message)
        except LostProcess as error:
            self._queue.put(error)

    def _receive(self) -> tuple[Tensor | None, ...] | None:
        words = torch.zeros(HEADER, dtype=torch.int64)
        dist.recv(words, self.rank, tag=self.tag)
        count, *rest = words.tolist()
        if count == CLOSED:
            return None
        if count == STOPPED:
            self._queue.put(Stopped(rest[0]))
            return self._receive()
        tensors: list[Tensor | None] = []
        for layout in layouts(count, rest):
            if layout is None:
                tensors.append(None)
                continue
            numbers = layout.empty()
            dist.recv(numbers, self.rank, tag=self.tag)
            tensors.append(layout.tensor(numbers.to(self.device)))
        return tuple(tensors)
