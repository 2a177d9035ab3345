"""What carries the bytes of a message from a slot of one process to the same slot of the next one."""

from __future__ import annotations

import mmap
import os
from typing import Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from locallearn.engine.replicas import lost_process
from locallearn.errors import RunError
from locallearn.runtime.wire.line import SLOT, SocketLine

FORWARD, BACKWARD = 1, 2  # tags: packets go up, feedback goes down


class Carrier(Protocol):
    """Both ends of the slots between two neighbours. A slot is in use from `lend` until the other end has read it."""

    def lend(self, slot: int, size: int) -> Tensor:
        """`size` bytes of an own slot, to be written."""
        ...

    def send(self, slot: int, size: int) -> None:
        """Start them on their way; that they do is said on the line after this."""
        ...

    def freed(self, slot: int) -> None:
        """The other end has read an own slot."""
        ...

    def replace(self, slot: int, size: int) -> None:
        """The other end has new memory for a slot."""
        ...

    def expect(self, slot: int, size: int) -> None:
        """So many bytes are on their way."""
        ...

    def take(self, slot: int, size: int) -> Tensor:
        """They, once they are here; to be copied before the other end is told that the slot is free."""
        ...


class Ring:
    """Memory that both processes have mapped. It has no name, so that nothing is left of it once both are gone, and
    does not count against the size of /dev/shm."""

    def __init__(self, line: SocketLine) -> None:
        self._line = line
        self._own: dict[int, Tensor] = {}
        self._theirs: dict[int, Tensor] = {}

    def lend(self, slot: int, size: int) -> Tensor:
        if (memory := self._own.get(slot)) is None or len(memory) < size:
            memory = self._own[slot] = self._make(slot, room(memory, size))
        return memory[:size]

    def send(self, slot: int, size: int) -> None:
        """It is there."""

    def freed(self, slot: int) -> None:
        """It stays where it is."""

    def replace(self, slot: int, size: int) -> None:
        file = self._line.file()
        try:
            self._theirs[slot] = _mapped(file, size)
        finally:
            os.close(file)

    def expect(self, slot: int, size: int) -> None:
        """It is there."""

    def take(self, slot: int, size: int) -> Tensor:
        return self._theirs[slot][:size]

    def _make(self, slot: int, size: int) -> Tensor:
        file = os.memfd_create("locallearn")
        try:
            os.posix_fallocate(file, 0, size)  # too little memory is an error here, not a signal later
            memory = _mapped(file, size)
            self._line.say(SLOT, slot, number=size, file=file)
        except OSError as error:
            raise RunError(f"no memory for a message of {size:,} bytes: {error.strerror}") from error
        finally:
            os.close(file)
        return memory


class Gloo:
    """torch.distributed between processes of any machines: one message of bytes, received ahead as soon as this process
    looks at its lines."""

    def __init__(self, rank: int) -> None:
        self._rank = rank
        upward = rank > dist.get_rank()
        self._sends, self._receives = (FORWARD, BACKWARD) if upward else (BACKWARD, FORWARD)
        self._own: dict[int, Tensor] = {}
        self._theirs: dict[int, Tensor] = {}
        self._sending: dict[int, dist.Work] = {}
        self._arriving: dict[int, dist.Work] = {}

    def lend(self, slot: int, size: int) -> Tensor:
        return _at_least(size, self._own, slot)

    def send(self, slot: int, size: int) -> None:
        with lost_process():
            self._sending[slot] = _under_way(dist.isend(self._own[slot][:size], self._rank, tag=self._sends))

    def freed(self, slot: int) -> None:
        with lost_process():
            self._sending.pop(slot).wait()

    def replace(self, slot: int, size: int) -> None:
        """Each end has memory of its own."""

    def expect(self, slot: int, size: int) -> None:
        memory = _at_least(size, self._theirs, slot)
        with lost_process():
            self._arriving[slot] = _under_way(dist.irecv(memory, self._rank, tag=self._receives))

    def take(self, slot: int, size: int) -> Tensor:
        with lost_process():
            self._arriving.pop(slot).wait()
        return self._theirs[slot][:size]


def room(before: Tensor | None, size: int) -> int:
    """Bytes for a slot that is too small; more than are needed where it has grown before, as it may do so again."""
    return max(size, mmap.PAGESIZE if before is None else len(before) * 3 // 2)


def _at_least(size: int, slots: dict[int, Tensor], slot: int) -> Tensor:
    if (memory := slots.get(slot)) is None or len(memory) < size:
        memory = slots[slot] = torch.empty(room(memory, size), dtype=torch.uint8)
    return memory[:size]


def _mapped(file: int, size: int) -> Tensor:
    return torch.frombuffer(mmap.mmap(file, size), dtype=torch.uint8)


def _under_way(work: dist.Work | None) -> dist.Work:
    assert work is not None, "this process is not part of the group"
    return work
