"""A linear classifier on the features of every block, and an answer that may be the vote of them all."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from locallearn.contract import Block, BlockSpec, Packet, Route, Send, Step, Strategy, backward
from locallearn.task import CLASSIFICATION

VOTE = "classifier"


class Votes(Strategy):
    """Every block trains a classifier on what it emits; the answer is made of their logits. The head of the model is
    not used."""

    answer: str
    bias: ClassVar[bool] = True
    trains_units: ClassVar[bool] = True
    route: ClassVar[Route] = Route.NONE
    ships: ClassVar[frozenset[str]] = frozenset({VOTE})
    tasks: ClassVar[frozenset[str]] = frozenset({CLASSIFICATION})
    needs: ClassVar[str] = "votes for classes"

    def modules(self, spec: BlockSpec) -> Mapping[str, nn.Module]:
        return {
            self._name(spec): nn.Sequential(
                nn.Flatten(), nn.Linear(math.prod(spec.emits), spec.classes, bias=self.bias)
            )
        }

    def _name(self, spec: BlockSpec) -> str:
        """Of a block's classifier: whether it ships."""
        return VOTE if spec.last or self.answer != "last" else "local"

    def unread(self, specs: Sequence[BlockSpec]) -> Mapping[str, str]:
        return {"answer": "blocks=2 or more"} if len(specs) == 1 else {}

    def step(self, block: Block, packet: Packet) -> Step:
        with nullcontext() if self.trains_units else torch.no_grad():
            h = block.layers(packet.h)
        yield Send(packet.at(h))
        logits = block.auxiliary[self._name(block.spec)](h)
        loss = block.spec.task.loss(logits, packet.y)
        block.report(loss, logits, packet.y)
        backward(loss)
        block.update()
        return None

    def through(self, block: Block, packet: Packet) -> Packet:
        h = block.layers(packet.h)
        name = self._name(block.spec)
        if name not in block.auxiliary or packet.y.numel():  # not needed to answer, frozen, or below blocks that learn
            return packet.at(h)
        logits = block.auxiliary[name](h)
        if self.answer == "last":
            return packet.at(h, logits)
        vote = logits.softmax(1) if self.answer == "probabilities" else logits
        return packet.at(h, vote + packet.side[0] if packet.side else vote)

    def predict(self, block: Block, packet: Packet) -> Tensor | None:
        if self._name(block.spec) not in block.auxiliary:
            return None
        (votes,) = packet.side
        return votes.clamp(min=torch.finfo(votes.dtype).tiny).log() if self.answer == "probabilities" else votes


@dataclass(frozen=True)
class MonoForward(Votes):
    """The Mono-Forward algorithm (Gong, Li & Abdulla 2025, arXiv 2501.09238).

    G_k = M_k h_k, without bias, is the goodness of each class; L_k = CE(G_k, y) trains the block and M_k. Detached at
    every border; sends nothing down.

    answer  last: argmax of G_K; sum: of the sum of all G_k
    order   sequential: one block after the other, those below frozen, an equal share of the run for each (the paper);
            parallel: all on the same batch, as DGL does
    """

    answer: Literal["last", "sum"] = "last"
    order: Literal["sequential", "parallel"] = "sequential"
    bias: ClassVar[bool] = False

    def unread(self, specs: Sequence[BlockSpec]) -> Mapping[str, str]:
        return dict.fromkeys(("answer", "order"), "blocks=2 or more") if len(specs) == 1 else {}

    def phases(self, depth: int) -> list[range]:
        return [range(k, k + 1) for k in range(depth)] if self.order == "sequential" else [range(depth)]


@dataclass(frozen=True)
class CaFo(Votes):
    """Cascaded Forward with random blocks (Zhao et al. 2023, arXiv 2303.09728).

    L_k = CE(V_k h_k + b_k, y) trains the classifier of each block alone; the blocks keep their random weights, and
    their batch statistics adapt. Detached at every border; sends nothing down.

    answer  probabilities: the sum of the softmax of every block decides (the authors' code); logits: the sum of logits
    """

    answer: Literal["probabilities", "logits"] = "probabilities"
    trains_units: ClassVar[bool] = False
