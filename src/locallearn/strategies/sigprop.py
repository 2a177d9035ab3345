"""Signal propagation: the labels run through the blocks beside the inputs, and each block compares the two."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

import torch
from annotated_types import Ge
from torch import Tensor, nn

from locallearn.contract import Block, BlockSpec, Packet, Route, Send, Size, Step, Strategy, backward, task_loss
from locallearn.errors import UserError
from locallearn.objectives.base import exact, wide
from locallearn.task import CLASSIFICATION

ROUNDING = 1e-5
"""By so much of the largest one products of equal vectors may differ."""


class TargetEmbedding(nn.Module):
    """Labels, one-hot [B, classes] -> what block 0 emits [B, *emits]: linear without bias, layer norm, ReLU."""

    def __init__(self, classes: int, emits: Size) -> None:
        super().__init__()
        size = math.prod(emits)
        self.layers = nn.Sequential(nn.Linear(classes, size, bias=False), nn.LayerNorm(size), nn.ReLU())
        self.emits = emits

    def forward(self, labels: Tensor) -> Tensor:
        return self.layers(labels).unflatten(1, self.emits)


@dataclass(frozen=True)
class SigProp(Strategy):
    """Signal propagation (Kohan, Rietman & Siegelmann 2022, arXiv 2204.01723), as in the authors' code.

    Block 0 reads the image, and an embedding of the label gives r_0 as large as what it emits, h_0. The others compute
    both streams, h_k = f_k(sg[h_{k-1}]) and r_k = f_k(sg[r_{k-1}]), and learn from y = h_k r_k^T, for maps and
    sequences a mean over positions:

        v1   cross-entropy of y and the label; the stream of targets has one row for each class
        v9   a row for each sample; sum_j -t_ij log softmax(y_i)_j with t_ij = 1 where r_{k-1,i} r_{k-1,j} is largest in
             row i (block 0: where the labels agree), not divided by their number
        v14  as v9, with the first of these j alone
        v15  as v9, with t_ij = 1 for the `topk` largest

    The head reads detached features and has its true gradient. Batch norm sees the two streams apart, and its running
    statistics are those of inputs. Sends nothing down; the plain model answers.
    """

    loss: Literal["v1", "v9", "v14", "v15"] = "v9"
    topk: Annotated[int, Ge(1)] = 6
    route: ClassVar[Route] = Route.NONE
    tasks: ClassVar[frozenset[str]] = frozenset({CLASSIFICATION})
    needs: ClassVar[str] = "sends a class through the blocks"

    def modules(self, spec: BlockSpec) -> Mapping[str, nn.Module]:
        return {} if spec.index else {"targets": TargetEmbedding(spec.classes, spec.emits)}

    def unread(self, specs: Sequence[BlockSpec]) -> Mapping[str, str]:
        return {} if self.loss == "v15" else {"topk": "strategy.loss=v15"}

    def step(self, block: Block, packet: Packet) -> Step:
        again = block.again()
        h = block.layers(packet.h)
        if block.spec.index == 0:
            below = self.labels(packet.y, block.spec)
            r = block.auxiliary["targets"](below.to(h.dtype))
        else:
            below = self.stream(packet, block.spec)
            with again:
                r = block.layers(below)
        yield Send(packet.at(h, r))
        y = product(h, r)
        local = self.local_loss(y, below, packet.y, block.spec)
        if block.last:
            block.note("local_loss", local)
            local = local + task_loss(block, h.detach(), packet.y)
        else:
            block.report(local, *((y, packet.y) if self.loss == "v1" else ()))
        backward(local)
        block.update()
        return None

    def through(self, block: Block, packet: Packet) -> Packet:
        h = block.layers(packet.h)
        return packet.at(h, block.layers(packet.side[0])) if packet.side else packet.at(h)

    def labels(self, y: Tensor, spec: BlockSpec) -> Tensor:
        """What the stream of targets is made of: each class, or that of each sample, one-hot."""
        if self.loss == "v1":
            return torch.eye(spec.classes, device=y.device)
        return spec.task.context(y, spec.classes)

    def stream(self, packet: Packet, spec: BlockSpec) -> Tensor:
        """The targets that a block reads."""
        if not packet.side:
            raise UserError(
                f"strategy=sigprop makes targets in block 0, which does not learn, and block {spec.index} needs them: "
                "add 0 to train_blocks"
            )
        return packet.side[0]

    def local_loss(self, y: Tensor, below: Tensor, labels: Tensor, spec: BlockSpec) -> Tensor:
        """The loss [] of products y [B, classes] or [B, B], and of the targets that the block has read."""
        if self.loss == "v1":
            return spec.task.loss(y, labels)
        known = labels >= 0
        with torch.no_grad():
            wanted = self.wanted(product(below, below).masked_fill(~known, -math.inf)) & known
        y = y.masked_fill(~known, torch.finfo(y.dtype).min / 2)  # nobody is compared with a sample that has no label
        losses = -(wanted * y.log_softmax(dim=1)).sum(1)
        return (losses * known).sum() / spec.task.count(labels).clamp(min=1)

    def wanted(self, near: Tensor) -> Tensor:
        """t: which samples each one should be like, of products between targets, both [B, B]."""
        if self.loss == "v15":
            best = near.sort(dim=1, descending=True, stable=True).indices[:, : self.topk]  # of equal ones the first
            return torch.zeros_like(near, dtype=torch.bool).scatter_(1, best, value=True)
        largest = near >= (1 - ROUNDING) * near.max(dim=1, keepdim=True).values
        return largest & (largest.cumsum(1) == 1) if self.loss == "v14" else largest

    @property
    def plain(self) -> bool:
        """`through` takes targets past frozen blocks in training; units and head answer."""
        return True


def product(a: Tensor, b: Tensor) -> Tensor:
    """a_i b_j^T, for maps and sequences a mean over positions: [N, ...], [M, ...] -> [N, M]"""
    positions = 1 if a.dim() == 2 else a.shape[1] if a.dim() == 3 else math.prod(a.shape[2:])
    with exact(a):
        return wide(a.flatten(1)) @ wide(b.flatten(1)).t() / positions
