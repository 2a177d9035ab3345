"""What a worker process does: makes variants on command, runs them, and answers with the marks of its steps."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from bench import rivals
from bench.method import Mark, mark
from bench.subjects import alone, bare, batch_of, learner_of, model_of
from locallearn.engine import Learner
from locallearn.runtime.link import Pipe
from locallearn.training.environment import keep_freed_memory

Step = Callable[[], None]


def serve(about: dict[str, Any]) -> None:
    """Obey until stdin ends. `about` is what `Team` says of this worker."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever prints does not end up among the answers
    torch.set_num_threads(about["threads"])
    if about["allocator"]:
        keep_freed_memory()
    if about["size"] > 1:
        meet = f"file://{about['meet']}"
        wait = timedelta(seconds=120)
        dist.init_process_group("gloo", init_method=meet, rank=about["rank"], world_size=about["size"], timeout=wait)
    worker = Worker(about["rank"], about["size"])
    for line in sys.stdin:
        command = json.loads(line)
        answers.write(json.dumps(worker.do(command)) + "\n")
        answers.flush()


class Worker:
    """The variants of one process, by name."""

    def __init__(self, rank: int, size: int) -> None:
        self.rank, self.size = rank, size
        self._variants: dict[str, tuple[Step, Callable[[], Step] | None]] = {}

    def do(self, command: dict[str, Any]) -> Any:
        """{"do": "make", "name", "kind", ...} or {"do": "run", "name", "steps"} -> marks, one before the first step."""
        name = command["name"]
        if command["do"] == "make":
            self._variants[name] = self._make(command)
            return None
        step, begin = self._variants[name]
        if self.size > 1:
            dist.barrier()
        end = begin() if begin is not None else None
        marks: list[Mark] = [mark(command["pids"])]
        for _ in range(command["steps"]):
            step()
            marks.append(mark(command["pids"]))
        if end is not None:
            end()
        return marks

    def _make(self, command: dict[str, Any]) -> tuple[Step, Callable[[], Step] | None]:
        """The step, and what must happen before a run and, as that returns it, after it."""
        kind = command["kind"]
        model, (x, y) = model_of(command["model"], command["quick"]), batch_of(command["quick"])
        if kind == "naive":
            return bare(model, x, y, channels_last=False), None
        cut = [range(*pair) for pair in command["cut"]]
        if kind == "harness":
            learner = learner_of(model, command["strategy"], cut)
            return (lambda: learner.learn(x, y)), None
        if kind in ("gpipe", "1f1b"):
            return rivals.micro_batched(model, cut, self.rank, x, y, kind, command["micro_batches"]), None
        if kind == "ddp":
            return rivals.replicated(model, self.rank, self.size, x, y), None
        own = [range(*pair) for pair in command["stages"]][self.rank]
        if kind == "unconnected":
            return alone(model, command["strategy"], cut, own, x, y)[1], None
        assert kind == "pipeline", kind
        micro = command.get("micro_batches", 1)
        learner = learner_of(model, command["strategy"], cut, own=own, micro_batches=micro)
        batch = (x, y) if self.rank == 0 else (None, None)
        return (lambda: learner.learn(*batch)), (lambda: self._open(learner))

    def _open(self, learner: Learner) -> Step:
        """A pipe for this run alone: those of several variants would take each other's messages."""
        below = self.rank - 1 if self.rank else None
        above = self.rank + 1 if self.rank < self.size - 1 else None
        pipe = learner.stage.link = Pipe(below, above, torch.device("cpu"), None)

        def close() -> None:
            learner.stage.drain()
            pipe.close()

        return close
