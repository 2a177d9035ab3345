"""A whole run, in the order in which things happen."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from locallearn import names
from locallearn.accelerator import is_cpu
from locallearn.config.experiment import Experiment
from locallearn.data import Data
from locallearn.engine import Learner
from locallearn.engine.link import Stopped
from locallearn.probes import Moment
from locallearn.runs import checkpoint, files
from locallearn.runtime.link import Pipe
from locallearn.runtime.world import World
from locallearn.training.calls import CalledOff, Calls
from locallearn.training.environment import peak_memory_bytes
from locallearn.training.evaluate import epoch_record
from locallearn.training.output import Output, title
from locallearn.training.probing import Probing
from locallearn.training.running import RunningNumbers
from locallearn.training.saving import Checkpoints, Position, sums_of
from locallearn.training.stopping import Interrupted, StopRequest, stop_signals

CALLED_OFF = -1
"""In the place of the number of a signal: a callback has asked for the end."""


class Training:
    """The training of one learner. In a pipeline every process has one: rank 0, in the lowest stage, decides when to
    stop, records and saves for all."""

    def __init__(
        self,
        exp: Experiment,
        learner: Learner,
        data: Data,
        output: Output,
        watch: Probing,
        world: World,
        calls: Calls,
    ) -> None:
        self.settings = exp.settings
        self.evaluations = exp.settings.evaluations
        self.saving = exp.settings.checkpoint.cadence
        self.learner = learner
        self.data = data
        self.output = output
        self.watch = watch
        self.world = world
        self.calls = calls
        self.title = title(exp, learner, data, world)
        self.batch = data.batch(exp.settings.batch_size)
        self.steps_per_epoch = data.steps(exp.settings.batch_size)
        steps = exp.settings.epochs * self.steps_per_epoch
        self.last_step = min(steps, exp.settings.max_steps or steps)
        self.running = RunningNumbers(exp.settings.log_every or 0, learner, self.batch, world, self.log)
        self.checkpoints = Checkpoints(
            exp.settings.checkpoint, learner, output, world, calls, self.running, self.last_step
        )
        self.position = Position()
        self.paused = 0.0
        self.known: dict[str, float] | None = None  # the evaluation after which a callback has ended the epoch
        self.last_record: dict[str, Any] = {}

    def run(self) -> dict[str, Any]:
        """Train from the current position to the end; returns the last record. Raises Interrupted or RunError."""
        settings, learner, console = self.settings, self.learner, self.output.console
        counts = {"first_step": learner.step_count, "last_step": self.last_step}
        score = learner.setup.task.score
        console.start(self.title, settings.epochs, self.steps_per_epoch, **counts, so_far=self.so_far, score=score)
        with stop_signals(say=self.world.rank == 0) as stop, learner.stage.random_state, self.checkpoints:
            self.tell("start")
            while learner.step_count < self.last_step and not self.position.stopped:
                started, first, self.paused = time.perf_counter(), learner.step_count, 0.0
                last = self.rest_of_epoch(stop, started)
                learner.check()
                trained = time.perf_counter() - started - self.paused
                images = (learner.step_count - first) * self.batch
                self.finish_epoch(trained, images / trained, last)
                self.stop_if(stop.number)
        return self.last_record

    def rest_of_epoch(self, stop: StopRequest, started: float) -> bool:
        """The steps that are left of the epoch; whether it is the last one."""
        epoch, offset, seconds, _ = self.position
        self.running.start()
        try:
            with self.stopped_below():
                for inputs, labels in self.batches(epoch, offset):
                    self.learner.learn(inputs, labels)
                    self.output.console.advance(self.batch)
                    offset += 1
                    self.position = Position(epoch, offset, seconds + time.perf_counter() - started)
                    if self.calls:
                        self.tell("step")
                    if offset == self.steps_per_epoch or self.learner.step_count >= self.last_step:
                        break
                    self.inside_epoch()
                    self.stop_if(stop.number)
        except CalledOff:
            return True
        return self.learner.step_count >= self.last_step

    @property
    def epoch(self) -> float:
        """Epochs that are done, with a fraction inside one."""
        return self.position.epoch + self.position.offset / self.steps_per_epoch

    def tell(self, moment: str, record: dict[str, Any] | None = None) -> None:
        """Call that method of every callback."""
        next_offset = self.position.offset % self.steps_per_epoch + 1
        ends = next_offset == self.steps_per_epoch or self.learner.step_count + 1 >= self.last_step
        self.calls.records = ends or self.running.due(next_offset)
        self.calls.tell(moment, self.epoch, record)

    def inside_epoch(self) -> None:
        """What is due after a step that is not the last of its epoch."""
        step = self.learner.step_count
        self.checkpoints.check()
        if self.running.due(self.position.offset):
            self.running.record(self.epoch, self.position.seconds, sums_of(self.learner), self.calls.taken())
        if self.evaluations.unit == "it" and self.evaluations.due(step, self.steps_per_epoch):
            self.evaluate_inside()
        if self.saving.due(step, self.steps_per_epoch):
            self.checkpoints.save(self.position, needed=False)

    def evaluate_inside(self) -> None:
        """Evaluate and record inside an epoch. Raises CalledOff."""
        started = time.perf_counter()
        self.learner.stage.drain()
        own = self.evaluated()
        reports = self.world.gather(own)
        self.running.flush()
        record = {"epoch": self.epoch, "step": self.learner.step_count}
        for numbers in reports:
            record |= numbers
        self.tell("evaluation", record)
        reason, more = self.calls.decided()
        if self.output.recorder is not None:
            self.log(record | more)
        self.checkpoints.save_kept(self.position)
        self.position = self.position._replace(stopped=reason)
        paused = time.perf_counter() - started
        self.running.pause(paused)
        self.paused += paused
        if reason:
            self.known = own
            raise CalledOff

    def evaluated(self) -> dict[str, float]:
        """The numbers of this process on the validation and the test split, with those of callbacks."""
        return self.calls.evaluate() | self.calls.measured()

    def log(self, record: dict[str, Any]) -> None:
        """Record at rank 0, and show."""
        assert self.output.recorder is not None
        self.output.recorder.log(record)
        self.output.console.record(record)

    def batches(self, epoch: int, offset: int) -> Iterator[tuple[Tensor | None, Tensor | None]]:
        """The rest of an epoch; the stages above the lowest one get their batches from below."""
        if self.world.stage == 0:
            yield from self.data.batches(epoch, self.settings.batch_size, start=offset)
        else:
            yield from ((None, None) for _ in range(offset, self.steps_per_epoch))

    def so_far(self) -> str:
        """Loss and score of the running epoch at the highest block here that has a loss. On a GPU it is left to the
        records inside the epoch, which synchronise anyway."""
        if self.running.every and not is_cpu(self.learner.device):
            return ""
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
        learner, link = self.learner, self.learner.stage.link
        self.output.mend()
        epoch, _, seconds, stopped = self.position
        waiting = link.waited() / trained if isinstance(link, Pipe) else 0.0
        learner.stage.drain()
        started = time.perf_counter()
        evaluated = last or self.evaluations.due(learner.step_count, self.steps_per_epoch)
        known, numbers = self.known is not None, self.known or {}
        if evaluated and not known:
            numbers = self.evaluated()
        seconds += time.perf_counter() - started  # probes do not count
        reports = self.world.gather(
            {
                "blocks": sums_of(learner),
                "numbers": numbers | self.calls.taken(),
                "learning_rate": learner.blocks[-1].learning_rate,
                "peak_memory_bytes": peak_memory_bytes(learner.device),
                "waiting": waiting,
            }
        )
        self.running.flush()

        def record() -> dict[str, Any]:
            head = {"epoch": epoch + 1, "step": learner.step_count}
            tail = {"images_per_second": images_per_second, "seconds": seconds}
            return head | epoch_record(reports, self.world.replicas, learner.setup.task) | tail if reports else {}

        if self.calls:
            told = self.tell_of_epoch(record, reports, evaluated, known)
            stopped = stopped or told
            stopped = stopped if learner.step_count < self.last_step else ""
            last = last or bool(stopped)
        looked = self.watch.look(learner, Moment(epoch + 1, learner.step_count), last)
        if self.output.recorder is not None:
            reports[0]["numbers"] |= looked
            self.last_record = record()
            self.log(self.last_record)
        for block in learner.blocks:
            block.reset()
        self.running.reset()
        if isinstance(link, Pipe):
            link.waited()  # from here on it counts for the next epoch
        self.position = Position(epoch + 1, 0, seconds, stopped)
        self.checkpoints.save_kept(self.position)
        if last or self.saving.due(learner.step_count, self.steps_per_epoch):
            self.checkpoints.save(self.position, needed=last)

    def tell_of_epoch(
        self, record: Callable[[], dict[str, Any]], reports: list[dict[str, Any]], evaluated: bool, known: bool
    ) -> str:
        """Call the callbacks at the end of an epoch, unless they know its evaluation; returns why one of them stops the
        run, which is then evaluated."""
        if evaluated and not known:
            self.tell("evaluation", record())
        self.tell("epoch", record())
        reason, more = self.calls.decided()
        if reason and not evaluated:
            for report, numbers in zip(reports, self.world.gather(self.evaluated()), strict=True):
                report["numbers"] |= numbers
            self.tell("evaluation", record())
        for report in reports[:1]:
            report["numbers"] |= more
        return reason

    def stop_if(self, number: int) -> None:
        """End here if a signal, or a callback inside an epoch, has asked rank 0 for it; the lowest stage tells those
        above."""
        if self.calls.asked and not self.position.stopped and self.world.rank == 0:
            number = number or CALLED_OFF
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
        steps where feedback under way is waited for anyway: `resume` goes on from the last of these. Raises CalledOff
        where it was no signal but a callback."""
        number = self.world.broadcast(number)
        if number == CALLED_OFF:
            raise CalledOff from cause
        if not self.learner.stage.longest_delay or self.position.offset == 0:
            self.checkpoints.save(self.position)
        raise Interrupted(number) from cause

    def restore(self, saved: checkpoint.SavedCheckpoint) -> None:
        """Go back to the moment of a checkpoint, exactly."""
        self.position = self.checkpoints.restore(saved)
        records = (record for record in self.output.folder.records(files.METRICS) if files.of_epoch(record))
        self.last_record = next(iter(deque(records, maxlen=1)), {})
