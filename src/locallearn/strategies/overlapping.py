"""Overlapping local updates: a block learns from its own loss and from those of the next blocks, no further."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from annotated_types import Ge, Interval
from torch import Tensor, nn

from locallearn import scaling
from locallearn.auxiliary import ConvFC, Linear
from locallearn.contract import Block, BlockSpec, Feedback, Packet, Route, Send, Step, backward, enter
from locallearn.objectives.base import head
from locallearn.strategies.greedy import DGL
from locallearn.task import POSITION

OWN = "own_classifier"


@dataclass(frozen=True)
class Overlapping(DGL):
    """LoCo (Xiong, Ren & Urtasun 2020, arXiv 2008.01342), overlapping updates (Laskin et al. 2020, arXiv 2012.03837)
    and interlocking backpropagation (Gomez et al. 2022, arXiv 2010.04116, "pairwise" and "n-wise").

    Block k's units (of K, from 0) learn from the local losses L_k ... L_m, m = min(k + reach, K) - 1, back through the
    blocks between; every head learns from its own loss. The last block's loss is the true one (or, with an objective
    that reads no labels, that objective, and the head reads out). `reach=1` is DGL; `combine=next` with a reach of all
    blocks is backprop for the units, `combine=sum` is deep supervision with weight 1. One forward per block and step.

    reach    how many blocks' losses a block listens to, its own included; more than there are blocks means all
    combine  sum (LoCo), mean, or next: only L_m, the furthest (interlocking backpropagation)

    With a reach of 2 block k sends down dL_k/dh_{k-1} of its own loss when it yields, so nobody waits for more than one
    neighbour and at most two graphs are alive; a longer reach needs the chain. Losses that end at the same block travel
    as one sum. So a message is one gradient of h_{k-1} [B, ...] per block below k where some loss ends, the lowest one
    first: reach - 1 at most, and fewer near the bottom and the top; one with a reach of all. Each costs a pass through
    the block for input gradients, beside the pass for the parameters; where the two ask for the same they are one pass.
    """

    reach: Annotated[int, Ge(1)] = 2
    combine: Literal["sum", "mean", "next"] = "sum"
    priced: ClassVar[bool] = False

    @property
    def route(self) -> Route:  # type: ignore[override]  # of the instance: the reach decides it
        return {1: Route.NONE, 2: Route.NEIGHBOR}.get(self.reach, Route.CHAIN)

    def unread(self, specs: Sequence[BlockSpec]) -> Mapping[str, str]:
        unread = dict(super().unread(specs))
        if len(specs) == 1:
            return unread | dict.fromkeys(("reach", "combine"), "blocks=2 or more")
        return unread | ({"combine": "strategy.reach=2 or more"} if self.reach == 1 else {})

    def step(self, block: Block, packet: Packet) -> Step:
        if self.reach == 1:
            return (yield from super().step(block, packet))
        k = block.spec.index
        x = enter(block, packet).h
        h = block.layers(x)
        own = self.own_gradient(block, h, packet)
        if self.route is Route.NEIGHBOR:
            back = (_input_gradient(h, x, own),) if k and own is not None else None
            grads = yield Send(packet.at(h), back)
            _parameter_gradients(block, h, self.combined(block.spec, self.by_end(block.spec, own, grads)))
            feedback = None
        else:
            grads = yield Send(packet.at(h))
            feedback = self.descend(block, x, h, self.by_end(block.spec, own, grads))
        block.update()
        return feedback

    def own_gradient(self, block: Block, h: Tensor, packet: Packet) -> Tensor | None:
        """dL_k/dh_k [B, ...], or None where no units learn from L_k; the gradients of the block's head on the way.

        The head's graph ends here, so that while feedback is awaited the block keeps that of its units alone."""
        needed = self.combine != "next" or block.last or block.spec.index >= self.reach - 1
        leaf = packet.at(h).leaves().h if needed else h.detach()
        backward(self.loss(block, leaf, packet))
        return leaf.grad

    def ends(self, k: int, depth: int) -> range:
        """The blocks, k or below, where some loss from above block k ends: the order of block k + 1's message."""
        return range(max(0, k - self.reach + 2), min(k, max(0, depth - self.reach)) + 1)

    def by_end(self, spec: BlockSpec, own: Tensor | None, grads: Feedback | None) -> dict[int, Tensor]:
        """The gradients of h_k, by the block where their losses end."""
        arrived = zip(self.ends(spec.index, spec.depth), grads, strict=True) if grads is not None else ()
        gradients = {end: g for end, g in arrived if g is not None}
        if own is not None:
            end = max(0, spec.index - self.reach + 1)
            gradients[end] = gradients[end] + own if end in gradients else own
        return gradients

    def combined(self, spec: BlockSpec, gradients: Mapping[int, Tensor]) -> Tensor:
        """What the units of block k learn from: a gradient of h_k. All that arrives ends here or below, and is meant
        for this block too, unless only the furthest loss counts."""
        if self.combine == "next":
            return gradients[min(spec.index, max(0, spec.depth - self.reach))]
        first, *rest = gradients.values()
        total = sum(rest, first)
        return total / min(self.reach, spec.depth - spec.index) if self.combine == "mean" else total

    def descend(self, block: Block, x: Tensor, h: Tensor, gradients: Mapping[int, Tensor]) -> Feedback:
        """The gradients of the units, and the message for the block below: (None,) from block 0."""
        combined = self.combined(block.spec, gradients)
        down = self.ends(block.spec.index - 1, block.spec.depth)
        if len(down) == 1 and combined is gradients[down[0]]:
            scaling.backward([h], [combined])
            return (x.grad,)
        message = tuple(_input_gradient(h, x, gradients[end]) for end in down)
        _parameter_gradients(block, h, combined)
        return message or (None,)


@dataclass(frozen=True)
class HPFF(DGL):
    """Hierarchical locally supervised learning, HPFF (Su et al. 2024, arXiv 2407.05638), without its patch features,
    which `objective=infopro objective.quarters=true` has.

    Block k > 0 has two losses: w C_k of a classifier of its own, from which it alone learns, and (1 - w) L_k of the
    objective, from which the block below learns as well. Block 0 has none. In the last block both are the true loss. An
    objective that reads no labels has no classifier beside it, and weight 1. Block inputs are detached, and the
    gradient of (1 - w) L_k at h_{k-1} [B, ...] goes down at once. The paper runs two streams with the same values
    through the blocks, three forward passes of each inner block; here there is one.

    weight  w, of the classifier
    """

    weight: Annotated[float, Interval(ge=0, le=1)] = 0.001
    priced: ClassVar[bool] = False
    route: ClassVar[Route] = Route.NEIGHBOR
    boxes: ClassVar[bool] = False

    def modules(self, spec: BlockSpec) -> Mapping[str, nn.Module]:
        if not spec.index and not spec.last:
            return {}
        modules = dict(super().modules(spec))
        if modules and self.weight and self.objective.labels:
            own = Linear() if spec.task.form == POSITION else ConvFC(convolutions=0)
            modules[OWN] = head(spec, own)
        return modules

    def unread(self, specs: Sequence[BlockSpec]) -> Mapping[str, str]:
        if not self.objective.labels:
            return {**super().unread(specs), "weight": "objective=NAME that reads labels"}
        return {**super().unread(specs), **({"weight": "blocks=2 or more"} if len(specs) == 1 else {})}

    def step(self, block: Block, packet: Packet) -> Step:
        spec = block.spec
        x = enter(block, packet).h
        h = block.layers(x)
        own, down = self._gradients(block, h, packet) if spec.index or spec.last else (None, None)
        grads = yield Send(packet.at(h), (_input_gradient(h, x, down),) if spec.index and down is not None else None)
        arrived = [g for g in (own, *(grads or ())) if g is not None]
        if arrived:
            _parameter_gradients(block, h, sum(arrived[1:], arrived[0]))
        block.update()
        return None

    def predict(self, block: Block, packet: Packet) -> Tensor | None:
        return super().predict(block, packet) if block.head is not None or block.auxiliary else None

    def _gradients(self, block: Block, h: Tensor, packet: Packet) -> tuple[Tensor | None, Tensor | None]:
        """Of h [B, ...]: what the block learns from, and the part of it for the block below; those of the heads on the
        way."""
        leaf, w = packet.at(h).leaves().h, self.weight
        loss = self.loss(block, leaf, packet)
        if OWN not in block.auxiliary:
            backward(loss)
            share = 1 - w if block.last and self.joint else 1.0
            return leaf.grad, None if leaf.grad is None else share * leaf.grad
        backward((1 - w) * loss)
        down = None if leaf.grad is None else leaf.grad.clone()
        backward(w * block.spec.task.loss(block.auxiliary[OWN](leaf), packet.y))
        return leaf.grad, down


def _input_gradient(h: Tensor, x: Tensor, gradient: Tensor) -> Tensor:
    return scaling.grad(h, x, gradient)


def _parameter_gradients(block: Block, h: Tensor, gradient: Tensor) -> None:
    """Accumulate the gradients of the units, and spare that of their input."""
    parameters = [p for p in block.layers.parameters() if p.requires_grad]
    if parameters:
        scaling.backward([h], [gradient], parameters)
