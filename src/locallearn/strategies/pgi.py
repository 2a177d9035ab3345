"""Programmable gradient information: a second, reversible path from the image trains the main one and never ships."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import partial
from typing import Annotated, ClassVar, Literal

from annotated_types import Ge, MultipleOf
from torch import Tensor, nn

from locallearn.auxiliary import Auxiliary
from locallearn.auxiliary.branch import (
    BLOCKS,
    ELAN,
    Branch,
    CouplingBranch,
    ElanBranch,
    HeadOf,
    Level,
    Routing,
    Stem,
    as_map,
)
from locallearn.contract import (
    Block,
    BlockSpec,
    Packet,
    Route,
    Send,
    Size,
    Step,
    Strategy,
    backward,
    enter,
    task_loss,
)
from locallearn.objectives.base import head, numbers_of_input
from locallearn.options import OneOf
from locallearn.task import BOXES


@dataclass(frozen=True)
class Branched(Strategy):
    """What the two forms of PGI share: blocks that are tapped, and levels of a branch that teach them.

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
        options = [each.name for each in fields(self) if not each.kw_only]
        return {} if len(specs) > 1 else dict.fromkeys(options, "blocks=2 or more")

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

    @abstractmethod
    def forward(self, block: Block, x: Packet) -> tuple[Packet, Tensor | None]:
        """What a block hands on, and its own loss [] if it has one."""

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
class PGI(Branched):
    """PGI (Wang, Yeh & Liao 2024, "YOLOv9", arXiv 2402.13616), wired as in yolov9-c.

    Each block k but the last has a routing map r_k = routing_k(h_k) and a level of the auxiliary branch:

        a_k = couplings_k(resize(a_{k-1}) + sum_{j>=k} resize(r_j)),   a_{-1} = stem(image)
        L = l(z, y) + weight * sum_k l(classifier_k(a_k), y),   l = the loss of the task

    Where boxes are asked for, one head reads all a_k, and L = l(z, y) + weight l(head(a_0, a_1, ...), y), each with an
    assignment of its own; of a packed pyramid a block's newest map is tapped.

    The maps travel up in `side` = (image, r_0, ..., r_{k-1}); the last block owns the branch and has all the losses.
    Sends down dL/dh and one gradient per map, none for the image. One block is backprop.

    resize(r) takes the nearest position, as CBFuse does, and resize(a) averages where a level is smaller. It differs
    from YOLOv9 in one `width` for channels that grow, in one map per block for a chunk per level (CBLinear), and in
    that the units are additive couplings, which can be inverted: the published configurations have ordinary stages
    there, and "reversible" means that the path starts from the image. `branch: elan` has these stages and chunks.

    branch     coupling; elan: the second backbone of yolov9-c, with a chunk for each level, as wide as the taps; none:
               no branch, the heads read the routing maps: the paper's plain deep supervision (PFH in its table 4)
    block, elan_depth, csp_depth  of the units of branch=elan, see `gelan`
    """

    branch: Literal["coupling", "elan", "none"] = "coupling"
    block: Annotated[str, OneOf(BLOCKS)] = "csp"
    elan_depth: Annotated[int, Ge(1)] = 1
    csp_depth: Annotated[int, Ge(1)] = 1

    def unread(self, specs: Sequence[BlockSpec]) -> Mapping[str, str]:
        if len(specs) == 1:
            return super().unread(specs)
        others = {
            "couplings": (["coupling"], "strategy.branch=coupling"),
            "width": (["coupling", "none"], "strategy.branch=coupling or none"),
            **dict.fromkeys(("block", "elan_depth", "csp_depth"), (["elan"], "strategy.branch=elan")),
        }
        return {name: what for name, (readers, what) in others.items() if self.branch not in readers}

    def modules(self, spec: BlockSpec) -> Mapping[str, nn.Module]:
        newest = [sizes[-1] for sizes in spec.levels] or [*spec.sizes]
        if not spec.last:
            chunks = sum(size[0] for size in newest[: spec.index + 1]) if self.branch == "elan" else self.width
            return {"routing": Routing(newest[spec.index], chunks, spec.maps)}
        if spec.depth == 1:
            return {}
        numbers_of_input(spec, "the auxiliary branch")
        return {"branch": self._branch(spec, newest[:-1])}

    def _branch(self, spec: BlockSpec, sizes: Sequence[Size]) -> nn.Module:
        def whole(levels: Sequence[Size]) -> nn.Module:
            return self.auxiliary.build_boxes(spec.image, levels, spec.classes, every=True)

        def heads(levels: Sequence[Size]) -> list[nn.Module]:
            return [whole(levels)] if boxes else [self.head(spec)(size) for size in levels]

        boxes = spec.task.form == BOXES
        if self.branch == "elan":
            unit = partial(ELAN, block=self.block, elan_depth=self.elan_depth, csp_depth=self.csp_depth)
            return ElanBranch(spec.image, sizes, unit, heads)
        if self.branch == "none":
            levels = [(self.width, *as_map(size)[1:]) for size in sizes]
            return Branch(levels, heads(levels))
        options = self.width, self.couplings, self.head(spec), spec.channels_first, whole if boxes else None
        return CouplingBranch(spec.image, sizes, *options)

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


@dataclass(frozen=True)
class CausalPGI(Branched):
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
        level = Level(spec.maps[-1], self.width, self.couplings, self.head(spec))
        modules: dict[str, nn.Module] = {"routing": Routing(spec.maps[-1], self.width, spec.maps), "level": level}
        if spec.index:
            return modules
        return {"stem": Stem(spec.image, self.width, level.grid, spec.channels_first), **modules}

    def forward(self, block: Block, x: Packet) -> tuple[Packet, Tensor | None]:
        h = block.layers(x.h)
        if block.last:
            return Packet(h, x.y), task_loss(block, h, x.y)
        level = block.auxiliary["level"]
        assert isinstance(level, Level)
        assert level.classifier is not None
        a = level(x.side[0] if x.side else block.auxiliary["stem"](x.h), [self.tap(block, h)])
        loss = self.auxiliary_loss(block, [level.classifier(a)], x.y)
        wanted = block.spec.index < block.spec.depth - 2  # the last block has no level
        return Packet(h, x.y, (a,) if wanted else ()), loss
