"""What a message between two stages costs: as the user says, or as two processes of this machine measure it."""

from __future__ import annotations

import math
import tempfile
import time
from multiprocessing import get_context
from multiprocessing.connection import Connection
from statistics import median
from typing import NamedTuple

import torch
import torch.distributed as dist

from locallearn.accelerator import is_cpu
from locallearn.contract import Packet
from locallearn.engine.replicas import Replicas
from locallearn.runtime.link import UNDER_WAY, Pipe

SMALL, LARGE = 2**12, 2**24  # bytes of the messages that are measured
TRIPS = 8
GB = 1e9


class LinkCost(NamedTuple):
    """A message of n bytes arrives `latency` + n / `bandwidth` after it was sent, and meanwhile both ends work on. Each
    of them has spent `call` + n / `copying` of its own time on it. Replicas sum gradients at `summing`, as fast as a
    message travels if that is not given. Seconds and bytes per second."""

    bandwidth: float
    latency: float
    call: float = 0.0
    copying: float = math.inf
    summing: float | None = None

    def flight(self, size: float) -> float:
        """Seconds for which a message of `size` bytes occupies the link."""
        return size / self.bandwidth

    def spent(self, size: float) -> float:
        """Seconds that each end spends on a message of `size` bytes; 0 where there is none."""
        return self.call + size / self.copying if size else 0.0

    def summed(self, size: float, replicas: int) -> float:
        """Seconds until `size` bytes are summed over R replicas: each sends the others their parts, and then the total
        of its own part to all, 2 (R - 1) / R of the bytes in all."""
        return size * 2 * (replicas - 1) / replicas / (self.summing or self.bandwidth)

    def __str__(self) -> str:
        if math.isinf(self.copying):
            return f"{self.latency * 1e6:g} us + bytes / {self.bandwidth / GB:g} GB/s and costs the devices nothing"
        each = f"{self.call * 1e6:.0f} us + bytes / {self.copying / GB:.1f} GB/s"
        return f"{self.latency * 1e6:.0f} us, and each end spends {each} on it (measured between two processes here)"


GUESSED = LinkCost(10 * GB, 20e-6)
"""Of a device that copies messages beside its work."""


def link_of(bandwidth: float | None, latency: float | None, device: torch.device) -> LinkCost:
    """The link that is asked for, in GB/s and microseconds; without either, that between two processes of this machine,
    or for an accelerator, whose messages do not travel so, a guess."""
    if bandwidth is None and latency is None:
        return measure_link() if is_cpu(device) else GUESSED
    return LinkCost(
        GUESSED.bandwidth if bandwidth is None else bandwidth * GB,
        GUESSED.latency if latency is None else latency * 1e-6,
    )


def measure_link() -> LinkCost:
    """The link between two processes of this machine under `runtime.wire=auto`, in a few seconds: what it carries lies
    in memory that both share, so that the ends do all the work, and a message arrives as soon as they are done."""
    spawn = get_context("spawn")
    with tempfile.TemporaryDirectory(prefix="locallearn-link-") as folder:
        ends = [spawn.Pipe(duplex=False) for _ in range(2)]
        workers = [
            spawn.Process(target=_end, args=(rank, f"{folder}/meet", writer), daemon=True)
            for rank, (_, writer) in enumerate(ends)
        ]
        for worker in workers:
            worker.start()
        for _, writer in ends:
            writer.close()
        try:
            (sent, trip, summing), (received, _, _) = (reader.recv() for reader, _ in ends)
        finally:
            for worker in workers:
                worker.join(5)
                worker.kill()
    # A message costs its two ends alike here: of what one spends and the other, the mean.
    small, large = ((sent[size] + received[size]) / 2 for size in (SMALL, LARGE))
    copying = (LARGE - SMALL) / max(large - small, 1e-9)
    call = max(small - SMALL / copying, 0.0)
    return LinkCost(math.inf, max(trip / 2 - 2 * small, 0.0), call, copying, summing)


def _end(rank: int, meet: str, answer: Connection) -> None:
    """Measure one end: by size the median seconds of a call that sends, or that takes what is there; those of a small
    message there and back; and the bytes per second of a sum."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{meet}", rank=rank, world_size=2)
    pipe = Pipe(None if rank == 0 else 0, 1 if rank == 0 else None, torch.device("cpu"), None)
    seconds = {size: _calls(pipe, rank, size) for size in (SMALL, LARGE)}
    answer.send((seconds, _there_and_back(pipe, rank), LARGE / _sum(rank)))
    dist.barrier()
    pipe.close()
    dist.destroy_process_group()


def _calls(pipe: Pipe, rank: int, size: int) -> float:
    message, seconds = Packet(torch.rand(size // 4), torch.arange(1)), []
    for _ in range(TRIPS):
        for turn in range(2):  # one sends while the other waits for the next turn: nobody waits within a call
            if turn == rank:
                for _ in range(UNDER_WAY):
                    start = time.perf_counter()
                    pipe.send_forward(message) if rank == 0 else pipe.recv_forward()
                    seconds.append(time.perf_counter() - start)
            dist.barrier()
    return median(seconds)


def _there_and_back(pipe: Pipe, rank: int) -> float:
    message, seconds = Packet(torch.rand(SMALL // 4), torch.arange(1)), []
    for _ in range(20 * TRIPS):
        start = time.perf_counter()
        if rank == 0:
            pipe.send_forward(message)
            pipe.recv_backward()
        else:
            pipe.send_backward((pipe.recv_forward().h,))
        seconds.append(time.perf_counter() - start)
    return median(seconds)


def _sum(rank: int) -> float:
    """Seconds of a sum over two replicas, of a large tensor."""
    group = dist.group.WORLD
    assert group is not None
    replicas, gradients, seconds = Replicas(group, rank, 2), torch.rand(LARGE // 4), []
    for _ in range(TRIPS):
        dist.barrier()
        start = time.perf_counter()
        replicas.start([gradients]).finish()
        seconds.append(time.perf_counter() - start)
    return median(seconds)
