"""The driver: runs a strategy's generators over the blocks of one process, for all four routes.

for each micro-batch, for each block upward:  run the forward half, detach what it hands on
    NONE       run the backward half now         -> its graph is freed before the next block runs
    NEIGHBOR   give what came back to the block below, and run its backward half
    CHAIN, BROADCAST   keep it
then, oldest micro-batch first:
    CHAIN      messages go downward, each backward half returns the one for the block below
    BROADCAST  the last block returns the error, every other one gets it
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

from locallearn.contract import Feedback, Packet, Route, Step, Strategy
from locallearn.engine.block import TrainedBlock

Running = tuple[TrainedBlock, Step]


class Stage:
    """The blocks that live in one process, and the strategy that trains them."""

    def __init__(self, blocks: Sequence[TrainedBlock], strategy: Strategy, *, bf16: bool, micro_batches: int) -> None:
        self.blocks = list(blocks)
        self.strategy = strategy
        self.micro_batches = micro_batches
        self._bf16 = bf16
        self._phases = strategy.phases(len(self.blocks))

    def step(self, inputs: Tensor, labels: Tensor, step: int, total: int | None) -> None:
        """Train on one batch: inputs [B, ...], labels [B]. `step` of `total` decides phase and learning rate; without a
        total training stays at its beginning.

        Leaves PyTorch's global generators as they were.
        """
        done, of = (min(step, total), total) if total else (0, 1)
        phase = min(done * len(self._phases) // of, len(self._phases) - 1)
        progress = (done * len(self._phases) - phase * of) / of
        learning = self._phases[phase]
        for block in self.blocks:
            block.step, block.progress = step, progress
            block.train(block.spec.index in learning)
        devices = [self.blocks[0].device.index or 0] if self.blocks[0].device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            packets = zip(inputs.chunk(self.micro_batches), labels.chunk(self.micro_batches), strict=True)
            kept = [self._up(Packet(x, y), micro, learning) for micro, (x, y) in enumerate(packets)]
            for micro, running in enumerate(kept):
                self._down(running, micro)

    def autocast(self) -> AbstractContextManager[object]:
        """bf16 autocast, or nothing. Entered around each half, so that a strategy never yields inside it."""
        return torch.autocast(self.blocks[0].device.type, torch.bfloat16) if self._bf16 else nullcontext()

    def _up(self, packet: Packet, micro: int, learning: range) -> list[Running]:
        """One micro-batch through all blocks; returns the generators that still wait for feedback."""
        waiting: list[Running] = []
        self.blocks[0].micro = micro
        self.blocks[0].reseed("begin")
        packet = self.strategy.begin(packet)
        for block in self.blocks[: learning.stop]:
            block.micro = micro
            if block.spec.index not in learning:  # below the learning ones: frozen
                with torch.no_grad(), self.autocast():
                    packet = packet.at(block.layers(packet.h))
                continue
            block.reseed("forward")
            running = self.strategy.step(block, packet)
            with self.autocast():
                send = next(running)
            packet = send.ahead.detach()
            back = send.back
            del send  # it may hold the graph, which must be gone before the next block runs
            if self.strategy.route is Route.NONE:
                self._finish((block, running), None, micro)
            elif self.strategy.route is Route.NEIGHBOR:
                if waiting:
                    self._finish(waiting.pop(), back, micro)
                waiting.append((block, running))
            else:
                waiting.append((block, running))
        if self.strategy.route is Route.NEIGHBOR and waiting:
            self._finish(waiting.pop(), None, micro)
        return waiting

    def _down(self, waiting: list[Running], micro: int) -> None:
        """The backward halves of one micro-batch."""
        if self.strategy.route is Route.CHAIN:
            message: Feedback | None = None
            while waiting:
                message = self._finish(waiting.pop(), message, micro)
        elif self.strategy.route is Route.BROADCAST and waiting:
            error = self._finish(waiting.pop(), None, micro)
            while waiting:
                self._finish(waiting.pop(), error, micro)

    def _finish(self, running: Running, message: Feedback | None, micro: int) -> Feedback | None:
        """Run a backward half with its message; returns what it has for the block below."""
        block, step = running
        block.micro = micro
        block.reseed("backward")
        try:
            with self.autocast():
                step.send(message)
        except StopIteration as stop:
            return stop.value
        raise AssertionError(f"{type(self.strategy).__name__}.step yielded twice; it must yield exactly once")
