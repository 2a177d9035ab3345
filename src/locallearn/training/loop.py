"""A whole run, in the order in which things happen."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from locallearn.config.settings import Settings
from locallearn.data import Data
from locallearn.engine import Learner
from locallearn.errors import RunError
from locallearn.probes import Probe
from locallearn.runtime.link import Pipe, Stopped
from locallearn.runtime.team import Team
from locallearn.stopping import Interrupted, stop_signals
from locallearn.training import checkpoint
from locallearn.training.console import Console, warn
from locallearn.training.environment import peak_memory_bytes
from locallearn.training.evaluate import evaluate
from locallearn.training.record import Recorder
from locallearn.training.run_folder import RunFolder

EVALUATION_BATCH = 256
GPU_CHECK_STEPS = 20  # a GPU is asked for non-finite losses so often; every question is a synchronisation


class Position(NamedTuple):
    """Where training goes on: `offset` steps of `epoch` are done, `seconds` of training were spent."""

    epoch: int = 0
    offset: int = 0
    seconds: float = 0.0


class Training:
    """One run: a learner, its data, and where its numbers go. In a pipeline every stage has one, and rank 0, the lowest
    stage, decides when to stop, records and saves for all."""

    def __init__(
        self,
        title: str,
        learner: Learner,
        data: Data,
        settings: Settings,
        probe: Probe,
        folder: RunFolder,
        recorder: Recorder | None,
        console: Console,
        team: Team,
    ) -> None:
        self.title = title
        self.learner = learner
        self.data = data
        self.settings = settings
        self.probe = probe
        self.folder = folder
        self.recorder = recorder
        self.console = console
        self.team = team
        self.steps_per_epoch = data.steps(settings.batch_size)
        self.position = Position()
        self.last_record: dict[str, float] = {}

    def run(self) -> dict[str, float]:
        """Train from the current position to the end; returns the last record. Raises Interrupted or RunError."""
        settings, learner = self.settings, self.learner
        last_step = min(settings.epochs * self.steps_per_epoch, settings.max_steps or math.inf)
        self.console.start(self.title, settings.epochs, self.steps_per_epoch, learner.step_count)
        with stop_signals() as stop, self.stopped_below(), learner.stage.random_state:
            while learner.step_count < last_step:
                epoch, offset, seconds = self.position
                started, first = time.perf_counter(), learner.step_count
                for inputs, labels in self.batches(epoch, offset):
                    learner.learn(inputs, labels)
                    self.console.advance(self.data.batch(settings.batch_size))
                    offset += 1
                    spent = seconds + time.perf_counter() - started
                    self.position = Position(epoch, offset, spent)
                    if learner.device.type == "cuda" and learner.step_count % GPU_CHECK_STEPS == 0:
                        self.check()
                    if offset == self.steps_per_epoch or learner.step_count >= last_step:
                        break
                    if stop.number and self.team.rank == 0:
                        self.stop(stop.number)
                    if settings.checkpoint.due(learner.step_count, self.steps_per_epoch):
                        self.save_or_warn()
                self.check()
                images = (learner.step_count - first) * self.data.batch(settings.batch_size)
                self.finish_epoch(images / (time.perf_counter() - started), last=learner.step_count >= last_step)
                if stop.number and self.team.rank == 0:
                    self.stop(stop.number)
        return self.last_record

    def batches(self, epoch: int, offset: int) -> Iterator[tuple[Tensor | None, Tensor | None]]:
        """The rest of an epoch; the stages above the lowest one get their batches from below."""
        if self.team.rank == 0:
            yield from self.data.batches(epoch, self.settings.batch_size, start=offset)
        else:
            yield from ((None, None) for _ in range(offset, self.steps_per_epoch))

    def stop(self, number: int) -> None:
        """End here on a signal, with the stages above."""
        link = self.learner.stage.link
        if isinstance(link, Pipe):
            link.stop(self.learner.step_count)
        self.team.share(number)
        self.save()
        raise Interrupted(number)

    @contextmanager
    def stopped_below(self) -> Iterator[None]:
        """Stop where the lowest stage has stopped. One that had nothing to learn may have counted further."""
        try:
            yield
        except Stopped as stopped:
            self.learner.step_count = stopped.step
            number = self.team.share()
            self.save()
            raise Interrupted(number) from stopped

    def finish_epoch(self, images_per_second: float, last: bool) -> None:
        """Evaluate, record, move on to the next epoch, and save when it is due."""
        settings, learner = self.settings, self.learner
        epoch, _, seconds = self.position
        learner.stage.drain()
        record: dict[str, float] = {"epoch": epoch + 1, "step": learner.step_count} | self.training_numbers()
        started = time.perf_counter()
        if last or (epoch + 1) % settings.evaluate_every == 0:
            for name, split in (("validation", self.data.validation), ("test", self.data.test)):
                found = evaluate(learner, self.data.evaluation(split, EVALUATION_BATCH))
                for key, value in found.items():
                    head, _, tail = key.rpartition("/")
                    record[f"{head}/{name}_{tail}" if head else f"{name}/{tail}"] = value
            record |= self.probe.look(learner, self.data)
        seconds += time.perf_counter() - started
        record["learning_rate"] = learner.blocks[-1].learning_rate
        record["images_per_second"] = images_per_second
        record["seconds"] = seconds
        record["peak_memory_bytes"] = peak_memory_bytes(learner.device)
        self.record(self.team.gather(record))
        for block in learner.blocks:
            block.reset()
        self.position = Position(epoch + 1, 0, seconds)
        if last or settings.checkpoint.due(learner.step_count, self.steps_per_epoch):
            self.save() if last else self.save_or_warn()

    def record(self, records: list[dict[str, float]]) -> None:
        """Join what the stages have to say of an epoch, and log it; empty at all ranks but 0."""
        if not records:
            return
        joined = {name: value for record in records for name, value in record.items()}
        joined |= {name: records[0][name] for name in ("images_per_second", "seconds")}
        joined["peak_memory_bytes"] = max(record["peak_memory_bytes"] for record in records)
        assert self.recorder is not None
        self.recorder.log(joined)
        self.console.epoch(joined)
        self.last_record = joined

    def training_numbers(self) -> dict[str, float]:
        """Losses and accuracies on the training batches of this epoch; `train/` is the last block that learns."""
        found = [(block.spec.index, block.read()) for block in self.learner.blocks]
        record: dict[str, float] = {}
        for _, numbers in found:
            record |= {f"train/{name}": value for name, value in numbers.items() if name in ("loss", "accuracy")}
        for k, numbers in found:
            record |= {f"block/{k:02d}/{name}": value for name, value in numbers.items()}
        return record

    def check(self) -> None:
        for block in self.learner.blocks:
            block.check()

    def save(self) -> None:
        """Write a checkpoint of this moment. Raises RunError if that fails."""
        self.learner.stage.drain()
        self.check()  # never replace a good checkpoint by a broken one
        tensors = self.learner.state()
        for name, tensor in tensors.items():
            if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
                raise RunError(f"{name} is not finite after step {self.learner.step_count}; lower optim.lr")
        tensors = self.team.collect(tensors)
        running = self.team.gather([block.running() for block in self.learner.blocks])
        if self.team.rank:
            return
        state: dict[str, Any] = {
            "epoch": self.position.epoch,
            "offset": self.position.offset,
            "seconds": self.position.seconds,
            "blocks": [block for blocks in running for block in blocks],
        }
        folder = self.folder.path / "checkpoints"
        checkpoint.save(folder, self.learner.step_count, tensors, state, self.settings.checkpoint.keep)

    def save_or_warn(self) -> None:
        """A periodic save that fails costs a warning; the next one is tried again."""
        try:
            self.save()
        except RunError as error:
            if "could not be written" not in str(error):
                raise
            warn(f"{error}; training goes on")

    def restore(self, saved: checkpoint.Checkpoint) -> None:
        """Go back to the moment of a checkpoint, exactly."""
        self.learner.load_state(saved.tensors)
        self.learner.step_count = saved.state["step"]
        self.position = Position(saved.state["epoch"], saved.state["offset"], saved.state["seconds"])
        for block in self.learner.blocks:
            block.resume(saved.state["blocks"][block.spec.index])
