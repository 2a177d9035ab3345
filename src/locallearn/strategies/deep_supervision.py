"""Deep supervision: backpropagation with extra losses on the way, the control for every local loss."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, ClassVar

from annotated_types import Ge
from torch import Tensor, nn

from locallearn.auxiliary import Auxiliary
from locallearn.contract import Block, BlockSpec, Packet, Route, Send, Step, Strategy, backward, enter
from locallearn.errors import UserError
from locallearn.objectives import Objective
from locallearn.options import OneOf

ANNEAL = {
    "constant": lambda progress: 1.0,
    "linear": lambda progress: 1.0 - progress,
    "cosine": lambda progress: 0.5 * (1.0 + math.cos(math.pi * progress)),
}


@dataclass(frozen=True)
class DeepSupervision(Strategy):
    """Deeply-supervised nets (Lee et al. 2015, arXiv 1409.5185): L = l(z, y) + sum_{k<K} w(t) l_k(a_k(h_k), y).

    Nothing is detached: every loss reaches every block below it. What separates it from DGL is the gradient that
    crosses block borders, and from backprop the extra heads, so it tells the two effects apart. Sends down the gradient
    of its input, [B, ...].

    weight  w at the start (0.3 in GoogLeNet, 0.4 in common segmentation recipes)
    anneal  w over training: constant, linear or cosine to zero

    Raises UserError beside an `objective.task` above 0: the true loss reaches every block anyway.
    """

    objective: Objective = field(kw_only=True)
    auxiliary: Auxiliary = field(kw_only=True)
    weight: Annotated[float, Ge(0)] = 0.3
    anneal: Annotated[str, OneOf(ANNEAL)] = "constant"
    route: ClassVar[Route] = Route.CHAIN
    priced: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.objective.head_share:
            raise UserError(
                "strategy=deep_supervision trains every block by the true loss: leave out objective.task, or choose "
                "strategy=dgl"
            )

    def unread(self, specs: Sequence[BlockSpec]) -> Mapping[str, str]:
        return {} if len(specs) > 1 else dict.fromkeys(("weight", "anneal"), "blocks=2 or more")

    def modules(self, spec: BlockSpec) -> Mapping[str, nn.Module]:
        self.objective.check(spec.image)
        return {} if spec.last else self.objective.modules(spec, self.auxiliary)

    def begin(self, packet: Packet) -> Packet:
        return self.objective.begin(packet)

    def step(self, block: Block, packet: Packet) -> Step:
        x = enter(block, packet)
        out = x.at(block.layers(x.h))
        loss: Tensor | None
        if block.last:
            loss = self.objective.head_loss(block, out.h, out)
        else:
            loss, logits = self.objective.loss(block.spec, block.auxiliary, out.h, out)
            block.report(loss, logits, out.y)
            loss = loss * (self.weight * ANNEAL[self.anneal](block.progress))
        grads = yield Send(out)
        backward(loss, out, grads)
        block.update()
        return x.take_grads()

    def predict(self, block: Block, packet: Packet) -> Tensor | None:
        return block.head(packet.h) if block.head is not None else self.objective.predict(block.auxiliary, packet.h)
