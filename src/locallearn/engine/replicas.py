"""Replicas of a stage, which share every batch: gradients are summed over them while the next block computes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.distributed as dist
from torch import Tensor

from locallearn.errors import RunError


class LostProcess(RunError):
    """Another process of the run is gone; that process knows why."""


@contextmanager
def lost_process() -> Iterator[None]:
    """Raises LostProcess for the errors of torch.distributed."""
    try:
        yield
    except RuntimeError as error:
        raise LostProcess(f"lost another process ({str(error).splitlines()[0]})") from error


class Replicas:
    """The replicas of one stage, of which this one is number `index` of `size`."""

    def __init__(self, group: dist.ProcessGroup, index: int, size: int) -> None:
        self.group, self.index, self.size = group, index, size

    def start(self, tensors: Sequence[Tensor]) -> Sum:
        """Begin to sum tensors of one type over the replicas. All of them must do so in the same order."""
        return Sum(tensors, self.group, self.size)


class Sum:
    """A sum under way, in one message; `finish` puts it back into the tensors."""

    def __init__(self, tensors: Sequence[Tensor], group: dist.ProcessGroup, size: int) -> None:
        self.tensors, self.size = list(tensors), size
        self._flat = torch.cat([t.detach().reshape(-1) for t in tensors]).cpu()
        self._work = dist.all_reduce(self._flat, group=group, async_op=True)

    def finish(self) -> None:
        with lost_process():
            self._work.wait()
        parts = self._flat.split([t.numel() for t in self.tensors])
        with torch.no_grad():
            for t, part in zip(self.tensors, parts, strict=True):
                t.copy_(part.view(t.shape))
