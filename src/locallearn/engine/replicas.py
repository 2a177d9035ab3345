"""Replicas of a stage, which share every batch: gradients are summed over them while the next block computes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.functional import pad

from locallearn.errors import RunError

CPU = torch.device("cpu")


class LostProcess(RunError):
    """Another process of the run is gone; that process knows why."""


@contextmanager
def lost_process() -> Iterator[None]:
    """Raises LostProcess for the errors of torch.distributed."""
    try:
        yield
    except RunError:  # which is one, and says more
        raise
    except RuntimeError as error:
        raise LostProcess(f"lost another process ({str(error).splitlines()[0]})") from error


class Replicas:
    """The replicas of one stage, of which this one is number `index` of `size`; `device` is where the group adds: the
    CPU with gloo, a GPU with NCCL, for which waiting holds up a queue of the device and not the host."""

    def __init__(self, group: dist.ProcessGroup, index: int, size: int, device: torch.device = CPU) -> None:
        self.group, self.index, self.size, self.device = group, index, size, device
        self._last: Sum | None = None

    def start(self, tensors: Sequence[Tensor]) -> Sum:
        """Begin to sum tensors of one type over the replicas. All of them must do so in the same order."""
        if self._last is not None:
            self._last.add()  # while a block computed, what it waits for has arrived
        self._last = Sum(tensors, self)
        return self._last


class Sum:
    """A sum under way; `finish` puts it back into the tensors.

    Each replica gets a part of what all have, adds it in the order of the replicas, and sends the total to all. One
    process adds its micro-batches in that order, and so to the same bits. It is the traffic of an all-reduce, which has
    another order for every number.
    """

    def __init__(self, tensors: Sequence[Tensor], replicas: Replicas) -> None:
        self.tensors, self.size, self._group = list(tensors), replicas.size, replicas.group
        own = torch.cat([t.detach().reshape(-1) for t in tensors]).to(replicas.device)
        self._flat = pad(own, (0, -len(own) % self.size))
        self._parts = torch.empty_like(self._flat)
        self._work: Any = dist.all_to_all_single(self._parts, self._flat, group=self._group, async_op=True)
        self._added = False

    def add(self) -> None:
        """Add what the others have sent, and begin to send the total."""
        if self._added:
            return
        self._added = True
        with lost_process():
            self._work.wait()
        total, *others = self._parts.view(self.size, -1)
        for part in others:
            total += part
        self._work = dist.all_gather_into_tensor(self._flat, total, group=self._group, async_op=True)

    def finish(self) -> None:
        self.add()
        with lost_process():
            self._work.wait()
        sizes = [t.numel() for t in self.tensors]
        with torch.no_grad():
            for t, part in zip(self.tensors, self._flat[: sum(sizes)].split(sizes), strict=True):
                t.copy_(part.view(t.shape))


def moved(roots: Iterable[nn.Module]) -> list[Tensor]:
    """Buffers that each replica has moved by its own part of the batch: running means and variances of batch norms, and
    what a module names as `moving`. Those of a frozen module keep every bit."""
    modules = [m for root in roots for m in root.modules() if m.training]
    norms = [m for m in modules if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats]
    return [t for m in norms for t in (m.running_mean, m.running_var) if t is not None] + moving(modules)


def moving(modules: Iterable[nn.Module]) -> list[Tensor]:
    """The buffers that modules name as `moving`: training moves them, and later steps read them."""
    return [getattr(m, name) for m in modules for name in getattr(m, "moving", ())]
