"""Worker processes that live as long as a measurement and run variants on command, all at the same time: the stages of
a pipeline, and what a user would run on two processes instead (GPipe and 1F1B of torch.distributed.pipelining, DDP)."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.pipelining import PipelineStage, Schedule1F1B, ScheduleGPipe
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from bench.method import Bench, Mark, mark
from bench.subjects import alone, bare, batch_of, by_hand, learner_of, model_of, optimizer_of
from locallearn.analysis.cost import SavedBytes
from locallearn.contract import Packet
from locallearn.engine import Learner
from locallearn.models import BlockModel
from locallearn.runtime.link import Pipe
from locallearn.training.environment import keep_freed_memory

Step = Callable[[], None]


class Held(NamedTuple):
    """Bytes of one process: weights that learn with their gradients and momentum, and what autograd keeps."""

    state: int
    kept: int

    @property
    def total(self) -> int:
        return self.state + self.kept


class Team:
    """Use it in a `with`: at the end the workers are gone. `allocator` is the harness's setting (else glibc's own)."""

    def __init__(self, bench: Bench, size: int, threads: int = 1, allocator: bool = True) -> None:
        self._bench = bench
        self._folder = tempfile.TemporaryDirectory(prefix="locallearn-bench-")
        spawn = get_context("spawn")
        self._pipes, self._workers = [], []
        for rank in range(size):
            ours, theirs = spawn.Pipe()
            about = (rank, size, threads, allocator, f"{self._folder.name}/meet")
            self._workers.append(spawn.Process(target=_serve, args=(theirs, *about), daemon=True))
            self._pipes.append(ours)
            self._workers[-1].start()
            theirs.close()
        bench.pids += [worker.pid for worker in self._workers]

    def __enter__(self) -> Team:
        return self

    def __exit__(self, *_: object) -> None:
        for worker in self._workers:
            worker.kill()
            worker.join()
            self._bench.pids.remove(worker.pid)
        self._folder.cleanup()

    def make(self, name: str, kind: str, **about: Any) -> None:
        """Make a variant in every worker."""
        self._ask("make", name, {"kind": kind, "quick": self._bench.quick, **about})

    def run(self, name: str, steps: int) -> list[list[Mark]]:
        """`steps` steps of a variant in all workers at the same time: by rank the marks, one before the first step."""
        return self._ask("run", name, steps, self._bench.pids)

    def weigh(self, name: str) -> list[Held]:
        """By rank what each worker holds at the peak of a step of a variant; counted."""
        return self._ask("weigh", name)

    def _ask(self, *command: Any) -> list[Any]:
        """Raises RuntimeError if a worker has died."""
        for pipe in self._pipes:
            pipe.send(command)
        try:
            return [pipe.recv() for pipe in self._pipes]
        except EOFError:
            raise RuntimeError(f"one of {len(self._workers)} workers has died; its message is above") from None


def _serve(pipe: Connection, rank: int, size: int, threads: int, allocator: bool, meet: str) -> None:
    """Obey until the parent is gone."""
    torch.set_num_threads(threads)
    if allocator:
        keep_freed_memory()
    if size > 1:
        wait = timedelta(seconds=120)
        dist.init_process_group("gloo", init_method=f"file://{meet}", rank=rank, world_size=size, timeout=wait)
    worker = Worker(rank, size)
    while True:
        what, *arguments = pipe.recv()
        pipe.send(getattr(worker, what)(*arguments))


class Worker:
    """The variants of one process, by name."""

    def __init__(self, rank: int, size: int) -> None:
        self.rank, self.size = rank, size
        self._variants: dict[str, tuple[Step, Callable[[], Step] | None]] = {}
        self._weights: dict[str, list[Tensor]] = {}

    def make(self, name: str, about: dict[str, Any]) -> None:
        """The step, and what must happen before a run and, as that returns it, after it."""
        kind = about["kind"]
        if kind == "messages":
            self._variants[name] = self._trips(about["wire"], about["bytes"], about["trips"])
            return
        model, (x, y) = model_of(about["model"], about["quick"]), batch_of(about["quick"], about.get("batch"))
        cut = [range(*pair) for pair in about.get("cut", [])]
        own = [range(*pair) for pair in about["stages"]][self.rank] if "stages" in about else None
        begin = None
        if kind == "naive":
            step, weights = bare(model, x, y, channels_last=False), model.parameters()
        elif kind in SCHEDULES:
            part = Part(model, cut[self.rank], self.rank == 0, self.rank == len(cut) - 1)
            step, weights = (
                micro_batched(part, self.rank, len(cut), x, y, kind, about["micro_batches"]),
                part.parameters(),
            )
        elif kind == "ddp":
            step, weights = replicated(model, self.rank, self.size, x, y), model.parameters()
        elif kind == "unconnected":
            learner, step = alone(model, about["strategy"], cut, own, x, y)
            weights = (p for _, p in learner.parameters())
        else:
            assert kind in ("harness", "pipeline"), kind
            micro = about.get("micro_batches", 1)
            learner = learner_of(model, about["strategy"], cut, own=own, micro_batches=micro)
            batch = (x, y) if self.rank == 0 else (None, None)
            step, weights = partial(learner.learn, *batch), (p for _, p in learner.parameters())
            begin = partial(self._open, learner, about.get("wire", "auto")) if own else None
        self._variants[name], self._weights[name] = (step, begin), [p for p in weights if p.requires_grad]

    def run(self, name: str, steps: int, pids: list[int]) -> list[Mark]:
        step, begin = self._variants[name]
        if self.size > 1:
            dist.barrier()
        end = begin() if begin is not None else None
        marks = [mark(pids)]
        for _ in range(steps):
            step()
            marks.append(mark(pids))
        if end is not None:
            end()
        return marks

    def weigh(self, name: str) -> Held:
        (step, begin), weights = self._variants[name], self._weights[name]
        if self.size > 1:
            dist.barrier()
        end = begin() if begin is not None else None
        with SavedBytes(weights) as saved:
            for _ in range(3):
                step()
        if end is not None:
            end()
        return Held(3 * sum(p.numel() * p.element_size() for p in weights), saved.peak)

    def _pipe(self, wire: str) -> Pipe:
        below = self.rank - 1 if self.rank else None
        above = self.rank + 1 if self.rank < self.size - 1 else None
        return Pipe(below, above, torch.device("cpu"), None, wire=wire)

    def _trips(self, wire: str, size: int, trips: int) -> tuple[Step, Callable[[], Step]]:
        """Messages there and back between the two workers."""
        message, pipe = Packet(torch.rand(size // 4), torch.arange(8)), self._pipe(wire)

        def step() -> None:
            for _ in range(trips):
                if self.rank == 0:
                    pipe.send_forward(message)
                    pipe.recv_backward()
                else:
                    pipe.send_backward((pipe.recv_forward().h,))

        return step, lambda: lambda: None

    def _open(self, learner: Learner, wire: str) -> Step:
        """A pipe for this run alone: those of several variants would take each other's messages."""
        pipe = learner.stage.link = self._pipe(wire)

        def close() -> None:
            learner.stage.drain()
            pipe.close()

        return close


SCHEDULES = {"gpipe": ScheduleGPipe, "1f1b": Schedule1F1B}


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
    they travel as NHWC, which is the same memory. Sequences travel as they are."""

    def __init__(self, model: BlockModel, units: range, first: bool, last: bool) -> None:
        super().__init__()
        self.units, self.head = model.block(units), model.head if last else None
        self.first = first

    def forward(self, x: Tensor) -> Tensor:
        if not self.first:
            x = Arrived.apply(x)
            x = x.permute(0, 3, 1, 2) if x.dim() == 4 else x
        h = self.units(x)
        if self.head is not None:
            return self.head(h)
        return h.permute(0, 2, 3, 1).contiguous() if h.dim() == 4 else h


def micro_batched(part: Part, rank: int, stages: int, x: Tensor, y: Tensor, kind: str, micro_batches: int) -> Step:
    """One step of GPipe or 1F1B: the whole batch in micro-batches, then the optimizer."""
    part = part.to(memory_format=torch.channels_last).train()
    stage = PipelineStage(part, rank, stages, torch.device("cpu"))
    schedule = SCHEDULES[kind](stage, micro_batches, loss_fn=F.cross_entropy)
    optimizer = optimizer_of(part)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        _ = schedule.step(x) if rank == 0 else schedule.step(target=y)
        optimizer.step()

    return step


def replicated(model: nn.Module, rank: int, size: int, x: Tensor, y: Tensor) -> Step:
    """One step of DDP: each process has the whole model and its share of the batch."""
    model = model.to(memory_format=torch.channels_last).train()
    replica = DistributedDataParallel(model, gradient_as_bucket_view=True)
    step, (x, y) = by_hand(replica), (whole.chunk(size)[rank] for whole in (x, y))
    return lambda: step(x, y)
