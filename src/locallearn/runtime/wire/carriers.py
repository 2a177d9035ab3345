"""What carries the bytes of a message from a slot of one process to the same slot of the next one."""

from __future__ import annotations

import mmap
import os
import weakref
from typing import Protocol

import torch
import torch.distributed as dist

from locallearn import accelerator
from locallearn.engine.replicas import lost_process
from locallearn.errors import RunError
from locallearn.runtime.message import Slot
from locallearn.runtime.wire.line import SLOT, SocketLine

FORWARD, BACKWARD = 1, 2  # tags: packets go up, feedback goes down


class Carrier(Protocol):
    """Both ends of the slots between two neighbours. A slot is in use from `lend` until the other end has read it."""

    def lend(self, slot: int, size: int) -> Slot:
        """An own slot of at least `size` bytes, to be written."""
        ...

    def send(self, slot: int, size: int) -> None:
        """Start the first `size` bytes of an own slot on their way; after this the line tells the other end."""
        ...

    def freed(self, slot: int) -> None:
        """The other end has read an own slot."""
        ...

    def replace(self, slot: int, size: int) -> None:
        """The other end has new memory for a slot."""
        ...

    def expect(self, slot: int, size: int) -> None:
        """`size` bytes of the other end are on their way into this slot."""
        ...

    def take(self, slot: int) -> Slot:
        """The slot, once its bytes are here; they are to be copied before the other end is told that it is free."""
        ...

    def taken(self, slot: int) -> None:
        """The bytes that came in this slot have been copied."""
        ...


class Ring:
    """Memory that both processes have mapped. It has no name, so that nothing is left of it once both are gone, and
    does not count against the size of /dev/shm. A process with a GPU pins it, so that copies need not wait."""

    def __init__(self, line: SocketLine, device: torch.device) -> None:
        self._line = line
        self._library = getattr(accelerator.module(device), "cudart", lambda: None)()
        self._own: dict[int, Slot] = {}
        self._theirs: dict[int, Slot] = {}

    def lend(self, slot: int, size: int) -> Slot:
        if more := missing(self._own.get(slot), size):
            self._own[slot] = self._make(slot, more)
        return self._own[slot]

    def send(self, slot: int, size: int) -> None:
        """The other end sees the memory already."""

    def freed(self, slot: int) -> None:
        """The memory stays where it is."""

    def replace(self, slot: int, size: int) -> None:
        file = self._line.file()
        try:
            self._theirs[slot] = self._mapped(file, size)
        finally:
            os.close(file)

    def expect(self, slot: int, size: int) -> None:
        """The bytes are in the memory already."""

    def take(self, slot: int) -> Slot:
        return self._theirs[slot]

    def taken(self, slot: int) -> None:
        """The memory stays where it is."""

    def _make(self, slot: int, size: int) -> Slot:
        file = os.memfd_create("locallearn")
        try:
            os.posix_fallocate(file, 0, size)  # too little memory is an error here, not a signal later
            made = self._mapped(file, size)
            self._line.say(SLOT, slot, number=size, file=file)
        except OSError as error:
            raise RunError(f"no memory for a message of {size:,} bytes: {error.strerror}") from error
        finally:
            os.close(file)
        return made

    def _mapped(self, file: int, size: int) -> Slot:
        slot = Slot(torch.frombuffer(mmap.mmap(file, size), dtype=torch.uint8))
        if self._library is not None:  # where it cannot be pinned, copies wait
            address = slot.memory.data_ptr()
            if int(self._library.cudaHostRegister(address, size, 0)) == 0:
                weakref.finalize(slot, self._library.cudaHostUnregister, address)
        return slot


class Gloo:
    """torch.distributed between processes of any machines: one message of bytes, received ahead as soon as this process
    looks at its lines."""

    def __init__(self, rank: int) -> None:
        self._rank = rank
        upward = rank > dist.get_rank()
        self._sends, self._receives = (FORWARD, BACKWARD) if upward else (BACKWARD, FORWARD)
        self._own: dict[int, Slot] = {}
        self._theirs: dict[int, Slot] = {}
        self._sending: dict[int, dist.Work] = {}
        self._arriving: dict[int, dist.Work] = {}

    def lend(self, slot: int, size: int) -> Slot:
        return self._in(self._own, slot, size)

    def send(self, slot: int, size: int) -> None:
        with lost_process():
            self._sending[slot] = under_way(dist.isend(self._own[slot].memory[:size], self._rank, tag=self._sends))

    def freed(self, slot: int) -> None:
        with lost_process():
            self._sending.pop(slot).wait()

    def replace(self, slot: int, size: int) -> None:
        """Each end has memory of its own."""

    def expect(self, slot: int, size: int) -> None:
        memory = self._in(self._theirs, slot, size).memory[:size]
        with lost_process():
            self._arriving[slot] = under_way(dist.irecv(memory, self._rank, tag=self._receives))

    def take(self, slot: int) -> Slot:
        with lost_process():
            self._arriving.pop(slot).wait()
        return self._theirs[slot]

    def taken(self, slot: int) -> None:
        """Nothing arrives there before the other end sends again."""

    @staticmethod
    def _in(slots: dict[int, Slot], slot: int, size: int) -> Slot:
        if more := missing(slots.get(slot), size):
            slots[slot] = Slot(torch.empty(more, dtype=torch.uint8))
        return slots[slot]


def missing(slot: Slot | None, size: int) -> int:
    """Bytes that a slot must get for a message; 0 if it has enough. It gets more than that where it has grown before,
    as it may do so again."""
    if slot is None:
        return max(size, mmap.PAGESIZE)
    return 0 if slot.size >= size else max(size, slot.size * 3 // 2)


def under_way(work: dist.Work | None) -> dist.Work:
    assert work is not None, "this process is not part of the group"
    return work
