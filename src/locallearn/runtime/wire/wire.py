"""The messages between two neighbouring stages, whatever carries them: slots, credits, signatures, words."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from functools import partial
from selectors import EVENT_READ, BaseSelector

import torch
from torch import Tensor

from locallearn.engine.link import Stopped
from locallearn.runtime.message import MOST_SIGNATURES, Message, Signature, alike
from locallearn.runtime.wire.carriers import Carrier
from locallearn.runtime.wire.lanes import CHECK_SECONDS, Lane
from locallearn.runtime.wire.line import CLOSE, CREDIT, DATA, SIGNATURE, SLOT, STOP, Frame, SocketLine


class Wire:
    """Both directions to one neighbour.

    A message is written into a free slot, and its number said on the line; the neighbour copies it out when it takes it
    and gives the slot back. `slots` is how many messages may be sent that nobody has taken: who is further ahead waits.
    The slot that came back last is used first, as its memory is still in the cache. There is no thread: who waits for
    one line serves all in `served`.

    message  the type in which floats travel, or None for their own
    whole    the place in a message of the one tensor that keeps its type, or None
    waited   the seconds spent on waiting
    """

    def __init__(
        self,
        line: SocketLine,
        carrier: Carrier,
        lane: Lane,
        served: BaseSelector,
        slots: int,
        device: torch.device,
        message: torch.dtype | None,
        whole: int | None = None,
    ) -> None:
        self.waited = 0.0
        self._line, self._carrier, self._lane, self._served = line, carrier, lane, served
        self._device, self._message, self._whole = device, message, whole
        self._slots = slots
        self._free = list(range(slots))
        self._known: dict[tuple[object, ...], tuple[int, Signature]] = {}
        self._told: dict[int, Signature] = {}
        self._queue: deque[tuple[int, Signature] | Stopped] = deque()
        self._closing = self._closed = False  # on this end, on the other one
        served.register(line, EVENT_READ, self)

    def put(self, tensors: Message, kind: int = 0) -> None:
        """Send a message. One that has a kind goes in its own types, and waits for no slot: who sends it promises that
        there are never many. Raises LostProcess, RunError."""
        self._serve(0)
        if kind and not self._free:
            self._free.append(self._slots)
            self._slots += 1
        self._until(lambda: self._free)
        number, signature = self._signature(tensors, kind)
        slot = self._free.pop()
        held = self._carrier.lend(slot, signature.size)

        def tell() -> None:
            self._carrier.send(slot, signature.size)
            self._line.say(DATA, slot, number)

        self._lane.out(partial(signature.write, tensors, held, self._lane.non_blocking), tell)

    def get(self) -> tuple[int, tuple[Tensor | None, ...]]:
        """The kind of the next message, and the message. Raises Stopped in the place of one, LostProcess."""
        self._serve(0)
        self._until(lambda: self._queue)
        first = self._queue.popleft()
        if isinstance(first, Stopped):
            raise first
        slot, signature = first
        started = time.perf_counter()
        held = self._carrier.take(slot)
        self.waited += time.perf_counter() - started
        tensors = signature.empty(self._device)
        self._lane.into(partial(signature.read, tensors, held, self._lane.non_blocking), partial(self._give_back, slot))
        return signature.kind, tensors

    def stop(self, step: int) -> None:
        """Tell the neighbour, in the place of a message, that there is none after this step."""
        self._lane.finish()
        self._line.say(STOP, number=step)

    def begin_closing(self) -> None:
        """Say that nothing follows; what this end has not taken is lost."""
        self._closing = True
        self._lane.finish()
        for entry in self._queue:
            if not isinstance(entry, Stopped):
                self._drop(entry[0])
        self._queue.clear()
        self._line.say(CLOSE)
        self._leave()

    def close(self) -> None:
        """Wait until the neighbour has said the same, and has taken or lost what was sent."""
        self._until(lambda: self._ended)

    @property
    def _ended(self) -> bool:
        return self._closing and self._closed and len(self._free) == self._slots

    def _until(self, reached: Callable[[], object]) -> None:
        if not reached():
            started = time.perf_counter()
            while not reached():
                self._lane.check()
                self._serve(CHECK_SECONDS)
            self.waited += time.perf_counter() - started

    def _serve(self, seconds: float | None) -> None:
        """Hear what has arrived on any line; None: wait for it."""
        for key, _ in self._served.select(seconds):
            wire: Wire = key.data
            for frame in wire._line.heard():
                wire._obey(frame)
            wire._leave()

    def _obey(self, frame: Frame) -> None:
        if frame.kind == DATA:
            signature = self._told[frame.signature]
            self._carrier.expect(frame.slot, signature.size)
            if self._closing:
                self._drop(frame.slot)
            else:
                self._queue.append((frame.slot, signature))
        elif frame.kind == CREDIT:
            self._carrier.freed(frame.slot)
            self._free.append(frame.slot)
        elif frame.kind == SIGNATURE:
            self._told[frame.signature] = Signature.told(frame.text)
        elif frame.kind == SLOT:
            self._carrier.replace(frame.slot, frame.number)
        elif frame.kind == STOP:
            self._queue.append(Stopped(frame.number))
        else:
            assert frame.kind == CLOSE
            self._closed = True

    def _signature(self, tensors: Message, kind: int) -> tuple[int, Signature]:
        """Of a message, and its number, which the neighbour knows from now on."""
        key = kind, *alike(tensors)
        if key not in self._known:
            signature = Signature.of(tensors, None if kind else self._message, kind, self._whole)
            if len(self._known) == MOST_SIGNATURES:
                self._lane.finish()  # messages that nobody has been told of yet have the old numbers
                self._known.clear()
            self._known[key] = len(self._known), signature
            text = signature.text
            self._line.say(SIGNATURE, signature=self._known[key][0], number=len(text), text=text)
        return self._known[key]

    def _drop(self, slot: int) -> None:
        self._carrier.take(slot)
        self._give_back(slot)

    def _give_back(self, slot: int) -> None:
        self._carrier.taken(slot)
        self._line.say(CREDIT, slot)

    def _leave(self) -> None:
        """The end of the line is no loss once both ends have ended."""
        if self._ended and self._line.fileno() >= 0:
            self._served.unregister(self._line)
            self._line.close()
            self._lane.close()
