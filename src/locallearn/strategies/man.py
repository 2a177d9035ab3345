"""Momentum auxiliary networks: the head of a block reads it through what the next block begins with."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from annotated_types import Ge, Interval
from torch import Tensor, nn

from locallearn.contract import Block, BlockSpec, Packet, Published
from locallearn.errors import UserError
from locallearn.strategies.greedy import DGL


class Ahead(nn.Module):
    """u = s LB(h) + (2 - s) EMA(h): h [B, ...] of a block through two networks like the first units of the next one.

    `own` (LB) learns; `average` (EMA), whose weights are buffers, follows those of the next block, of which `seen` is
    the newest version that it has taken in; `scale` (s) is 1, or learns from there.
    """

    seen: Tensor
    scale: Tensor

    def __init__(self, own: nn.Module, average: nn.Module, scaled: bool) -> None:
        super().__init__()
        self._weights = [name for name, _ in average.named_parameters()]
        self.own, self.average = own, _as_buffers(average)
        self.register_buffer("seen", torch.tensor(-1))
        one = torch.ones(())
        self.register_parameter("scale", nn.Parameter(one)) if scaled else self.register_buffer("scale", one)

    def forward(self, h: Tensor) -> Tensor:
        return self.scale * self.own(h) + (2 - self.scale) * self.average(h)

    def weights(self) -> list[Tensor]:
        """Those of the average, in the order in which a module has them."""
        return [self.average.get_buffer(name) for name in self._weights]

    @torch.no_grad()
    def follow(self, version: int, weights: Sequence[Tensor], share: float) -> None:
        """Take in a share of these weights; nothing of a version that has been taken in. It asks no GPU. There may be
        more weights: the units of a reversible net are joined in a block."""
        new = self.seen < version
        for p, weight in zip(self.weights(), weights, strict=False):
            p.lerp_(weight, new.to(p.dtype) * share)
        self.seen.clamp_(min=version)


@dataclass(frozen=True)
class MAN(DGL):
    """DGL whose heads look ahead: momentum auxiliary network, MAN (Su et al. 2024, arXiv 2407.05623), and MAN++ (Su et
    al. 2025, arXiv 2507.16279) with `scaled`.

    The loss of block k < K reads u = LB(h_k) + EMA(h_k), or s LB(h_k) + (2 - s) EMA(h_k), in the place of h_k. LB and
    EMA are built like the first units of block k + 1, up to the first with weights; LB learns with block k, and EMA <-
    m EMA + (1 - m) W, with the weights W of those units as block k + 1 publishes them. Detached at every border; sends
    nothing down. Raises UserError where block k + 1 has no weights.

    momentum  m, for one step
    scaled    whether s, which begins at 1, learns. The rest of MAN++ is its head, `auxiliary=pointwise_mlp`, and a cut
              after the stem, which gives that a loss of its own
    every     steps from one version of W to the next; a version counts with m to the power of `every`
    lag       steps by which W is late. With 1, as in the paper, u reads W as it was before the previous step, and no
              stage of a pipeline waits
    """

    momentum: Annotated[float, Interval(ge=0, le=1)] = 0.995
    scaled: bool = False
    every: Annotated[int, Ge(1)] = 1
    lag: Annotated[int, Ge(0)] = 1
    boxes: ClassVar[bool] = False
    priced: ClassVar[bool] = False

    def unread(self, specs: Sequence[BlockSpec]) -> Mapping[str, str]:
        alone = dict.fromkeys(("momentum", "scaled", "every", "lag"), "blocks=2 or more") if len(specs) == 1 else {}
        return {**super().unread(specs), **alone}

    def modules(self, spec: BlockSpec) -> Mapping[str, nn.Module]:
        if spec.last:
            return super().modules(spec)
        ahead = Ahead(_first_units(spec), _first_units(spec), self.scaled)
        return {"ahead": ahead, **self.objective.modules(_seen_ahead(spec, ahead), self.auxiliary)}

    def reads(self, spec: BlockSpec) -> Mapping[str, Published]:
        return {} if spec.last else {"first_units": Published(spec.index + 1, self.every, self.lag)}

    def publish(self, block: Block, name: str) -> Sequence[Tensor]:
        assert isinstance(block.layers, nn.Sequential)
        weights = [p for unit in _up_to_weights(block.layers) for p in unit.parameters()]
        if not weights:
            raise _nothing_to_follow(block.spec.index)
        return weights

    def loss(self, block: Block, h: Tensor, packet: Packet) -> Tensor:
        if block.last:
            return super().loss(block, h, packet)
        ahead = self._ahead(block)
        ahead.follow(*block.published("first_units"), 1 - self.momentum**self.every)
        spec = _seen_ahead(block.spec, ahead)
        loss, logits = self.objective.loss(spec, block.auxiliary, ahead(h), packet)
        block.report(loss, logits, packet.y)
        return loss

    def predict(self, block: Block, packet: Packet) -> Tensor | None:
        if block.last:
            return super().predict(block, packet)
        return self.objective.predict(block.auxiliary, self._ahead(block)(packet.h))

    def _ahead(self, block: Block) -> Ahead:
        ahead = block.auxiliary["ahead"]
        assert isinstance(ahead, Ahead)
        return ahead


def _first_units(spec: BlockSpec) -> nn.Sequential:
    """New ones like those with which the next block begins, up to the first with weights."""
    units: list[nn.Module] = []
    for unit in spec.above:
        units.append(unit.build(unit.reads))
        if next(units[-1].parameters(), None) is not None:
            return nn.Sequential(*units)
    raise _nothing_to_follow(spec.index + 1)


def _nothing_to_follow(index: int) -> UserError:
    return UserError(f"MAN follows weights of block {index}, which has none: cut the model into fewer blocks")


def _as_buffers(module: nn.Module) -> nn.Module:
    """The module with buffers in the place of its parameters: a look at the blocks puts them back."""
    for each in module.modules():
        for name, p in list(each._parameters.items()):
            if p is not None:
                del each._parameters[name]
                each.register_buffer(name, p.detach())
    return module


def _up_to_weights(units: Iterable[nn.Module]) -> list[nn.Module]:
    found = []
    for unit in units:
        found.append(unit)
        if next(unit.parameters(), None) is not None:
            break
    return found


def _seen_ahead(spec: BlockSpec, ahead: Ahead) -> BlockSpec:
    """The block as its loss sees it: it ends where the units end that it looks through."""
    assert isinstance(ahead.own, nn.Sequential)
    count = len(ahead.own)
    return spec._replace(emits=spec.above[count - 1].emits, above=spec.above[count:])
