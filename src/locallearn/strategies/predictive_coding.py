"""Predictive coding: what blocks emit relaxes towards what both neighbours want, and then each learns its own error."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from annotated_types import Ge, Gt, Interval
from torch import Tensor

from locallearn.contract import Block, BlockSpec, Feedback, Heard, Packet, Send, Step, backward
from locallearn.errors import UserError
from locallearn.objectives.base import exact, wide
from locallearn.strategies.squared import TowardsTarget


@dataclass(frozen=True)
class PredictiveCoding(TowardsTarget):
    """Predictive coding (Rao & Ballard 1999; Whittington & Bogacz 2017) with the settings of pcx (Pinchetti et al.
    2024, arXiv 2407.01163).

    Block k predicts u_k = f_k(h_{k-1}) from the states h_{k-1} that the block below emits, e_k = h_k - u_k. For every
    sample E = sum_{k<K} |e_k|^2 / 2 + L(u_K), where u_K are the logits and L the loss of the task, or |t - u_K|^2 / 2.
    From h_k = u_k on, `steps` times h_k <- h_k - rate dE/dh_k with momentum, all blocks at once, where
    dE/dh_k = e_k - J_{k+1}^T e_{k+1}; then the weights learn from dE/dW_k = -(du_k/dW)^T e_k, a mean over the batch.
    The states stand at the borders of blocks: inside one there is exact backprop. A state goes up and the answer comes
    down: 2 `steps` rounds.

    steps     T; blocks further than T from the last one learn nothing (with order=each, than T - 1)
    rate      of the states
    momentum  of the states; it begins anew with every batch
    output    task: its loss; squared: half the squared error to the target
    beta      with output=squared the states of the last block are u_K + beta (t - u_K), of the first u_K, and weights
              learn from dE/dW / beta: 1 clamps the target, less nudges towards it, below 0 away from it
    order     after: weights learn once, at the end; each: with every step of the states, both from the same energy
              (iPC, Salvatori et al. 2024, arXiv 2212.00720)
    """

    steps: Annotated[int, Ge(1)] = 5
    rate: Annotated[float, Gt(0)] = 0.02
    momentum: Annotated[float, Interval(ge=0, lt=1)] = 0.35
    output: Literal["task", "squared"] = "task"
    beta: float = 1.0
    order: Literal["after", "each"] = "after"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.beta:
            raise UserError("strategy.beta=0: nothing would be nudged; choose another number, such as 1")

    @property
    def repeats(self) -> bool:  # type: ignore[override]
        return self.order == "each"

    def unread(self, specs: Sequence[BlockSpec]) -> Mapping[str, str]:
        unread = {} if self.output == "squared" else {"beta": "strategy.output=squared"}
        if len(specs) == 1:  # no state is free
            alone = ("rate", "momentum") if self.order == "each" else ("steps", "rate", "momentum")
            unread |= dict.fromkeys(alone, "blocks=2 or more")
        elif self.steps == 1:  # with order=each nothing reads the states that have moved
            once = ("momentum", "rate") if self.order == "each" else ("momentum",)
            unread |= dict.fromkeys(once, "strategy.steps=2 or more")
        return unread

    def rounds(self, depth: int) -> int:
        return 2 * self.steps

    def step(self, block: Block, packet: Packet) -> Step:
        state = _State(self, block, packet.y)
        state.predict(packet.h)
        heard: Heard = yield Send(packet.at(state.h), state.wish())
        for number in range(1, 2 * self.steps):
            if number % 2:  # what the block above wants is here
                state.relax(heard.above)
                heard = yield Send(packet.at(state.h), None)
            else:  # the states of the block below have changed
                state.again(heard.below)
                heard = yield Send(None, state.wish())
        if self.order == "after":
            state.again(heard.below)
            state.learn()
        return None


class _State:
    """What a block keeps of a batch: the states h that it emits, its prediction u of them, and what both cost."""

    def __init__(self, rule: PredictiveCoding, block: Block, y: Tensor) -> None:
        self.rule, self.block, self.y = rule, block, y
        self.count = block.spec.task.count(y).clamp(min=1)
        self.wanted: Tensor | None = None  # of the answer, with output=squared
        self.first = self.changed = True

    def again(self, below: Packet | None) -> None:
        """Predict anew, of other states below or with other weights. Block 0, whose input stays, predicts once for all
        steps of the states."""
        if below is not None or self.changed:
            with self.block.again():
                self.predict(self.x.detach() if below is None else below.h)
        elif not self.block.last:
            self._measure()

    def predict(self, below: Tensor) -> None:
        """u and the energy, with a graph until `wish` or `learn`."""
        self.x = below.detach().requires_grad_(self.block.spec.index > 0)
        with exact(self.x):  # 16 bits would lose what states tell each other
            self.out = self.block.layers(self.x)
            if self.first:
                self.h, self.velocity = self.out.detach(), torch.zeros_like(self.out)
            if self.block.last:
                self.energy = self._of_answer(self.out)
        if not self.block.last:
            self._measure()
        self.u, self.first, self.changed = self.out.detach(), False, False

    def _measure(self) -> None:
        with exact(self.x):
            self.energy = wide(self.h - self.out).square().sum() / 2

    def wish(self) -> Feedback | None:
        """dE/dh of the states below. With order=each the weights learn from the same energy."""
        each, wanted = self.rule.order == "each", None
        if self.block.spec.index > 0:
            wanted = torch.autograd.grad(self.energy, self.x, retain_graph=each)
        if each:
            self.learn()
        if wanted is not None:
            del self.energy
        return wanted

    def relax(self, above: Feedback | None) -> None:
        """One step of the states."""
        if above is None:  # of the last block, whose answer is no state
            return
        (wanted,) = above
        assert wanted is not None
        self.velocity = self.rule.momentum * self.velocity + (self.h - self.u) + wanted
        self.h = self.h - self.rule.rate * self.velocity

    def learn(self) -> None:
        beta = self.rule.beta if self.rule.output == "squared" else 1.0
        energy = self.energy / (self.count * beta)
        if not self.block.last:
            self.block.report(energy)
        if energy.requires_grad:  # a frozen block 0 learns nothing
            backward(energy)
        self.block.update()
        self.changed = True

    def _of_answer(self, out: Tensor) -> Tensor:
        """What the last block's answer costs, summed over the samples that have a label."""
        block, task = self.block, self.block.spec.task
        assert block.head is not None
        logits = block.head(out)
        if self.first:
            block.report(task.loss(logits, self.y), logits, self.y)
        if self.rule.output == "task":
            return task.loss(logits, self.y) * self.count
        if self.wanted is None:
            target = task.context(self.y, block.spec.classes).to(logits.dtype)
            self.wanted = logits.detach() + self.rule.beta * (target - logits.detach())
        known = (self.y >= 0).to(logits.dtype)[:, None]
        return (wide(self.wanted - logits).square() * known).sum() / 2
