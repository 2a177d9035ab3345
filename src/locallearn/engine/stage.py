"""The driver: runs a strategy's generators over the blocks of one process, for all routes.

for each micro-batch, for each block upward:  run the forward half, detach what it hands on
    NONE       run the backward half now         -> its graph is freed before the next block runs
    NEIGHBOR   give what came back to the block below, and run its backward half
    CHAIN, BROADCAST   keep it
    ROUNDS     keep it, and at the top exchange messages between neighbours (`rounds`)
then, oldest micro-batch first:
    CHAIN      messages go downward, each backward half returns the one for the block below
    BROADCAST  the last block returns the error, every other one gets it

A stage with a link to others does the same for its own blocks: what would come from a block of another stage comes over
the link. The route alone decides when a stage must wait: under NONE never for the stage above, under NEIGHBOR only
before its last block's next forward (until then the feedback of the batch before may be under way), under CHAIN and
BROADCAST in every step.

With a staleness n, CHAIN and BROADCAST do not wait either: block k of K runs the backward half of batch t after the
forward half of batch t + n (K - 1 - k), with the weights that its forward half had (delayed gradients, Huo et al. 2018,
arXiv 1804.10574, where n = 1).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from locallearn import seeds
from locallearn.contract import Feedback, Packet, Route, Strategy
from locallearn.engine.block import MicroStep, TrainedBlock, set_modes
from locallearn.engine.link import EMPTY_PACKET, Link
from locallearn.engine.promises import phases_of
from locallearn.engine.published import Publications, Reads
from locallearn.engine.replicas import Replicas, moving
from locallearn.engine.rounds import PendingBackward as PendingBackward
from locallearn.engine.rounds import exchange
from locallearn.errors import UserError
from locallearn.scaling import under


class Stage:
    """The blocks that live in one process, and the strategy that trains them.

    delays    steps by which the backward half of each block is late
    replicas  copies of this stage, each of which takes its part of every batch: the parts are further micro-batches,
              whose gradients are summed between the copies
    reads     what the blocks of all stages read of tensors of others, see `published`
    random_state  to be entered around many steps: PyTorch's global generators are then kept once, not at every step
    """

    def __init__(
        self,
        blocks: Sequence[TrainedBlock],
        strategy: Strategy,
        *,
        half: torch.dtype | None,
        micro_batches: int,
        link: Link | None = None,
        staleness: int = 0,
        replicas: Replicas | None = None,
        reads: Reads | None = None,
    ) -> None:
        if staleness and strategy.route not in (Route.CHAIN, Route.BROADCAST):
            raise UserError(
                f"runtime.staleness={staleness} delays feedback that a strategy waits for, but "
                f"{type(strategy).__name__} has route {strategy.route.value}: choose runtime.staleness=0, or a "
                "strategy of route chain or broadcast"
            )
        depth = blocks[0].spec.depth
        self.blocks = list(blocks)
        self.strategy = strategy
        self.micro_batches = micro_batches
        self.link = link
        self.replicas = replicas
        self.delays = [staleness * (depth - 1 - block.spec.index) for block in blocks]
        self.longest_delay = staleness * (depth - 1)
        self.half = half
        self._phases = phases_of(strategy, depth, blocks[0].trained)
        self._first = 0  # the lowest block that takes its step in this phase: feedback goes no further down
        self._plain = nullcontext()
        self.random_state = seeds.Undisturbed(blocks[0].device)
        self._late: PendingBackward | None = None  # waits for feedback that is under way from the stage above
        # Under CHAIN and BROADCAST, for each block: the halves that wait for feedback, and the feedback that is there.
        self._waiting: list[deque[PendingBackward]] = [deque() for _ in blocks]
        self._messages: list[deque[Feedback | None]] = [deque() for _ in blocks]
        self._now = 0
        self.reads = reads or {}
        self.published = Publications(strategy, blocks, self.reads, link)
        self._moving = [(b, t) for b in blocks for t in moving(m for root in b.roots() for m in root.modules())]
        self.kept: list[tuple[TrainedBlock, int, Tensor, Tensor]] = []  # updates before the step, and what moves then
        self._before = 0, [0], 0  # when the step began: what waited, messages for each block, updates of all blocks
        self.broken = ""  # why there is no further step, in a sentence: see `abandon`

    def step(self, inputs: Tensor | None, labels: Tensor | None, step: int, total: int | None) -> None:
        """Train on one batch: inputs [B, ...] and labels [B], which only the lowest stage needs. `step` of `total`
        decides phase and learning rate; without a total training stays at its beginning. Leaves PyTorch's global
        generators as they were."""
        done, of = (min(step, total), total) if total else (0, 1)
        phase = min(done * len(self._phases) // of, len(self._phases) - 1)
        progress = (done * len(self._phases) - phase * of) / of
        learning = self._phases[phase]
        self._first = learning.start
        set_modes(self.blocks, learning)
        self._now = step
        self._before = sum(map(len, self._waiting)), [*map(len, self._messages)], sum(b.updates for b in self.blocks)
        self.published.advance(step)
        self.kept = [(block, block.updates, t, t.clone()) for block, t in self._moving]
        with self.random_state:
            first = self.micro_batches * self.replicas.index if self.replicas is not None else 0
            for micro, packet in enumerate(self._packets(inputs, labels), first):
                self._up(packet, MicroStep(step, progress, micro), learning)
            self._down(step)
        self.published.done = step + 1

    def drain(self) -> None:
        """Wait for feedback and published tensors that are under way: afterwards every block has learned from every
        step. With a staleness training differs by this, so that it belongs at the same steps of every run."""
        with self.random_state:
            self._finish_late()
            for _ in range(self.longest_delay):
                self._now += 1
                self._down(self._now)
            for block in self.blocks:
                block.apply_sums()
        self.published.take_rest()

    def state(self) -> dict[str, Tensor]:
        """Every tensor beside the blocks' own that influences the next step: `replay.` or `published.` and a name."""
        return self.published.state()

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Put back what `state` gave. Raises UserError, with nothing changed, for what does not fit."""
        if (unknown := self.published.load_state(tensors)) is not None:
            raise does_not_fit(f"{unknown} is not part of it")

    def autocast(self) -> AbstractContextManager[object]:
        """Autocast, or nothing. Entered around each half, so that a strategy never yields inside it."""
        return torch.autocast(self.blocks[0].device.type, self.half) if self.half else self._plain

    def _packets(self, inputs: Tensor | None, labels: Tensor | None) -> list[Packet | None]:
        """The micro-batches of a batch; None where they come from the stage below."""
        if self.link is not None and self.link.below:
            return [None] * self.micro_batches
        assert inputs is not None
        assert labels is not None
        copies, own = (self.replicas.size, self.replicas.index) if self.replicas is not None else (1, 0)
        count = self.micro_batches * copies
        if count == 1:
            return [Packet(inputs, labels)]
        parts = [Packet(x, y) for x, y in zip(inputs.chunk(count), labels.chunk(count), strict=True)]
        return [*parts[own * self.micro_batches : (own + 1) * self.micro_batches]]

    def _up(self, packet: Packet | None, at: MicroStep, learning: range) -> None:
        """One micro-batch through the blocks: their forward halves, and what the route allows of the others."""
        if packet is None:
            assert self.link is not None
            packet = self.link.recv_forward()
        else:
            self.blocks[0].start(at, "begin")
            packet = self.strategy.begin(packet)
        below: PendingBackward | None = None  # under NEIGHBOR, the block that waits for this one
        halves: list[PendingBackward] = []  # under ROUNDS
        backs: list[Feedback | None] = []
        for i, block in enumerate(self.blocks[: max(0, learning.stop - self.blocks[0].spec.index)]):
            if block is self.blocks[-1]:
                self._finish_late()
            block.start(at)
            idle = block.frozen and self.strategy.route is Route.NONE
            if idle or block.spec.index not in learning:  # it only computes
                with torch.no_grad(), self.autocast():
                    packet = self.strategy.through(block, packet)
                self._send_forward(block, packet, learning)
                continue
            block.reseed("forward")
            generator = self.strategy.step(block, packet)
            with self._stashed(i), self.autocast(), under(block.scaler):
                send = next(generator, None)
            if send is None:
                raise UserError(f"{type(self.strategy).__name__}.step never yielded: it must yield at least once")
            assert send.ahead is not None, "the block above needs it"
            packet = send.ahead.detach()
            back = send.back
            del send  # it may hold the graph, which must be gone before the next block runs
            self._send_forward(block, packet, learning)
            pending = PendingBackward(block, generator, at)
            if self.strategy.route is Route.NONE:
                self._finish(pending, None)
            elif self.strategy.route is Route.NEIGHBOR:
                below = self._meet(below, pending, back)
            elif self.strategy.route is Route.ROUNDS:
                halves.append(pending)
                backs.append(back)
            else:
                self._waiting[i].append(pending)
        if halves:
            exchange(self.strategy, self.link, self.autocast, halves, backs)
        if self.link is not None and self.link.above and learning.stop <= self.blocks[-1].spec.index + 1:
            self.link.send_forward(EMPTY_PACKET)

    def _meet(
        self, below: PendingBackward | None, pending: PendingBackward, back: Feedback | None
    ) -> PendingBackward | None:
        """Under NEIGHBOR: give the block below what it waits for. Returns the one that now waits in this stage."""
        if below is not None:
            self._finish(below, back)
        elif self.link is not None and self.link.below and pending.block.spec.index > self._first:
            self.link.send_backward(back)
        if pending.block is not self.blocks[-1]:
            return pending
        if pending.block.last:
            self._finish(pending, None)
        else:
            self._late = pending
        return None

    def _stashed(self, i: int) -> AbstractContextManager[object]:
        """Where the backward half comes after later updates, its graph keeps copies of the weights that it has read."""
        if not self.delays[i]:
            return nullcontext()
        optimizers = [optimizer for optimizer in self.blocks[i].optimizers.values() if optimizer is not None]
        groups = [group for optimizer in optimizers for group in optimizer.param_groups]
        weights = {p.untyped_storage().data_ptr() for group in groups for p in group["params"]}
        return saved_tensors_hooks(lambda t: t.clone() if t.untyped_storage().data_ptr() in weights else t, lambda t: t)

    def _send_forward(self, block: TrainedBlock, packet: Packet, learning: range) -> None:
        """Send what the stage's last block emits, before that block learns from it: the stage above may start."""
        if block is self.blocks[-1] and block.spec.index < learning.stop - 1:
            assert self.link is not None
            self.link.send_forward(packet)

    def _down(self, now: int) -> None:
        """Under CHAIN and BROADCAST: the backward halves that are due after the forward halves of step `now`."""
        for _ in range(self.micro_batches):
            for i in reversed(range(len(self.blocks))):
                if self._waiting[i] and self._waiting[i][0].moment.step + self.delays[i] <= now:
                    pending = self._waiting[i].popleft()
                    feedback = self._finish(pending, self._message(i))
                    if self.strategy.route is Route.CHAIN:
                        self._pass_down(i - 1, feedback)
                    elif pending.block.last:
                        self._broadcast(i, feedback)

    def _message(self, i: int) -> Feedback | None:
        """The oldest feedback for block i of this stage."""
        if i < len(self.blocks) - 1:
            return self._messages[i].popleft()
        if self.blocks[i].last:
            return None
        assert self.link is not None
        message = self.link.recv_backward()
        if self.strategy.route is Route.BROADCAST:
            self._broadcast(i, message)
        return message

    def _broadcast(self, top: int, message: Feedback | None) -> None:
        """Under BROADCAST: to every block below the stage's last one, those of other stages first."""
        self._pass_down(-1, message)
        for i in range(top):
            self._pass_down(i, message)

    def _pass_down(self, i: int, message: Feedback | None) -> None:
        """Feedback for block i of this stage, or (-1) for the stage below; dropped where nobody listens."""
        if self.blocks[0].spec.index + i < self._first:
            return
        if i >= 0:
            self._messages[i].append(message)
        elif self.link is not None and self.link.below:
            self.link.send_backward(message)

    def _finish_late(self) -> None:
        if self._late is not None:
            assert self.link is not None
            pending, self._late = self._late, None
            self._finish(pending, self.link.recv_backward())

    def _finish(self, pending: PendingBackward, message: Feedback | None) -> Feedback | None:
        """Run a backward half with its message; returns what it has for the block below."""
        block, generator, at = pending
        block.start(at, "backward")
        try:
            with self.autocast(), under(block.scaler):
                generator.send(message)
        except StopIteration as stop:
            return stop.value
        raise UserError(f"{type(self.strategy).__name__}.step yielded twice: it must yield exactly once")


def does_not_fit(why: str) -> UserError:
    """What to raise for a state of another run."""
    return UserError(f"the checkpoint does not fit this run: {why}")
