"""Two processes with a pipe between them, for tests/equality/test_wire.py: what each does there."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from locallearn.contract import Packet
from locallearn.engine.link import Stopped
from locallearn.engine.replicas import LostProcess
from locallearn.runtime.link import UNDER_WAY, Pipe
from locallearn.runtime.wire import meeting

CPU = torch.device("cpu")
LARGE = 4_194_304  # numbers: 16 MB


def pipe_of(rank: int, wire: str) -> Pipe:
    return Pipe(*((None, 1) if rank == 0 else (0, None)), CPU, None, wire=wire)


def messages() -> Iterator[tuple[Tensor, ...]]:
    """Empty, small and large ones whose shapes, types and layouts change all the time."""
    g = torch.Generator().manual_seed(0)
    for i in range(40):
        maps = torch.randn(1 + i % 3, 8, 5 + i, 4, generator=g)
        last = maps.contiguous(memory_format=torch.channels_last)
        yield maps, torch.arange(i)
        yield last, torch.arange(i, dtype=torch.int32), maps > 0, maps[:, 1:3], last.bfloat16(), maps.double()
        yield torch.empty(0), torch.empty(0, dtype=torch.int64)
        yield torch.tensor(float(i)).expand(i + 1, 3), torch.tensor(i)
    for n in (LARGE, 5, LARGE // 3, LARGE):
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
    assert after == before, f"{before} threads, files and mappings before, {after} after"


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
    os.kill(os.getpid(), signal.SIGKILL)


def run(rank: int, folder: str, what: str, wire: str, apart: bool, *more: str) -> None:
    """`apart`: as if the two were on two machines."""
    torch.set_num_threads(1)
    if apart:
        there = f"machine {rank}"
        meeting.host = lambda: there  # type: ignore[assignment]
    wait = timedelta(seconds=60)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2, timeout=wait)
    {"echo": echo, "both_ways": both_ways, "killed": killed}[what](rank, wire, *more)
    dist.destroy_process_group()
