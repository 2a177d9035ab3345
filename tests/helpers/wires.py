"""Two processes with a pipe between them, for tests/equality/test_wire.py: what each does there."""

from __future__ import annotations

import os
import queue
import random
import signal
import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from functools import partial
from pathlib import Path
from selectors import DefaultSelector

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from locallearn.contract import Packet
from locallearn.engine.link import Stopped
from locallearn.engine.replicas import LostProcess
from locallearn.runtime.link import UNDER_WAY, Pipe
from locallearn.runtime.wire import meeting, nccl
from locallearn.runtime.wire.lanes import Queues
from locallearn.runtime.wire.meeting import meet
from locallearn.runtime.wire.wire import Wire

CPU = torch.device("cpu")
LARGE = 4_194_304  # numbers: 16 MB


def pipe_of(rank: int, wire: str) -> Pipe:
    return Pipe(*((None, 1) if rank == 0 else (0, None)), CPU, None, wire=wire)


def messages() -> Iterator[tuple[Tensor, ...]]:
    """Empty, small and large ones whose shapes, types and layouts change all the time."""
    g = torch.Generator().manual_seed(0)
    for i in range(15):
        maps = torch.randn(1 + i % 3, 8, 5 + i, 4, generator=g)
        last = maps.contiguous(memory_format=torch.channels_last)
        yield maps, torch.arange(i)
        yield last, torch.arange(i, dtype=torch.int32), maps > 0, maps[:, 1:3], last.bfloat16(), maps.double()
        yield torch.empty(0), torch.empty(0, dtype=torch.int64)
        yield torch.tensor(float(i)).expand(i + 1, 3), torch.tensor(i)
    for n in (LARGE // 3, 5, LARGE):
        yield torch.randn(n, generator=g), torch.arange(n % 11)


def echo(rank: int, wire: str) -> None:
    """What comes back is what was sent, and nothing is left behind."""
    for _ in range(2):  # what is made once, such as connections of gloo, is made in the first round
        before = (threading.active_count(), len(os.listdir("/proc/self/fd")), mapped())
        pipe = pipe_of(rank, wire)
        for message in messages():
            if rank == 0:
                h, y, *side = message
                pipe.send_forward(Packet(h, y, tuple(side)))
                feedback = pipe.recv_backward()
                assert feedback is not None
                nothing, *found = feedback
                assert nothing is None
                for sent, t in zip(message, found, strict=True):
                    assert torch.equal(sent, t)
                    assert (t.dtype, t.stride()) == (sent.dtype, sent.stride())
            else:
                packet = pipe.recv_forward()
                pipe.send_backward((None, packet.h, packet.y, *packet.side))
        assert (mapped() > 0) == (wire == "ring")
        assert threading.active_count() == before[0], "no thread"
        pipe.close()
        del pipe
        after = (threading.active_count(), len(os.listdir("/proc/self/fd")), mapped())
    left = [a - b for a, b in zip(after, before, strict=True)]  # what others had open may have gone meanwhile
    assert max(left) <= 0, f"{before} threads, files and mappings before, {after} after"


def both_ways(rank: int, wire: str) -> None:
    """64 MB in both directions at once, then more messages than may be under way, a word, and an end in between."""
    pipe = pipe_of(rank, wire)
    whole = torch.arange(LARGE * 4, dtype=torch.int32) + rank
    if rank == 0:
        pipe.send_forward(Packet(whole, torch.tensor(0)))
        (found,) = pipe.recv_backward() or ()
    else:
        pipe.send_backward((whole,))
        found = pipe.recv_forward().h
    assert torch.equal(found, whole + 1 - 2 * rank)
    pipe.waited()
    if rank == 0:
        for i in range(UNDER_WAY):
            pipe.send_forward(Packet(torch.tensor(i), torch.tensor(0)))
        pipe.waited()
        threading.Timer(0.5, dist.barrier).start()  # before that the one above takes none
        pipe.send_forward(Packet(torch.tensor(UNDER_WAY), torch.tensor(0)))
        assert pipe.waited() > 0.4
        pipe.stop(7)
        pipe.send_forward(Packet(torch.tensor(8), torch.tensor(0)))
    else:
        dist.barrier()
        assert [int(pipe.recv_forward().h) for _ in range(UNDER_WAY + 1)] == [*range(UNDER_WAY + 1)]
        with pytest.raises(Stopped) as stopped:
            pipe.recv_forward()
        assert stopped.value.step == 7
        pipe.send_backward((whole,))
    pipe.close()  # nobody has taken the last two


def mapped() -> int:
    """Pieces of memory that are shared without a name."""
    return Path("/proc/self/maps").read_text().count("memfd:locallearn")


def killed(rank: int, wire: str, waits: str) -> None:
    """The upper one is killed while the lower one waits: for a message, or for its turn to send a fifth one."""
    pipe = pipe_of(rank, wire)
    packet = Packet(torch.ones(1000), torch.tensor(0))
    if rank == 0:
        pipe.send_forward(packet)
        pipe.recv_backward()
        started = time.monotonic()
        with pytest.raises(LostProcess, match="lost another process"):
            pipe.recv_backward() if waits == "get" else [pipe.send_forward(packet) for _ in range(UNDER_WAY + 1)]
        assert time.monotonic() - started < 1.5  # half a second of it by intention
        os._exit(0)  # as a stage does: gloo would wait for the other one
    pipe.recv_forward()
    pipe.send_backward(())
    time.sleep(0.5)
    if os.fork() == 0:  # a worker that reads data, and lives a little longer
        time.sleep(3)
        os._exit(0)
    os.kill(os.getpid(), signal.SIGKILL)


class DelayedQueue:
    """Does what is asked in order, after random pauses. One that is `deaf` does not wait for others, one that is
    `hasty` says that it has come to a mark at once."""

    def __init__(self, seed: int, fault: str) -> None:
        self._random, self._fault = random.Random(seed), fault
        self._actions: queue.SimpleQueue = queue.SimpleQueue()
        threading.Thread(target=self._work, daemon=True).start()

    def run(self, action) -> None:
        self._actions.put(action)

    def mark(self) -> DelayedMark:
        mark = DelayedMark()
        (mark.set if self._fault == "hasty" else partial(self.run, mark.set))()
        return mark

    def wait(self, mark: DelayedMark) -> None:
        if self._fault != "deaf":
            self.run(mark.wait)

    def _work(self) -> None:
        while True:
            action = self._actions.get()
            time.sleep(self._random.choice((0, 0, 0.001)))
            action()
            if action == self._end:
                return

    def _end(self) -> None:
        """The last action."""

    def end(self) -> None:
        self.run(self._end)


class DelayedMark(threading.Event):
    query, synchronize = threading.Event.is_set, threading.Event.wait


class DelayedQueues:
    """Those of process `own`. A `fault` names a process, a queue and its kind."""

    def __init__(self, seed: int, fault: str, own: int) -> None:
        process, name, kind = fault.split() if fault else ("", "", "")
        kinds = {name: kind} if process == str(own) else {}
        names = ("computing", "sending", "receiving")
        self.computing, sending, receiving = (DelayedQueue(seed * 3 + i, kinds.get(n, "")) for i, n in enumerate(names))
        self.queues = Queues(lambda: self.computing, sending, receiving)

    def end(self) -> None:
        for one in (self.computing, self.queues.sending, self.queues.receiving):
            one.end()


def queued(rank: int, wire: str, fault: str) -> None:
    """Numbers that one end computes, the other one doubles, and the first one reads, with hosts that run ahead."""
    queues = DelayedQueues(rank, fault, rank)
    joined = nccl.groups(2, 1, "gloo", None)
    lines = meet(*((None, 1) if rank == 0 else (0, None)))
    line, _ = lines[1 - rank]
    carrier = nccl.Nccl(1 - rank, joined, CPU, queues.queues)
    ends = Wire(line, carrier, carrier, DefaultSelector(), UNDER_WAY, CPU, None)
    wrong: list[int] = []
    sizes = [50 + 400 * (i // 10) for i in range(60)]  # slots grow
    if rank == 0:
        for i, size in enumerate(sizes):
            sent = torch.zeros(size)
            queues.computing.run(partial(sent.fill_, i))
            ends.put((sent,))
            if i >= 2:
                _, (found,) = ends.get()
                queues.computing.run(lambda t=found, i=i: wrong.append(i) if not (t == 2 * (i - 2)).all() else None)
    else:
        for _ in sizes:
            queues.computing.run(partial(time.sleep, 0.003))  # it is the slower one
            _, (found,) = ends.get()
            doubled = torch.zeros_like(found)
            queues.computing.run(partial(torch.mul, found, 2, out=doubled))
            ends.put((doubled,))
    ends.begin_closing()
    ends.close()
    queues.computing.mark().synchronize()
    if rank == 0:
        assert bool(wrong) == bool(fault), wrong


def run(rank: int, folder: str, what: str, wire: str, apart: bool, *more: str) -> None:
    """`apart`: as if the two were on two machines."""
    torch.set_num_threads(1)
    if apart:
        there = f"machine {rank}"
        meeting.host = lambda: there  # type: ignore[assignment]
    wait = timedelta(seconds=60)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2, timeout=wait)
    {"echo": echo, "both_ways": both_ways, "killed": killed, "queued": queued}[what](rank, wire, *more)
    dist.destroy_process_group()
