"""The driver: runs a strategy's generators over the blocks of one process, for all four routes.

for each micro-batch, for each block upward:  run the forward half, detach what it hands on
    NONE       run the backward half now         -> its graph is freed before the next block runs
    NEIGHBOR   give what came back to the block below, and run its backward half
    CHAIN, BROADCAST   keep it
then, oldest micro-batch first:
    CHAIN      messages go downward, each backward half returns the one for the block below
    BROADCAST  the last block returns the error, every other one gets it

A stage with a link to others does the same for its own blocks: what would come from a block of another stage comes over
the link. The route alone decides when a stage must wait: under NONE never for the stage above, under NEIGHBOR only
before its last block's next forward (until then the feedback of the batch before may be under way), under CHAIN and
BROADCAST in every step.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from locallearn import seeds
from locallearn.contract import Feedback, Packet, Route, Step, Strategy
from locallearn.engine.block import TrainedBlock


class Link(Protocol):
    """What joins a stage to its neighbours. Messages arrive in the order in which they were sent; sending may wait for a
    neighbour that is behind, which bounds what is under way."""

    below: bool  # whether there is a stage below this one
    above: bool

    def take(self) -> Packet:
        """The next packet from the stage below."""
        ...

    def give(self, packet: Packet) -> None:
        """A packet, without a graph, for the stage above."""
        ...

    def listen(self) -> Feedback | None:
        """The next feedback from the stage above."""
        ...

    def answer(self, feedback: Feedback | None) -> None:
        """Feedback for the stage below."""
        ...


class Moment(NamedTuple):
    """When a half runs: it decides the random streams and the learning rate."""

    step: int
    progress: float
    micro: int


class Running(NamedTuple):
    """A block whose forward half is done."""

    block: TrainedBlock
    generator: Step
    moment: Moment


class Stage:
    """The blocks that live in one process, and the strategy that trains them.

    random_state  to be entered around many steps: PyTorch's global generators are then kept once, not at every step
    """

    def __init__(
        self,
        blocks: Sequence[TrainedBlock],
        strategy: Strategy,
        *,
        bf16: bool,
        micro_batches: int,
        link: Link | None = None,
    ) -> None:
        self.blocks = list(blocks)
        self.strategy = strategy
        self.micro_batches = micro_batches
        self.link = link
        self._bf16 = bf16
        self._phases = strategy.phases(blocks[0].spec.depth)
        self._plain = nullcontext()
        self.random_state = seeds.Undisturbed(blocks[0].device)
        self._late: Running | None = None  # waits for feedback that is under way from the stage above

    def step(self, inputs: Tensor | None, labels: Tensor | None, step: int, total: int | None) -> None:
        """Train on one batch: inputs [B, ...] and labels [B], which only the lowest stage needs. `step` of `total`
        decides phase and learning rate; without a total training stays at its beginning.

        Leaves PyTorch's global generators as they were.
        """
        done, of = (min(step, total), total) if total else (0, 1)
        phase = min(done * len(self._phases) // of, len(self._phases) - 1)
        progress = (done * len(self._phases) - phase * of) / of
        learning = self._phases[phase]
        for block in self.blocks:
            block.train(block.spec.index in learning)
        with self.random_state:
            kept = [
                self._up(packet, Moment(step, progress, micro), learning)
                for micro, packet in enumerate(self._packets(inputs, labels))
            ]
            for running in kept:
                self._down(running)

    def drain(self) -> None:
        """Wait for feedback that is still under way: afterwards every block has learned from every step."""
        if self._late is not None:
            with self.random_state:
                self._finish_late()

    def autocast(self) -> AbstractContextManager[object]:
        """bf16 autocast, or nothing. Entered around each half, so that a strategy never yields inside it."""
        return torch.autocast(self.blocks[0].device.type, torch.bfloat16) if self._bf16 else self._plain

    def _packets(self, inputs: Tensor | None, labels: Tensor | None) -> list[Packet | None]:
        """The micro-batches of a batch; None where they come from the stage below."""
        if self.link is not None and self.link.below:
            return [None] * self.micro_batches
        assert inputs is not None
        assert labels is not None
        if self.micro_batches == 1:
            return [Packet(inputs, labels)]
        chunks = zip(inputs.chunk(self.micro_batches), labels.chunk(self.micro_batches), strict=True)
        return [Packet(x, y) for x, y in chunks]

    def _up(self, packet: Packet | None, moment: Moment, learning: range) -> list[Running]:
        """One micro-batch through the blocks; returns the generators that still wait for feedback."""
        waiting: list[Running] = []
        if self.blocks[0].spec.index >= learning.stop:
            return waiting  # nothing comes this far up in this phase
        if packet is None:
            assert self.link is not None
            packet = self.link.take()
        else:
            self.blocks[0].step, self.blocks[0].progress, self.blocks[0].micro = moment
            self.blocks[0].reseed("begin")
            packet = self.strategy.begin(packet)
        for block in self.blocks[: learning.stop - self.blocks[0].spec.index]:
            if block is self.blocks[-1]:
                self._finish_late()
            block.step, block.progress, block.micro = moment
            if block.spec.index not in learning:  # below the learning ones: frozen
                with torch.no_grad(), self.autocast():
                    packet = packet.at(block.layers(packet.h))
                self._hand_over(block, packet, learning)
                continue
            block.reseed("forward")
            generator = self.strategy.step(block, packet)
            with self.autocast():
                send = next(generator)
            packet = send.ahead.detach()
            back = send.back
            del send  # it may hold the graph, which must be gone before the next block runs
            self._hand_over(block, packet, learning)
            self._waits(Running(block, generator, moment), back, waiting)
        return waiting

    def _waits(self, running: Running, back: Feedback | None, waiting: list[Running]) -> None:
        """After a forward half: what the route allows at once."""
        if self.strategy.route is Route.NONE:
            self._finish(running, None)
        elif self.strategy.route is not Route.NEIGHBOR:
            waiting.append(running)
        else:
            if waiting:
                self._finish(waiting.pop(), back)
            elif self.link is not None and self.link.below:
                self.link.answer(back)
            if running.block is not self.blocks[-1]:
                waiting.append(running)
            elif running.block.last:
                self._finish(running, None)
            else:
                self._late = running

    def _hand_over(self, block: TrainedBlock, packet: Packet, learning: range) -> None:
        """Send what the stage's last block emits, before that block learns from it: the stage above may start."""
        if block is self.blocks[-1] and block.spec.index < learning.stop - 1:
            assert self.link is not None
            self.link.give(packet)

    def _down(self, waiting: list[Running]) -> None:
        """The backward halves of one micro-batch."""
        if not waiting:
            return
        message: Feedback | None = None
        if not waiting[-1].block.last:
            assert self.link is not None
            message = self.link.listen()
        below = self.link is not None and self.link.below
        if self.strategy.route is Route.CHAIN:
            while waiting:
                message = self._finish(waiting.pop(), message)
            if below and self.link is not None:
                self.link.answer(message)
        elif self.strategy.route is Route.BROADCAST:
            if waiting[-1].block.last:
                message = self._finish(waiting.pop(), None)
            if below and self.link is not None:
                self.link.answer(message)
            while waiting:
                self._finish(waiting.pop(), message)

    def _finish_late(self) -> None:
        if self._late is not None:
            assert self.link is not None
            running, self._late = self._late, None
            self._finish(running, self.link.listen())

    def _finish(self, running: Running, message: Feedback | None) -> Feedback | None:
        """Run a backward half with its message; returns what it has for the block below."""
        block, generator, moment = running
        block.step, block.progress, block.micro = moment
        block.reseed("backward")
        try:
            with self.autocast():
                generator.send(message)
        except StopIteration as stop:
            return stop.value
        raise AssertionError(f"{type(self.strategy).__name__}.step yielded twice; it must yield exactly once")
