"""What a user would run on two processes instead: GPipe and 1F1B of torch.distributed.pipelining, and DDP."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.distributed.pipelining import PipelineStage, Schedule1F1B, ScheduleGPipe
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from bench.subjects import optimizer_of
from locallearn.models import BlockModel


class Arrived(torch.autograd.Function):
    """The input of a stage; its gradient, which travels back, is contiguous whatever layout the units give it."""

    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        return x.view_as(x)

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> Tensor:
        return gradient.contiguous()


class Part(nn.Module):
    """One stage of a model. torch's pipelining refuses messages that are not contiguous, as channels_last maps are not:
    they travel as NHWC, which is the same memory."""

    def __init__(self, model: BlockModel, units: range, first: bool, last: bool) -> None:
        super().__init__()
        self.units, self.head = model.block(units), model.head if last else None
        self.first = first

    def forward(self, x: Tensor) -> Tensor:
        h = self.units(x if self.first else Arrived.apply(x).permute(0, 3, 1, 2))
        return h.permute(0, 2, 3, 1).contiguous() if self.head is None else self.head(h)


def micro_batched(
    model: BlockModel, cut: list[range], rank: int, x: Tensor, y: Tensor, kind: str, micro_batches: int
) -> Callable[[], None]:
    """One step of GPipe or 1F1B: the whole batch in micro-batches, then the optimizer."""
    part = Part(model, cut[rank], rank == 0, rank == len(cut) - 1).to(memory_format=torch.channels_last).train()
    stage = PipelineStage(part, rank, len(cut), torch.device("cpu"))
    schedule_of = {"gpipe": ScheduleGPipe, "1f1b": Schedule1F1B}[kind]
    schedule = schedule_of(stage, micro_batches, loss_fn=F.cross_entropy)
    optimizer = optimizer_of(part)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        if rank == 0:
            schedule.step(x)
        else:
            schedule.step(target=y)
        optimizer.step()

    return step


def replicated(model: nn.Module, rank: int, size: int, x: Tensor, y: Tensor) -> Callable[[], None]:
    """One step of DDP: each process has the whole model and its share of the batch."""
    x, y = x.chunk(size)[rank], y.chunk(size)[rank]
    model = model.to(memory_format=torch.channels_last).train()
    replica = DistributedDataParallel(model, gradient_as_bucket_view=True)
    optimizer = optimizer_of(model)

    def step() -> None:
        optimizer.zero_grad()
        F.cross_entropy(replica(x), y).backward()
        optimizer.step()

    return step
