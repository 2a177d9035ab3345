"""A whole run, in the order in which things happen."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from locallearn import names
from locallearn.config.settings import Settings
from locallearn.data import Data
from locallearn.engine import Learner
from locallearn.errors import RunError
from locallearn.probes import Moment
from locallearn.runs import checkpoint
from locallearn.runs.console import Console, warn
from locallearn.runs.folder import RunFolder
from locallearn.runs.recorder import Recorder
from locallearn.runtime.link import Pipe, Stopped
from locallearn.runtime.team import Team
from locallearn.training.environment import peak_memory_bytes
from locallearn.training.evaluate import evaluate
from locallearn.training.join import joined, sums
from locallearn.training.probing import Watch
from locallearn.training.stopping import Interrupted, stop_signals

EVALUATION_BATCH = 256


class Position(NamedTuple):
    """Where training goes on: `offset` steps of `epoch` are done, `seconds` of training were spent."""

    epoch: int = 0
    offset: int = 0
    seconds: float = 0.0


class Training:
    """One run: a learner, its data, and where its numbers go. In a pipeline every process has one, and rank 0, in the
    lowest stage, decides when to stop, records and saves for all.

    recorder  None where another process records
    whole     gives a learner with every block, for probes; only called where this one has a part of them
    """

    def __init__(
        self,
        title: str,
        learner: Learner,
        data: Data,
        settings: Settings,
        watch: Watch,
        folder: RunFolder,
        recorder: Recorder | None,
        console: Console,
        team: Team,
        whole: Callable[[], Learner] | None = None,
    ) -> None:
        self.title = title
        self.learner = learner
        self.data = data
        self.settings = settings
        self.watch = watch
        self.folder = folder
        self.recorder = recorder
        self.console = console
        self.team = team
        self.whole = whole
        self.steps_per_epoch = data.steps(settings.batch_size)
        self.position = Position()
        self.last_record: dict[str, float] = {}

    def run(self) -> dict[str, float]:
        """Train from the current position to the end; returns the last record. Raises Interrupted or RunError."""
        settings, learner = self.settings, self.learner
        all_steps = settings.epochs * self.steps_per_epoch
        last_step = min(all_steps, settings.max_steps or all_steps)
        self.console.start(
            self.title,
            settings.epochs,
            self.steps_per_epoch,
            first_step=learner.step_count,
            last_step=last_step,
            so_far=self.so_far,
        )
        with stop_signals(say=self.recorder is not None) as stop, self.stopped_below(), learner.stage.random_state:
            while learner.step_count < last_step:
                epoch, offset, seconds = self.position
                started, first = time.perf_counter(), learner.step_count
                for inputs, labels in self.batches(epoch, offset):
                    learner.learn(inputs, labels)
                    self.console.advance(self.data.batch(settings.batch_size))
                    offset += 1
                    spent = seconds + time.perf_counter() - started
                    self.position = Position(epoch, offset, spent)
                    if offset == self.steps_per_epoch or learner.step_count >= last_step:
                        break
                    if settings.checkpoint.due(learner.step_count, self.steps_per_epoch):
                        self.save_or_warn()
                    self.stop_if(stop.number)
                learner.check()
                trained = time.perf_counter() - started
                images = (learner.step_count - first) * self.data.batch(settings.batch_size)
                self.finish_epoch(trained, images / trained, last=learner.step_count >= last_step)
                self.stop_if(stop.number)
        return self.last_record

    def so_far(self) -> str:
        """Loss and accuracy of the running epoch at the highest block here that has a loss. Synchronises a GPU."""
        for block in reversed(self.learner.blocks):
            if "loss" in (numbers := block.read()):
                where = "" if block.last else f"block {block.spec.index} "
                accuracy = f"  acc {numbers['accuracy']:.3f}" if "accuracy" in numbers else ""
                return f"{where}loss {numbers['loss']:.3f}{accuracy}"
        return ""

    def batches(self, epoch: int, offset: int) -> Iterator[tuple[Tensor | None, Tensor | None]]:
        """The rest of an epoch; the stages above the lowest one get their batches from below."""
        if self.team.stage == 0:
            yield from self.data.batches(epoch, self.settings.batch_size, start=offset)
        else:
            yield from ((None, None) for _ in range(offset, self.steps_per_epoch))

    def stop_if(self, number: int) -> None:
        """End here if a signal has asked rank 0 for it; the lowest stage tells those above."""
        if self.team.stage == 0 and (number := self.team.agree(number)):
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
        number = self.team.share(number)
        if not self.learner.stage.longest_delay or self.position.offset == 0:
            self.save()
        raise Interrupted(number) from cause

    def finish_epoch(self, trained: float, images_per_second: float, last: bool) -> None:
        """Evaluate, record, move on to the next epoch, and save when it is due. `trained`: seconds of this epoch."""
        settings, learner = self.settings, self.learner
        self.mend_folder()
        epoch, _, seconds = self.position
        link = learner.stage.link
        waited = link.waited() / trained if isinstance(link, Pipe) else 0.0
        learner.stage.drain()
        started = time.perf_counter()
        numbers: dict[str, float] = {}
        if last or (epoch + 1) % settings.evaluate_every == 0:
            numbers = self.evaluate()
        seconds += time.perf_counter() - started  # probes do not count
        numbers |= self.look(Moment(epoch + 1, learner.step_count), last)
        reports = self.team.gather(
            {
                "blocks": [[block.spec.index, block.running()] for block in learner.blocks],
                "numbers": numbers,
                "learning_rate": learner.blocks[-1].learning_rate,
                "peak_memory_bytes": peak_memory_bytes(learner.device),
                "waiting": waited,
            }
        )
        if self.recorder is not None:
            record = {"epoch": epoch + 1, "step": learner.step_count} | joined(reports, self.team.replicas)
            record |= {"images_per_second": images_per_second, "seconds": seconds}
            self.recorder.log(record)
            self.console.epoch(record)
            self.last_record = record
        for block in learner.blocks:
            block.reset()
        if isinstance(link, Pipe):
            link.waited()  # from here on it counts for the next epoch
        self.position = Position(epoch + 1, 0, seconds)
        if last or settings.checkpoint.due(learner.step_count, self.steps_per_epoch):
            self.save() if last else self.save_or_warn()

    def evaluate(self) -> dict[str, float]:
        """Accuracies and losses of this stage's blocks on the validation and test sets; the first replica does it."""
        record: dict[str, float] = {}
        for name, split in ((names.VALIDATION, self.data.validation), (names.TEST, self.data.test)):
            if self.team.replica:
                break
            found = evaluate(self.learner, self.data.evaluation(split, EVALUATION_BATCH))
            record |= {names.on(name, key): value for key, value in found.items()}
        return record

    def look(self, at: Moment, last: bool) -> dict[str, float]:
        """What the probes see: in a pipeline rank 0 puts the blocks of all stages together for them."""
        due = self.watch.due(at.epoch, last)
        if not due:
            return {}
        if self.team.size == 1:
            return self.watch.look(due, self.learner, at)
        tensors = self.team.collect(self.learner.state())
        if self.team.rank:
            return {}
        assert self.whole is not None
        learner = self.whole()
        learner.load_state(tensors)
        learner.step_count = self.learner.step_count
        return self.watch.look(due, learner, at)

    def save(self) -> None:
        """Write a checkpoint of this moment. Raises RunError if that fails."""
        self.learner.stage.drain()
        self.learner.check()  # never replace a good checkpoint by a broken one
        tensors = self.learner.state()
        for name, tensor in tensors.items():
            if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
                raise RunError(f"{name} is not finite after step {self.learner.step_count}; lower optim.lr")
        tensors = self.team.collect(tensors)
        reports = self.team.gather([[block.spec.index, block.running()] for block in self.learner.blocks])
        if self.team.rank:
            return
        self.mend_folder()
        state: dict[str, Any] = {
            "epoch": self.position.epoch,
            "offset": self.position.offset,
            "seconds": self.position.seconds,
            "blocks": list(sums(reports, self.team.replicas).values()),
        }
        folder = self.folder.path / "checkpoints"
        checkpoint.save(folder, self.learner.step_count, tensors, state, self.settings.checkpoint.keep)

    def mend_folder(self) -> None:
        """A run folder that somebody has deleted is made again: the training state in memory is worth keeping."""
        if self.recorder is not None and self.folder.made_again():
            self.recorder.write_again()
            lost = "its earlier checkpoints and pictures are lost, its records are not"
            warn(f"{self.folder.path} was deleted while the run wrote it, and was made again; {lost}")

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
            if self.team.replica == 0:
                block.resume(saved.state["blocks"][block.spec.index])
