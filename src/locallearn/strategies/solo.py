"""SOLO: local losses that answer through the read-out of the whole model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from annotated_types import Ge
from torch import Tensor, nn
from torch.nn import functional as F

from locallearn.auxiliary import like, pooled
from locallearn.contract import (
    Block,
    BlockSpec,
    Packet,
    Published,
    Route,
    Send,
    Size,
    Step,
    Strategy,
    backward,
    task_loss,
)
from locallearn.errors import UserError
from locallearn.objectives.base import wide
from locallearn.task import POSITION


class Answer(nn.Module):
    """z = tau W phi(h) + bias: h [B, ...] -> logits [B, classes], or [B, T, classes] at each position. phi is a
    transform to so many `features`, and RMS norm; W [classes, features] comes from elsewhere, or is its own."""

    weight: Tensor | None

    def __init__(self, transform: nn.Module, features: int, classes: int, readout: str) -> None:
        super().__init__()
        self.transform, self.norm = transform, nn.RMSNorm(features)
        self.tau, self.bias = nn.Parameter(torch.ones(())), nn.Parameter(torch.zeros(classes))
        own = None if readout == "shared" else nn.Linear(features, classes, bias=False).weight
        self.weight = own
        if own is not None:
            own.requires_grad_(readout == "private")

    def forward(self, h: Tensor, shared: Tensor | None) -> Tensor:
        weight = self.weight if shared is None else shared
        assert weight is not None
        return self.tau * F.linear(self.norm(wide(self.transform(h))), weight) + self.bias


@dataclass(frozen=True)
class SOLO(Strategy):
    """SOLO, local losses with a shared read-out (arXiv 2609.35440).

    Block k < K learns from l(z_k, y), z_k = tau_k sg[W_old] phi_k(h_k) + b_k, where W_old is a copy of the weight of
    the model's last linear layer, made every some steps. phi_k are new units like the last ones of the model, the mean
    over positions if the task asks once for a sample, and RMS norm. The last block learns from the true loss, and W
    with it. Detached at every border; sends nothing down.

    layers   units of phi_k; fewer where fewer are above
    readout  shared; private: each block has its own W and learns it; random: its own, which stays as it began
    every    steps from one copy of W to the next
    lag      steps by which a copy is late; in a pipeline as many as there are blocks from here to the top wait for
             nobody
    """

    layers: Annotated[int, Ge(0)] = 2
    readout: Literal["shared", "private", "random"] = "shared"
    every: Annotated[int, Ge(1)] = 10
    lag: Annotated[int, Ge(0)] = 0
    route: ClassVar[Route] = Route.NONE
    boxes: ClassVar[bool] = False

    def unread(self, specs: Sequence[BlockSpec]) -> Mapping[str, str]:
        if len(specs) == 1:
            return dict.fromkeys(("layers", "readout", "every", "lag"), "blocks=2 or more")
        return {} if self.readout == "shared" else dict.fromkeys(("every", "lag"), "strategy.readout=shared")

    def modules(self, spec: BlockSpec) -> Mapping[str, nn.Module]:
        if spec.last:
            return {}
        units, size = like(spec.above[-self.layers :] if self.layers else (), spec.emits)
        if spec.task.form == POSITION and len(size) != 2:
            raise UserError(
                f"SOLO answers at each step of a sequence, but block {spec.index} emits {list(spec.emits)}: choose a "
                "model of sequences, such as gpt, or another strategy"
            )
        if not self.layers and _width(spec.emits) != _width(spec.sizes[-1]):
            raise UserError(
                f"strategy.layers=0 answers from {_width(spec.emits)} features of block {spec.index}, but the read-out "
                f"has {_width(spec.sizes[-1])}: choose strategy.layers=1 or more"
            )
        pool, features = ([], size[-1]) if spec.task.form == POSITION else pooled(size, (1, 1))
        return {"answer": Answer(nn.Sequential(*units, *pool), features, spec.classes, self.readout)}

    def reads(self, spec: BlockSpec) -> Mapping[str, Published]:
        if spec.last or self.readout != "shared":
            return {}
        return {"readout": Published(spec.depth - 1, self.every, self.lag)}

    def publish(self, block: Block, name: str) -> Sequence[Tensor]:
        assert block.head is not None
        linear = [m for m in block.head.modules() if isinstance(m, nn.Linear)]
        if not linear or linear[-1].in_features != _width(block.spec.emits):
            raise UserError(
                f"block {block.spec.index}: SOLO shares the weight of a linear layer that ends the model's head and "
                f"reads {_width(block.spec.emits)} features, but there is none: choose strategy.readout=private, or "
                "another model, such as an mlp, gpt or a resnet"
            )
        return (linear[-1].weight,)

    def step(self, block: Block, packet: Packet) -> Step:
        h = block.layers(packet.h)
        yield Send(packet.at(h))
        if block.last:
            loss = task_loss(block, h, packet.y)
        else:
            logits = self._answer(block, h)
            loss = block.spec.task.loss(logits, packet.y)
            block.report(loss, logits, packet.y)
        backward(loss)
        block.update()
        return None

    def predict(self, block: Block, packet: Packet) -> Tensor | None:
        return block.head(packet.h) if block.head is not None else self._answer(block, packet.h)

    def _answer(self, block: Block, h: Tensor) -> Tensor:
        answer = block.auxiliary["answer"]
        assert isinstance(answer, Answer)
        if self.readout != "shared":
            return answer(h, None)
        (weight,) = block.published("readout").tensors
        return answer(h, weight)


def _width(size: Size) -> int:
    """The features of maps, vectors and sequences without the batch."""
    return size[1] if len(size) == 2 else size[0]
