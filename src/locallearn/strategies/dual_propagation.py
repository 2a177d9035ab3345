"""Dual propagation: every unit has two states, one nudged towards the target and one away from it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from annotated_types import Interval
from torch import Tensor

from locallearn.contract import Block, Feedback, Heard, Packet, Send, Step, backward
from locallearn.objectives.base import exact
from locallearn.strategies.activations import activated, before_activation
from locallearn.strategies.squared import TowardsTarget


@dataclass(frozen=True)
class DualPropagation(TowardsTarget):
    """Dual propagation (Hoier, Staudt & Zach 2023, arXiv 2302.01228; 2024, arXiv 2402.08573).

    After a forward pass one sweep goes down. The activation s_k that ends block k gives its units two states; a_k is
    what this activation reads in the forward pass, and J_{k+1} the derivative of a_{k+1} by h_k:

        p_k, m_k = s_k(a_k +- gamma / 2 J_{k+1}^T (p - m)_{k+1}),    dW_k = -(da_k / dW)^T (p - m)_k / (gamma n)

    where a_k in dW_k is that of the mean states (p + m)_{k-1} / 2 below. The head is one more such layer, without an
    activation. J^T (p - m) goes down, and the mean states go up: as many rounds as blocks.

    gamma   how far the states are apart; with 1 all layers learn equally fast
    output  task: p, m = z -+ gamma e / 2 with e = dL_i/dz of each sample; squared: (2 z +- gamma t) / (2 +- gamma), the
            states of half the squared error
    """

    gamma: Annotated[float, Interval(gt=0, lt=2)] = 1.0
    output: Literal["task", "squared"] = "task"

    def rounds(self, depth: int) -> int:
        return depth

    def step(self, block: Block, packet: Packet) -> Step:
        spec = block.spec
        dyad = _Dyad(self, block, packet)
        heard: Heard = yield Send(packet.at(dyad.out), dyad.nudge(dyad.of_head()) if spec.last else None)
        for number in range(1, spec.depth + 1):
            mean, back = None, None
            if heard.above is not None:
                (pull,) = heard.above
                assert pull is not None
                back = dyad.nudge(pull)
                mean = packet.at(dyad.mean)
            if spec.index == 0 and number == max(1, spec.depth - 1):
                dyad.learn(packet)
            elif heard.below is not None:
                dyad.learn(heard.below)
            if number < spec.depth:
                heard = yield Send(mean, back)
        return None


class _Dyad:
    """The two states of what a block emits, of one batch."""

    def __init__(self, rule: DualPropagation, block: Block, packet: Packet) -> None:
        self.rule, self.block, self.packet = rule, block, packet
        self.again = block.again()
        self.count = block.spec.task.count(packet.y).clamp(min=1)
        self.x = packet.h.detach().requires_grad_(block.spec.index > 0)
        with exact(self.x), torch.set_grad_enabled(block.spec.index > 0):  # the first block answers nobody
            self.before = before_activation(block.layers, self.x)
        self.out = activated(block.layers, self.before.detach())

    def of_head(self) -> Tensor:
        """What the head sends down."""
        block = self.block
        assert block.head is not None
        h = self.out.clone().requires_grad_()
        with exact(h), torch.enable_grad():
            logits = block.head(h)
            self.apart = self._of_answer(logits.detach())
            return torch.autograd.grad(logits, h, self.apart)[0]

    def _of_answer(self, z: Tensor) -> Tensor:
        """p - m of the logits z [B, classes], 0 for samples without a label."""
        task, y, gamma = self.block.spec.task, self.packet.y, self.rule.gamma
        self.block.report(task.loss(z, y), z, y)
        if self.rule.output == "task":
            return -gamma * task.error(z, y) * task.count(y)
        target, known = task.context(y, z.shape[1]).to(z.dtype), (y >= 0).to(z.dtype)[:, None]
        return known * ((2 * z + gamma * target) / (2 + gamma) - (2 * z - gamma * target) / (2 - gamma))

    def nudge(self, pull: Tensor) -> Feedback | None:
        """Part the states by what comes from above; returns what goes down."""
        layers, before = self.block.layers, self.before.detach()
        away = self.rule.gamma / 2 * pull.double()  # float32 would lose a small one beside `before`
        plus, minus = (activated(layers, before + way) for way in (away, -away))
        self.difference, self.mean = (plus - minus).to(before.dtype), ((plus + minus) / 2).to(before.dtype)
        if self.block.spec.index == 0:
            return None
        with exact(self.x):
            back = torch.autograd.grad(self.before, self.x, self.difference)
        self.before = before
        return back

    def learn(self, below: Packet) -> None:
        """Learn from the states, at the mean ones of the block below."""
        block = self.block
        with self.again, exact(self.x):
            before = before_activation(block.layers, below.h)
            loss = (before * self.difference).sum()
            if block.head is not None:
                loss = loss + (block.head(self.mean) * self.apart).sum()
        if loss.requires_grad:  # not of a frozen block
            with exact(self.x):
                backward(-loss / (self.rule.gamma * self.count))
        block.update()
