"""Greedy local learning: every block minimises a loss of its own, and no gradient crosses a border."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from locallearn.auxiliary import Auxiliary
from locallearn.contract import Block, BlockSpec, Packet, Route, Send, Step, Strategy, backward, task_loss
from locallearn.objectives import Objective


class LocalLosses(Strategy):
    """Every block learns from the loss of its `objective` alone; the last one also, or instead, from the true loss."""

    objective: Objective
    auxiliary: Auxiliary
    route: ClassVar[Route] = Route.NONE

    @property
    def joint(self) -> bool:
        """Whether the last block learns together with the head."""
        return False

    def modules(self, spec: BlockSpec) -> Mapping[str, nn.Module]:
        return {} if spec.last and self.joint else self.objective.modules(spec, self.auxiliary)

    def begin(self, packet: Packet) -> Packet:
        return self.objective.begin(packet)

    def step(self, block: Block, packet: Packet) -> Step:
        h = block.layers(packet.h)
        yield Send(packet.at(h))  # the block above may start ...
        backward(self.loss(block, h, packet))  # ... while this one learns
        block.update()
        return None

    def loss(self, block: Block, h: Tensor, packet: Packet) -> Tensor:
        """The loss [] of block k for its output h [B, ...]; what a subclass changes."""
        if block.last and self.joint:
            return self.objective.head_loss(block, h, packet)
        loss, logits = self.objective.loss(block.spec, block.auxiliary, h, packet)
        if block.last:
            block.note("local_loss", loss)
            read_out = self.objective.head_loss(block, _passing(h, self.objective.head_share), packet)
            return loss + self.objective.head_weight * read_out
        block.report(loss, logits, packet.y)
        return loss

    def predict(self, block: Block, packet: Packet) -> Tensor | None:
        return block.head(packet.h) if block.head is not None else self.objective.predict(block.auxiliary, packet.h)


def _passing(h: Tensor, share: float) -> Tensor:
    """h with all its bits, through which a share of the gradient goes back: mostly none."""
    return h.detach() + share * (h - h.detach()) if share else h.detach()


@dataclass(frozen=True)
class DGL(LocalLosses):
    """Decoupled greedy learning (Belilovsky, Eickenberg & Oyallon 2020, arXiv 1901.08164).

    L_k = l(a_k(f_k(sg[h_{k-1}])), y) for k < K. Detached at every border; sends nothing down. All blocks learn on the
    same batch: block k reads what block k-1 computed *before* its own update.

    last  what the last block learns from. joint: the true loss, together with the head (the paper). local: a loss of
          its own like every other block, and the head reads its detached features (Nokland & Eidnes 2019, arXiv
          1901.06656). With an objective that reads no labels it is always local
    """

    objective: Objective = field(kw_only=True)
    auxiliary: Auxiliary = field(kw_only=True)
    last: Literal["joint", "local"] = "joint"
    priced: ClassVar[bool] = True

    def unread(self, specs: Sequence[BlockSpec]) -> Mapping[str, str]:
        return {} if self.objective.labels else {"last": "objective=NAME that reads labels"}

    @property
    def joint(self) -> bool:
        return self.last == "joint" and self.objective.labels


@dataclass(frozen=True)
class Greedy(DGL):
    """Sequential greedy layer-wise learning (Belilovsky, Eickenberg & Oyallon 2019, arXiv 1812.11446).

    DGL's losses, but block after block: the run is shared equally among the blocks; those below the learning one are
    frozen in eval mode (their parameters and batch statistics do not move), those above wait. The learning rate runs
    through its whole schedule for each block.
    """

    def phases(self, depth: int) -> list[range]:
        return [range(k, k + 1) for k in range(depth)]


@dataclass(frozen=True)
class Shallow(Strategy):
    """The control: only the last block learns, on the features of random blocks ("shallow" in Launay et al. 2020, arXiv
    2006.12878).

    Whatever a strategy reaches must be read against this. The blocks below keep their initial parameters; their batch
    statistics adapt, so that the random features are as good as they can be. Sends nothing down.
    """

    route: ClassVar[Route] = Route.NONE

    def step(self, block: Block, packet: Packet) -> Step:
        if block.last:
            h = block.layers(packet.h)
            yield Send(packet.at(h))
            backward(task_loss(block, h, packet.y))
            block.update()
        else:
            with torch.no_grad():
                h = block.layers(packet.h)
            yield Send(packet.at(h))
        return None
