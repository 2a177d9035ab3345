"""Programmable gradient information: a second, reversible path from the image trains the main one and never ships."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, ClassVar, Literal

from annotated_types import Ge, MultipleOf
from torch import Tensor, nn

from locallearn.auxiliary import Auxiliary
from locallearn.auxiliary.branch import Branch, HeadOf, Level, Routing, Stem
from locallearn.contract import (
    Block,
    BlockSpec,
    Packet,
    Route,
    Send,
    Step,
    Strategy,
    backward,
    enter,
    task_loss,
)
from locallearn.objectives.base import head, numbers_of_input


@dataclass(frozen=True)
class PGI(Strategy):
    """PGI (Wang, Yeh & Liao 2024, "YOLOv9", arXiv 2402.13616), wired as in yolov9-c, for classifiers.

    Each block k but the last has a routing map r_k = routing_k(h_k) and a level of the auxiliary branch:

        a_k = couplings_k(resize(a_{k-1}) + sum_{j>=k} resize(r_j)),   a_{-1} = stem(image)
        L = l(z, y) + weight * sum_k l(classifier_k(a_k), y),   l = the loss of the task

    The maps travel up in `side` = (image, r_0, ..., r_{k-1}); the last block owns the branch and has all the losses.
    Sends down dL/dh and one gradient per map, none for the image. One block is backprop.

    resize(r) takes the nearest position, as CBFuse does, and resize(a) averages where a level is smaller. It differs
    from YOLOv9 in that classifiers stand for detection heads, one `width` for channels that grow and one map per block
    for a chunk per level (CBLinear), and in that the units are additive couplings, which can be inverted: the
    published configurations have ordinary stages there, and "reversible" means that the path starts from the image.

    weight     of every level's loss, against 1 for the true one (a sum over levels, as in deep supervision)
    taps       gradient: the branch teaches the blocks. detached: it learns, and they learn exactly what backprop
               teaches (the control). local: nothing comes from the block above, the branch alone teaches all blocks
               but the last, which has the true loss
    width      channels of the branch and of the routing maps; a coupling's halves have half of them
    couplings  per level
    """

    auxiliary: Auxiliary = field(kw_only=True)
    weight: Annotated[float, Ge(0)] = 0.25
    taps: Literal["gradient", "detached", "local"] = "gradient"
    width: Annotated[int, Ge(2), MultipleOf(2)] = 64  # a coupling halves it
    couplings: Annotated[int, Ge(1)] = 1
    route: ClassVar[Route] = Route.CHAIN
    carries: ClassVar[bool] = True

    def unread(self, specs: Sequence[BlockSpec]) -> Mapping[str, str]:
        options = ("weight", "taps", "width", "couplings")
        return {} if len(specs) > 1 else dict.fromkeys(options, "blocks=2 or more")

    def modules(self, spec: BlockSpec) -> Mapping[str, nn.Module]:
        if not spec.last:
            return {"routing": Routing(spec.emits, self.width)}
        if spec.depth == 1:
            return {}
        numbers_of_input(spec, "the auxiliary branch")
        branch = Branch(spec.image, spec.sizes[:-1], self.width, self.couplings, self.head(spec), spec.channels_first)
        return {"branch": branch}

    def head(self, spec: BlockSpec) -> HeadOf:
        """What makes the classifier of a level."""
        return lambda size: head(spec, self.auxiliary, size)

    def step(self, block: Block, packet: Packet) -> Step:
        x = enter(block, packet)
        if self.taps == "local":  # h is no leaf: no block has a gradient of it to send down
            x = x._replace(h=packet.h)
        out, loss = self.forward(block, x)
        grads = yield Send(out)
        backward(loss, out, grads)
        block.update()
        return x.take_grads()

    def forward(self, block: Block, x: Packet) -> tuple[Packet, Tensor | None]:
        """What a block hands on, and its own loss [] if it has one."""
        h = block.layers(x.h)
        if not block.last:
            image_and_maps = x.side or (x.h,)
            return x.at(h, *image_and_maps, self.tap(block, h)), None
        loss = task_loss(block, h, x.y)
        if x.side:
            image, *routes = x.side
            logits = block.auxiliary["branch"](image, routes)
            loss = loss + self.auxiliary_loss(block, logits, x.y)
        return x.at(h), loss

    def tap(self, block: Block, h: Tensor) -> Tensor:
        """The routing map of a block's output. [B, *emits] -> [B, width, H, W]"""
        return block.auxiliary["routing"](h.detach() if self.taps == "detached" else h)

    def auxiliary_loss(self, block: Block, logits: list[Tensor], y: Tensor) -> Tensor:
        """Weight times the summed loss [] of some levels. Their sum is noted without the weight."""
        losses = [block.spec.task.loss(z, y) for z in logits]
        loss = sum(losses[1:], losses[0])
        block.note("auxiliary_loss", loss)
        return self.weight * loss


@dataclass(frozen=True)
class CausalPGI(PGI):
    """PGI in which the branch runs beside the main one, so that block k needs nothing from the blocks above it:

        a_k = couplings_k(resize(a_{k-1}) + routing_k(h_k)),   a_{-1} = stem(image)

    Block k, but for the last, owns its level and has its loss, weight * l(classifier_k(a_k), y); the last block has the
    true one. `side` = (a_k,), which spares the messages of all maps and spreads the branch over the blocks. What is
    lost against the full form: a level no longer reads the maps of the levels above it, so block k hears from level j
    only for j >= k, and then through the branch. Sends down dL/dh and dL/da. One block is backprop.
    """

    def modules(self, spec: BlockSpec) -> Mapping[str, nn.Module]:
        if spec.last:
            return {}
        numbers_of_input(spec, "the auxiliary branch")
        level = Level(spec.emits, self.width, self.couplings, self.head(spec))
        modules: dict[str, nn.Module] = {"routing": Routing(spec.emits, self.width), "level": level}
        if spec.index:
            return modules
        return {"stem": Stem(spec.image, self.width, level.grid, spec.channels_first), **modules}

    def forward(self, block: Block, x: Packet) -> tuple[Packet, Tensor | None]:
        h = block.layers(x.h)
        if block.last:
            return Packet(h, x.y), task_loss(block, h, x.y)
        level = block.auxiliary["level"]
        assert isinstance(level, Level)
        a = level(x.side[0] if x.side else block.auxiliary["stem"](x.h), [self.tap(block, h)])
        loss = self.auxiliary_loss(block, [level.classifier(a)], x.y)
        wanted = block.spec.index < block.spec.depth - 2  # the last block has no level
        return Packet(h, x.y, (a,) if wanted else ()), loss
