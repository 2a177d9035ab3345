"""Feature maps of several sizes that travel from unit to unit as one tensor, and a head that finds objects in them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from locallearn.models.base import Size
from locallearn.models.gelan import conv

EPSILON, MOMENTUM = 1e-3, 0.03  # of batch norm, in YOLOv9


@dataclass(frozen=True)
class Pyramid:
    """Maps of these sizes [C, H, W], the newest last. One map travels as it is; of several each is laid out position by
    position, and all stand one behind the other: [B, sum of C H W]. Maps whose channels are last in memory are copied
    once, by the join."""

    levels: tuple[Size, ...]

    def pack(self, maps: Sequence[Tensor]) -> Tensor:
        if len(maps) == 1:
            return maps[0]
        return torch.cat([m.permute(0, 2, 3, 1).flatten(1) for m in maps], dim=1)

    def unpack(self, h: Tensor) -> list[Tensor]:
        if len(self.levels) == 1:
            return [h]
        parts = h.split([math.prod(size) for size in self.levels], dim=1)
        return [
            part.unflatten(1, (height, width, channels)).permute(0, 3, 1, 2)
            for part, (channels, height, width) in zip(parts, self.levels, strict=True)
        ]


class Scale(nn.Module):
    """A unit that makes one map of some of a pyramid: `inner` reads the levels `reads`, and what it gives follows those
    that are kept. `levels` are the sizes of what it emits."""

    def __init__(self, inner: nn.Module, given: Pyramid, reads: Sequence[int], keeps: Sequence[int], new: Size) -> None:
        super().__init__()
        self.inner, self.given = inner, given
        self.reads, self.keeps = tuple(reads), tuple(keeps)
        self.levels = (*(given.levels[k] for k in keeps), new)

    def forward(self, h: Tensor) -> Tensor:
        maps = self.given.unpack(h)
        new = self.inner(*(maps[k] for k in self.reads))
        return Pyramid(self.levels).pack([*(maps[k] for k in self.keeps), new])


class DetectHead(nn.Module):
    """The head of YOLOv9, without anchors: on each level two towers of two 3x3 convolutions and a 1x1 one, for the
    sides of a box and for the classes.

    A pyramid -> [B, positions, 3 + 4 bins + classes], the finest level first, row by row: x and y of the centre and the
    stride of each position in pixels of the input, the logits of `bins` distances (0, 1, ... cells) of left, top, right
    and bottom, and those of the classes. The three columns are constants, so that an answer explains itself.

    At first it finds about five objects on each level: class biases are log(5 / classes / positions of the level).

    Args:
        given: What comes in.
        image: The shape (C, H, W) of an input.
        newest: Whether the newest level alone is read.
    """

    def __init__(self, given: Pyramid, image: Size, classes: int, bins: int, newest: bool = False) -> None:
        super().__init__()
        self.given = given
        reads = [len(given.levels) - 1] if newest else range(len(given.levels))
        self.reads = sorted(reads, key=lambda k: -given.levels[k][1])
        sizes = [given.levels[k] for k in self.reads]
        finest = sizes[0][0]
        wide, narrow = max(finest, min(2 * classes, 128)), max(16, finest // 4, 4 * bins)
        self.strides = [image[1] // size[1] for size in sizes]
        self.sides = nn.ModuleList(_tower(size[0], narrow, 4 * bins) for size in sizes)
        self.classes = nn.ModuleList(_tower(size[0], wide, classes) for size in sizes)
        for of_sides, of_classes, (_, height, width) in zip(self.sides, self.classes, sizes, strict=True):
            nn.init.constant_(of_sides[-1].bias, 1.0)  # type: ignore[index]
            nn.init.constant_(of_classes[-1].bias, math.log(5 / classes / (height * width)))  # type: ignore[index]
        published_norms(self)

    def forward(self, h: Tensor) -> Tensor:
        maps = self.given.unpack(h)
        towers = zip(self.reads, self.strides, self.sides, self.classes, strict=True)
        levels = []
        for k, stride, sides, classes in towers:
            answers = [t(maps[k]).permute(0, 2, 3, 1).flatten(1, 2) for t in (sides, classes)]
            anchors = _anchors(maps[k], stride).expand(len(h), -1, -1)
            levels.append(torch.cat([anchors, *(a.to(anchors.dtype) for a in answers)], dim=2))
        return torch.cat(levels, dim=1)


def published_norms(module: nn.Module) -> None:
    """Give every batch norm the constants of YOLOv9."""
    for each in module.modules():
        if isinstance(each, nn.BatchNorm2d):
            each.eps, each.momentum = EPSILON, MOMENTUM


def _tower(inputs: int, width: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(conv(inputs, width, 3), conv(width, width, 3), nn.Conv2d(width, outputs, 1))


def _anchors(m: Tensor, stride: int) -> Tensor:
    """Centre and stride of each position of a map [B, C, H, W], in pixels: [1, H W, 3]."""
    kind = torch.promote_types(m.dtype, torch.float32)
    y, x = (torch.arange(side, dtype=kind, device=m.device).add(0.5).mul(stride) for side in m.shape[2:])
    rows, columns = torch.meshgrid(y, x, indexing="ij")
    return torch.stack([columns, rows, torch.full_like(rows, stride)], dim=-1).flatten(0, 1)[None]
