"""GELAN, YOLOv9's aggregation of computational blocks of any kind, and CSPNet, from which it comes, as classifiers."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from locallearn.errors import UserError, unknown
from locallearn.models.base import BlockModel, Size
from locallearn.models.layers import check_image, pooled_head
from locallearn.models.resnet import SMALL

WIDTHS = (64, 128, 192, 256)


def conv(inputs: int, outputs: int, kernel: int = 1, stride: int = 1) -> nn.Sequential:
    """Convolution, BN, SiLU. [B, inputs, H, W] -> [B, outputs, H/stride, W/stride]"""
    layer = nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2, bias=False)
    return nn.Sequential(layer, nn.BatchNorm2d(outputs), nn.SiLU())


class Residual(nn.Module):
    """x + body(x)"""

    def __init__(self, *body: nn.Module) -> None:
        super().__init__()
        self.body = nn.Sequential(*body)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


class CSP(nn.Module):
    """Cross-stage partial: one half of the channels passes `depth` residual blocks, the other none, and a 1x1
    convolution joins them (Wang et al. 2020, "CSPNet"). [B, C, H, W] -> [B, C, H, W]"""

    def __init__(self, channels: int, depth: int) -> None:
        super().__init__()
        half = channels // 2
        blocks = (Residual(conv(half, half, 3), conv(half, half, 3)) for _ in range(depth))
        self.deep = nn.Sequential(conv(channels, half), *blocks)
        self.short = conv(channels, half)
        self.join = conv(2 * half, channels)

    def forward(self, x: Tensor) -> Tensor:
        return self.join(torch.cat([self.deep(x), self.short(x)], dim=1))


BLOCKS: dict[str, Callable[[int, int], nn.Module]] = {  # (channels, depth) -> [B, C, H, W] -> [B, C, H, W]
    "conv": lambda c, depth: nn.Sequential(*(conv(c, c, 3) for _ in range(depth))),
    "res": lambda c, depth: nn.Sequential(*(Residual(conv(c, c, 3), conv(c, c, 3)) for _ in range(depth))),
    "dark": lambda c, depth: nn.Sequential(*(Residual(conv(c, c // 2), conv(c // 2, c, 3)) for _ in range(depth))),
    "csp": CSP,
}


class ELAN(nn.Module):
    """Generalised ELAN: a 1x1 convolution, split in halves; the second half passes `elan_depth` branches one after
    another (computational blocks and a 3x3 convolution each); both halves and what every branch gives are joined by a
    1x1 convolution. [B, C, H, W] -> [B, C, H, W]"""

    def __init__(self, channels: int, block: str, elan_depth: int, csp_depth: int) -> None:
        super().__init__()
        half, inner = channels // 2, channels // 4
        self.split = conv(channels, 2 * half)
        self.branches = nn.ModuleList(
            nn.Sequential(
                *([] if i else [conv(half, inner)]),
                BLOCKS[block](inner, csp_depth),
                conv(inner, inner, 3),
            )
            for i in range(elan_depth)
        )
        self.join = conv(2 * half + elan_depth * inner, channels)

    def forward(self, x: Tensor) -> Tensor:
        parts = list(self.split(x).chunk(2, dim=1))
        for branch in self.branches:
            parts.append(branch(parts[-1]))
        return self.join(torch.cat(parts, dim=1))


def gelan(
    image: Size,
    classes: int,
    *,
    block: str = "csp",
    elan_depth: int = 2,
    csp_depth: int = 1,
    width: float = 1.0,
) -> BlockModel:
    """The trunk of YOLOv9's GELAN (Wang, Yeh & Liao, 2024) with a linear head: four stages of one ELAN unit, with
    strided 3x3 convolutions between. Up to 64x64 the stem keeps the resolution; above it halves it twice.

    block       the computational block (the paper's table 2): conv, res, dark or csp
    elan_depth  branches of a unit; csp_depth: blocks in a branch (table 3)
    width       multiplies the channels 64-128-192-256

    Without the re-parameterised convolutions of the authors' code, which change the speed of inference only.
    """
    if block not in BLOCKS:
        raise unknown("block", block, BLOCKS)
    if min(elan_depth, csp_depth) < 1:
        raise UserError(f"elan_depth={elan_depth}, csp_depth={csp_depth} but a gelan needs both; choose at least 1")
    return _trunk("gelan", image, classes, width, lambda channels: ELAN(channels, block, elan_depth, csp_depth))


def cspnet(image: Size, classes: int, *, depth: int = 2, width: float = 1.0) -> BlockModel:
    """CSPNet (Wang et al., 2020, "CSPNet: A New Backbone that can Enhance Learning Capability of CNN") on the trunk of
    `gelan`: four stages of one partial unit, in which half of the channels passes `depth` residual blocks.

    width  multiplies the channels 64-128-192-256
    """
    if depth < 1:
        raise UserError(f"depth={depth} but a stage of a cspnet has residual blocks; choose at least 1")
    return _trunk("cspnet", image, classes, width, lambda channels: CSP(channels, depth))


def _trunk(name: str, image: Size, classes: int, width: float, unit: Callable[[int], nn.Module]) -> BlockModel:
    """Stem, four stages of one `unit` (channels -> module) with strided convolutions between, and a pooled head."""
    if width <= 0:
        raise UserError(f"width={width} but it multiplies the channels; choose a number above 0")
    channels, *sides = check_image(image, name)
    widths = [max(8, round(width * w / 8) * 8) for w in WIDTHS]
    large = max(sides) > SMALL
    stem = [conv(channels, widths[0] // 2, 3, 2), conv(widths[0] // 2, widths[0], 3, 2)]
    units: dict[str, nn.Module] = {"stem": nn.Sequential(*stem) if large else conv(channels, widths[0], 3)}
    kind = {"gelan": "elan", "cspnet": "csp"}[name]
    for stage, outputs in enumerate(widths):
        if stage:
            units[f"down{stage + 1}"] = conv(widths[stage - 1], outputs, 3, 2)
        units[f"{kind}{stage + 1}"] = unit(outputs)
    head = pooled_head(widths[-1], classes)
    return BlockModel(units.values(), head, image=image, classes=classes, name=name, names=list(units))
