"""Equilibrium propagation: states settle without and with the target, and weights learn from the difference."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal, NamedTuple

import torch
from annotated_types import Ge, Gt, Interval
from torch import Tensor

from locallearn.contract import Block, BlockSpec, Heard, Packet, Send, Settling, Step, backward
from locallearn.objectives.base import exact
from locallearn.options import OneOf
from locallearn.strategies.activations import before_activation
from locallearn.strategies.squared import TowardsTarget


def _hard_sigmoid(s: Tensor) -> Tensor:
    return s.clamp(0, 1)


def _sigmoid(s: Tensor) -> Tensor:
    return torch.sigmoid(4 * s - 2)


def _linear(s: Tensor) -> Tensor:
    return s


ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "hard_sigmoid": _hard_sigmoid,
    "sigmoid": _sigmoid,
    "linear": _linear,
}


@dataclass(frozen=True)
class EquilibriumPropagation(TowardsTarget):
    """Equilibrium propagation (Scellier & Bengio 2017, arXiv 1602.05179), centred (Laborieux et al. 2021, arXiv
    2006.03824).

    What block k emits are states s_k, and f_k is the block without the activation that ends it. For every sample

        Phi = sum_k <s_k, f_k(s_{k-1})>,    s_k <- rho(dPhi / ds_k) = rho(f_k(s_{k-1}) + J_{k+1}^T s_{k+1}),

    all blocks at once, each step going `rate` of the way; s_0 is the input, and the states start from a forward pass.
    `free` steps lead to s*, which answers; `nudged` steps from there lead to s+, where -beta dL_i/ds moves the states
    at the top as well, and as many to s-, with -beta. Weights learn from d(Phi(s-) - Phi(s+)) / dW / (2 beta n), and a
    head that only reads learns from L at s+ and s-.

    free, nudged  T1 and T2
    rate          of the states; with 1 they may swing between two values instead of settling
    beta          how strongly the target pulls
    centred       s+ and s-; else s* takes the place of s-, and beta that of 2 beta
    activation    rho of all states: clip(s, 0, 1), 1 / (1 + exp(2 - 4 s)), or none
    output        task: the head reads the states of the last block, and L is the loss of the task; squared: the logits
                  are states as well, and L is half the squared error to the target

    Both blocks at a border hold its states, and each sends the other its part of what moves them: one round for a step.
    """

    free: Annotated[int, Ge(1)] = 20
    nudged: Annotated[int, Ge(1)] = 10
    rate: Annotated[float, Interval(gt=0, le=1)] = 0.5
    beta: Annotated[float, Gt(0)] = 0.5
    centred: bool = True
    activation: Annotated[str, OneOf(ACTIVATIONS)] = "hard_sigmoid"
    output: Literal["task", "squared"] = "task"
    exact: ClassVar[bool] = True

    def unread(self, specs: Sequence[BlockSpec]) -> Mapping[str, str]:
        alone = len(specs) == 1 and self.output == "task"  # nothing moves the only states
        return {"free": "blocks=2 or more"} if alone else {}

    def rounds(self, depth: int) -> int:
        return self.free + self.nudged * (2 if self.centred else 1)

    def settles(self, depth: int) -> int:
        return self.free

    def step(self, block: Block, packet: Packet) -> Step:
        states = _Relaxation(self, block, packet, block.again)
        free = yield from states.settled(states.first, self.free, 0.0)
        states.report(free)
        plus = yield from states.settled(free, self.nudged, self.beta)
        minus = (yield from states.settled(free, self.nudged, -self.beta)) if self.centred else free
        states.learn(plus, minus)
        return None

    def settle(self, block: Block, packet: Packet) -> Settling:
        states = _Relaxation(self, block, packet, nullcontext)
        free = yield from states.settled(states.first, self.free, 0.0)
        return packet.at(free.own, *(() if free.answer is None else (free.answer,)))

    def predict(self, block: Block, packet: Packet) -> Tensor | None:
        if self.output == "squared" and block.last:
            return packet.side[0]
        return super().predict(block, packet)


class _States(NamedTuple):
    """What a block knows: the states below (of block 0 the input), its own, and at the top those of the answer."""

    below: Tensor
    own: Tensor
    answer: Tensor | None = None


class _Forces(NamedTuple):
    """What moves states: its own from within the block, those below, and at the top its own and those of the answer."""

    up: Tensor
    down: Tensor | None
    top: Tensor | None = None
    answer: Tensor | None = None


class _Relaxation:
    """The states of a block for one batch.

    first   of the forward pass
    drive   f_0 of the input, which stays; of other blocks nothing
    change  of its own states in the last round, a mean []
    """

    def __init__(
        self,
        rule: EquilibriumPropagation,
        block: Block,
        packet: Packet,
        again: Callable[[], AbstractContextManager[object]],
    ) -> None:
        self.rule, self.block, self.packet, self.again = rule, block, packet, again
        self.rho = ACTIVATIONS[rule.activation]
        self.inner = block.spec.index > 0
        below = self.rho(packet.h) if self.inner else packet.h
        with torch.no_grad(), exact(packet.h):
            up = before_activation(block.layers, below)
            own = self.rho(up)
            logits = None if block.head is None else block.head(own)
        answer = None if logits is None or rule.output == "task" else self.rho(logits)
        self.first = _States(below, own, answer)
        self.drive = None if self.inner else up

    def run(self, below: Tensor, own: Tensor, drive: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """f_k of the states below, where it is not known, and at the top the head's logits of its own."""
        with self.again():
            up = before_activation(self.block.layers, below) if drive is None else drive
            return up, None if self.block.head is None else self.block.head(own)

    def settled(self, states: _States, rounds: int, beta: float) -> Generator[Send, Heard, _States]:
        """Let them settle for so many rounds."""
        for _ in range(rounds):
            forces = self.forces(states, beta)
            heard = yield Send(self.packet.at(forces.up), None if forces.down is None else (forces.down,))
            before, states = states.own, self.moved(states, forces, heard)
            self.change = (states.own - before).abs().mean()
        return states

    def forces(self, states: _States, beta: float) -> _Forces:
        """What this block says of the states on both sides of it, at the top together with the target."""
        below, own = states.below.detach().requires_grad_(self.inner), states.own.detach().requires_grad_()
        with exact(own), torch.enable_grad():
            up, logits = self.run(below, own, self.drive)
            down = torch.autograd.grad(up, below, states.own)[0] if self.inner else None
            if logits is None:
                return _Forces(up.detach(), down)
            if states.answer is not None:
                top = torch.autograd.grad(logits, own, states.answer)[0]
                return _Forces(up.detach(), down, top, logits.detach() - beta * self.away(states.answer))
            if not beta:
                return _Forces(up.detach(), down)
            task, y = self.block.spec.task, self.packet.y
            (top,) = torch.autograd.grad(task.loss(logits, y) * task.count(y), own)
        return _Forces(up.detach(), down, -beta * top)

    def away(self, answer: Tensor) -> Tensor | float:
        """How far the states of the answer [B, classes] are from the target, 0 without a label."""
        y = self.packet.y
        if not y.numel():
            return 0.0
        target = self.block.spec.task.context(y, answer.shape[1]).to(answer.dtype)
        return (answer - target) * (y >= 0).to(answer.dtype)[:, None]

    def moved(self, states: _States, forces: _Forces, heard: Heard) -> _States:
        """The states after a round. Both blocks at a border come to the same bits."""
        below, answer = states.below, None
        if forces.down is not None:
            drive = self.packet.h if heard.below is None else heard.below.h  # on the way up it was the packet
            below = self.towards(below, drive + forces.down)
        pull = forces.top if heard.above is None else heard.above[0]
        own = self.towards(states.own, forces.up if pull is None else forces.up + pull)
        if states.answer is not None and forces.answer is not None:
            answer = self.towards(states.answer, forces.answer)
        return _States(below, own, answer)

    def towards(self, states: Tensor, force: Tensor) -> Tensor:
        """The states after a step. An infinite force, which a bounded activation would hide, makes them NaN."""
        return torch.lerp(states, torch.add(self.rho(force), force, alpha=0), self.rule.rate)

    def report(self, states: _States) -> None:
        """What the block answers in the free phase, and whether it has settled."""
        block, y = self.block, self.packet.y
        block.note("unsettled", self.change)
        logits = states.answer
        if block.head is not None:
            with torch.no_grad(), exact(states.own):
                logits = self.run(states.below, states.own)[1] if logits is None else logits
            assert logits is not None
            block.report(block.spec.task.loss(logits, y), logits, y)

    def learn(self, plus: _States, minus: _States) -> None:
        """Learn from the difference of two states."""
        rule, count = self.rule, self.block.spec.task.count(self.packet.y).clamp(min=1)
        with exact(plus.own):
            (high, *losses), (low, *others) = self.phi(plus), self.phi(minus)
            loss = (low - high) / ((2 if rule.centred else 1) * rule.beta * count)
            losses += others if rule.centred else []
            if losses:
                loss = loss + sum(losses) / len(losses)
            if loss.requires_grad:  # not of a frozen block
                backward(loss)
        self.block.update()

    def phi(self, states: _States) -> list[Tensor]:
        """This block's part of Phi, of the samples that have a label; then the loss of a head that only reads."""
        y, (up, logits) = self.packet.y, self.run(states.below, states.own)
        known = (y >= 0).to(up.dtype)
        own = ((states.own * up).flatten(1).sum(1) * known).sum()
        if logits is None:
            return [own]
        if states.answer is None:
            return [own, self.block.spec.task.loss(logits, y)]
        return [own + ((states.answer * logits).sum(1) * known).sum()]
