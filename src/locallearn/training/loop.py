"""A whole run, in the order in which things happen."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from locallearn import names
from locallearn.config.experiment import Experiment
from locallearn.data import Data
from locallearn.engine import Learner
from locallearn.errors import RunError
from locallearn.probes import Moment
from locallearn.runs import checkpoint, files
from locallearn.runs.console import warn
from locallearn.runtime.link import Pipe, Stopped
from locallearn.runtime.world import World
from locallearn.training.environment import peak_memory_bytes
from locallearn.training.evaluate import epoch_record, evaluate_splits, sums_of_blocks
from locallearn.training.output import Output
from locallearn.training.probing import Probing
from locallearn.training.stopping import Interrupted, stop_signals


class Position(NamedTuple):
    """Where training goes on: `offset` steps of `epoch` are done, `seconds` of training were spent."""

    epoch: int = 0
    offset: int = 0
    seconds: float = 0.0


class Training:
    """The training of one learner. In a pipeline every process has one: rank 0, in the lowest stage, decides when to
    stop, records and saves for all."""

    def __init__(self, exp: Experiment, learner: Learner, data: Data, output: Output, watch: Probing, world: World):
        self.settings = exp.settings
        self.learner = learner
        self.data = data
        self.output = output
        self.watch = watch
        self.world = world
        self.title = _title(exp, learner, data, world)
        self.batch = data.batch(exp.settings.batch_size)
        self.steps_per_epoch = data.steps(exp.settings.batch_size)
        self.position = Position()
        self.last_record: dict[str, float] = {}

    def run(self) -> dict[str, float]:
        """Train from the current position to the end; returns the last record. Raises Interrupted or RunError."""
        settings, learner, console = self.settings, self.learner, self.output.console
        steps = settings.epochs * self.steps_per_epoch
        last_step = min(steps, settings.max_steps or steps)
        counts = {"first_step": learner.step_count, "last_step": last_step}
        console.start(self.title, settings.epochs, self.steps_per_epoch, **counts, so_far=self.so_far)
        with stop_signals(say=self.world.rank == 0) as stop, self.stopped_below(), learner.stage.random_state:
            while learner.step_count < last_step:
                epoch, offset, seconds = self.position
                started, first = time.perf_counter(), learner.step_count
                for inputs, labels in self.batches(epoch, offset):
                    learner.learn(inputs, labels)
                    console.advance(self.batch)
                    offset += 1
                    self.position = Position(epoch, offset, seconds + time.perf_counter() - started)
                    if offset == self.steps_per_epoch or learner.step_count >= last_step:
                        break
                    if settings.checkpoint.due(learner.step_count, self.steps_per_epoch):
                        self.save_or_warn()
                    self.stop_if(stop.number)
                learner.check()
                trained = time.perf_counter() - started
                images = (learner.step_count - first) * self.batch
                self.finish_epoch(trained, images / trained, last=learner.step_count >= last_step)
                self.stop_if(stop.number)
        return self.last_record

    def batches(self, epoch: int, offset: int) -> Iterator[tuple[Tensor | None, Tensor | None]]:
        """The rest of an epoch; the stages above the lowest one get their batches from below."""
        if self.world.stage == 0:
            yield from self.data.batches(epoch, self.settings.batch_size, start=offset)
        else:
            yield from ((None, None) for _ in range(offset, self.steps_per_epoch))

    def so_far(self) -> str:
        """Loss and score of the running epoch at the highest block here that has a loss. Synchronises a GPU."""
        score = self.learner.setup.task.score
        for block in reversed(self.learner.blocks):
            if "loss" in (metrics := block.read()):
                where = "" if block.last else f"block {block.spec.index} "
                short = "acc" if score == names.ACCURACY else score
                shown = f"  {short} {metrics[score]:.3f}" if score in metrics and score != names.LOSS else ""
                return f"{where}loss {metrics['loss']:.3f}{shown}"
        return ""

    def finish_epoch(self, trained: float, images_per_second: float, last: bool) -> None:
        """Evaluate, record, move on to the next epoch, and save when it is due. `trained`: seconds of this epoch."""
        settings, learner, link = self.settings, self.learner, self.learner.stage.link
        self.output.mend()
        epoch, _, seconds = self.position
        waiting = link.waited() / trained if isinstance(link, Pipe) else 0.0
        learner.stage.drain()
        started = time.perf_counter()
        numbers: dict[str, float] = {}
        if self.world.replica == 0 and (last or (epoch + 1) % settings.evaluate_every == 0):
            numbers = evaluate_splits(learner, self.data)
        seconds += time.perf_counter() - started  # probes do not count
        numbers |= self.watch.look(learner, Moment(epoch + 1, learner.step_count), last)
        reports = self.world.gather(
            {
                "blocks": self.sums(),
                "numbers": numbers,
                "learning_rate": learner.blocks[-1].learning_rate,
                "peak_memory_bytes": peak_memory_bytes(learner.device),
                "waiting": waiting,
            }
        )
        if self.output.recorder is not None:
            record: dict[str, float] = {"epoch": epoch + 1, "step": learner.step_count}
            record |= epoch_record(reports, self.world.replicas, learner.setup.task)
            record |= {"images_per_second": images_per_second, "seconds": seconds}
            self.output.recorder.log(record)
            self.output.console.epoch(record)
            self.last_record = record
        for block in learner.blocks:
            block.reset()
        if isinstance(link, Pipe):
            link.waited()  # from here on it counts for the next epoch
        self.position = Position(epoch + 1, 0, seconds)
        if last:
            self.save()
        elif settings.checkpoint.due(learner.step_count, self.steps_per_epoch):
            self.save_or_warn()

    def stop_if(self, number: int) -> None:
        """End here if a signal has asked rank 0 for it; the lowest stage tells those above."""
        if self.world.stage == 0 and (number := self.world.broadcast_to_replicas(number)):
            if isinstance(self.learner.stage.link, Pipe):
                self.learner.stage.link.stop(self.learner.step_count)
            self.interrupt(number)

    @contextmanager
    def stopped_below(self) -> Iterator[None]:
        """Stop where the lowest stage has stopped."""
        try:
            yield
        except Stopped as stopped:
            self.interrupt(0, stopped)

    def interrupt(self, number: int, cause: Exception | None = None) -> None:
        """Save and raise Interrupted with the signal that rank 0 knows. With a staleness nothing is saved between the
        steps where feedback under way is waited for anyway: `resume` goes on from the last of these."""
        number = self.world.broadcast(number)
        if not self.learner.stage.longest_delay or self.position.offset == 0:
            self.save()
        raise Interrupted(number) from cause

    def sums(self) -> list[tuple[int, dict[str, Any]]]:
        """Index and running sums of each block of this process."""
        return [(block.spec.index, block.running()) for block in self.learner.blocks]

    def save(self) -> None:
        """Write a checkpoint of this moment. Raises RunError if a number is not finite, NotSaved if writing fails."""
        self.learner.stage.drain()
        self.learner.check()  # never replace a good checkpoint by a broken one
        tensors = self.learner.state()
        for name, tensor in tensors.items():
            if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
                raise RunError(f"{name} is not finite after step {self.learner.step_count}; lower optim.lr")
        tensors = self.world.gather_tensors(tensors)
        reports = self.world.gather(self.sums())
        if self.world.rank == 0:
            self.output.mend()
            state = {**self.position._asdict(), "blocks": list(sums_of_blocks(reports).values())}
            folder = self.output.folder.checkpoints
            checkpoint.save(folder, self.learner.step_count, tensors, state, self.settings.checkpoint.keep)

    def save_or_warn(self) -> None:
        """A periodic save that fails costs a warning; the next one is tried again."""
        try:
            self.save()
        except checkpoint.NotSaved as error:
            warn(f"{error}; training goes on")

    def restore(self, saved: checkpoint.SavedCheckpoint) -> None:
        """Go back to the moment of a checkpoint, exactly."""
        self.learner.load_state(saved.tensors)
        self.learner.step_count = saved.state["step"]
        self.position = Position(*(saved.state[name] for name in Position._fields))
        for block in self.learner.blocks:
            if self.world.replica == 0:
                block.resume(saved.state["blocks"][block.spec.index])
        self.last_record = next(iter(deque(self.output.folder.records(files.METRICS), maxlen=1)), {})


def _title(exp: Experiment, learner: Learner, data: Data, world: World) -> str:
    """What is trained, on what and where: the first line on the terminal."""
    counts = {"stages": world.stages, "replicas": world.replicas}
    several = "".join(f"{count} {name}, " for name, count in counts.items() if count > 1)
    splits = f"{len(data.train)} train, {len(data.validation)} validation, {len(data.test)} test"
    title = f"{exp.names['strategy']} on {exp.names['model']} ({len(learner.cut)} blocks), {exp.names['data']} "
    return f"{title}({splits}), {several}{learner.device}" + (f"\n{data.left_out}" if data.left_out else "")
