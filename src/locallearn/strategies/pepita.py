"""PEPITA: a second pass, of the input that the output error has changed, teaches what the first should have been."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from annotated_types import Gt
from torch import Tensor, nn

from locallearn.contract import Block, BlockSpec, Heard, Packet, Route, Send, Step, Strategy, backward
from locallearn.objectives.base import numbers_of_input, wide
from locallearn.scaling import unscaled
from locallearn.strategies.passing import passing
from locallearn.task import CLASSIFICATION


class ErrorProjection(nn.Module):
    """e [B, classes] -> F e, as large as the input [B, *image]; F is fixed, uniform in +-scale sqrt(6 / size)."""

    matrix: Tensor

    def __init__(self, spec: BlockSpec, scale: float) -> None:
        super().__init__()
        size = math.prod(spec.image)
        bound = scale * math.sqrt(6 / size)
        self.register_buffer("matrix", (2 * torch.rand(spec.classes, size) - 1) * bound)
        self.image = spec.image

    def forward(self, error: Tensor) -> Tensor:
        with unscaled(error):
            return (error.to(self.matrix.dtype) @ self.matrix).unflatten(1, self.image)


@dataclass(frozen=True)
class Pepita(Strategy):
    """PEPITA, present the error to perturb the input to modulate activity (Dellaferrera & Kreiman 2022, arXiv
    2201.11665).

    A first pass gives h_k and e = softmax(z) - t; a second one, of x + F e, gives h'_k, with the dropout of the first.
    Block k learns from (h_k - h'_k) / n in the place of dL/dh'_k, at what it read in the second pass, for n samples
    with a label; the head learns from its true gradient in the second pass. The derivative of rectifiers is left out,
    as in the paper; that of other activations stays. e [B, classes] goes down from block to block, then the second pass
    comes up: 2 (K - 1) rounds.

    scale  of F, whose entries are uniform in +-scale sqrt(6 / size of x)
    """

    scale: Annotated[float, Gt(0)] = 0.05
    route: ClassVar[Route] = Route.ROUNDS
    tasks: ClassVar[frozenset[str]] = frozenset({CLASSIFICATION})
    needs: ClassVar[str] = "projects the error of a class onto the input"

    def modules(self, spec: BlockSpec) -> Mapping[str, nn.Module]:
        numbers_of_input(spec, "PEPITA")
        return {} if spec.index else {"projection": ErrorProjection(spec, self.scale)}

    def adapt(self, layers: nn.Module, spec: BlockSpec) -> nn.Module:
        return passing(layers)

    def rounds(self, depth: int) -> int:
        return max(1, 2 * (depth - 1))

    def step(self, block: Block, packet: Packet) -> Step:
        spec = block.spec
        above = spec.depth - 1 - spec.index
        again = block.again()
        with torch.no_grad():
            first = block.layers(packet.h)
        error = self.error(block, first, packet.y) if spec.last else None
        heard: Heard = yield Send(packet.at(first), None if error is None else (error,))
        for number in range(1, self.rounds(spec.depth) + 1):
            if not spec.last and number == above:
                assert heard.above is not None
                (error,) = heard.above
            if number == self._turn(spec):
                below = packet if spec.index == 0 else heard.below
                assert below is not None
                x = below.h + block.auxiliary["projection"](error) if spec.index == 0 else below.h
                out = self.second(block, packet.at(x.to(packet.h.dtype)), first, again)
                ahead = None if spec.last else out
            else:
                ahead = None
            if number < self.rounds(spec.depth):
                passes = error is not None and number == above and not spec.last
                heard = yield Send(ahead, (error,) if passes else None)
        return None

    def _turn(self, spec: BlockSpec) -> int:
        """The round after which a block has what it reads in the second pass."""
        return max(1, spec.depth - 1 + spec.index)

    def error(self, block: Block, h: Tensor, y: Tensor) -> Tensor:
        """The error of each sample at the logits [B, classes], 0 for those without a label."""
        assert block.head is not None
        task = block.spec.task
        with torch.no_grad():
            logits = wide(block.head(h))
            block.report(task.loss(logits, y), logits, y)
            return task.error(logits, y) * task.count(y)

    def second(self, block: Block, packet: Packet, first: Tensor, again: AbstractContextManager[None]) -> Packet:
        """The second pass of a block, from which it learns."""
        task, loss = block.spec.task, None
        with again:
            out = packet.at(block.layers(packet.h))
            if block.head is not None:
                loss = task.loss(block.head(out.h.detach()), packet.y)
        known = (packet.y >= 0).to(first.dtype).view(-1, *[1] * (first.dim() - 1))
        loss = loss if loss is not None and loss.requires_grad else None  # of a frozen head
        backward(loss, out, ((first - out.h.detach()) * known / task.count(packet.y).clamp(min=1),))
        block.update()
        return out
