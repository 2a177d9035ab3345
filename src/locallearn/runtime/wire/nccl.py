"""Messages from GPU to GPU by NCCL, as `runtime.wire=nccl` asks for. Not yet run on a GPU.

NCCL blocks a device until the other end takes part, so that the order of calls decides whether two ends wait for each
other for ever. Here all are made by the main thread, and a receive only after the line has said that its send has been
asked for: each operation then depends on earlier ones alone. Each direction of each link has a group, so that the two
do not wait for each other.
"""

from __future__ import annotations

from collections import deque
from typing import TypeAlias

import torch
import torch.distributed as dist

from locallearn.engine.replicas import lost_process
from locallearn.runtime.message import Slot
from locallearn.runtime.wire.carriers import missing, under_way
from locallearn.runtime.wire.lanes import Action, Mark, Queues
from locallearn.runtime.world import FOREVER

Groups: TypeAlias = dict[tuple[int, int], dist.ProcessGroup]


def groups(size: int, replicas: int, backend: str, device: torch.device | None) -> Groups:
    """A group for every direction between neighbours, by the ranks from and to. All processes must call it: they make
    all groups in one order, upward before downward, also those that they are not part of. The connections are made, a
    link between an even stage and the next one first, as both ends block for that."""
    links = [(low, low + replicas) for low in range(size - replicas)]
    made: Groups = {}
    for low, high in links:
        for ends in ((low, high), (high, low)):
            group = dist.new_group([low, high], backend=backend, timeout=FOREVER, device_id=device)
            if isinstance(group, dist.ProcessGroup):  # this process is in it
                made[ends] = group
    own, word = dist.get_rank(), torch.zeros(1, device=device)
    for low, high in sorted(links, key=lambda link: link[0] // replicas % 2):
        for a, b in ((low, high), (high, low)):
            if (a, b) in made:
                move, other = (dist.isend, b) if own == a else (dist.irecv, a)
                under_way(move(word, other, group=made[a, b])).wait()
    return made


class Nccl:
    """A carrier and its lane: slots are memory of the device, and queues wait for each other where the host of other
    carriers would."""

    non_blocking = True

    def __init__(self, rank: int, joined: Groups, device: torch.device, queues: Queues) -> None:
        own = dist.get_rank()
        self._rank, self._device, self._queues = rank, device, queues
        self._sends, self._receives = joined[own, rank], joined[rank, own]
        self._own: dict[int, Slot] = {}
        self._theirs: dict[int, Slot] = {}
        self._arrived: dict[int, Mark] = {}  # of slots that hold what nobody has read
        self._read: dict[int, Mark] = {}  # of the others
        self._copied: deque[tuple[Mark, Action]] = deque()  # what is sent is held until it has been copied

    def out(self, copy: Action, then: Action) -> None:
        while self._copied and self._copied[0][0].query():
            self._copied.popleft()
        self._queues.sending.wait(self._queues.computing().mark())
        self._queues.sending.run(copy)
        self._copied.append((self._queues.sending.mark(), copy))
        then()

    def into(self, copy: Action, then: Action) -> None:
        self._queues.computing().run(copy)
        then()

    def check(self) -> None:
        """A copy that fails has raised."""

    def finish(self) -> None:
        self._queues.sending.mark().synchronize()

    def close(self) -> None:
        """There is no thread."""

    def lend(self, slot: int, size: int) -> Slot:
        if more := missing(self._own.get(slot), size):
            self.finish()  # the memory that goes may still be on its way
            self._own[slot] = self._make(more)
        return self._own[slot]

    def send(self, slot: int, size: int) -> None:
        memory = self._own[slot].memory[:size]
        with lost_process():
            self._queues.sending.run(lambda: under_way(dist.isend(memory, self._rank, group=self._sends)).wait())

    def freed(self, slot: int) -> None:
        """The queue that sends comes to it after what it has sent."""

    def replace(self, slot: int, size: int) -> None:
        """Each end has memory of its own."""

    def expect(self, slot: int, size: int) -> None:
        if more := missing(self._theirs.get(slot), size):
            self._theirs[slot] = self._make(more)
            self._read[slot] = self._queues.computing().mark()  # it may have been the computation's
        self._queues.receiving.wait(self._read.pop(slot))
        memory = self._theirs[slot].memory[:size]
        with lost_process():
            self._queues.receiving.run(lambda: under_way(dist.irecv(memory, self._rank, group=self._receives)).wait())
        self._arrived[slot] = self._queues.receiving.mark()

    def take(self, slot: int) -> Slot:
        self._queues.computing().wait(self._arrived.pop(slot))
        return self._theirs[slot]

    def taken(self, slot: int) -> None:
        self._read[slot] = self._queues.computing().mark()

    def _make(self, size: int) -> Slot:
        return Slot(torch.empty(size, dtype=torch.uint8, device=self._device))
